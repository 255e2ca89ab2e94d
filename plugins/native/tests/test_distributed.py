"""Two processes take the steps of one: DDP and FSDP2 on gloo, against the plain loop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from graftwork.errors import ModelError
from graftwork.sources.local import read_config
from graftwork_native import shards

if TYPE_CHECKING:
    from collections.abc import Iterator

RANKS = Path(__file__).with_name("ranks.py")
NUMBERS = ("step", "loss", "eval_loss", "eval_tokens", "learning_rate", "grad_norm", "tokens", "supervised_tokens")
TOLERANCE = 1e-5
"""Relative: sums are taken in another order."""


class Ranks:
    """`graft` as one or more processes; see ``ranks.py``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(RANKS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def __call__(self, config: Any, ranks: int = 1, *arguments: str, fault: dict[str, Any] | None = None) -> list[int]:
        """The exit codes, rank by rank. ``fault`` is what ``break_writing`` in ``ranks.py`` takes."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        path = self.folder / "config.yaml"
        path.write_text(config.to_yaml())
        arguments = ("train", "-c", str(path), *arguments)
        request = {"ranks": ranks, "folder": str(self.folder), "arguments": arguments, "fault": fault}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        codes: list[int] = json.loads(self.process.stdout.readline())["codes"]
        return codes

    def said(self, rank: int = 0) -> str:
        return (self.folder / f"output-{rank}.txt").read_text()

    def parameters(self, rank: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / f"parameters-{rank}.json").read_text())
        return found


@pytest.fixture(scope="module")
def graft(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path_factory.mktemp("ranks"))
    yield ranks
    assert ranks.process.stdin is not None
    assert ranks.process.stdout is not None
    ranks.process.stdin.close()
    ranks.process.wait(timeout=60)
    ranks.process.stdout.close()


def numbers(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in NUMBERS if name in row} for row in rows]


def assert_same(run: Path, other: Path) -> None:
    """The same steps: losses, norms, evaluations, and the weights that they lead to."""
    left, right = numbers(run), numbers(other)
    assert len(left) == len(right) > 0
    for one, two in zip(left, right, strict=True):
        assert one == pytest.approx(two, rel=TOLERANCE, abs=1e-7)
    weights, others = ({file.name: load_file(file) for file in (folder / "final").glob("*.safetensors")}
                       for folder in (run, other))  # fmt: skip
    assert weights.keys() == others.keys() != set()
    for name, tensors in weights.items():
        assert tensors.keys() == others[name].keys()
        for key, tensor in tensors.items():
            torch.testing.assert_close(tensor, others[name][key], rtol=1e-3, atol=2e-5, msg=key)


TRAINING = {
    "max_steps": 5,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 0.5,
    "weight_decay": 0.1,
    "eval_strategy": "steps",
    "eval_steps": 2,
    "save_steps": 0,
    "trainer_kwargs": {"sample_count": 1, "sample_max_new_tokens": 4},
}
FSDP = {"enable_fsdp": True}
ADAPTER = {"lora_r": 4, "lora_target_modules": ["q_proj", "down_proj"]}


def on_two(toys: Any, tmp_path: Path, toy: Path, data: dict[str, Any], **sections: Any) -> tuple[Any, Any]:
    """A configuration for one process, and the one of the same steps for two."""
    training = {**TRAINING, **sections.pop("training", {})}
    fsdp = sections.pop("fsdp", {})
    halves = training["gradient_accumulation_steps"] // 2
    one = toys.config(tmp_path, toy, data, training={**training, "output_dir": str(tmp_path / "one")}, **sections)
    two = {**training, "output_dir": str(tmp_path / "two"), "gradient_accumulation_steps": halves}
    return one, toys.config(tmp_path, toy, data, training=two, fsdp=fsdp, **sections)


CASES: dict[str, dict[str, Any]] = {
    "all weights": {},
    "adapter": {"training": {"use_peft": True}, "peft": ADAPTER},
    "adapter on the head": {
        "training": {"use_peft": True},
        "peft": {**ADAPTER, "lora_target_modules": ["q_proj", "lm_head"]},
    },
    "accumulation": {"training": {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 1}},
    "checkpointed": {"training": {"enable_gradient_checkpointing": True}},
    "padded": {"training": {"trainer_kwargs": {"layout": "padded", "sample_count": 0}}},
    "bfloat16 products": {"training": {"mixed_precision_dtype": "bf16", "max_steps": 2}},
    "another optimizer": {"training": {"optimizer": "sgd", "sgd_momentum": 0.9}},
}


@pytest.mark.parametrize("fsdp", [{}, FSDP], ids=["DDP", "FSDP2"])
@pytest.mark.parametrize("case", CASES)
def test_two_processes_take_the_steps_of_one(case, fsdp, toys, llama, chat, tmp_path, graft) -> None:
    one, two = on_two(toys, tmp_path, llama, chat, **CASES[case], fsdp=fsdp)
    assert graft(one) == [0], graft.said()
    assert graft(two, 2) == [0, 0], graft.said() + graft.said(1)
    assert_same(tmp_path / "one", tmp_path / "two")
    assert "logits of a row's labels are made at once" not in graft.said()


def test_an_adapter_on_a_quantized_base(toys, llama, chat, tmp_path, graft) -> None:
    pytest.importorskip("bitsandbytes")
    peft = {**ADAPTER, "q_lora": True, "q_lora_bits": 4}
    one, two = on_two(toys, tmp_path, llama, chat, training={"use_peft": True, "max_steps": 3}, peft=peft)
    assert graft(one) == [0], graft.said()
    assert graft(two, 2) == [0, 0], graft.said() + graft.said(1)
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("fsdp", [{}, FSDP], ids=["DDP", "FSDP2"])
def test_packed_documents_with_tied_embeddings(fsdp, toys, tmp_path, graft) -> None:
    toy = toys.save(tmp_path / "tied", tie_word_embeddings=True)
    datasets = [{"dataset_name": "text", "dataset_path": str(toys.text(tmp_path / "train.jsonl", 14))}]
    held_out = [{"dataset_name": "text", "dataset_path": str(toys.text(tmp_path / "held.jsonl", 3, seed=9))}]
    data = {
        "train": {"datasets": datasets, "pack": True, "stream": True, "max_length": 24},
        "validation": {"datasets": held_out, "max_length": 24},
    }
    one, two = on_two(toys, tmp_path, toy, data, fsdp=fsdp)
    assert graft(one) == [0], graft.said()
    assert graft(two, 2) == [0, 0], graft.said() + graft.said(1)
    assert_same(tmp_path / "one", tmp_path / "two")
    assert (
        load_file(tmp_path / "two/final/model.safetensors").keys()
        == load_file(tmp_path / "one/final/model.safetensors").keys()
    )


@pytest.mark.parametrize("fsdp", [{}, FSDP], ids=["DDP", "FSDP2"])
def test_a_process_without_rows_takes_part(fsdp, toys, llama, tmp_path, graft) -> None:
    """Three rows in the last step of an epoch, and one held-out row, for two processes."""
    data = {
        "train": toys.split(toys.chat(tmp_path / "train.jsonl", 7)),
        "validation": toys.split(toys.chat(tmp_path / "held.jsonl", 1, seed=1)),
    }
    training = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "max_steps": 4}
    one, two = on_two(toys, tmp_path, llama, data, training=training, fsdp=fsdp)
    assert graft(one) == [0], graft.said()
    assert graft(two, 2) == [0, 0], graft.said() + graft.said(1)
    assert_same(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("fsdp", [{}, FSDP], ids=["DDP", "FSDP2"])
@pytest.mark.parametrize("case", ["all weights", "adapter on the head"])
def test_pairs(case, fsdp, toys, llama, tmp_path, graft) -> None:
    data = {"train": {"datasets": [pairs(toys, tmp_path, 11)]}, "validation": {"datasets": [pairs(toys, tmp_path, 3)]}}
    training = {"trainer_type": "NATIVE_DPO", "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    sections = {**CASES[case], "training": training | CASES[case].get("training", {})}
    one, two = on_two(toys, tmp_path, llama, data, **sections, fsdp=fsdp)
    assert graft(one) == [0], graft.said()
    assert graft(two, 2) == [0, 0], graft.said() + graft.said(1)
    assert_same(tmp_path / "one", tmp_path / "two")
    further = [{key: value for key, value in row.items() if "reward" in key} for row in toys.metrics(tmp_path / "one")]
    again = [{key: value for key, value in row.items() if "reward" in key} for row in toys.metrics(tmp_path / "two")]
    assert any(further)
    for left, right in zip(further, again, strict=True):
        assert left == pytest.approx(right, rel=1e-3, abs=1e-5)


def pairs(toys: Any, tmp_path: Path, rows: int) -> dict[str, Any]:
    path = toys.pairs(tmp_path / f"pairs-{rows}.jsonl", rows)
    return {"dataset_name": "preference_pairs_jsonl", "dataset_path": str(path)}


STRATEGIES = {
    "full": {},
    "gradients": {"sharding_strategy": "shard_grad_op", "forward_prefetch": True},
    "hybrid": {"sharding_strategy": "HYBRID_SHARD"},
    "by size": {"auto_wrap_policy": "SIZE_BASED_WRAP", "min_num_params": 2000},
    "one piece": {"auto_wrap_policy": "NO_WRAP", "sync_module_states": False},
    "named": {"transformer_layer_cls": "LlamaDecoderLayer", "cpu_offload": True},
}


PIECES = {
    "full": "FSDP2 over 2 processes, in 3 pieces",  # two layers, and the rest
    "by size": "FSDP2 over 2 processes, in 5 pieces",  # attention and MLP of each
    "one piece": "FSDP2 over 2 processes, in 1 pieces",
}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_fsdp_holds_a_part_of_each_weight(strategy, toys, llama, chat, tmp_path, graft) -> None:
    """accelerate on a CPU would make DDP of it without a word."""
    one, two = on_two(toys, tmp_path, llama, chat, fsdp={**FSDP, **STRATEGIES[strategy]}, training={"max_steps": 2})
    assert graft(one) == [0], graft.said()
    assert graft(two, 2) == [0, 0], graft.said() + graft.said(1)
    assert_same(tmp_path / "one", tmp_path / "two")
    found = [graft.parameters(rank) for rank in range(2)]
    assert {kind for each in found for kind in each["kinds"].values()} == {"DTensor"}
    assert sum(each["held"] for each in found) == found[0]["whole"]
    for each in found:
        assert each["held"] == pytest.approx(found[0]["whole"] / 2, rel=0.1)
    assert json.loads((tmp_path / "two/run.json").read_text())["parallel"] == PIECES.get(strategy, PIECES["full"])


def test_without_a_cut_each_process_holds_everything(toys, llama, chat, tmp_path, graft) -> None:
    none = {"enable_fsdp": True, "sharding_strategy": "NO_SHARD"}
    assert graft(on_two(toys, tmp_path, llama, chat, fsdp=none, training={"max_steps": 1})[1], 2) == [0, 0]
    for rank in range(2):
        found = graft.parameters(rank)
        assert found["held"] == found["whole"]
        assert set(found["kinds"].values()) == {"Parameter"}


def test_weights_gathered_in_bfloat16(toys, llama, chat, tmp_path, graft) -> None:
    half = {**FSDP, "mixed_precision": "bf16"}
    one, two = on_two(toys, tmp_path, llama, chat, fsdp=half, training={"max_steps": 3, "save_steps": 0})
    assert graft(one) == [0], graft.said()
    assert graft(two, 2) == [0, 0], graft.said() + graft.said(1)
    left, right = numbers(tmp_path / "one"), numbers(tmp_path / "two")
    first, second = ([row["loss"] for row in rows if "loss" in row] for rows in (left, right))
    assert first == pytest.approx(second, rel=0.02)
    assert first != second


def test_a_layer_that_the_model_does_not_have(toys, llama, chat, tmp_path, graft) -> None:
    unknown = {**FSDP, "transformer_layer_cls": "LlamaDecoderLayr"}
    assert 2 in graft(on_two(toys, tmp_path, llama, chat, fsdp=unknown)[1], 2)
    said = graft.said() + graft.said(1)
    assert "fsdp.transformer_layer_cls: the model has no LlamaDecoderLayr; did you mean LlamaDecoderLayer?" in said


GATHERED = {**FSDP, "state_dict_type": "FULL_STATE_DICT"}
RESUMED = [
    *((1, 2, FSDP), (2, 1, FSDP), (2, 4, FSDP), (2, 2, FSDP)),
    *((1, 2, GATHERED), (2, 1, GATHERED), (2, 4, {}), (2, 2, {})),
]


@pytest.mark.parametrize(("before", "after", "fsdp"), RESUMED, ids=str)
def test_a_run_goes_on_with_another_number_of_processes(
    before, after, fsdp, toys, llama, chat, tmp_path, graft
) -> None:
    """The same steps to the end, from a checkpoint in the middle; the accumulation is changed by itself."""
    training = {"max_steps": 6, "gradient_accumulation_steps": 4, "per_device_train_batch_size": 1, "save_steps": 3}
    training["lr_scheduler_type"] = "constant"
    whole, _ = on_two(toys, tmp_path, llama, chat, training=training)
    assert graft(whole) == [0], graft.said()
    training |= {"gradient_accumulation_steps": 4 // before, "output_dir": str(tmp_path / "again")}
    short = {**TRAINING, **training, "max_steps": 3}
    assert graft(toys.config(tmp_path, llama, chat, training=short, fsdp=fsdp), before) == [0] * before, graft.said()
    assert (tmp_path / "again/checkpoints/step-3").is_dir()
    assert (tmp_path / "again/checkpoints/step-3/shards").is_dir() == (fsdp == FSDP and before > 1)
    longer = toys.config(tmp_path, llama, chat, training={**TRAINING, **training}, fsdp=fsdp)
    assert graft(longer, after, "--resume") == [0] * after, graft.said() + graft.said(after - 1)
    if before != after:
        assert f"gradient_accumulation_steps {4 // after} instead of {4 // before}, so that a step stays 4 samples" in (
            graft.said()
        )
    (tmp_path / "one/metrics.jsonl").write_text(only_steps(tmp_path / "one"))
    (tmp_path / "again/metrics.jsonl").write_text(only_steps(tmp_path / "again"))
    assert_same(tmp_path / "one", tmp_path / "again")
    record = json.loads((tmp_path / "again/run.json").read_text())
    assert record["processes"] == after
    assert record["begun_with"] == {"processes": before, "gradient_accumulation_steps": 4 // before}


def only_steps(run: Path) -> str:
    """The lines of steps: a run of three steps has evaluated at its end, where the longer one does not."""
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    return "".join(line for line in lines if '"loss"' in line)


def test_a_step_that_cannot_be_shared_is_refused(toys, llama, chat, tmp_path, graft) -> None:
    training = {"max_steps": 2, "gradient_accumulation_steps": 2, "save_steps": 1, "per_device_train_batch_size": 1}
    config = toys.config(tmp_path, llama, chat, training={**TRAINING, **training})
    assert graft(config) == [0]
    assert graft(config, 3, "--resume")[0] == 2
    assert (
        "a step of this run is 2 samples (1 per device x 1 processes x 2 of gradient_accumulation_steps), which 3 "
        "processes cannot share evenly; go on with 1 or 2 of them" in graft.said()
    )


KEPT = {"save_steps": 2, "max_steps": 4, "eval_strategy": "no"}
IN_PARTS: dict[str, dict[str, Any]] = {
    "adapter": {"training": {"use_peft": True}, "peft": {**ADAPTER, "lora_modules_to_save": ["lm_head"]}},
    "dora": {"training": {"use_peft": True}, "peft": {**ADAPTER, "use_dora": True}},
    "sgd": {"training": {"optimizer": "sgd", "sgd_momentum": 0.9}},
    "tied, in bfloat16": {"training": {"mixed_precision_dtype": "none"}, "model": {"torch_dtype": "bfloat16"}},
}


def in_parts(toys: Any, tmp_path: Path, toy: Path, data: Any, name: str = "run", **sections: Any) -> Any:
    """A run of two processes that keeps its checkpoints in parts."""
    training = {**TRAINING, **KEPT, **sections.pop("training", {}), "output_dir": str(tmp_path / name)}
    training["gradient_accumulation_steps"] = 1
    return toys.config(tmp_path, toy, data, training=training, fsdp=sections.pop("fsdp", FSDP), **sections)


@pytest.mark.parametrize("case", IN_PARTS)
def test_a_run_goes_on_from_parts(case, toys, llama, chat, tmp_path, graft) -> None:
    """Broken off after its second step, it has the numbers and the weights of one that was not."""
    toy = toys.save(tmp_path / "tied", tie_word_embeddings=True) if case.startswith("tied") else llama
    assert graft(in_parts(toys, tmp_path, toy, chat, "whole", **IN_PARTS[case]), 2) == [0, 0], graft.said()
    config = in_parts(toys, tmp_path, toy, chat, **IN_PARTS[case])
    fault = {"rank": 1, "after": 1, "kind": "killed"}
    assert graft(config, 2, fault=fault)[1] == -9
    assert [path.name for path in (tmp_path / "run/checkpoints").glob("[!.]*")] == ["step-2"]
    assert graft(config, 2, "--resume") == [0, 0], graft.said()
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_each_process_writes_its_own_part_and_no_pickle(toys, llama, chat, tmp_path, graft) -> None:
    assert graft(in_parts(toys, tmp_path, llama, chat), 2) == [0, 0], graft.said()
    checkpoint = tmp_path / "run/checkpoints/step-4"
    first, second = sorted((checkpoint / "shards").iterdir())
    assert {first.suffix, second.suffix} == {".safetensors"}
    held = [sum(tensor.nbytes for tensor in load_file(file).values()) for file in (first, second)]
    weights = graft.parameters(0)["whole"]
    assert sum(held) == pytest.approx(3 * weights, rel=0.01)  # and two moments of AdamW
    assert held == pytest.approx([1.5 * weights] * 2, rel=0.1)
    listed = json.loads((checkpoint / "checkpoint.json").read_text())["files"]
    assert {f"shards/{file.name}" for file in (first, second)} < listed.keys()
    assert not list(checkpoint.glob("*.safetensors"))
    with pytest.raises(
        ModelError, match=r"a checkpoint in parts, .* take the run's final/, or train with fsdp.state_dict"
    ):
        read_config(checkpoint)
    assert (checkpoint / "optimizer.pt").stat().st_size < 40_000  # settings and random states


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_in_one_process_leaves_nothing_of_the_checkpoint(rank, toys, llama, chat, tmp_path, graft) -> None:
    config = in_parts(toys, tmp_path, llama, chat)
    assert graft(config, 2, fault={"rank": rank, "after": 1, "kind": "full"}) == [1, 1]
    said = graft.said()
    assert "checkpoints/step-4 could not be written: [Errno 28] No space left on device" in said
    assert "nothing of it was left behind. Make room or choose another training.output_dir" in said
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["step-2"]
    assert graft(config, 2, "--resume") == [0, 0], graft.said()


def test_a_first_process_that_is_killed_while_it_saves(toys, llama, chat, tmp_path, graft) -> None:
    config = in_parts(toys, tmp_path, llama, chat)
    assert graft(config, 2, fault={"rank": 0, "after": 1, "kind": "killed"})[0] == -9
    assert sorted(path.name[:7] for path in (tmp_path / "run/checkpoints").iterdir()) == [".step-4", "step-2"]
    assert graft(config, 2, "--resume") == [0, 0], graft.said()
    assert sorted(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == ["step-2", "step-4"]


def test_a_part_that_is_damaged_is_found(toys, llama, chat, tmp_path, graft) -> None:
    assert graft(in_parts(toys, tmp_path, llama, chat), 2) == [0, 0], graft.said()
    part = sorted((tmp_path / "run/checkpoints/step-4/shards").iterdir())[1]
    content = bytearray(part.read_bytes())
    content[-5] ^= 1
    part.write_bytes(content)
    assert graft(in_parts(toys, tmp_path, llama, chat, training={"max_steps": 5}), 2, "--resume") == [0, 0], (
        graft.said()
    )
    said = graft.said()
    assert f"step-4 is damaged: shards/{part.name} has other bytes than were written" in said
    assert "The run goes on from step-2" in said
    assert (tmp_path / "run/checkpoints/damaged-step-4").is_dir()


def test_the_best_weights_come_out_of_parts(toys, llama, chat, tmp_path, graft) -> None:
    """The rate is far too high, so the first evaluation is the best one, and lies in parts."""
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "learning_rate": 0.5}
    for name, fsdp in (("parts", FSDP), ("whole", GATHERED)):
        config = in_parts(toys, tmp_path, llama, chat, name, training={**best, "save_steps": 1}, fsdp=fsdp)
        assert graft(config, 2) == [0, 0], graft.said()
        assert "final/ gets the weights of step 1" in graft.said()
    assert_same(tmp_path / "parts", tmp_path / "whole")


def test_a_large_part_goes_into_several_files(tmp_path, monkeypatch) -> None:
    """A world of one process is enough for it."""
    monkeypatch.setattr(shards, "FILE_BYTES", 4 * 16 * 16)

    def trained(seed: int) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16))
        optimizer = torch.optim.AdamW(model.parameters())
        model(torch.randn(3, 16)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        return model, optimizer

    (model, optimizer), (other, others) = trained(0), trained(1)
    dist.init_process_group("gloo", init_method=(tmp_path / "rendezvous").as_uri(), rank=0, world_size=1)
    try:
        plain = shards.write_shards(tmp_path, model, optimizer)
        assert len(list((tmp_path / "shards").iterdir())) > 3
        shards.read_shards(tmp_path, other, others, plain)
    finally:
        dist.destroy_process_group()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
        assert all(torch.equal(value, others.state[two][name]) for name, value in optimizer.state[one].items())
