"""Single files at ``http://`` and ``https://``, such as a card's ``tokenizer.model``."""

from __future__ import annotations

import hashlib
import os
import shutil
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

from graftwork.errors import GraftworkError, ModelError
from graftwork.sources.local import expanded

_TIMEOUT_S = 60


def fetch(reference: str, cache_dir: Path | None) -> Path:
    """The file at an address, downloaded once. Raises :class:`GraftworkError` where it cannot be had."""
    try:
        name = Path(unquote(urlsplit(reference).path)).name
    except ValueError as error:
        raise ModelError(f"{reference}: this is no address ({error}); mend it") from error
    if name in ("", "..") or not name.isprintable():
        raise ModelError(f"{reference}: this is no file's address; a model of many files is a folder or hf://org/name")
    home = cache_dir or expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "graftwork" / "files"
    target = home / hashlib.sha256(reference.encode()).hexdigest()[:16] / name
    if target.is_file():
        return target
    beside = target.with_name(f".{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _download(reference, beside)
            beside.replace(target)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise GraftworkError(f"{reference}: it cannot be kept in {home} ({error}); mend that folder") from error
    return target


def _download(address: str, target: Path) -> None:
    try:
        with urlopen(address, timeout=_TIMEOUT_S) as answer, target.open("wb") as file:  # noqa: S310 - scheme is checked
            shutil.copyfileobj(answer, file)
            wanted = int(answer.headers.get("Content-Length") or -1)
    except HTTPError as error:
        raise GraftworkError(f"{address}: the server answered {error.code} {error.reason}") from error
    except (OSError, HTTPException, ValueError) as error:
        raise GraftworkError(f"{address} cannot be fetched ({error}): check address, network and disk") from error
    if wanted >= 0 and target.stat().st_size != wanted:
        raise GraftworkError(f"{address}: {target.stat().st_size} of {wanted} bytes came; try again")
