"""What a model name means, and why: a folder here, a URI, a Hub id, a card or a preset.

Reads no weights, and downloads nothing until :func:`locate`.
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
    from graftwork.sources.cards import Card
    from graftwork.specs import Preset

Kind = Literal["path", "hub", "card", "preset", "uri"]

_URI = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_PRESET = "preset:"
_CARD = "card:"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model name and what it turned out to be.

    ``path`` is set for folders, ``preset`` for presets, ``card`` for cards; ``note`` says in one line why. ``name``
    is what can be written to get the same thing again, wherever one stands: an absolute folder, a Hub id, a URI, the
    name of a card or preset.
    """

    kind: Kind
    name: str
    path: Path | None = None
    preset: Preset | None = None
    card: Card | None = None
    revision: str | None = None
    note: str = ""


def resolve(name: str, *, revision: str | None = None) -> ResolvedModel:
    """Says what ``name`` is (design: one name for a model), without a download.

    Raises :class:`UnknownNameError` for a bare name that nobody declared, :class:`UsageError` for one that means
    two things, and :class:`ModelError` for a folder that is not there.
    """
    if not name.strip():
        raise ModelError(
            "model_name is empty: give a folder, a Hub id (org/name), a card or a preset (graft models ls)"
        )
    if name.startswith((".", "~", "/")):
        return _path(name, revision, note="a path, because it starts with '.', '~' or '/'")
    if match := _URI.match(name):
        return _uri(name, match.group(1).lower(), revision)
    if name.startswith(_PRESET):
        return _preset(name.removeprefix(_PRESET), note="a preset, because it says preset:")
    if name.startswith(_CARD):
        from graftwork.sources.cards import library

        card = library()[name.removeprefix(_CARD)]
        return ResolvedModel(kind="card", name=card.name, card=card, revision=revision, note=f"the card {card.place}")
    return _with_slash(name, revision) if "/" in name else _bare(name, revision)


def locate(
    resolved: ResolvedModel,
    *,
    cache_dir: Path | None = None,
    trust_remote_code: bool = False,
    weights: bool = True,
) -> Path:
    """The folder of the model's files, downloaded where needed, without its weights where those are not wanted.

    Presets have no files, and cards need not have any: :class:`ModelError`.
    """
    if resolved.path is not None:
        return resolved.path
    if resolved.card is not None:
        checkpoint = checkpoint_of(resolved.card, revision=resolved.revision)
        if weights:
            check_file(resolved.card)
        return locate(checkpoint, cache_dir=cache_dir, trust_remote_code=trust_remote_code, weights=weights)
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


def checkpoint_of(card: Card, *, revision: str | None = None) -> ResolvedModel:
    """Where a card's weights are. Raises :class:`ModelError` where it has none, or they are not there."""
    from graftwork.sources.cards import folder_of

    if card.checkpoint is None:
        raise ModelError(
            f"card {card.name!r} ({card.place}) has no checkpoint: give it the field checkpoint (a folder or "
            "hf://org/name), or set load_pretrained_weights=False for fresh weights of its architecture"
        )
    try:
        return resolve(folder_of(card.checkpoint), revision=revision)
    except ModelError as error:
        hint = "" if "://" in card.checkpoint else ". A path counts from the card's folder; a Hub id is hf://org/name"
        raise ModelError(f"card {card.name!r} ({card.place}): checkpoint: {error}{hint}") from error


def check_file(card: Card) -> None:
    """Refuses a card whose checkpoint is one file in a folder that is read from another: :class:`ModelError`."""
    place = card.checkpoint or ""
    file = local.from_uri(place) if place.startswith("file://") else Path(place)
    if not file.is_file():
        return
    from graftwork.checkpoints.huggingface import check_read

    try:
        check_read(file)
    except ModelError as error:
        raise ModelError(f"card {card.name!r} ({card.place}): checkpoint: {error}") from error


def _bare(name: str, revision: str | None) -> ResolvedModel:
    from graftwork.sources.cards import library

    cards = library()
    preset = get_registry().presets.get_or_none(name)
    card = cards[name] if name in cards else None  # noqa: SIM401 - a card with a mistake is an error
    if card is not None and preset is not None and card.model_arch == preset.name:
        preset = None  # the card is that preset, with files
    found = {f"./{name} for the folder": Path(name).is_dir(), f"{_CARD}{name} for the card": card is not None}
    found[f"{_PRESET}{name} for the preset"] = preset is not None
    spellings = [spelling for spelling, there in found.items() if there]
    if len(spellings) > 1:
        kinds = " and also ".join(_KINDS[spelling.rpartition(" ")[2]] for spelling in reversed(spellings))
        at = f" ({card.place}: its model_arch is {card.model_arch or 'not given'})" if card and preset else ""
        raise UsageError(f"model {name!r} is {kinds}{at}: write {' or '.join(spellings)}")
    if card is not None:
        note = f"the card {card.place}"
        return ResolvedModel(kind="card", name=card.name, card=card, revision=revision, note=note)
    if preset is None and spellings:
        note = f"a folder here, and no card or preset has this name; ./{name} says so for good"
        return _path(name, revision, note=note)
    _refuse_revision(name, revision, "a preset")
    return _preset(name, note="a preset")


_KINDS = {"folder": "a folder here", "card": "a card", "preset": "a preset"}


def _preset(name: str, *, note: str) -> ResolvedModel:
    preset = get_registry().presets.get_or_none(name)
    if preset is None:
        raise _unknown(name)
    return ResolvedModel(kind="preset", name=preset.name, preset=preset, note=note)


def _unknown(name: str) -> UnknownNameError:
    from graftwork.sources.cards import library

    cards = library()
    unread = "".join(f"\n  {mistake}" for mistake in cards.unread)
    return UnknownNameError(
        f"model {name!r} is neither a folder here, a card nor a preset: "
        f"{did_you_mean(name, [*get_registry().presets, *cards.names])}. `graft models ls` lists them all; a folder is "
        f"written ./{name}, a Hub model org/name or hf://{name}{unread}"
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
