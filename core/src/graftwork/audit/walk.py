"""The walk over a model folder: every file by its content, every link by where it leads."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graftwork.audit.configs import check_json, check_yaml
from graftwork.audit.finding import Finding
from graftwork.audit.gguf import check_gguf
from graftwork.audit.pickles import check_pickle, looks_pickled
from graftwork.audit.templates import check_template
from graftwork.audit.weights import check_index, check_safetensors
from graftwork.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_PYTHON = (".py", ".pyc", ".pyo", ".pyx", ".ipynb")
_NATIVE = (".dll", ".dylib", ".pyd", ".exe", ".o", ".a", ".cu", ".cubin", ".ptx")
_SCRIPTS = (".sh", ".bash", ".bat", ".cmd", ".ps1", ".js", ".lua", ".pl", ".rb")
_NATIVE_STARTS = (b"\x7fELF", b"MZ", b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"\xfe\xed\xfa\xcf")
_HEAD_BYTES = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Every finding of a walk over ``files`` files, the gravest first."""

    path: Path
    files: int
    findings: tuple[Finding, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing could run code, and nothing is other than it says."""
        return all(finding.severity == "note" for finding in self.findings)


def audit(path: Path) -> Report:
    """Looks at every file under ``path`` (or at that one file) and runs none of it.

    Raises :class:`ModelError` where there is no such file or folder.
    """
    path = path.expanduser().absolute()
    if not path.exists():
        raise ModelError(f"audit: there is no file or folder {path}; a model on the Hub is fetched with graft download")
    root = path if path.is_dir() else path.parent
    files = list(_files(path)) if path.is_dir() else [path]
    findings = [finding for file in files for finding in _check(file, root)]
    order = {"code": 0, "lie": 1, "note": 2}
    findings.sort(key=lambda finding: (order[finding.severity], finding.file))
    return Report(path=path, files=len(files), findings=tuple(findings))


def _files(folder: Path) -> Iterator[Path]:
    """Files, and links to whatever, in a fixed order; links to folders are not followed."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            yield from _files(entry)
        else:
            yield entry


def _check(file: Path, root: Path) -> Iterator[Finding]:
    name = file.relative_to(root).as_posix()
    if file.is_symlink():
        yield from _check_link(file, root, name)
    if not file.exists() or file.is_dir():
        return
    if not stat.S_ISREG(file.stat().st_mode):
        yield _finding("lie", name, "this is a device or a pipe, not a file", "remove it")
        return
    try:
        yield from _check_content(file, name)
    except PermissionError:
        yield _finding("lie", name, "this file cannot be read, so nothing is known of it", "give yourself the right to")


def _check_link(file: Path, root: Path, name: str) -> Iterator[Finding]:
    value = str(file.readlink())
    try:
        target = file.resolve()
    except RuntimeError:  # Python 3.11 and 3.12 have no other word for it
        yield Finding(severity="lie", file=name, value=value, what="this link leads to itself", remedy="remove it")
        return
    homes = [root.resolve()]
    if root.parent.name == "snapshots":  # the Hub's cache: snapshots/<commit>/name -> blobs/<digest>
        homes.append(root.parent.parent.resolve() / "blobs")
    if not any(target.is_relative_to(home) for home in homes):
        yield Finding(
            severity="lie",
            file=name,
            value=value,
            what="this link leads out of the folder: what it shows, or what is written to it, is another's",
            remedy="remove it, or put the file itself in its place",
        )
    elif not target.exists():
        yield Finding(severity="lie", file=name, value=value, what="this link leads nowhere", remedy="remove it")


def _check_content(file: Path, name: str) -> Iterator[Finding]:
    with file.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    lower = file.name.lower()
    if code := _kind_of_code(lower, head):
        yield _finding("code", name, code, "read it before you run or load anything with it, or remove it")
    elif lower.endswith(".safetensors"):
        yield from check_safetensors(file, name)
    elif lower.endswith(".index.json"):
        yield from check_index(file, name)
    elif lower.endswith(".json"):
        yield from check_json(file, name)
    elif lower.endswith((".yaml", ".yml")):
        yield from check_yaml(file, name)
    elif lower.endswith((".jinja", ".jinja2", ".j2")):
        yield from check_template(file.read_text(encoding="utf-8", errors="replace"), name, "")
    elif head.startswith(b"GGUF"):
        yield from check_gguf(file, name)
    # By content: a pickle may have any name
    if looks_pickled(lower, head):
        yield from check_pickle(file, name)


def _kind_of_code(name: str, head: bytes) -> str | None:
    if name.endswith(_PYTHON):
        return "Python code; transformers imports it where a configuration names it and remote code is trusted"
    is_program = head.startswith(_NATIVE_STARTS) and b"\0" in head
    if is_program or name.endswith(_NATIVE) or re.search(r"\.so(\.\d+)*$", name):
        return "machine code"
    if name.endswith(_SCRIPTS) or (head.startswith(b"#!") and not name.endswith(".sample")):
        return "a script"
    return None


def _finding(severity: str, file: str, what: str, remedy: str) -> Finding:
    return Finding(severity=severity, file=file, what=what, remedy=remedy)  # type: ignore[arg-type]
