"""Whole runs of a toy model: what is trained, how, and what is left on the disk."""

from __future__ import annotations

import json
import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from graftwork import ModelParams, build_model, merge_adapter, train
from graftwork.errors import DataError, RunError, UsageError
from graftwork_native import trainer as trainer_module

if TYPE_CHECKING:
    from pathlib import Path

IDS = torch.tensor([[5, 9, 3, 7, 11, 4, 8, 6]])
TARGETS = {"lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["q_proj", "v_proj"]}


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    with torch.no_grad():
        return model(IDS).logits


def steps_of(toys: Any, run: Path) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss"], row["grad_norm"]) for row in toys.metrics(run) if "loss" in row]


def evaluations_of(toys: Any, run: Path) -> list[tuple[int, float]]:
    return [(row["step"], row["eval_loss"]) for row in toys.metrics(run) if "eval_loss" in row]


def run_here(toys: Any, tmp_path: Path, toy: Path, data: dict[str, Any], name: str = "run", **sections: Any) -> Path:
    sections["training"] = {"output_dir": str(tmp_path / name), **sections.get("training", {})}
    train(toys.config(tmp_path, toy, data, **sections))
    return tmp_path / name


# The numbers


@pytest.mark.parametrize("pack", [False, True])
def test_accumulation_changes_nothing(toys: Any, tmp_path: Path, llama: Path, pack: bool) -> None:
    """Eight samples in one pass, and one at a time, whose numbers of labels differ."""
    data = {"train": toys.split(toys.chat(tmp_path / "a.jsonl", 16), pack=pack, max_length=48)}
    runs = [
        run_here(
            toys, tmp_path, llama, data, f"{size}x{count}",
            training={"per_device_train_batch_size": size, "gradient_accumulation_steps": count, "max_steps": 3},
        )
        for size, count in ((8, 1), (2, 4), (1, 8))
    ]  # fmt: skip
    first = steps_of(toys, runs[0])
    assert len({round(loss, 3) for _, loss, _ in first}) == 3
    weights = load_file(runs[0] / "final" / "model.safetensors")
    for other in runs[1:]:
        for (_, loss, norm), (_, expected, expected_norm) in zip(steps_of(toys, other), first, strict=True):
            assert loss == pytest.approx(expected, rel=1e-6)
            assert norm == pytest.approx(expected_norm, rel=1e-5)
        for name, tensor in load_file(other / "final" / "model.safetensors").items():
            torch.testing.assert_close(tensor, weights[name], rtol=1e-4, atol=1e-6)


def test_a_step_is_the_one_that_pytorch_takes(toys: Any, tmp_path: Path, llama: Path) -> None:
    """Three steps of a plain loop over the padded samples: loss, norm before clipping, weights."""
    toys.chat(tmp_path / "a.jsonl", 12)
    data = {"train": toys.split(tmp_path / "a.jsonl")}
    training = {"per_device_train_batch_size": 4, "max_steps": 3, "weight_decay": 0.1, "max_grad_norm": 0.5}
    training |= {"lr_scheduler_type": "constant"}
    run = run_here(toys, tmp_path, llama, data, training=training)

    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama), AutoTokenizer.from_pretrained(llama)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    rows = [json.loads(line)["messages"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    for step, (_, loss, norm) in enumerate(steps_of(toys, run)):
        encoded = [
            tokenizer.apply_chat_template(row, return_dict=True, return_assistant_tokens_mask=True)
            for row in rows[4 * step : 4 * step + 4]
        ]
        ids = [torch.tensor(one["input_ids"]) for one in encoded]
        masks = [torch.tensor(one["assistant_masks"]).bool() for one in encoded]
        labels = [torch.where(mask, one, -100) for one, mask in zip(ids, masks, strict=True)]
        batch = {
            "input_ids": torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=258),
            "attention_mask": torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
            "labels": torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100),
        }
        expected = model(**batch).loss
        expected.backward()
        expected_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
        assert norm == pytest.approx(float(expected_norm), rel=1e-4)
        assert norm > 0.5, "clipping takes part"
    for name, tensor in load_file(run / "final" / "model.safetensors").items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_gradient_checkpointing_changes_nothing(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]) -> None:
    runs = [
        run_here(toys, tmp_path, llama, chat, name, training={"enable_gradient_checkpointing": name == "with"}, **peft)
        for name, peft in (("without", {}), ("with", {}))
    ]
    assert steps_of(toys, runs[0]) == steps_of(toys, runs[1])
    adapters = [
        run_here(
            toys, tmp_path, llama, chat, f"lora {name}", peft=TARGETS,
            training={"enable_gradient_checkpointing": name == "with", "use_peft": True},
        )
        for name in ("without", "with")
    ]  # fmt: skip
    assert steps_of(toys, adapters[0]) == steps_of(toys, adapters[1])


@pytest.mark.parametrize("optimizer", ["adamw", "adamw_torch", "sgd", "adafactor"])
def test_optimizers_learn(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any], optimizer: str) -> None:
    training = {"optimizer": optimizer, "max_steps": 12, "per_device_train_batch_size": 12}
    training |= {"learning_rate": 0.5 if optimizer == "sgd" else 0.02, "sgd_momentum": 0.5}
    losses = [loss for _, loss, _ in steps_of(toys, run_here(toys, tmp_path, llama, chat, training=training))]
    assert losses[-1] < 0.8 * losses[0]


def test_the_same_seed_gives_the_same_numbers(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]) -> None:
    model = toys.save(tmp_path / "dropping", attention_dropout=0.1)
    runs = [run_here(toys, tmp_path, model, chat, name, training={"seed": seed}) for name, seed in (("a", 1), ("b", 1))]
    runs.append(run_here(toys, tmp_path, model, chat, "c", training={"seed": 2}))
    numbers = [steps_of(toys, run) for run in runs]
    assert numbers[0] == numbers[1] != numbers[2]
    files = [(run / "final" / "model.safetensors").read_bytes() for run in runs]
    assert files[0] == files[1] != files[2]


def test_a_step_without_labels_is_lived_through(toys: Any, tmp_path: Path, llama: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n{"text": "abc"}\n{"text": "abcd"}\n' + json.dumps({"text": "x" * 12}) + "\n")
    data = {"train": {"datasets": [{"dataset_name": "text", "dataset_path": str(path)}], "max_length": 6, "pack": True}}
    run = run_here(toys, tmp_path, llama, data, training={"per_device_train_batch_size": 1, "max_steps": 9})
    assert len(steps_of(toys, run)) == 9


def test_a_loss_that_is_no_number_stops_the_run(
    toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = trainer_module.learning_rate
    monkeypatch.setattr(trainer_module, "learning_rate", lambda *args: 1e30 if args[1] == 1 else step(*args))
    with pytest.raises(
        RunError,
        match=r"(?s)step 3: the loss is .*in every row.*The weights were left as.*lower training\.learning_",
    ):
        run_here(toys, tmp_path, llama, chat, training={"max_grad_norm": None})
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "failed"
    assert record["error"].startswith("step 3: the loss is ")
    assert len(steps_of(toys, tmp_path / "run")) == 2


# Adapters


@pytest.mark.parametrize("mode", ["adapter_only", "merged"])
def test_only_the_adapter_is_trained(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any], mode: str) -> None:
    run = run_here(toys, tmp_path, llama, chat, training={"use_peft": True}, peft={**TARGETS, "peft_save_mode": mode})
    record = json.loads((run / "run.json").read_text())
    per_layer = 4 * (32 + 32) + 4 * (32 + 16)  # two matrices of rank 4 each: queries 32 -> 32, values 32 -> 16
    assert record["trained_parameters"] == 2 * per_layer
    if mode == "adapter_only":
        assert not (run / "final" / "model.safetensors").exists()
        assert all("lora_" in name for name in load_file(run / "final" / "adapter_model.safetensors"))
        return
    before, after = load_file(llama / "model.safetensors"), load_file(run / "final" / "model.safetensors")
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {f"model.layers.{n}.self_attn.{m}_proj.weight" for n in (0, 1) for m in ("q", "v")}


def test_merged_is_unmerged_after_training(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]) -> None:
    runs = {
        mode: run_here(
            toys, tmp_path, llama, chat, mode, training={"use_peft": True}, peft={**TARGETS, "peft_save_mode": mode}
        )
        for mode in ("adapter_only", "merged")
    }
    adapted = build_model(ModelParams(model_name=str(runs["adapter_only"] / "final"))).eval()
    with torch.no_grad():
        expected = adapted(IDS).logits
    assert not torch.allclose(expected, logits(llama), atol=1e-2)
    torch.testing.assert_close(logits(runs["merged"] / "final"), expected, rtol=1e-4, atol=1e-4)
    merge_adapter(runs["adapter_only"] / "final", output_dir=tmp_path / "merged later")
    torch.testing.assert_close(logits(tmp_path / "merged later"), expected, rtol=1e-4, atol=1e-4)


def test_adapter_beside_its_base(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]) -> None:
    peft = {**TARGETS, "peft_save_mode": "adapter_and_base_model"}
    run = run_here(toys, tmp_path, llama, chat, training={"use_peft": True}, peft=peft)
    final = run / "final"
    assert (final / "adapter_model.safetensors").exists()
    base = load_file(final / "model.safetensors")
    assert all(torch.equal(base[name], tensor) for name, tensor in load_file(llama / "model.safetensors").items())
    adapted = build_model(ModelParams(model_name=str(final))).eval()
    adapter_only = run_here(toys, tmp_path, llama, chat, "only", training={"use_peft": True}, peft=TARGETS)
    other = build_model(ModelParams(model_name=str(adapter_only / "final"))).eval()
    with torch.no_grad():
        torch.testing.assert_close(adapted(IDS).logits, other(IDS).logits)


# Precision and what is frozen


def test_bfloat16_products_over_float32_masters(toys: Any, tmp_path: Path, chat: dict[str, Any]) -> None:
    model = toys.save(tmp_path / "half", dtype=torch.bfloat16)
    training = {"mixed_precision_dtype": "bf16", "learning_rate": 1e-4, "max_steps": 6, "save_steps": 3}
    run = run_here(toys, tmp_path, model, chat, training={**training, "lr_scheduler_type": "constant"})
    record = json.loads((run / "run.json").read_text())
    assert record["dtype"] == "float32 weights, bfloat16 products"
    masters = load_file(run / "checkpoints" / "step-6" / "model.safetensors")
    assert {tensor.dtype for tensor in masters.values()} == {torch.float32}
    final = load_file(run / "final" / "model.safetensors")
    assert {tensor.dtype for tensor in final.values()} == {torch.bfloat16}
    assert all(torch.equal(masters[name].bfloat16(), tensor) for name, tensor in final.items())
    # Steps of 1e-4 are lost in bfloat16 beside a weight of 0.1; in the masters they add up.
    name = "model.layers.0.mlp.up_proj.weight"
    moved = (masters[name] - load_file(model / "model.safetensors")[name].float()).abs().mean()
    assert 1e-4 < moved < 7e-4
    exact = run_here(toys, tmp_path, model, chat, "exact", training={**training, "mixed_precision_dtype": "none"})
    for (_, loss, _), (_, expected, _) in zip(steps_of(toys, run), steps_of(toys, exact), strict=True):
        assert loss == pytest.approx(expected, rel=0.02)


def test_frozen_layers_stay(toys: Any, tmp_path: Path, chat: dict[str, Any]) -> None:
    model = toys.save(tmp_path / "half", dtype=torch.bfloat16)
    frozen = ["model.embed_tokens", "model.layers.0"]
    run = run_here(toys, tmp_path, model, chat, model={"freeze_layers": frozen})
    before, after = load_file(model / "model.safetensors"), load_file(run / "final" / "model.safetensors")
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == name.startswith(tuple(frozen)), name


def test_nothing_left_to_train_is_an_error(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"freeze_layers.*nothing.*train"):
        run_here(toys, tmp_path, llama, chat, model={"freeze_layers": ["model", "lm_head"]})


# Evaluation, the best model, stopping early


def test_evaluation_is_transformers_mean_and_repeats(toys: Any, tmp_path: Path, chat: dict[str, Any]) -> None:
    model = toys.save(tmp_path / "dropping", attention_dropout=0.5)
    training = {"learning_rate": 0.0, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 3}
    run = run_here(toys, tmp_path, model, chat, training=training)
    found = evaluations_of(toys, run)
    assert [step for step, _ in found] == [0, 1, 2, 3, 4]
    assert len({loss for _, loss in found}) == 1

    plain, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    total, count = 0.0, 0
    for line in (tmp_path / "validation.jsonl").read_text().splitlines():
        one = tokenizer.apply_chat_template(
            json.loads(line)["messages"], return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        labels = torch.where(torch.as_tensor(one["assistant_masks"]).bool(), one["input_ids"], -100)
        number = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(plain(one["input_ids"], labels=labels).loss) * number
        count += number
    assert found[0][1] == pytest.approx(total / count, rel=1e-5)
    assert next(row["eval_tokens"] for row in toys.metrics(run)) == count


def evaluations_are(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    """Whatever the model is like, these are its evaluations, the one before training first."""
    given = iter(losses)
    monkeypatch.setattr(trainer_module, "evaluate", lambda *args: {"eval_loss": next(given)})


BEST = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "max_steps": 6, "save_steps": 0}


@pytest.mark.parametrize("peft", [False, True])
def test_the_best_weights_are_the_final_ones(
    toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any], peft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = {"max_steps": 6, "save_steps": 1, "use_peft": peft}
    every = run_here(toys, tmp_path, llama, {"train": chat["train"]}, "every", training=plain, peft=TARGETS)
    evaluations_are(monkeypatch, 9.0, 5.0, 4.0, 3.0, 3.5, 4.0, 3.0)
    run = run_here(
        toys, tmp_path, llama, chat, training={**BEST, "use_peft": peft, "save_total_limit": 1}, peft=TARGETS
    )
    name = "adapter_model.safetensors" if peft else "model.safetensors"
    assert (run / "final" / name).read_bytes() == (every / "checkpoints" / "step-3" / name).read_bytes()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-3"], "an equal loss is no gain"


def test_an_adapter_keeps_its_fresh_base(
    toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights that nothing saved are drawn again, the same ones: at a resume, and for the best adapter."""
    dropping = {"load_pretrained_weights": False, "model_kwargs": {"attention_dropout": 0.1}}
    sections = {"model": dropping, "peft": {**TARGETS, "peft_save_mode": "merged"}}
    plain = {"use_peft": True, "save_steps": 2, "max_steps": 4}
    run = run_here(toys, tmp_path, llama, {"train": chat["train"]}, "plain", training=plain, **sections)
    name = "model.embed_tokens.weight"
    expected = load_file(run / "final" / "model.safetensors")
    evaluations_are(monkeypatch, 9.0, 5.0, 4.0, 4.5, 4.6, 4.7, 4.8)
    best = run_here(toys, tmp_path, llama, chat, "best", training={**BEST, "use_peft": True}, **sections)
    assert torch.equal(load_file(best / "final" / "model.safetensors")[name], expected[name])
    monkeypatch.undo()
    again = {**plain, "output_dir": str(run), "max_steps": 5, "lr_scheduler_type": "linear"}
    train(toys.config(tmp_path, llama, {"train": chat["train"]}, training=again, **sections), resume=True)
    assert torch.equal(load_file(run / "final" / "model.safetensors")[name], expected[name])


def test_early_stopping_counts_evaluations_without_gain(
    toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    training = {**BEST, "early_stopping_patience": 2, "early_stopping_threshold": 0.1, "max_steps": 9}
    evaluations_are(monkeypatch, 9.0, 5.0, 4.0, 3.95, 4.2, float("nan"), 1.0)
    with caplog.at_level(logging.INFO, "graftwork_native"):
        run = run_here(toys, tmp_path, llama, chat, training=training)
    assert [step for step, _ in evaluations_of(toys, run)] == [0, 1, 2, 3, 4]
    assert "early stop: 2 evaluations without gain in eval_loss; the best was at step 3" in caplog.text
    # As transformers counts: a gain below the threshold is none for the patience, and the better weights all the same
    best = (run / "checkpoints" / "step-3" / "model.safetensors").read_bytes()
    assert (run / "final" / "model.safetensors").read_bytes() == best
    assert json.loads((run / "run.json").read_text())["result"]["step"] == 4


def test_a_metric_that_is_not_measured(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]) -> None:
    training = {**BEST, "metric_for_best_model": "accuracy"}
    with pytest.raises(
        UsageError, match=r"metric_for_best_model: accuracy is not measured in an evaluation; .*[Kk]nown: .*eval_loss"
    ):
        run_here(toys, tmp_path, llama, chat, training=training)
    assert not (tmp_path / "run").exists(), "found before the run began"


def test_evaluation_by_epoch_and_fractions_of_epochs(toys: Any, tmp_path: Path, llama: Path, chat: Any) -> None:
    training = {"max_steps": -1, "num_train_epochs": 2.5, "per_device_train_batch_size": 4, "eval_strategy": "epoch"}
    run = run_here(toys, tmp_path, llama, chat, training={**training, "save_epoch": True, "save_steps": 0})
    assert [step for step, _ in evaluations_of(toys, run)] == [0, 3, 6, 8]
    assert [step for step, *_ in steps_of(toys, run)] == list(range(1, 9))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-3", "step-6", "step-8"]


def test_validation_may_be_streamed_too(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]) -> None:
    training = {"eval_strategy": "steps", "eval_steps": 2}
    runs = []
    for name, stream in (("read", False), ("streamed", True)):
        data = {"train": chat["train"], "validation": {**chat["validation"], "stream": stream}}
        runs.append(run_here(toys, tmp_path, llama, data, name, training=training))
    assert evaluations_of(toys, runs[0]) == evaluations_of(toys, runs[1])


# What is left on the disk


def test_the_run_folder(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]) -> None:
    training = {"save_steps": 1, "save_total_limit": 2, "enable_tensorboard": True, "trainer_kwargs": {}}
    run = run_here(toys, tmp_path, llama, chat, training=training)
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.yaml", "run.json", "metrics.jsonl", "samples.jsonl", "checkpoints", "final", "tensorboard",
        "report.html", ".lock",
    }  # fmt: skip
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-3", "step-4"]
    row = next(row for row in toys.metrics(run) if "loss" in row)
    assert set(row) == {
        "step", "loss", "learning_rate", "grad_norm", "tokens", "supervised_tokens", "tokens_per_s", "step_time_s",
        "peak_memory_bytes",
    }  # fmt: skip
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["error"] is None
    assert record["result"]["step"] == 4
    assert {"graftwork", "torch", "transformers"} <= set(record["versions"])
    stages = [json.loads(line)["stage"] for line in (run / "samples.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(stages)) == ["before training", "half-way", "after training"]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "qwen2", "mistral", "gemma2", "mixtral"])
def test_the_final_folder_loads_anywhere(toys: Any, tmp_path: Path, kind: str, chat: dict[str, Any]) -> None:
    model = toys.save(tmp_path / kind, kind)
    run = run_here(toys, tmp_path, model, chat, training={"trainer_kwargs": {"sample_count": 1}})
    final = run / "final"
    plain, ours = AutoModelForCausalLM.from_pretrained(final).eval(), build_model(ModelParams(model_name=str(final)))
    with torch.no_grad():
        assert torch.equal(plain(IDS).logits, ours.eval()(IDS).logits)
    assert not torch.equal(logits(model), logits(final))
    assert "graftwork" not in (final / "config.json").read_text()
    tokenizer = AutoTokenizer.from_pretrained(final)
    assert tokenizer.chat_template == toys.tokenizer().chat_template
    assert tokenizer.eos_token == "<end>"
    losses = [loss for _, loss, _ in steps_of(toys, run)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("kind", ["gpt2", "opt", "qwen2"])
def test_generic_families_take_an_adapter(toys: Any, tmp_path: Path, kind: str, chat: dict[str, Any]) -> None:
    model = toys.save(tmp_path / kind, kind)
    training = {"use_peft": True, "max_steps": 6, "learning_rate": 0.02, "per_device_train_batch_size": 12}
    run = run_here(toys, tmp_path, model, chat, training=training, peft={"lora_r": 4, "lora_alpha": 8})
    losses = [loss for _, loss, _ in steps_of(toys, run)]
    assert losses[-1] < losses[0]
    merge_adapter(run / "final", output_dir=tmp_path / "merged")
    adapted = build_model(ModelParams(model_name=str(run / "final"))).eval()
    with torch.no_grad():
        torch.testing.assert_close(adapted(IDS).logits, logits(tmp_path / "merged"), rtol=1e-4, atol=1e-4)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    options = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(IDS), "eos_token_id": None}
    assert torch.equal(merged.generate(IDS, **options), adapted.generate(IDS, **options))


def test_samples_stay_within_the_models_positions(toys: Any, tmp_path: Path, chat: dict[str, Any]) -> None:
    """GPT-2's positions are a table: a prompt of 30 tokens and 64 new ones do not fit into 48."""
    model = toys.save(tmp_path / "gpt2", "gpt2", n_positions=48)
    data = {"train": {**chat["train"], "max_length": 48}, "validation": {**chat["validation"], "max_length": 48}}
    run = run_here(toys, tmp_path, model, data, training={"trainer_kwargs": {"sample_count": 4}})
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 12


def test_blocks_are_no_longer_than_the_models_positions(toys: Any, tmp_path: Path, chat: dict[str, Any]) -> None:
    model = toys.save(tmp_path / "gpt2", "gpt2", n_positions=20)
    with pytest.raises(UsageError, match=r"max_length = 48: the model's positions are a table of 20"):
        run_here(toys, tmp_path, model, {"train": {**chat["train"], "max_length": 48}})


def test_a_tokenizer_with_more_tokens_than_the_model(toys: Any, tmp_path: Path, chat: dict[str, Any]) -> None:
    model = toys.save(tmp_path / "small", vocab_size=200, pad_token_id=None, eos_token_id=None)
    with pytest.raises(UsageError, match=r"token 257, and the model .* 200 tokens.*model\.tokenizer_name"):
        run_here(toys, tmp_path, model, {"train": chat["train"]})


def test_a_run_is_never_written_over(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]) -> None:
    run = run_here(toys, tmp_path, llama, chat)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"holds a run already; go on with it \(--resume\), or choose another folder"):
        run_here(toys, tmp_path, llama, chat)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_mistake_in_the_data_leaves_nothing_behind(toys: Any, tmp_path: Path, llama: Path) -> None:
    path = toys.chat(tmp_path / "a.jsonl", 4)
    good = path.read_text()
    path.write_text(good + '{"messages": oops}\n')
    data = {"train": toys.split(path)}
    with pytest.raises(DataError, match=r"a\.jsonl:5: not JSON"):
        run_here(toys, tmp_path, llama, data)
    assert not (tmp_path / "run").exists()
    path.write_text(good)
    assert (run_here(toys, tmp_path, llama, data) / "final").is_dir()


def test_someone_elses_folder_is_not_touched(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("mine")
    with pytest.raises(UsageError, match=r"has config\.yaml in it, which no run here wrote"):
        run_here(toys, tmp_path, llama, chat)
    assert (folder / "config.yaml").read_text() == "mine"


def test_listeners_see_what_is_logged(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]) -> None:
    seen: list[tuple[int, dict[str, Any]]] = []
    config = toys.config(tmp_path, llama, chat, training={"eval_strategy": "steps", "eval_steps": 2})
    train(config, listeners=[lambda run, step, metrics: seen.append((step, dict(metrics)))])
    assert [{"step": step, **metrics} for step, metrics in seen] == toys.metrics(tmp_path / "run")


def test_saved_checkpoints_are_announced_once(
    toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[tuple[int, bool]] = []
    events = SimpleNamespace(checkpoint_saved=lambda run, step, path: saved.append((step, path.is_dir())))
    monkeypatch.setattr(trainer_module, "get_registry", lambda: SimpleNamespace(events=events))
    training = {**BEST, "eval_steps": 2, "save_steps": 2}
    evaluations_are(monkeypatch, 9.0, 8.0, 7.0, 6.0)
    run_here(toys, tmp_path, llama, chat, training=training)
    assert saved == [(2, True), (4, True), (6, True)]
