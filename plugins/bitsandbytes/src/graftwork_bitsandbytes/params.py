"""The options of the two quantizers, taken from the fields of the same names in ``peft``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from graftwork.config.base import Params


class EightBitParams(Params):
    """LLM.int8."""

    llm_int8_skip_modules: list[str] | None = Field(None, description="Modules not quantized, beside the output layer.")


class FourBitParams(EightBitParams):
    """4-bit numbers in blocks of 64, as in QLoRA (arXiv:2305.14314)."""

    bnb_4bit_quant_type: Literal["fp4", "nf4"] = Field("fp4", description="The 4-bit number type.")
    use_bnb_nested_quant: bool = Field(False, description="Quantize the blocks' constants too.")
    bnb_4bit_quant_storage: Literal["uint8", "float16", "bfloat16", "float32"] = Field(
        "uint8", description="Type of the storage."
    )
    bnb_4bit_compute_dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Type of the arithmetic."
    )
