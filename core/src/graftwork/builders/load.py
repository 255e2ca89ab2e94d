"""The two ways to get a model object: weights from a checkpoint, or fresh ones."""

from __future__ import annotations

import ctypes
import logging
import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
)
from transformers.utils import logging as transformers_logging

from graftwork.builders.dtype import DeviceMap, device_of
from graftwork.builders.quiet import no_progress_bar
from graftwork.checkpoints.huggingface import HF, open_hf, shard_files
from graftwork.checkpoints.loading import LazyTensor, lazy_weights, load_generation_config
from graftwork.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from transformers import PretrainedConfig, PreTrainedModel

logger = logging.getLogger("graftwork.model")


def model_class(config: PretrainedConfig, trust_remote_code: bool) -> type[PreTrainedModel]:
    """The class of a configuration: a causal language model, or the classifier that its ``architectures`` name.

    Raises :class:`ModelError` where there is none.
    """
    if trust_remote_code and hasattr(config, "auto_map"):
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        reference = config.auto_map["AutoModelForCausalLM"]
        remote: type[PreTrainedModel] = get_class_from_dynamic_module(reference, config.name_or_path)
        return remote
    classifier = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    if classifier is not None and classifier.__name__ in (config.architectures or ()):
        named: type[PreTrainedModel] = classifier
        return named
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(
            f"model_type {config.model_type!r} has no causal language model in transformers, and no plugin's family "
            "builds it (graft plugins). If it is a graftwork.BaseModel of yours, import the module that defines it"
        )
    cls = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    chosen: type[PreTrainedModel] = cls[0] if isinstance(cls, tuple) else cls
    return chosen


def fresh(
    cls: type[PreTrainedModel],
    config: PretrainedConfig,
    dtype: torch.dtype,
    device_map: DeviceMap,
    attn_implementation: str | None,
) -> PreTrainedModel:
    """A model with fresh weights in evaluation mode, on the device of ``device_map`` or of the context."""
    keywords = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with _explained(f"a fresh {config.model_type} model"):
        model: PreTrainedModel = cls._from_config(config, dtype=dtype, **keywords)
    if device_map is not None and model.device.type != "meta":
        model = model.to(device_of(device_map))
    return model.eval()


def load(cls: type[PreTrainedModel], path: Path, **keywords: Any) -> PreTrainedModel:
    """A model in evaluation mode with the weights in ``path``, every one of them. ``keywords`` hold its ``config``.

    Raises :class:`ModelError` where the weights do not fit the architecture: transformers would fill what is
    missing with fresh ones.
    """
    if torch.get_default_device().type == "meta":
        raise ModelError(
            f'model {path}: torch.device("meta") builds without weights: set load_pretrained_weights=False'
        )
    shard_files(path, HF)  # raises for shards that are missing, or lie elsewhere
    weights = lazy_weights(path, keywords["config"]) or _streamed(path, **keywords)
    with _explained(f"model {path}"), _quiet(), _without_adapter(path) as folder:
        model, info = cls.from_pretrained(
            folder if weights is None else None,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # checked below, with both shapes
            **{key: value for key, value in {**keywords, "state_dict": weights}.items() if value is not None},
        )
    _check_loaded(info, path)
    if weights is not None:
        load_generation_config(model, path)
        _give_back_freed_memory()
    loaded: PreTrainedModel = model
    return loaded


class StreamedTensor(LazyTensor):
    """A tensor that is read into memory of its own when its turn comes, after what was freed before it is given back.

    The pages of a mapped file stay the process's until the file is closed, and what quantizing one weight has freed is
    kept by glibc, in places that the next one does not fit into: together three to five times the checkpoint's size.
    """

    def __getitem__(self, index: Any) -> torch.Tensor:
        _give_back_freed_memory()
        return super().__getitem__(index)


def _streamed(path: Path, *, config: Any, quantization_config: Any = None, **_: Any) -> Any:
    """The weights one at a time, where they are quantized as they come; None where they are loaded as they are."""
    if quantization_config is None or getattr(config, "quantization_config", None) is not None:
        return None
    checkpoint = open_hf(path)
    return {name: StreamedTensor(checkpoint, name) for name in checkpoint.headers}


def _give_back_freed_memory() -> None:
    """Memory that was freed, to the system (glibc's; others do so by themselves)."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


def _check_loaded(info: dict[str, Any], path: Path) -> None:
    for name, stored, wanted in sorted(info["mismatched_keys"]):
        raise ModelError(
            f"model {path}: weight {name} is {_shape(stored)} in the checkpoint and {_shape(wanted)} in the "
            f"architecture ({len(info['mismatched_keys'])} in all differ): config.json (or model_kwargs) "
            "does not fit the weights"
        )
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"model {path}: {len(missing)} weights of the architecture are not in the checkpoint ({_some(missing)}): "
            "config.json (or model_kwargs) does not fit the weights"
        )
    if unused := sorted(info["unexpected_keys"]):
        logger.warning("model %s: %d weights of the checkpoint are not used (%s)", path, len(unused), _some(unused))


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns what transformers raises about files, values and missing packages into a :class:`ModelError`."""
    try:
        yield
    except SafetensorError as error:
        raise ModelError(f"{what}: a weight file is damaged or was cut off ({error}): fetch it again") from error
    except (ValueError, TypeError, OSError, RuntimeError, ImportError, KeyError) as error:
        text = " ".join(str(error).split())
        raise ModelError(f"{what} cannot be built: {text[:600]}") from error


@contextmanager
def _without_adapter(path: Path) -> Iterator[Path]:
    """``path``, or a view of it without the adapter that lies beside the base: transformers would put that on."""
    if not (path / "adapter_config.json").is_file():
        yield path
        return
    with TemporaryDirectory() as view:
        for file in path.iterdir():
            if not file.name.startswith("adapter_"):
                (Path(view) / file.name).symlink_to(file.absolute())
        yield Path(view)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' progress bar and its table of weights, which :func:`_check_loaded` says in one line."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with no_progress_bar():
            yield
    finally:
        transformers_logging.set_verbosity(level)
