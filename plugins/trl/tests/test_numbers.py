"""Losses and weights against other code: the native trainers, and plain PyTorch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from graftwork import train

if TYPE_CHECKING:
    from pathlib import Path

BASE = {"max_steps": 5, "gradient_accumulation_steps": 2, "weight_decay": 0.1, "max_grad_norm": 0.5}
SHUFFLED = {"shuffle": True}


def steps_of(toys: Any, run: Path) -> list[tuple[float, float, float]]:
    return [(row["loss"], row["grad_norm"], row["learning_rate"]) for row in toys.metrics(run) if "loss" in row]


def run_here(toys: Any, folder: Path, toy: Path, method: str, data: dict[str, Any], **sections: Any) -> Path:
    training = {**BASE, "output_dir": str(folder / method), **sections.pop("training", {})}
    train(toys.config(folder, toy, method, data, training=training, **sections))
    return folder / method


def close(ours: list[Any], theirs: list[Any], tolerance: float) -> None:
    assert len(ours) == len(theirs) > 0
    for left, right in zip(ours, theirs, strict=True):
        assert left == pytest.approx(right, rel=tolerance, abs=1e-9)


@pytest.mark.parametrize("pack", [False, True])
def test_sft_is_the_native_one_step_for_step(toys: Any, tmp_path: Path, llama: Path, pack: bool) -> None:
    """The same rows in the same order, shuffled anew in each epoch, whose last step is a short one."""
    data = toys.data(tmp_path, "TRL_SFT", validation=True, pack=pack, max_length=60)
    data["train"]["datasets"][0] |= SHUFFLED
    training = {"lr_scheduler_type": "cosine", "warmup_steps": 2, "per_device_train_batch_size": 1 if pack else 2}
    runs = [
        run_here(toys, tmp_path, llama, method, data, training={**training, "trainer_kwargs": options})
        for method, options in (("TRL_SFT", {}), ("NATIVE_SFT", {"sample_count": 0}))
    ]
    # Adam divides by the root of the second moment, which magnifies float32's rounding a little more each step
    close(steps_of(toys, runs[0]), steps_of(toys, runs[1]), 1e-4)
    evaluations = [[row["eval_loss"] for row in toys.metrics(run) if "eval_loss" in row] for run in runs]
    close(*evaluations, 1e-4)  # type: ignore[misc]
    weights = load_file(runs[1] / "final" / "model.safetensors")
    for name, tensor in load_file(runs[0] / "final" / "model.safetensors").items():
        torch.testing.assert_close(tensor, weights[name], rtol=1e-2, atol=1e-4)


def test_documents_too(toys: Any, tmp_path: Path, llama: Path) -> None:
    rows = [{"text": f"{number} " + "abcdefgh"[number % 8] * (3 + 5 * number % 23)} for number in range(10)]
    path = toys.write(tmp_path / "text.jsonl", rows)
    data = {"train": toys.split(path, "text", pack=True, max_length=32, stream=True)}
    runs = [
        run_here(toys, tmp_path, llama, method, data, training={"trainer_kwargs": options})
        for method, options in (("TRL_SFT", {}), ("NATIVE_PRETRAIN", {"sample_count": 0}))
    ]
    close(steps_of(toys, runs[0]), steps_of(toys, runs[1]), 1e-4)


def test_dpo_is_the_native_one_step_for_step(toys: Any, tmp_path: Path, llama: Path) -> None:
    """Each prompt computed once and as a part of two rows."""
    data = toys.data(tmp_path, "TRL_DPO", validation=True)
    data["train"]["datasets"][0] |= SHUFFLED
    runs = [
        run_here(toys, tmp_path, llama, method, data, training={"trainer_kwargs": options})
        for method, options in (("TRL_DPO", {}), ("NATIVE_DPO", {"sample_count": 0}))
    ]
    close(steps_of(toys, runs[0]), steps_of(toys, runs[1]), 1e-3)
    evaluations = [[row["eval_loss"] for row in toys.metrics(run) if "eval_loss" in row] for run in runs]
    close(*evaluations, 1e-3)  # type: ignore[misc]


@pytest.fixture(scope="module")
def mixtral(toys: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy mixture of experts; TRL adds the auxiliary loss of such a model unasked."""
    folder = tmp_path_factory.mktemp("toy") / "mixtral"
    saved: Path = toys.save(folder, model_type="mixtral", num_local_experts=4, router_aux_loss_coef=0.25)
    return saved


@pytest.mark.parametrize(("trl", "native"), [("TRL_SFT", "NATIVE_SFT"), ("TRL_DPO", "NATIVE_DPO")])
def test_a_mixture_of_experts_has_no_loss_that_native_lacks(
    toys: Any, tmp_path: Path, mixtral: Path, trl: str, native: str
) -> None:
    data = toys.data(tmp_path, trl)
    training = {"max_steps": 3, "learning_rate": 1e-3}
    runs = [
        run_here(toys, tmp_path, mixtral, method, data, training={**training, "trainer_kwargs": options})
        for method, options in ((trl, {}), (native, {"sample_count": 0}))
    ]
    close(steps_of(toys, runs[0]), steps_of(toys, runs[1]), 1e-3)


@pytest.mark.parametrize("method", ["TRL_SFT", "TRL_DPO"])
def test_the_auxiliary_loss_of_a_mixture_is_added_where_asked_for(
    toys: Any, tmp_path: Path, mixtral: Path, method: str
) -> None:
    """By a number, or by null with the architecture's own; what is saved says what it said before."""
    data, first = toys.data(tmp_path, method), []
    for number, weight in enumerate((0.0, 0.25, None)):
        training = {"max_steps": 1, "trainer_kwargs": {"router_aux_loss_coef": weight}, "save_steps": 1}
        training |= {"output_dir": str(tmp_path / str(number))}
        run_here(toys, tmp_path, mixtral, method, data, training=training)
        first.append(steps_of(toys, tmp_path / str(number))[0][0])
        for saved in ("final", "checkpoints/step-1"):
            for name in ("output_router_logits", "router_aux_loss_coef"):
                assert json_of(tmp_path / str(number) / saved)[name] == json_of(mixtral)[name]
    assert first[1] == pytest.approx(first[2], rel=1e-6)
    assert first[1] > first[0] + 0.2  # 0.25 times a loss that is at least 1


def plain_dpo(model: Any, reference: Any, batch: Any, beta: float) -> torch.Tensor:
    """Rafailov et al. 2023, equation 7: the mean over the pairs."""

    def log_probability(which: Any) -> torch.Tensor:
        logits = which(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        each = F.log_softmax(logits, -1).gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
        return (each * batch["completion_mask"][:, 1:]).sum(-1)

    with torch.no_grad():
        before = log_probability(reference)
    chosen, rejected = (log_probability(model) - before).chunk(2)
    return -F.logsigmoid(beta * (chosen - rejected)).mean()


@pytest.mark.parametrize("source", ["folder", "preset"])
def test_dpo_is_the_formula(toys: Any, tmp_path: Path, llama: Path, source: str) -> None:
    """Two steps in plain PyTorch; a model built from a preset has no name that a reference could be loaded from."""
    from graftwork import ModelParams, build_model
    from graftwork_trl import batches
    from graftwork_trl.data import load_data
    from graftwork_trl.methods import METHODS

    model_section: dict[str, Any] = {}
    if source == "preset":
        small = {name: value for name, value in json_of(llama).items() if name in PRESET_KEYS}
        model_section = {
            "model_name": "llama3_2_1b", "load_pretrained_weights": False, "tokenizer_name": str(llama),
            "model_kwargs": {**small, "rope_scaling": None},
        }  # fmt: skip
    data = toys.data(tmp_path, "TRL_DPO")
    training = {"max_steps": 2, "lr_scheduler_type": "constant", "trainer_kwargs": {"beta": 0.3}, "weight_decay": 0.0}
    run = run_here(toys, tmp_path, llama, "TRL_DPO", data, training=training, model=model_section)

    config = toys.config(tmp_path, llama, "TRL_DPO", data, training={**BASE, **training}, model=model_section)
    torch.manual_seed(config.training.seed)
    model = build_model(ModelParams(**{"model_name": str(llama), "device_map": "cpu", **model_section}))
    torch.manual_seed(config.training.seed)
    reference = build_model(ModelParams(**{"model_name": str(llama), "device_map": "cpu", **model_section}))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    loader = load_data(config, METHODS["TRL_DPO"], toys.tokenizer(), frozenset({257}), 1).train
    for (loss, norm, _), rows in zip(steps_of(toys, run), loader.steps(), strict=False):
        parts = [plain_dpo(model, reference, batches.preference(row, 258), 0.3) / len(rows) for row in rows]
        expected = torch.stack(parts).sum()
        expected.backward()
        assert loss == pytest.approx(float(expected.detach()), rel=1e-4)
        assert norm == pytest.approx(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)), rel=1e-3)
        optimizer.step()
        optimizer.zero_grad()
    assert steps_of(toys, run)[0][0] == pytest.approx(math.log(2), rel=1e-5)


PRESET_KEYS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "eos_token_id", "head_dim",
)  # fmt: skip


def json_of(folder: Path) -> dict[str, Any]:
    import json

    values: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return values


@pytest.mark.parametrize("method", ["TRL_DPO", "TRL_RM"])
def test_accumulation_changes_nothing(toys: Any, tmp_path: Path, llama: Path, method: str) -> None:
    """Four pairs at once, or one at a time; and an epoch of ten pairs ends in the middle of a step of four."""
    losses = []
    for size, count in ((4, 1), (1, 4)):
        folder = tmp_path / f"{size}x{count}"
        folder.mkdir()
        training = {"per_device_train_batch_size": size, "gradient_accumulation_steps": count, "num_train_epochs": 1}
        data = toys.data(folder, method)
        run = run_here(toys, folder, llama, method, data, training={**training, "max_steps": -1})
        losses.append([loss for loss, _, _ in steps_of(toys, run)])
    assert len(losses[0]) == 3
    close(losses[1], losses[0], 1e-4)


def test_a_fresh_adapter_is_measured_against_its_base(toys: Any, tmp_path: Path, llama: Path) -> None:
    """DPO begins at log 2 and trains the adapter alone; no copy of it is kept or saved."""
    import json

    peft = {"lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["q_proj", "v_proj"]}
    data = toys.data(tmp_path, "TRL_DPO")
    run = run_here(toys, tmp_path, llama, "TRL_DPO", data, training={"use_peft": True, "save_steps": 2}, peft=peft)
    losses = [loss for loss, _, _ in steps_of(toys, run)]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5)
    assert losses[-1] < losses[0]
    per_layer = 4 * (32 + 32) + 4 * (32 + 16)
    assert json.loads((run / "run.json").read_text())["trained_parameters"] == 2 * per_layer
    for folder in (run / "final", run / "checkpoints" / "step-2"):
        assert not (folder / "ref").exists()
        assert all("lora_" in name for name in load_file(folder / "adapter_model.safetensors"))


def test_an_adapter_that_is_trained_further_is_measured_against_itself(toys: Any, tmp_path: Path, llama: Path) -> None:
    peft = {"lora_r": 4, "lora_alpha": 8, "lora_target_modules": ["q_proj", "v_proj"]}
    data = toys.data(tmp_path, "TRL_DPO")
    first = run_here(toys, tmp_path, llama, "TRL_DPO", data, training={"use_peft": True}, peft=peft)
    (tmp_path / "second").mkdir()
    data = toys.data(tmp_path / "second", "TRL_DPO")
    again = run_here(
        toys, tmp_path / "second", llama, "TRL_DPO", data,
        training={"use_peft": True}, peft=peft, model={"adapter_model": str(first / "final")},
    )  # fmt: skip
    assert steps_of(toys, again)[0][0] == pytest.approx(math.log(2), rel=1e-5)


def test_a_reward_model_is_saved_as_one(toys: Any, tmp_path: Path, llama: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    run = run_here(toys, tmp_path, llama, "TRL_RM", toys.data(tmp_path, "TRL_RM"), training={"max_steps": 8})
    model = AutoModelForSequenceClassification.from_pretrained(run / "final").eval()
    assert model.config.num_labels == 1
    tokenizer = toys.tokenizer()
    scores = []
    for row in toys.pairs()[:4]:
        for side in ("chosen", "rejected"):
            ids = tokenizer.apply_chat_template(row["messages"] + row[side]["messages"], return_dict=True)["input_ids"]
            with torch.no_grad():
                scores.append(float(model(torch.tensor([ids])).logits))
    assert all(chosen > rejected for chosen, rejected in zip(scores[::2], scores[1::2], strict=True))


@pytest.mark.parametrize("targets", [["q_proj"], "all-linear"])
def test_a_reward_model_as_an_adapter_is_merged(
    toys: Any, tmp_path: Path, llama: Path, targets: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command's model gives the scores that PEFT gives for the folder, and those of ``save_mode: merged``. The head
    is new: with a LoRA on it instead, nobody would have it later.
    """
    import json

    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification as Judge

    from graftwork.cli import main

    peft = {"lora_r": 4, "lora_target_modules": targets}
    finals = []
    for mode in ("adapter", "merged"):
        (tmp_path / mode).mkdir()
        data = toys.data(tmp_path / mode, "TRL_RM")
        training = {"use_peft": True, "max_steps": 4}
        run = run_here(
            toys, tmp_path / mode, llama, "TRL_RM", data, training=training, peft={**peft, "save_mode": mode}
        )
        finals.append(run / "final")
    assert "score" not in json.loads((finals[0] / "adapter_config.json").read_text())["target_modules"]
    assert main(["merge", str(finals[0]), "--output-dir", str(tmp_path / "merged model")]) == 0
    assert "graft generate" not in capsys.readouterr().out
    merged = Judge.from_pretrained(tmp_path / "merged model").eval()
    theirs = PeftModel.from_pretrained(Judge.from_pretrained(llama, num_labels=1), finals[0]).eval()
    in_run = Judge.from_pretrained(finals[1]).eval()
    assert merged.config.pad_token_id == in_run.config.pad_token_id is not None
    theirs.config.pad_token_id = merged.config.pad_token_id
    ids = torch.arange(1, 25).view(3, 8)
    ids[1, 5:] = merged.config.pad_token_id
    with torch.no_grad():
        scores = merged(ids).logits
        torch.testing.assert_close(scores, theirs(ids).logits)
        torch.testing.assert_close(scores, in_run(ids).logits)


def test_grpo_learns_what_is_rewarded(toys: Any, tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward for one byte in the answer goes up, and prompts reach the reward as they are in the data."""
    from graftwork.registry import get_registry
    from graftwork.specs import RewardSpec

    seen: list[Any] = []

    def many_a(prompts: Any, completions: Any, answer: Any, question: Any, **columns: Any) -> list[float]:
        seen.extend(zip(prompts, answer, question, strict=True))
        # the model's vocabulary is larger than the alphabet, and half of the bytes are more likely after training
        return [float(sum(token < 128 for token in ids)) for ids in columns["completion_ids"]]

    table = {"low": RewardSpec(name="low", load=lambda: many_a)}
    monkeypatch.setattr(get_registry(), "reward_functions", table)
    options = {"reward_functions": ["low"], "num_generations": 4, "max_completion_length": 4}
    training = {"max_steps": 12, "per_device_train_batch_size": 16, "trainer_kwargs": options, "learning_rate": 2e-2}
    training |= {"gradient_accumulation_steps": 1, "lr_scheduler_type": "constant"}
    run = run_here(toys, tmp_path, llama, "TRL_GRPO", toys.data(tmp_path, "TRL_GRPO"), training=training)
    rewards = [row["rewards/low/mean"] for row in toys.metrics(run) if "loss" in row]
    assert rewards[-1] > rewards[0] + 0.5
    assert seen[0] == ([{"role": "user", "content": "0+0="}], "that is 0\n#### 0", "0+0=")
    assert AutoModelForCausalLM.from_pretrained(run / "final").config.pad_token_id is None
