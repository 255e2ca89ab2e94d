"""What the core itself brings, declared through the same hooks as any plugin's (entry point ``builtin``)."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from graftwork import hookimpl
from graftwork.specs import (
    ChatTemplate,
    CheckpointFormat,
    CollatorSpec,
    CommandSpec,
    DatasetSpec,
    EngineSpec,
    ModelFamily,
    OptimizerSpec,
    SourceSpec,
    TokenizerSpec,
    chat_template,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pydantic import BaseModel

    from graftwork.data.readers import OpenRequest, RowSource
    from graftwork.inference.engine import Engine, LoadedModel
    from graftwork.runs.run import Run
    from graftwork.specs import Schema
    from graftwork.tokenizers.tokenizer import Tokenizer

TEMPLATES = Path(__file__).parent / "chat" / "templates"


# Commands


def _train() -> Any:
    from graftwork.cli.train import train

    return train


def _check() -> Any:
    from graftwork.cli.check import check

    return check


def _preview() -> Any:
    from graftwork.cli.preview import preview

    return preview


def _generate() -> Any:
    from graftwork.cli.generate import generate

    return generate


def _chat() -> Any:
    from graftwork.cli.chat import chat

    return chat


def _quickstart() -> Any:
    from graftwork.cli.quickstart import quickstart

    return quickstart


def _config() -> Any:
    from graftwork.cli.config import config

    return config


def _download() -> Any:
    from graftwork.cli.download import download

    return download


def _models() -> Any:
    from graftwork.cli.models import models

    return models


def _merge() -> Any:
    from graftwork.cli.merge import merge

    return merge


def _audit() -> Any:
    from graftwork.cli.audit import audit

    return audit


def _templates() -> Any:
    from graftwork.cli.templates import templates

    return templates


def _convert() -> Any:
    from graftwork.cli.convert import convert

    return convert


def _recipes(verb: str = "") -> Callable[[], Any]:
    """The group, or one of its commands, which is also one of ``graft`` under torchtune's name."""

    def load() -> Any:
        from graftwork.cli.recipes import recipes

        return recipes.commands[verb] if verb else recipes

    return load


RECIPE_VERBS = {
    "ls": "List the recipes.",
    "cp": "Copy a recipe, to change it.",
    "cat": "Print a recipe.",
    "validate": "Check a recipe, a configuration, or torchtune's YAML.",
    "run": "Train as a recipe or a configuration says.",
}


def _plugins() -> Any:
    from graftwork.cli.plugins import plugins

    return plugins


@hookimpl
def graftwork_commands() -> list[CommandSpec]:
    return [
        CommandSpec(name="quickstart", help="Train, fine-tune and ask a small model, from nothing.", load=_quickstart),
        CommandSpec(name="check", help="Say all that can be known of a run before it begins.", load=_check),
        CommandSpec(name="preview", help="Show what is trained, token by token.", load=_preview),
        CommandSpec(name="train", help="Train a model as a configuration file says.", load=_train),
        CommandSpec(name="generate", help="Complete a prompt, or every row of a JSONL file.", load=_generate),
        CommandSpec(name="chat", help="Talk with a model in the terminal.", load=_chat),
        CommandSpec(name="merge", help="Merge a LoRA adapter into its base model.", load=_merge),
        CommandSpec(name="convert", help="Write a checkpoint in another format.", load=_convert),
        CommandSpec(name="config", help="Validate, show, explain or start a configuration.", load=_config),
        CommandSpec(name="models", help="List presets and families; say what a model name means.", load=_models),
        CommandSpec(name="audit", help="List what in a model folder could run code or lie.", load=_audit),
        CommandSpec(name="templates", help="List, show, render and check chat templates.", load=_templates),
        CommandSpec(name="download", help="Download a repository of the Hugging Face Hub.", load=_download),
        CommandSpec(name="recipes", help="List, copy, print, check and run ready configurations.", load=_recipes()),
        *(
            CommandSpec(name=verb, help=f"recipes {verb}: {text}", load=_recipes(verb))
            for verb, text in RECIPE_VERBS.items()
        ),
        CommandSpec(name="plugins", help="Show every plugin: its state, what it provides, and why not.", load=_plugins),
    ]


# Sources


def _fetch_hub(reference: str, cache_dir: Path | None) -> Path:
    from graftwork.sources.hub import fetch

    return fetch(reference, cache_dir)


def _fetch_file(reference: str, cache_dir: Path | None) -> Path:
    from graftwork.sources.local import fetch

    return fetch(reference, cache_dir)


def _fetch_web(reference: str, cache_dir: Path | None) -> Path:
    from graftwork.sources.web import fetch

    return fetch(reference, cache_dir)


@hookimpl
def graftwork_sources() -> list[SourceSpec]:
    return [
        SourceSpec(name="hf", fetch=_fetch_hub),
        SourceSpec(name="file", fetch=_fetch_file),
        SourceSpec(name="https", aliases=("http",), fetch=_fetch_web),
    ]


# Models


@hookimpl
def graftwork_model_families() -> list[ModelFamily]:
    return [ModelFamily(name="generic")]


def _load_hf(path: Path, options: Mapping[str, Any]) -> Tokenizer:
    from graftwork.tokenizers.hf import load

    return load(path, options)


def _load_tiktoken(path: Path, options: Mapping[str, Any]) -> Tokenizer:
    from graftwork.tokenizers.tiktoken import load

    return load(path, options)


def _load_sentencepiece(path: Path, options: Mapping[str, Any]) -> Tokenizer:
    from graftwork.tokenizers.sentencepiece import load

    return load(path, options)


def _holds(*contents: str) -> Callable[[Path], bool]:
    """Whether what is at a path, told by content, is one of ``contents``."""

    def fits(path: Path) -> bool:
        from graftwork.tokenizers.files import find

        file = find(path)
        return file is not None and file.content in contents

    return fits


@hookimpl
def graftwork_tokenizers() -> list[TokenizerSpec]:
    return [
        TokenizerSpec(
            name="hf",
            aliases=("hg",),
            load=_load_hf,
            files=("tokenizer.json", "tokenizer_config.json", "vocab.json"),
            fits=_holds("tokenizers", "vocabulary", "settings"),
        ),
        TokenizerSpec(
            name="tiktoken",
            load=_load_tiktoken,
            files=("tokenizer.model", "*.tiktoken", "tekken*.json"),
            fits=_holds("tekken", "ranks"),
        ),
        TokenizerSpec(
            name="sentencepiece",
            aliases=("sp",),
            load=_load_sentencepiece,
            files=("tokenizer.model", "*.model", "*.model.v*", "*.spm"),
            fits=_holds("sentencepiece"),
        ),
    ]


@hookimpl
def graftwork_chat_templates() -> list[ChatTemplate]:
    return [
        chat_template(TEMPLATES, "default", "default_gen", stop=()),
        chat_template(TEMPLATES, "chatml", "chat_ml", stop=("<|im_end|>",)),
        chat_template(TEMPLATES, "zephyr", stop=()),
        chat_template(TEMPLATES, "alpaca", stop=()),
        chat_template(TEMPLATES, "vicuna", stop=()),
        chat_template(TEMPLATES, "gpt2", stop=()),
        chat_template(TEMPLATES, "llava", "llava_next", stop=("</s>",), supports=("system", "images")),
    ]


# Checkpoints


def _format(
    name: str, module: str, function: str, names: Literal["transformers", "own", "adapter"]
) -> CheckpointFormat:
    """A format whose ``is_``, ``open_`` and ``write_`` functions are in a module of :mod:`graftwork.checkpoints`."""

    def call(verb: str) -> Callable[[Any], Any]:
        def run(argument: Any) -> Any:
            return getattr(import_module(f"graftwork.checkpoints.{module}"), f"{verb}_{function}")(argument)

        return run

    return CheckpointFormat(name=name, sniff=call("is"), open=call("open"), write=call("write"), names=names)


@hookimpl
def graftwork_checkpoint_formats() -> list[CheckpointFormat]:
    return [
        _format("hf", "huggingface", "hf", "transformers"),
        _format("hf-bin", "huggingface", "hf_bin", "transformers"),
        _format("meta", "meta", "meta", "own"),
        _format("mistral", "mistral", "mistral", "own"),
        _format("adapter", "huggingface", "adapter", "adapter"),
        _format("adapter-bin", "huggingface", "adapter_bin", "adapter"),
    ]


# Data


def _open_text(request: OpenRequest) -> RowSource:
    from graftwork.data.readers import open_text

    return open_text(request)


def _open_chat(request: OpenRequest) -> RowSource:
    from graftwork.data.readers import open_chat

    return open_chat(request)


def _text_params() -> type[BaseModel]:
    from graftwork.data.params import TextDatasetParams

    return TextDatasetParams


def _chat_params() -> type[BaseModel]:
    from graftwork.data.params import ChatDatasetParams

    return ChatDatasetParams


def _open_pairs(request: OpenRequest) -> RowSource:
    from graftwork.data.readers import open_pairs

    return open_pairs(request)


def _open_images(request: OpenRequest) -> RowSource:
    from graftwork.data.readers import open_images

    return open_images(request)


def _open_huggingface(request: OpenRequest) -> RowSource:
    from graftwork.data.hub import open_huggingface

    return open_huggingface(request)


def _recognise_huggingface(request: OpenRequest) -> Schema:
    from graftwork.data.hub import recognise

    return recognise(request)


def _file_params() -> type[BaseModel]:
    from graftwork.data.params import FileParams

    return FileParams


def _image_params() -> type[BaseModel]:
    from graftwork.data.params import ImageDatasetParams

    return ImageDatasetParams


def _hub_params() -> type[BaseModel]:
    from graftwork.data.params import HubDatasetParams

    return HubDatasetParams


@hookimpl
def graftwork_datasets() -> list[DatasetSpec]:
    return [
        DatasetSpec(name="text", schema="text", open=_open_text, params=_text_params, needs_path=True),
        DatasetSpec(
            name="text_sft",
            aliases=("text_sft_jsonl",),
            schema="chat",
            open=_open_chat,
            params=_chat_params,
            needs_path=True,
        ),
        DatasetSpec(
            name="preference_pairs_jsonl",
            aliases=("preference_pairs",),
            schema="preference",
            open=_open_pairs,
            params=_file_params,
            needs_path=True,
        ),
        DatasetSpec(
            name="vl_sft_jsonl",
            aliases=("vl_sft", "vision_language_jsonl"),
            schema="image-chat",
            open=_open_images,
            params=_image_params,
            needs_path=True,
        ),
        DatasetSpec(
            name="huggingface",
            aliases=("hf",),
            schema="chat",
            open=_open_huggingface,
            recognise=_recognise_huggingface,
            params=_hub_params,
        ),
    ]


def _pad(tokenizer: Any, params: Any) -> Any:
    from graftwork.data.collators import Padded

    return Padded(pad_token_id=tokenizer.pad_token_id or 0)


def _pad_pairs(tokenizer: Any, params: Any) -> Any:
    from graftwork.data.collators import PaddedPairs

    return PaddedPairs(pad_token_id=tokenizer.pad_token_id or 0)


@hookimpl
def graftwork_collators() -> list[CollatorSpec]:
    return [
        CollatorSpec(name="text_with_padding", schema="chat", other_schemas=("text",), build=_pad),
        CollatorSpec(name="text_completions_only_with_padding", schema="chat", build=_pad),
        CollatorSpec(name="dpo_with_padding", schema="preference", build=_pad_pairs),
    ]


# Training


def _optimizer(name: str) -> Callable[[Any, float, Any], Any]:
    def build(groups: Any, learning_rate: float, training: Any) -> Any:
        from graftwork.builders import optimizers

        return getattr(optimizers, name)(groups, learning_rate, training)

    return build


@hookimpl
def graftwork_optimizers() -> list[OptimizerSpec]:
    return [
        OptimizerSpec(name="adamw", aliases=("adamw_torch", "adamw_torch_fused"), build=_optimizer("adamw")),
        OptimizerSpec(name="sgd", build=_optimizer("sgd")),
        OptimizerSpec(name="adafactor", build=_optimizer("adafactor")),
    ]


# Inference


def _transformers_engine(loaded: LoadedModel, params: Any) -> Engine:
    from graftwork.inference.transformers_engine import TransformersEngine

    return TransformersEngine(loaded)


@hookimpl
def graftwork_engines() -> list[EngineSpec]:
    return [
        EngineSpec(
            name="transformers",
            build=_transformers_engine,
            devices=("cpu", "cuda", "mps"),
            features=frozenset({"streaming", "batching", "chat"}),
        )
    ]


# Events: the run's TensorBoard files are written by a listener like any other


@hookimpl
def graftwork_run_started(run: Run) -> None:
    from graftwork.runs.tensorboard import open_writer

    open_writer(run)


@hookimpl
def graftwork_step_finished(run: Run, step: int, metrics: Mapping[str, float]) -> None:
    from graftwork.runs.tensorboard import write

    write(run, step, metrics)


@hookimpl
def graftwork_run_finished(run: Run, error: BaseException | None) -> None:
    from graftwork.runs.tensorboard import close_writer

    close_writer(run)
