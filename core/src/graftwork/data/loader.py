"""A split of the configuration to a loader: who reads it, how rows become samples, and how they are packed."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from graftwork.data import cache
from graftwork.data.account import Account
from graftwork.data.blocks import Packer, Packing
from graftwork.data.encoders import LoadRequest, encoder_for, load_request, max_length, open_source, schema_of
from graftwork.data.indexed import IndexedLoader
from graftwork.data.lengths import prepare
from graftwork.data.names import look_up
from graftwork.data.prepare import Chunk, Job, prepare_rows
from graftwork.data.streaming import Mixture, ShuffledRows, StreamedLoader
from graftwork.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

    from graftwork.config import DatasetParams, DatasetSplitParams, RunConfig
    from graftwork.data.account import Outcome
    from graftwork.data.readers import Row
    from graftwork.data.samples import Encode

__all__ = [
    "LoadRequest",
    "Loader",
    "count_steps",
    "describe",
    "encoder_for",
    "fingerprint",
    "hash_ends",
    "load_held_out",
    "load_indexed",
    "load_request",
    "load_split",
    "max_length",
    "open_source",
    "schema_of",
]

logger = logging.getLogger(__name__)
Loader = IndexedLoader | StreamedLoader


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
    made = [load_dataset(params, request) for params in request.split.datasets]
    return IndexedLoader(
        [chunk.samples for chunk in made],
        request.split,
        packer_for(request),
        seed=seed_of(request),
        batch_size=request.batch_size,
        accumulation=request.accumulation,
        accounts=[chunk.account for chunk in made],
    )


def load_held_out(
    config: RunConfig, split: DatasetSplitParams, tokenizer: PreTrainedTokenizerFast, stop_ids: frozenset[int]
) -> IndexedLoader | None:
    """The split that is evaluated on, or None where it is empty."""
    if not split.datasets:
        return None
    request = load_request(config, split, tokenizer, stop_ids)
    return load_indexed(replace(request, batch_size=config.training.per_device_eval_batch_size))


def load_dataset(params: DatasetParams, request: LoadRequest) -> Chunk:
    """The samples of one dataset, from the cache or made now, and kept there."""
    spec, options = look_up(params)
    source = open_source(params, spec, options)
    job = Job(dataset=params, request=request, name=called(params))
    folder = cache.cache_folder()
    key = None if folder is None else cache.key_of(source, job)
    if folder is None or key is None:
        return prepare_rows(source, job)
    if (found := cache.load(folder / key, job)) is None:
        with cache.alone(folder / key) as waited:
            if not waited or (found := cache.load(folder / key, job)) is None:
                return keep(prepare_rows(source, job), folder / key, job)
    for notice in found.notices:
        logging.getLogger(notice.logger).warning("%s", notice.text)
    found.account.close()
    logger.info("%s: prepared before, read from %s", job.name, folder / key)
    return found


def called(params: DatasetParams) -> str:
    """What the log calls a dataset: two splits may read the same files."""
    name = params.dataset_path or params.dataset_name
    return f"{name} (held out)" if params.holdout and params.holdout_part == "validation" else name


def keep(made: Chunk, entry: Path, job: Job) -> Chunk:
    """The same samples from the disk, where they take no memory; as they are where they cannot be kept."""
    if not cache.store(entry, made):
        return made
    cache.make_room(entry.parent, entry)
    kept = cache.load(entry, job)
    return made if kept is None else Chunk(kept.samples, made.account, made.notices)


def load_streamed(request: LoadRequest) -> StreamedLoader:
    """Opens the sources and reads nothing yet."""
    streams, encoders, accounts = [], [], []
    for params in request.split.datasets:
        spec, options = look_up(params)
        streams.append(ShuffledRows(open_source(params, spec, options), params, seed_of(request)))
        encoders.append(fitted(encoder_for(spec, options, request), spec.schema, request))
        accounts.append(Account(called(params), request.split.max_rejected))
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


def count_steps(config: RunConfig, loader: Loader) -> int:
    """``max_steps``, or the steps in ``num_train_epochs``. Those of files that are streamed are found by going through
    them once; what would have to be fetched from the Hub for that is not.
    """
    if config.training.max_steps > 0:
        return config.training.max_steps
    if isinstance(loader, StreamedLoader):
        places = [place for stream in loader.mixture.streams for place in getattr(stream.source, "revisions", {})]
        if any(place.startswith("hf://") for place in places):
            raise UsageError(
                "training.max_steps: how many steps an epoch has is not known of data that is streamed from the Hub "
                "without fetching all of it; say how many steps to train"
            )
        logger.info("data.train is streamed and training.max_steps not set: its steps are counted in one pass over it")
    return loader.count_steps(config.training.num_train_epochs)


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
            files[str(path)] = hash_ends(path) if streamed else cache.file_hash(path)
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
    """What is known of the data so far: the size of what is in memory, and what became of each dataset's rows."""
    size = {"streamed": True} if isinstance(loader, StreamedLoader) else asdict(loader.counts)
    return {**size, "datasets": [account.to_plain() for account in loader.accounts]}
