"""A transformers model against an independently written forward pass, logit for logit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformers import PretrainedConfig

    Reference = Callable[[Mapping[str, torch.Tensor], Any, torch.Tensor], torch.Tensor]


def logits_comparison(
    reference: Reference,
    config: PretrainedConfig,
    *,
    input_ids: torch.Tensor | None = None,
    auto_class: Any = AutoModelForCausalLM,
    attn_implementation: str = "eager",
    tolerance: float = 1e-5,
) -> Callable[[PretrainedConfig, PretrainedConfig], None]:
    """``compare(built, described)`` for :func:`~graftwork.testing.assert_every_number_matters`.

    ``reference(weights, config, input_ids)`` gives float32 logits by transformers' names of the weights; a tied
    head is not among them. The weights are random and fit ``config``. By default there are two rows of 24 tokens.
    """
    if input_ids is None:
        input_ids = torch.arange(48).view(2, 24) * 37 % config.vocab_size
    weights = random_weights(config, auto_class)

    def compare(built: PretrainedConfig, described: PretrainedConfig) -> None:
        model = auto_class.from_config(built, attn_implementation=attn_implementation).eval()
        _fill(model, weights)
        with torch.no_grad():
            found, expected = model(input_ids).logits, reference(weights, described, input_ids)
        size = max(1.0, float(expected.abs().max()))  # float32 rounds to a part of the largest logit
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * size)

    return compare


def random_weights(config: PretrainedConfig, auto_class: Any = AutoModelForCausalLM) -> dict[str, torch.Tensor]:
    """Weights for a model of ``config``: so large that it is far from linear, gains and biases too; the same always.

    A head that is tied to the embedding is left out, as in a checkpoint.
    """
    generator = torch.Generator().manual_seed(0)
    model = auto_class.from_config(config)
    return {
        name: torch.randn(weight.shape, generator=generator) * 0.2 + float(weight.dim() == 1 and "bias" not in name)
        for name, weight in model.state_dict().items()
        if name not in (model.all_tied_weights_keys or {})
    }


def _fill(model: Any, weights: Mapping[str, torch.Tensor]) -> None:
    missing, unexpected = model.load_state_dict(weights, strict=False)
    missing = [name for name in missing if name not in (model.all_tied_weights_keys or {})]
    if missing or unexpected:
        raise RuntimeError(f"the weights are not those of this model: missing {missing}, unexpected {unexpected}")
