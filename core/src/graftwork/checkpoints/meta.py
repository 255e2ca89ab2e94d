"""The format of Meta's releases: ``params.json`` beside ``consolidated.NN.pth``, one for each model-parallel rank."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

from graftwork.checkpoints.formats import Checkpoint, Header
from graftwork.checkpoints.huggingface import CONSOLIDATED, has_weights, open_pickled, read_json, write_json
from graftwork.checkpoints.torch_files import TorchFile
from graftwork.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from graftwork.checkpoints.formats import WriteRequest

PATTERN = "consolidated.[0-9][0-9].pth"


def is_meta(path: Path) -> bool:
    """Where weights under transformers' names lie beside them those are what is loaded."""
    if path.is_file():
        return path.suffix in {".pth", ".pt", ".bin"} and CONSOLIDATED in open_pickled(path).headers
    return any(path.glob(PATTERN)) and not has_weights(path)


def open_meta(path: Path) -> Checkpoint:
    """The parts in a folder, or one file. Every part must hold the same names in the same shapes."""
    folder = path.parent if path.is_file() else path
    files = [path] if path.is_file() else sorted(path.glob(PATTERN))
    if not files:
        raise ModelError(f"model {path}: there is no consolidated.00.pth")
    _check_complete(files, path)
    opened = [open_pickled(file) for file in files]
    headers = opened[0].headers
    for file, (own, _, _) in zip(files, opened, strict=True):
        if differing := sorted(name for name in own.keys() | headers.keys() if own.get(name) != headers.get(name)):
            raise ModelError(
                f"{file}: {len(differing)} weights are not as in {files[0].name} ({', '.join(differing[:3])}): the "
                "files are not parts of one model"
            )
    values = read_json(folder / "params.json") if (folder / "params.json").is_file() else {}
    readers = [each.read for each in opened]
    return Checkpoint(
        path=path,
        format="meta",
        headers=headers,
        read=lambda name, part: readers[part](name),
        groups=opened[0].groups,
        values=values,
        parts=len(files),
    )


def write_meta(request: WriteRequest) -> None:
    """Writes ``request.parts`` files at once, each tensor cut into as many along its dimension."""
    headers = part_headers(request)
    checkpoint = request.checkpoint
    with ExitStack() as stack:
        files = [
            stack.enter_context(TorchFile(request.path / f"consolidated.{part:02d}.pth", headers, request.shared))
            for part in range(request.parts)
        ]
        for name in headers:
            if name in request.shared:
                continue
            tensor = checkpoint.tensor(name)
            for file, piece in zip(files, pieces(tensor, request.splits.get(name), request.parts), strict=True):
                file.write(name, piece)
    write_json(request.path / "params.json", checkpoint.values)


def part_headers(request: WriteRequest) -> dict[str, Header]:
    """The headers of one of the parts. Raises :class:`ModelError` for a tensor that cannot be cut evenly."""
    headers = {}
    for name, header in request.checkpoint.headers.items():
        dimension = request.splits.get(name)
        if dimension is None or request.parts == 1:
            headers[name] = header
            continue
        size = header.shape[dimension]
        if size % request.parts:
            raise ModelError(
                f"weight {name} has {size} along dimension {dimension}, which {request.parts} model-parallel files "
                "cannot share evenly: give another --model-parallel"
            )
        shape = (*header.shape[:dimension], size // request.parts, *header.shape[dimension + 1 :])
        headers[name] = Header(shape, header.dtype)
    return headers


def pieces(tensor: torch.Tensor, dimension: int | None, parts: int) -> list[torch.Tensor]:
    return [tensor] * parts if dimension is None else list(tensor.chunk(parts, dimension))


def _check_complete(files: list[Path], path: Path) -> None:
    if path.is_file():
        return
    numbers: Mapping[int, str] = {int(file.name.split(".")[1]): file.name for file in files}
    if lacking := [f"consolidated.{number:02d}.pth" for number in range(max(numbers)) if number not in numbers]:
        raise ModelError(f"model {path}: {', '.join(lacking)} is missing: fetch the folder again")
