"""The losses of pairs, a step and its metrics are those of TRL's own ``DPOTrainer`` on the same pairs and models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer

from graftwork import train
from graftwork.config import DatasetSplitParams
from graftwork.data.batch import to_row
from graftwork.data.preference import pair_encoder
from graftwork.data.readers import Row
from graftwork_native import reference
from graftwork_native.dpo import LOSSES, Dpo
from graftwork_native.params import DpoParams
from graftwork_native.trial import plan_forward, with_shared_prompts

if TYPE_CHECKING:
    from pathlib import Path

    from graftwork_native.forward import Forward

trl = pytest.importorskip("trl")
METRICS = (
    "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
)  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {"loss_type": name} for name in LOSSES if name != "exo_pair"},
    "exo_pair": {"loss_type": "exo_pair", "label_smoothing": 0.01},
    "smoothed robust": {"loss_type": "robust", "label_smoothing": 0.1, "beta": 0.3},
    "ipo with another tau": {"loss_type": "ipo", "beta": 0.5},
    "several": {"loss_type": ("sigmoid", "bco_pair"), "loss_weights": (0.8, 0.2)},
}


def pairs(count: int = 4) -> list[dict[str, Any]]:
    """TRL's conversational shape, which both read."""
    return [
        {
            "prompt": [{"role": "user", "content": f"question {number} " * (1 + number % 3)}],
            "chosen": [{"role": "assistant", "content": f"yes {number * 7 % 10}" * (1 + number % 2)}],
            "rejected": [{"role": "assistant", "content": f"no {number * 3 % 10} " * (1 + number % 4)}],
        }
        for number in range(count)
    ]


@dataclass
class Two:
    """A model with a reference that is another one: equal ones would hide half of every formula."""

    model: Path
    reference: Path

    def trainer(self, folder: Path, count: int = 4, **options: Any) -> Any:
        """TRL's, in float32."""
        import datasets

        datasets.disable_progress_bars()
        arguments = trl.DPOConfig(
            output_dir=str(folder), per_device_train_batch_size=count, max_steps=1, bf16=False, use_cpu=True,
            gradient_checkpointing=False, report_to=[], disable_tqdm=True, logging_steps=1, save_strategy="no",
            train_sampling_strategy="sequential", **options,
        )  # fmt: skip
        return trl.DPOTrainer(
            model=AutoModelForCausalLM.from_pretrained(self.model),
            ref_model=AutoModelForCausalLM.from_pretrained(self.reference),
            args=arguments,
            train_dataset=datasets.Dataset.from_list(pairs(count)),
            processing_class=AutoTokenizer.from_pretrained(self.model),
        )

    def forward(self, path: Path) -> Forward:
        """Ours."""
        return with_shared_prompts(plan_forward(AutoModelForCausalLM.from_pretrained(path), None))

    def objective(self, params: DpoParams) -> Dpo:
        other = self.forward(self.reference)
        return Dpo(self.forward(self.model), lambda row: reference.measured(other, row), params)


@pytest.fixture(scope="module")
def two(toys: Any, tmp_path_factory: pytest.TempPathFactory) -> Two:
    folder = tmp_path_factory.mktemp("dpo")
    toys.save(folder / "model")
    other = toys.model("llama")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    other.save_pretrained(folder / "reference")
    return Two(folder / "model", folder / "reference")


@pytest.fixture(scope="module")
def trainer(two: Two, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return two.trainer(tmp_path_factory.mktemp("trl"))


def row_of(toys: Any, count: int = 4) -> Any:
    """The pairs as one row."""
    encode = pair_encoder(toys.tokenizer(), DatasetSplitParams(), frozenset({257}), {})
    return to_row([encode(Row(data, "test", (0, 0))) for data in pairs(count)])


def of_trl(trainer: Any, **options: Any) -> tuple[float, dict[str, float], list[torch.Tensor]]:
    """The loss of all pairs, the metrics and the gradients under these options."""
    given = options.get("loss_type", "sigmoid")
    trainer.loss_types = [given] if isinstance(given, str) else list(given)
    trainer.loss_weights = list(options.get("loss_weights", [1.0] * len(trainer.loss_types)))
    trainer.label_smoothing, trainer.beta = options.get("label_smoothing", 0.0), options.get("beta", 0.1)
    trainer._metrics["train"].clear()
    trainer.model.zero_grad()
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    loss.backward()
    metrics = {name: trainer._metrics["train"][name][0] for name in METRICS}
    return float(loss.detach()), metrics, [parameter.grad for parameter in trainer.model.parameters()]


def assert_same(two: Two, trainer: Any, row: Any, params: DpoParams, **options: Any) -> None:
    loss, metrics, gradients = of_trl(trainer, **options)
    objective = two.objective(params)
    scale = 1 / objective.weight(row)
    found = objective.loss(row, scale)
    assert float(found.detach()) == pytest.approx(loss, rel=1e-5)
    for name, total in objective.sums().items():
        assert total * scale == pytest.approx(metrics.pop(name), rel=1e-5, abs=1e-5), name
    assert not metrics
    found.backward()
    for one, other in zip(objective.forward.model.parameters(), gradients, strict=True):
        torch.testing.assert_close(one.grad, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@pytest.mark.parametrize("name", SETTINGS)
def test_the_loss_the_metrics_and_the_gradients_are_trls(toys: Any, two: Two, trainer: Any, name: str) -> None:
    assert_same(two, trainer, row_of(toys), DpoParams.model_validate(SETTINGS[name]), **SETTINGS[name])


def test_label_smoothing_is_the_one_that_trl_has_in_its_aot_loss(toys: Any, two: Two, tmp_path: Path) -> None:
    """Which sorts the pairs of a batch first: nothing to sort with one. Its own sigmoid loss ignores it."""
    alone = two.trainer(tmp_path, count=1)
    params = DpoParams(loss_type="sigmoid", label_smoothing=0.2)
    assert_same(two, alone, row_of(toys, 1), params, loss_type="aot", label_smoothing=0.2)


def test_length_normalized_sigmoid_is_sigmoid_norm(toys: Any, two: Two) -> None:
    row = row_of(toys)
    losses = [
        float(two.objective(params).loss(row, 1.0).detach())
        for params in (DpoParams(length_normalized=True), DpoParams(loss_type="sigmoid_norm"), DpoParams())
    ]
    assert losses[0] == losses[1] != losses[2]


def test_a_whole_run_logs_what_trl_logs(toys: Any, tmp_path: Path, two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command's own way: data file, template, reference file, metrics."""
    theirs = two.trainer(tmp_path / "trl")
    theirs.train()
    wanted = theirs.state.log_history[0]
    other, measured = two.forward(two.reference), reference.measured
    monkeypatch.setattr(reference, "measured", lambda _, row: measured(other, row))
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs()))
    data = {"train": {"datasets": [{"dataset_name": "preference_pairs_jsonl", "dataset_path": str(path)}]}}
    training = {"trainer_type": "NATIVE_DPO", "per_device_train_batch_size": 4, "max_steps": 1}
    train(toys.config(tmp_path, two.model, data, training=training))
    found = toys.metrics(tmp_path / "run")[0]
    for metric in ("loss", *METRICS, "grad_norm"):
        assert found[metric] == pytest.approx(wanted[metric], rel=1e-5, abs=1e-6), metric


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"loss_type": "hinge", "label_smoothing": 0.1},
            "label_smoothing: 0.1 changes nothing in loss_type hinge; it belongs to",
        ),
        ({"loss_type": "exo_pair"}, "exo_pair needs a label_smoothing above 0; its paper has 0.001"),
        ({"loss_type": ("ipo", "hinge"), "loss_weights": (1.0,)}, "loss_weights has 1 numbers for 2 loss types"),
        ({"loss_type": "ippo"}, "Input should be 'sigmoid', 'sigmoid_norm'"),
        ({"beta": 0}, "greater than 0"),
    ],
)
def test_options_that_do_not_fit_together(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        DpoParams.model_validate(options)
