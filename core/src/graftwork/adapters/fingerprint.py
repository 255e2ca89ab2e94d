"""What tells one base model from another: a number over its weights, kept beside the adapter that was trained on them.

The fingerprint is a SHA-256 over every tensor of the folder in order of names: the name, the type, the shape, and its
bytes; of a tensor beyond 64 KiB, 16 pieces of 4 KiB that lie evenly in it, the first and the last among them. So it
does not depend on where the folder lies, how it is cut into shards or whether it was pickled, reads at most 64 KiB a
tensor (20 MB for 300 tensors), and differs after any training of a matrix as a whole. It does not see a change of a few
rows that lie between the pieces.
"""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING

from graftwork.checkpoints.formats import find_format
from graftwork.checkpoints.huggingface import HF, is_hf, shard_files
from graftwork.checkpoints.safetensors_files import bytes_of, read_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from graftwork.checkpoints.formats import Checkpoint, Header

VERSION = "sha256-sampled-1"
PIECE, PIECES = 4096, 16


def fingerprint(folder: Path) -> str:
    """``sha256-sampled-1:`` and 64 hexadecimal digits. Raises :class:`ModelError` where no weights are there."""
    digest = hashlib.sha256()
    for name, header, read in sorted(_tensors(folder), key=lambda entry: entry[0]):
        digest.update(repr((name, str(header.dtype), header.shape)).encode())
        for start, end in places(header.nbytes):
            digest.update(read(start, end))
    return f"{VERSION}:{digest.hexdigest()}"


def places(count: int) -> list[tuple[int, int]]:
    """Which of ``count`` bytes are read: all of them, or evenly spaced pieces from the first to the last."""
    if count <= PIECE * PIECES:
        return [(0, count)]
    return [(start, start + PIECE) for start in ((count - PIECE) * k // (PIECES - 1) for k in range(PIECES))]


def _tensors(folder: Path) -> Iterator[tuple[str, Header, Callable[[int, int], bytes]]]:
    if is_hf(folder):
        for file in [folder] if folder.is_file() else shard_files(folder, HF):
            for name, stored in read_headers(file).items():
                yield name, stored.header, partial(_from_file, file, stored.start)
        return
    checkpoint = find_format(folder).open(folder)
    for name, header in checkpoint.headers.items():
        yield name, header, partial(_from_checkpoint, checkpoint, name)


def _from_file(file: Path, first: int, start: int, end: int) -> bytes:
    with file.open("rb") as stream:
        stream.seek(first + start)
        return stream.read(end - start)


def _from_checkpoint(checkpoint: Checkpoint, name: str, start: int, end: int) -> bytes:
    return bytes_of(checkpoint.tensor(name), name, checkpoint.headers[name])[start:end].tobytes()
