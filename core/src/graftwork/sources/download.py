"""A copy of a Hub repository, as ``graft download`` makes it: all of it, unless patterns leave something out.

What :func:`graftwork.sources.locate` fetches by itself is less: only what a model needs, one copy of the weights.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.errors import GraftworkError, MissingExtraError, ModelError
from graftwork.registry import get_registry
from graftwork.sources import hub

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

WEIGHTS = ("*.safetensors", "*.bin", "*.pth", "*.pt", "*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The files of a repository that are wanted, with their sizes in bytes, and how much of that is here already."""

    repository: str
    revision: str | None
    files: Mapping[str, int]
    present: int

    @property
    def size(self) -> int:
        return sum(self.files.values())

    def copies(self) -> dict[str, int]:
        """Bytes by kind of weight file (``*.safetensors``, ``original/*.pth``): several are the same weights again."""
        found: dict[str, int] = {}
        for name, size in self.files.items():
            kind = next((pattern for pattern in WEIGHTS if fnmatch(name, pattern)), None)
            if kind is not None:
                folder, slash, _ = name.rpartition("/")
                found[f"{folder}{slash}{kind}"] = found.get(f"{folder}{slash}{kind}", 0) + size
        return dict(sorted(found.items(), key=lambda item: -item[1]))


def plan(reference: str, **options: Any) -> Plan:
    """What :func:`download` would bring, by the same arguments; asks the Hub, and writes nothing."""
    repository, revision = _named(reference, options.pop("revision", None))
    with without_bars():
        rows = _snapshot(repository, revision, dry_run=True, **options)
    if not rows:
        raise ModelError(f"model {repository}: the patterns leave nothing of it; mend --ignore-patterns")
    return Plan(
        repository=repository,
        revision=revision,
        files={row.filename: row.file_size for row in rows},
        present=sum(row.file_size for row in rows if not row.will_download),
    )


def download(reference: str, **options: Any) -> Path:
    """Downloads ``org/name`` (or ``hf://org/name@revision``) and gives the folder.

    A file whose connection breaks goes on where it was; after a kill, files that are whole are not fetched again.
    ``output_dir`` is the folder, by default the Hub's cache; ``ignore`` are patterns of file names to leave out;
    ``token`` is an access token, by default that of HF_TOKEN or of ``hf auth login``; ``revision`` a branch, tag or
    commit. Raises :class:`~graftwork.errors.ModelError` for a wrong name or a missing permission, and
    :class:`~graftwork.errors.GraftworkError` where the Hub cannot be reached.
    """
    repository, revision = _named(reference, options.pop("revision", None))
    return Path(_snapshot(repository, revision, **options))


def _named(reference: str, revision: str | None) -> tuple[str, str | None]:
    preset = get_registry().presets.get_or_none(reference)
    if preset is not None:
        there = f"; its weights are those of {' or '.join(preset.hub_ids)}" * bool(preset.hub_ids)
        raise ModelError(f"model {reference}: this is a preset, and no repository of the Hub{there}: name that")
    repository, at = hub.parse(reference)
    if at and revision and at != revision:
        raise ModelError(f"model {reference}: the revision is given twice, {at} and {revision}; give one")
    return repository, revision or at


def _snapshot(
    repository: str,
    revision: str | None,
    *,
    output_dir: Path | None = None,
    ignore: Sequence[str] = (),
    token: str | None = None,
    dry_run: bool = False,
) -> Any:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingExtraError(
            f'downloading {repository} needs huggingface_hub, which is not installed: pip install "graftwork[models]"'
        ) from error
    try:
        return snapshot_download(
            repository,
            revision=revision,
            local_dir=output_dir,
            ignore_patterns=list(ignore) or None,
            token=token,
            dry_run=dry_run,
        )
    except Exception as error:
        raise _explained(error, repository, revision) from error


@contextmanager
def without_bars() -> Iterator[None]:
    """Without huggingface_hub's bars, where asking what there is takes a moment, or nobody wants them."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


def _explained(error: Exception, repository: str, revision: str | None) -> GraftworkError:
    from huggingface_hub.errors import DryRunError

    if isinstance(error, DryRunError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    if "peer closed connection" in str(error):
        return GraftworkError(
            f"model {repository}: the connection broke, several times: run the command again to go on"
        )
    return hub.explained(error, repository, revision)
