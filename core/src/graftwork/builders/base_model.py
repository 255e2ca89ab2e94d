"""``BaseModel``: a model of one's own that trains, saves, loads and generates like any other.

class MyModel(BaseModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, input_ids, labels=None, **kwargs):
        return self.head(self.embed(input_ids))  # (B, T, V)
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from graftwork.builders.dtype import choose_device_map, device_of
from graftwork.builders.weights import read_weights
from graftwork.errors import ModelError, UsageError

# What generation and training pass to every model; a forward that takes no **kwargs does without them.
_OPTIONAL = frozenset(
    {"position_ids", "past_key_values", "use_cache", "cache_position", "return_dict", "logits_to_keep", "inputs_embeds",
     "output_attentions", "output_hidden_states", "token_type_ids"}
)  # fmt: skip


class _Finished(type):
    """Starts every construction with a configuration object, also where a plain mapping was given, and ends it with
    ``post_init``, which a transformers model needs and people forget.
    """

    config_class: type[PretrainedConfig]

    def __call__(cls, config: PretrainedConfig | Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        if isinstance(config, Mapping):
            config = cls.config_class(**{key: value for key, value in config.items() if key != "model_type"})
        model = super().__call__(config, *args, **kwargs)
        if not hasattr(model, "all_tied_weights_keys"):
            _declare_tied(model)
            model.post_init()
        return model


class BaseModel(PreTrainedModel, GenerationMixin, metaclass=_Finished):  # type: ignore[misc]
    """A causal language model of one's own, for the native trainer, PEFT, ``save_pretrained``, ``build_model`` and
    ``generate``.

    ``config`` is a transformers configuration or a plain mapping. ``forward(input_ids, labels=None, **kwargs)``
    returns logits (B, T, V), alone, in a mapping, or in a ``ModelOutput``; with ``labels`` (B, T) and no loss of
    the model's own, the mean next-token cross-entropy is added. A subclass is registered with transformers under
    ``model_type`` (by default its name in snake_case) when it is defined: what it saved is loaded by
    ``build_model`` in any process that imported the class, and nowhere else.

    Weights keep what ``__init__`` gave them; define ``_init_weights(module)`` to draw them otherwise. A model
    without a cache of its own reads the whole text again for each new token.
    """

    model_type: ClassVar[str] = ""
    main_input_name = "input_ids"
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "forward" in cls.__dict__:
            cls.forward = _unified(cls.__dict__["forward"])
        _register(cls)

    def _init_weights(self, module: nn.Module) -> None:
        """Weights stay as the constructor drew them."""

    def get_input_embeddings(self) -> nn.Module:
        """What transformers finds by its usual names, else the first embedding."""
        try:
            return super().get_input_embeddings()  # type: ignore[no-any-return]
        except NotImplementedError:
            for module in self.modules():
                if isinstance(module, nn.Embedding):
                    return module
            raise

    def get_output_embeddings(self) -> nn.Module | None:
        """What transformers finds by its usual names, else the last linear layer as wide as the vocabulary."""
        usual: nn.Module | None = super().get_output_embeddings()
        if usual is not None:
            return usual
        wide = [m for m in self.modules() if isinstance(m, nn.Linear) and m.out_features == self.config.vocab_size]
        return wide[-1] if wide else None

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return _names(cls.forward, "past_key_values")

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Without a cache of the model's own, each step sees the whole text (B, T)."""
        if not self._supports_default_dynamic_cache():
            return {"input_ids": input_ids, "attention_mask": attention_mask}
        prepared: dict[str, Any] = super().prepare_inputs_for_generation(
            input_ids, attention_mask=attention_mask, **kwargs
        )
        return prepared

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Builds the model as its code says and puts the saved weights in.

        transformers builds it without memory first, which loses whatever a constructor computes beside weights.
        """
        if kwargs.get("quantization_config") is not None:
            raise UsageError(f"{cls.__name__} is a BaseModel: quantizing while loading is for transformers' own models")
        path = Path(pretrained_model_name_or_path)
        config = kwargs.get("config") or cls.config_class.from_pretrained(path)
        weights = read_weights(path)
        attention = kwargs.get("attn_implementation")
        model = cls._from_config(
            config,
            dtype=_dtype(kwargs.get("dtype"), weights),
            **({} if attention is None else {"attn_implementation": attention}),
        )
        info = _fill(model, weights, path)
        model = model.to(device_of(choose_device_map(kwargs.get("device_map")))).eval()
        model.name_or_path = model.config.name_or_path = str(path)
        return (model, info) if kwargs.get("output_loading_info") else model


def config_class(model_type: str) -> type[PretrainedConfig]:
    """The configuration class of ``model_type``, made where nobody has one: it takes any keyword."""
    if model_type in CONFIG_MAPPING:
        known: type[PretrainedConfig] = CONFIG_MAPPING[model_type]
        return known
    made: type[PretrainedConfig] = type(_camel(model_type) + "Config", (PretrainedConfig,), {"model_type": model_type})
    return made


def _register(cls: type[BaseModel]) -> None:
    if "config_class" in cls.__dict__ and cls.config_class is not None:
        config = cls.config_class
    else:
        cls.model_type = cls.__dict__.get("model_type") or _snake(cls.__name__)
        config = type(f"{cls.__name__}Config", (PretrainedConfig,), {"model_type": cls.model_type})
        cls.config_class = config
    # CONFIG_MAPPING loads its classes when they are indexed: its get() knows none of them
    taken = config.model_type in CONFIG_MAPPING and CONFIG_MAPPING[config.model_type].__module__
    if taken and taken.startswith("transformers."):
        raise UsageError(
            f'{cls.__qualname__}: model_type {config.model_type!r} is transformers\' own; set model_type = "..." '
            "in the class to a name of yours"
        )
    AutoConfig.register(config.model_type, config, exist_ok=True)
    AutoModelForCausalLM.register(config, cls, exist_ok=True)


def _unified(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` as the rest of the house calls it: it may get keywords it does not know, and returns an output
    with ``logits``.
    """

    @wraps(forward)
    def unified(self: BaseModel, *args: Any, **kwargs: Any) -> Any:
        keep = None if _names(forward, "logits_to_keep") else kwargs.pop("logits_to_keep", None)
        accepted = _accepted(forward, kwargs)
        output = _output(forward(self, *args, **accepted))
        if output.get("loss") is None and kwargs.get("labels") is not None:
            output["loss"] = self.loss_function(output["logits"], kwargs["labels"], self.config.vocab_size)
        if keep is not None:
            output["logits"] = _kept(output["logits"], keep)
        return output

    return unified


def _output(returned: Any) -> Any:
    if isinstance(returned, torch.Tensor):
        return CausalLMOutput(logits=returned)
    if isinstance(returned, Mapping) and "logits" in returned:
        return returned if hasattr(returned, "logits") else CausalLMOutput(**_plain_output(returned))
    raise ModelError(
        f"forward returned {type(returned).__name__}: return the logits (batch, length, vocabulary), or a mapping with "
        "'logits' and perhaps 'loss'"
    )


def _plain_output(returned: Mapping[str, Any]) -> dict[str, Any]:
    return {name: returned[name] for name in ("loss", "logits", "hidden_states", "attentions") if name in returned}


def _kept(logits: torch.Tensor, keep: int | torch.Tensor) -> torch.Tensor:
    """The positions that ``logits_to_keep`` names, of logits (B, T, V): the last ones, or those of an index."""
    if isinstance(keep, int):
        return logits[:, -keep:] if keep else logits
    return logits[:, keep]


def _accepted(forward: Callable[..., Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """``kwargs`` without the optional ones that ``forward`` cannot take."""
    left = {name: value for name, value in kwargs.items() if _accepts(forward, name) or name not in _OPTIONAL}
    mask = left.get("attention_mask")
    if "attention_mask" in left and not _accepts(forward, "attention_mask"):
        if mask is not None and not bool(mask.all()):
            raise ModelError("the batch is padded, and this model's forward takes no attention_mask: add the parameter")
        del left["attention_mask"]
    return left


def _names(forward: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(forward).parameters


def _accepts(forward: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(forward).parameters
    return name in parameters or any(kind.kind is kind.VAR_KEYWORD for kind in parameters.values())


def _dtype(asked: Any, weights: Mapping[str, torch.Tensor]) -> torch.dtype:
    if isinstance(asked, torch.dtype):
        return asked
    if isinstance(asked, str) and asked != "auto":
        named: torch.dtype = getattr(torch, asked)
        return named
    return next((tensor.dtype for tensor in weights.values() if tensor.is_floating_point()), torch.float32)


def _fill(model: BaseModel, weights: Mapping[str, torch.Tensor], path: Path) -> dict[str, Any]:
    """Copies the weights in, and says which were missing and which left over, as transformers does."""
    try:
        result = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ModelError(f"model {path}: {' '.join(str(error).split())}") from error
    tied = model.all_tied_weights_keys
    return {
        "missing_keys": {name for name in result.missing_keys if name not in tied},
        "unexpected_keys": set(result.unexpected_keys),
        "mismatched_keys": set(),
    }


def _declare_tied(model: BaseModel) -> None:
    """Tells transformers which parameters are one and the same, so that they are saved once."""
    first: dict[int, str] = {}
    tied = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        original = first.setdefault(id(parameter), name)
        if original != name:
            tied[name] = original
    if tied:
        model._tied_weights_keys = tied
        model.config.tie_word_embeddings = True


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in re.split(r"\W|_", name))
