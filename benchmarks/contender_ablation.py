"""One measurement of the native trainer with something taken away, or under a profiler: prints one line of JSON.

What has a switch is switched off, else a function of the trainer is replaced in this process. The product has no
switches for it.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from contender_graftwork import WARM_UP
from contender_graftwork import main as train

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

FULL, NOTHING_LEFT, PROFILE = "nothing: the full trainer", "all of these", "profile"


@dataclass(frozen=True)
class Without:
    """How one thing is taken away: by replacing functions, by settings of the run, or both."""

    replace: Callable[[], None] = lambda: None
    settings: dict[str, Any] = field(default_factory=dict)


def swap(owner: Any, name: str, new: Any) -> Any:
    """Puts ``new`` into the place of what is called so, and gives that: a name that is gone would take nothing away."""
    old = getattr(owner, name)
    setattr(owner, name, new)
    return old


def freed_memory_goes() -> None:
    """Every option of the heap stays as glibc has it; with another one `lasting` would set the threshold as well."""
    from graftwork_native import memory

    swap(memory, "set_option", lambda option, value: None)


def all_labels_at_once() -> None:
    """The model makes its logits itself, at the labels; autograd makes the softmax's gradient."""
    from graftwork_native import setup

    plan = swap(setup, "plan_forward", lambda *arguments: replace(plan(*arguments), fused_head=False))


def every_token() -> None:
    """As a loop over transformers does it: logits of all tokens, of which the loss takes those of the labels."""
    from graftwork_native.forward import Forward

    def logits(self: Forward, inputs: dict[str, Any], places: torch.Tensor) -> torch.Tensor:
        with self.autocast():
            made: torch.Tensor = self.model(**inputs).logits
        return made.flatten(0, 1)[places]

    all_labels_at_once()
    swap(Forward, "logits", logits)


def flash_kernel() -> None:
    """PyTorch's kernel for segments of every length."""
    from graftwork_native import attention

    swap(attention, "MATMUL_LIMIT", 0)


def every_key() -> None:
    """The queries of a segment all at once, with every key of it."""
    from graftwork_native import products
    from graftwork_native.attention import MATMUL_LIMIT

    swap(products, "PIECE_QUERIES", MATMUL_LIMIT)


def softmax_in_passes() -> None:
    """The same gradient composed of PyTorch's functions, each into a tensor of its own."""
    import torch

    from graftwork_native import loss

    def softmax_grad_(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        rows = torch.arange(len(labels))
        log_probs = torch.log_softmax(logits, dim=1)
        gradient = log_probs.exp()
        gradient[rows, labels] -= 1.0
        logits.set_(gradient)  # no pass: a pointer
        return -log_probs[rows, labels]

    swap(loss, "softmax_grad_", softmax_grad_)


def whole_pieces() -> None:
    """The float32 logits of a piece are all there at once, and each pass over them goes to memory."""
    from graftwork_native import loss

    swap(loss, "BLOCK_BYTES", loss.PIECE_BYTES)


def gradients_are_made_anew() -> None:
    """Those of embedding and head, by autograd."""
    from graftwork_native import setup

    swap(setup, "keeps_gradients", lambda config: False)


TAKEN: dict[str, Without] = {
    "freed memory is kept": Without(freed_memory_goes),
    "one row of segments": Without(settings={"trainer_kwargs": {"layout": "padded"}}),
    "two products for attention": Without(flash_kernel),
    "keys that nobody sees left out": Without(every_key),
    "logits in pieces": Without(all_labels_at_once),
    "logits at labels only": Without(every_token),
    "softmax in one pass": Without(softmax_in_passes),
    "blocks that a cache holds": Without(whole_pieces),
    "gradients that stay": Without(gradients_are_made_anew),
    "bfloat16 products": Without(settings={"mixed_precision_dtype": "none"}),
}
"""What is taken away. Without pieces there is no softmax in one pass or in blocks either, and no gradient of the head
that stays."""
ADDED: dict[str, Without] = {"torch.compile": Without(settings={"compile": True})}
"""What was tried and is not the default."""


def main(model: str, data: str, steps: int, name: str) -> dict[str, Any]:
    """Trains with ``name`` taken away, or added."""
    if name == PROFILE:
        return profile(model, data, steps)
    settings: dict[str, Any] = {}
    for one in {FULL: (), NOTHING_LEFT: tuple(TAKEN)}.get(name, (name,)):
        changed = (TAKEN | ADDED)[one]
        changed.replace()
        settings |= changed.settings
    return train(model, data, steps, **settings)


HEAD = "HeadLoss"
GROUPS: dict[str, tuple[str, ...]] = {
    "optimizer and clipping": ("_fused_adamw_", "_foreach", "linalg_vector_norm", "Optimizer"),
    "attention": ("bmm", "baddbmm", "_softmax", "repeat"),
    "matrix products": ("mm", "addmm"),
    "casts and copies": ("copy_", "cat", "clone", "contiguous"),
    "norms, activation, rotary, sums": (
        "mul", "add", "silu", "pow", "mean", "rsqrt", "neg", "sum", "sub", "div", "fill", "zero", "index", "embedding",
    ),
}  # fmt: skip
"""Beginnings of the names of PyTorch's operations. The first group that fits has the operation."""
IN_HEAD, IN_HEAD_PRODUCTS, REST = "softmax and loss of the head", "matrix products of the head", "rest: Python, views"


def profile(model: str, data: str, steps: int) -> dict[str, Any]:
    """Seconds of each group in ``steps`` steps after the warm-up, and of all together."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    run = profiler(activities=[ProfilerActivity.CPU])
    measured = train(model, data, steps, after_step=lambda step: run.start() if step == WARM_UP else None)
    run.stop()
    seconds: Counter[str] = Counter()
    for event in run.events():
        seconds[group_of(event)] += event.self_cpu_time_total / 1e6
    # The profiler sees a little more than the steps: then nothing is left for the rest
    seconds[REST] += max(0.0, sum(measured["seconds"]) - seconds.total())
    return {"groups": seconds, "seconds": seconds.total()}


def group_of(event: Any) -> str:
    """Of an operation, by its name, and by whether the head's loss called it."""
    name = event.name.removeprefix("aten::")
    within = event
    while within is not None and within.name != HEAD:
        within = within.cpu_parent
    if within is not None:
        return IN_HEAD_PRODUCTS if name.startswith(("mm", "addmm")) else IN_HEAD
    return next((group for group, starts in GROUPS.items() if name.startswith(starts)), REST)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4])))
