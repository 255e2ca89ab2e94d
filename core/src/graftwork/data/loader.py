"""A split of the configuration to a loader: who reads it, how rows become samples, and how they are packed."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from graftwork.chat.fit import require_stops
from graftwork.data.account import Account
from graftwork.data.blocks import Packer, Packing
from graftwork.data.indexed import IndexedLoader, read_samples
from graftwork.data.lengths import prepare
from graftwork.data.names import look_up
from graftwork.data.preference import pair_encoder
from graftwork.data.readers import OpenRequest, RowSource
from graftwork.data.samples import Encode, chat_encoder, text_encoder
from graftwork.data.streaming import Mixture, ShuffledRows, StreamedLoader
from graftwork.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pydantic import BaseModel
    from transformers import PreTrainedTokenizerFast

    from graftwork.config import DatasetParams, DatasetSplitParams
    from graftwork.data.account import Outcome
    from graftwork.data.readers import Row
    from graftwork.specs import DatasetSpec

logger = logging.getLogger(__name__)
Loader = IndexedLoader | StreamedLoader


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


def schema_of(split: DatasetSplitParams) -> str:
    """``text``, ``chat`` or ``preference``: what the split's datasets hold, which must be one thing."""
    schemas = {params.dataset_name: look_up(params)[0].schema for params in split.datasets}
    if len(set(schemas.values())) > 1:
        listed = ", ".join(f"{name} ({schema})" for name, schema in schemas.items())
        raise DataError(f"a split mixes schemas: {listed}; train on them one after the other")
    return next(iter(schemas.values()))


def load_split(request: LoadRequest) -> Loader:
    """The loader of a training split: streamed where the split (or one of its datasets) says so."""
    streamed = [
        params.stream if params.stream is not None else request.split.stream for params in request.split.datasets
    ]
    if any(streamed) and not all(streamed):
        raise DataError("some datasets of the split are streamed and some are not; set stream for the whole split")
    return load_streamed(request) if all(streamed) else load_indexed(request)


def load_indexed(request: LoadRequest) -> IndexedLoader:
    """Reads every row. Also how a validation split is read, streamed or not: it has to end."""
    limit = None if schema_of(request.split) == "text" else request.max_length
    datasets = []
    for params in request.split.datasets:
        spec, options = look_up(params)
        source = open_source(params, spec, options)
        datasets.append(read_samples(source, encoder_for(spec, options, request), limit, request.split.over_long))
    return IndexedLoader(
        datasets,
        request.split,
        packer_for(request),
        seed=seed_of(request),
        batch_size=request.batch_size,
        accumulation=request.accumulation,
    )


def load_streamed(request: LoadRequest) -> StreamedLoader:
    """Opens the sources and reads nothing yet."""
    streams, encoders, accounts = [], [], []
    for params in request.split.datasets:
        spec, options = look_up(params)
        streams.append(ShuffledRows(open_source(params, spec, options), params, seed_of(request)))
        encoders.append(fitted(encoder_for(spec, options, request), spec.schema, request))
        accounts.append(Account(params.dataset_path or params.dataset_name, request.split.max_rejected))
    return StreamedLoader(
        Mixture(streams, request.split, seed_of(request)),
        encoders,
        accounts,
        packer_for(request)(),
        batch_size=request.batch_size,
        accumulation=request.accumulation,
    )


def fitted(encode: Encode, schema: str, request: LoadRequest) -> Callable[[Row], Outcome]:
    """A row's way to a sample with the length policy behind it; documents are cut later."""
    limit = None if schema == "text" else request.max_length
    return lambda row: prepare(row, encode, limit, request.split.over_long)


def open_source(params: DatasetParams, spec: DatasetSpec, options: BaseModel | None) -> RowSource:
    """The dataset's rows."""
    return spec.open(OpenRequest(dataset=params, params=options))


def encoder_for(spec: DatasetSpec, options: BaseModel | None, request: LoadRequest) -> Encode:
    """How the dataset's rows become samples."""
    if spec.schema == "text":
        return text_encoder(request.tokenizer, getattr(options, "text_field", "text"))
    if spec.schema == "chat":
        messages_field = getattr(options, "messages_field", "messages")
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
        )
    raise DataError(f"dataset {spec.name} holds {spec.schema} rows, which this loader does not read")


def packer_for(request: LoadRequest) -> Callable[[], Packer]:
    """How the split's samples become blocks."""
    documents = schema_of(request.split) == "text"
    packing: Packing = "none"
    if request.split.pack:
        packing = "cut" if documents else "whole"
    return lambda: Packer(request.max_length, packing, documents=documents)


def seed_of(request: LoadRequest) -> int:
    """The split's own seed, or the run's."""
    return request.seed if request.split.seed is None else request.split.seed


def fingerprint(split: DatasetSplitParams) -> dict[str, str]:
    """Each file's SHA-256 by path: what a resumed run compares. Of a streamed file, its size and its ends; of one on
    the Hub, the commit.
    """
    files: dict[str, str] = {}
    for params in split.datasets:
        spec, options = look_up(params)
        streamed = params.stream if params.stream is not None else split.stream
        source = open_source(params, spec, options)
        files |= getattr(source, "revisions", {})
        for path in source.files:
            files[str(path)] = hash_ends(path) if streamed else hashlib.sha256(path.read_bytes()).hexdigest()
    return files


def hash_ends(path: Path, piece: int = 1 << 20) -> str:
    """Of the size, the first and the last MiB: enough to see that a large file was changed or has grown."""
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(f"{size}:".encode() + file.read(piece))
        file.seek(max(0, size - piece))
        digest.update(file.read(piece))
    return digest.hexdigest()


def describe(loader: Loader) -> dict[str, Any]:
    """What is known of the data before the first step."""
    if isinstance(loader, StreamedLoader):
        return {"streamed": True}
    return asdict(loader.counts)
