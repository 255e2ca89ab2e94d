"""A toy model, a byte tokenizer, small data files and configurations, all made here."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from graftwork.config import RunConfig

if TYPE_CHECKING:
    from pathlib import Path

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
    "pad_token_id": None,
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Toy products are faster on one thread, and the tests run beside one another."""
    torch.set_num_threads(1)


def make_tokenizer(pad: str | None = "<pad>") -> PreTrainedTokenizerFast:
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
        pad_token=pad,
        chat_template=TEMPLATE,
        model_max_length=128,
    )


def save_toy(
    folder: Path,
    dtype: torch.dtype = torch.float32,
    pad: str | None = "<pad>",
    model_type: str = "llama",
    **changes: Any,
) -> Path:
    """A toy model's folder, its weights large enough that nothing is nearly linear, with the tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**SIZE, **changes}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.15)
    model.to(dtype).save_pretrained(folder)
    make_tokenizer(pad).save_pretrained(folder)
    return folder


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chat_rows(rows: int = 12, seed: int = 0) -> list[dict[str, Any]]:
    """Questions and answers of different lengths."""
    return [
        {"messages": turns(f"q{seed} {number}" * (1 + number % 3), f"a{number * 7 % 10}" * (1 + number % 4))}
        for number in range(rows)
    ]


def pair_rows(rows: int = 10, seed: int = 0) -> list[dict[str, Any]]:
    """Preference pairs as Oumi's document has them."""
    return [
        {
            "messages": [{"role": "user", "content": f"q{seed} {number}" * (1 + number % 3)}],
            "chosen": {"messages": [{"role": "assistant", "content": f"good {number}" * (1 + number % 2)}]},
            "rejected": {"messages": [{"role": "assistant", "content": "bad" * (1 + number % 4)}]},
        }
        for number in range(rows)
    ]


def judged_rows(rows: int = 10, seed: int = 0) -> list[dict[str, Any]]:
    """Conversations with a verdict on the last answer."""
    return [{**row, "label": number % 3 != 0} for number, row in enumerate(chat_rows(rows, seed))]


def sum_rows(rows: int = 8) -> list[dict[str, Any]]:
    """Sums with their answers as gsm8k has them."""
    return [{"question": f"{n}+{n}=", "answer": f"that is {2 * n}\n#### {2 * n}"} for n in range(rows)]


DATASETS = {
    "TRL_DPO": "preference_pairs_jsonl",
    "TRL_RM": "preference_pairs_jsonl",
    "TRL_ORPO": "preference_pairs_jsonl",
}
ROWS = {"TRL_KTO": judged_rows, "TRL_GRPO": sum_rows} | dict.fromkeys(DATASETS, pair_rows)
OPTIONS = {
    "TRL_GRPO": {
        "reward_functions": ["answer_match", "length_penalty"], "num_generations": 2, "max_completion_length": 6,
    },
}  # fmt: skip
METHODS = ("TRL_SFT", "TRL_DPO", "TRL_KTO", "TRL_RM", "TRL_GRPO", "TRL_ORPO")


def split(path: Path, name: str = "text_sft", **changes: Any) -> dict[str, Any]:
    """A split of one file."""
    return {"datasets": [{"dataset_name": name, "dataset_path": str(path)}], **changes}


def make_data(folder: Path, method: str, *, validation: bool = False, **changes: Any) -> dict[str, Any]:
    """A ``data`` section for a method."""
    name, rows = DATASETS.get(method, "text_sft"), ROWS.get(method, chat_rows)
    data = {"train": split(write(folder / f"{method}.jsonl", rows()), name, **changes)}
    if validation:
        data["validation"] = split(write(folder / f"{method} held out.jsonl", rows(4)), name)
    return data


def make_config(folder: Path, toy: Path | str, method: str, data: dict[str, Any], **sections: Any) -> RunConfig:
    """A run of a few steps; ``training`` goes over the defaults here."""
    given = sections.pop("training", {})
    training = {
        "trainer_type": method,
        "output_dir": str(folder / "run"),
        "max_steps": 4,
        "per_device_train_batch_size": 4 if method == "TRL_GRPO" else 2,
        "learning_rate": 1e-2,
        "mixed_precision_dtype": "none",
        "enable_tensorboard": False,
        "save_steps": 0,
        **given,
        "trainer_kwargs": {**OPTIONS.get(method, {}), **given.get("trainer_kwargs", {})},
    }
    base = {"model_name": str(toy), "device_map": "cpu", **sections.pop("model", {})}
    return RunConfig.model_validate({"model": base, "data": data, "training": training, **sections})


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses_of(run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["loss"]) for row in metrics_of(run) if "loss" in row]


@pytest.fixture(scope="session")
def toys() -> SimpleNamespace:
    """The functions of this file, for tests to call."""
    return SimpleNamespace(
        tokenizer=make_tokenizer,
        save=save_toy,
        write=write,
        chat=chat_rows,
        pairs=pair_rows,
        judged=judged_rows,
        sums=sum_rows,
        split=split,
        data=make_data,
        config=make_config,
        metrics=metrics_of,
        losses=losses_of,
        methods=METHODS,
    )


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy Llama with its tokenizer; never written to."""
    return save_toy(tmp_path_factory.mktemp("toy") / "llama")
