"""The documents are true: what is generated is current, what is shown runs, what is named is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from graftwork import hookspecs, load_config

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "examples" / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"(?P<before>[^\n]*)\n```(?P<language>\w+)\n(?P<code>.*?)```", re.S)
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>.+) -->")
RUNNABLE = ("python", "bash", "yaml")


@dataclass(frozen=True)
class Snippet:
    """A block of code in a document; ``before`` is the line above it."""

    document: Path
    before: str
    language: str
    code: str

    @property
    def runs(self) -> bool:
        shown_from_a_file = self.before.startswith("<!-- generated:")
        return self.language in RUNNABLE and not shown_from_a_file and not NOT_RUN.fullmatch(self.before)

    def __str__(self) -> str:
        return f"{self.document.name}: {self.code.partition(chr(10))[0]}"


def snippets(document: Path) -> list[Snippet]:
    text = document.read_text(encoding="utf-8")
    return [Snippet(document, found["before"], found["language"], found["code"]) for found in BLOCK.finditer(text)]


ALL = [snippet for document in DOCUMENTS for snippet in snippets(document)]
PYTHON = [snippet for snippet in ALL if snippet.runs and snippet.language == "python"]
BASH = [snippet for snippet in ALL if snippet.runs and snippet.language == "bash"]
YAML = [snippet for snippet in ALL if snippet.runs and snippet.language == "yaml"]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A folder that looks like the root of the repository, for runs to write into."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


def run(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr


def test_generated_parts_are_what_the_code_says() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRAFTWORK_")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, f"call `make docs`:\n{done.stdout}{done.stderr}"


def test_every_hook_is_in_the_page_about_plugins() -> None:
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    hooks = [name for name in vars(hookspecs) if name.startswith("graftwork_")]
    assert [name for name in hooks if f"| `{name}(" not in page] == []


@pytest.mark.parametrize("document", sorted({snippet.document for snippet in PYTHON}), ids=lambda path: path.name)
def test_python_in_a_document_runs(document: Path, workplace: Path) -> None:
    # As one program: a reader goes on where the block before ended.
    code = "\n".join(snippet.code for snippet in PYTHON if snippet.document == document)
    run([sys.executable, "-W", "error:::__main__", "-c", code], workplace)


@pytest.mark.parametrize("snippet", BASH, ids=str)
def test_commands_in_a_document_run(snippet: Snippet, workplace: Path) -> None:
    run(["bash", "-euo", "pipefail", "-c", snippet.code], workplace)


@pytest.mark.parametrize("snippet", YAML, ids=str)
def test_a_configuration_in_a_document_is_valid(
    snippet: Snippet, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    (workplace / "run.yaml").write_text(snippet.code, encoding="utf-8")
    # It goes on with what another example leaves behind, which is not there yet.
    load_config(workplace / "run.yaml", ["model.model_name=org/model"])


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which ``examples/sft-chat.yaml`` has run."""
    folder = tmp_path_factory.mktemp("docs")
    shutil.copytree(ROOT / "examples", folder / "examples")
    run(["graft", "train", "-c", "examples/sft-chat.yaml", "training.max_steps=1"], folder)
    return folder


@pytest.mark.parametrize("snippet", [one for one in YAML if one.document.name in ("methods.md", "data.md")], ids=str)
def test_a_configuration_in_a_document_trains(snippet: Snippet, small_model: Path) -> None:
    """As it stands, but for fewer steps: they have a model, data and a run folder of their own."""
    (small_model / "run.yaml").write_text(snippet.code, encoding="utf-8")
    training = yaml.safe_load(snippet.code)["training"]
    assert (training["output_dir"].startswith("output/"), training["max_steps"] > 0) == (True, True)
    shorter = ["training.max_steps=1"]
    if training["trainer_type"] == "TRL_GRPO":
        shorter.append("training.trainer_kwargs.max_completion_length=8")
    run(["graft", "train", "-c", "run.yaml", *shorter], small_model)


def test_every_recipe_has_its_example() -> None:
    from graftwork.recipes import recipes

    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([\w-]+)` \| (.+) \|$", text, re.M))
    assert set(listed) == set(recipes())
    examples = {name for cell in listed.values() for name in re.findall(r"`([\w-]+\.yaml)`", cell)}
    assert examples == {path.name for path in (ROOT / "examples").glob("*.yaml")}


def test_every_example_is_in_the_list() -> None:
    text = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    names = [path.name for path in (ROOT / "examples").glob("*.yaml")]
    assert [name for name in names if f"| `{name}` |" not in text] == []


def test_there_is_something_to_run() -> None:
    assert {snippet.document.name for snippet in PYTHON} == {
        "README.md",
        "architecture.md",
        "coming-from.md",
        "plugins.md",
        "resume.md",
    }
    assert BASH
    assert YAML


def test_what_is_not_run_says_why() -> None:
    marked = [snippet for snippet in ALL if "not run" in snippet.before]
    assert all(NOT_RUN.fullmatch(snippet.before) for snippet in marked)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_files_that_are_named_exist(document: Path) -> None:
    text = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.S)
    named = {name for name in re.findall(r"`([\w./-]+)`", text) if is_source(name)}
    native = ROOT / "plugins/native/src"
    bases = (document.parent, ROOT, ROOT / "core/src/graftwork", native, native / "graftwork_native")
    assert {name for name in named if not any((base / name).exists() for base in bases)} == set()


def is_source(name: str) -> bool:
    """A path of this repository, not one that a run writes."""
    return name.endswith(".py") or name.split("/", maxsplit=1)[0] in (
        "examples",
        "plugins",
        "core",
        "docs",
        "benchmarks",
    )


def test_targets_of_make_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.M))
    texts = [document.read_text(encoding="utf-8") for document in DOCUMENTS]
    named = {target for text in texts for target in re.findall(r"(?:^|`)make ([a-z]+)", text, re.M)}
    assert {"quickstart", "test"} <= named <= targets
