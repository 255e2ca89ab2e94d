"""``generation``: how text is sampled from a model."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from graftwork.config.base import Neutral, Params


class GenerationParams(Params):
    """How completions are generated."""

    max_new_tokens: int = Field(1024, ge=1, description="Stop after this many new tokens.")
    batch_size: int = Field(1, ge=1, description="Prompts generated together.")
    temperature: float = Field(0.0, ge=0, description="0 takes the likeliest token each time.")
    use_sampling: bool | None = Field(None, description="Sample; default: where the temperature is not 0.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample among the likeliest tokens of this total share.")
    top_k: int | None = Field(None, ge=1, description="Sample among this many likeliest tokens.")
    min_p: float = Field(0.0, ge=0, le=1, description="Least probability, relative to the likeliest token's.")
    repetition_penalty: float = Field(1.0, gt=0, description="Above 1 makes repeated tokens less likely.")
    num_beams: int = Field(1, ge=1, description="Width of the beam search.")
    seed: int | None = Field(None, ge=0, description="Seed of the sampling.")
    stop_strings: list[str] | None = Field(None, description="Texts that end a completion.")
    stop_token_ids: list[int] | None = Field(None, description="Token ids that end a completion.")
    skip_special_tokens: bool = Field(True, description="Leave special tokens out of the text.")
    exclude_prompt_from_response: bool = Field(True, description="Return the completion without its prompt.")
    use_cache: bool = Field(True, description="Keep keys and values of earlier tokens.")
    frequency_penalty: Annotated[Any, Neutral(0.0, 0, None, instead="use repetition_penalty")] = Field(
        0.0, description="Oumi's; only 0."
    )
    presence_penalty: Annotated[Any, Neutral(0.0, 0, None, instead="use repetition_penalty")] = Field(
        0.0, description="Oumi's; only 0."
    )
    logit_bias: Annotated[Any, Neutral({}, None, instead="remove it")] = Field(
        default_factory=dict, description="Oumi's; only empty."
    )
    guided_decoding: Annotated[Any, Neutral(None, instead="remove it")] = Field(None, description="Oumi's; only null.")
