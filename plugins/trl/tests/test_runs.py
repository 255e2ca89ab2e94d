"""Whole runs: what is left on the disk, resuming, stopping, and what goes wrong."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GenerationConfig

from graftwork import ModelParams, build_model, train
from graftwork.cli import main
from graftwork.errors import RunError, UsageError

if TYPE_CHECKING:
    from pathlib import Path

METHODS = ("TRL_SFT", "TRL_DPO", "TRL_KTO", "TRL_RM", "TRL_GRPO", "TRL_ORPO")
NEEDED = {
    "trainer_state.json",
    "graftwork_state.json",
    "optimizer.pt",
    "rng_state.pth",
    "scheduler.pt",
    "checkpoint.json",
}
LORA = {"lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.1}


def numbers(toys: Any, run: Path) -> list[dict[str, Any]]:
    """The metrics without those that depend on the machine."""
    left_out = ("tokens_per_s", "step_time_s", "peak_memory_bytes", "eval_time_s", "step_time", "eval_step_time")
    return [{name: value for name, value in row.items() if name not in left_out} for row in toys.metrics(run)]


def stop_at(step: int, number: int) -> Any:
    def listen(run: Any, now: int, metrics: Any) -> None:
        if now == step:
            os.kill(os.getpid(), number)

    return listen


@pytest.mark.parametrize("method", METHODS)
def test_the_command_shows_each_method(
    toys: Any, tmp_path: Path, llama: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its line of progress as well, which is not there where a test calls the trainer itself."""
    config = toys.config(tmp_path, llama, method, toys.data(tmp_path, method), training={"max_steps": 1})
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    assert main(["train", "-c", str(tmp_path / "run.yaml")]) == 0
    said = capsys.readouterr()
    assert "step 1/1  loss" in said.err
    assert ("tokens/s" in said.err) == (method != "TRL_GRPO")
    assert f"model    {tmp_path / 'run' / 'final'}" in said.out
    assert ("graft generate" in said.out) == (method != "TRL_RM"), "a reward model writes no text"


def test_a_disk_that_is_full_is_said_with_what_a_checkpoint_takes(
    toys: Any, tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's zip writer says no word of it."""

    def full(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598")

    data, training = toys.data(tmp_path, "TRL_SFT"), {"max_steps": 1, "save_steps": 1}
    config = toys.config(tmp_path, llama, "TRL_SFT", data, training=training)
    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr("graftwork.runs.room.full_number", lambda folder, error: 28)
    with pytest.raises(RunError) as caught:
        train(config)
    weights = sum(weight.nbytes for weight in load_file(llama / "model.safetensors").values())
    takes = f"{3 * weights / 2**20:.2f} MiB"  # AdamW's two moments are as large as the weights
    assert f"is full (No space left on device). It takes about {takes}, and there was room for" in str(caught.value)


def test_a_stream_is_accounted_for_at_the_end(
    toys: Any, tmp_path: Path, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = toys.data(tmp_path, "TRL_SFT", stream=True, max_rejected=1)
    rows = tmp_path / "TRL_SFT.jsonl"
    rows.write_text(rows.read_text() + '{"prompt": "alone"}\n')
    config = toys.config(tmp_path, llama, "TRL_SFT", data, training={"max_steps": 8})
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    assert main(["train", "-c", str(tmp_path / "run.yaml")]) == 0
    [account] = json.loads((tmp_path / "run" / "run.json").read_text())["data_train"]["datasets"]
    assert (account["read"], account["used"], account["closed"]) == (13, 12, True)
    assert f"rows     {rows}: 13 rows read, 12 used, 1 rejected" in capsys.readouterr().out


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_goes_on_to_the_same_numbers(
    toys: Any, tmp_path: Path, llama: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropout, shuffled epochs that end within the run, an evaluation, a signal; and nothing is sent anywhere."""

    def send(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("telemetry")

    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", send)
    toy = toys.save(tmp_path / "toy", attention_dropout=0.1)
    data = toys.data(tmp_path, method, validation=True)
    data["train"]["datasets"][0]["shuffle"] = True
    kwargs = {} if method == "TRL_GRPO" else {"disable_dropout": False} if method != "TRL_SFT" else {}

    def config(name: str) -> Any:
        training = {"output_dir": str(tmp_path / name), "max_steps": 6, "eval_strategy": "steps", "eval_steps": 5}
        training |= {"gradient_accumulation_steps": 2, "trainer_kwargs": kwargs}
        return toys.config(tmp_path, toy, method, data, training=training)

    whole = train(config("whole"))
    assert (whole.step, whole.interrupted) == (6, False)
    stopped = train(config("parts"), listeners=[stop_at(3, signal.SIGTERM)])
    assert (stopped.step, stopped.interrupted_by, stopped.model_path) == (3, signal.SIGTERM, None)
    checkpoint = tmp_path / "parts" / "checkpoints" / "step-3"
    assert {path.name for path in checkpoint.iterdir()} >= NEEDED
    assert not (checkpoint / "training_args.bin").exists()
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["status"] == "interrupted"
    done = train(config("parts"), resume=True)
    assert (done.step, done.interrupted) == (6, False)
    assert numbers(toys, tmp_path / "parts") == numbers(toys, tmp_path / "whole")
    assert len(toys.losses(tmp_path / "whole")) == 6
    left, right = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert (tmp_path / "whole" / "report.html").read_text().startswith("<!")


@pytest.mark.parametrize("mode", ["adapter", "merged", "full"])
def test_an_adapter_in_each_way_of_saving(toys: Any, tmp_path: Path, llama: Path, mode: str) -> None:
    """A LoRA with dropout, stopped and gone on with; the three folders give the same logits."""
    data, peft = toys.data(tmp_path, "TRL_SFT"), {**LORA, "save_mode": mode}
    config = toys.config(tmp_path, llama, "TRL_SFT", data, training={"use_peft": True, "max_steps": 4}, peft=peft)
    train(config, listeners=[stop_at(2, signal.SIGINT)])
    train(config, resume=True)
    whole = toys.config(
        tmp_path, llama, "TRL_SFT", data, peft=peft,
        training={"use_peft": True, "max_steps": 4, "output_dir": str(tmp_path / "whole")},
    )  # fmt: skip
    train(whole)
    assert toys.losses(tmp_path / "run") == toys.losses(tmp_path / "whole")
    final = tmp_path / "run" / "final"
    assert (final / "adapter_model.safetensors").exists() == (mode != "merged")
    assert (final / "model.safetensors").exists() == (mode != "adapter")
    ids = torch.tensor([[5, 9, 3, 7, 11]])
    with torch.no_grad():
        trained = build_model(ModelParams(model_name=str(final), device_map="cpu")).eval()(ids).logits
        before = build_model(ModelParams(model_name=str(llama), device_map="cpu")).eval()(ids).logits
    assert not torch.allclose(trained, before, atol=1e-3)
    expected = tmp_path / "logits.pt"
    torch.save(trained, expected)


def test_an_adapter_on_a_quantized_base_stays_in_float32(toys: Any, tmp_path: Path) -> None:
    """TRL rounds it to bfloat16; and an evaluation after each step changes no loss."""
    pytest.importorskip("bitsandbytes")
    toy = toys.save(tmp_path / "toy", hidden_size=64, intermediate_size=64)
    peft = {**LORA, "lora_dropout": 0.0, "q_lora": True, "q_lora_bits": 4, "bnb_4bit_quant_type": "nf4"}
    for name, strategy in (("evaluated", "steps"), ("not", "no")):
        training = {"output_dir": str(tmp_path / name), "use_peft": True, "eval_strategy": strategy, "eval_steps": 1}
        data = toys.data(tmp_path, "TRL_DPO", validation=strategy != "no")
        train(toys.config(tmp_path, toy, "TRL_DPO", data, training=training, peft=peft))
    assert toys.losses(tmp_path / "evaluated") == toys.losses(tmp_path / "not")
    assert toys.losses(tmp_path / "not")[0][1] == pytest.approx(math.log(2), rel=1e-5)
    kept = load_file(tmp_path / "not" / "final" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    weight = next(tensor for name, tensor in kept.items() if "lora_A" in name)
    assert not torch.equal(weight, weight.bfloat16().float())


def test_final_is_what_the_model_was(toys: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """bfloat16 in, bfloat16 out after float32 masters; no padding token of TRL's and no model card; it generates."""
    toy = toys.save(tmp_path / "toy", torch.bfloat16)
    config = toys.config(tmp_path, toy, "TRL_DPO", toys.data(tmp_path, "TRL_DPO"), training={"save_steps": 2})
    result = train(config)
    final = tmp_path / "run" / "final"
    assert result.model_path == final
    assert {tensor.dtype for tensor in load_file(final / "model.safetensors").values()} == {torch.bfloat16}
    kept = load_file(tmp_path / "run" / "checkpoints" / "step-2" / "model.safetensors")
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}
    for name in ("config.json", "generation_config.json"):
        before, after = (json.loads((folder / name).read_text()) for folder in (toy, final))
        assert {key: after.get(key) for key in before} == before
    assert not (final / "README.md").exists()
    assert (final / "chat_template.jinja").read_text() == (toy / "chat_template.jinja").read_text()
    assert main(["generate", str(final), "--prompt", "q0 1", "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().out


def test_only_so_many_checkpoints_are_kept(toys: Any, tmp_path: Path, llama: Path) -> None:
    data = toys.data(tmp_path, "TRL_SFT", validation=True)
    others = [{"prompt": "q0 1", "completion": "zzzz"}]  # what is learned makes these less likely, step by step
    toys.write(tmp_path / "TRL_SFT held out.jsonl", others)
    training = {
        "save_steps": 1, "save_total_limit": 2, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 6,
        "load_best_model_at_end": True, "learning_rate": 0.05, "lr_scheduler_type": "constant",
    }  # fmt: skip
    train(toys.config(tmp_path, llama, "TRL_SFT", data, training=training))
    evaluations = {row["step"]: row["eval_loss"] for row in toys.metrics(tmp_path / "run") if "eval_loss" in row}
    best = min((step for step in evaluations if step), key=lambda step: evaluations[step])
    names = {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()}
    assert names == {f"step-{best}", "step-5", "step-6"}
    assert best < 5
    final, kept = (
        load_file(tmp_path / "run" / place / "model.safetensors") for place in ("final", f"checkpoints/step-{best}")
    )
    assert all(torch.equal(final[name], kept[name]) for name in final)


def test_an_early_stop(toys: Any, tmp_path: Path, llama: Path) -> None:
    training = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 20, "learning_rate": 0.0}
    training |= {"early_stopping_patience": 2}
    data = toys.data(tmp_path, "TRL_SFT", validation=True)
    assert train(toys.config(tmp_path, llama, "TRL_SFT", data, training=training)).step == 3


def test_what_is_best_can_be_another_metric(toys: Any, tmp_path: Path, llama: Path) -> None:
    training = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "save_total_limit": 1}
    training |= {"metric_for_best_model": "rewards/margins"}
    data = toys.data(tmp_path, "TRL_DPO", validation=True)
    train(toys.config(tmp_path, llama, "TRL_DPO", data, training=training))
    margins = {row["step"]: row["eval_rewards/margins"] for row in toys.metrics(tmp_path / "run") if "eval_loss" in row}
    best = max((step for step in margins if step), key=lambda step: margins[step])
    state = json.loads((tmp_path / "run" / "checkpoints" / f"step-{best}" / "graftwork_state.json").read_text())
    assert state["best"] == [[best, margins[best]]]
    training |= {"metric_for_best_model": "eval_rewards/margin", "output_dir": str(tmp_path / "other")}
    with pytest.raises(UsageError, match=r"eval_rewards/margin is not measured .*did you mean eval_rewards/margins\?"):
        train(toys.config(tmp_path, llama, "TRL_DPO", data, training=training))
    assert toys.losses(tmp_path / "other") == [], "before the first step"


def test_a_best_checkpoint_that_is_damaged_is_not_taken(
    toys: Any, tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk has changed it since; final/ then gets the last weights, and the log says so."""
    from graftwork_trl.trainer import TrlTrainer

    training = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "max_steps": 3}
    training |= {"greater_is_better": True, "learning_rate": 1e-2, "save_steps": 1}  # the best is the worst: the first
    save = TrlTrainer._save_final

    def damaged_before(trainer: TrlTrainer) -> Any:
        path = tmp_path / "run" / "checkpoints" / "step-1" / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-8])
        return save(trainer)

    monkeypatch.setattr(TrlTrainer, "_save_final", damaged_before)
    data = toys.data(tmp_path, "TRL_SFT", validation=True)
    train(toys.config(tmp_path, llama, "TRL_SFT", data, training=training))
    assert re.search(r"step-1 is damaged: model.safetensors has .* final/ does not get its weights", caplog.text)
    final, last = (
        load_file(tmp_path / "run" / place / "model.safetensors") for place in ("final", "checkpoints/step-3")
    )
    assert all(torch.equal(final[name], last[name]) for name in final)


def test_a_loss_that_is_no_number_stops_the_run(toys: Any, tmp_path: Path, llama: Path) -> None:
    training = {"learning_rate": 1e30, "max_grad_norm": None, "lr_scheduler_type": "constant"}
    config = toys.config(tmp_path, llama, "TRL_SFT", toys.data(tmp_path, "TRL_SFT"), training=training)
    with pytest.raises(RunError, match=r"step 2: (loss|gradient norm) nan of the rows .*jsonl:3, .*jsonl:4: the weigh"):
        train(config)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
    assert len(toys.losses(tmp_path / "run")) == 1


def test_what_trl_refuses_is_one_sentence(toys: Any, tmp_path: Path, llama: Path) -> None:
    training = {"trainer_kwargs": {"router_aux_loss_coef": 0.5}}
    config = toys.config(tmp_path, llama, "TRL_SFT", toys.data(tmp_path, "TRL_SFT"), training=training)
    with pytest.raises(UsageError, match=r"TRL refuses this configuration: `router_aux_loss_coef` is set to 0.5 but"):
        train(config)


def test_a_checkpoint_of_another_kind_is_refused(toys: Any, tmp_path: Path, llama: Path) -> None:
    from graftwork_trl.session import Session

    (tmp_path / "step-1").mkdir()
    session = Session(run=None, config=None, tokenizer=None, total_steps=1)  # type: ignore[arg-type]
    with pytest.raises(
        RunError, match=r"step-1 is not a checkpoint that a TRL trainer can go on from: FileNotFoundErr"
    ):
        session.restore(tmp_path / "step-1")


def test_a_small_gain_is_the_best_and_no_reason_for_patience(toys: Any, tmp_path: Path) -> None:
    """As in transformers: the threshold is for the early stop alone."""
    from graftwork_trl.session import Session

    training = {"early_stopping_patience": 3, "early_stopping_threshold": 0.5}
    config = toys.config(tmp_path, tmp_path, "TRL_SFT", toys.data(tmp_path, "TRL_SFT"), training=training)
    session = Session(run=None, config=config, tokenizer=None, total_steps=9)  # type: ignore[arg-type]
    seen = []
    for step, loss in enumerate([3.0, 2.8, 2.6, float("nan"), 2.6, 1.9], 1):
        is_best = session.compare(step, {"eval_loss": loss})
        seen.append((is_best, session.state.best[0][0], session.state.evaluations_without_gain))
    assert seen == [(True, 1, 0), (True, 2, 1), (True, 3, 2), (False, 3, 3), (False, 3, 4), (True, 6, 0)]


def test_metrics_of_a_step(toys: Any, tmp_path: Path, llama: Path) -> None:
    training = {"logging_steps": 2, "logging_first_step": True, "max_steps": 4}
    train(toys.config(tmp_path, llama, "TRL_DPO", toys.data(tmp_path, "TRL_DPO", validation=True), training=training))
    rows = toys.metrics(tmp_path / "run")
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 4]
    assert [row["step"] for row in rows if "eval_loss" in row] == [0, 4]
    expected = {"loss", "learning_rate", "grad_norm", "rewards/margins", "logps/chosen", "tokens", "supervised_tokens"}
    assert set(rows[1]) >= expected | {"tokens_per_s", "step_time_s", "peak_memory_bytes"}
    assert not {"epoch", "train_loss", "total_flos"} & set().union(*rows)
    assert all(isinstance(row.get("tokens", 0), int) for row in rows)


def test_nothing_is_printed(toys: Any, tmp_path: Path, llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """TRL and transformers print bars, tables and notices of their own where they are let."""
    for method in ("TRL_SFT", "TRL_ORPO"):
        training = {"output_dir": str(tmp_path / method)}
        data = toys.data(tmp_path, method, validation=True)
        train(toys.config(tmp_path, llama, method, data, training=training))
    said = capfd.readouterr()
    assert said.out == ""
    assert [line for line in said.err.splitlines() if "graftwork" not in line] == []


@pytest.mark.parametrize("mode", [None, "merged", "full", "adapter"])
def test_the_saved_model_stops_where_its_turns_end(toys: Any, tmp_path: Path, mode: str | None) -> None:
    """The base's generation_config.json names another token, which ends texts and no turn of ChatML."""
    toy = toys.save(tmp_path / "toy", vocab_size=264)
    tokenizer = AutoTokenizer.from_pretrained(toy)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.save_pretrained(toy)
    data, peft = toys.data(tmp_path, "TRL_SFT"), {"peft": {**LORA, "save_mode": mode}} if mode else {}
    training = {"use_peft": mode is not None, "max_steps": 1}
    final = train(
        toys.config(tmp_path, toy, "TRL_SFT", data, model={"chat_template": "chatml"}, training=training, **peft)
    ).model_path
    assert final is not None
    assert json.loads((toy / "generation_config.json").read_text())["eos_token_id"] == 257
    saved = GenerationConfig.from_pretrained(final)
    assert saved.eos_token_id == [257, tokenizer.convert_tokens_to_ids("<|im_end|>")]
    assert saved.pad_token_id is None  # TRL's, for the training alone
