"""The memory of a run before it begins: some of its steps on tensors without memory, counting what is alive.

Nothing is estimated from the architecture's numbers: the model is built on the meta device, its rows, loss, backward
pass and optimizer are the trainer's own, and :mod:`graftwork_native.live` counts. On a CPU comes what is no tensor:
the kernels that oneDNN keeps, what libraries take, and the gaps of glibc's heap. Only these three are measured numbers.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from graftwork.builders.optimizers import parameter_groups
from graftwork.check.forecast import Forecast, ForecastRequest
from graftwork.registry import get_registry
from graftwork.runs.room import saved_bytes, weight_bytes
from graftwork_native import precision
from graftwork_native.attention import NAME, register
from graftwork_native.dpo import Dpo, without_dropout
from graftwork_native.forward import Forward, base_of
from graftwork_native.live import Live
from graftwork_native.masks import own_biases
from graftwork_native.objective import CrossEntropy, Objective
from graftwork_native.params import DpoParams
from graftwork_native.skeleton import materialise, run_device, skeleton
from graftwork_native.trial import head_is_plain, unknown_layers
from graftwork_native.vocabulary import clear_gradients, keeps_gradients, kept_gradients

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pydantic import BaseModel

    from graftwork.config import RunConfig
    from graftwork.data.batch import Row

KERNEL_BYTES = 600_000
"""What oneDNN keeps for one shape of a bfloat16 product on a CPU: two buffers of generated code, and a plan (measured
for nine kinds of products: 552 to 619 KB each; torch 2.13, AVX512)."""
KERNELS = 1024
"""How many it keeps at most (``ONEDNN_PRIMITIVE_CACHE_CAPACITY``)."""

LIBRARY_BYTES = 48 << 20
"""What libraries take beside tensors: code that is read on the way (26 to 35 MiB), and objects (18 to 34 MiB)."""

GAPS, GAPS_OF_ADAPTERS = 0.32, 0.53
"""How much of what comes and goes glibc's heap has in gaps beside it once they grow no more, where all weights are
trained and where an adapter is.

Small blocks of autograd's objects and oneDNN's kernels lie between the large ones that are freed, and the next block
of another row's size does not fit. Fitted to runs of 3, 8 and 20 steps in bfloat16, full, LoRA and QLoRA with SFT and
full with DPO; after 20 steps it was 0.26, 0.42, 0.53 and 0.34.
"""
GAPS_PASSES = 5.0
"""After how many forward passes two thirds of the gaps are there, from the same runs: few at first, as rows of the
first sizes find the room of those before them."""


def forecast(request: ForecastRequest) -> Forecast:
    """The largest memory of the run, by part. Raises what building the model raises."""
    config, device = request.config, run_device(request.config)
    model, dtype = skeleton(config, device)
    with own_biases(), FakeTensorMode(allow_non_fake_inputs=True), torch.device(device):
        trace = Trace(model, request, device)
        trace.run(telling(request.rows))
    parts = trace.parts(request.rows)
    return Forecast(
        device=str(device),
        parts=parts,
        tokens=max(row.num_tokens for row in request.rows),
        checkpoint_bytes=saved_bytes(model, trace.optimizer.state),
        final_bytes=weight_bytes(model, dtype),
        notes=tuple(trace.notes),
    )


def telling(rows: Sequence[Row]) -> list[Row]:
    """The rows to trace: the one with the most tokens, and the one with the largest attention where it is another."""
    longest = max(rows, key=lambda row: (row.num_tokens, row.num_labels))
    widest = max(rows, key=lambda row: sum(length**2 for length in row.segment_lengths))
    return [longest] if widest is longest else [longest, widest]


@dataclass(slots=True)
class Trace:
    """Steps of the run on fake tensors; made and used within a ``FakeTensorMode``."""

    model: Any
    optimizer: torch.optim.Optimizer
    objective: Objective
    live: Live
    config: RunConfig
    params: BaseModel | None
    device: torch.device
    notes: list[str]
    kept: tuple[torch.nn.Parameter, ...]

    def __init__(self, model: Any, request: ForecastRequest, device: torch.device) -> None:
        config = request.config
        self.model, self.config, self.device, self.notes = model, config, device, list(unseen(config))
        self.params = request.params
        base = base_of(model)
        vocabulary = base.get_input_embeddings().weight.shape[0]
        shapes = [parameter.shape for parameter in model.parameters() if parameter.dim() > 1]
        self.live = Live(vocabulary, shapes, KERNEL_BYTES if device.type == "cpu" else 0)
        self.live.part = "weights"
        with self.live:
            materialise(model, config, device)
        forward = planned(model, request, device)
        if keeps_gradients(config):
            forward = replace(forward, kept=kept_gradients(forward))
        self.kept = forward.kept
        self.objective = objective_of(forward, request.params)
        training = config.training
        spec = get_registry().optimizers[training.optimizer]
        self.optimizer = spec.build(parameter_groups(model, training.weight_decay), training.learning_rate, training)

    def run(self, rows: Sequence[Row]) -> None:
        """A step from gradients alone, after which the optimizer has its state, then one over each row. Of several
        rows in a step all but the first find gradients there, and those are the larger.

        A run of one step has that state only when what its rows took is free again.
        """
        once = self.config.training.max_steps == 1
        with self.live:
            if once:
                clear_gradients(self.optimizer, self.kept)
            else:
                self._give_gradients()
                self._step()
            for number, row in enumerate(rows, 1):
                if self.config.training.gradient_accumulation_steps > 1:
                    self._give_gradients()
                self._backward(row)
                if not once or number == len(rows):
                    self._step()

    def _give_gradients(self) -> None:
        """Gradients as a backward pass would leave them."""
        self.live.part = "gradients"
        for parameter in self.model.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)

    def _backward(self, row: Row) -> None:
        self.live.part = "activations"
        loss = self.objective.loss(row, 1.0)
        self.live.part = "temporary"
        loss.backward(torch.ones((), dtype=loss.dtype, device=self.device))
        self.live.rename((parameter.grad for parameter in self.model.parameters()), "gradients")

    def _step(self) -> None:
        try:
            self.optimizer.step()
        except Exception as error:  # an optimizer of somebody's own, whose kernels know no fake tensors
            note = f"the state of {self.config.training.optimizer} is not counted: {type(error).__name__}: {error}"
            self.notes = [*self.notes, note] if note not in self.notes else self.notes
        for state in self.optimizer.state.values():
            self.live.rename(tensors_in(state), "optimizer")
        clear_gradients(self.optimizer, self.kept)

    def parts(self, rows: Sequence[Row]) -> dict[str, int]:
        """The bytes of each part at the largest moment."""
        _, parts = self.live.record.peak()
        if self.device.type == "cpu":
            parts["kernels"] = self._kernels(rows) * KERNEL_BYTES
            passing = sum(parts.values()) - parts.get("weights", 0) - parts.get("optimizer", 0)
            parts["allocator"] = int(gaps(self.config, self.params) * passing) if sys.platform == "linux" else 0
            parts["libraries"] = LIBRARY_BYTES
        return {part: parts[part] for part in ORDER if parts.get(part)}

    def _kernels(self, rows: Sequence[Row]) -> int:
        """How many there are once every row was seen, as the largest may be the last: those of whole rows go by the
        rows' sizes, those of batched products by the segments'.
        """
        products = self.live.products
        of_segments = sum("bmm" in product[0] for product in products)
        traced = telling(rows)
        sizes, seen = ({row.num_tokens for row in some} for some in (rows, traced))
        every = of_segments * len(lengths_of(rows)) / len(lengths_of(traced))
        return int(min(KERNELS, every + (len(products) - of_segments) * len(sizes) / len(seen)))


def gaps(config: RunConfig, params: BaseModel | None) -> float:
    """The share of the gaps after the passes of the run, those for a reference too; of a run by epochs, as of a long
    one.
    """
    training = config.training
    most = GAPS_OF_ADAPTERS if training.use_peft else GAPS
    if training.max_steps <= 0:
        return most
    passes = training.max_steps * training.gradient_accumulation_steps * (2 if isinstance(params, DpoParams) else 1)
    return most * -math.expm1(-((passes / GAPS_PASSES) ** 2))


def lengths_of(rows: Sequence[Row]) -> set[int]:
    """The different lengths of the segments."""
    return {length for row in rows for length in row.segment_lengths}


ORDER = (
    "weights", "gradients", "optimizer", "activations", "copies of weights", "logits", "temporary", "kernels",
    "libraries", "allocator",
)  # fmt: skip


def unseen(config: RunConfig) -> Iterable[str]:
    """What makes a run smaller than it is traced."""
    for name in ("optimizer_in_backward", "activation_offloading"):
        if getattr(config.training, name, False):
            yield f"training.{name} makes it less than is said here, which is the memory without it"
    if config.fsdp.enable_fsdp:
        yield "this is for one process; with fsdp each of N has about 1/N of weights, gradients and optimizer state"


def objective_of(forward: Forward, params: BaseModel | None) -> Objective:
    """What the trainer minimises. The reference's log-probabilities are numbers that were computed before."""
    if not isinstance(params, DpoParams):
        return CrossEntropy(forward)
    if params.disable_dropout:
        without_dropout(forward.model)
    shared = replace(forward, shared_prompts=forward.layout == "segments")
    return Dpo(shared, lambda row: torch.zeros(len(row.pairs or ()), 2), params)


def planned(model: Any, request: ForecastRequest, device: torch.device) -> Forward:
    """How rows go through the model, as far as its structure tells: the trial of the trainer needs weights."""
    base = base_of(model)
    segments = getattr(request.params, "layout", "auto") != "padded" and unknown_layers(base) is None
    if segments:
        register()
        base.set_attn_implementation(NAME)
    capped = getattr(base.config.get_text_config(), "final_logit_softcapping", None) is not None
    fused = head_is_plain(model) and not capped
    autocast = precision.autocast_dtype(request.config, device)
    return Forward(model, device, autocast, "segments" if segments else "padded", fused)


def tensors_in(state: Any) -> Iterable[torch.Tensor]:
    """The tensors of an optimizer's state for one parameter."""
    return [value for value in state.values() if isinstance(value, torch.Tensor)] if isinstance(state, Mapping) else []
