"""The frozen records that plugins return from their declaration hooks.

A record is plain data plus thunks: a thunk is a small function with its heavy import inside, so that an
entry module stays free of torch and transformers, and go-to-definition still works. Every record has a
``name``; ``aliases`` are further names for the same thing. Names are compared without regard to case.

New fields always have defaults: a plugin built against an older core keeps working.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel
    from torch import nn
    from transformers import PretrainedConfig

    from graftwork.builders.model import BuildRequest
    from graftwork.check.forecast import Forecast, ForecastRequest
    from graftwork.check.methods import MethodRequest, StepCount
    from graftwork.checkpoints.formats import Checkpoint, WriteRequest
    from graftwork.checkpoints.keymap import KeyMap
    from graftwork.config import DatasetSplitParams
    from graftwork.data.account import Outcome
    from graftwork.data.encoders import LoadRequest
    from graftwork.data.readers import OpenRequest, Row, RowSource
    from graftwork.inference.engine import Engine, LoadedModel
    from graftwork.sources.hubs import ModelHub, TokenizerHub
    from graftwork.tokenizers.tokenizer import Tokenizer
    from graftwork.training import Trainer, TrainRequest

Schema = Literal["text", "chat", "preference", "image-chat"]
Supported = Literal["system", "tools", "images"]

ParamsThunk = Callable[[], "type[BaseModel]"]
"""Imports and returns the pydantic model that a plugin's option block is validated against."""

DECODER_LORA_TARGETS: Mapping[str, tuple[str, ...]] = {
    "q_proj": ("q_proj",),
    "k_proj": ("k_proj",),
    "v_proj": ("v_proj",),
    "output_proj": ("o_proj",),
    "mlp": ("gate_proj", "up_proj", "down_proj"),
    "output": ("lm_head",),
}
"""Role to module names as most decoders in transformers have them; a family with others writes its own."""

DECODER_LORA_ROLES = ("q_proj", "k_proj", "v_proj", "output_proj", "mlp")
DECODER_FREEZE_ALIASES: Mapping[str, str] = {
    "embeddings": "model.embed_tokens",
    "layers": "model.layers",
    "output": "lm_head",
}
DECODER: Mapping[str, Any] = {
    "lora_targets": DECODER_LORA_TARGETS,
    "default_lora_roles": DECODER_LORA_ROLES,
    "freeze_aliases": DECODER_FREEZE_ALIASES,
    "segment_attention": True,
}
"""What a family of usual decoders is declared with: ``ModelFamily(name=..., **DECODER)``."""


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


def decoder_shape(
    width: int, hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int | None = None
) -> dict[str, int]:
    """The numbers that most presets differ in, by the names of transformers' configurations.

    Without ``head_dim`` it is left to the configuration, which takes ``width // heads``.
    """
    shape = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }
    return shape if head_dim is None else {**shape, "head_dim": head_dim}


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLayout:
    """What a file of bare tiktoken ranks leaves unsaid: the pattern that cuts a text into words, and the special
    tokens, whose ids follow the last rank in this order.

    ``ranks`` is the number of ranks in the files that it is for, by which they are known.
    """

    ranks: int
    split_regex: str
    special_tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageLayout:
    """How a conversation becomes tokens: the markers and the rules of one family, as torchtune has them.

    ``header`` stands before a message and ``end`` after it (``open_end`` where the turn goes on): each part is a
    special token, or text that is encoded apart; ``{role}`` is the role's name. ``prompt`` puts plain text around
    the messages of a role, ``system`` says what becomes of a system message then. ``special_tokens`` have the ids
    given, or as a tuple the ids after the vocabulary; what is not among them is the files' own.
    """

    special_tokens: Mapping[str, int] | tuple[str, ...] = ()
    bos: str | None = None
    eos: str | None = None
    pad: str | int = 0
    stop: tuple[str, ...] = ()
    header: tuple[str, ...] = ()
    end: tuple[str, ...] = ()
    open_end: tuple[str, ...] = ()
    bare_roles: tuple[str, ...] = ()
    """Roles without header and end."""
    roles: tuple[str, ...] = ("system", "user", "assistant", "ipython")
    prompt: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    prompt_name: str = ""
    system: Literal["message", "in_user", "refused"] = "message"
    call: str | None = None
    """Stands before a tool call."""
    image: str | None = None
    strip: Literal["both", "right", "no"] = "no"
    unspaced: Literal["never", "within_turn", "always"] = "never"
    """Where SentencePiece's space before a text is left out."""
    bos_before: Literal["conversation", "turn", "nothing"] = "turn"
    eos_after: Literal["conversation", "assistant"] = "assistant"
    eos_masked: bool | None = None
    """Whether EOS is never trained; None: as the message before it."""
    cut_masked: bool | None = True
    """The same for the EOS that ends a conversation where it is cut off."""
    short_ends: bool = True
    """Whether one that is shorter than the limit ends in EOS as if it were cut off."""
    last_end: Literal["always", "with_end_tokens", "not_assistant"] = "always"
    """Whether the last message gets its ``end``."""
    end_tokens: bool = True
    """Whether ``tokenize_messages`` adds end tokens unless told otherwise."""
    decode_to_eos: bool = False
    split_regex: str = ""
    """The pattern for a bare vocabulary with merges."""
    impls: tuple[str, ...] = ()
    """The implementations that read the family's files; a file of another is not its."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """A family of models: what it claims, its sizes, and what is true of all its members.

    ``model_types`` and ``architectures`` are claims on ``config.json``: two families that claim the same
    one clash when it is needed. ``build`` is None where transformers has the architecture.
    ``lora_targets`` maps a role (``q_proj``, ``output_proj``, ``mlp``, ``output``) to module names; the
    role names are torchtune's. ``fused_lora_roles`` are groups of roles that one module fills here, so that a LoRA goes
    onto all of a group or none. ``segment_attention`` states that packed equals padded for this family,
    which its conformance test proves; where it is False the trainer proves it before step 1.
    ``key_maps`` holds, by the name of a checkpoint format, a thunk to the map between its parameter names and
    those of transformers. ``components`` are modules of the plugin whose public functions a configuration may
    name in ``_component_``; the last part of a module's name is torchtune's (``my_llama.llama3``).
    ``config_class`` (``module:Class``) is the configuration of the family's hubs, made by ``config_class`` of
    :mod:`graftwork.builders.fairseq2_names`; without it they have transformers' own.
    ``tiny`` are the values of a configuration for tests, ``tiny_by_type`` those that one model type has beside or
    instead of them. They are proved on 20 tokens: a window is shorter, and a soft-cap bites.
    ``rank_layouts`` complete the family's tokenizer files that hold nothing but tiktoken ranks.
    """

    name: str
    aliases: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()
    presets: tuple[Preset, ...] = field(default=(), repr=False)
    build: Callable[[BuildRequest], nn.Module] | None = None
    lora_targets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    default_lora_roles: tuple[str, ...] = ()
    fused_lora_roles: tuple[tuple[str, ...], ...] = ()
    freeze_aliases: Mapping[str, str] = field(default_factory=dict)
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    stop_tokens: tuple[str, ...] = ()
    chat_template: str | None = None
    tokenizer_impl: str | None = None
    modalities: tuple[str, ...] = ("text",)
    segment_attention: bool = False
    tiny: Mapping[str, Any] = field(default_factory=dict)
    tiny_by_type: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    key_maps: Mapping[str, Callable[[], KeyMap]] = field(default_factory=dict)
    components: tuple[str, ...] = ()
    config_class: str = ""
    rank_layouts: tuple[RankLayout, ...] = field(default=(), repr=False)

    def tiny_config(self, model_type: str, **changes: Any) -> PretrainedConfig:
        """The transformers configuration for tests of one of :attr:`model_types`, with ``changes`` over it."""
        from transformers import AutoConfig

        return AutoConfig.for_model(model_type, **{**self.tiny, **self.tiny_by_type.get(model_type, {}), **changes})


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerSpec:
    """A way to read tokenizer files. ``files`` are the glob patterns of which one must be in a folder.

    ``fits(path)`` says whether a folder or file holds what this reads, by its content; without it the names decide.
    ``load(path, options)`` reads one; of the options ``use_eot``, ``split_regex`` and ``family`` are those of
    :func:`graftwork.load_tokenizer`, all others go to transformers' ``from_pretrained``.
    """

    name: str
    load: Callable[[Path, Mapping[str, Any]], Tokenizer]
    files: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    fits: Callable[[Path], bool] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatTemplate:
    """A named Jinja template. The file marks the assistant's tokens with ``{% generation %}``.

    ``stop`` are the token texts that end an assistant turn; ``supports`` names what the template can
    render besides user and assistant turns. ``encoding`` says how the text becomes tokens: ``whole`` is one
    text, as in transformers; ``parts`` encodes what each ``{{ }}`` of the file gives on its own, where one that
    is a control token's text is that token and any other is plain text, as in mistral-common. ``rewrites`` says
    what the format changes in earlier messages when another is appended, as its original does; ``forgets`` names the
    roles whose messages it leaves out before the last question, ``tool`` with the calls that are answered there.
    """

    name: str
    path: Path
    aliases: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    supports: frozenset[Supported] = frozenset()
    encoding: Literal["whole", "parts"] = "whole"
    rewrites: str = ""
    forgets: tuple[str, ...] = ()


def hubs(family: str) -> tuple[Callable[[], ModelHub], Callable[[], TokenizerHub]]:
    """``get_<family>_model_hub`` and ``get_<family>_tokenizer_hub``, which a family's package has as fairseq2's do."""

    def models() -> ModelHub:
        from graftwork.sources.hubs import model_hub

        return model_hub(family)

    def tokenizers() -> TokenizerHub:
        from graftwork.sources.hubs import tokenizer_hub

        return tokenizer_hub(family)

    return models, tokenizers


def chat_template(
    folder: Path,
    name: str,
    *aliases: str,
    stop: Sequence[str],
    supports: tuple[Supported, ...] = ("system",),
    **more: Any,
) -> ChatTemplate:
    """The record of the file ``NAME.jinja`` in ``folder``; ``more`` are further fields of it."""
    path = folder / f"{name}.jinja"
    return ChatTemplate(name=name, path=path, aliases=aliases, stop=tuple(stop), supports=frozenset(supports), **more)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerSpec:
    """A training method. ``ignored_fields`` are core fields (``training.optimizer``) that it cannot honour:
    setting one of them is an error, found before anything loads. ``forecast`` says what memory a run will take,
    without loading weights; a method without it is not forecast.

    ``refuse`` raises :class:`graftwork.errors.UsageError` where the settings contradict each other for this method,
    which is asked by ``graft check`` and at the start of a run, before anything loads. ``read_as`` gives a split as the
    method reads it, where that is not as it stands. ``count_steps`` gets the samples of an epoch too (None where they
    are not known) and says how long the run is, where a batch is not one of samples. ``prompts`` is of a method that
    draws its own answers: how a split is loaded, and the name of the field with the turns, to a function that says what
    becomes of a row, its sample the prompt, of which no token is trained. ``doubts`` gives what a run would warn of, to
    ``graft check``, which looks at so many rows of each dataset (None: all) and asks only where they can be read.
    """

    name: str
    build: Callable[[TrainRequest], Trainer]
    schemas: tuple[Schema, ...]
    aliases: tuple[str, ...] = ()
    params: ParamsThunk | None = None
    ignored_fields: tuple[str, ...] = ()
    forecast: Callable[[ForecastRequest], Forecast] | None = None
    refuse: Callable[[MethodRequest], None] | None = None
    read_as: Callable[[DatasetSplitParams], DatasetSplitParams] | None = None
    count_steps: Callable[[MethodRequest, int | None], StepCount] | None = None
    prompts: Callable[[LoadRequest, str | None], Callable[[Row], Outcome]] | None = None
    doubts: Callable[[MethodRequest, int | None], Iterable[str]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizerSpec:
    """A way to hold weights in fewer bits.

    ``quantization_config(params)`` returns what ``from_pretrained`` takes, to quantize while a checkpoint loads;
    ``quantize(model, params)`` changes a model that is there, and also gets the one that was quantized so.
    One of them is enough. ``trainable`` states whether adapters can be trained on the result.
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

    ``needs_path`` states that there is nothing to read without a ``dataset_path``. Where ``recognise`` is given it
    tells the schema from the options or the rows, and ``schema`` is only what it is until then.
    """

    name: str
    schema: Schema
    open: Callable[[OpenRequest], RowSource]
    recognise: Callable[[OpenRequest], str] | None = None
    aliases: tuple[str, ...] = ()
    params: ParamsThunk | None = None
    needs_path: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CollatorSpec:
    """A way to make a batch of samples into tensors: ``build(tokenizer, params)`` gives the function.

    ``other_schemas`` are what it takes besides its own schema.
    """

    name: str
    schema: Schema
    other_schemas: tuple[Schema, ...] = ()
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
    """An optimizer: ``build(parameter_groups, learning_rate, params)`` gives a ``torch.optim.Optimizer``.

    ``devices`` are those that it runs on, without any all of them: asked for elsewhere it is an error before anything
    loads.
    """

    name: str
    build: Callable[[Any, float, Any], Any]
    devices: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    params: ParamsThunk | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpec:
    """A reward for reinforcement learning, by name. ``load`` imports and returns the function
    ``(prompts, completions, **columns)`` that gives one number for each completion, or None where it has none to give.

    Prompts and completions are lists of messages; a column holds one value for each completion: the fields of the
    prompt's row, ``answer`` (the answer in the data) and ``completion_ids`` among them.
    """

    name: str
    load: Callable[[], Callable[..., Sequence[float | None]]]
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFormat:
    """A way in which weights lie on disk.

    ``sniff(path)`` says, from names and headers alone, whether a folder or file is of this format;
    ``open(path)`` gives its tensors' names, shapes and dtypes, and streams the tensors; ``write(request)``
    writes a stream of them into an empty folder. ``names`` says whose names the tensors have: those of transformers,
    the format's own, which each family maps (``ModelFamily.key_maps``), or an adapter's.
    """

    name: str
    sniff: Callable[[Path], bool]
    open: Callable[[Path], Checkpoint]
    write: Callable[[WriteRequest], None] | None = None
    names: Literal["transformers", "own", "adapter"] = "own"
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetCardSource:
    """A folder of YAML asset cards that comes with a plugin."""

    name: str
    path: Path
    aliases: tuple[str, ...] = ()
