"""The kinds of record that plugins declare, and calling one plugin's hook with a check of what it returns."""

from __future__ import annotations

import re
from ast import literal_eval
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, get_args, get_origin

from graftwork import specs
from graftwork.errors import did_you_mean

if TYPE_CHECKING:
    import pluggy


class Record(Protocol):
    """What every declared record has."""

    @property
    def name(self) -> str: ...

    @property
    def aliases(self) -> tuple[str, ...]: ...


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Kind(Generic[R]):
    """One kind of record: its name in the registry, its hook, its class, and what a person calls one."""

    name: str
    hook: str
    record: type[R]
    noun: str


FAMILIES = Kind("families", "graftwork_model_families", specs.ModelFamily, "model family")
TOKENIZERS = Kind("tokenizers", "graftwork_tokenizers", specs.TokenizerSpec, "tokenizer implementation")
CHAT_TEMPLATES = Kind("chat_templates", "graftwork_chat_templates", specs.ChatTemplate, "chat template")
TRAINERS = Kind("trainers", "graftwork_trainers", specs.TrainerSpec, "trainer")
QUANTIZERS = Kind("quantizers", "graftwork_quantizers", specs.QuantizerSpec, "quantizer")
DATASETS = Kind("datasets", "graftwork_datasets", specs.DatasetSpec, "dataset")
COLLATORS = Kind("collators", "graftwork_collators", specs.CollatorSpec, "collator")
ENGINES = Kind("engines", "graftwork_engines", specs.EngineSpec, "engine")
COMMANDS = Kind("commands", "graftwork_commands", specs.CommandSpec, "command")
SOURCES = Kind("sources", "graftwork_sources", specs.SourceSpec, "source")
CHECKPOINT_FORMATS = Kind(
    "checkpoint_formats", "graftwork_checkpoint_formats", specs.CheckpointFormat, "checkpoint format"
)
ASSET_CARDS = Kind("asset_cards", "graftwork_asset_cards", specs.AssetCardSource, "source of asset cards")
REWARD_FUNCTIONS = Kind("reward_functions", "graftwork_reward_functions", specs.RewardSpec, "reward function")
OPTIMIZERS = Kind("optimizers", "graftwork_optimizers", specs.OptimizerSpec, "optimizer")
# Presets are declared inside families, and looked up like everything else.
PRESETS = Kind("presets", FAMILIES.hook, specs.Preset, "preset")

REFERENCES = {
    "chat_template": CHAT_TEMPLATES.name,
    "tokenizer_impl": TOKENIZERS.name,
    "key_maps": CHECKPOINT_FORMATS.name,
}
"""The fields of families and presets that name records of another kind, and which."""

DECLARED: tuple[Kind[Any], ...] = (
    COMMANDS,
    SOURCES,
    ASSET_CARDS,
    FAMILIES,
    CHECKPOINT_FORMATS,
    TOKENIZERS,
    CHAT_TEMPLATES,
    QUANTIZERS,
    DATASETS,
    COLLATORS,
    TRAINERS,
    REWARD_FUNCTIONS,
    OPTIMIZERS,
    ENGINES,
)


def spellings(record: Record) -> list[str]:
    """Name and aliases, case-folded, each once."""
    return list(dict.fromkeys(name.casefold() for name in (record.name, *record.aliases)))


def declare(implementations: Sequence[pluggy.HookImpl], kind: Kind[R]) -> tuple[R, ...]:
    """Calls one plugin's implementations of a hook. Raises whatever they raise, TypeError on anything but the
    right records, ValueError on a name that is unusable or declared twice.
    """
    returned = [record for implementation in implementations for record in _iterable(implementation.function(), kind)]
    records = tuple(_checked(record, kind) for record in returned)
    _check_unique(records)
    _check_unique(
        [
            _checked(preset, PRESETS)
            for record in records
            if isinstance(record, specs.ModelFamily)
            for preset in record.presets
        ]
    )
    return records


def _iterable(result: object, kind: Kind[Any]) -> Iterable[Any]:
    if isinstance(result, Iterable) and not isinstance(result, (str, bytes, Mapping)):
        return result
    raise TypeError(f"it must return an iterable of {kind.record.__name__}, and returned {type(result).__name__}")


def _checked(record: Any, kind: Kind[R]) -> R:
    if not isinstance(record, kind.record):
        raise TypeError(f"{record!r} is no {kind.record.__name__}")
    for field in fields(record):  # type: ignore[arg-type]
        value, said = getattr(record, field.name), f"{kind.record.__name__}.{field.name}"
        # A text where a tuple belongs would be taken apart into letters, each of them a name or a claim.
        if str(field.type).startswith("tuple[") and not isinstance(value, tuple):
            raise TypeError(f"{said} must be a tuple, and is {value!r}")
        if str(field.type).startswith("frozenset[") and not isinstance(value, (frozenset, set, tuple, list)):
            raise TypeError(f"{said} must be a set, and is {value!r}")
        _check_choices(said, value, choices(str(field.type)))
    for name in (record.name, *record.aliases):
        if not isinstance(name, str) or not name or ":" in name or len(name.split()) != 1:
            raise ValueError(f"{name!r} cannot be the name of a {kind.noun}: a text without spaces or colons can")
    return record


def _check_choices(said: str, value: object, known: Sequence[str]) -> None:
    held = value if isinstance(value, (frozenset, set, tuple, list)) else (value,)
    for one in held if known else ():
        if one not in known:
            raise ValueError(f"{said} cannot be {one!r}; {did_you_mean(str(one), known)}")


def choices(annotation: str) -> tuple[str, ...]:
    """The only values that a field with this annotation has, or holds; empty where any will do."""
    if inline := re.search(r"Literal\[(.+?)\]", annotation):
        return tuple(literal_eval(f"[{inline[1]}]"))
    aliases = (getattr(specs, word, None) for word in re.findall(r"\w+", annotation))
    return next((get_args(alias) for alias in aliases if get_origin(alias) is Literal), ())


def _check_unique(records: Iterable[Record]) -> None:
    seen: set[str] = set()
    for name in [name for record in records for name in spellings(record)]:
        if name in seen:
            raise ValueError(f"the name {name!r} is declared twice")
        seen.add(name)
