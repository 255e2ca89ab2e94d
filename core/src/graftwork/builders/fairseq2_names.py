"""Configurations under the names that fairseq2's users know, to and from those of transformers.

A family's module makes its own in one statement, from the defaults of its fields::

    LLaMAConfig = config_class("LLaMAConfig", "llama", {"model_dim": 4096, "num_layers": 32, ...}, rms_norm_eps=1e-5)
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field, make_dataclass
from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any

from graftwork.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PretrainedConfig

FIELDS: Mapping[str, str] = {
    "model_dim": "hidden_size",
    "max_seq_len": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "pad_idx": "pad_token_id",
    "tied_embeddings": "tie_word_embeddings",
    "num_layers": "num_hidden_layers",
    "num_attn_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "window_len": "sliding_window",
}
"""fairseq2's field to transformers'. Those of the feed-forward width and of the rotary frequencies have rules."""

WITHOUT_EFFECT = frozenset({"init_std", "init_std_scale", "shard_embed_dim"})
"""How fresh weights are drawn and spread over devices: nothing that a model is."""

RULED = {
    *("ffn_inner_dim", "ffn_inner_dim_scale", "ffn_inner_dim_multiplier", "ffn_inner_dim_multiple_of"),
    *("rope_theta", "use_scaled_rope", "rope_scale", "dropout_p"),
}
"""Fields of which a rule makes transformers' ones."""


@dataclass(kw_only=True)
class RoPEScaleConfig:
    """How rotary frequencies are stretched for a longer context, as in Llama 3.1."""

    factor: float = 8.0
    frequency_factors: tuple[float, float] = (1.0, 4.0)
    original_context_length: int = 8192


class FamilyConfig:
    """What the classes of :func:`config_class` can do; their fields are attributes."""

    model_type: str
    fixed: Mapping[str, Any]

    def to_transformers(self) -> PretrainedConfig:
        """The transformers configuration of this model. Raises :class:`ModelError` for what it cannot have."""
        from transformers import AutoConfig

        values = vars(self)
        if values.get("dropout_p"):
            raise ModelError(
                f"{type(self).__name__}: dropout_p={values['dropout_p']} is between layers, where {self.model_type} "
                "in transformers has none: set it to 0"
            )
        found = {theirs: values[name] for name, theirs in FIELDS.items() if name in values}
        widths = {"intermediate_size": ffn_width(values), "rope_parameters": _rope(values)}
        return AutoConfig.for_model(self.model_type, **{**self.fixed, **values["stated"], **found, **widths})

    @classmethod
    def from_transformers(cls, config: PretrainedConfig) -> Any:
        """This class's view of a transformers configuration; its feed-forward width is stated as it is, and what
        has no field here is kept in ``stated``.

        Raises :class:`ModelError` for another architecture, or for frequencies stretched in another way.
        """
        if config.model_type != cls.model_type:
            raise ModelError(f"{cls.__name__} is of model_type {cls.model_type!r}, and this is {config.model_type!r}")
        rope = config.rope_parameters
        made: Any = cls()
        for name, theirs in FIELDS.items():
            if hasattr(made, name):
                setattr(made, name, getattr(config, theirs))
        made.ffn_inner_dim, made.ffn_inner_dim_scale = config.intermediate_size, 1.0
        made.ffn_inner_dim_multiplier, made.ffn_inner_dim_multiple_of = 1.0, 1
        made.rope_theta, made.use_scaled_rope = rope["rope_theta"], rope["rope_type"] == "llama3"
        if made.use_scaled_rope:
            made.rope_scale = RoPEScaleConfig(
                factor=rope["factor"],
                frequency_factors=(rope["low_freq_factor"], rope["high_freq_factor"]),
                original_context_length=rope["original_max_position_embeddings"],
            )
        elif rope["rope_type"] != "default":
            raise ModelError(f"{cls.__name__} cannot say rope_type {rope['rope_type']!r}")
        said = made.to_transformers().to_dict()
        made.stated = {
            key: value for key, value in config.to_dict().items() if said.get(key) != value and key[0] != "_"
        }
        return made


def config_class(name: str, model_type: str, defaults: Mapping[str, Any], **fixed: Any) -> type[Any]:
    """A dataclass of fairseq2's fields with these ``defaults``; ``fixed`` is what transformers states besides, which
    ``stated`` of one configuration goes over.

    Where there is ``use_scaled_rope`` there is a ``rope_scale`` too, by default Llama 3.1's.
    """
    if "use_scaled_rope" in defaults:
        defaults = {**defaults, "rope_scale": defaults.get("rope_scale", RoPEScaleConfig())}
    known = {*FIELDS, *WITHOUT_EFFECT, *RULED}
    if unknown := defaults.keys() - known:
        raise ValueError(f"{name}: no rule says what {', '.join(sorted(unknown))} is in transformers")
    named = {**defaults, "stated": {}}
    fields = [(key, Any, field(default_factory=partial(deepcopy, value))) for key, value in named.items()]
    doc = f"A {model_type} model by fairseq2's names; ``to_transformers()`` and ``from_transformers(config)``."
    names = {"__doc__": doc, "model_type": model_type, "fixed": fixed}
    return make_dataclass(name, fields, bases=(FamilyConfig,), namespace=names, kw_only=True)


def ffn_width(values: Mapping[str, Any]) -> int:
    """The inner width of the feed-forward layers: multiplied, scaled, and rounded up to a multiple."""
    width = int(values["ffn_inner_dim"] * values.get("ffn_inner_dim_multiplier", 1.0))
    multiple = values.get("ffn_inner_dim_multiple_of", 1)
    return int(multiple * ceil(int(width * values.get("ffn_inner_dim_scale", 1.0)) / multiple))


def _rope(values: Mapping[str, Any]) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": float(values["rope_theta"])}
    if not values.get("use_scaled_rope"):
        return rope
    scale = values["rope_scale"]
    low, high = scale.frequency_factors
    return rope | {
        "rope_type": "llama3",
        "factor": float(scale.factor),
        "low_freq_factor": float(low),
        "high_freq_factor": float(high),
        "original_max_position_embeddings": scale.original_context_length,
    }
