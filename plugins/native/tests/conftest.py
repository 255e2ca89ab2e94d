"""Toy models, a byte tokenizer, small data files and configurations, all made here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from graftwork.config import RunConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNNER = Path(__file__).with_name("runner.py")
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ '<' + message['role'] + '>' + message['content'] + '\n' }}{% endif %}{% endfor %}"
)
SIZE = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
TOYS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SIZE),
    "qwen2": ("qwen2", SIZE),
    "mistral": ("mistral", {**SIZE, "sliding_window": 4}),
    "gemma2": (
        "gemma2",
        {**SIZE, "head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 0.05, "final_logit_softcapping": 0.5},
    ),
    "gemma3": (
        "gemma3_text",
        {**SIZE, "head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "phi3": ("phi3", {**SIZE, "sliding_window": 5}),
    "qwen3": ("qwen3", {**SIZE, "head_dim": 8}),
    "gpt2": (
        "gpt2",
        {"vocab_size": 260, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "eos_token_id": 257}
        | {"bos_token_id": 257, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
    ),
    "opt": (
        "opt",
        {**SIZE, "ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0, "attention_dropout": 0.0},
    ),
    "qwen2_moe": (
        "qwen2_moe",
        {**SIZE, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "num_experts": 2}
        | {
            "num_experts_per_tok": 1,
            "use_sliding_window": True,
            "sliding_window": 64,
            "layer_types": ["sliding_attention"] * 2,
        },
    ),
    "mixtral": ("mixtral", {**SIZE, "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 4}),
    "bloom": ("bloom", {"vocab_size": 260, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Toy products are faster on one thread, and the tests run beside one another."""
    torch.set_num_threads(1)


def make_model(kind: str, **changes: Any) -> Any:
    """A toy model by plain transformers, its weights large enough that nothing is nearly linear."""
    model_type, values = TOYS[kind]
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**values, **changes})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15)
    return model


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each byte (0 to 255), then three special ones."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<unk>", "<end>", "<pad>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="<end>",
        pad_token="<pad>",
        chat_template=TEMPLATE,
        model_max_length=128,
    )


def save_toy(folder: Path, kind: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
    """A toy model's folder, with the tokenizer."""
    make_model(kind, **changes).to(dtype).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def write_chat(path: Path, rows: int = 12, seed: int = 0) -> Path:
    """Questions and answers of different lengths."""
    texts = [
        (f"q{seed} {number}" * (1 + number % 3), f"a{number * 7 % 10}" * (1 + number % 4)) for number in range(rows)
    ]
    rows_of_turns = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in texts
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of_turns))
    return path


def write_text(path: Path, documents: int = 10, seed: int = 0) -> Path:
    """Documents of different lengths, a JSON line each."""
    rows = [
        {"text": f"{seed}:{number} " + "abcdefgh"[number % 8] * (3 + 5 * number % 23)} for number in range(documents)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_pairs(path: Path, rows: int = 12) -> Path:
    """Questions with a better and a worse answer, all of different lengths."""
    pairs = []
    for n in range(rows):
        chosen, rejected = f"yes{n % 4} " * (1 + n % 2), f"no{n % 3} " * (1 + n % 5)
        pairs.append({"prompt": f"q{n} " * (1 + n % 3), "chosen": chosen, "rejected": rejected})
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return path


def make_config(tmp_path: Path, toy: Path | str, data: dict[str, Any], **sections: Any) -> RunConfig:
    """A run of a few steps; ``training`` and ``peft`` go over the defaults here."""
    training = {
        "output_dir": str(tmp_path / "run"),
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "mixed_precision_dtype": "none",
        "enable_tensorboard": False,
        "trainer_kwargs": {"sample_count": 0},
        **sections.pop("training", {}),
    }
    base = {"model_name": str(toy), "device_map": "cpu", **sections.pop("model", {})}
    return RunConfig.model_validate({"model": base, "data": data, "training": training, **sections})


@pytest.fixture(scope="session")
def toys() -> SimpleNamespace:
    """The functions of this file, for tests to call."""
    return SimpleNamespace(
        model=make_model,
        tokenizer=make_tokenizer,
        save=save_toy,
        chat=write_chat,
        text=write_text,
        pairs=write_pairs,
        config=make_config,
        split=chat_split,
        metrics=metrics_of,
        numbers=numbers_of,
        samples=samples_of,
        weights=weights_of,
        assert_same_run=assert_same_run,
        changed=changed,
        save_config=save_config,
    )


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy Llama with its tokenizer; never written to."""
    return save_toy(tmp_path_factory.mktemp("toy") / "llama")


@pytest.fixture
def chat(tmp_path: Path) -> dict[str, Any]:
    """A ``data`` section: twelve conversations, and four to evaluate on."""
    return {
        "train": chat_split(write_chat(tmp_path / "train.jsonl")),
        "validation": chat_split(write_chat(tmp_path / "validation.jsonl", 4, seed=1)),
    }


def chat_split(*paths: Path, **changes: Any) -> dict[str, Any]:
    """A split of chat files."""
    return {"datasets": [{"dataset_name": "text_sft", "dataset_path": str(path)} for path in paths], **changes}


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# Comparing runs

NUMBERS = ("step", "loss", "eval_loss", "eval_tokens", "learning_rate", "grad_norm", "tokens", "supervised_tokens",
           "skipped_batches")  # fmt: skip


def numbers_of(run: Path) -> list[dict[str, Any]]:
    """What every line of the metrics says, but for times and memory."""
    return [{name: row[name] for name in row if name in NUMBERS or "rewards" in name} for row in metrics_of(run)]


def samples_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().split("\n")[:-1]]


def weights_of(run: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run / "final").glob("*.safetensors")}


def assert_same_run(run: Path, other: Path) -> None:
    """The same numbers, answers and weights, to the last bit."""
    assert numbers_of(run) == numbers_of(other)
    assert samples_of(run) == samples_of(other)
    assert weights_of(run) == weights_of(other) != {}


def changed(config: Any, **training: Any) -> Any:
    """The configuration with other fields of ``training``."""
    return config.model_copy(update={"training": config.training.model_copy(update=training)})


def save_config(path: Path, config: Any) -> Path:
    path.write_text(config.to_yaml())
    return path


@pytest.fixture
def small(tmp_path: Path, llama: Path) -> Any:
    """Six steps, an evaluation and a checkpoint every two, dropout in nothing, three answers at each moment."""
    train_split = chat_split(write_chat(tmp_path / "train.jsonl"), pack=True, max_length=64)
    train_split["datasets"][0]["shuffle"] = True
    data = {"train": train_split, "validation": chat_split(write_chat(tmp_path / "held out.jsonl", 3, seed=1))}
    training = {
        "max_steps": 6,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 3,
        "weight_decay": 0.1,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "trainer_kwargs": {"sample_count": 2, "sample_max_new_tokens": 4},
    }
    return make_config(tmp_path, llama, data, training=training)


# graft in processes of its own


class Runner:
    """`graft` in processes of its own; see ``runner.py``."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output.txt"
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(RUNNER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, *arguments: str, **request: Any) -> int:
        """The exit code; minus the signal's number where one ended it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        line = json.dumps({"arguments": arguments, "output": str(self.output), **request})
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return int(json.loads(self.process.stdout.readline())["code"])

    @property
    def said(self) -> str:
        return self.output.read_text()


@pytest.fixture(scope="session")
def graft(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    runner = Runner(tmp_path_factory.mktemp("runner"))
    yield runner
    assert runner.process.stdin is not None
    assert runner.process.stdout is not None
    runner.process.stdin.close()
    runner.process.wait(timeout=60)
    runner.process.stdout.close()
