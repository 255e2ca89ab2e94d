"""Options, names and messages: all of it without a model."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

import pytest
import torch

from graftwork.config import check_config
from graftwork.errors import ConfigError, DataError, UsageError
from graftwork.registry import get_registry
from graftwork_trl import methods, params
from graftwork_trl.arguments import arguments
from graftwork_trl.data import for_method
from graftwork_trl.methods import METHODS, Method
from graftwork_trl.model import autocast_of

if TYPE_CHECKING:
    from pathlib import Path

OPTIONS = {
    "TRL_SFT": params.SftOptions,
    "TRL_DPO": params.DpoOptions,
    "TRL_KTO": params.KtoOptions,
    "TRL_RM": params.RewardOptions,
    "TRL_GRPO": params.GrpoOptions,
    "TRL_ORPO": params.OrpoOptions,
}

OWN = ("reward_functions", "router_aux_loss_coef")
"""Options that are not TRL's, or not with its default."""


@pytest.mark.parametrize("name", METHODS)
def test_the_auxiliary_loss_is_off_wherever_trl_has_it(name: str) -> None:
    has = any(field.name == "router_aux_loss_coef" for field in fields(METHODS[name].load()[1]))
    defaults = OPTIONS[name].model_construct().for_trl()
    assert ("router_aux_loss_coef" in defaults) == has
    assert defaults.get("router_aux_loss_coef", 0.0) == 0.0


@pytest.mark.parametrize("name", METHODS)
def test_defaults_are_those_of_trl(name: str) -> None:
    theirs = {field.name: field for field in fields(METHODS[name].load()[1])}
    for option, field in OPTIONS[name].model_fields.items():
        if option in OWN:
            continue
        found = theirs[option]
        default = found.default if found.default is not MISSING else found.default_factory()
        assert field.get_default(call_default_factory=True) == default, option


@pytest.mark.parametrize(
    "spelling", ["TRL_SFT", "trl_sft", "Trl_Dpo", "trl_kto", "trl_reward", "TRL_RM", "trl_grpo", "TRL_ORPO"]
)
def test_names_in_any_case(spelling: str) -> None:
    spec = get_registry().trainers[spelling]
    assert spec.name in METHODS
    assert spec.params is not None
    assert spec.params() is OPTIONS[spec.name]


def refused(toys: Any, folder: Path, method: str, **sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        check_config(toys.config(folder, folder, method, toys.data(folder, method), **sections))
    return str(caught.value)


def test_a_misspelt_option_gets_the_nearest(toys: Any, tmp_path: Path) -> None:
    text = refused(toys, tmp_path, "TRL_DPO", training={"trainer_kwargs": {"betta": 0.2}})
    assert "training.trainer_kwargs.betta = 0.2: unknown key; did you mean beta?" in text


def test_an_unknown_reward_is_told_before_the_model_loads(toys: Any, tmp_path: Path) -> None:
    text = refused(toys, tmp_path, "TRL_GRPO", training={"trainer_kwargs": {"reward_functions": ["anser_match"]}})
    assert "there is no reward function 'anser_match'; did you mean answer_match?" in text


def test_rewards_are_required(toys: Any, tmp_path: Path) -> None:
    text = refused(toys, tmp_path, "TRL_GRPO", training={"trainer_kwargs": {"reward_functions": []}})
    assert "training.trainer_kwargs.reward_functions" in text


def test_compile_is_not_honoured(toys: Any, tmp_path: Path) -> None:
    text = refused(toys, tmp_path, "TRL_SFT", training={"compile": True})
    assert "training.compile = True: the trainer TRL_SFT cannot honour it" in text


def test_data_of_another_kind_is_refused(toys: Any, tmp_path: Path) -> None:
    data = {"train": toys.split(toys.write(tmp_path / "a.jsonl", toys.chat()))}
    with pytest.raises(ConfigError, match="gives chat rows, and the trainer TRL_DPO takes preference"):
        check_config(toys.config(tmp_path, tmp_path, "TRL_DPO", data))


def test_a_trainer_that_trl_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "installed", lambda: "1.20.0")
    gone = Method("TRL_ORPO", "trl.experimental.orpo_is_gone", "ORPO", "odds")
    expected = (
        r"training\.trainer_type: TRL_ORPO needs trl\.experimental\.orpo_is_gone\.ORPOTrainer, which the installed trl "
        r"1\.20\.0 does not give \(ModuleNotFoundError: .*\); install the version that this is tested with: "
        r"pip install 'trl>=1\.16,<1\.17'"
    )
    with pytest.raises(UsageError, match=expected):
        gone.load()
    with pytest.raises(UsageError, match=r"TRL_XPO needs trl.XPOTrainer, .*AttributeError"):
        Method("TRL_XPO", "trl", "XPO", "odds").load()


def test_a_collator_that_would_be_ignored_is_refused(toys: Any, tmp_path: Path) -> None:
    config = toys.config(tmp_path, tmp_path, "TRL_SFT", toys.data(tmp_path, "TRL_SFT", collator_name="mine"))
    with pytest.raises(UsageError, match=r"data\.\*\.collator_name: mine: the batches of TRL_SFT are those"):
        for_method(config.data.train, METHODS["TRL_SFT"])


def test_packing_is_for_sft(toys: Any, tmp_path: Path) -> None:
    config = toys.config(tmp_path, tmp_path, "TRL_DPO", toys.data(tmp_path, "TRL_DPO", pack=True))
    with pytest.raises(UsageError, match=r"data\.\*\.pack: TRL_DPO takes its samples one below another; set pack: fa"):
        for_method(config.data.train, METHODS["TRL_DPO"])


def test_prompts_are_not_streamed(toys: Any, tmp_path: Path) -> None:
    from graftwork_trl.grpo import Prompts

    config = toys.config(tmp_path, tmp_path, "TRL_GRPO", toys.data(tmp_path, "TRL_GRPO", stream=True))
    with pytest.raises(UsageError, match=r"data\.\*\.stream: TRL_GRPO reads its prompts before the first step"):
        Prompts(config, config.data.train, METHODS["TRL_GRPO"], toys.tokenizer())


def test_prompts_that_are_too_long(toys: Any, tmp_path: Path) -> None:
    from graftwork_trl.grpo import Prompts

    def prompts(**changes: Any) -> Prompts:
        config = toys.config(tmp_path, tmp_path, "TRL_GRPO", toys.data(tmp_path, "TRL_GRPO", **changes))
        return Prompts(config, config.data.train, METHODS["TRL_GRPO"], toys.tokenizer())

    with pytest.raises(DataError, match=r"jsonl:1: the prompt has 11 tokens, but may have 5; raise max_length, or set"):
        prompts(max_length=5)
    with pytest.raises(DataError, match=r"none of its 8 rows can be used: .*too long: .* nothing to train on"):
        prompts(max_length=5, over_long="drop")
    assert len(prompts(max_length=11).rows) == 8


def test_rows_that_hold_no_prompt_are_counted(toys: Any, tmp_path: Path) -> None:
    from graftwork_trl.grpo import Prompts

    rows = toys.sums()
    rows[2] = {"question": "1 <end> 1", "answer": "2"}
    path = toys.write(tmp_path / "rows.jsonl", [*rows[:5], {"other": 1}, *rows[5:]])

    def prompts(**changes: Any) -> Prompts:
        data = {"train": toys.split(path, **changes)}
        return Prompts((config := toys.config(tmp_path, tmp_path, "TRL_GRPO", data)), config.data.train,
                       METHODS["TRL_GRPO"], toys.tokenizer())  # fmt: skip

    with pytest.raises(
        DataError, match=r"1 of 3 rows cannot be used:\n  .*rows.jsonl:3: message number 1 .*holds <end>"
    ):
        prompts()
    made = prompts(max_rejected=2)
    assert len(made.rows) == len(made.dataset()) == 7
    (account,) = made.facts()["datasets"]
    assert (account["read"], account["used"]) == (9, 7)
    assert [kind["places"] for kind in account["rejected"]] == [[f"{path}:3"], [f"{path}:6"]]


def test_prompts_that_are_held_out_are_not_trained_on(toys: Any, tmp_path: Path) -> None:
    from graftwork_trl.grpo import Prompts

    data = {**toys.data(tmp_path, "TRL_GRPO"), "validation_fraction": 0.5}
    config = toys.config(tmp_path, tmp_path, "TRL_GRPO", data)
    asked = [
        {row["question"] for row in Prompts(config, split, METHODS["TRL_GRPO"], toys.tokenizer()).rows}
        for split in (config.data.train, config.data.validation)
    ]
    assert asked[0] & asked[1] == set()
    assert asked[0] | asked[1] == {row["question"] for row in toys.sums()}
    assert all(asked)


def test_answers_go_evenly_into_a_step(toys: Any, tmp_path: Path) -> None:
    from graftwork_trl.grpo import prompts_per_step

    config = toys.config(tmp_path, tmp_path, "TRL_GRPO", toys.data(tmp_path, "TRL_GRPO"))
    options = params.GrpoOptions(reward_functions=["answer_match"], num_generations=3)
    with pytest.raises(UsageError, match=r"num_generations: 3 answers to each prompt do not go evenly into the 4 of a"):
        prompts_per_step(config, options, 1)


def test_arguments_follow_the_configuration_not_trls_defaults(toys: Any, tmp_path: Path) -> None:
    training = {
        "lr_scheduler_type": "constant", "warmup_ratio": 0.25, "max_grad_norm": None, "seed": 7,
        "gradient_accumulation_steps": 3, "mixed_precision_dtype": "none",
    }  # fmt: skip
    for name in METHODS:
        config = toys.config(tmp_path, tmp_path, name, toys.data(tmp_path, name), training=training)
        options = OPTIONS[name].model_validate(config.training.trainer_kwargs)
        made = arguments(
            METHODS[name].load()[1], config, options, METHODS[name],
            total_steps=8, folder=tmp_path, device=torch.device("cpu"),
        )  # fmt: skip
        assert (made.gradient_checkpointing, made.bf16, made.fp16) == (False, False, False), name
        assert (made.report_to, made.disable_tqdm, made.logging_nan_inf_filter) == ([], True, False)
        assert (made.lr_scheduler_type, made.warmup_steps) == ("constant_with_warmup", 2)
        assert (made.seed, made.learning_rate, made.max_steps) == (7, 1e-2, 8)
        assert made.gradient_accumulation_steps == (3 if name == "TRL_GRPO" else 1)


def test_half_precision(toys: Any, tmp_path: Path) -> None:
    def asked(kind: str) -> dict[str, bool]:
        config = toys.config(
            tmp_path, tmp_path, "TRL_SFT", toys.data(tmp_path, "TRL_SFT"), training={"mixed_precision_dtype": kind}
        )
        return autocast_of(config, torch.device("cpu"))

    assert asked("bf16") == {"bf16": True, "fp16": False}
    assert asked("none") == {"bf16": False, "fp16": False}
    assert asked("auto")["fp16"] is False
    with pytest.raises(UsageError, match="fp16 is hundreds of times slower than bf16 on a CPU; use bf16 or none"):
        asked("fp16")
