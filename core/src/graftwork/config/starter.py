"""A configuration to start from: what must be said is said, everything else stands beside it as a comment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graftwork.config.base import literal_values
from graftwork.config.data import DatasetParams, DatasetSplitParams
from graftwork.config.dump import inline, supported
from graftwork.config.generation import GenerationParams
from graftwork.config.model import ModelParams
from graftwork.config.peft import PeftParams
from graftwork.config.training import TrainingParams
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from graftwork.specs import TrainerSpec

_HEAD = """\
# The configuration of a graftwork run. `graft config validate FILE` checks it, `graft train -c FILE` runs it.
# Lines that are set need your values; lines that are commented out show the defaults.
"""


def starter(trainer_type: str | None = None) -> str:
    """The text of a starter configuration. Raises ``UnknownNameError`` for a trainer that nobody declares."""
    name = trainer_type or TrainingParams.model_fields["trainer_type"].default
    return _HEAD + "".join(f"{line}\n" for line in _lines(name, get_registry().trainers[name]))


def _lines(trainer_type: str, trainer: TrainerSpec) -> Iterator[str]:
    yield from ("", "model:", *_fields(ModelParams, "  ", {"model_name": "./my-model"}))
    yield from ("", "data:", "  train:", "    datasets:")
    dataset = {"dataset_name": _dataset_for(trainer), "dataset_path": "data/train.jsonl"}
    first, *rest = _fields(DatasetParams, "        ", dataset)
    yield f"      - {first.strip()}"
    yield from (*rest, *_fields(DatasetSplitParams, "    ", {}))
    yield "  # validation:  # The same fields as train; it is what eval_loss is measured on."
    yield from ("", "training:", *_fields(TrainingParams, "  ", {"trainer_type": trainer_type}))
    if trainer.params is not None:
        yield f"  # trainer_kwargs:  # Options of {trainer.name}:"
        yield from _commented(trainer.params(), "  ")
    yield from ("", "# peft:  # Applies where training.use_peft is true.", *_commented(PeftParams, ""))
    yield from ("", "# generation:", *_commented(GenerationParams, ""))


def _dataset_for(trainer: TrainerSpec) -> str:
    """The first reader of files, by the trainer's order of schemas, that it can use."""
    specs = [spec for spec in get_registry().datasets.values() if spec.needs_path]
    return next((spec.name for schema in trainer.schemas for spec in specs if spec.schema == schema), "text")


def _fields(model: type[BaseModel], indent: str, values: Mapping[str, Any]) -> Iterator[str]:
    """Those with a value first, then the others as comments."""
    for name, value in values.items():
        yield f"{indent}{name}: {inline(value)}  # {_explain(model.model_fields[name])}"
    yield from _defaults(model, f"{indent}# ", skip={*values, "datasets", "trainer_kwargs", "peft_params"})


def _commented(model: type[BaseModel], indent: str) -> Iterator[str]:
    return _defaults(model, f"{indent}#   ", skip=set())


def _defaults(model: type[BaseModel], prefix: str, skip: set[str]) -> Iterator[str]:
    for name, field in supported(model):
        if name not in skip:
            default = "..." if field.is_required() else inline(field.get_default(call_default_factory=True))
            yield f"{prefix}{name}: {default}  # {_explain(field)}".rstrip(" #")


def _explain(field: FieldInfo) -> str:
    choices = " | ".join(map(str, literal_values(field.annotation)))
    return f"{field.description or ''} {choices}".strip()
