"""Pickles: what each would import, told apart into tensors, plain data and everything else."""

from __future__ import annotations

import ast
import io
import mmap
import re
import zipfile
import zlib
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from graftwork.audit.finding import Finding
from graftwork.checkpoints.pickle_machine import MalformedPickleError, follow
from graftwork.checkpoints.pickle_tensors import TENSOR_GLOBALS, UnsafePickleError, stored_tensors
from graftwork.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill", ".data", ".sav")
_ALWAYS = (".pkl", ".pickle", ".joblib", ".dill")
_ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06")
_NUMPY = b"\x93NUMPY"
# No instruction has the number 0, which is where the length of a safetensors header goes on that begins like this
_PROTOCOL = re.compile(rb"^\x80[\x00-\x05][^\x00]")
_TAR = slice(257, 262)
_MOST_BYTES = 128 * 2**20
_NUMPY_HEADER_BYTES = 2**16
# numpy's kinds that are plain bytes: numbers, texts, times; not O, which has many spellings
_PLAIN_KIND = re.compile(r"[<>=|]?[?bBiufcSaUVmM]\d*(\[\w+\])?")

# Containers and numbers whose making runs nothing of the file's
_DATA = frozenset(
    {
        "_codecs.encode",
        "argparse.Namespace",
        "builtins.bytearray",
        "builtins.complex",
        "builtins.frozenset",
        "builtins.set",
        "builtins.slice",
        "__builtin__.set",
        "__builtin__.bytearray",
        "collections.Counter",
        "collections.defaultdict",
        "collections.deque",
        "builtins.dict",
        "builtins.list",
        "__builtin__.dict",
        "__builtin__.list",
        "datetime.datetime",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "numpy.ndarray",
        "torch.device",
    }
)
_CONVERT = "use safetensors; `graft convert` writes them where the pickle holds only tensors"
_REMOVE = "do not load it with pickle or torch.load; remove it, or ask its author for safetensors"


def looks_pickled(name: str, head: bytes) -> bool:
    """Whether a file may be a pickle, or an archive of some, by its start or by the name that pickles go under."""
    starts = head.startswith((*_ARCHIVES, _NUMPY)) or _PROTOCOL.match(head) is not None
    return starts or (name.endswith(_SUFFIXES) and len(head) > 0) or head[_TAR] == b"ustar"


def check_pickle(file: Path, name: str) -> Iterator[Finding]:
    """What a pickle, or each pickle in an archive, would import."""
    with file.open("rb") as stream:
        head = stream.read(_NUMPY_HEADER_BYTES)
    if head.startswith(_NUMPY):
        if _holds_objects(head):
            what = "a NumPy array of Python objects, which are a pickle"
            yield Finding(severity="code", file=name, key="descr", value="O", what=what, remedy=_REMOVE)
        return
    if head[_TAR] == b"ustar":
        yield Finding(severity="code", file=name, what="a tar archive, in which pickles can lie", remedy=_REMOVE)
        return
    try:
        count = len(stored_tensors(file))
    except (ModelError, RecursionError) as error:
        yield from _explained(file, name, head, error)
    else:
        what = f"a pickle that holds {count} tensors and names nothing else"
        yield Finding(severity="note", file=name, what=what, remedy=_CONVERT)


@dataclass(slots=True)
class Listing:
    """Notes what a pickle names and lets it go on: rules (see ``pickle_machine``) for looking, not for reading."""

    names: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    def named(self, module: str, name: str) -> Any:
        self.names.append(f"{module}.{name}")
        return _Anything()

    def called(self, function: Any, arguments: Any) -> Any:
        return _Anything()

    def built(self, target: Any, state: Any) -> None:
        return None

    def referred(self, identity: Any) -> Any:
        return _Anything()

    def unusual(self, what: str) -> Any:
        if what.startswith(("an import", "the instruction EXT")):
            self.other.append(what)
        return _Anything()


class _Anything:
    """Stands for whatever the pickle would have made."""


def _explained(file: Path, name: str, head: bytes, refusal: Exception) -> Iterator[Finding]:
    listing = Listing()
    whole = _list_archive(file, listing) if head.startswith(_ARCHIVES) else _list_stream(file, listing)
    foreign = sorted({*listing.names, *listing.other} - TENSOR_GLOBALS - _DATA)
    if foreign:
        value = ", ".join(foreign[:12]) + (f", ... ({len(foreign)} in all)" if len(foreign) > 12 else "")
        what = "a pickle that imports these when it is loaded, and calls what it likes of them"
        yield Finding(severity="code", file=name, key="pickle", value=value, what=what, remedy=_REMOVE)
    elif "TorchScript" in str(refusal):
        yield Finding(severity="code", file=name, what="a TorchScript program", remedy=_REMOVE)
    elif not whole and _is_pickle(name, head):
        what = "a pickle that cannot be followed to its end; what it would run is not known"
        yield Finding(severity="code", file=name, what=what, remedy=_REMOVE)
    elif isinstance(refusal, UnsafePickleError) and not {*listing.names} & _DATA:
        text = str(refusal).partition("refused: ")[2].partition(". Nothing of it")[0]
        yield Finding(severity="lie", file=name, what=text, remedy=_REMOVE)
    elif whole:
        what = "a pickle of plain data; another file in its place could run code when it is loaded"
        yield Finding(severity="note", file=name, what=what, remedy=_CONVERT)


def _is_pickle(name: str, head: bytes) -> bool:
    starts = head.startswith(_ARCHIVES) or _PROTOCOL.match(head) is not None
    return starts or name.lower().endswith(_ALWAYS)


def _list_archive(file: Path, listing: Listing) -> bool:
    """Every pickle in a zip archive; False where one of them, or the archive, cannot be read."""
    try:
        with zipfile.ZipFile(file) as archive:
            read = [_list_member(archive, member, listing) for member in archive.infolist()]
            return all(read)  # a member that cannot be read hides none of the others
    except (zipfile.BadZipFile, OSError, EOFError, OverflowError, RuntimeError, ValueError, zlib.error):
        return False


def _list_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, listing: Listing) -> bool:
    with archive.open(member) as stream:
        head = stream.read(16)
        if head.startswith(_NUMPY):
            if _holds_objects(head + stream.read(_NUMPY_HEADER_BYTES)):
                listing.other.append(f"Python objects in the NumPy array {member.filename}")
            return True
        if not member.filename.endswith((".pkl", ".pickle")) and not _PROTOCOL.match(head):
            return True
        content = head + stream.read(_MOST_BYTES)
    return _follow(io.BytesIO(content), listing) or not member.filename.endswith((".pkl", ".pickle"))


def _list_stream(file: Path, listing: Listing) -> bool:
    """One pickle after another, as torch's old layout has them; whether the first was followed to its end."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        whole = _follow(content, listing)  # type: ignore[arg-type]
        while whole and content.tell() < len(content) and content[content.tell()] == 0x80:
            if not _follow(content, listing):  # type: ignore[arg-type]
                break
    return whole


def _follow(stream: IO[bytes], listing: Listing) -> bool:
    try:
        follow(stream, listing)
    except (MalformedPickleError, RecursionError, TypeError, AttributeError, MemoryError):
        return False
    return True


def _holds_objects(content: bytes) -> bool:
    """Whether a NumPy array is of Python objects; of one whose header cannot be read nothing is known, so it may be."""
    start = 10 if content[6:7] == b"\x01" else 12
    length = int.from_bytes(content[8:start], "little")
    try:
        header = ast.literal_eval(content[start : start + length].decode("latin-1").strip())
        return not all(_PLAIN_KIND.fullmatch(kind) for kind in _kinds(header["descr"]))
    except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError):
        return True


def _kinds(described: Any) -> Iterator[str]:
    """The kinds in a dtype as a header has it: one, fields as (name, kind, ...), or (kind, shape)."""
    if isinstance(described, list):
        for entry in described:
            yield from _kinds(entry[1])
    elif isinstance(described, tuple):
        yield from _kinds(described[0])
    else:
        yield described
