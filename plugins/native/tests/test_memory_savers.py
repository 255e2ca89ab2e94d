"""The optimizer's step inside the backward pass, and activations on the host: the same numbers, less memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from graftwork import train
from graftwork.check.check import check_run
from graftwork.config import load_config
from graftwork.errors import ConfigError, RunError, UsageError
from graftwork_native import setup
from graftwork_native.backward_step import BackwardStep
from graftwork_native.offload import Offloading, require_device

if TYPE_CHECKING:
    from pathlib import Path

PLAIN = {"max_grad_norm": None, "max_steps": 4}


def run_here(toys: Any, tmp_path: Path, toy: Path, data: dict[str, Any], name: str, **sections: Any) -> Path:
    sections["training"] = {**PLAIN, **sections.get("training", {}), "output_dir": str(tmp_path / name)}
    train(toys.config(tmp_path, toy, data, **sections))
    return tmp_path / name


def steps_of(toys: Any, run: Path) -> list[tuple[float, float]]:
    return [(row["loss"], row["grad_norm"]) for row in toys.metrics(run) if "loss" in row]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor"])
@pytest.mark.parametrize("tied", [False, True])
def test_steps_within_the_backward_pass_are_the_same(
    toys: Any, tmp_path: Path, chat: dict[str, Any], optimizer: str, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients that stay are summed in another order where embedding and head are one: without them, to the bit."""
    monkeypatch.setattr(setup, "keeps_gradients", lambda _: False)
    toy = toys.save(tmp_path / "toy", tie_word_embeddings=tied)
    training = {"optimizer": optimizer, "weight_decay": 0.1, "sgd_momentum": 0.5}
    runs = [
        run_here(toys, tmp_path, toy, chat, str(inside), training={**training, "optimizer_in_backward": inside})
        for inside in (False, True)
    ]
    plain, inside = (load_file(run / "final" / "model.safetensors") for run in runs)
    assert all(torch.equal(plain[name], tensor) for name, tensor in inside.items())
    for (loss, norm), (same, near) in zip(*(steps_of(toys, run) for run in runs), strict=True):
        assert loss == same
        assert norm == pytest.approx(near, rel=1e-5)


def test_resumed_to_the_bit_within_the_backward_pass(
    toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]
) -> None:
    training = {"optimizer_in_backward": True, "save_steps": 2}
    through = run_here(toys, tmp_path, llama, chat, "through", training=training)
    halved = {**training, "resume_from_checkpoint": str(through / "checkpoints" / "step-2")}
    again = run_here(toys, tmp_path, llama, chat, "again", training=halved)
    one, two = (load_file(run / "final" / "model.safetensors") for run in (through, again))
    assert all(torch.equal(one[name], tensor) for name, tensor in two.items())


def test_an_adapter_is_stepped_within_the_backward_pass(
    toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]
) -> None:
    runs = [
        run_here(toys, tmp_path, llama, chat, str(inside), training={"use_peft": True, "optimizer_in_backward": inside})
        for inside in (False, True)
    ]
    plain, inside = (load_file(run / "final" / "adapter_model.safetensors") for run in runs)
    assert all(torch.equal(plain[name], tensor) for name, tensor in inside.items())


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("gradient_accumulation_steps", 2, "gradients of several passes are added up, and here none is kept"),
        ("max_grad_norm", 1.0, "clipping needs the norm of all gradients before the first step; set it to null"),
        ("nonfinite_loss", "skip", "a step that is half done cannot be left out"),
    ],
)
def test_what_needs_all_gradients_is_refused(
    tmp_path: Path, toys: Any, llama: Path, chat: dict[str, Any], field: str, value: Any, text: str
) -> None:
    config = toys.config(tmp_path, llama, chat, training={**PLAIN, "optimizer_in_backward": True, field: value})
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "run.yaml")
    assert f"training.{field} = " in str(caught.value)
    assert f"does not go with training.optimizer_in_backward: {text}" in str(caught.value)


def test_several_processes_are_refused(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]) -> None:
    from graftwork.check.methods import MethodRequest
    from graftwork_native.refusals import refuse

    config = toys.config(tmp_path, llama, chat, training={**PLAIN, "optimizer_in_backward": True})
    with pytest.raises(
        UsageError, match="optimizer_in_backward: with several processes a weight is stepped by the sum"
    ):
        refuse(MethodRequest(config=config, params=None, processes=2))


def test_a_gradient_that_is_no_number_ends_the_run_before_its_weight_is_stepped() -> None:
    weight = nn.Parameter(torch.ones(3))
    step = BackwardStep(torch.optim.SGD([weight], lr=0.1))
    with pytest.raises(RunError, match=r"a gradient's norm is nan after 0 weights of the step were changed already"):
        (weight * float("nan")).sum().backward()
    assert torch.equal(weight, torch.ones(3))
    assert step.norm() == 0.0


MEASURE = """
import json, sys, torch
from torch import nn
from graftwork_native.backward_step import BackwardStep

def resident(field):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[field].split()[0]) * 1024

model = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(12)))
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
inside = sys.argv[1] == "inside"
if inside:
    BackwardStep(optimizer)
warm = nn.Linear(8, 8)
warm(torch.ones(1, 8)).sum().backward()
before = resident("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
for _ in range(2):
    model(torch.ones(4, 2048)).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
print(json.dumps([resident("VmHWM") - before, sum(p.numel() * 4 for p in model.parameters())]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_gradients_are_never_all_there() -> None:
    """200 MB of gradients: without them the peak is lower by nearly that (one layer's gradient of twelve is there)."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"}
    grown = {}
    for name in ("plain", "inside"):
        command = [sys.executable, "-c", MEASURE, name]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        grown[name], size = json.loads(done.stdout)
    assert grown["plain"] > 0.95 * size
    assert grown["plain"] - grown["inside"] > 0.8 * size


# Activations


def test_activations_on_the_host_change_no_gradient(toys: Any) -> None:
    """On a CPU the way there and back is a copy: what is tried is what moves, and that it comes back as it was."""
    ids = torch.arange(0, 256).reshape(2, 128)
    gradients = []
    for offload in (False, True):
        model = toys.model("llama").train()
        saving = Offloading(model, ("cpu",))
        if offload:
            with saving:
                loss = model(ids, labels=ids).loss
            weights = sum(weight.numel() * 4 for weight in model.parameters())
            assert saving.moved_bytes > weights  # the logits alone are larger than these weights
        else:
            loss = model(ids, labels=ids).loss
        loss.backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


def test_weights_and_small_tensors_stay() -> None:
    layer = nn.Linear(512, 512)  # 1 MiB
    saving = Offloading(layer, ("cpu",))
    with saving:
        output = layer(torch.ones(16, 512, requires_grad=True))  # saves its input, 32 KiB, and the weight
    assert saving.moved_bytes == 0
    with saving:
        output = layer(torch.ones(64, 512, requires_grad=True))
    assert saving.moved_bytes == 64 * 512 * 4
    output.sum().backward()


def test_on_a_cpu_there_is_nothing_to_take_them_from(
    toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match="the model is on the CPU, and so are its activations already: remove it, or"):
        run_here(toys, tmp_path, llama, chat, "run", training={"activation_offloading": True})
    require_device(torch.device("cuda"))


def test_the_check_says_so_too(toys: Any, tmp_path: Path, llama: Path, chat: dict[str, Any]) -> None:
    config = toys.config(tmp_path, llama, chat, training={"activation_offloading": True})
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    said = [line.text for part in check_run(str(path)).parts for line in part.lines if line.status == "error"]
    assert len(said) == 1
    assert said[0].startswith("method: training.activation_offloading: the model is on the CPU, and so are its activ")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_activations_leave_a_gpu() -> None:
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(1024, 1024), nn.GELU()) for _ in range(8))).cuda()
    peaks = []
    for offload in (False, True):
        torch.cuda.reset_peak_memory_stats()
        with Offloading(layers, ("cuda",) if offload else ()):
            output = layers(torch.ones(8192, 1024, device="cuda"))
        output.sum().backward()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 0.7 * peaks[0]
