"""What a model name means, and why: a folder here, a URI, a Hub id or a preset. Reads no weights, downloads nothing
until :func:`locate`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from graftwork.errors import ModelError, UnknownNameError, UsageError, did_you_mean
from graftwork.registry import get_registry
from graftwork.sources import hub, local

if TYPE_CHECKING:
    from graftwork.specs import Preset

Kind = Literal["path", "hub", "preset", "uri"]

_URI = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_PRESET = "preset:"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model name and what it turned out to be.

    ``path`` is set for folders, ``preset`` for presets; ``note`` says in one line why. ``name`` is what can be
    written to get the same thing again, wherever one stands: an absolute folder, a Hub id, a URI, a preset's name.
    """

    kind: Kind
    name: str
    path: Path | None = None
    preset: Preset | None = None
    revision: str | None = None
    note: str = ""


def resolve(name: str, *, revision: str | None = None) -> ResolvedModel:
    """Says what ``name`` is (design: one name for a model), without a download.

    Raises :class:`UnknownNameError` for a bare name that nobody declared, :class:`UsageError` for one that means
    two things, and :class:`ModelError` for a folder that is not there.
    """
    if not name.strip():
        raise ModelError("model_name is empty: give a folder, a Hub id (org/name), or a preset (graft models ls)")
    if name.startswith((".", "~", "/")):
        return _path(name, revision, note="a path, because it starts with '.', '~' or '/'")
    if match := _URI.match(name):
        return _uri(name, match.group(1).lower(), revision)
    if name.startswith(_PRESET):
        return _preset(name.removeprefix(_PRESET), note="a preset, because it says preset:")
    return _with_slash(name, revision) if "/" in name else _bare(name, revision)


def locate(
    resolved: ResolvedModel,
    *,
    cache_dir: Path | None = None,
    trust_remote_code: bool = False,
    weights: bool = True,
) -> Path:
    """The folder of the model's files, downloaded where needed, without its weights where those are not wanted.

    Presets have no files: :class:`ModelError`.
    """
    if resolved.path is not None:
        return resolved.path
    if resolved.kind == "hub":
        return hub.fetch(
            resolved.name,
            cache_dir,
            revision=resolved.revision,
            trust_remote_code=trust_remote_code,
            weights=weights,
        )
    if resolved.kind == "uri":
        scheme = resolved.name.split("://", 1)[0].lower()
        return get_registry().sources[scheme].fetch(resolved.name, cache_dir)
    raise ModelError(f"preset {resolved.name!r} is an architecture without files")


def _path(name: str, revision: str | None, *, note: str) -> ResolvedModel:
    _refuse_revision(name, revision, "a folder")
    path = local.folder(name)
    return ResolvedModel(kind="path", name=str(path), path=path, note=note)


def _uri(name: str, scheme: str, revision: str | None) -> ResolvedModel:
    if scheme == "file":
        return _path(str(local.from_uri(name)), revision, note="a path, because of its scheme file://")
    if scheme == "hf":
        repository, at = hub.parse(name)
        return _hub(repository, _one_revision(name, at, revision), note="a Hub id, because of its scheme hf://")
    get_registry().sources[scheme]  # an unknown scheme is an error now, not at the download
    _refuse_revision(name, revision, f"a {scheme}:// URI")
    return ResolvedModel(kind="uri", name=name, note=f"a URI, fetched by the source {scheme!r}")


def _hub(repository: str, revision: str | None, *, note: str) -> ResolvedModel:
    return ResolvedModel(kind="hub", name=repository, revision=revision, note=note)


def _with_slash(name: str, revision: str | None) -> ResolvedModel:
    if Path(name).is_dir():
        return _path(name, revision, note=f"a folder here; the Hub model of that name would be hf://{name}")
    if not hub.is_repository_id(name):
        raise ModelError(
            f"model {name!r}: there is no such folder here, and a Hub id has the form org/name; write a folder "
            "as ./folder or with its full path"
        )
    return _hub(name, revision, note=f"a Hub id, because there is no folder {name} here")


def _bare(name: str, revision: str | None) -> ResolvedModel:
    is_preset, is_folder = get_registry().presets.get_or_none(name) is not None, Path(name).is_dir()
    if is_preset and is_folder:
        raise UsageError(
            f"model {name!r} is a preset and also a folder here: write ./{name} for the folder or "
            f"{_PRESET}{name} for the preset"
        )
    if is_folder:
        return _path(name, revision, note=f"a folder here, and no preset has this name; ./{name} says so for good")
    _refuse_revision(name, revision, "a preset")
    return _preset(name, note="a preset")


def _preset(name: str, *, note: str) -> ResolvedModel:
    preset = get_registry().presets.get_or_none(name)
    if preset is None:
        raise _unknown(name)
    return ResolvedModel(kind="preset", name=preset.name, preset=preset, note=note)


def _unknown(name: str) -> UnknownNameError:
    return UnknownNameError(
        f"model {name!r} is neither a folder here nor a preset: {did_you_mean(name, get_registry().presets)}. "
        f"`graft models ls` lists the presets; a folder is written ./{name}, a Hub model org/name or hf://{name}"
    )


def _one_revision(name: str, in_name: str | None, given: str | None) -> str | None:
    if in_name and given and in_name != given:
        raise UsageError(f"model {name!r} names revision {in_name!r} but model_revision is {given!r}: give one")
    return in_name or given


def _refuse_revision(name: str, revision: str | None, what: str) -> None:
    if revision is not None:
        raise UsageError(
            f"model_revision {revision!r} means nothing for {what} ({name}): only Hub models have revisions"
        )
