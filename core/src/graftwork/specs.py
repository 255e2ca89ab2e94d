"""The frozen records that plugins return from their declaration hooks.

A record is plain data plus thunks: a thunk is a small function with its heavy import inside, so that an
entry module stays free of torch and transformers, and go-to-definition still works. Every record has a
``name``; ``aliases`` are further names for the same thing. Names are compared without regard to case.

New fields always have defaults: a plugin built against an older core keeps working.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

    from graftwork.builders.model import BuildRequest
    from graftwork.data.readers import OpenRequest, RowSource
    from graftwork.inference.engine import Engine, LoadedModel
    from graftwork.training import Trainer, TrainRequest

Schema = Literal["text", "chat", "preference", "image-chat"]

ParamsThunk = Callable[[], "type[BaseModel]"]
"""Imports and returns the pydantic model that a plugin's option block is validated against."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """An architecture with a name: the numbers of a published model, without its weights.

    ``values`` are the keyword arguments of the transformers configuration class of ``model_type``.
    ``num_parameters`` is the published count; the family's tests compare it with the built model.
    """

    name: str
    model_type: str
    values: Mapping[str, Any]
    num_parameters: int
    aliases: tuple[str, ...] = ()
    hub_ids: tuple[str, ...] = ()
    chat_template: str | None = None

    def config(self, **changes: Any) -> PretrainedConfig:
        """The transformers configuration, with ``changes`` over the preset's values."""
        from transformers import AutoConfig

        return AutoConfig.for_model(self.model_type, **{**self.values, **changes})


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """A family of models: what it claims, its sizes, and what is true of all its members.

    ``model_types`` and ``architectures`` are claims on ``config.json``: two families that claim the same
    one clash when it is needed. ``build`` is None where transformers has the architecture.
    ``lora_targets`` maps a role (``q_proj``, ``output_proj``, ``mlp``, ``output``) to module names; the
    role names are torchtune's. ``segment_attention`` states that packed equals padded for this family,
    which its conformance test proves; where it is False the trainer proves it before step 1.
    """

    name: str
    aliases: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    presets: tuple[Preset, ...] = ()
    build: Callable[[BuildRequest], nn.Module] | None = None
    lora_targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    default_lora_roles: tuple[str, ...] = ()
    freeze_aliases: Mapping[str, str] = field(default_factory=dict)
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    stop_tokens: tuple[str, ...] = ()
    chat_template: str | None = None
    tokenizer_impl: str | None = None
    modalities: tuple[str, ...] = ("text",)
    segment_attention: bool = False
    tiny: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSpec:
    """A way to read tokenizer files. ``files`` are the glob patterns of which one must be in a folder."""

    name: str
    load: Callable[[Path, Mapping[str, Any]], PreTrainedTokenizerFast]
    files: tuple[str, ...]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A named Jinja template. The file marks the assistant's tokens with ``{% generation %}``.

    ``stop`` are the token texts that end an assistant turn; ``supports`` names what the template can
    render besides user and assistant turns.
    """

    name: str
    path: Path
    aliases: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    supports: frozenset[Literal["system", "tools", "images"]] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSpec:
    """A training method. ``ignored_fields`` are core fields (``training.optimizer``) that it cannot honour:
    setting one of them is an error, found before anything loads.
    """

    name: str
    build: Callable[[TrainRequest], Trainer]
    schemas: tuple[Schema, ...]
    aliases: tuple[str, ...] = ()
    params: ParamsThunk | None = None
    ignored_fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizerSpec:
    """A way to hold weights in fewer bits.

    Either ``quantization_config(params)`` returns what ``from_pretrained`` takes, or ``quantize(model,
    params)`` changes a loaded model. ``trainable`` states whether adapters can be trained on the result.
    """

    name: str
    bits: tuple[int, ...]
    devices: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    params: ParamsThunk | None = None
    quantization_config: Callable[[Any], Any] | None = None
    quantize: Callable[[nn.Module, Any], nn.Module] | None = None
    trainable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec:
    """A reader of rows. ``open`` gives a source that can be iterated, and resumed at a position.

    ``needs_path`` states that there is nothing to read without a ``dataset_path``.
    """

    name: str
    schema: Schema
    open: Callable[[OpenRequest], RowSource]
    aliases: tuple[str, ...] = ()
    params: ParamsThunk | None = None
    needs_path: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CollatorSpec:
    """A way to make a batch of samples into tensors: ``build(tokenizer, params)`` gives the function."""

    name: str
    schema: Schema
    build: Callable[[Any, Any], Callable[[Any], Mapping[str, Any]]]
    aliases: tuple[str, ...] = ()
    params: ParamsThunk | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """A way to run a model for inference."""

    name: str
    build: Callable[[LoadedModel, Any], Engine]
    devices: tuple[str, ...]
    features: frozenset[Literal["streaming", "batching", "chat"]] = frozenset()
    aliases: tuple[str, ...] = ()
    params: ParamsThunk | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandSpec:
    """A command (or group of commands) of ``graft``. ``load`` imports and returns the click command."""

    name: str
    help: str
    load: Callable[[], Any]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """A URI scheme. ``fetch(reference, cache_dir)`` gives the folder where the files lie."""

    name: str
    fetch: Callable[[str, Path | None], Path]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """An optimizer: ``build(parameter_groups, learning_rate, params)`` gives a ``torch.optim.Optimizer``."""

    name: str
    build: Callable[[Any, float, Any], Any]
    aliases: tuple[str, ...] = ()
    params: ParamsThunk | None = None
