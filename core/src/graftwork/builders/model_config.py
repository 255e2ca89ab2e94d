"""A model's configuration: from ``config.json`` as plain data, or from a preset, with ``model_kwargs`` over it."""

from __future__ import annotations

import logging
from dataclasses import fields
from inspect import signature
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from graftwork.builders.changes import ChangeError, laid_over
from graftwork.errors import ModelError, did_you_mean
from graftwork.sources.config_keys import ROTARY
from graftwork.sources.local import read_config

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    from graftwork.specs import ModelFamily

logger = logging.getLogger("graftwork.model")

# Keys with which a config.json could name code: Python files, and attention or expert kernels from the Hub.
_NAMES_CODE = frozenset(
    {
        "auto_map",
        "custom_pipelines",
        "attn_implementation",
        "experts_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "_attn_implementation_autoset",
        "_experts_implementation",
        "_experts_implementation_internal",
    }
)
_HEAD = "model.model_kwargs: "
_CODE_KEYS = ", ".join(sorted(_NAMES_CODE))


def config_of_folder(
    path: Path, changes: Mapping[str, Any], family: ModelFamily, *, trust_remote_code: bool
) -> PretrainedConfig:
    """The configuration of a checkpoint. Code that it names is left alone unless ``trust_remote_code``.

    Raises :class:`ModelError` where only such code would know the architecture.
    """
    values = read_config(path, family.name)
    if trust_remote_code and "auto_map" in values:
        config = AutoConfig.from_pretrained(path, trust_remote_code=True)
        return _changed(config, changes)
    _refuse_unknown(values, path, family)
    plain = without_code(values)
    kind = plain.pop("model_type")
    return _build(kind, plain, _known(kind, changes, known=plain))


def config_of_values(model_type: str, values: Mapping[str, Any], changes: Mapping[str, Any]) -> PretrainedConfig:
    """A preset's configuration, with ``changes`` over it."""
    return _build(model_type, values, _known(model_type, changes, known=values))


def _build(model_type: str, values: Mapping[str, Any], changes: Mapping[str, Any]) -> PretrainedConfig:
    """Raises :class:`ChangeError` where the values are valid and the changes are not."""
    try:
        return _made(model_type, laid_over(_without_outgrown(model_type, values, changes), changes))
    except ModelError as error:
        if not changes or isinstance(error, ChangeError):
            raise
        _made(model_type, values)
        named = [key for key in changes if f"'{key}'" in str(error)]
        raise ChangeError(str(error), named or list(changes)) from error


def _without_outgrown(model_type: str, values: Mapping[str, Any], changes: Mapping[str, Any]) -> Mapping[str, Any]:
    """``values`` without the kinds of layers, where there are to be more layers or fewer and transformers' own rule
    gives the kinds that are stated: it gives those of the layers to be, too.

    Raises :class:`ChangeError` for kinds that follow no rule.
    """
    count, kinds = changes.get("num_hidden_layers"), values.get("layer_types")
    if not kinds or count in (None, len(kinds)) or "layer_types" in changes:
        return values
    rest = {key: value for key, value in values.items() if key != "layer_types"}
    if model_type in CONFIG_MAPPING and getattr(_made(model_type, rest), "layer_types", None) == list(kinds):
        return rest
    text = (
        f"num_hidden_layers: {count} needs layer_types of as many: the {len(kinds)} that are stated follow no rule "
        f"that goes on; set layer_types too, a list of {count} of {', '.join(sorted(set(kinds)))}"
    )
    raise ChangeError(text, ["num_hidden_layers"], head=_HEAD)


def _made(model_type: str, values: Mapping[str, Any]) -> PretrainedConfig:
    if model_type not in CONFIG_MAPPING:
        from graftwork.builders.base_model import config_class

        return config_class(model_type)(**values)
    try:
        return AutoConfig.for_model(model_type, **values)
    except Exception as error:  # the configuration classes raise errors of their own about single values
        raise ModelError(
            f"the configuration of this {model_type} model is not valid: {' '.join(str(error).split())}"
        ) from error


def _refuse_unknown(values: Mapping[str, Any], path: Path, family: ModelFamily) -> None:
    model_type = values["model_type"]
    if model_type in CONFIG_MAPPING or family.build is not None:
        if "auto_map" in values:
            logger.info("%s names Python code of its own; it is not run, transformers has %s itself", path, model_type)
        return
    if "auto_map" in values:
        raise ModelError(
            f"model {path}: its architecture {model_type!r} is Python code that lies beside the weights. Nothing of "
            "it was run; if you trust its author set model.trust_remote_code=true"
        )
    raise ModelError(
        f"model {path}: nobody here knows model_type {model_type!r}, neither transformers nor a plugin "
        "(graft plugins). If it is a graftwork.BaseModel of yours, import the module that defines it first, or "
        f"declare it in a ModelFamily plugin: {did_you_mean(model_type, CONFIG_MAPPING)}"
    )


def without_code(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` and its parts without the keys that can name code."""
    return {
        key: without_code(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in _NAMES_CODE
    }


def _known(model_type: str, changes: Mapping[str, Any], *, known: Mapping[str, Any]) -> Mapping[str, Any]:
    """``changes``, each checked to be a key of the configuration: transformers would accept any and use none."""
    if model_type not in CONFIG_MAPPING and not known:
        return changes
    names = {*known, *(config_keys(CONFIG_MAPPING[model_type]) if model_type in CONFIG_MAPPING else ())}
    for key, value in changes.items():
        if key not in names or key in _NAMES_CODE:
            raise _no_key(key, names, model_type)
        if isinstance(value, dict) and without_code(value) != value:
            text = f"{key} holds a key that can name code; remove it ({_CODE_KEYS})"
            raise ChangeError(text, [key], head=_HEAD)
    return changes


def _changed(config: PretrainedConfig, changes: Mapping[str, Any]) -> PretrainedConfig:
    for key, value in changes.items():
        if not hasattr(config, key):
            raise _no_key(key, config.to_dict(), config.model_type)
        setattr(config, key, value)
    return config


def _no_key(key: str, names: Collection[str], model_type: str) -> ChangeError:
    text = f"{key!r} is no key of a {model_type} configuration: {did_you_mean(key, names)}"
    return ChangeError(text, [key], model_type=model_type, names=names, head=_HEAD)


def config_keys(config_class: type[PretrainedConfig]) -> set[str]:
    """The keys that a configuration class knows, under all their spellings."""
    declared = {*(field.name for field in fields(config_class)), *signature(config_class.__init__).parameters}
    names = declared - {"self", "args", "kwargs"} | set(config_class.attribute_map)
    return names | set(ROTARY) if "rope_parameters" in names else names
