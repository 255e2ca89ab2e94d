"""The two configurations of the quickstart, as files that ``graft train -c`` runs again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from graftwork.config import load_config
from graftwork.files import write_text
from graftwork.quickstart.corpus import SHOWN
from graftwork.quickstart.tokenizer import BOS, EOS, PAD, SPECIAL_TOKENS

if TYPE_CHECKING:
    from pathlib import Path

    from graftwork.config import RunConfig

PRESET = "llama3_2_1b"
VOCAB_SIZE = 1024
LENGTH = 256
"""Tokens of the longest context."""

ANSWER_TOKENS = 48
"""Tokens of the longest answer that is asked for."""

PRETRAINING_STEPS, FINE_TUNING_STEPS = 1800, 800
EVALUATIONS = 8
"""In each stage: so many points has the curve of the held-out loss."""

SIZES = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 48,
}
INITIALIZER_RANGE = 0.08
"""Standard deviation of the fresh weights. With 0.02, which suits a width of some thousands, a model this narrow
spends its first hundreds of steps on learning how frequent each token is (measured: a held-out loss of 5.12
after 300 steps, against 4.81 with 0.06)."""

HEAD = """\
# {title}, as graft quickstart ran it. To run it again, perhaps with changes:
#   graft train -c {path} training.output_dir={again}
"""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are in the folder of one quickstart."""

    folder: Path

    @property
    def corpus(self) -> Path:
        return self.folder / "corpus"

    @property
    def tokenizer(self) -> Path:
        return self.folder / "tokenizer"

    @property
    def pretrained(self) -> Path:
        return self.folder / "pretrain"

    @property
    def fine_tuned(self) -> Path:
        return self.folder / "finetune"

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def config(self, run: Path) -> Path:
        """The configuration of one of the two runs."""
        return run.with_suffix(".yaml")


def write_configurations(layout: Layout, *, seed: int, steps: int) -> None:
    """Writes both; ``steps`` are those of pretraining, and fine-tuning has its share of them."""
    write_config(layout, layout.pretrained, "Pretraining", pretraining(layout, seed, steps))
    fewer = max(1, steps * FINE_TUNING_STEPS // PRETRAINING_STEPS)
    write_config(layout, layout.fine_tuned, "Fine-tuning", fine_tuning(layout, seed, fewer))


def write_config(layout: Layout, run: Path, title: str, values: dict[str, Any]) -> None:
    """One configuration, with how to run it again above it."""
    path = layout.config(run)
    head = HEAD.format(title=title, path=path, again=run.with_name(f"{run.name}-again"))
    write_text(path, head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120))


def read_config(layout: Layout, run: Path) -> RunConfig:
    """The configuration of one of the two runs, whatever the environment says."""
    return load_config(layout.config(run), env={})


def pretraining(layout: Layout, seed: int, steps: int) -> dict[str, Any]:
    """All weights, from nothing, on the language reference."""
    return {
        "model": {
            "model_name": PRESET,
            "load_pretrained_weights": False,
            "tokenizer_name": str(layout.tokenizer),
            "chat_template": "llama3-instruct",
            "model_kwargs": model_kwargs(),
        },
        "data": {
            "train": {**split("text", layout.corpus / "topics-train.jsonl", shuffle=True), "pack": True},
            "validation": {**split("text", layout.corpus / "topics-held-out.jsonl"), "pack": True},
        },
        "training": {
            "trainer_type": "NATIVE_PRETRAIN",
            "output_dir": str(layout.pretrained),
            "run_name": "Quickstart: pretraining on the language reference",
            **schedule(seed, steps, learning_rate=2e-3, batch_size=2),
            "weight_decay": 0.3,
            "adam_beta2": 0.95,
        },
    }


def fine_tuning(layout: Layout, seed: int, steps: int) -> dict[str, Any]:
    """A LoRA on the pretrained model, on questions and answers."""
    return {
        "model": {"model_name": str(layout.pretrained / "final"), "chat_template": "llama3-instruct"},
        "data": {
            "train": {**split("text_sft", layout.corpus / "docstrings-train.jsonl", shuffle=True), "over_long": "drop"},
            "validation": {**split("text_sft", layout.corpus / "docstrings-held-out.jsonl"), "over_long": "drop"},
        },
        "training": {
            "trainer_type": "NATIVE_SFT",
            "use_peft": True,
            "output_dir": str(layout.fine_tuned),
            "run_name": "Quickstart: fine-tuning on docstrings",
            **schedule(seed, steps, learning_rate=2e-3, batch_size=8),
        },
        "peft": {"lora_r": 32, "lora_alpha": 64, "lora_target_modules": "all-linear"},
    }


def model_kwargs() -> dict[str, Any]:
    """The preset in small."""
    return {
        **SIZES,
        "vocab_size": VOCAB_SIZE,
        "max_position_embeddings": LENGTH,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "initializer_range": INITIALIZER_RANGE,
        "bos_token_id": SPECIAL_TOKENS.index(BOS),
        "eos_token_id": SPECIAL_TOKENS.index(EOS),
        "pad_token_id": SPECIAL_TOKENS.index(PAD),
    }


def split(reader: str, path: Path, *, shuffle: bool = False) -> dict[str, Any]:
    """One file as a split."""
    dataset: dict[str, Any] = {"dataset_name": reader, "dataset_path": str(path)}
    if shuffle:
        dataset["shuffle"] = True
    return {"datasets": [dataset], "max_length": LENGTH}


def schedule(seed: int, steps: int, *, learning_rate: float, batch_size: int) -> dict[str, Any]:
    """What both stages have in common."""
    return {
        "seed": seed,
        "max_steps": steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_ratio": 0.05,
        "eval_strategy": "steps",
        "eval_steps": max(1, steps // EVALUATIONS),
        "save_steps": 0,
        "log_level": "warning",
        "dep_log_level": "error",
        "trainer_kwargs": {"sample_count": SHOWN, "sample_max_new_tokens": ANSWER_TOKENS},
    }
