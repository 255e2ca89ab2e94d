"""``graft models``: what there is by name, and what a name means."""

from __future__ import annotations

import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import click

from graftwork.adapters.folder import recorded_base
from graftwork.builders.changes import laid_over
from graftwork.errors import GraftworkError, UsageError
from graftwork.registry import get_registry
from graftwork.sources import ResolvedModel, overrides, resolve
from graftwork.sources.cards import library
from graftwork.sources.config_keys import source_keys
from graftwork.sources.hub import cached
from graftwork.sources.local import read_config
from graftwork.sources.resolve import checkpoint_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from graftwork.sources.cards import Card
    from graftwork.specs import ModelFamily, Preset

GENERIC = "generic"
FROM_CARD = "from the card"
SHAPELESS = re.compile(r"rope_\w+|sliding_window|\w+_(token_id|eps|dropout|softcapping)")
"""Values that change what a model computes, and not how many parameters it has."""
UNPROVEN = (
    "packed training equals padded training (a trainer that packs proves it before step 1)",
    "the stop tokens (the tokenizer's end of text and generation_config.json are all there is)",
    "the chat template (the tokenizer's own is all there is)",
    "where a LoRA goes (onto all linear layers but the output)",
)


@click.group()
def models() -> None:
    """List cards, presets and families; say what a model name means."""


@models.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, with every alias and Hub id.")
def ls(as_json: bool) -> None:
    """List what a model can be called: the presets of all families, which are architectures, and the cards."""
    registry, cards = get_registry(), library()
    mistakes = cards.mistakes()
    rows = [(preset, registry.family_of_preset(name)) for name, preset in registry.presets.items()]
    if as_json:
        listed = [_described(preset, family) for preset, family in rows]
        named = [{**card.facts(), "file": card.place} for card in cards.cards()]
        everything = {"presets": listed, "cards": named, "mistakes": mistakes, "families": sorted(registry.families)}
        click.echo(json.dumps(everything, indent=2))
        return
    head = ("preset", "family", "parameters", "weights on the Hub")
    body = [(p.name, f.name, _short(p.num_parameters), ", ".join(p.hub_ids) or "-") for p, f in rows]
    click.echo(_table([head, *body]) if rows else "No preset: no plugin with a model family is installed.")
    if usable := cards.cards():
        rows_ = [(card.name, _family_name(card), _files(card), card.source) for card in usable]
        click.echo("\n" + _table([("card", "family", "files", "from"), *rows_]))
    click.echo(
        f"\nFamilies: {', '.join(sorted(registry.families))}. Any other architecture of transformers is {GENERIC}."
    )
    for mistake in mistakes:
        click.echo(f"mistake: {mistake}")


@models.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def show(name: str, as_json: bool) -> None:
    """Show the card or the preset NAME: every field, where it comes from, and what it shadows."""
    found = resolve(name)
    if found.card is None and found.preset is None:
        raise UsageError(f"{name} is neither a card nor a preset but {found.note}: graft models resolve {name}")
    arch = found.card.model_arch if found.card is not None else None
    preset = get_registry().presets[arch] if arch else found.preset
    facts = _of_card(found.card) if found.card is not None else {}
    if preset is not None:
        facts |= {"preset": preset.name, **_described(preset, get_registry().family_of_preset(preset.name))}
        facts |= {"name": found.name, "values": dict(preset.values)}
        if found.card is not None:
            facts = _overridden(facts, found.card, preset)
    if not as_json:
        facts = _marked(facts)
    _print(facts, as_json=as_json)


@models.command("resolve")
@click.argument("name")
@click.option("--revision", help="Branch, tag or commit, for a model on the Hub.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def resolve_(name: str, revision: str | None, as_json: bool) -> None:
    """Say what NAME means as a model name, why, and which family serves it. Downloads nothing."""
    _print(explain(resolve(name, revision=revision)), as_json=as_json)


def _print(facts: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for key, value in facts.items():
        block = [f"{name}: {inner}" for name, inner in value.items()] if isinstance(value, dict) else value
        first, *rest = (block or ["-"]) if isinstance(block, list) else [str(block)]
        click.echo(f"{key:<{width}}  {first}")
        for line in rest:
            click.echo(f"{'':<{width}}  {line}")


def explain(model: ResolvedModel) -> dict[str, Any]:
    """What ``graft models resolve`` says, as plain data; facts that do not apply are left out."""
    at = f"@{model.revision}" if model.revision else ""
    path = model.path or (cached(model.name + at) if model.kind == "hub" else None)
    facts: dict[str, Any] = {
        "name": model.name,
        "kind": model.kind,
        "why": model.note,
        "revision": model.revision,
        "path": str(path) if path else None,
    }
    if model.card is not None:
        facts |= _of_resolved_card(model.card, model.revision)
    elif model.preset is not None:
        family = get_registry().family_of_preset(model.preset.name)
        facts |= {"model_type": model.preset.model_type, "parameters": f"{model.preset.num_parameters:,}"}
        facts |= _family(family)
    elif path is None:
        facts["family"] = "not known before the download: config.json says it"
    else:
        facts |= _of_folder(path)
    return {key: value for key, value in facts.items() if value is not None}


def _of_resolved_card(card: Card, revision: str | None) -> dict[str, Any]:
    """What its checkpoint is, as far as that is known without a download; else what its fresh model would be."""
    facts: dict[str, Any] = {"file": card.place, "architecture": card.model_arch, "tokenizer": _tokenizer(card)}
    if card.checkpoint is not None:
        weights = explain(checkpoint_of(card, revision=revision))
        facts |= {
            f"checkpoint {key}" if key in ("name", "kind", "why") else key: value for key, value in weights.items()
        }
    if card.model_family is not None:
        facts |= _family(get_registry().families[card.model_family])
    return facts


def _of_card(card: Card) -> dict[str, Any]:
    own = {"name": card.name, "kind": "card", "file": card.place, "from": card.source}
    laid = list(card.layers) if len(card.layers) > 1 else None
    more = {"built from": laid, "shadows": list(card.shadows) or None}
    return {key: value for key, value in {**own, **card.facts(), **more}.items() if value is not None}


def _overridden(facts: Mapping[str, Any], card: Card, preset: Preset) -> dict[str, Any]:
    """``facts`` with a card's values laid over its architecture's, and no published count where the shape differs."""
    mistakes = overrides.mistakes(card)
    if mistakes:
        return {**facts, "mistakes": mistakes}
    values = laid_over(preset.values, overrides.by_transformers(card))
    changed = [key for key, value in values.items() if key not in preset.values or value != preset.values[key]]
    rotary = "rope_parameters" in (source_keys(preset.model_type) or ())
    shaped = [
        key for key in changed if not SHAPELESS.fullmatch(key) and not (rotary and key == "max_position_embeddings")
    ]
    kept = {key: value for key, value in facts.items() if key != "num_parameters" or not shaped}
    return {**kept, "values": values, FROM_CARD: changed} if changed else kept


def _marked(facts: Mapping[str, Any]) -> dict[str, Any]:
    """As a person reads it: what is from the card is marked where it stands."""
    if FROM_CARD not in facts:
        return dict(facts)
    values = {
        key: f"{value} (from the card)" if key in facts[FROM_CARD] else value for key, value in facts["values"].items()
    }
    return {**{key: value for key, value in facts.items() if key != FROM_CARD}, "values": values}


def _tokenizer(card: Card) -> str | None:
    try:
        found = library().tokenizer_of(card)
    except UsageError:
        return None
    options = ", ".join(f"{key}={value}" for key, value in found.options.items())
    return f"{found.place} ({options})" if options else found.place


def _family_name(card: Card) -> str:
    return card.model_family or card.tokenizer_family or "-"


def _files(card: Card) -> str:
    return (card.checkpoint or _tokenizer(card) or "-").removeprefix("hf://")


def _of_folder(path: Path) -> dict[str, Any]:
    if (path / "config.json").is_file():
        values = read_config(path)
        architectures = tuple(values.get("architectures") or ())
        model = {"model_type": values["model_type"], "architecture": ", ".join(architectures) or None}
        return {**model, **_family(get_registry().family_for(values["model_type"], architectures))}
    if (path / "adapter_config.json").is_file():
        return {"adapter": "these files are an adapter", "base": _base(path)}
    read_config(path)
    return {}


def _base(path: Path) -> str:
    name = recorded_base(path)
    if name is None:
        return "not recorded: give the base as model_name, and this as adapter_model"
    try:
        return f"{name} ({resolve(name).note})"
    except GraftworkError as error:
        return f"{name}, which is not to be had: {error}"


def _family(family: ModelFamily) -> dict[str, Any]:
    owner = get_registry().families.owner(family.name)
    named = {"family": f"{family.name} ({owner.distribution} {owner.version})"}
    return {**named, "unproven": list(UNPROVEN)} if family.name == GENERIC else named


def _described(preset: Preset, family: ModelFamily) -> dict[str, Any]:
    return {
        "name": preset.name,
        "aliases": list(preset.aliases),
        "family": family.name,
        "model_type": preset.model_type,
        "num_parameters": preset.num_parameters,
        "hub_ids": list(preset.hub_ids),
        "chat_template": preset.chat_template or family.chat_template,
    }


def _short(number: int) -> str:
    """A count as a person says it: 8.03B, 135M."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= size * 0.9995:  # what rounds to 1,000 of a unit is 1 of the next
            return f"{number / size:.3g}{unit}"
    return str(number)


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(line[: shutil.get_terminal_size((200, 24)).columns] for line in lines)
