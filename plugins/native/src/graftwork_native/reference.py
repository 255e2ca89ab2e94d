"""What a pair's answers are compared with: how likely they were as training began.

Usually that is computed once, before the first step, and kept in the run's folder: a reference that costs a step
nothing, and that a resumed run finds again. A pair is known by its tokens, so it may turn up in any row of any epoch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel

from graftwork.adapters.fingerprint import fingerprint as weights_fingerprint
from graftwork.adapters.folder import ADAPTER_WEIGHTS, adapter_folder
from graftwork.errors import UsageError
from graftwork.files import write_text
from graftwork.runs.run import explained
from graftwork.sources import locate, resolve
from graftwork_native import precision
from graftwork_native.forward import evaluating
from graftwork_native.model import device_of, load_model
from graftwork_native.trial import plan_forward, with_shared_prompts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from torch import nn

    from graftwork.config import ModelParams, RunConfig
    from graftwork.data.batch import Row
    from graftwork.data.indexed import IndexedLoader
    from graftwork.data.loader import Loader
    from graftwork.training import TrainRequest
    from graftwork_native.dpo import Reference
    from graftwork_native.forward import Forward
    from graftwork_native.params import DpoParams
    from graftwork_native.world import World

logger = logging.getLogger(__name__)

FILE = "reference.json"
SAVED_EVERY_S = 60.0
"""A run that is killed before its first step has lost at most so much of the reference."""


def require_adapter(config: RunConfig, params: DpoParams) -> None:
    """Raises :class:`UsageError` where an adapter is to be switched off and there will be none."""
    if params.reference == "adapter" and not config.training.use_peft:
        raise UsageError(
            "training.trainer_kwargs.reference: adapter needs an adapter to switch off, and this run trains all "
            "weights; set training.use_peft: true, or reference: cached"
        )


def reference_of(
    request: TrainRequest, params: DpoParams, forward: Forward, rows: Iterable[Row], world: World
) -> Reference:
    """The reference that ``params`` ask for; ``rows`` are those that will be asked about."""
    config = request.config
    if params.reference == "adapter":
        start = start_weights(config, forward.model, request.resume_from)
        if start is not None and config.fsdp.shards:
            raise UsageError(
                "training.trainer_kwargs.reference: adapter has to put back what the adapter was at the start, and "
                "fsdp.enable_fsdp cuts it; use reference: cached"
            )
        return AdapterReference(forward, start)
    table = Table.read(request.run.folder / FILE, fingerprint(config, forward))
    fresh, again = request.resume_from is None, partial(forward_at_start, config, params.layout)
    fill(table, rows, lambda: forward if fresh else again(), world)
    return CachedReference(table, again)


def rows_ahead(loader: Loader, validation: IndexedLoader | None, steps: int) -> Iterator[Row]:
    """The rows of the next ``steps`` steps and of an evaluation, each pair at least once; the loader stays in place."""
    state = loader.state_dict()
    seen: set[str] = set()
    for rows in islice(loader.steps(), steps):
        for row in rows:
            if not seen.issuperset(keys := keys_of(row)):
                seen.update(keys)
                yield row
    loader.load_state_dict(state)
    if validation is not None:
        yield from validation.rows()


# Computed once


@dataclass(slots=True)
class Table:
    """The log-probabilities of the chosen and the rejected answer, by pair. ``made_with`` is the model's."""

    path: Path
    made_with: str
    log_probs: dict[str, list[float]]

    @classmethod
    def read(cls, path: Path, made_with: str) -> Table:
        """The table in a file; an empty one where there is none, or one of another model or one that is cut off."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["made_with"] == made_with:
                return cls(path, made_with, dict(found["log_probs"]))
            logger.warning("%s: the model was another one, or its weights were; the reference is computed anew", path)
            return cls(path, made_with, {})
        except (OSError, ValueError, KeyError, TypeError):
            return cls(path, made_with, {})

    def has(self, row: Row) -> bool:
        """Whether every pair of the row is in it."""
        return all(key in self.log_probs for key in keys_of(row))

    def add(self, row: Row, forward: Forward) -> None:
        """Computes the row's pairs."""
        self.log_probs |= zip(keys_of(row), measured(forward, row).tolist(), strict=True)

    def of(self, row: Row) -> torch.Tensor:
        """[P, 2] float32."""
        return torch.tensor([self.log_probs[key] for key in keys_of(row)])

    def write(self) -> None:
        """The file is the old one or the new one."""
        with explained(self.path):
            write_text(self.path, json.dumps({"made_with": self.made_with, "log_probs": self.log_probs}))


@dataclass(frozen=True, slots=True)
class CachedReference:
    """A reference that is looked up. ``start`` makes the model as it was before the first step."""

    table: Table
    start: Callable[[], Forward]

    def __call__(self, row: Row) -> torch.Tensor:
        if not self.table.has(row):
            # Batches that are left out (training.nonfinite_loss: skip) lead beyond the rows that were counted on.
            logger.info("reference: %s, which no step was to reach, with the model of the start", ", ".join(row.wheres))
            self.table.add(row, self.start())
        return self.table.of(row)


def fill(table: Table, rows: Iterable[Row], start: Callable[[], Forward], world: World) -> None:
    """Computes what is missing, with the model that ``start`` gives, which is asked for where something is.

    Of several processes each computes its share, and all get all.
    """
    begin = saved = time.perf_counter()
    forward, pairs = None, 0
    for row in islice(rows, world.rank, None, world.size):
        if table.has(row):
            continue
        forward = forward or start()
        table.add(row, forward)
        pairs += len(row.pairs or ())
        if world.is_main and time.perf_counter() - saved > SAVED_EVERY_S:
            table.write()
            saved = time.perf_counter()
    for share in world.told(world.collected(table.log_probs)):
        table.log_probs |= share
    if world.any(pairs > 0):
        world.by_main(table.write)
        seconds = time.perf_counter() - begin
        logger.info("reference: %s pairs in %.1f s, once; kept in %s", f"{len(table.log_probs):,}", seconds, table.path)


def measured(forward: Forward, row: Row) -> torch.Tensor:
    """What :meth:`Forward.log_probs` gives without dropout, [P, 2] float32."""
    with evaluating(forward.model):
        return forward.log_probs(row)


def keys_of(row: Row) -> list[str]:
    """Each pair's name, made of its tokens and of where its answers begin."""
    assert row.pairs is not None
    pieces = row.input_ids[0].split(row.segment_lengths)
    return [
        hashlib.blake2b(piece.numpy().tobytes() + str(parts).encode(), digest_size=16).hexdigest()
        for piece, parts in zip(pieces, row.pairs, strict=True)
    ]


def fingerprint(config: RunConfig, forward: Forward) -> str:
    """Of everything that says how a model is made and computed before its first step, its files' content with it."""
    sections = [config.model.model_dump(mode="json"), config.training.use_peft, config.training.seed]
    sections += [config.peft.model_dump(mode="json"), str(forward.autocast_dtype), fingerprints_of(config.model)]
    return hashlib.blake2b(json.dumps(sections, sort_keys=True).encode(), digest_size=16).hexdigest()


def fingerprints_of(params: ModelParams) -> list[str]:
    """Of the weights that a model begins with, and of its adapter's; none of fresh ones, which the seed makes.

    The base is looked for by its name: of a run that goes on, the model at hand lies in a checkpoint.
    """
    files = [adapter_folder(params.adapter_model) / ADAPTER_WEIGHTS] if params.adapter_model else []
    source = resolve(params.model_name, revision=params.model_revision)
    if params.load_pretrained_weights and source.kind != "preset":
        files.append(locate(source, trust_remote_code=params.trust_remote_code))
    return [weights_fingerprint(file) for file in files]


def forward_at_start(config: RunConfig, layout: Any) -> Forward:
    """The model as it was before the first step, for rows that have no reference yet when steps have been taken."""
    with torch.random.fork_rng():
        # A base with fresh weights lies in no checkpoint: it is drawn again, as at the start
        torch.manual_seed(config.training.seed)
        model, _ = load_model(config, None)
        return with_shared_prompts(plan_forward(model, precision.autocast_dtype(config, device_of(model)), layout))


# Computed at every step


@dataclass(frozen=True, slots=True)
class AdapterReference:
    """The model with its adapter switched off; or, where that is not what it was, with ``start`` in its place."""

    forward: Forward
    start: dict[str, torch.Tensor] | None

    def __call__(self, row: Row) -> torch.Tensor:
        model: Any = getattr(self.forward.model, "_orig_mod", self.forward.model)
        with model.disable_adapter() if self.start is None else swapped(model, self.start):
            return measured(self.forward, row)


def start_weights(config: RunConfig, model: nn.Module, checkpoint: Path | None) -> dict[str, torch.Tensor] | None:
    """What the adapter held before the first step; None where it changed nothing then, so that it can be left out."""
    if config.model.adapter_model is None and config.peft.lora_init_weights == "default":
        return None
    if checkpoint is not None:
        torch.manual_seed(config.training.seed)
        model, _ = load_model(config, None)
    assert isinstance(model, PeftModel)
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


@contextmanager
def swapped(model: nn.Module, weights: dict[str, torch.Tensor]) -> Iterator[None]:
    """Within the block the model has these weights."""
    own = {name: parameter for name, parameter in model.named_parameters() if name in weights}
    now = {name: parameter.data for name, parameter in own.items()}
    try:
        for name, parameter in own.items():
            parameter.data = weights[name]
        yield
    finally:
        for name, parameter in own.items():
            parameter.data = now[name]
