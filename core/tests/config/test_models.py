"""The parameter classes as they are used from Python, with the spellings that other systems' users bring."""

from __future__ import annotations

import pytest

from graftwork import ModelParams, PeftParams, RunConfig, TrainingParams
from graftwork.config import DatasetParams, DatasetSplitParams, GenerationParams
from graftwork.errors import ConfigError


def test_oumis_quantized_model_is_one_expression():
    peft = PeftParams(q_lora=True, q_lora_bits=8, lora_r=16, lora_alpha=32, lora_dropout=0.1)
    model = ModelParams(model_name="meta-llama/Llama-3.2-3B-Instruct", peft_params=peft)
    assert (model.peft_params.q_lora_bits, model.peft_params.lora_alpha) == (8, 32)


def test_peft_params_of_the_model_are_the_peft_section():
    peft = PeftParams(lora_r=3)
    model = ModelParams(model_name="m", peft_params=peft)
    config = RunConfig(model=model)
    assert config.peft == peft
    assert config.model.peft_params is None
    assert model.peft_params == peft
    assert RunConfig(model=ModelParams(model_name="m"), peft=peft) == config


@pytest.mark.parametrize("name", ["torch_dtype", "torch_dtype_str", "dtype"])
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("auto", "auto"),
        ("AUTO", "auto"),
        ("bf16", "bfloat16"),
        ("BFloat16", "bfloat16"),
        ("torch.bfloat16", "bfloat16"),
        ("fp32", "float32"),
        ("f32", "float32"),
        ("torch.float32", "float32"),
        ("half", "float16"),
        ("float16", "float16"),
    ],
)
def test_dtypes_have_many_spellings(name, written, meant):
    assert ModelParams(model_name="m", **{name: written}).torch_dtype == meant


def test_a_torch_dtype_itself_is_a_dtype():
    torch = pytest.importorskip("torch")
    assert ModelParams(model_name="m", torch_dtype=torch.bfloat16).torch_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("params", "field", "written", "meant"),
    [
        (TrainingParams, "eval_strategy", "STEPS", "steps"),
        (TrainingParams, "lr_scheduler_type", "Cosine", "cosine"),
        (TrainingParams, "mixed_precision_dtype", "BF16", "bf16"),
        (TrainingParams, "mixed_precision_dtype", "bfloat16", "bf16"),
        (TrainingParams, "mixed_precision_dtype", None, "none"),
        (TrainingParams, "log_level", "INFO", "info"),
        (PeftParams, "peft_save_mode", "ADAPTER_ONLY", "adapter"),
        (PeftParams, "peft_save_mode", "ADAPTER_AND_BASE_MODEL", "full"),
        (PeftParams, "save_mode", "Merged", "merged"),
        (PeftParams, "lora_bias", "NONE", "none"),
        (PeftParams, "bnb_4bit_quant_type", "NF4", "nf4"),
        (PeftParams, "lora_init_weights", "PISSA_NITER_4", "pissa_niter_4"),
        (PeftParams, "lora_init_weights", True, "default"),
        (PeftParams, "lora_target_modules", "ALL_LINEAR", "all-linear"),
        (PeftParams, "lora_target_modules", "q_proj", ["q_proj"]),
        (PeftParams, "lora_target_modules", ["q_proj", "mlp"], ["q_proj", "mlp"]),
        (DatasetSplitParams, "streaming", True, True),
        (DatasetSplitParams, "mixture_strategy", "ALL_EXHAUSTED", "all_exhausted"),
        (TrainingParams, "run_name", 2024, "2024"),
    ],
)
def test_choices_are_read_in_any_case(params, field, written, meant):
    assert getattr(params(**{field: written}), params.ALIASES.get(field, field)) == meant


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: ModelParams(model_nam="m"), "model_nam = 'm': unknown key; did you mean model_name?"),
        (ModelParams, "ModelParams: 1 mistake\n  model_name: missing. A folder"),
        (lambda: ModelParams(model_name="m", dtype="bf17"), "torch_dtype = 'bf17': not a choice"),
        (
            lambda: ModelParams(model_name="m", dtype="bf16", torch_dtype="bf16"),
            "torch_dtype and torch_dtype|are one setting",
        ),
        (lambda: PeftParams(lora_r=0), "lora_r = 0: input should be greater than or equal to 1"),
        (lambda: PeftParams(lora_init_weights="pisa"), "did you mean pissa?"),
        (lambda: TrainingParams(max_steps=True), "max_steps = True: expected a number, not true or false"),
        (lambda: TrainingParams(learning_rate=float("nan")), "learning_rate = nan: input should be a finite number"),
        (lambda: TrainingParams(lr_scheduler_type="cosin"), "did you mean cosine?"),
        (lambda: GenerationParams(top_p=2), "top_p = 2: input should be less than or equal to 1"),
        (lambda: DatasetParams(dataset_name=""), "dataset_name = '': string should have at least 1 character"),
        (
            lambda: RunConfig(model={"model_name": "m"}, training={"max_stepz": 1}),
            "training.max_stepz = 1: unknown key",
        ),
    ],
)
def test_mistakes_in_python_read_as_those_in_a_file(build, said):
    with pytest.raises(ConfigError) as caught:
        build()
    assert any(part in str(caught.value) for part in said.split("|"))


def test_all_mistakes_of_a_tree_come_together():
    with pytest.raises(ConfigError, match="RunConfig: 3 mistakes"):
        RunConfig(model={"model_nam": "m"}, training={"max_steps": "x"})


def test_assigning_is_checked_like_building():
    training = TrainingParams()
    training.mixed_precision_dtype = "BF16"
    assert training.mixed_precision_dtype == "bf16"
    with pytest.raises(ConfigError, match=r"eval_strategy = 'stepz': not a choice; did you mean steps\?"):
        training.eval_strategy = "stepz"
    with pytest.raises(ConfigError, match="max_stepz"):
        training.max_stepz = 3
    assert training.eval_strategy == "no"


def test_a_home_folder_is_written_out():
    assert not DatasetParams(dataset_name="text", dataset_path="~/rows").dataset_path.startswith("~")
    with pytest.raises(ConfigError, match="there is no such home folder; write the whole path"):
        DatasetParams(dataset_name="text", dataset_path="~nobody-of-this-name/rows")


def test_defaults_are_those_of_oumi():
    """oumi v0.1.4, core/configs/params: what its users' files leave out keeps its meaning."""
    training = TrainingParams()
    assert (training.per_device_train_batch_size, training.num_train_epochs, training.save_steps) == (8, 3, 500)
    assert (training.learning_rate, training.lr_scheduler_type, training.max_grad_norm) == (5e-5, "linear", 1.0)
    assert (training.adam_beta1, training.adam_beta2, training.adam_epsilon) == (0.9, 0.999, 1e-8)
    peft = PeftParams()
    assert (peft.lora_r, peft.lora_alpha, peft.lora_dropout, peft.q_lora_bits) == (8, 8, 0.0, 4)
