"""How a split is loaded, and how its rows become samples. Torch-free: processes that prepare rows start with it."""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.chat.fit import require_stops
from graftwork.data.names import look_up
from graftwork.data.preference import pair_encoder
from graftwork.data.readers import OpenRequest, RowSource
from graftwork.data.samples import Encode, chat_encoder, text_encoder
from graftwork.errors import DataError
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel
    from transformers import PreTrainedTokenizerFast

    from graftwork.config import DatasetParams, DatasetSplitParams, RunConfig
    from graftwork.specs import DatasetSpec

DEFAULT_LENGTH = 2048
"""Tokens of a sample where nothing says otherwise and the model could take more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRequest:
    """How a split is to be loaded. ``max_length`` is in tokens; ``stop_ids`` end a trained turn."""

    split: DatasetSplitParams
    tokenizer: PreTrainedTokenizerFast
    max_length: int
    stop_ids: frozenset[int]
    seed: int
    batch_size: int
    accumulation: int = 1
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    special_tokens_in_content: str = "error"


def load_request(
    config: RunConfig,
    split: DatasetSplitParams,
    tokenizer: PreTrainedTokenizerFast,
    stop_ids: frozenset[int],
    processes: int = 1,
) -> LoadRequest:
    """How a split is trained on: each of the processes reads the steps of all, and takes its rows of them."""
    training = config.training
    return LoadRequest(
        split=split,
        tokenizer=tokenizer,
        max_length=max_length(config, split, tokenizer),
        stop_ids=stop_ids,
        seed=training.seed,
        batch_size=training.per_device_train_batch_size,
        accumulation=training.gradient_accumulation_steps * processes,
        template_variables=config.model.chat_template_kwargs,
        special_tokens_in_content=config.data.special_tokens_in_content,
    )


def max_length(config: RunConfig, split: DatasetSplitParams, tokenizer: PreTrainedTokenizerFast) -> int:
    """Tokens of a sample: the split's, the model section's, or what the tokenizer says its model can take, at most
    :data:`DEFAULT_LENGTH`.
    """
    given = split.max_length or config.model.model_max_length
    return given or min(DEFAULT_LENGTH, int(tokenizer.model_max_length))


def schema_of(split: DatasetSplitParams) -> str:
    """``text``, ``chat`` or ``preference``: what the split's datasets hold, which must be one thing."""
    schemas = {params.dataset_name: look_up(params)[0].schema for params in split.datasets}
    if len(set(schemas.values())) > 1:
        listed = ", ".join(f"{name} ({schema})" for name, schema in schemas.items())
        raise DataError(f"a split mixes schemas: {listed}; train on them one after the other")
    return next(iter(schemas.values()))


def open_source(params: DatasetParams, spec: DatasetSpec, options: BaseModel | None) -> RowSource:
    """The dataset's rows."""
    return spec.open(OpenRequest(dataset=params, params=options))


def encoder_for(spec: DatasetSpec, options: BaseModel | None, request: LoadRequest) -> Encode:
    """How the dataset's rows become samples."""
    if spec.schema == "text":
        return text_encoder(request.tokenizer, getattr(options, "text_field", "text"))
    messages_field = getattr(options, "messages_field", None)
    if spec.schema == "chat":
        require_stops(request.tokenizer, request.stop_ids, request.template_variables)
        return chat_encoder(
            request.tokenizer,
            request.split,
            messages_field,
            request.stop_ids,
            request.template_variables,
            request.special_tokens_in_content,
        )
    if spec.schema == "preference":
        require_stops(request.tokenizer, request.stop_ids, request.template_variables)
        return pair_encoder(
            request.tokenizer,
            request.split,
            request.stop_ids,
            request.template_variables,
            request.special_tokens_in_content,
            messages_field,
        )
    raise DataError(f"dataset {spec.name} holds {spec.schema} rows, which this loader does not read")


def encoder_settings(params: DatasetParams, request: LoadRequest) -> dict[str, Any]:
    """All that decides how the dataset's rows become samples, beside the files and the tokenizer: plain data."""
    spec, options = look_up(params)
    readers = get_registry().datasets
    owner = readers.owner(params.dataset_name) if readers.knows(params.dataset_name) else None
    return {
        "reader": [spec.name, spec.schema, owner and [owner.distribution, owner.version]],
        "reader_code": owner and code_being_written(readers[params.dataset_name].open, owner.distribution),
        "options": None if options is None else options.model_dump(mode="json"),
        "part": [params.dataset_path, params.subset, params.split],
        "max_length": None if spec.schema == "text" else request.max_length,
        "over_long": request.split.over_long,
        "train_target": request.split.train_target,
        "stop_ids": sorted(request.stop_ids),
        "variables": request.template_variables,
        "special_tokens_in_content": request.special_tokens_in_content,
    }


def code_being_written(function: Any, distribution: str) -> str | None:
    """A hash of the sources of the package that ``function`` is from, where its distribution is an editable install:
    its version says nothing of what its developer changed since. None of any other, and of the core's, which has its
    own.
    """
    name = str(getattr(function, "func", function).__module__).partition(".")[0]
    if name == "graftwork" or not is_editable(distribution):
        return None
    module = sys.modules[name]
    folders = [Path(folder) for folder in getattr(module, "__path__", [])]
    files = [(file.relative_to(folder), file) for folder in folders for file in sorted(folder.rglob("*.py"))]
    if not files and module.__file__:
        files = [(Path(Path(module.__file__).name), Path(module.__file__))]
    digest = hashlib.sha256()
    for shown, file in files:
        digest.update(f"{shown}:".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def is_editable(distribution: str) -> bool:
    """Whether pip installed it as a link to its sources (PEP 610)."""
    try:
        told = metadata.distribution(distribution).read_text("direct_url.json")
        return bool(told and json.loads(told)["dir_info"]["editable"])
    except (metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        return False
