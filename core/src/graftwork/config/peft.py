"""``peft``: the adapter that is trained, and how its base is quantized."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from graftwork.config.base import Params
from graftwork.errors import did_you_mean

_INITS = ("default", "random", "gaussian", "eva", "pissa", "pissa_niter_16", "loftq", "olora", "orthogonal")
_SAVE_MODES = {"adapter_only": "adapter", "adapter_and_base_model": "full"}


class PeftParams(Params):
    """LoRA and its relatives. The section applies where ``training.use_peft`` is true."""

    ALIASES: ClassVar[Mapping[str, str]] = {"peft_save_mode": "save_mode"}

    lora_r: int = Field(8, ge=1, description="Rank of the update.")
    lora_alpha: int | float = Field(8, gt=0, description="The update is scaled by lora_alpha / lora_r.")
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout before the update.")
    lora_target_modules: list[str] | Literal["all-linear"] | None = Field(
        None, description="Roles (attention, mlp), modules (q_proj), or all-linear; default: the family's."
    )
    lora_modules_to_save: list[str] | None = Field(None, description="Modules trained in full and saved.")
    lora_bias: Literal["none", "all", "lora_only"] = Field("none", description="Which biases are trained.")
    lora_init_weights: str = Field("default", description=f"One of {', '.join(_INITS)}.")
    lora_task_type: Literal[
        "CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"
    ] = Field("CAUSAL_LM", description="PEFT's task type.")
    lora_exclude_modules: list[str] | None = Field(None, description="Modules left alone.")
    lora_target_parameters: list[str] | None = Field(None, description="Parameters, for layers without modules.")
    use_dora: bool = Field(False, description="Weight-decomposed LoRA.")
    use_rslora: bool = Field(False, description="Scale by lora_alpha / sqrt(lora_r).")
    q_lora: bool = Field(False, description="Quantize the base model.")
    q_lora_bits: int = Field(4, ge=1, le=16, description="Bits of the quantized base; picks the quantizer.")
    quantizer: str | None = Field(None, description="Name of the quantizer, instead of by bits.")
    quantizer_kwargs: dict[str, Any] = Field(default_factory=dict, description="Options of the quantizer.")
    bnb_4bit_quant_type: Literal["fp4", "nf4"] = Field("fp4", description="bitsandbytes: the 4-bit number type.")
    use_bnb_nested_quant: bool = Field(False, description="bitsandbytes: quantize the constants too.")
    bnb_4bit_quant_storage: str = Field("uint8", description="bitsandbytes: type of the storage.")
    bnb_4bit_compute_dtype: str = Field("float32", description="bitsandbytes: type of the arithmetic.")
    llm_int8_skip_modules: list[str] | None = Field(None, description="bitsandbytes: modules not quantized.")
    save_mode: Literal["adapter", "merged", "full"] = Field(
        "adapter", description="What final/ holds: the adapter, a merged model, or the adapter beside its base model."
    )

    @field_validator("save_mode", mode="before")
    @classmethod
    def _oumis_save_modes(cls, value: Any) -> Any:
        return _SAVE_MODES.get(str(value).casefold(), value)

    @field_validator("lora_target_modules", mode="before")
    @classmethod
    def _list_one_module(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return "all-linear" if value.casefold().replace("_", "-") == "all-linear" else [value]

    @field_validator("lora_init_weights", mode="before")
    @classmethod
    def _known_init(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return "default" if value else "random"
        name = str(value).casefold()
        if name not in _INITS and not re.fullmatch(r"pissa_niter_\d+", name):
            raise PydanticCustomError(
                "unknown_choice", "{hint}", {"hint": f"not a choice; {did_you_mean(name, _INITS)}"}
            )
        return name
