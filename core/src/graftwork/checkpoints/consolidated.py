"""What Meta's and Mistral's files have in common: the names in ``consolidated.*`` and the numbers in ``params.json``.

A family whose published files are of this kind makes its key map with :func:`consolidated_map` and says what is its
own. Sources: the ModelArgs and Transformer of github.com/meta-llama/llama-models (models/llama3), the TransformerArgs
of github.com/mistralai/mistral-inference. Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from graftwork.checkpoints.keymap import KeyMap, Rule
from graftwork.errors import ModelError

if TYPE_CHECKING:
    from graftwork.specs import Preset

Values = Mapping[str, Any]
Layout = Literal["meta", "mistral"]

_LAYER, _THEIR_LAYER = "model.layers.{}.", "layers.{}."
SCALED_ROPE: Values = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""``use_scaled_rope``: the constants of apply_scaling in llama-models, models/llama3/model.py."""

_SHAPE = frozenset(
    {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"}
)
_MULTIPLES = (256, 4096, 1024, 512, 2048, 128, 64, 32, 16, 8, 4, 2, 1)


def consolidated_map(
    *,
    layout: Layout,
    model_type: str,
    fields: Mapping[str, str] | None = None,
    embedding_split: int | Callable[[Values], int] = 0,
    experts: bool = False,
    presets: Sequence[Preset] = (),
    released: bool = True,
) -> KeyMap:
    """The key map of a decoder whose files are ``consolidated.*`` beside ``params.json``.

    ``layout`` is the dialect of ``params.json``: Meta derives the width of the feed-forward layer (``multiple_of``),
    Mistral states it. ``fields`` are what a family has beyond the shared numbers: the key of ``config.json`` and
    where ``params.json`` says it (``{"num_local_experts": "moe.num_experts"}``); unsaid is None. ``embedding_split``
    is the dimension along which model-parallel files split the embeddings (a function of the configuration where
    sizes differ in it). ``experts`` adds Mixtral's mixture. What ``params.json`` leaves unsaid (token ids, tied
    weights, the length, by how much frequencies are stretched) comes from the one of ``presets`` with these numbers.
    Where nothing of the kind is ``released``, no ``params.json`` is taken for one unasked.
    """
    more = fields or {}

    def config_of(params: Values) -> dict[str, Any]:
        values = shared_config(params)
        own = {ours: _at(params, theirs) for ours, theirs in more.items()}
        return {"model_type": model_type, **values, **unsaid(presets, values, params), **own}

    def params_of(config: Values) -> dict[str, Any]:
        values = shared_params(config, layout)
        for ours, theirs in more.items():
            if config[ours] is not None:
                _put(values, theirs, config[ours])
        return values | _lost(config_of(values), config)

    return KeyMap(
        rules=consolidated_rules(embedding_split=embedding_split, experts=experts),
        to_config=config_of,
        to_params=params_of,
        derived=("rope.freqs", "layers.{}.attention.inner_attention.rope.freqs"),
        tied=("output.weight", "tok_embeddings.weight"),
        writes_tied_head=layout == "meta",
        fits=lambda params: released and states_width(params) == (layout == "mistral") and ("moe" in params) == experts,
    )


def consolidated_rules(*, embedding_split: int | Callable[[Values], int], experts: bool) -> tuple[Rule, ...]:
    """The names, in the order of the transformers model."""
    heads, groups = "num_attention_heads", "num_key_value_heads"
    layer = (
        _in_layer("attention.wq.weight", "self_attn.q_proj.weight", split=0, rope_heads=heads),
        _in_layer("attention.wk.weight", "self_attn.k_proj.weight", split=0, rope_heads=groups),
        _in_layer("attention.wv.weight", "self_attn.v_proj.weight", split=0),
        _in_layer("attention.wo.weight", "self_attn.o_proj.weight", split=1),
        _in_layer("feed_forward.w1.weight", "mlp.gate_proj.weight", split=0),
        _in_layer("feed_forward.w3.weight", "mlp.up_proj.weight", split=0),
        _in_layer("feed_forward.w2.weight", "mlp.down_proj.weight", split=1),
        *(_EXPERTS if experts else ()),
        _in_layer("attention_norm.weight", "input_layernorm.weight"),
        _in_layer("ffn_norm.weight", "post_attention_layernorm.weight"),
    )
    return (
        Rule(theirs="tok_embeddings.weight", hf="model.embed_tokens.weight", split=embedding_split),
        *layer,
        Rule(theirs="norm.weight", hf="model.norm.weight"),
        Rule(theirs="output.weight", hf="lm_head.weight", split=0),
    )


def _in_layer(theirs: str, hf: str, *, split: int | None = None, rope_heads: str | None = None) -> Rule:
    return Rule(theirs=_THEIR_LAYER + theirs, hf=_LAYER + hf, split=split, rope_heads=rope_heads)


_EXPERTS = (
    _in_layer("feed_forward.gate.weight", "block_sparse_moe.gate.weight"),
    _in_layer("feed_forward.experts.{}.w1.weight", "block_sparse_moe.experts.{}.w1.weight", split=0),
    _in_layer("feed_forward.experts.{}.w2.weight", "block_sparse_moe.experts.{}.w2.weight", split=1),
    _in_layer("feed_forward.experts.{}.w3.weight", "block_sparse_moe.experts.{}.w3.weight", split=0),
)


# params.json


def states_width(params: Values) -> bool:
    """Whether ``params.json`` states the width of the feed-forward layer, as Mistral's do and Meta's do not."""
    return "hidden_dim" in params


def shared_config(params: Values) -> dict[str, Any]:
    """The values of ``config.json`` that both dialects say. Raises :class:`ModelError` for what is missing."""
    if lacking := [key for key in ("dim", "n_layers", "n_heads") if key not in params]:
        raise ModelError(f"params.json: {', '.join(lacking)} is not in it, so the architecture is unknown")
    values = {
        "hidden_size": params["dim"],
        "intermediate_size": params.get("hidden_dim") or _width(params),
        "num_hidden_layers": params["n_layers"],
        "num_attention_heads": params["n_heads"],
        "num_key_value_heads": params.get("n_kv_heads") or params["n_heads"],
        "head_dim": params.get("head_dim") or params["dim"] // params["n_heads"],
        "rms_norm_eps": params.get("norm_eps", 1e-5),
        "rope_parameters": {"rope_type": "default", "rope_theta": _rope_theta(params)},
        "tie_word_embeddings": bool(params.get("tied_embeddings", False)),
    }
    if params.get("use_scaled_rope"):
        values["rope_parameters"] |= {**SCALED_ROPE, **params.get("rope_scaling", {})}
    if "max_seq_len" in params:
        values["max_position_embeddings"] = params["max_seq_len"]
    return values | ({"vocab_size": params["vocab_size"]} if params.get("vocab_size", -1) > 0 else {})


def unsaid(presets: Sequence[Preset], stated: Values, params: Values) -> dict[str, Any]:
    """What the preset with the numbers of ``params.json`` knows beyond it; nothing where there is no such preset.

    Meta's files say that frequencies are stretched and not by how much: 8 in Llama 3.1, 32 in Llama 3.2.
    """
    for preset in presets:
        rope, own = preset.values["rope_parameters"], stated["rope_parameters"]
        numbers = stated.keys() & (_SHAPE | {"vocab_size"})
        same = all(stated[key] == preset.values[key] for key in numbers if key in preset.values)
        if same and all(rope[key] == own[key] for key in ("rope_theta", "rope_type")):
            said = {*_SHAPE, "vocab_size", "rms_norm_eps"}
            said |= {"rope_parameters"} if "rope_scaling" in params else set()
            said |= {"max_position_embeddings"} if "max_seq_len" in params else set()
            said |= {"tie_word_embeddings"} if "tied_embeddings" in params else set()
            return {key: value for key, value in preset.values.items() if key not in said}
    return {}


def shared_params(config: Values, layout: Layout) -> dict[str, Any]:
    """The values of ``params.json`` for a configuration that has all its keys (``PretrainedConfig.to_dict()``)."""
    heads = config["num_attention_heads"]
    params = {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "n_heads": heads,
        "n_kv_heads": config.get("num_key_value_heads") or heads,
        "vocab_size": config["vocab_size"],
        "norm_eps": config["rms_norm_eps"],
        "rope_theta": float(config["rope_parameters"]["rope_theta"]),
    }
    if layout == "meta":
        width = _width_params(config["hidden_size"], config["intermediate_size"])
        return params | width | _scaled_rope_params(config["rope_parameters"])
    stated = {
        "hidden_dim": config["intermediate_size"],
        "head_dim": config.get("head_dim") or config["hidden_size"] // heads,
    }
    return params | stated | ({"tied_embeddings": True} if config.get("tie_word_embeddings") else {})


def _at(params: Values, path: str) -> Any:
    """The value at a dot path, None where there is none."""
    value: Any = params
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _put(params: dict[str, Any], path: str, value: Any) -> None:
    *parts, last = path.split(".")
    for part in parts:
        params = params.setdefault(part, {})
    params[last] = value


def _scaled_rope_params(rope: Values) -> dict[str, Any]:
    if rope["rope_type"] == "default":
        return {}
    if rope["rope_type"] != SCALED_ROPE["rope_type"]:
        raise ModelError(f"rope_type {rope['rope_type']!r} cannot be said in Meta's params.json")
    return {"use_scaled_rope": True}


def _lost(found: Values, config: Values) -> dict[str, Any]:
    """What has to be said besides, under keys of our own where theirs have none, so that it comes back."""
    more: dict[str, Any] = {}
    length, rope = config.get("max_position_embeddings"), config["rope_parameters"]
    if length is not None and found.get("max_position_embeddings") != length:
        more["max_seq_len"] = length
    if rope["rope_type"] == SCALED_ROPE["rope_type"] and found["rope_parameters"] != rope:
        more["rope_scaling"] = {key: rope[key] for key in SCALED_ROPE if key != "rope_type"}
    if found["tie_word_embeddings"] != config.get("tie_word_embeddings", False):
        more["tied_embeddings"] = config["tie_word_embeddings"]
    return more


def _rope_theta(params: Values) -> float:
    """Unsaid it is 10,000; in mistral-inference, since models have no sliding window, a million."""
    unsaid_theta = 1_000_000.0 if states_width(params) and not params.get("sliding_window") else 10_000.0
    return float(params.get("rope_theta") or unsaid_theta)


def _width(params: Values) -> int:
    return feed_forward_width(params["dim"], params.get("multiple_of", 256), params.get("ffn_dim_multiplier"))


def feed_forward_width(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """Meta's formula (FeedForward.__init__): two thirds of 4 dim, times the multiplier, rounded up."""
    width = int(2 * (4 * dim) / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * -(-width // multiple_of)


def _width_params(dim: int, width: int) -> dict[str, Any]:
    """``multiple_of`` and ``ffn_dim_multiplier`` from which the formula gives ``width``: the plainest there are."""
    multiples = [multiple for multiple in _MULTIPLES if width % multiple == 0]
    for multiple in multiples:
        if feed_forward_width(dim, multiple, None) == width:
            return {"multiple_of": multiple}
    for digits in range(1, 16):
        multiplier = round(width / int(8 * dim / 3), digits)
        for multiple in multiples:
            if feed_forward_width(dim, multiple, multiplier) == width:
                return {"multiple_of": multiple, "ffn_dim_multiplier": multiplier}
    raise ModelError(f"a feed-forward layer of width {width} on {dim} cannot be said in Meta's params.json")
