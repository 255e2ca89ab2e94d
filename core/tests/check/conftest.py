"""A configuration that a run could begin with: a toy model, a byte tokenizer, chat rows, a trainer that forecasts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PLUGIN = """
from graftwork import hookimpl
from graftwork.specs import TrainerSpec


def _forecast(request):
    from graftwork.check.forecast import Forecast

    tokens = max(row.num_tokens for row in request.rows)
    return Forecast(
        device="cpu", parts={"weights": 3 << 20, "activations": tokens << 10}, tokens=tokens,
        checkpoint_bytes=5 << 20, final_bytes=2 << 20, notes=("a note of the trainer",),
    )


def _build(request):
    raise AssertionError("a check builds no trainer")


def _refuse(request):
    from graftwork.errors import UsageError

    if request.config.training.seed == 13:
        raise UsageError(f"training.seed: 13 is unlucky in {request.processes} process")


def _read_as(split):
    if split.seed == 13:
        raise ValueError("unlucky")
    return split.model_copy(update={"over_long": "drop", "max_length": 1})


def _count_steps(request, samples):
    from graftwork.check.methods import StepCount

    return StepCount(each=3, unit="things", per_epoch=samples, steps=samples and 2 * samples, note="who knows")


@hookimpl
def graftwork_trainers():
    return [
        TrainerSpec(name="TOY", schemas=("chat", "text"), build=_build, forecast=_forecast),
        TrainerSpec(name="SILENT", schemas=("chat",), build=_build, ignored_fields=("training.optimizer",)),
        TrainerSpec(name="UNLUCKY", schemas=("chat",), build=_build, refuse=_refuse),
        TrainerSpec(name="READER", schemas=("chat",), build=_build, read_as=_read_as),
        TrainerSpec(name="COUNTER", schemas=("chat",), build=_build, count_steps=_count_steps),
    ]
"""
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% else %}{{ '<' + message['role'] + '>' + message['content'] + '\n' }}{% endif %}{% endfor %}"
)


def chat(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def model(toy_model: Callable[..., Path]) -> Path:
    """A model folder with a token for each byte."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<unk>", "<end>", "<pad>"])
    folder = toy_model("llama", vocab_size=260)
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="<end>",
        pad_token="<pad>",
        chat_template=TEMPLATE,
        model_max_length=64,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def write_config(tmp_path: Path, model: Path, install_plugin: Callable[..., str]) -> Callable[..., Path]:
    """``write_config(train rows, validation rows, section={...})`` gives the path of a configuration."""
    install_plugin(PLUGIN)

    def write(train: list[Any], validation: list[Any] | None = None, **sections: dict[str, Any]) -> Path:
        data: dict[str, Any] = {}
        for name, rows in {"train": train, "validation": validation}.items():
            if rows is not None:
                path = write_rows(tmp_path / f"{name}.jsonl", rows)
                data[name] = {"datasets": [{"dataset_name": "text_sft", "dataset_path": str(path)}]}
        own = sections.pop("data", {})
        for name, fields in own.items():
            data[name] = {**data.get(name, {}), **fields}
        config = {
            "model": {"model_name": str(model), "device_map": "cpu", **sections.pop("model", {})},
            "data": data,
            "training": {
                "trainer_type": "TOY",
                "output_dir": str(tmp_path / "out"),
                "num_train_epochs": 2,
                "per_device_train_batch_size": 2,
                **sections.pop("training", {}),
            },
            **sections,
        }
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(config))
        return file

    return write
