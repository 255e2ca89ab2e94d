"""``graft download`` against a server on this machine that speaks the Hub's routes."""

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

from graftwork.cli import main
from graftwork.sources.download import Plan

# huggingface_hub keeps what came in pieces of 10 MB.
BIG = bytes(range(256)) * 100_000
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": BIG,
    "pytorch_model.bin": b"pickle",
    "original/consolidated.00.pth": b"pickle too",
    "modeling.py": b"raise SystemExit('remote code ran')",
}
COMMIT = "c" * 40

PRESET = """
from graftwork import hookimpl
from graftwork.specs import ModelFamily, Preset

@hookimpl
def graftwork_model_families():
    preset = Preset(name="toy_1b", model_type="toy", values={}, num_parameters=0, hub_ids=("org/a", "org/b"))
    return [ModelFamily(name="toy", model_types=("toy",), presets=(preset,))]
"""


class Hub(BaseHTTPRequestHandler):
    """One repository, ``org/model``. ``cut_after`` bytes of a file the connection is dropped."""

    protocol_version = "HTTP/1.0"
    cut_after: ClassVar[int | None] = None
    status: ClassVar[tuple[int, str]] = (200, "")
    sent: ClassVar[dict[str, int]] = {}
    tokens: ClassVar[set[str]] = set()

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.tokens.add(self.headers.get("authorization", ""))
        status, code = self.status
        if status != 200:
            self.reply(status, b"{}", {"X-Error-Code": code}, body=body)
        elif "/tree/" in path:
            rows = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in FILES.items()]
            self.reply(200, json.dumps(rows).encode())
        elif path.startswith("/api/models/"):
            self.reply(200, json.dumps({"id": "org/model", "sha": COMMIT, "siblings": []}).encode())
        elif "/resolve/" in path:
            self.file(path.split("/resolve/")[1].partition("/")[2], body=body)
        else:
            self.reply(404, b"")

    def file(self, name: str, *, body: bool) -> None:
        data = FILES[name]
        etag = hashlib.sha256(data).hexdigest()
        start = int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        part = data[start:]
        self.send_response(206 if start else 200)
        for key, value in {"Content-Length": str(len(part)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            part = part[: self.cut_after] if self.cut_after and name == "model.safetensors" else part
            self.sent[name] = self.sent.get(name, 0) + len(part)
            self.wfile.write(part)

    def reply(self, status: int, data: bytes, headers: dict[str, str] | None = None, *, body: bool = True) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path) -> Any:
    """``hub("ORG/NAME", ...)`` runs ``graft download`` against the server."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    Hub.cut_after, Hub.status, Hub.sent, Hub.tokens = None, (200, ""), {}, set()
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    place = f"http://127.0.0.1:{server.server_port}"
    environment = {**kept, "HF_ENDPOINT": place, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("graft")), "download", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)

    try:
        yield run
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def names(folder: Path) -> set[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in files if path.parts[0] != ".cache"}


def test_with_an_empty_pattern_everything_comes_and_what_is_double_is_said(hub: Any, tmp_path: Path) -> None:
    done = hub(
        "org/model", "--output-dir", str(tmp_path / "copy"), "--hf-token", "secret-token", "--ignore-patterns", ""
    )
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "copy") == set(FILES)
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == BIG
    assert done.stdout.strip() == str(tmp_path / "copy")
    assert "org/model: 5 files, 25.6 MB" in done.stderr
    assert "weights of several kinds (*.safetensors 25.6 MB, original/*.pth 10 bytes, *.bin 6 bytes)" in done.stderr
    assert "Bearer secret-token" in Hub.tokens
    assert "secret-token" not in done.stdout + done.stderr


def test_patterns_leave_files_out(hub: Any, tmp_path: Path) -> None:
    done = hub("org/model", "--output-dir", str(tmp_path / "copy"), "--ignore-patterns", "*.bin, original/*")
    assert done.returncode == 0, done.stderr
    assert names(tmp_path / "copy") == {"config.json", "model.safetensors", "modeling.py"}
    assert "several kinds" not in done.stderr
    assert "model.safetensors" in Hub.sent and "pytorch_model.bin" not in Hub.sent
    nothing = hub("org/model", "--ignore-patterns", "*")
    assert nothing.returncode == 2
    assert "the patterns leave nothing of it; mend --ignore-patterns" in nothing.stderr


ONE_WEIGHT = ("--ignore-patterns", "*.bin,original/*")


def test_a_connection_that_breaks_goes_on_where_it_was(hub: Any, tmp_path: Path) -> None:
    Hub.cut_after = 12_000_000
    done = hub("org/model", "--output-dir", str(tmp_path / "copy"), *ONE_WEIGHT)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == BIG
    assert Hub.sent["model.safetensors"] < 1.3 * len(BIG), "each connection brought what the one before had not"


def test_a_download_that_broke_off_fetches_what_lacks(hub: Any, tmp_path: Path) -> None:
    Hub.cut_after = 1000
    first = hub("org/model", "--output-dir", str(tmp_path / "copy"), *ONE_WEIGHT)
    assert first.returncode == 1, first.stdout
    assert "the connection broke, several times: run the command again to go on" in first.stderr
    assert not (tmp_path / "copy" / "model.safetensors").exists(), "a part is not the file"
    Hub.cut_after, Hub.sent = None, {}
    second = hub("org/model", "--output-dir", str(tmp_path / "copy"), *ONE_WEIGHT)
    assert second.returncode == 0, second.stderr
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == BIG
    assert "config.json" not in Hub.sent, "it was whole"
    Hub.sent = {}
    again = hub("org/model", "--output-dir", str(tmp_path / "copy"), *ONE_WEIGHT)
    assert again.returncode == 0
    assert not Hub.sent and "25.6 MB of it here already" in again.stderr


@pytest.mark.parametrize(
    ("status", "arguments", "said"),
    [
        ((404, "RepoNotFound"), ("org/model",), "the Hub has no such model, or it is private"),
        ((403, "GatedRepo"), ("org/model",), "is gated: accept its terms at"),
        ((404, "RevisionNotFound"), ("org/model", "--revision", "v9"), "this revision is not; give a branch"),
    ],
)
def test_what_cannot_be_had(hub: Any, status: tuple[int, str], arguments: tuple[str, ...], said: str) -> None:
    Hub.status = status
    done = hub(*arguments)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no such name"], "a Hub model is written hf://org/name"),
        (["org/model@a", "--revision", "b"], "the revision is given twice, a and b; give one"),
        (["org/model", "--output-dir", __file__], "this is a file; give a folder"),
    ],
)
def test_what_is_wrong_before_the_hub_is_asked(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["download", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_preset_names_its_repositories(install_plugin: Any, capsys: pytest.CaptureFixture[str]) -> None:
    install_plugin(PRESET)
    assert main(["download", "toy_1b"]) == 2
    said = "model toy_1b: this is a preset, and no repository of the Hub; its weights are those of org/a or org/b"
    assert said in capsys.readouterr().err


def test_kinds_of_weights_are_counted_by_folder() -> None:
    files = {"a-1.safetensors": 5, "a-2.safetensors": 7, "original/c.pth": 3, "README.md": 1}
    plan = Plan(repository="o/m", revision=None, files=files, present=0)
    assert plan.copies() == {"*.safetensors": 12, "original/*.pth": 3} and plan.size == 16
