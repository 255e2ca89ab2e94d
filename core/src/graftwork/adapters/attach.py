"""A fresh LoRA, or a trained one, on a model."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file

from graftwork.adapters.folder import check_base, check_shapes
from graftwork.adapters.judge import as_trained
from graftwork.adapters.record import record_of, remember, rows_of, write_record
from graftwork.adapters.targets import REWARD_HEAD, check_modules, linear_modules, module_leaves, resolve_lora_targets
from graftwork.adapters.tokens import make_room, rows_in, token_targets
from graftwork.builders import build_model
from graftwork.builders.family import family_of
from graftwork.builders.quantize import choose_quantizer
from graftwork.builders.quiet import no_progress_bar
from graftwork.errors import ModelError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PreTrainedModel

    from graftwork.config import ModelParams, PeftParams, RunConfig

logger = logging.getLogger("graftwork.adapters")


def attach_adapter(
    model: PreTrainedModel, peft: PeftParams, *, family: str | None = None, tokens: Sequence[int] = ()
) -> PeftModel:
    """Puts a fresh LoRA (DoRA, rsLoRA) onto ``model``, in float32 whatever the base is in; the base is frozen.

    The update starts at zero (B is), except with the initialisations that split the base. The rows of ``tokens`` in the
    embeddings, and in an output layer of its own, are trained too: those of added tokens. Raises :class:`UsageError`
    for names and values that do not fit this model.
    """
    if isinstance(model, PeftModel):
        raise UsageError("this model has an adapter already: train that one (adapter_model) or merge it first")
    config = lora_config(model, peft, family=family)
    if tokens:
        config.trainable_token_indices = token_targets(model, tokens, peft.lora_modules_to_save or ()) or None
    _check_trainable(model, peft)
    remember(model, record_of(model))
    with explained("the adapter"):
        adapted = get_peft_model(model, config, autocast_adapter_dtype=True)
    _log_counts(adapted, f"LoRA of rank {peft.lora_r} on {', '.join(sorted(config.target_modules))}")
    return adapted


def load_adapter(model: PreTrainedModel, path: Path | str, trainable: bool = False) -> PeftModel:
    """Puts the adapter in the folder ``path`` onto ``model``.

    A reward model's adapter makes one of the language model that it was trained on. Raises :class:`ModelError` where
    the adapter was made for another base or does not fit in shape.
    """
    folder = Path(path)
    check_base(folder, model)
    record = record_of(model)
    with explained(f"adapter {folder}"):
        model = as_trained(model, folder)
        make_room(model, rows_in(folder))
        remember(model, replace(record, embedding_rows=rows_of(model)))
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=trainable, autocast_adapter_dtype=True)
        if trainable:
            _as_stored(adapted, folder)
    check_shapes(folder, adapted)
    if trainable:
        _log_counts(adapted, f"adapter {folder}")
    return adapted


def _as_stored(adapted: PeftModel, folder: Path) -> None:
    """Float32 weights of modules that are trained whole: PEFT rounds them into copies in the base's type, and a run
    that goes on from them would not be the same.
    """
    stored = load_file(folder / "adapter_model.safetensors")
    wide = {name for name, weight in stored.items() if weight.dtype == torch.float32}
    rounded = [
        weight
        for name, weight in adapted.named_parameters()
        if weight.dtype in (torch.bfloat16, torch.float16)
        and name.replace(".modules_to_save.default", "").replace(".default", "") in wide
    ]
    for weight in rounded:
        weight.data = weight.data.float()
    if rounded:
        set_peft_model_state_dict(adapted, stored)


def save_adapter(folder: Path | str, adapted: Any) -> None:
    """Writes the adapter that is trained as PEFT does, with a record of its base; no other adapter that lies beside it
    (a reference), and never a copy of embeddings that are not trained.
    """
    with no_progress_bar():
        adapted.save_pretrained(folder, save_embedding_layers=False, selected_adapters=["default"])
    write_record(Path(folder), adapted)


def check_names(config: RunConfig) -> None:
    """Raises :class:`UsageError` for modules that ``peft`` names and the model does not have.

    Tried on the model without weights, before data are prepared, which takes longer.
    """
    peft = config.peft
    named = (peft.lora_target_modules, peft.lora_modules_to_save, peft.lora_exclude_modules)
    if not config.training.use_peft or config.model.adapter_model or not any(named):
        return
    try_on(without_weights(config.model), config)


def try_on(built: PreTrainedModel, config: RunConfig) -> LoraConfig:
    """PEFT's configuration for the model without weights, after everything that ``peft`` names was looked up in it."""
    found = lora_config(built, config.peft, family=config.model.family)
    if config.model.added_tokens:
        token_targets(built, (), config.peft.lora_modules_to_save or ())
    return found


def without_weights(params: ModelParams) -> PreTrainedModel:
    """The model that ``params`` name, on no device."""
    changes = {"load_pretrained_weights": False, "device_map": None, "torch_dtype": "float32", "compile": False}
    with torch.device("meta"):
        return build_model(params.model_copy(update={**changes, "adapter_model": None}))


def lora_config(model: PreTrainedModel, peft: PeftParams, *, family: str | None = None) -> LoraConfig:
    """PEFT's configuration for ``peft`` on ``model``, with every name resolved."""
    targets = resolve_lora_targets(family_of(model, family), peft.lora_target_modules, model)
    check_modules(model, peft.lora_modules_to_save or (), "peft.lora_modules_to_save", module_leaves(model))
    check_modules(model, peft.lora_exclude_modules or (), "peft.lora_exclude_modules", linear_modules(model))
    return LoraConfig(
        r=peft.lora_r,
        lora_alpha=peft.lora_alpha,
        lora_dropout=peft.lora_dropout,
        target_modules=targets,
        exclude_modules=peft.lora_exclude_modules,
        target_parameters=peft.lora_target_parameters,
        modules_to_save=peft.lora_modules_to_save,
        bias=peft.lora_bias,
        init_lora_weights=_initialisation(peft.lora_init_weights),
        use_dora=peft.use_dora,
        use_rslora=peft.use_rslora,
        task_type=_task_type(model, peft, targets),
        base_model_name_or_path=getattr(model, "name_or_path", None) or None,
    )


def _task_type(model: PreTrainedModel, peft: PeftParams, targets: list[str]) -> TaskType:
    """A classifier's head is new and trained whole, which is PEFT's SEQ_CLS, unless the LoRA goes onto it."""
    if peft.lora_task_type != "CAUSAL_LM" or hasattr(model, "prepare_inputs_for_generation"):
        return TaskType(peft.lora_task_type)
    return TaskType.FEATURE_EXTRACTION if REWARD_HEAD in targets else TaskType.SEQ_CLS


def _initialisation(name: str) -> bool | str:
    if name in {"eva", "loftq"}:
        needed = "training data" if name == "eva" else "a quantized copy of the base"
        raise UsageError(
            f"peft.lora_init_weights {name!r} needs {needed} before the first step, "
            "which nothing here gives it: use default, gaussian, pissa or olora"
        )
    return {"default": True, "random": False}.get(name, name)


def _check_trainable(model: PreTrainedModel, peft: PeftParams) -> None:
    quantizer = choose_quantizer(peft, model.device)
    if quantizer is not None and not quantizer.trainable:
        raise UsageError(
            f"peft: adapters cannot be trained on what quantizer {quantizer.name!r} makes; it is for inference only"
        )


def _log_counts(model: Any, what: str) -> None:
    trained, total = model.get_nb_trainable_parameters()
    logger.info("%s: %s of %s parameters trained (%.2f%%)", what, f"{trained:,}", f"{total:,}", 100 * trained / total)


@contextmanager
def explained(what: str, failure: str = "does not fit this model") -> Iterator[None]:
    """Turns PEFT's errors into :class:`ModelError` and its warnings into log lines."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", FutureWarning)
        # Said by PEFT about what is meant: GPT-2's transposed layers, and layers that merge one by one
        warnings.filterwarnings("ignore", message="All adapters are already merged")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to")
        try:
            yield
        except (ValueError, RuntimeError, KeyError, TypeError, OSError, SafetensorError) as error:
            raise ModelError(f"{what} {failure}: {' '.join(str(error).split())[:600]}") from error
    for warning in caught:
        logger.warning("%s: %s", what, " ".join(str(warning.message).split()))
