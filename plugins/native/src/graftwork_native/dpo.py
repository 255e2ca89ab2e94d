"""Direct preference optimization: the losses of pairs of answers, and the objective that the loop asks for them.

All of them look at how much more likely an answer has become than it was under the reference. With
c = log p(chosen) - log p_ref(chosen), r likewise for the rejected answer, D = c - r and s the logistic function, the
implicit reward of an answer is beta * c or beta * r (Rafailov et al. 2023, "Direct Preference Optimization", eq. 5).

Shapes: P pairs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from graftwork_native.trial import with_shared_prompts

if TYPE_CHECKING:
    from collections.abc import Callable

    from graftwork.data.batch import Row
    from graftwork_native.forward import Forward
    from graftwork_native.params import DpoParams

    Reference = Callable[[Row], torch.Tensor]

DISCOPOP_TAU = 0.05
"""The temperature that the DiscoPOP paper recommends."""


@dataclass(frozen=True, slots=True)
class Ratios:
    """What the losses are made of: c and r, each [P]; of some losses divided by the number of their answer's labels."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    params: DpoParams

    @property
    def logits(self) -> torch.Tensor:
        """Beta * D."""
        return self.params.beta * (self.chosen - self.rejected)


def sigmoid(ratios: Ratios) -> torch.Tensor:
    """DPO's own (eq. 7); with label smoothing e, a share e of the pairs is taken to be the wrong way round.

    The smoothed form is Mitchell's "A note on DPO with noisy preferences" (2023), eq. 3.
    """
    smoothing, logits = ratios.params.label_smoothing, ratios.logits
    return -(1 - smoothing) * F.logsigmoid(logits) - smoothing * F.logsigmoid(-logits)


def hinge(ratios: Ratios) -> torch.Tensor:
    """Zhao et al. 2023, "SLiC-HF", on D."""
    return torch.relu(1 - ratios.logits)


def ipo(ratios: Ratios) -> torch.Tensor:
    """Azar et al. 2023, "A General Theoretical Paradigm", eq. 17; ``beta`` is its tau. On means over labels."""
    return (ratios.chosen - ratios.rejected - 1 / (2 * ratios.params.beta)) ** 2


def robust(ratios: Ratios) -> torch.Tensor:
    """Chowdhury et al. 2024, "Provably Robust DPO", eq. 7: unbiased where a share of the labels is flipped."""
    smoothing, logits = ratios.params.label_smoothing, ratios.logits
    clean, flipped = F.logsigmoid(logits), F.logsigmoid(-logits)
    return (smoothing * flipped - (1 - smoothing) * clean) / (1 - 2 * smoothing)


def exo_pair(ratios: Ratios) -> torch.Tensor:
    """Ji et al. 2024, "Efficient Exact Optimization", eq. 16: KL of (s(bD), s(-bD)) from (1 - e, e)."""
    logits, smoothing = ratios.logits, ratios.params.label_smoothing
    first, second = F.logsigmoid(logits), F.logsigmoid(-logits)
    return first.exp() * (first - math.log1p(-smoothing)) + second.exp() * (second - math.log(smoothing))


def nca_pair(ratios: Ratios) -> torch.Tensor:
    """Chen et al. 2024, "Noise Contrastive Alignment", for two answers."""
    chosen, rejected = ratios.params.beta * ratios.chosen, ratios.params.beta * ratios.rejected
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco_pair(ratios: Ratios) -> torch.Tensor:
    """Jung et al. 2024, "Binary Classifier Optimization", without its shift of the rewards."""
    return -F.logsigmoid(ratios.params.beta * ratios.chosen) - F.logsigmoid(-ratios.params.beta * ratios.rejected)


def sppo_hard(ratios: Ratios) -> torch.Tensor:
    """Wu et al. 2024, "Self-Play Preference Optimization", eq. 4.7 where the chosen answer always wins."""
    target = 0.5 / ratios.params.beta
    return (ratios.chosen - target) ** 2 + (ratios.rejected + target) ** 2


def apo_zero(ratios: Ratios) -> torch.Tensor:
    """D'Oosterlinck et al. 2024, "Anchored Preference Optimization", eq. 7: chosen answers become likelier."""
    beta = ratios.params.beta
    return 1 - torch.sigmoid(beta * ratios.chosen) + torch.sigmoid(beta * ratios.rejected)


def apo_down(ratios: Ratios) -> torch.Tensor:
    """The same, eq. 8: both answers become less likely, the rejected one more so."""
    return torch.sigmoid(ratios.params.beta * ratios.chosen) + 1 - torch.sigmoid(ratios.logits)


def discopop(ratios: Ratios) -> torch.Tensor:
    """Lu et al. 2024, "Discovering Preference Optimization Algorithms", eq. 5."""
    share = torch.sigmoid(ratios.logits / DISCOPOP_TAU)
    return -F.logsigmoid(ratios.logits) * (1 - share) + torch.exp(-ratios.logits) * share


LOSSES: dict[str, Callable[[Ratios], torch.Tensor]] = {
    "sigmoid": sigmoid,
    "sigmoid_norm": sigmoid,
    "hinge": hinge,
    "ipo": ipo,
    "robust": robust,
    "exo_pair": exo_pair,
    "nca_pair": nca_pair,
    "bco_pair": bco_pair,
    "sppo_hard": sppo_hard,
    "apo_zero": apo_zero,
    "apo_down": apo_down,
    "discopop": discopop,
}
PER_LABEL = ("ipo", "sigmoid_norm")
"""The losses on means over an answer's labels."""


def pair_losses(ratios: torch.Tensor, labels: torch.Tensor, params: DpoParams) -> torch.Tensor:
    """The loss of each pair, [P], of c and r as ``ratios`` [P, 2] and their numbers of ``labels`` [P, 2]."""
    total = torch.zeros(len(ratios), device=ratios.device)
    for name, weight in zip(params.loss_types, params.weights, strict=True):
        of = ratios / labels if params.length_normalized or name in PER_LABEL else ratios
        total = total + weight * LOSSES[name](Ratios(of[:, 0], of[:, 1], params))
    return total


def prepare_for_pairs(forward: Forward, params: DpoParams) -> Forward:
    """The forward for pairs: with shared prompts where they are proved, and without dropout where that is asked for."""
    if params.disable_dropout:
        without_dropout(forward.model)
    return with_shared_prompts(forward)


def without_dropout(model: nn.Module) -> None:
    """Sets every dropout of the model to zero, modules' and attention's."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.__dict__["attention_dropout"] = 0.0


@dataclass(slots=True)
class Dpo:
    """Preference pairs: a sum over pairs. ``reference`` gives what :meth:`Forward.log_probs` gave before training."""

    forward: Forward
    reference: Reference
    params: DpoParams
    _sums: dict[str, torch.Tensor] = field(default_factory=dict)

    def weight(self, row: Row) -> int:
        return len(row.pair_labels or ())

    def loss(self, row: Row, scale: float) -> torch.Tensor:
        reference = self.reference(row).to(self.forward.device)
        log_probs = self.forward.log_probs(row)
        labels = torch.tensor(row.pair_labels, device=log_probs.device)
        self._count(log_probs.detach(), reference)
        return pair_losses(log_probs - reference, labels, self.params).sum() * scale

    def sums(self) -> dict[str, float]:
        """The metrics of TRL's ``DPOTrainer``, under its names."""
        found = {name: float(total) for name, total in self._sums.items()}
        self._sums.clear()
        return found

    def _count(self, log_probs: torch.Tensor, reference: torch.Tensor) -> None:
        rewards = self.params.beta * (log_probs - reference)
        margins = rewards[:, 0] - rewards[:, 1]
        for name, values in {
            "rewards/chosen": rewards[:, 0],
            "rewards/rejected": rewards[:, 1],
            "rewards/accuracies": (margins > 0).float(),
            "rewards/margins": margins,
            "logps/chosen": log_probs[:, 0],
            "logps/rejected": log_probs[:, 1],
        }.items():
            # Left on the device: a number that is asked for at once would stop a GPU's queue.
            self._sums[name] = self._sums.get(name, torch.zeros((), device=values.device)) + values.sum()
