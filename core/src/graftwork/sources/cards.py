"""Asset cards: small YAML files that give a model a name, with where its files are and what is special about it.

A card is data: it names no code, and it cannot vouch for itself. Cards are looked for in ``$GRAFTWORK_CARD_PATH``
(files and folders), the user's folder, the system's folder, then in those that plugins bring. A card found earlier
shadows one of the same name found later. A card with a mistake is an error where it is used, and a line in
``graft models ls``; all others go on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.errors import ModelError, UnknownNameError, UsageError, did_you_mean
from graftwork.registry import get_registry
from graftwork.sources import local, overrides
from graftwork.sources.card_files import FIELDS, PLACES, Document, Mistake, documents_of, may_be_there, scheme_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

CARD_PATH, CARD_ENV = "GRAFTWORK_CARD_PATH", "GRAFTWORK_CARD_ENV"
_SYSTEM = Path("/etc/graftwork/cards")
_USER_ENVIRONMENT = "user"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A card with everything that its base and its environments say. Paths are absolute.

    ``file`` and ``line`` are where it stands, ``source`` whose it is, ``layers`` the documents that were laid over
    each other, lowest first, ``override_places`` where each key of ``model_config_override`` is written,
    ``shadows`` the places of others with this name that do not count.
    """

    name: str
    file: Path
    line: int
    source: str
    base: str | None = None
    model_family: str | None = None
    model_arch: str | None = None
    checkpoint: str | None = None
    tokenizer: str | None = None
    tokenizer_family: str | None = None
    tokenizer_ref: str | None = None
    model_config_override: Mapping[str, Any] = field(default_factory=dict)
    tokenizer_config_override: Mapping[str, Any] = field(default_factory=dict)
    restrict: bool | None = None
    layers: tuple[str, ...] = ()
    override_places: Mapping[str, str] = field(default_factory=dict)
    shadows: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """``file:line``."""
        return f"{self.file}:{self.line}"

    def facts(self) -> dict[str, Any]:
        """What the card says, field by field, without what it leaves open."""
        values = {name: getattr(self, name) for name in ("name", *FIELDS)}
        return {name: value for name, value in values.items() if value not in (None, {})}


@dataclass(frozen=True, slots=True)
class CardTokenizer:
    """Where a card's tokenizer is, whose special tokens it has, and the options it is read with."""

    place: str
    family: str | None
    options: Mapping[str, Any]


class CardError(ModelError):
    """A card that cannot be used."""


@dataclass(frozen=True, slots=True)
class _Source:
    """One place of the search order."""

    label: str
    documents: Mapping[str, Sequence[Document]]
    mistakes: tuple[Mistake, ...]


class Library:
    """All cards there are now, by name in any case; ``name@env`` is one with that environment, whichever are active."""

    def __init__(self, places: Sequence[tuple[str, Path]], environments: Sequence[str]) -> None:
        self._sources = [_read(label, path) for label, path in places]
        self._environments = (*environments, _USER_ENVIRONMENT)

    @property
    def names(self) -> list[str]:
        """Every name, also of cards with a mistake; not those of environments."""
        found = {name for source in self._sources for name in source.documents if "@" not in name}
        return sorted(found)

    @property
    def unread(self) -> list[str]:
        """What could not be read at all, so that nobody knows which cards are in it."""
        return [str(mistake) for source in self._sources for mistake in source.mistakes]

    def __contains__(self, name: str) -> bool:
        return any(name.casefold() in source.documents for source in self._sources)

    def __getitem__(self, name: str) -> Card:
        """The card. Raises :class:`UnknownNameError` where there is none, :class:`CardError` for a mistake in it."""
        return self._card(name, ())

    def tokenizer_of(self, card: Card) -> CardTokenizer:
        """The tokenizer of a card: its own, that of ``tokenizer_ref``, else what lies beside the checkpoint.

        Raises :class:`CardError` where it has none.
        """
        seen, at = [card.name], card
        options, family = dict(card.tokenizer_config_override), card.tokenizer_family
        while at.tokenizer is None and at.tokenizer_ref is not None:
            if at.tokenizer_ref in seen:
                chain = " > ".join([*seen, at.tokenizer_ref])
                raise CardError(f"card {card.name!r} ({card.place}): tokenizer_ref leads back to itself ({chain})")
            seen.append(at.tokenizer_ref)
            at = self[at.tokenizer_ref]
            options, family = {**at.tokenizer_config_override, **options}, family or at.tokenizer_family
        place = at.tokenizer or (folder_of(at.checkpoint) if at.checkpoint else None)
        if place is None:
            raise CardError(
                f"card {card.name!r} ({card.place}) has no tokenizer: give it the field tokenizer (a folder, a file or "
                "hf://org/name), or tokenizer_ref, the name of a card that has one"
            )
        return CardTokenizer(place, family or at.model_family or card.model_family, options)

    def cards(self) -> list[Card]:
        """All cards that can be used."""
        found = []
        for name in self.names:
            try:
                found.append(self[name])
            except CardError:
                continue
        return found

    def mistakes(self) -> list[str]:
        """One text for each file that cannot be read and each card that cannot be used."""
        found = self.unread
        for name in self.names:
            try:
                found += overrides.mistakes(self[name])
            except CardError as error:
                found.append(str(error))
        return list(dict.fromkeys([*found, *self._overlays_of_nothing()]))

    def _overlays_of_nothing(self) -> Iterable[str]:
        for source in self._sources:
            for name, documents in source.documents.items():
                over = name.partition("@")[0]
                if "@" in name and over not in self:
                    yield str(documents[0].mistake("name", f"it changes the card {over!r}, and there is none"))

    def _card(self, name: str, chain: tuple[str, ...]) -> Card:
        if name not in self or name.partition("@")[0] not in self:
            unread = "".join(f"\n  {mistake}" for mistake in self.unread)
            raise UnknownNameError(f"there is no card {name!r}: {did_you_mean(name, self.names)}{unread}")
        over, _, environment = name.partition("@")
        top, *shadowed = self._all(over)
        layers = [top, *(self._all(name)[:1] if environment else self._overlays(name))]
        _check(layers)
        own = _merged(layers)
        base = self._base(own.get("base"), top, (*chain, name.casefold()))
        values = _over(base.facts() if base else {}, own)
        _check_schemes(layers, own)
        return _checked(
            top,
            {**values, "name": f"{top.name}@{environment}" if environment else top.name},
            layers=(*(base.layers if base else ()), *(layer.place for layer in layers)),
            override_places={**(base.override_places if base else {}), **_override_places(layers)},
            shadows=tuple(document.place for document in shadowed),
        )

    def _base(self, name: str | None, document: Document, chain: tuple[str, ...]) -> Card | None:
        if name is None:
            return None
        if name.casefold() in chain:
            raise CardError(
                document.mistake(
                    "base",
                    f"its bases lead back to itself ({' > '.join((*chain, name))}). To change a card, write one named "
                    f"{name}@user: it is laid over {name}",
                ).text
            )
        if name not in self:
            text = f"there is no card {name!r} to build on: {did_you_mean(name, self.names)}"
            raise CardError(document.mistake("base", text).text)
        return self._card(name, chain)

    def _all(self, name: str) -> list[Document]:
        """The card of each source; one that stands twice in a source is a mistake of its own."""
        found: list[Document] = []
        for source in self._sources:
            documents = source.documents.get(name.casefold(), ())
            if len(documents) > 1 and not found:
                places = " and ".join(document.place for document in documents)
                raise CardError(f"card {name!r} stands twice among the cards of {source.label}: {places}. Keep one")
            found += documents[:1]
        return found

    def _overlays(self, name: str) -> list[Document]:
        """What the active environments lay over a card, in their order, the user's own last."""
        found: list[Document] = []
        for environment in dict.fromkeys(self._environments):
            overlay = f"{name}@{environment}"
            found += self._all(overlay)[:1] if overlay in self else []
        return found


def folder_of(checkpoint: str) -> str:
    """The folder of a checkpoint: fairseq2's cards name a file of it as well as the whole."""
    path = local.from_uri(checkpoint) if checkpoint.startswith("file://") else Path(checkpoint)
    return str(path.parent) if path.is_file() else checkpoint


def library(environ: Mapping[str, str] | None = None) -> Library:
    """The cards of this process: its environment's, the user's, the system's and those of the plugins."""
    env = os.environ if environ is None else environ
    environments = [name.strip() for name in env.get(CARD_ENV, "").split(",") if name.strip()]
    return Library(search_order(env), environments)


def search_order(environ: Mapping[str, str]) -> list[tuple[str, Path]]:
    """Where cards are looked for, with whose they are; only those of users may be missing."""
    own = [(f"${CARD_PATH}", local.expanded(part)) for part in environ.get(CARD_PATH, "").split(os.pathsep) if part]
    shared = [*_of_user(environ), ("the system", _SYSTEM)]
    table = get_registry().asset_cards
    plugins = [(table.owner(name).distribution, spec.path) for name, spec in table.items()]
    return [*own, *((label, path) for label, path in shared if may_be_there(path)), *plugins]


def _of_user(environ: Mapping[str, str]) -> list[tuple[str, Path]]:
    """The user's folder; a process without a home, as in many a container, has none."""
    try:
        return [("the user", local.expanded(environ.get("XDG_CONFIG_HOME") or "~/.config") / "graftwork" / "cards")]
    except ModelError:
        return []


def _read(label: str, path: Path) -> _Source:
    documents, mistakes = documents_of(path, label)
    by_name: dict[str, list[Document]] = {}
    for document in documents:
        by_name.setdefault(document.name.casefold(), []).append(replace(document, source=label))
    return _Source(label, by_name, tuple(mistakes))


def _check(layers: Iterable[Document]) -> None:
    for layer in layers:
        if layer.mistakes:
            raise CardError("; ".join(mistake.text for mistake in layer.mistakes))


def _check_schemes(layers: Sequence[Document], values: Mapping[str, Any]) -> None:
    """Refuses a place that nothing here can fetch from; one that another layer replaces does not count."""
    sources = get_registry().sources
    for layer in layers:
        for name in PLACES:
            scheme = scheme_of(place) if (place := layer.fields.get(name)) and place == values.get(name) else None
            if scheme is not None:
                try:
                    sources[scheme]
                except UsageError as error:
                    raise CardError(layer.mistake(name, f"{place}: {error}").text) from error


def _override_places(layers: Iterable[Document]) -> dict[str, str]:
    name = "model_config_override"
    return {key: layer.place_of(name) for layer in layers for key in layer.fields.get(name, ())}


def _merged(layers: Iterable[Document]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for layer in layers:
        values = _over(values, layer.fields)
    return values


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Fields laid over others; overrides are laid over each other key by key, and ``tokenizer`` and
    ``tokenizer_ref`` say the same thing, so that one takes the other's place.
    """
    merged = {**below, **above}
    for name, other in (("tokenizer", "tokenizer_ref"), ("tokenizer_ref", "tokenizer")):
        if name in above and other not in above:
            merged.pop(other, None)
    for name in ("model_config_override", "tokenizer_config_override"):
        if name in below and name in above:
            merged[name] = {**below[name], **above[name]}
    return merged


def _checked(document: Document, values: dict[str, Any], **more: Any) -> Card:
    """The card, with its family, its architecture and its tokenizer known to be there."""
    registry = get_registry()
    for name in ("model_family", "tokenizer_family"):
        if name in values and registry.families.get_or_none(values[name]) is None:
            nearest = did_you_mean(values[name], registry.families)
            raise CardError(document.mistake(name, f"no family is called {values[name]!r}; {nearest}").text)
    if arch := values.get("model_arch"):
        preset = registry.presets.get_or_none(arch)
        if preset is None:
            nearest = did_you_mean(arch, registry.presets)
            raise CardError(document.mistake("model_arch", f"no preset is called {arch!r}; {nearest}").text)
        family = registry.family_of_preset(preset.name)
        given = values.setdefault("model_family", family.name)
        if registry.families[given] is not family:
            text = f"{arch!r} is of the family {family.name}, and model_family says {given!r}"
            raise CardError(document.mistake("model_arch", text).text)
        values["model_arch"] = preset.name
    line = document.lines.get("name", 1)
    return Card(file=document.file, line=line, source=document.source, **values, **more)
