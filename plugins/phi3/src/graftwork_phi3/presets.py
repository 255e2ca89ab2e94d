"""The published sizes of Phi-3 and Phi-4, as data.

Numbers: ``config.json`` of the models on the Hub; the address stands above each size. Parameter counts are those of the
published weights. Phi-3-small is another architecture and not here. Phi-3-medium-128k is ``phi3_medium_4k`` with
LongRoPE: there is no preset of it, because its 64 + 64 factors could not be checked against its ``config.json``; from
its folder, which has them, it loads as any other.
"""

from __future__ import annotations

from typing import Any

from graftwork.specs import MessageLayout, Preset, decoder_shape

_COMMON: dict[str, Any] = {
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
_PHI3: dict[str, Any] = {
    **_COMMON,
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
    "original_max_position_embeddings": 4096,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    # As published. The models' own code let a token see 2,047 others beside itself (litgpt says 2,048); transformers 5
    # counts the token itself among them.
    "sliding_window": 2047,
    "bos_token_id": 1,
    "eos_token_id": 32000,
    "pad_token_id": 32000,
}


def _longrope(short: tuple[float, ...], long: tuple[float, ...], sliding_window: int) -> dict[str, Any]:
    """131,072 positions out of 4,096: frequencies are divided by ``short``, and by ``long`` where a row is longer.

    What is rotated is also multiplied by 1.1902381, the root of 1 + ln(131072 / 4096) / ln(4096).
    """
    return {
        **_PHI3,
        "max_position_embeddings": 131072,
        "sliding_window": sliding_window,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": list(short),
            "long_factor": list(long),
            "original_max_position_embeddings": 4096,
        },
    }


# Of microsoft/Phi-3-mini-128k-instruct since July 2024, when they were changed together with the weights. The digests
# of both as float32 equal those of rope_factors_*.weight in the GGUF file of that model (tested).
_MINI_SHORT = (
    1.1,
    1.1,
    1.1,
    1.3000000000000003,
    1.3500000000000003,
    1.3500000000000003,
    1.4000000000000004,
    1.5500000000000005,
    2.000000000000001,
    2.000000000000001,
    2.000000000000001,
    2.000000000000001,
    2.000000000000001,
    2.000000000000001,
    2.000000000000001,
    2.000000000000001,
    2.000000000000001,
    2.000000000000001,
    2.000000000000001,
    2.000000000000001,
    2.000000000000001,
    2.000000000000001,
    2.000000000000001,
    2.000000000000001,
    2.000000000000001,
    2.0500000000000007,
    2.0500000000000007,
    2.0500000000000007,
    2.0500000000000007,
    2.0500000000000007,
    2.0500000000000007,
    2.1000000000000005,
    2.1000000000000005,
    2.1500000000000004,
    2.25,
    2.25,
    2.25,
    2.25,
    2.25,
    2.3999999999999995,
    2.4499999999999993,
    2.499999999999999,
    2.6999999999999984,
    2.6999999999999984,
    2.7499999999999982,
    2.799999999999998,
    2.8999999999999977,
    3.049999999999997,
)
_MINI_LONG = (
    1.0700000524520874,
    1.1200000047683716,
    1.149999976158142,
    1.4199999570846558,
    1.5699999332427979,
    1.7999999523162842,
    2.129999876022339,
    2.129999876022339,
    3.009999990463257,
    5.910000324249268,
    6.950000286102295,
    9.070000648498535,
    9.930000305175781,
    10.710000038146973,
    11.130000114440918,
    14.609999656677246,
    15.409998893737793,
    19.809999465942383,
    37.279998779296875,
    38.279998779296875,
    38.599998474121094,
    40.12000274658203,
    46.20000457763672,
    50.940006256103516,
    53.66000747680664,
    54.9373893737793,
    56.89738845825195,
    57.28738784790039,
    59.98738479614258,
    60.86738586425781,
    60.887386322021484,
    61.71739196777344,
    62.91739273071289,
    62.957393646240234,
    63.41739273071289,
    63.8173942565918,
    63.83739471435547,
    63.897396087646484,
    63.93739700317383,
    64.06739807128906,
    64.11434936523438,
    64.12435150146484,
    64.15435028076172,
    64.19435119628906,
    64.24435424804688,
    64.57435607910156,
    64.69000244140625,
    64.76000213623047,
)
# Of microsoft/Phi-3.5-mini-instruct.
_MINI_3_5_SHORT = (
    1.0,
    1.0199999809265137,
    1.0299999713897705,
    1.0299999713897705,
    1.0499999523162842,
    1.0499999523162842,
    1.0499999523162842,
    1.0499999523162842,
    1.0499999523162842,
    1.0699999332427979,
    1.0999999046325684,
    1.1099998950958252,
    1.1599998474121094,
    1.1599998474121094,
    1.1699998378753662,
    1.2899998426437378,
    1.339999794960022,
    1.679999828338623,
    1.7899998426437378,
    1.8199998140335083,
    1.8499997854232788,
    1.8799997568130493,
    1.9099997282028198,
    1.9399996995925903,
    1.9899996519088745,
    2.0199997425079346,
    2.0199997425079346,
    2.0199997425079346,
    2.0199997425079346,
    2.0199997425079346,
    2.0199997425079346,
    2.0299997329711914,
    2.0299997329711914,
    2.0299997329711914,
    2.0299997329711914,
    2.0299997329711914,
    2.0299997329711914,
    2.0299997329711914,
    2.0299997329711914,
    2.0299997329711914,
    2.0799996852874756,
    2.0899996757507324,
    2.189999580383301,
    2.2199995517730713,
    2.5899994373321533,
    2.729999542236328,
    2.749999523162842,
    2.8399994373321533,
)
_MINI_3_5_LONG = (
    1.0800000429153442,
    1.1100000143051147,
    1.1399999856948853,
    1.340000033378601,
    1.5899999141693115,
    1.600000023841858,
    1.6200000047683716,
    2.620000123977661,
    3.2300000190734863,
    3.2300000190734863,
    4.789999961853027,
    7.400000095367432,
    7.700000286102295,
    9.09000015258789,
    12.199999809265137,
    17.670000076293945,
    24.46000099182129,
    28.57000160217285,
    30.420001983642578,
    30.840002059936523,
    32.590003967285156,
    32.93000411987305,
    42.320003509521484,
    44.96000289916992,
    50.340003967285156,
    50.45000457763672,
    57.55000305175781,
    57.93000411987305,
    58.21000289916992,
    60.1400032043457,
    62.61000442504883,
    62.62000274658203,
    62.71000289916992,
    63.1400032043457,
    63.1400032043457,
    63.77000427246094,
    63.93000411987305,
    63.96000289916992,
    63.970001220703125,
    64.02999877929688,
    64.06999969482422,
    64.08000183105469,
    64.12000274658203,
    64.41000366210938,
    64.4800033569336,
    64.51000213623047,
    64.52999877929688,
    64.83999633789062,
)

# https://huggingface.co/microsoft/Phi-3-mini-4k-instruct/blob/main/config.json
PHI3_MINI = Preset(
    name="phi3_mini",
    aliases=("phi3_mini_4k", "phi-3-mini-4k", "phi-3-mini-4k-instruct"),
    model_type="phi3",
    values={**_PHI3, **decoder_shape(3072, 8192, 32, 32, 32)},
    num_parameters=3_821_079_552,
    hub_ids=("microsoft/Phi-3-mini-4k-instruct",),
    chat_template="phi3-instruct",
)
# https://huggingface.co/microsoft/Phi-3-mini-128k-instruct/blob/main/config.json
PHI3_MINI_128K = Preset(
    name="phi3_mini_128k",
    aliases=("phi-3-mini-128k", "phi-3-mini-128k-instruct"),
    model_type="phi3",
    values={**_longrope(_MINI_SHORT, _MINI_LONG, 262144), **decoder_shape(3072, 8192, 32, 32, 32)},
    num_parameters=3_821_079_552,
    hub_ids=("microsoft/Phi-3-mini-128k-instruct",),
    chat_template="phi3-instruct",
)
# https://huggingface.co/microsoft/Phi-3-medium-4k-instruct/blob/main/config.json
PHI3_MEDIUM_4K = Preset(
    name="phi3_medium_4k",
    aliases=("phi-3-medium-4k", "phi-3-medium-4k-instruct"),
    model_type="phi3",
    values={**_PHI3, **decoder_shape(5120, 17920, 40, 40, 10)},
    num_parameters=13_960_238_080,
    hub_ids=("microsoft/Phi-3-medium-4k-instruct",),
    chat_template="phi3-instruct",
)
# https://huggingface.co/microsoft/Phi-3.5-mini-instruct/blob/main/config.json
PHI3_5_MINI = Preset(
    name="phi3_5_mini",
    aliases=("phi3.5_mini", "phi-3.5-mini", "phi-3.5-mini-instruct"),
    model_type="phi3",
    values={**_longrope(_MINI_3_5_SHORT, _MINI_3_5_LONG, 262144), **decoder_shape(3072, 8192, 32, 32, 32)},
    num_parameters=3_821_079_552,
    hub_ids=("microsoft/Phi-3.5-mini-instruct",),
    chat_template="phi3.5-instruct",
)
# https://huggingface.co/microsoft/phi-4/blob/main/config.json (and litgpt's config.py for the rope base, which
# torchtune's builder leaves at 10,000)
PHI4_14B = Preset(
    name="phi4_14b",
    aliases=("phi4", "phi-4", "phi-4-14b"),
    model_type="phi3",
    values={
        **_COMMON,
        **decoder_shape(5120, 17920, 40, 40, 10),
        "vocab_size": 100352,
        "max_position_embeddings": 16384,
        "original_max_position_embeddings": 16384,
        "rope_parameters": {"rope_type": "default", "rope_theta": 250000.0},
        "sliding_window": None,
        "bos_token_id": 100257,
        "eos_token_id": 100265,
        "pad_token_id": 100349,
    },
    num_parameters=14_659_507_200,
    hub_ids=("microsoft/phi-4",),
    chat_template="phi4",
)

PRESETS = (PHI3_MINI, PHI3_MINI_128K, PHI3_MEDIUM_4K, PHI3_5_MINI, PHI4_14B)

TINY: dict[str, Any] = {
    **_COMMON,
    **decoder_shape(32, 56, 2, 4, 2),
    "vocab_size": 128,
    "max_position_embeddings": 128,
    "sliding_window": 5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""For conformance tests: small, with a window shorter than a sample."""

# https://github.com/pytorch/torchtune, torchtune/models/phi3/_tokenizer.py
PHI3_MESSAGES = MessageLayout(
    impls=("sentencepiece", "hf"),
    special_tokens={
        "<|endoftext|>": 32_000,
        "<|assistant|>": 32_001,
        **{f"<|placeholder{index}|>": 32_001 + index for index in range(1, 5)},
        "<|system|>": 32_006,
        "<|end|>": 32_007,
        "<|placeholder5|>": 32_008,
        "<|placeholder6|>": 32_009,
        "<|user|>": 32_010,
    },
    eos="<|endoftext|>",
    pad="<|endoftext|>",
    header=("<|{role}|>", "\n"),
    end=("<|end|>", "\n"),
    roles=("system", "user", "assistant"),
    strip="right",
    unspaced="always",
    short_ends=False,
    end_tokens=False,
)
