"""torchtune's checkpointers: ``load_checkpoint`` gives weights for ``load_state_dict``, ``save_checkpoint`` a folder.

The names of parameters are those of the transformers model in memory, whatever the files call them. What is written
loads anywhere: a folder in the format that was read, with its configuration and tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from graftwork.builders.family import choose_family
from graftwork.checkpoints.conversion import bring_along, plan, size_in_bytes
from graftwork.checkpoints.expected import check_headers, expected_headers, meta_model
from graftwork.checkpoints.formats import Checkpoint, Header
from graftwork.checkpoints.huggingface import checkpoint_of, open_pickled, open_safetensors, open_shards, read_json
from graftwork.checkpoints.mapped import as_transformers, completed, has_tied_head, stated_config
from graftwork.checkpoints.meta import open_meta
from graftwork.checkpoints.params import map_of_family
from graftwork.checkpoints.unpickle import read_nested
from graftwork.config.problems import near_file
from graftwork.errors import ModelError, UnknownNameError, UsageError, did_you_mean
from graftwork.files import complete_folder
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graftwork.checkpoints.keymap import KeyMap
    from graftwork.specs import ModelFamily, Preset

MODEL_KEY, ADAPTER_KEY, ADAPTER_CONFIG_KEY = "model", "adapter", "adapter_config"
RECIPE_STATE = "recipe_state.pt"
WEIGHTS = (".safetensors", ".bin", ".pth", ".pt")
_SHARD_SIZE = "5GB"


class StateDict(dict[str, Any]):
    """Parameters by name, for ``load_state_dict``; it also answers to ``["model"]``, as torchtune's recipes ask.

    ``extras`` are what else a run left, by torchtune's names (``adapter``, ``epochs_run``, ``optimizer``, ...): they
    are found by key, and are no keys that ``load_state_dict`` would see.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], extras: Mapping[str, Any] | None = None) -> None:
        super().__init__(tensors)
        self.extras = dict(extras or {})

    def __missing__(self, key: str) -> Any:
        if key == MODEL_KEY:
            return self
        if key in self.extras:
            return self.extras[key]
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or key == MODEL_KEY or key in self.extras

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default


class _Checkpointer:
    """What both checkpointers share: arguments, names of families, and the files of a run that goes on."""

    def __init__(
        self,
        checkpoint_dir: str | Path,
        checkpoint_files: Sequence[str] | Mapping[str, Any],
        model_type: str,
        output_dir: str | Path,
        adapter_checkpoint: str | None = None,
        recipe_checkpoint: str | None = None,
        resume_from_checkpoint: bool = False,
    ) -> None:
        self.folder = Path(checkpoint_dir).expanduser().absolute()
        self.output = Path(output_dir).expanduser().absolute()
        self.family, self.preset = find_family(model_type)
        self.model_type = model_type
        if resume_from_checkpoint and recipe_checkpoint is None:
            raise UsageError(
                "resume_from_checkpoint: name the file of the interrupted run in recipe_checkpoint "
                f"({RECIPE_STATE}, which save_checkpoint(..., intermediate_checkpoint=True) wrote)"
            )
        more = [name for name in (adapter_checkpoint, recipe_checkpoint if resume_from_checkpoint else None) if name]
        names = _file_names(checkpoint_files)
        _check_there(self.folder, [*names, *more])
        self.files = [self.folder / name for name in names]
        self.adapter = self.folder / adapter_checkpoint if adapter_checkpoint else None
        self.recipe = self.folder / recipe_checkpoint if resume_from_checkpoint and recipe_checkpoint else None

    def load_checkpoint(self) -> StateDict:
        """Every parameter of the model under its name in memory, the tied ones too, and what the run left beside them.

        Raises :class:`~graftwork.errors.ModelError` that lists all names and shapes that do not fit the architecture.
        """
        return StateDict(in_memory(self._checkpoint()), self._extras())

    def save_checkpoint(
        self,
        state_dict: Mapping[str, Any],
        epoch: int,
        intermediate_checkpoint: bool = False,
        adapter_only: bool = False,
    ) -> Path:
        """Writes the folder ``output_dir/epoch_N``, whole or not at all, and gives its path.

        ``state_dict`` are the model's parameters, or torchtune's ``{"model": ..., "adapter": ..., ...}``. Where the run
        is to go on (``intermediate_checkpoint``) everything else in it is kept in ``recipe_state.pt``. With
        ``adapter_only`` the adapter alone is written, in PEFT's format.
        """
        weights, extras = _parts(state_dict)
        adapter, adapter_config = extras.pop(ADAPTER_KEY, None), extras.pop(ADAPTER_CONFIG_KEY, None)
        if adapter_only and (not adapter or not adapter_config):
            raise UsageError(f"adapter_only: state_dict needs {ADAPTER_KEY!r} and {ADAPTER_CONFIG_KEY!r} (PEFT's)")
        target = self.output / f"epoch_{epoch}"
        self.output.mkdir(parents=True, exist_ok=True)
        with complete_folder(target) as folder:
            if not adapter_only:
                self._write(weights, folder)
            if adapter and adapter_config:
                # Beside a whole model transformers would put the adapter on once more
                _write_adapter(adapter, adapter_config, folder if adapter_only else folder / "adapter")
            if intermediate_checkpoint:
                torch.save({**extras, "epochs_run": extras.get("epochs_run", epoch + 1)}, folder / RECIPE_STATE)
        return target

    def _extras(self) -> dict[str, Any]:
        extras = dict(read_nested(self.recipe)) if self.recipe else {}
        if self.adapter:
            opener = open_safetensors if self.adapter.suffix == ".safetensors" else open_pickled
            opened = opener(self.adapter)
            extras[ADAPTER_KEY] = {name: opened.read(name) for name in opened.headers}
        return extras

    def _checkpoint(self) -> Checkpoint:
        """The files under transformers' names on disk, with the values of ``config.json``."""
        raise NotImplementedError

    def _write(self, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
        raise NotImplementedError

    def _write_as(
        self, name: str, values: Mapping[str, Any], weights: Mapping[str, Any], folder: Path, parts: int
    ) -> None:
        checkpoint = on_disk(values, weights, self.folder)
        formats = get_registry().checkpoint_formats
        request = plan(checkpoint, formats["hf"], formats[name], self.family.name, parts)
        write = formats[name].write
        assert write is not None
        bring_along(self.folder, folder)
        (folder / "adapter_config.json").unlink(missing_ok=True)
        write(replace(request, path=folder, max_shard_size=size_in_bytes(_SHARD_SIZE)))


class FullModelHFCheckpointer(_Checkpointer):
    """Files of the Hub: ``*.safetensors`` or ``*.bin`` beside ``config.json``.

    ``save_checkpoint`` writes safetensors, or ``.bin`` files with ``safe_serialization=False``.
    """

    def __init__(
        self,
        checkpoint_dir: str | Path,
        checkpoint_files: Sequence[str] | Mapping[str, Any],
        model_type: str,
        output_dir: str | Path,
        adapter_checkpoint: str | None = None,
        recipe_checkpoint: str | None = None,
        resume_from_checkpoint: bool = False,
        safe_serialization: bool = True,
    ) -> None:
        super().__init__(
            checkpoint_dir,
            checkpoint_files,
            model_type,
            output_dir,
            adapter_checkpoint,
            recipe_checkpoint,
            resume_from_checkpoint,
        )
        if meta := [file for file in self.files if file.match("consolidated.*.pth")]:
            raise UsageError(f"checkpoint_files: {_listed(meta)} is of Meta's format: use FullModelMetaCheckpointer")
        _check_there(self.folder, ["config.json"])
        self.safe_serialization = safe_serialization
        self.values = read_json(self.folder / "config.json")
        self._check_family()

    def _check_family(self) -> None:
        stated = str(self.values.get("model_type"))
        own = choose_family(stated, tuple(self.values.get("architectures") or ()), None)
        if own.name != self.family.name:
            raise ModelError(
                f"model_type {self.model_type!r} is of the family {self.family.name}, and {self.folder}/config.json is "
                f"of {own.name} (model_type {stated!r}): give model_type={stated!r}, or the right folder"
            )

    def _checkpoint(self) -> Checkpoint:
        safe = [file.suffix == ".safetensors" for file in self.files]
        if any(safe) != all(safe):
            raise UsageError(f"checkpoint_files: safetensors and pickled files are mixed: {_listed(self.files)}")
        opened = open_shards(self.files, open_safetensors if all(safe) else open_pickled)
        return checkpoint_of(self.folder, "hf", opened, self.values)

    def _write(self, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
        self._write_as("hf" if self.safe_serialization else "hf-bin", self.values, weights, folder, parts=1)


class FullModelMetaCheckpointer(_Checkpointer):
    """Meta's files: ``consolidated.NN.pth``, all model-parallel ones together, beside ``params.json``.

    Where there is no ``params.json`` the architecture is that of the preset that ``model_type`` names (``llama3_8b``).
    """

    def _checkpoint(self) -> Checkpoint:
        if safe := [file for file in self.files if file.suffix == ".safetensors"]:
            raise UsageError(f"checkpoint_files: {_listed(safe)} is no file of Meta's: use FullModelHFCheckpointer")
        opened, key_map = self._opened()
        return as_transformers(opened, key_map, stated_config(opened, key_map))

    def _opened(self) -> tuple[Checkpoint, KeyMap]:
        key_map = map_of_family(self.family, "meta", self.folder)
        if len(self.files) > 1 and (beside := sorted(set(self.folder.glob("consolidated.*.pth")) ^ set(self.files))):
            raise UsageError(
                "checkpoint_files: several files of Meta's format are the parts of one model, all the "
                f"consolidated.NN.pth of the folder; {_listed(beside)} is on one side only"
            )
        checkpoint = open_meta(self.files[0] if len(self.files) == 1 else self.folder)
        if checkpoint.values:
            return checkpoint, key_map
        if self.preset is None:
            raise ModelError(
                f"{self.folder}: there is no params.json beside the weights, and model_type {self.model_type!r} is a "
                "family and no size: fetch params.json, or name the preset (graft models ls)"
            )
        values = completed({"model_type": self.preset.model_type, **self.preset.values})
        return replace(checkpoint, values=key_map.to_params(values)), key_map

    def _write(self, weights: Mapping[str, torch.Tensor], folder: Path) -> None:
        opened, key_map = self._opened()
        self._write_as("meta", stated_config(opened, key_map), weights, folder, parts=opened.parts)


# Names


def find_family(model_type: str) -> tuple[ModelFamily, Preset | None]:
    """The family that ``model_type`` means, in any case, and the preset where it names one.

    It is a family or its alias (``LLAMA3``, ``phi3_mini``), a preset, or what ``config.json`` calls ``model_type``.
    Raises :class:`UnknownNameError` with the nearest.
    """
    registry = get_registry()
    name = str(getattr(model_type, "name", model_type))
    if family := registry.families.get_or_none(name):
        return family, registry.presets.get_or_none(name)
    if preset := registry.presets.get_or_none(name):
        return registry.family_of_preset(preset.name), preset
    claimed = [(each, registry.families[each]) for each in registry.families]
    for _, family in claimed:
        if name.casefold() in family.model_types:
            return family, None
    if name.casefold() in CONFIG_MAPPING:
        return registry.family_for(name.casefold()), None
    known = {spelling for each, family in claimed for spelling in (each, *family.aliases, *family.model_types)}
    near = [preset for each in registry.presets for preset in (each, *registry.presets[each].aliases)]
    raise UnknownNameError(
        f"model_type {name!r} is no family, no preset and no model type of one; "
        f"{did_you_mean(name, {*known, *near} if any(char.isdigit() for char in name) else known, limit=30)}"
        f"{registry.unavailable()}"
    )


def _file_names(files: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """The names; torchtune also writes ``{filename_format: model-{}-of-{}.safetensors, max_filename: "00004"}``."""
    if isinstance(files, Mapping):
        if set(files) != {"filename_format", "max_filename"}:
            raise UsageError(f"checkpoint_files: a mapping has filename_format and max_filename, not {_listed(files)}")
        last = str(files["max_filename"])
        count = range(1, int(last) + 1)
        return [files["filename_format"].format(str(number).zfill(len(last)), last) for number in count]
    if isinstance(files, str) or not files:
        raise UsageError(f"checkpoint_files = {files!r}: give a list of file names")
    return [str(name) for name in files]


def _check_there(folder: Path, names: Sequence[str]) -> None:
    if not folder.is_dir():
        raise ModelError(f"checkpoint_dir: there is no folder {folder}{near_file(folder)}")
    lacking = [name for name in names if not (folder / name).is_file()]
    if lacking:
        near = near_file(folder / lacking[0])
        there = sorted(file.name for file in folder.iterdir() if file.suffix in WEIGHTS)
        found = near or (
            f"; the weights there are {_listed(there)}" if there else "; there are no weights there at all"
        )
        many = "1 file is" if len(lacking) == 1 else f"{len(lacking)} files are"
        raise ModelError(f"checkpoint_dir {folder}: {many} not there: {_listed(lacking)}{found}")


def _listed(names: Iterator[Any] | Sequence[Any] | Mapping[str, Any]) -> str:
    return ", ".join(name.name if isinstance(name, Path) else str(name) for name in names)


# Between disk and memory


def in_memory(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Every parameter of the model in memory, in its order, from a checkpoint under transformers' names on disk."""
    model = meta_model(checkpoint.values)
    wanted, tied = model.state_dict(), model.all_tied_weights_keys
    stored = _without_derived(checkpoint, model)
    expected = expected_headers(checkpoint.values)
    for name in [name for name in stored if name in tied and name not in expected]:
        if not has_tied_head(checkpoint, name, tied[name]):
            raise ModelError(
                f"{checkpoint.path}: {name} and {tied[name]} are one parameter in this model, and the files hold two: "
                "config.json (tie_word_embeddings) does not fit the weights"
            )
        del stored[name]
    check_headers(expected, stored, checkpoint.path)
    if not expected.keys() <= wanted.keys():
        return _through_transformers(checkpoint, model, stored)
    tensors = {name: checkpoint.tensor(name) for name in stored}
    return {name: tensors[tied.get(name, name)] for name in wanted}


def _without_derived(checkpoint: Checkpoint, model: Any) -> dict[str, Header]:
    """The headers without buffers that the model computes for itself, which older files hold (``inv_freq``)."""
    kept = model.state_dict().keys()
    computed = {name.rpartition(".")[2] for name, _ in model.named_buffers() if name not in kept}
    return {
        name: header
        for name, header in checkpoint.headers.items()
        if name in kept or name.rpartition(".")[2] not in computed
    }


def _through_transformers(checkpoint: Checkpoint, model: Any, stored: Mapping[str, Header]) -> dict[str, torch.Tensor]:
    """As :func:`in_memory` for a model whose tensors are cut otherwise in memory: transformers joins them."""
    dtypes = {header.dtype for header in stored.values()}
    loaded = type(model).from_pretrained(
        None,
        config=model.config,
        state_dict={name: checkpoint.tensor(name) for name in stored},
        dtype=next(iter(dtypes)) if len(dtypes) == 1 else torch.float32,
    )
    state: dict[str, torch.Tensor] = loaded.state_dict()
    return state


def on_disk(values: Mapping[str, Any], weights: Mapping[str, torch.Tensor], path: Path) -> Checkpoint:
    """A checkpoint, under transformers' names on disk, of parameters under their names in memory.

    Raises :class:`ModelError` for parameters that are missing, unexpected or wrongly shaped, all at once.
    """
    from transformers.core_model_loading import revert_weight_conversion

    model = meta_model(values)
    tied = model.all_tied_weights_keys
    headers = {name: _header(tensor) for name, tensor in model.state_dict().items() if name not in tied}
    kept = {name: tensor for name, tensor in weights.items() if name not in tied}
    check_headers(headers, {name: _header(tensor) for name, tensor in kept.items()}, path)
    for name, source in tied.items():
        if name in weights and not torch.equal(weights[name], weights[source]):
            raise ModelError(
                f"{name} and {source} are one parameter in this model, and state_dict has two different ones"
            )
    stored: dict[str, torch.Tensor] = revert_weight_conversion(model, kept)
    floating = (tensor.dtype for tensor in stored.values() if tensor.is_floating_point())
    return Checkpoint(
        path=path,
        format="hf",
        headers={name: _header(tensor) for name, tensor in stored.items()},
        read=lambda name, _: stored[name].detach().cpu(),
        groups=[list(stored)],
        values={**values, "dtype": str(next(floating, torch.float32)).removeprefix("torch.")},
    )


def _header(tensor: torch.Tensor) -> Header:
    return Header(tuple(tensor.shape), tensor.dtype)


def _parts(state_dict: Mapping[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The parameters, without the prefix of a compiled model, and what else there is."""
    if isinstance(state_dict, StateDict):
        weights, extras = dict(state_dict), dict(state_dict.extras)
    elif MODEL_KEY in state_dict:
        extras = {key: value for key, value in state_dict.items() if key != MODEL_KEY}
        weights = dict(state_dict[MODEL_KEY])
    else:
        weights, extras = dict(state_dict), {}
    if layers := [name for name in weights if ".base_layer." in name or ".lora_A." in name]:
        raise UsageError(
            f"state_dict is of a model with an adapter on it ({layers[0]}, ...): merge it first, or save the adapter "
            "with adapter_only=True"
        )
    return {re.sub(r"(^|\.)_orig_mod\.", r"\1", name): tensor for name, tensor in weights.items()}, extras


def _write_adapter(tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    formats = get_registry().checkpoint_formats
    checkpoint = Checkpoint(
        path=folder,
        format="adapter",
        headers={name: _header(tensor) for name, tensor in tensors.items()},
        read=lambda name, _: tensors[name].detach().cpu(),
        groups=[list(tensors)],
        values=config,
    )
    request = plan(checkpoint, formats["adapter"], formats["adapter"], None, 1)
    write = formats["adapter"].write
    assert write is not None
    write(replace(request, path=folder, max_shard_size=size_in_bytes(_SHARD_SIZE)))
