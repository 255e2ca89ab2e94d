"""What tells one base model from another: a number over its weights, kept beside the adapter that was trained on them.

The fingerprint is a SHA-256 over every tensor of the folder in order of names: the name, the type, the shape, and the
SHA-256 of all its bytes. So it does not depend on where the folder lies, how it is cut into shards or whether it was
pickled, and one changed weight is another base: a sample of the bytes would not see that only a few rows of the
embeddings were trained. Loading a model reads the same bytes.
"""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from graftwork.checkpoints.formats import find_format
from graftwork.checkpoints.huggingface import HF, is_hf, shard_files
from graftwork.checkpoints.safetensors_files import bytes_of, read_headers

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from graftwork.checkpoints.formats import Header

    Entry = tuple[str, Header, bytes]

VERSION = "sha256-tensors-1"
PIECE = 1 << 20
"""Bytes of a tensor that are held at once."""


def fingerprint(folder: Path) -> str:
    """``sha256-tensors-1:`` and 64 hexadecimal digits. Raises :class:`ModelError` where no weights are there."""
    found = _of_files([folder] if folder.is_file() else shard_files(folder, HF)) if is_hf(folder) else _of_other(folder)
    digest = hashlib.sha256()
    for name, header, content in sorted(found, key=lambda entry: entry[0]):
        digest.update(repr((name, str(header.dtype), header.shape)).encode() + content)
    return f"{VERSION}:{digest.hexdigest()}"


def _of_files(files: Iterable[Path]) -> list[Entry]:
    """Of safetensors files: several tensors at a time, one for each core."""
    tensors = [(name, file, stored) for file in files for name, stored in read_headers(file).items()]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(lambda tensor: _digest(tensor[1], tensor[2].start, tensor[2].header.nbytes), tensors)
        return [(name, stored.header, each) for (name, _, stored), each in zip(tensors, digests, strict=True)]


def _digest(file: Path, start: int, count: int) -> bytes:
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        stream.seek(start)
        while count and (piece := stream.read(min(count, PIECE))):
            digest.update(piece)
            count -= len(piece)
    return digest.digest()


def _of_other(folder: Path) -> Iterator[Entry]:
    """Of any other format: whole tensors, so one after the other."""
    checkpoint = find_format(folder).open(folder)
    for name, header in checkpoint.headers.items():
        yield name, header, hashlib.sha256(bytes_of(checkpoint.tensor(name), name, header)).digest()
