"""What a transformers model of a configuration has on disk, and whether a checkpoint has it: from headers alone.

In memory some models have other names than on disk (experts in one tensor, for one); what is compared, mapped and
written here are the names on disk.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import torch

from graftwork.checkpoints.formats import Header
from graftwork.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedModel

_MOST = 40


def expected_headers(values: Mapping[str, Any]) -> dict[str, Header]:
    """Names on disk and shapes of the model that ``config.json`` describes, in the order in which it is saved.

    The model is built on the meta device: nothing is allocated. Tied heads are not on disk. Raises
    :class:`ModelError` where the configuration is not valid or transformers has no such model.
    """
    from transformers.core_model_loading import revert_weight_conversion

    model = meta_model(values)
    tied = model.all_tied_weights_keys
    kept = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    stored = revert_weight_conversion(model, kept)
    return {name: Header(tuple(tensor.shape), tensor.dtype) for name, tensor in stored.items()}


def config_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` as transformers writes it: with the architecture, and what differs from the class's defaults."""
    model = meta_model(values)
    model.config.architectures = [type(model).__name__]
    written: dict[str, Any] = model.config.to_diff_dict()
    return {**written, "dtype": values["dtype"]} if "dtype" in values else written


def meta_model(values: Mapping[str, Any]) -> PreTrainedModel:
    """A model without weights, of the class that a causal language model of this configuration has."""
    from graftwork.builders.family import choose_family
    from graftwork.builders.load import fresh, model_class
    from graftwork.builders.model_config import config_of_values, without_code

    plain = without_code(values)
    config = config_of_values(plain.pop("model_type"), plain, {})
    if choose_family(config.model_type, (), None).build is not None:
        raise ModelError(f"model_type {config.model_type!r} is built by a plugin, so its shapes are not known here")
    with torch.device("meta"):
        return fresh(model_class(config, trust_remote_code=False), config, torch.float32, None, None)


def in_order(groups: Sequence[Sequence[str]], expected: Sequence[str]) -> list[str]:
    """The names of ``groups`` in the order in which transformers saves them.

    That is the order of the model's modules or, where the model was loaded before it was saved, of the names by
    their numbers: the first of the two in which the groups follow each other. A tensor that is alone in a file says
    nothing: one larger than a shard is written before those that came before it. What is not expected comes last.
    """
    place = {name: number for number, group in enumerate(groups) for name in group}
    alone = {group[0] for group in groups if len(group) == 1} if len(groups) < len(place) else set()
    known = set(expected)
    rest = [name for name in place if name not in known]
    for order in (expected, natural(expected)):
        names = [name for name in order if name in place]
        numbers = [place[name] for name in names if name not in alone]
        if numbers == sorted(numbers):
            return names + rest
    return [name for name in expected if name in place] + rest


def natural(names: Sequence[str]) -> list[str]:
    """Sorted by name, where numbers count as numbers."""
    from transformers.core_model_loading import dot_natural_key

    ordered: list[str] = sorted(names, key=dot_natural_key)
    return ordered


def check_headers(
    expected: Mapping[str, Header],
    found: Mapping[str, Header],
    path: Path,
    spoken: Callable[[str], str] = lambda name: name,
    strange: Sequence[str] = (),
) -> None:
    """Raises :class:`ModelError` that lists everything missing, unexpected and wrongly shaped at once.

    ``spoken`` gives the name under which a weight is known in the files; ``strange`` are names there without another.
    """
    missing = [spoken(name) for name in expected if name not in found]
    unexpected = [*strange, *(spoken(name) for name in found if name not in expected)]
    shapes = [
        f"{spoken(name)} is {_shape(found[name])}, and {_shape(header)} was expected"
        for name, header in expected.items()
        if name in found and found[name].shape != header.shape
    ]
    lines = [
        *_section("missing", [_with_nearest(name, unexpected) for name in missing]),
        *_section(
            "unexpected", [_with_nearest(name, missing or [spoken(name) for name in expected]) for name in unexpected]
        ),
        *_section("wrongly shaped", shapes),
    ]
    if lines:
        raise ModelError("\n".join([f"model {path}: the weights do not fit the architecture:", *lines]))


def _section(title: str, entries: Sequence[str]) -> list[str]:
    if not entries:
        return []
    listed = [f"    {entry}" for entry in entries[:_MOST]]
    more = [f"    ... and {len(entries) - _MOST} more"] if len(entries) > _MOST else []
    return [f"  {len(entries)} {title}:", *listed, *more]


def _with_nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"{name} (nearest: {near[0]})" if near else name


def _shape(header: Header) -> str:
    return " x ".join(map(str, header.shape)) or "a single number"
