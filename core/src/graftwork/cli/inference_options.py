"""What ``graft generate`` and ``graft chat`` have in common: which model, and how it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from graftwork.errors import PluginError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from graftwork.config import GenerationParams
    from graftwork.inference import Engine, LoadedModel

_MODEL = (
    click.option("--model-uid", metavar="UID", help="A model of a running server, instead of MODEL."),
    click.option("--endpoint", metavar="URL", help="The server of --model-uid."),
    click.option("--adapter", metavar="PATH", help="A trained adapter to load onto MODEL."),
    click.option("--dtype", metavar="TYPE", help="Precision of the weights: auto, float32, bfloat16."),
    click.option("--chat-template", metavar="NAME", help="Name or file of a chat template, instead of the saved one."),
    click.option("--family", metavar="NAME", help="The model family, where it cannot be told."),
    click.option("--trust-remote-code", is_flag=True, help="Run Python code that comes with the model."),
    click.option("--engine", metavar="NAME", default="transformers", show_default=True, help="What runs the model."),
)
_GENERATION = (
    click.option("--max-new-tokens", type=int, help="Stop after this many tokens.  [default: 1024]"),
    click.option("--temperature", type=float, help="0 takes the likeliest token each time."),
    click.option("--top-p", type=float, help="Sample among the likeliest tokens of this total share."),
    click.option("--top-k", type=int, help="Sample among this many likeliest tokens."),
    click.option("--min-p", type=float, help="Least probability, relative to the likeliest token's."),
    click.option("--repetition-penalty", type=float, help="Above 1 makes repeated tokens less likely."),
    click.option("--seed", type=int, help="Seed of the sampling."),
    click.option("--stop", "stop_strings", multiple=True, metavar="TEXT", help="A text that ends it; repeatable."),
)
_MODEL_FIELDS = {
    "adapter": "adapter_model",
    "dtype": "torch_dtype",
    "chat_template": "chat_template",
    "family": "family",
}
_GENERATION_FIELDS = (
    "max_new_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "batch_size",
)  # fmt: skip


def inference_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a command function, which gets them as keywords."""
    for option in reversed((*_MODEL, *_GENERATION)):
        command = option(command)
    return command


def require_model(model: str | None, options: Mapping[str, Any]) -> str:
    """MODEL, where it and not ``--model-uid`` was given."""
    uid, endpoint = options["model_uid"], options["endpoint"]
    if model and uid:
        raise UsageError(f"MODEL ({model}) and --model-uid ({uid}) are both given: give one of them")
    if endpoint and not uid:
        raise UsageError(f"--endpoint {endpoint} is the server of --model-uid: give --model-uid too, or leave it out")
    if uid:
        raise PluginError(
            f"--model-uid {uid}: no installed plugin provides a server client, so a model on a server cannot be "
            "asked; give MODEL, a folder or a Hub id, instead"
        )
    if not model:
        raise UsageError("no model: give MODEL (a run folder, a model folder or a Hub id) or --model-uid")
    return model


def model_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of ``ModelParams`` that were given."""
    fields = {field: options[name] for name, field in _MODEL_FIELDS.items() if options[name] is not None}
    return {**fields, "trust_remote_code": True} if options["trust_remote_code"] else fields


def generation_params(options: Mapping[str, Any], **defaults: Any) -> GenerationParams:
    """How to write: ``defaults`` of the command, under what was given."""
    from graftwork.config import GenerationParams

    given = {name: options[name] for name in _GENERATION_FIELDS if options.get(name) is not None}
    if options["stop_strings"]:
        given["stop_strings"] = list(options["stop_strings"])
    return GenerationParams(**{**defaults, **given})


def open_model(model: str, options: Mapping[str, Any]) -> tuple[LoadedModel, Engine]:
    """Loads the model and the engine that runs it."""
    from graftwork.inference import build_engine, load_model
    from graftwork.registry import get_registry

    get_registry().engines[options["engine"]]  # a name that nobody knows is said before the model loads
    loaded = load_model(model, **model_fields(options))
    return loaded, build_engine(loaded, options["engine"])
