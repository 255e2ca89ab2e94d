"""The published sizes of Gemma 1, 2 and 3 (text), as data.

Numbers: ``config.json`` of the models on the Hub; the address stands above each size. Parameter counts are those of the
published weights, an embedding that is the output layer too counted once.
"""

from __future__ import annotations

from typing import Any

from graftwork.specs import MessageLayout, Preset, decoder_shape

_HUB = "google/gemma-"
_COMMON: dict[str, Any] = {
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}


# --- Gemma 1: scores are divided by the root of head_dim, and there is no window and no cap

_GEMMA = {
    **_COMMON,
    "vocab_size": 256000,
    "max_position_embeddings": 8192,
    # The files say "gelu", which the model's authors declared a slip: the weights are for its tanh approximation
    # (https://github.com/huggingface/transformers/pull/29402).
    "hidden_act": "gelu_pytorch_tanh",
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}

# https://huggingface.co/google/gemma-2b/blob/main/config.json
GEMMA_2B = Preset(
    name="gemma_2b",
    aliases=("gemma-2b",),
    model_type="gemma",
    values={**_GEMMA, **decoder_shape(2048, 16384, 18, 8, 1, 256)},
    num_parameters=2_506_172_416,
    hub_ids=(f"{_HUB}2b", f"{_HUB}2b-it", f"{_HUB}1.1-2b-it"),
    chat_template="gemma-it",
)
# https://huggingface.co/google/gemma-7b/blob/main/config.json
GEMMA_7B = Preset(
    name="gemma_7b",
    aliases=("gemma-7b",),
    model_type="gemma",
    values={**_GEMMA, **decoder_shape(3072, 24576, 28, 16, 16, 256)},
    num_parameters=8_537_680_896,
    hub_ids=(f"{_HUB}7b", f"{_HUB}7b-it", f"{_HUB}1.1-7b-it"),
    chat_template="gemma-it",
)


# --- Gemma 2: every other layer, from the first on, sees a window; scores and logits are capped


def _gemma2(shape: dict[str, int], *, query_scale: int) -> dict[str, Any]:
    return {
        **_COMMON,
        **shape,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "sliding_window": 4096,
        "layer_types": _layers(shape["num_hidden_layers"], every=2),
        "query_pre_attn_scalar": query_scale,
        # Scores at 50, logits at 30: config.json of all three, and litgpt's config.py. torchtune's sized builders
        # have the two swapped, and cap the hidden state instead of the logits.
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    }


def _layers(count: int, every: int) -> list[str]:
    """Each ``every``-th layer sees all that came before, the others a window of it."""
    return ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(count)]


# https://huggingface.co/google/gemma-2-2b/blob/main/config.json
GEMMA2_2B = Preset(
    name="gemma2_2b",
    aliases=("gemma-2-2b",),
    model_type="gemma2",
    values=_gemma2(decoder_shape(2304, 9216, 26, 8, 4, 256), query_scale=256),
    num_parameters=2_614_341_888,
    hub_ids=(f"{_HUB}2-2b", f"{_HUB}2-2b-it"),
    chat_template="gemma-it",
)
# https://huggingface.co/google/gemma-2-9b/blob/main/config.json
GEMMA2_9B = Preset(
    name="gemma2_9b",
    aliases=("gemma-2-9b",),
    model_type="gemma2",
    values=_gemma2(decoder_shape(3584, 14336, 42, 16, 8, 256), query_scale=256),
    num_parameters=9_241_705_984,
    hub_ids=(f"{_HUB}2-9b", f"{_HUB}2-9b-it"),
    chat_template="gemma-it",
)
# https://huggingface.co/google/gemma-2-27b/blob/main/config.json: here scores are divided by the root of the width of
# the model over its heads, 4608 / 32, and not of head_dim.
GEMMA2_27B = Preset(
    name="gemma2_27b",
    aliases=("gemma-2-27b",),
    model_type="gemma2",
    values=_gemma2(decoder_shape(4608, 36864, 46, 32, 16, 128), query_scale=144),
    num_parameters=27_227_128_320,
    hub_ids=(f"{_HUB}2-27b", f"{_HUB}2-27b-it"),
    chat_template="gemma-it",
)


# --- Gemma 3: five layers with a window to one without, each kind with a rope base of its own; queries and keys are
# normalised, and nothing is capped. From 4B on the models see images too: these are their text decoders, which have no
# folder of their own on the Hub. Each count is the published one (4B: 4,300,079,472; 12B: 12,187,325,040; 27B:
# 27,432,406,640) less the 416,866,032 of the vision tower and the 1152 * (width + 1) of the projector.


def _gemma3(
    shape: dict[str, int], *, window: int, length: int, vocabulary: int, query_scale: int, stretched: float | None
) -> dict[str, Any]:
    rope: dict[str, Any] = (
        {"rope_type": "default"} if stretched is None else {"rope_type": "linear", "factor": stretched}
    )
    return {
        **_COMMON,
        **shape,
        "vocab_size": vocabulary,
        "max_position_embeddings": length,
        "hidden_activation": "gelu_pytorch_tanh",
        "rope_parameters": {
            "full_attention": {**rope, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
        "sliding_window": window,
        "layer_types": _layers(shape["num_hidden_layers"], every=6),
        "query_pre_attn_scalar": query_scale,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "use_bidirectional_attention": False,
    }


_TEXT_ONLY: dict[str, Any] = {
    "window": 512,
    "length": 32768,
    "vocabulary": 262144,
    "query_scale": 256,
    "stretched": None,
}
# The files of 4B and 12B leave the vocabulary to transformers' default, 262,208: 64 rows more than the tokenizer has.
_WITH_IMAGES: dict[str, Any] = {"window": 1024, "length": 131072, "vocabulary": 262208, "stretched": 8.0}

# https://huggingface.co/google/gemma-3-270m/blob/main/config.json
GEMMA3_270M = Preset(
    name="gemma3_270m",
    aliases=("gemma-3-270m",),
    model_type="gemma3_text",
    values=_gemma3(decoder_shape(640, 2048, 18, 4, 1, 256), **_TEXT_ONLY),
    num_parameters=268_098_176,
    hub_ids=(f"{_HUB}3-270m", f"{_HUB}3-270m-it"),
    chat_template="gemma3-it",
)
# https://huggingface.co/google/gemma-3-1b-pt/blob/main/config.json
GEMMA3_1B = Preset(
    name="gemma3_1b",
    aliases=("gemma-3-1b",),
    model_type="gemma3_text",
    values=_gemma3(decoder_shape(1152, 6912, 26, 4, 1, 256), **_TEXT_ONLY),
    num_parameters=999_885_952,
    hub_ids=(f"{_HUB}3-1b-pt", f"{_HUB}3-1b-it"),
    chat_template="gemma3-it",
)
# text_config of https://huggingface.co/google/gemma-3-4b-pt/blob/main/config.json
GEMMA3_4B = Preset(
    name="gemma3_4b",
    aliases=("gemma-3-4b",),
    model_type="gemma3_text",
    values=_gemma3(decoder_shape(2560, 10240, 34, 8, 4, 256), query_scale=256, **_WITH_IMAGES),
    num_parameters=3_880_263_168,
    chat_template="gemma3-it",
)
# text_config of https://huggingface.co/google/gemma-3-12b-pt/blob/main/config.json
GEMMA3_12B = Preset(
    name="gemma3_12b",
    aliases=("gemma-3-12b",),
    model_type="gemma3_text",
    values=_gemma3(decoder_shape(3840, 15360, 48, 16, 8, 256), query_scale=256, **_WITH_IMAGES),
    num_parameters=11_766_034_176,
    chat_template="gemma3-it",
)
# text_config of https://huggingface.co/google/gemma-3-27b-pt/blob/main/config.json: scores are divided by the root of
# 5376 / 32, and not of head_dim.
GEMMA3_27B = Preset(
    name="gemma3_27b",
    aliases=("gemma-3-27b",),
    model_type="gemma3_text",
    values=_gemma3(decoder_shape(5376, 21504, 62, 32, 16, 128), query_scale=168, **_WITH_IMAGES),
    num_parameters=27_009_346_304,
    chat_template="gemma3-it",
)

PRESETS = (
    GEMMA_2B,
    GEMMA_7B,
    GEMMA2_2B,
    GEMMA2_9B,
    GEMMA2_27B,
    GEMMA3_270M,
    GEMMA3_1B,
    GEMMA3_4B,
    GEMMA3_12B,
    GEMMA3_27B,
)

# --- For conformance tests: small, with windows shorter than a sample and caps that bite

TINY = {**_COMMON, **decoder_shape(32, 48, 2, 4, 2, 16), "vocab_size": 128, "max_position_embeddings": 128}
TINY_BY_TYPE: dict[str, dict[str, Any]] = {
    "gemma": {"num_key_value_heads": 1},
    "gemma2": {
        "sliding_window": 5,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 0.5,
        "final_logit_softcapping": 1.5,
    },
    "gemma3_text": {
        "sliding_window": 5,
        "query_pre_attn_scalar": 8,
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    },
}

# https://github.com/pytorch/torchtune, torchtune/models/gemma/_tokenizer.py
GEMMA_MESSAGES = MessageLayout(impls=("sentencepiece", "hf"), strip="right", unspaced="within_turn", cut_masked=None)
