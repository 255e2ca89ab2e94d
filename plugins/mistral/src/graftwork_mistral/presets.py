"""The published sizes of Mistral 7B, Mistral Nemo and Mixtral 8x7B, as data.

Numbers: ``config.json`` of the models on the Hub (``hub_ids``: https://huggingface.co/ID/blob/main/config.json). Where
a table names a further source, it stands there. Parameter counts are those of the published weights.
"""

from __future__ import annotations

from typing import Any

from graftwork.specs import DECODER, DECODER_LORA_TARGETS, MessageLayout, Preset

# Mistral 7B paper (https://arxiv.org/abs/2310.06825), table 1; norm_eps and the lack of biases from its params.json.
_7B: dict[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "sliding_window": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Since v0.2: 32k context, rope_theta 1e6, no sliding window; its model card says so in these words:
# https://huggingface.co/mistralai/Mistral-7B-Instruct-v0.2
_WITHOUT_WINDOW: dict[str, Any] = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "sliding_window": None,
}

MISTRAL_7B = Preset(
    name="mistral_7b",
    aliases=("mistral_7b_v0_1", "mistral-7b-v0.1"),
    model_type="mistral",
    values=_7B,
    num_parameters=7_241_732_096,
    hub_ids=("mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1"),
    chat_template="mistral-v1",
)
MISTRAL_7B_V0_2 = Preset(
    name="mistral_7b_v0_2",
    aliases=("mistral-7b-v0.2",),
    model_type="mistral",
    values={**_7B, **_WITHOUT_WINDOW},
    num_parameters=7_241_732_096,
    hub_ids=("mistralai/Mistral-7B-Instruct-v0.2",),
    chat_template="mistral-v1",
)
# Its model card: v0.2 with a vocabulary of 32768. https://huggingface.co/mistralai/Mistral-7B-v0.3
MISTRAL_7B_V0_3 = Preset(
    name="mistral_7b_v0_3",
    aliases=("mistral-7b-v0.3",),
    model_type="mistral",
    values={**_7B, **_WITHOUT_WINDOW, "vocab_size": 32768},
    num_parameters=7_248_023_552,
    hub_ids=("mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3"),
    chat_template="mistral-v3",
)
# Its model card has a table of these numbers, with head_dim 128 where 5120 / 32 is 160, "about 128k" for the vocabulary
# (2**17) and a context of 128k, on which it was trained. https://huggingface.co/mistralai/Mistral-Nemo-Base-2407
MISTRAL_NEMO_12B = Preset(
    name="mistral_nemo_12b",
    aliases=("mistral-nemo-12b",),
    model_type="mistral",
    values={
        **_7B,
        **_WITHOUT_WINDOW,
        "vocab_size": 131072,
        "hidden_size": 5120,
        "num_hidden_layers": 40,
        "max_position_embeddings": 131072,
    },
    num_parameters=12_247_782_400,
    hub_ids=("mistralai/Mistral-Nemo-Base-2407", "mistralai/Mistral-Nemo-Instruct-2407"),
    chat_template="mistral-nemo",
)
# torchtune's: one score for a text, from the last token's state.
MISTRAL_CLASSIFIER_7B = Preset(
    name="mistral_classifier_7b",
    aliases=("mistral_reward_7b",),
    model_type="mistral",
    values={**_7B, "architectures": ["MistralForSequenceClassification"], "num_labels": 1},
    num_parameters=7_110_664_192,
)
# Mixtral paper (https://arxiv.org/abs/2401.04088), table 1; rope_theta 1e6 and no window from its config.json.
MIXTRAL_8X7B = Preset(
    name="mixtral_8x7b",
    aliases=("mixtral-8x7b",),
    model_type="mixtral",
    values={**_7B, **_WITHOUT_WINDOW, "num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.02},
    num_parameters=46_702_792_704,
    hub_ids=("mistralai/Mixtral-8x7B-v0.1", "mistralai/Mixtral-8x7B-Instruct-v0.1"),
    chat_template="mistral-v1",
)

PRESETS = (MISTRAL_7B, MISTRAL_7B_V0_2, MISTRAL_7B_V0_3, MISTRAL_NEMO_12B, MISTRAL_CLASSIFIER_7B)

TINY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 128,
    "sliding_window": 6,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_FAMILY: dict[str, Any] = {
    **DECODER,
    "special_tokens": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    "stop_tokens": ("</s>",),
}
MISTRAL: dict[str, Any] = {
    **_FAMILY,
    "presets": PRESETS,
    "lora_targets": {**DECODER_LORA_TARGETS, "output": ("lm_head", "score")},
    "tiny": TINY,
}
# Mixtral's experts are stacked parameters and no modules: peft.lora_target_parameters names them, not a role.
MIXTRAL: dict[str, Any] = {
    **_FAMILY,
    "presets": (MIXTRAL_8X7B,),
    "lora_targets": {role: modules for role, modules in DECODER_LORA_TARGETS.items() if role != "mlp"},
    "default_lora_roles": ("q_proj", "k_proj", "v_proj", "output_proj"),
    "tiny": {**TINY, "num_local_experts": 4, "num_experts_per_tok": 2},
}

# https://github.com/pytorch/torchtune, torchtune/models/mistral (_tokenizer.py, _prompt_template.py)
MESSAGES = MessageLayout(
    impls=("sentencepiece", "hf"),
    prompt={"user": ("[INST] ", " [/INST] ")},
    prompt_name="MistralChatTemplate",
    system="refused",
    strip="right",
    unspaced="within_turn",
    cut_masked=None,
)
