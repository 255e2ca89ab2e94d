"""Prepared samples on disk: a second start with the same data, tokenizer and options reads them back.

An entry is a folder whose name is a hash of everything that can change a sample. It is written beside its place and
renamed, so it is whole or not there, and its files are compared with the sums that were noted when it was written.
Samples that are read back are views of the files: they take no memory of their own.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import sys
import time
import zlib
from contextlib import contextmanager, suppress
from datetime import date
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from graftwork.data.prepare import Chunk, Notice
from graftwork.data.prepared import PreparedSamples
from graftwork.files import complete_folder, remove_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graftwork.data.prepare import Job
    from graftwork.data.readers import RowSource

logger = logging.getLogger(__name__)
FOLDER, OFF, LIMIT = "GRAFTWORK_CACHE", "off", "GRAFTWORK_CACHE_GB"
DEFAULT_LIMIT_GB = 20.0
META = "meta.json"
ABANDONED_S = 24 * 3600
"""A temporary folder that is this old belongs to a process that was killed."""


def cache_folder() -> Path | None:
    """Where prepared samples are kept: under ``$GRAFTWORK_CACHE``, ``$GRAFTWORK_HOME/cache``, or the user's folder for
    caches; None where ``GRAFTWORK_CACHE`` is ``off``.
    """
    named = os.environ.get(FOLDER, "")
    if named.casefold() == OFF:
        return None
    if named:
        return Path(named).expanduser() / "samples"
    if home := os.environ.get("GRAFTWORK_HOME"):
        return Path(home).expanduser() / "cache" / "samples"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "graftwork" / "samples"


# Finding and keeping entries


def load(entry: Path, job: Job) -> Chunk | None:
    """The samples of an entry, with their account; None where there is none, or where it is damaged, which is said."""
    if not entry.is_dir():
        return None
    try:
        meta = json.loads((entry / META).read_text("utf-8"))
        samples = PreparedSamples(**{name: _array(entry, name, sum_) for name, sum_ in meta["sums"].items()})
        account = job.account()
        account.load_plain(meta["account"])
        os.utime(entry / META)  # the least used entries go first
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s: the prepared samples in %s are damaged (%s); they are made anew", job.name, entry, error)
        return None
    return Chunk(samples, account, [Notice(*notice) for notice in meta["notices"]])


def _array(entry: Path, name: str, expected: int) -> np.ndarray[Any, Any]:
    path = entry / f"{name}.npy"
    array = np.asarray(np.load(path, mmap_mode="r" if path.stat().st_size > 1024 else None, allow_pickle=False))
    if _sum_of(array) != expected:
        raise ValueError(f"{path.name} is not what was written")
    return array


def store(entry: Path, made: Chunk) -> bool:
    """Keeps what was made; says in the log why not where it cannot, and leaves nothing behind then."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with complete_folder(entry) as folder:
            arrays = made.samples.arrays()
            for name, array in arrays.items():
                np.save(folder / f"{name}.npy", array, allow_pickle=False)
            meta = {
                "sums": {name: _sum_of(array) for name, array in arrays.items()},
                "account": made.account.to_plain(),
                "notices": made.notices,
            }
            (folder / META).write_text(json.dumps(meta), "utf-8")
    except OSError as error:
        logger.warning(
            "%s: prepared samples cannot be kept for the next start: %s; the run goes on without. Make room, or set %s "
            "to another folder or to %s",
            entry.parent,
            error.strerror or error,
            FOLDER,
            OFF,
        )
        return False
    return True


def _sum_of(array: np.ndarray[Any, Any]) -> int:
    """Of the bytes, the type and the shape."""
    head = zlib.crc32(f"{array.dtype.str}{array.shape}".encode())
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, head) if array.size else head


def make_room(folder: Path, keep: Path) -> None:
    """Removes the entries that were not used for longest, until all take no more than ``GRAFTWORK_CACHE_GB``."""
    with suppress(FileNotFoundError):  # another process makes room, too
        _remove_least_used(folder, keep)


def _remove_least_used(folder: Path, keep: Path) -> None:
    entries = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    used = {path: _last_use(path) for path in entries}
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in entries}
    for path in sorted(entries, key=lambda path: used[path]):
        if sum(sizes.values()) <= limit_bytes() or path == keep:
            continue
        remove_folder(path)
        logger.info("prepared samples in %s were used longest ago, and make room", path)
        del sizes[path]
    for path in folder.glob(".*.tmp"):
        if time.time() - path.stat().st_mtime > ABANDONED_S:
            shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".*.lock"):
        _remove_unheld(path)


def limit_bytes() -> float:
    """``GRAFTWORK_CACHE_GB``, 20 where it is not set."""
    try:
        return float(os.environ.get(LIMIT, DEFAULT_LIMIT_GB)) * 1e9
    except ValueError:
        logger.warning("%s=%s is no number of gigabytes; %g is used", LIMIT, os.environ[LIMIT], DEFAULT_LIMIT_GB)
        return DEFAULT_LIMIT_GB * 1e9


def _last_use(entry: Path) -> float:
    try:
        return (entry / META).stat().st_mtime
    except OSError:
        return 0.0


@contextmanager
def alone(entry: Path) -> Iterator[bool]:
    """One process at a time makes an entry. Says whether it had to wait for another, who may have left it there."""
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        file, waited = _enter(entry.parent / f".{entry.name}.lock")
    except OSError:
        yield False  # where nothing can be written nothing is shared either
        return
    with file:
        try:
            yield waited
        finally:
            Path(file.name).unlink(missing_ok=True)


def _enter(path: Path) -> tuple[IO[str], bool]:
    """The lock's file, locked, and whether that took waiting. Whoever leaves deletes it while it is still locked."""
    waited = False
    while True:
        file = path.open("w")
        with suppress(OSError):  # a file system without locks: both make it, and one of them is kept
            waited = _lock(file, said=waited) or waited
        if _is_at(path, file):
            return file, waited
        file.close()  # deleted meanwhile: the next one locks a new file, and would not meet this one


def _is_at(path: Path, file: IO[str]) -> bool:
    """Whether an open file still has its name."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _remove_unheld(path: Path) -> None:
    """Deletes a lock's file that a process left behind which was killed; one that is held stays."""
    with suppress(OSError), path.open("r") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(path, file):
            path.unlink()


def _lock(file: IO[str], *, said: bool) -> bool:
    """Locks a file. Whether that took waiting for another process, which is ``said`` once."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not said:
            logger.info("another process prepares the same samples: waiting for it")
        fcntl.flock(file, fcntl.LOCK_EX)
        return True
    return False


# What an entry is named after


def key_of(source: RowSource, job: Job) -> str | None:
    """A hash of everything that can change a sample; None where that cannot be told."""
    from graftwork.data.encoders import encoder_settings

    revisions: dict[str, str] = getattr(source, "revisions", {})
    if not source.files and not revisions:
        return None
    facts = {
        "code": code_version(),
        "python": sys.version_info[:2],
        "packages": {name: _version(name) for name in ("tokenizers", "transformers", "jinja2", "pydantic")},
        "files": {str(path): file_hash(path) for path in source.files} | revisions,
        **encoder_settings(job.dataset, job.request),
        "tokenizer": tokenizer_hash(job.request.tokenizer),
        "today": date.today().isoformat() if _knows_the_date(job) else None,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=repr).encode()).hexdigest()[:40]


def tokenizer_hash(tokenizer: Any) -> str | None:
    """Of all that makes its tokens, and of its template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    rest = [type(tokenizer).__name__, tokenizer.special_tokens_map, getattr(tokenizer, "chat_template", None)]
    rest += [tokenizer.all_special_tokens, getattr(tokenizer, "add_bos_token", None)]
    digest = hashlib.sha256(backend.to_str().encode())
    digest.update(json.dumps(rest, sort_keys=True, default=repr).encode())
    return digest.hexdigest()


def _knows_the_date(job: Job) -> bool:
    """A template may write today's date."""
    return "strftime_now" in str(getattr(job.request.tokenizer, "chat_template", ""))


@cache
def code_version() -> str:
    """Of the source of what makes samples, so that no entry outlives a change of it."""
    package = Path(__file__).parent.parent
    files = sorted([*package.glob("data/*.py"), *package.glob("chat/**/*.py"), *package.glob("chat/**/*.jinja")])
    digest = hashlib.sha256()
    for path in [*files, package / "messages.py"]:
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def file_hash(path: Path) -> str:
    """The file's SHA-256. Of a file that has not changed since it was hashed it is remembered."""
    state = path.stat()
    return _file_hash(path.absolute(), state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=1024)
def _file_hash(path: Path, size: int, changed_ns: int, number: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
