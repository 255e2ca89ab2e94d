"""An adapter merged into its base: a plain transformers model, and a folder that any tool loads."""

from __future__ import annotations

import logging
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from graftwork.adapters.attach import explained, load_adapter
from graftwork.adapters.folder import adapter_folder, base_of_adapter
from graftwork.adapters.record import folder_of, read_record
from graftwork.builders.model import load_as_stored
from graftwork.builders.quiet import no_progress_bar
from graftwork.errors import GraftworkError, ModelError, UsageError
from graftwork.files import complete_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger("graftwork.adapters")

# What a folder needs beside the weights: the tokenizer, the template that the model was trained with, stop ids.
_TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "*.tiktoken",
    "chat_template*",
)


def merge_adapter(
    model_or_path: PreTrainedModel | str | Path,
    adapter: str | Path | None = None,
    output_dir: str | Path | None = None,
) -> PreTrainedModel:
    """Merges an adapter into its base and gives a plain transformers model.

    Either a ``PeftModel`` (it is merged in place), or an adapter's folder (its recorded base is loaded), or a base
    (model or name) with ``adapter``. With ``output_dir`` the merged model is written there, with the tokenizer and
    template files of the adapter's folder or else the base's: complete, or not at all.

    Raises :class:`ModelError` where the adapter was trained on another base, does not fit it, or leaves a target weight
    as it was although it has an update for it, :class:`UsageError` where ``output_dir`` exists.
    """
    target = _new_folder(output_dir) if output_dir is not None else None
    adapted, origins = _adapted(model_or_path, adapter)
    merged = _merged(adapted)
    if target is not None:
        with _written(target) as folder, no_progress_bar():
            merged.save_pretrained(folder)
            _copy_tokenizer(origins, folder)
    return merged


def _adapted(model_or_path: PreTrainedModel | str | Path, adapter: str | Path | None) -> tuple[Any, list[Path]]:
    """The model with its adapter, and the folders that may hold its tokenizer, best first."""
    if isinstance(model_or_path, PeftModel):
        if adapter is not None:
            raise UsageError("merge_adapter: the model has an adapter already, and another is given: give one")
        return model_or_path, _folders_of(model_or_path.get_base_model())
    if isinstance(model_or_path, PreTrainedModel):
        if adapter is None:
            raise UsageError("merge_adapter: this model has no adapter: give the adapter's folder too")
        folder = adapter_folder(adapter)
        return load_adapter(model_or_path, folder), [folder, *_folders_of(model_or_path)]
    folder = adapter_folder(adapter if adapter is not None else model_or_path)
    if read_record(folder).fingerprint is None:
        logger.info(
            "adapter %s records no fingerprint of its base: its name and the shapes are what is compared", folder
        )
    base = load_as_stored(str(model_or_path) if adapter is not None else base_of_adapter(folder).name)
    return load_adapter(base, folder), [folder, *_folders_of(base)]


def _merged(adapted: Any) -> PreTrainedModel:
    """The base with the adapter added: each half-precision weight in float32, so that the sum is rounded once."""
    proof = Proof()
    with explained("the adapter", "cannot be merged"), torch.no_grad():
        for name, module in adapted.named_modules():
            if isinstance(module, BaseTunerLayer) and not module.merged:
                _merge_layer(name.removeprefix("base_model.model."), module, proof)
    proof.require()
    with explained("the adapter", "cannot be merged"), torch.no_grad():
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    return merged


@dataclass
class Proof:
    """Which target weights an adapter changed when it was merged."""

    changed: list[str] = field(default_factory=list)
    zero: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    def require(self) -> None:
        """Raises :class:`ModelError` for a weight that did not change although the adapter has an update for it."""
        targets = len(self.changed) + len(self.zero) + len(self.lost)
        if self.lost:
            raise ModelError(
                f"the adapter was not merged: {len(self.lost)} of {targets} target weights did not change "
                f"({', '.join(self.lost[:3])}): its updates of them are smaller than the rounding of the base's type. "
                "Merge it into a float32 copy of the base"
            )
        if self.zero:
            logger.warning(
                "%d of %d target weights are the base's: the adapter's update of them is zero, as in one that was "
                "never trained (%s)",
                len(self.zero),
                targets,
                ", ".join(self.zero[:3]),
            )
        logger.info("merged: %d of %d target weights changed", len(self.changed), targets)


def _merge_layer(name: str, layer: Any, proof: Proof) -> None:
    base = layer.get_base_layer()
    parameter = getattr(layer, "parameter_name", "weight")
    weight = getattr(base, parameter)
    if type(weight) is not nn.Parameter:
        raise UsageError(
            f"the base under the adapter is quantized ({name} is {type(base).__name__}): merge the adapter's folder "
            "into the base in full precision (graft merge)"
        )
    zero, before, stored = _is_zero(layer), weight.data.clone(), weight.dtype
    if stored in {torch.bfloat16, torch.float16}:
        weight.data = weight.data.float()
    layer.merge(safe_merge=True)
    weight = getattr(layer.get_base_layer(), parameter)
    weight.data = weight.data.to(stored)
    same = torch.equal(weight.data, before)
    (proof.changed if not same else proof.zero if zero else proof.lost).append(f"{name}.{parameter}")


def _is_zero(layer: Any) -> bool:
    """Whether the adapter has nothing to add: its factors' product is zero, its tokens' rows are the base's."""
    for adapter in layer.active_adapters:
        if adapter in getattr(layer, "trainable_tokens_delta", {}):
            rows = torch.tensor(layer.token_indices[adapter])
            if not torch.equal(layer.get_base_layer().weight[rows], layer.trainable_tokens_delta[adapter]):
                return False
        elif bool(layer.get_delta_weight(adapter).any()):
            return False
    return True


def _folders_of(model: PreTrainedModel) -> list[Path]:
    folder = folder_of(model)
    return [] if folder is None else [folder]


def _new_folder(output_dir: str | Path) -> Path:
    target = Path(output_dir).expanduser().absolute()
    if target.exists():
        raise UsageError(
            f"output folder {target} exists already, and nothing is overwritten: give another or remove it"
        )
    return target


@contextmanager
def _written(target: Path) -> Iterator[Path]:
    """The folder that becomes ``target`` when the block ends well; what the disk says is explained."""
    try:
        with complete_folder(target) as folder:
            yield folder
    except OSError as error:
        raise GraftworkError(f"output folder {target} could not be written: {error}") from error


def _copy_tokenizer(origins: list[Path], folder: Path) -> None:
    for origin in origins:
        files = [file for pattern in _TOKENIZER for file in origin.glob(pattern)]
        if files:
            for file in files:
                _copy(file, folder / file.name)
            break
    for origin in origins:
        if (origin / "generation_config.json").is_file():
            shutil.copy2(origin / "generation_config.json", folder)
            break


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)
