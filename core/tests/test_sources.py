"""What a model name means, and downloads from a Hub that this file plays itself."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from graftwork.errors import ModelError, UnknownNameError, UsageError
from graftwork.sources import locate, resolve

PLUGIN = """
from graftwork import hookimpl
from graftwork.specs import ModelFamily, Preset, SourceSpec
from pathlib import Path

@hookimpl
def graftwork_model_families():
    toy = Preset(name="toy_1m", model_type="llama", values={}, num_parameters=1, aliases=("toy-1m",))
    return [ModelFamily(name="toy", presets=(toy,))]

@hookimpl
def graftwork_sources():
    return [SourceSpec(name="shelf", fetch=lambda reference, cache_dir: Path(reference.removeprefix("shelf://")))]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


# What a name means


@pytest.mark.parametrize("name", ["./model", "{here}/model", "file://{here}/model", "~/model", "org/model"])
def test_a_folder_in_every_spelling(here: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HOME", str(here))
    (here / "model").mkdir()
    (here / "org/model").mkdir(parents=True)
    found = resolve(name.format(here=here))
    assert found.kind == "path"
    assert found.path == here / ("org/model" if name == "org/model" else "model")
    assert found.name == str(found.path)
    assert locate(found) == found.path


def test_a_folder_with_a_slash_wins_over_the_hub_and_says_so(here: Path) -> None:
    assert resolve("org/model").kind == "hub"
    (here / "org/model").mkdir(parents=True)
    found = resolve("org/model")
    assert found.kind == "path"
    assert "hf://org/model" in found.note


@pytest.mark.parametrize(
    ("name", "repository", "revision"),
    [("org/name", "org/name", None), ("hf://org/name", "org/name", None), ("hf://gpt2@v1", "gpt2", "v1")],
)
def test_a_hub_id(here: Path, name: str, repository: str, revision: str | None) -> None:
    found = resolve(name)
    assert (found.kind, found.name, found.revision) == ("hub", repository, revision)


def test_two_revisions_must_agree(here: Path) -> None:
    assert resolve("hf://org/name@main", revision="main").revision == "main"
    with pytest.raises(UsageError, match=r"names revision 'main' but model_revision is 'v2'"):
        resolve("hf://org/name@main", revision="v2")


def test_a_revision_is_for_the_hub_only(here: Path) -> None:
    (here / "model").mkdir()
    with pytest.raises(UsageError, match="only Hub models have revisions"):
        resolve("./model", revision="v2")


@pytest.mark.parametrize("name", ["toy_1m", "TOY_1M", "toy-1m", "preset:toy_1m"])
def test_a_preset(here: Path, install_plugin: Any, name: str) -> None:
    install_plugin(PLUGIN)
    found = resolve(name)
    assert found.kind == "preset"
    assert found.name == "toy_1m"
    assert found.preset is not None
    with pytest.raises(ModelError, match="an architecture without files"):
        locate(found)


def test_a_preset_that_is_a_folder_too_is_ambiguous(here: Path, install_plugin: Any) -> None:
    install_plugin(PLUGIN)
    (here / "toy_1m").mkdir()
    with pytest.raises(UsageError, match=r"write \./toy_1m for the folder or preset:toy_1m for the preset"):
        resolve("toy_1m")
    assert resolve("./toy_1m").kind == "path"
    assert resolve("preset:toy_1m").kind == "preset"


def test_a_bare_folder_is_said_to_be_one(here: Path) -> None:
    (here / "mine").mkdir()
    found = resolve("mine")
    assert found.path == here / "mine"
    assert "./mine" in found.note


def test_an_unknown_bare_name_suggests_the_nearest_preset(here: Path, install_plugin: Any) -> None:
    install_plugin(PLUGIN)
    with pytest.raises(UnknownNameError) as caught:
        resolve("toy_2m")
    assert "did you mean toy_1m?" in str(caught.value)
    assert "graft models ls" in str(caught.value)
    assert "hf://toy_2m" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("./nowhere", "there is no folder"),
        ("./file.txt", "this is a file; give the folder"),
        ("a/b/c", "no such folder here, and a Hub id has the form org/name"),
        ("file://elsewhere/model", "another machine"),
        ("hf://a/b/c", "hf://org/name"),
        (" ", "model_name is empty"),
    ],
)
def test_names_that_mean_nothing(here: Path, name: str, text: str) -> None:
    (here / "file.txt").write_text("")
    with pytest.raises(ModelError) as caught:
        resolve(name)
    assert text in str(caught.value)


def test_a_scheme_comes_from_a_plugin(here: Path, install_plugin: Any) -> None:
    with pytest.raises(UnknownNameError, match="'shelf'"):
        resolve("shelf://somewhere")
    install_plugin(PLUGIN)
    (here / "somewhere").mkdir()
    found = resolve("shelf://somewhere")
    assert found.kind == "uri"
    assert locate(found) == Path("somewhere")


# Downloads


class Hub(BaseHTTPRequestHandler):
    """The few addresses of a Hub that a download asks for."""

    repositories: ClassVar[dict[str, dict[str, bytes]]] = {}
    refused: ClassVar[dict[str, tuple[int, str]]] = {}
    served: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0].removeprefix("/api/models/").strip("/")
        repository = "/".join(path.split("/")[:2])
        if repository in self.refused:
            status, code = self.refused[repository]
            self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, body=body)
        elif repository not in self.repositories:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
        elif self.path.startswith("/api/models/"):
            self._information(repository, path)
        else:
            self._file(repository, path, body=body)

    def _information(self, repository: str, path: str) -> None:
        files = self.repositories[repository]
        revision = path.partition("/revision/")[2] or "main"
        if revision not in {"main", self._commit(repository)}:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif "/tree/" in path:
            tree = [{"type": "file", "path": name, "size": len(data), "oid": "0" * 40} for name, data in files.items()]
            self._send(200, json.dumps(tree).encode())
        else:
            siblings = [{"rfilename": name} for name in files]
            info = {"id": repository, "sha": self._commit(repository), "siblings": siblings}
            self._send(200, json.dumps(info).encode())

    def _file(self, repository: str, path: str, *, body: bool) -> None:
        name = path.split("/resolve/")[1].partition("/")[2]
        data = self.repositories[repository].get(name)
        if data is None:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, body=body)
            return
        if body:
            self.served.append(name)
        headers = {"ETag": hashlib.sha1(data).hexdigest(), "X-Repo-Commit": self._commit(repository)}
        self._send(200, data, headers, body=body)

    @staticmethod
    def _commit(repository: str) -> str:
        return hashlib.sha1(repository.encode()).hexdigest()

    def _send(self, status: int, data: bytes, headers: dict[str, str] | None = None, *, body: bool = True) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub() -> Any:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    Hub.repositories, Hub.refused, Hub.served = {}, {}, []
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


FETCH = """
import sys
from graftwork.errors import GraftworkError
from graftwork.sources import locate, resolve
revision = sys.argv[2] if len(sys.argv) > 2 else None
try:
    path = locate(resolve(sys.argv[1], revision=revision), weights="--architecture" not in sys.argv)
    print("PATH", path)
    print("FILES", *sorted(file.name for file in path.iterdir()))
except GraftworkError as error:
    print("EXIT", error.exit_code)
    print("ERROR", error)
"""


def fetch(endpoint: str, home: Path, *arguments: str, **environment: str) -> dict[str, str]:
    """Downloads in a process of its own: huggingface_hub reads its settings once, when it is imported."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FETCH, *arguments],
        env={**kept, **settings, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


CONFIG = json.dumps({"model_type": "gpt2"}).encode()
MODEL = {
    "config.json": CONFIG,
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"pickle",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "modeling.py": b"raise SystemExit('remote code ran')",
    "original/consolidated.00.pth": b"pickle",
    "onnx/model.onnx": b"x",
    "onnx/config.json": b"{}",
    "consolidated.safetensors": b"again",
}
NEEDED = "chat_template.jinja config.json model.safetensors tokenizer.json"


def test_only_what_a_model_needs_is_downloaded_and_once(hub: str, tmp_path: Path) -> None:
    Hub.repositories = {"org/model": MODEL}
    assert fetch(hub, tmp_path, "org/model")["FILES"] == NEEDED
    assert sorted(Hub.served) == NEEDED.split()
    again = fetch(hub, tmp_path, "hf://org/model@main")
    assert again["FILES"] == NEEDED
    assert len(Hub.served) == 4


def test_an_architecture_alone_is_downloaded_without_weights(hub: str, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors"}}).encode()
    Hub.repositories = {"org/model": {**MODEL, "model.safetensors.index.json": index}}
    said = fetch(hub, tmp_path, "org/model", "main", "--architecture")
    assert said["FILES"] == "chat_template.jinja config.json model.safetensors.index.json tokenizer.json"


def test_what_was_downloaded_works_without_a_network(hub: str, tmp_path: Path) -> None:
    Hub.repositories = {"org/model": MODEL}
    fetch(hub, tmp_path, "org/model")
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        assert fetch(hub, tmp_path, "org/model", **environment)["FILES"] == NEEDED


def test_pickled_weights_only_where_there_are_no_others(hub: str, tmp_path: Path) -> None:
    Hub.repositories = {"org/old": {"config.json": CONFIG, "pytorch_model.bin": b"pickle", "training_args.bin": b"p"}}
    assert fetch(hub, tmp_path, "org/old")["FILES"] == "config.json pytorch_model.bin"


def test_missing_shards_are_said(hub: str, tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    files = {"config.json": CONFIG, "model.safetensors.index.json": index, "model-1.safetensors": b"1"}
    Hub.repositories = {"org/half": files, "org/none": {"README.md": b""}}
    said = fetch(hub, tmp_path, "org/half")
    assert "1 of 2 weight files are not in" in said["ERROR"]
    assert "model-2.safetensors" in said["ERROR"]
    assert "it has no config.json" in fetch(hub, tmp_path, "org/none")["ERROR"]


@pytest.mark.parametrize(
    ("refusal", "text"),
    [
        (None, "the Hub has no such model, or it is private and you are not logged in"),
        ((401, "RepoNotFound"), "the Hub has no such model, or it is private and you are not logged in"),
        ((403, "GatedRepo"), "is gated: accept its terms at {hub}/org/model, then log in with `hf auth login`"),
        ((401, "GatedRepo"), "is gated: accept its terms at {hub}/org/model, then log in with `hf auth login`"),
        ((403, ""), "answered 403; run `hf auth login` or set HF_TOKEN"),
    ],
)
def test_refusals_are_explained(hub: str, tmp_path: Path, refusal: tuple[int, str] | None, text: str) -> None:
    if refusal is not None:
        Hub.refused = {"org/model": refusal}
    said = fetch(hub, tmp_path, "org/model")
    assert text.format(hub=hub) in said["ERROR"]
    assert "model org/model" in said["ERROR"]


def test_an_unknown_revision(hub: str, tmp_path: Path) -> None:
    Hub.repositories = {"org/model": MODEL}
    said = fetch(hub, tmp_path, "org/model", "v9")
    assert "model org/model at revision 'v9': the model is there, this revision is not" in said["ERROR"]
    assert said["EXIT"] == "2"


def test_an_unreachable_hub(tmp_path: Path) -> None:
    said = fetch("http://127.0.0.1:9", tmp_path, "org/model")
    text = (
        "model org/model: there is no folder of that name here; it is not in the cache, and http://127.0.0.1:9 cannot"
    )
    assert text in said["ERROR"]
    assert "Give a folder, or check the network" in said["ERROR"]
    assert said["EXIT"] == "1"


def test_offline_by_choice(tmp_path: Path) -> None:
    said = fetch("http://127.0.0.1:9", tmp_path, "org/model", HF_HUB_OFFLINE="1")
    assert "is not in the cache" in said["ERROR"]
    assert "HF_HUB_OFFLINE is set" in said["ERROR"]
    assert said["EXIT"] == "1"
