"""``model``: which model, in which precision, with which tokenizer and template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from graftwork.config.base import Neutral, Params
from graftwork.config.peft import PeftParams

_DTYPES = {
    "auto": "auto",
    **dict.fromkeys(("float32", "f32", "fp32", "float"), "float32"),
    **dict.fromkeys(("bfloat16", "bf16"), "bfloat16"),
    **dict.fromkeys(("float16", "f16", "fp16", "half"), "float16"),
}


def normalise_dtype(value: Any) -> Any:
    """``bf16``, ``torch.bfloat16`` (also the object itself), ``Half``, ... as the name that torch gives it."""
    text = str(value).removeprefix("torch.").casefold()
    return _DTYPES.get(text, value)


class ModelParams(Params):
    """Which model, and how it is loaded."""

    ALIASES: ClassVar[Mapping[str, str]] = {"torch_dtype_str": "torch_dtype", "dtype": "torch_dtype"}

    model_name: str = Field(min_length=1, description="A folder, a Hub id (org/name), a preset or a registered model.")
    adapter_model: str | None = Field(None, description="Folder or Hub id of a trained PEFT adapter to load.")
    tokenizer_name: str | None = Field(None, description="Where the tokenizer comes from, if not from the model.")
    tokenizer_pad_token: str | None = Field(None, description="The padding token; never a trained one.")
    tokenizer_kwargs: dict[str, Any] = Field(default_factory=dict, description="Passed to the tokenizer.")
    added_tokens: list[str] = Field(
        default_factory=list,
        description="Special tokens to add; their rows in the embeddings are trained, beside a LoRA too.",
    )
    tokenizer_impl: str | None = Field(None, description="Which reader of tokenizer files; default: by the files.")
    model_max_length: int | None = Field(None, gt=0, description="Longest sequence in tokens; default: the model's.")
    load_pretrained_weights: bool = Field(True, description="False builds the architecture with fresh weights.")
    trust_remote_code: bool = Field(False, description="Run Python code that comes with the model. Off by default.")
    torch_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of the weights; auto is the checkpoint's."
    )
    compile: bool = Field(False, description="Run the model through torch.compile.")
    chat_template: str | None = Field(None, description="Name of a chat template, or path of a Jinja file.")
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, description="Variables of the chat template.")
    attn_implementation: str | None = Field(None, description="eager, sdpa, flash_attention_2, flex_attention.")
    device_map: str | dict[str, Any] | None = Field("auto", description="Where the layers go; auto decides.")
    model_kwargs: dict[str, Any] = Field(default_factory=dict, description="Passed to the model's configuration.")
    freeze_layers: list[str] = Field(default_factory=list, description="Modules (dotted paths) not to train.")
    family: str | None = Field(None, description="Name of the model family; default: the one that claims the model.")
    model_revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    peft_params: PeftParams | None = Field(None, description="The same as the section peft.")
    enable_liger_kernel: Annotated[
        Any, Neutral(False, None, instead="remove it: the native trainer computes logits only at labels anyway")
    ] = Field(False, description="Oumi's; only false.")
    shard_for_eval: Annotated[Any, Neutral(False, None, instead="remove it and use device_map")] = Field(
        False, description="Oumi's; only false."
    )
    processor_kwargs: Annotated[Any, Neutral({}, None, instead="remove it: no installed plugin has processors")] = (
        Field(default_factory=dict, description="Oumi's; only empty.")
    )
    tool_call_parser: Annotated[Any, Neutral(None, instead="remove it")] = Field(None, description="Oumi's; only null.")

    @field_validator("torch_dtype", mode="before")
    @classmethod
    def _name_dtype(cls, value: Any) -> Any:
        return normalise_dtype(value)

    @field_validator("chat_template", mode="after")
    @classmethod
    def _auto_is_the_tokenizers(cls, value: str | None) -> str | None:
        return None if value is not None and value.casefold() == "auto" else value
