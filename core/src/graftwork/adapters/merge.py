"""An adapter merged into its base: a plain transformers model, and a folder that any tool loads."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from graftwork.adapters.attach import explained, load_adapter
from graftwork.adapters.folder import adapter_folder, base_of_adapter
from graftwork.builders.model import load_as_stored
from graftwork.builders.quiet import no_progress_bar
from graftwork.errors import GraftworkError, UsageError
from graftwork.files import complete_folder
from graftwork.sources import hub

if TYPE_CHECKING:
    from collections.abc import Iterator

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

    Raises :class:`ModelError` where the adapter does not fit the base, :class:`UsageError` where ``output_dir``
    exists.
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
    base = load_as_stored(str(model_or_path) if adapter is not None else base_of_adapter(folder).name)
    return load_adapter(base, folder), [folder, *_folders_of(base)]


def _merged(adapted: Any) -> PreTrainedModel:
    """The base with the adapter added: each half-precision weight in float32, so that the sum is rounded once."""
    with explained("the adapter", "cannot be merged"), torch.no_grad():
        for module in adapted.modules():
            if isinstance(module, BaseTunerLayer):
                _merge_layer(module)
        merged: PreTrainedModel = adapted.merge_and_unload(safe_merge=True)
    return merged


def _merge_layer(layer: Any) -> None:
    weight = layer.get_base_layer().weight
    if weight.dtype not in {torch.bfloat16, torch.float16} or layer.merged:
        return
    stored, weight.data = weight.dtype, weight.data.float()
    layer.merge(safe_merge=True)
    weight = layer.get_base_layer().weight
    weight.data = weight.data.to(stored)


def _folders_of(model: PreTrainedModel) -> list[Path]:
    name = getattr(model, "name_or_path", "")
    if not name:
        return []
    path = Path(name) if Path(name).is_absolute() else hub.cached(name)
    return [path] if path is not None and path.is_dir() else []


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
