"""An adapter's folder: what it records about its base, and whether it fits a model."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from graftwork.errors import ModelError, UsageError
from graftwork.sources import ResolvedModel, locate, resolve
from graftwork.sources.hub import is_repository_id

logger = logging.getLogger("graftwork.adapters")

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def adapter_folder(name: str | Path) -> Path:
    """The folder of an adapter given by path, URI or Hub id. Raises :class:`ModelError` where it holds none."""
    try:
        resolved = resolve(str(name) if isinstance(name, str) else str(name.absolute()))
    except ModelError as error:
        raise ModelError(f"adapter {name}: {error}") from error
    if resolved.kind == "preset":
        raise ModelError(f"adapter {name}: this is a preset; give an adapter's folder or Hub id")
    path = locate(resolved)
    if not (path / "adapter_config.json").is_file():
        of_run = (
            f"; this is a run's, whose adapter is {path / 'final'}" * (path / "final" / "adapter_config.json").is_file()
        )
        raise ModelError(f"adapter {path}: there is no adapter_config.json, so this is not an adapter's folder{of_run}")
    if not (path / ADAPTER_WEIGHTS).is_file():
        pickled = (
            " Its weights are pickled (adapter_model.bin), which is not read: graft convert FOLDER NEW --to hf"
            * (path / "adapter_model.bin").is_file()
        )
        raise ModelError(f"adapter {path}: there is no {ADAPTER_WEIGHTS}.{pickled}")
    return path


def is_adapter_only(path: Path) -> bool:
    """Whether a folder holds an adapter and no base model beside it."""
    return (path / "adapter_config.json").is_file() and not (path / "config.json").is_file()


def recorded_base(path: Path) -> str | None:
    """What the adapter says it was trained on: a Hub id, a folder, or None."""
    file = path / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{file}: not readable as JSON: {error}") from error
    return config.get("base_model_name_or_path") or None


def base_of_adapter(path: Path) -> ResolvedModel:
    """The base model that an adapter records. Raises :class:`ModelError` where it is not to be had."""
    name = recorded_base(path)
    if name is None:
        raise ModelError(
            f"model {path} is only an adapter, and it does not record its base model: give the base as model_name "
            f"and this folder as adapter_model (graft merge: --base)"
        )
    try:
        base = resolve(name)
    except UsageError as error:
        raise ModelError(
            f"model {path} is only an adapter, and its base {name} cannot be found ({error}). Give the base as "
            "model_name and this folder as adapter_model (graft merge: --base)"
        ) from error
    if base.kind == "preset":
        raise ModelError(
            f"model {path} is only an adapter, and the base it records, {name}, is a preset without weights: give "
            "the base's folder as model_name and this folder as adapter_model (graft merge: --base)"
        )
    return base


def check_base(path: Path, model: Any) -> None:
    """Raises :class:`ModelError` where the adapter was trained on another base than ``model``.

    The fingerprint that the adapter's folder records decides. An adapter from elsewhere has none, and a model that was
    built in memory has no folder: then it goes by name, and by the shapes that the adapter fits. A local copy of a Hub
    model cannot be told from another model by name: where contents cannot be compared, that is said in one line.
    """
    from graftwork.adapters.record import folder_of, read_record

    recorded, given = recorded_base(path), getattr(model, "name_or_path", "") or None
    if given == str(path):
        return
    wanted, here = read_record(path).fingerprint, folder_of(model)
    if wanted is not None and here is not None:
        _compare(path, recorded, wanted, here)
    else:
        _compare_names(path, recorded, given)


def _compare(path: Path, recorded: str | None, wanted: str, here: Path) -> None:
    from graftwork.adapters.fingerprint import fingerprint

    found = fingerprint(here)
    if found != wanted and found.partition(":")[0] == wanted.partition(":")[0]:
        raise ModelError(
            f"adapter {path} was trained on {recorded or 'a base'} with fingerprint {_short(wanted)}, and the weights "
            f"in {here} have {_short(found)}: give the base that it was trained on"
        )


def _short(number: str) -> str:
    return number.rpartition(":")[2][:12]


def _compare_names(path: Path, recorded: str | None, given: str | None) -> None:
    if recorded is None or given is None or given == recorded:
        return
    same = _same_model(recorded, given)
    if same is False:
        raise ModelError(
            f"adapter {path} was trained on {recorded}, and this model is {given}. Give the base it was trained on; "
            "if the two hold the same weights, give a local copy's folder"
        )
    if same is None:
        logger.warning(
            "adapter %s records the base %s, and is put onto %s: make sure that they are the same",
            path,
            recorded,
            given,
        )


def _same_model(recorded: str, given: str) -> bool | None:
    """Whether two names mean the same weights; None where that cannot be known."""
    from graftwork.adapters.fingerprint import fingerprint

    folders = [Path(recorded), Path(given)]
    if all(folder.is_dir() for folder in folders):
        return fingerprint(folders[0]) == fingerprint(folders[1])
    if not any(folder.is_absolute() for folder in folders) and all(map(is_repository_id, (recorded, given))):
        return False
    return None


def check_shapes(path: Path, model: Any) -> None:
    """Raises :class:`ModelError` where the adapter's file and the adapted model differ in names of weights.

    PEFT checks the shapes of what it finds, and leaves what it does not find at its fresh value.
    """
    from peft import get_peft_model_state_dict
    from safetensors import safe_open

    with safe_open(path / ADAPTER_WEIGHTS, framework="pt") as file:
        stored = set(file.keys())
    expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    # embeddings that were resized for the adapter lie in its file under their plain names
    differing = sorted(
        (stored ^ expected) - {f"base_model.model.{name}" for name in model.get_base_model().state_dict()}
    )
    if differing:
        raise ModelError(
            f"adapter {path} does not fit this model: {len(differing)} of its weights have no place, or places no "
            f"weight ({', '.join(differing[:3])}{', ...' if len(differing) > 3 else ''})"
        )
