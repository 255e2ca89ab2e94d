"""Linear layers in 8 or 4 bits: while a checkpoint loads, or from weights that are there."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Self

import torch
from bitsandbytes import nn as bnb
from torch import nn
from transformers import BitsAndBytesConfig

from graftwork_bitsandbytes.params import FourBitParams
from graftwork_bitsandbytes.pieces import use_pieces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from graftwork_bitsandbytes.params import EightBitParams

# At every call of every 8-bit layer it says that the input is cast to float16, which is what LLM.int8 does.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)


# Input columns with values above it are multiplied in full precision: LLM.int8 (arXiv:2208.07339), section 3.2.
_OUTLIER_THRESHOLD = 6.0


def config_of(params: EightBitParams) -> BitsAndBytesConfig:
    """What ``from_pretrained`` takes, to quantize each tensor as it is read."""
    use_pieces()
    skip = params.llm_int8_skip_modules
    if not isinstance(params, FourBitParams):
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=_OUTLIER_THRESHOLD, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=params.bnb_4bit_quant_type,
        bnb_4bit_use_double_quant=params.use_bnb_nested_quant,
        bnb_4bit_quant_storage=params.bnb_4bit_quant_storage,
        bnb_4bit_compute_dtype=params.bnb_4bit_compute_dtype,
        llm_int8_skip_modules=skip,
    )


def quantize(model: Any, params: EightBitParams) -> Any:
    """``model`` with its linear layers quantized, except the output layer and those to be skipped.

    Layers that are quantized already are left as they are. Weights on the meta device stay there.
    """
    use_pieces()
    for parent, name, layer in list(_linears(model, params)):
        made = _four_bit(layer, params) if isinstance(params, FourBitParams) else _eight_bit(layer)
        setattr(parent, name, made.train(layer.training))
    kind = "4bit" if isinstance(params, FourBitParams) else "8bit"
    setattr(model, f"is_loaded_in_{kind}", True)  # what PEFT chooses its LoRA layers by
    never_pack(model)
    compute_alike(model)
    return model


def never_pack(model: nn.Module) -> None:
    """Keeps the 4-bit weights in the layout that the backward pass reads.

    On a CPU with AVX512-BF16 the first evaluation forward of a ``Linear4bit`` packs its weights for a faster kernel
    (bitsandbytes 0.50, ``Linear4bit.forward``), and its backward pass then reads the packed bytes as if they were
    not: the gradients of everything before the layer are wrong, without an error.
    """
    for module in model.modules():
        if isinstance(module, bnb.Linear4bit):
            module.support_avx512bf16_for_cpu = False


class Linear8bit(bnb.Linear8bitLt):  # type: ignore[misc]  # bitsandbytes is not typed
    """An 8-bit layer that computes in evaluation as it does in training.

    On a CPU bitsandbytes 0.50 multiplies by the dequantized weights in training (``autograd/_functions.py``,
    ``matmul``) and rounds the inputs to 8 bits as well in evaluation: another loss for the same weights, and a DPO
    reference that its own model did not agree with before the first step. On a GPU there is no difference.
    """

    def train(self, mode: bool = True) -> Self:
        super().train(True)  # whatever is asked for
        return self


def compute_alike(model: nn.Module) -> None:
    """Makes every 8-bit layer a :class:`Linear8bit`."""
    for module in model.modules():
        if type(module) is bnb.Linear8bitLt:
            module.__class__ = Linear8bit
            module.train()


def _linears(model: Any, params: EightBitParams) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    decoder = getattr(model, getattr(model, "base_model_prefix", "") or " ", None)
    skip = set(params.llm_int8_skip_modules or ())
    for path, parent in model.named_modules():
        for name, layer in parent.named_children():
            full = f"{path}.{name}" if path else name
            head = layer is output or (parent is model and decoder is not None)  # a classifier's too
            if type(layer) is nn.Linear and not head and not _named(full, skip):
                yield parent, name, layer


def _named(path: str, names: set[str]) -> bool:
    """Whether ``path`` ends in one of ``names``, by whole parts."""
    return any(path == name or path.endswith(f".{name}") for name in names)


def _four_bit(layer: nn.Linear, params: FourBitParams) -> bnb.Linear4bit:
    options = {
        "compress_statistics": params.use_bnb_nested_quant,
        "quant_type": params.bnb_4bit_quant_type,
        "quant_storage": getattr(torch, params.bnb_4bit_quant_storage),
    }
    compute = getattr(torch, params.bnb_4bit_compute_dtype)
    made = bnb.Linear4bit(
        layer.in_features, layer.out_features, layer.bias is not None, compute, device="meta", **options
    )
    weight = bnb.Params4bit(layer.weight.data, requires_grad=False, module=made, **options)
    made.weight = weight.to(layer.weight.device)  # this quantizes
    made.bias = layer.bias
    return made


def _eight_bit(layer: nn.Linear) -> bnb.Linear8bitLt:
    made = bnb.Linear8bitLt(
        layer.in_features,
        layer.out_features,
        layer.bias is not None,
        has_fp16_weights=False,
        threshold=_OUTLIER_THRESHOLD,
        device="meta",
    )
    weight = bnb.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    made.weight = weight.to(layer.weight.device)  # this quantizes
    made.bias = layer.bias
    return made
