"""Folders on this machine."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from graftwork.errors import ModelError


def folder(name: str) -> Path:
    """The absolute folder that ``name`` points to; ``~`` is the home folder. Raises :class:`ModelError`."""
    path = Path(name).expanduser().absolute()
    if path.is_file():
        raise ModelError(f"model {name}: this is a file; give the folder that holds config.json and the weights")
    if not path.is_dir():
        raise ModelError(f"model {name}: there is no folder {path}")
    return path


def from_uri(uri: str) -> Path:
    """The path of a ``file://`` URI of this machine. Raises :class:`ModelError` for another host's."""
    parts = urlsplit(uri)
    if parts.netloc not in {"", "localhost"}:
        raise ModelError(f"model {uri}: file://{parts.netloc}/ is another machine; a local folder is file:///folder")
    return Path(unquote(parts.path))


def fetch(reference: str, cache_dir: Path | None) -> Path:
    """The folder of a ``file://`` URI. Nothing is copied, so ``cache_dir`` stays unused."""
    return folder(str(from_uri(reference)))
