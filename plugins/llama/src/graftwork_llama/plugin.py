"""What the Llama plugin declares."""

from __future__ import annotations

from pathlib import Path

from graftwork import hookimpl
from graftwork.specs import ChatTemplate, ModelFamily
from graftwork_llama.presets import PRESETS

TEMPLATES = Path(__file__).parent / "templates"


@hookimpl
def graftwork_model_families() -> list[ModelFamily]:
    return [
        ModelFamily(
            name="llama",
            model_types=("llama",),
            architectures=("LlamaForCausalLM",),
            presets=PRESETS,
            lora_targets={
                "q_proj": ("q_proj",),
                "k_proj": ("k_proj",),
                "v_proj": ("v_proj",),
                "output_proj": ("o_proj",),
                "mlp": ("gate_proj", "up_proj", "down_proj"),
                "output": ("lm_head",),
            },
            default_lora_roles=("q_proj", "k_proj", "v_proj", "output_proj", "mlp"),
            freeze_aliases={"embeddings": "model.embed_tokens", "layers": "model.layers", "output": "lm_head"},
            special_tokens={
                "bos_token": "<|begin_of_text|>",
                "eos_token": "<|end_of_text|>",
                "pad_token": "<|finetune_right_pad_id|>",
            },
            stop_tokens=("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "</s>"),
            chat_template="llama3-instruct",
            segment_attention=True,
            tiny={
                "vocab_size": 128,
                "hidden_size": 32,
                "intermediate_size": 56,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 128,
                "bos_token_id": 1,
                "eos_token_id": 2,
            },
        )
    ]


@hookimpl
def graftwork_chat_templates() -> list[ChatTemplate]:
    return [
        ChatTemplate(
            name="llama2",
            aliases=("llama2-chat", "llama-2-chat"),
            path=TEMPLATES / "llama2.jinja",
            stop=("</s>",),
            supports=frozenset({"system"}),
        ),
        ChatTemplate(
            name="llama3-instruct",
            aliases=("llama3", "llama-3-instruct"),
            path=TEMPLATES / "llama3-instruct.jinja",
            stop=("<|eot_id|>",),
            supports=frozenset({"system"}),
        ),
    ]
