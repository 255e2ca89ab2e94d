"""Each distribution builds, holds its files, and works with nothing beside it but what it asks for."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from graftwork import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).parent.parent
PROJECTS = {"graftwork": ROOT / "core"} | {
    f"graftwork-{path.parent.name}": path.parent for path in sorted((ROOT / "plugins").glob("*/pyproject.toml"))
}
OURS = frozenset(PROJECTS)
HEAVY = {"torch", "transformers", "numpy", "peft", "datasets", "accelerate", "safetensors", "tensorboard"}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel of each distribution, built from its own source archive: what is missing there is missing in it."""
    folder = tmp_path_factory.mktemp("dist")
    for project in PROJECTS.values():
        command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(project)]
        subprocess.run(command, check=True, capture_output=True, text=True)
    built = {canonicalize_name(path.name.partition("-")[0]): path for path in folder.glob("*.whl")}
    assert built.keys() == PROJECTS.keys()
    return built


@pytest.mark.parametrize("name", PROJECTS)
def test_a_wheel_holds_every_file_of_its_package(name: str, wheels: dict[str, Path]) -> None:
    source = PROJECTS[name] / "src"
    files = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    files = {path for path in files if "__pycache__" not in path}
    held = set(zipfile.ZipFile(wheels[name]).namelist())
    assert files <= held
    package = name.replace("-", "_")
    assert f"{package}/py.typed" in held
    outside = {path for path in held - files if ".dist-info/" not in path}
    assert outside == set(), "no tests and no stray files"


@pytest.mark.parametrize("name", PROJECTS)
def test_a_wheel_carries_licence_entry_points_and_a_description(name: str, wheels: dict[str, Path]) -> None:
    wheel = zipfile.ZipFile(wheels[name])
    meta = {
        path.partition(".dist-info/")[2]: wheel.read(path).decode() for path in wheel.namelist() if "-info/" in path
    }
    assert "Apache License" in meta["licenses/LICENSE"]
    assert "[graftwork.plugins]" in meta["entry_points.txt"]
    assert "License-Expression: Apache-2.0" in meta["METADATA"]
    assert re.search(r"^# graftwork", meta["METADATA"], re.M), "the README is the long description"


def test_the_templates_are_in_the_wheels(wheels: dict[str, Path]) -> None:
    core = zipfile.ZipFile(wheels["graftwork"]).namelist()
    assert "graftwork/runs/report.html.jinja" in core
    assert "graftwork/chat/templates/default.jinja" in core
    assert "graftwork/recipes/sft.yaml" in core
    assert "graftwork_llama/cards/llama.yaml" in zipfile.ZipFile(wheels["graftwork-llama"]).namelist()
    assert "graftwork_llama/templates/llama3-instruct.jinja" in zipfile.ZipFile(wheels["graftwork-llama"]).namelist()


def test_plugins_ask_for_the_version_of_the_core_that_is_here() -> None:
    for name in OURS - {"graftwork"}:
        asked = [req for req in asked_by(name, ()) if req.name == "graftwork"]
        assert [req.specifier.contains(__version__) for req in asked] == [True], name


# Installed alone


def project(name: str) -> dict[str, Any]:
    data: dict[str, Any] = tomllib.loads((PROJECTS[name] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return data


def asked_by(name: str, extras: Iterable[str]) -> list[Requirement]:
    """What the distribution ``name`` requires here; ours say it in their project files."""
    if name in OURS:
        optional = project(name).get("optional-dependencies", {})
        texts = [*project(name)["dependencies"], *(text for extra in extras for text in optional[extra])]
        return [Requirement(text) for text in texts]
    found = [Requirement(text) for text in distribution(name).requires or []]
    return [req for req in found if req.marker is None or any(req.marker.evaluate({"extra": e}) for e in ("", *extras))]


def closure(names: Iterable[str]) -> set[str]:
    """The distributions that pip would install for ``names``, without ours."""
    asked = [Requirement(name) for name in names]
    seen: set[tuple[str, frozenset[str]]] = set()
    while asked:
        requirement = asked.pop()
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key not in seen:
            seen.add(key)
            asked.extend(asked_by(*key))
    return {name for name, _ in seen} - OURS


def site(folder: Path, wheels: dict[str, Path], *names: str) -> Path:
    """A folder to import from with what ``pip install NAMES`` would put there, and nothing else."""
    folder.mkdir()
    for name in names:
        zipfile.ZipFile(wheels[name]).extractall(folder)
    for dist in map(distribution, closure(names)):
        for top in {file.parts[0] for file in dist.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(dist.locate_file(top))))
    return folder


@pytest.fixture(scope="module")
def core_alone(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return site(tmp_path_factory.mktemp("core") / "site", wheels, "graftwork")


@pytest.fixture(scope="module")
def core_and_llama(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return site(tmp_path_factory.mktemp("llama") / "site", wheels, "graftwork", "graftwork-llama")


def python(folder: Path, code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` where only ``folder`` and the standard library can be imported (-S: no site-packages)."""
    start = f"import sys; sys.path.insert(0, {str(folder)!r})\n"
    command = [sys.executable, "-I", "-S", "-c", start + code, *args]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder.parent)


def graft(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return python(folder, "from graftwork.cli import main; sys.exit(main(sys.argv[1:]))", *args)


def test_the_core_alone_brings_nothing_heavy(core_alone: Path) -> None:
    assert {name for name in HEAVY if (core_alone / name).exists()} == set()
    code = f"import importlib.util; print([n for n in {sorted(HEAVY)} if importlib.util.find_spec(n)])"
    assert python(core_alone, code).stdout.strip() == "[]"


def test_the_core_alone_is_small(core_alone: Path) -> None:
    size = sum(path.stat().st_size for top in core_alone.iterdir() for path in walk(top) if path.suffix != ".pyc")
    assert size < 20_000_000, f"{size:,} bytes"


def walk(top: Path) -> Iterator[Path]:
    if top.is_dir():
        yield from (path for path in top.resolve().rglob("*") if path.is_file())
    else:
        yield top


@pytest.mark.parametrize("command", [["--help"], ["plugins"], ["models", "ls"], ["config", "schema"]], ids=" ".join)
def test_the_core_alone_runs_what_needs_no_model(core_alone: Path, command: list[str]) -> None:
    done = graft(core_alone, *command)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "Traceback" not in done.stderr


def test_the_core_alone_says_which_extra_brings_the_rest(core_alone: Path, tmp_path: Path) -> None:
    done = python(core_alone, "import graftwork; graftwork.build_model")
    assert done.stderr.splitlines()[-1].startswith("graftwork.errors.MissingExtraError: ")
    assert "graftwork[models]" in done.stderr
    done = graft(core_alone, "generate", str(tmp_path), "--prompt", "Hello")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "graftwork[models]" in done.stderr


def test_the_core_alone_says_which_trainer_is_missing(core_alone: Path) -> None:
    done = graft(core_alone, "config", "validate", str(ROOT / "examples" / "sft-chat.yaml"))
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "training.trainer_type" in done.stderr


def test_core_and_llama_build_a_model_without_native(core_and_llama: Path) -> None:
    assert graft(core_and_llama, "models", "ls").stdout.count("llama3_") > 3
    code = """
from graftwork import ModelParams, build_model
small = dict(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
             num_key_value_heads=1, head_dim=8, bos_token_id=0, eos_token_id=1)
model = build_model(ModelParams(model_name="llama3_2_1b", load_pretrained_weights=False, model_kwargs=small))
print(type(model).__name__)
"""
    done = python(core_and_llama, code)
    assert done.stdout.strip() == "LlamaForCausalLM", done.stderr


# The workspace


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    texts = [line.partition("#")[0].strip() for line in lines]
    return {canonicalize_name(req.name): str(req.specifier) for text in texts if text and (req := Requirement(text))}


def workspace() -> set[str]:
    """What `make setup` installs: our distributions, the developers' tools, and what these ask for."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["dependency-groups"]
    return closure([*OURS, "graftwork[models]", *groups["dev"]])


# Elsewhere other packages are asked for: tomli, colorama, NVIDIA's libraries.
WHERE_IT_IS_WRITTEN = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11) or sys.platform != "linux" or not distribution("torch").version.endswith("+cpu"),
    reason="constraints.txt is written on Linux with Python 3.11 and torch for the CPU",
)


@WHERE_IT_IS_WRITTEN
def test_all_that_is_installed_is_constrained_and_nothing_else() -> None:
    assert set(pins()) == workspace()


@WHERE_IT_IS_WRITTEN
def test_the_tests_run_with_the_constrained_versions() -> None:
    installed = {name: distribution(name).version for name in workspace()}
    differing = {
        name: f"{version}, constrained to {pins()[name]}"
        for name, version in installed.items()
        if not SpecifierSet(pins()[name]).contains(version, prereleases=True)
    }
    assert differing == {}, "make setup installs the constrained ones"


def test_torch_is_pinned() -> None:
    assert pins()["torch"] == "==2.13.0"
