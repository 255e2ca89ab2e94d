"""What the Llama plugin declares."""

from __future__ import annotations

from pathlib import Path

from graftwork import hookimpl
from graftwork.specs import ChatTemplate, ModelFamily, chat_template
from graftwork_llama.presets import LLAMA3_RANKS, PRESETS

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
            rank_layouts=(LLAMA3_RANKS,),
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
        chat_template(TEMPLATES, "llama2", "llama2-chat", "llama-2-chat", stop=("</s>",)),
        chat_template(TEMPLATES, "llama3-instruct", "llama3", "llama-3-instruct", stop=("<|eot_id|>",)),
        chat_template(
            TEMPLATES,
            "llama3.1",
            "llama3.1-instruct",
            "llama-3.1-instruct",
            stop=("<|eot_id|>", "<|eom_id|>"),
            supports=("system", "tools"),
        ),
        chat_template(
            TEMPLATES,
            "llama3.2",
            "llama3.2-instruct",
            "llama-3.2-instruct",
            stop=("<|eot_id|>",),
            supports=("system", "tools"),
        ),
    ]
