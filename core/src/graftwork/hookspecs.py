"""The hooks: everything that a plugin can bring to graftwork, in the order in which a run meets it.

A plugin is a module named by an entry point of group ``graftwork.plugins``. It imports :data:`hookimpl` from
``graftwork``, the records from ``graftwork.specs`` and the standard library, nothing heavier, and defines some
of the functions below::

    from graftwork import hookimpl
    from graftwork.specs import ModelFamily

    @hookimpl
    def graftwork_model_families():
        return [ModelFamily(name="mine", model_types=("mine",))]

**Declarations** take no arguments and return an iterable of records. Each is called at most once per process,
when something of its kind is first looked up, and its result is kept. Order never matters. A record of the
wrong type, a name used twice within the plugin, or an exception makes the whole plugin ``broken``: nothing of
it is used, everybody else's works, and ``graft plugins`` shows the reason.

**Events** return None and are called as a run goes on. An exception in one is reported once and does not
stop the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from graftwork.runs.run import Run
    from graftwork.specs import (
        AssetCardSource,
        ChatTemplate,
        CheckpointFormat,
        CollatorSpec,
        CommandSpec,
        DatasetSpec,
        EngineSpec,
        ModelFamily,
        OptimizerSpec,
        QuantizerSpec,
        RewardSpec,
        SourceSpec,
        TokenizerSpec,
        TrainerSpec,
    )

PROJECT = "graftwork"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def graftwork_commands() -> Iterable[CommandSpec]:
    """Commands added to ``graft``. The command itself is imported only when it is run::

    def _hello():
        from my_plugin.cli import hello
        return hello

    @hookimpl
    def graftwork_commands():
        return [CommandSpec(name="hello", help="Say hello.", load=_hello)]
    """
    raise NotImplementedError


@hookspec
def graftwork_sources() -> Iterable[SourceSpec]:
    """URI schemes from which a model's files can be fetched; the record's name is the scheme, and ``fetch`` gets
    the whole URI::

        @hookimpl
        def graftwork_sources():
            return [SourceSpec(name="s3", fetch=lambda ref, cache_dir: download(ref, cache_dir))]

    ``fetch`` raises :class:`graftwork.errors.ModelError` where there is nothing under the reference.
    """
    raise NotImplementedError


@hookspec
def graftwork_asset_cards() -> Iterable[AssetCardSource]:
    """Folders of asset cards: names for models, each with the place of its files::

    @hookimpl
    def graftwork_asset_cards():
        return [AssetCardSource(name="mine", path=HERE / "cards")]
    """
    raise NotImplementedError


@hookspec
def graftwork_model_families() -> Iterable[ModelFamily]:
    """Families of models. Claims on the same ``model_type`` by two families are an error when it is needed::

    @hookimpl
    def graftwork_model_families():
        return [ModelFamily(name="llama", model_types=("llama",), presets=(LLAMA3_8B,))]
    """
    raise NotImplementedError


@hookspec
def graftwork_checkpoint_formats() -> Iterable[CheckpointFormat]:
    """Ways in which weights lie on disk. Which parameter has which name there, a family says in ``key_maps``::

    @hookimpl
    def graftwork_checkpoint_formats():
        return [CheckpointFormat(name="npz", sniff=_sniff, open=_open, write=_write)]
    """
    raise NotImplementedError


@hookspec
def graftwork_tokenizers() -> Iterable[TokenizerSpec]:
    """Ways to read tokenizer files, chosen by the files in the folder or by ``model.tokenizer_impl``::

    @hookimpl
    def graftwork_tokenizers():
        return [TokenizerSpec(name="hf", files=("tokenizer.json",), load=_load)]
    """
    raise NotImplementedError


@hookspec
def graftwork_chat_templates() -> Iterable[ChatTemplate]:
    """Named chat templates, each a Jinja file that lies beside the plugin's code::

    @hookimpl
    def graftwork_chat_templates():
        return [ChatTemplate(name="mine", path=HERE / "mine.jinja", stop=("<|end|>",))]
    """
    raise NotImplementedError


@hookspec
def graftwork_quantizers() -> Iterable[QuantizerSpec]:
    """Ways to hold weights in fewer bits. ``peft.q_lora_bits`` picks one by its ``bits``,
    ``peft.quantizer`` by its name::

        @hookimpl
        def graftwork_quantizers():
            return [QuantizerSpec(name="int8", bits=(8,), devices=("cpu",), quantize=_quantize)]
    """
    raise NotImplementedError


@hookspec
def graftwork_datasets() -> Iterable[DatasetSpec]:
    """Readers of rows, named in ``data.*.datasets[].dataset_name``::

    @hookimpl
    def graftwork_datasets():
        return [DatasetSpec(name="my_rows", schema="chat", open=_open)]
    """
    raise NotImplementedError


@hookspec
def graftwork_collators() -> Iterable[CollatorSpec]:
    """Ways to make samples into a batch of tensors, named in ``data.*.collator_name``::

    @hookimpl
    def graftwork_collators():
        return [CollatorSpec(name="text_with_padding", schema="chat", build=_build)]
    """
    raise NotImplementedError


@hookspec
def graftwork_trainers() -> Iterable[TrainerSpec]:
    """Training methods, named in ``training.trainer_type``::

    @hookimpl
    def graftwork_trainers():
        return [TrainerSpec(name="MY_SFT", schemas=("chat",), build=_build, params=_params)]
    """
    raise NotImplementedError


@hookspec
def graftwork_reward_functions() -> Iterable[RewardSpec]:
    """Rewards for reinforcement learning (GRPO), named in ``training.trainer_kwargs.reward_functions``; a
    configuration never names code. ``load`` gives the function, which is called with the prompts, the completions and
    the columns of their rows::

        def _short():
            def short(prompts, completions, completion_ids, **columns):
                return [-float(len(ids)) for ids in completion_ids]

            return short

        @hookimpl
        def graftwork_reward_functions():
            return [RewardSpec(name="short", load=_short)]
    """
    raise NotImplementedError


@hookspec
def graftwork_optimizers() -> Iterable[OptimizerSpec]:
    """Optimizers, named in ``training.optimizer``::

    @hookimpl
    def graftwork_optimizers():
        return [OptimizerSpec(name="sgd", build=_sgd)]
    """
    raise NotImplementedError


@hookspec
def graftwork_engines() -> Iterable[EngineSpec]:
    """Ways to run a model for inference, named by ``--engine``::

    @hookimpl
    def graftwork_engines():
        return [EngineSpec(name="transformers", devices=("cpu", "cuda"), build=_build)]
    """
    raise NotImplementedError


@hookspec
def graftwork_run_started(run: Run) -> None:
    """A training run is about to take its first step. Called once, also when the run is resumed."""


@hookspec
def graftwork_step_finished(run: Run, step: int, metrics: Mapping[str, float]) -> None:
    """Step ``step`` of ``run``, or an evaluation after it, ended. ``metrics`` is what ``metrics.jsonl`` got."""


@hookspec
def graftwork_checkpoint_saved(run: Run, step: int, path: Path) -> None:
    """The checkpoint of ``run`` after optimizer step ``step`` lies complete on the disk at ``path``."""


@hookspec
def graftwork_run_finished(run: Run, error: BaseException | None) -> None:
    """The run ended: ``error`` is None, or what stopped it. The report is written after this."""
