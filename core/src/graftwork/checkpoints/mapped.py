"""Checkpoints under other names: a Meta or Mistral one as transformers has it, and back. Nothing is read here."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from graftwork.checkpoints.expected import check_headers, expected_headers, in_order
from graftwork.checkpoints.formats import Checkpoint, Header
from graftwork.checkpoints.huggingface import read_json
from graftwork.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from graftwork.checkpoints.keymap import KeyMap, Rule

logger = logging.getLogger("graftwork.checkpoints")


def as_transformers(checkpoint: Checkpoint, key_map: KeyMap, config: Mapping[str, Any] | None = None) -> Checkpoint:
    """``checkpoint`` with transformers' names, shapes and row order, its parts joined; ``values`` are ``config``.

    ``config`` is what :func:`config_values` gives where it is not given. Raises :class:`ModelError` that lists every
    name and shape that does not fit.
    """
    config = config_values(checkpoint, key_map) if config is None else config
    complete = completed(config)
    rules, headers, expected = _fitting(checkpoint, key_map, config)

    def read(name: str, _: int) -> torch.Tensor:
        theirs, rule = rules[name]
        return rule.from_theirs(_joined(checkpoint, theirs, rule.split_dimension(complete)), complete)

    names = {theirs: hf for hf, (theirs, _) in rules.items()}
    groups = [[names[name] for name in group if name in names] for group in checkpoint.groups or [list(names)]]
    ordered = {name: headers[name] for name in in_order(groups, list(expected))}
    return Checkpoint(path=checkpoint.path, format="hf", headers=ordered, read=read, groups=groups, values=config)


def _fitting(
    checkpoint: Checkpoint, key_map: KeyMap, config: Mapping[str, Any]
) -> tuple[dict[str, tuple[str, Rule]], dict[str, Header], dict[str, Header]]:
    """Their name and the rule of each of transformers' names, the headers there, and what transformers expects."""
    complete = completed(config)
    rules: dict[str, tuple[str, Rule]] = {}
    strange = []
    for name in checkpoint.headers:
        if key_map.is_derived(name) or (_is_tied_head(name, key_map) and config.get("tie_word_embeddings")):
            continue
        if mapped := key_map.to_hf(name):
            rules[mapped[0]] = (name, mapped[1])
        else:
            strange.append(name)
    headers = {
        hf: _joined_header(checkpoint, name, rule.split_dimension(complete)) for hf, (name, rule) in rules.items()
    }
    expected = expected_headers(config)
    check_headers(expected, headers, checkpoint.path, lambda name: _theirs(name, key_map), strange)
    return rules, headers, expected


def as_theirs(checkpoint: Checkpoint, key_map: KeyMap, format_name: str) -> tuple[Checkpoint, dict[str, int | None]]:
    """A checkpoint of transformers with the names and rows of ``key_map``, and the dimension that parts split.

    ``values`` are those of ``params.json``. Raises :class:`ModelError` for weights and for values of the
    configuration that have no place there.
    """
    config = completed(checkpoint.values)
    expected = expected_headers(checkpoint.values)
    tied = bool(config.get("tie_word_embeddings"))
    found = {name: header for name, header in checkpoint.headers.items() if not (tied and _is_hf_head(name, key_map))}
    check_headers(expected, found, checkpoint.path)
    if tied:
        _check_tied_head(checkpoint, key_map)
    rules = {}
    for name in found:
        mapped = key_map.to_theirs(name)
        if mapped is None:
            raise ModelError(
                f"weight {name} of this {config['model_type']} model has no name in the {format_name} format"
            )
        rules[mapped[0]] = (name, mapped[1])
    if tied and key_map.tied is not None and key_map.writes_tied_head:
        head, embeddings = key_map.tied
        rules[head] = (rules[embeddings][0], _rule(head, key_map))

    def read(theirs: str, _: int) -> torch.Tensor:
        name, rule = rules[theirs]
        return rule.to_theirs(checkpoint.tensor(name), config)

    view = replace(
        checkpoint,
        format=format_name,
        headers={theirs: found[name] for theirs, (name, _) in rules.items()},
        read=read,
        values=params_values(config, key_map, format_name),
    )
    return view, {theirs: rule.split_dimension(config) for theirs, (_, rule) in rules.items()}


# Values


def config_values(checkpoint: Checkpoint, key_map: KeyMap) -> dict[str, Any]:
    """``config.json`` for a checkpoint with ``params.json``; the files' headers fill what that leaves open."""
    params = dict(checkpoint.values)
    if key_map.tied is not None and params.get("vocab_size", -1) <= 0:
        params["vocab_size"] = _vocabulary(checkpoint, key_map.tied[1], params)
    values = key_map.to_config(params)
    values.setdefault("vocab_size", params.get("vocab_size"))
    if key_map.tied is not None and "tied_embeddings" not in params:
        values["tie_word_embeddings"] = key_map.tied[0] not in checkpoint.headers
        _fitting(checkpoint, key_map, values)  # what does not fit is said before anything is read
        values["tie_word_embeddings"] = has_tied_head(checkpoint, *key_map.tied)
        if values["tie_word_embeddings"] and key_map.tied[0] in checkpoint.headers:
            logger.info(
                "%s: %s holds the same numbers as %s, so they are one tensor; tied_embeddings false in params.json "
                "keeps them apart",
                checkpoint.path,
                *key_map.tied,
            )
    floating = (header.dtype for header in checkpoint.headers.values() if header.dtype.is_floating_point)
    values["dtype"] = str(next(floating, torch.float32)).removeprefix("torch.")
    return values


def stated_config(checkpoint: Checkpoint, key_map: KeyMap) -> dict[str, Any]:
    """:func:`config_values`, or the ``config.json`` that lies beside ``params.json`` and says the same and more.

    Raises :class:`ModelError` where the two contradict each other.
    """
    derived = config_values(checkpoint, key_map)
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if not (folder / "config.json").is_file():
        return derived
    stated = read_json(folder / "config.json")
    if differing := _differing(completed(stated), completed(derived)):
        told = ", ".join(f"{key} {one!r} and {other!r}" for key, one, other in differing)
        raise ModelError(f"model {checkpoint.path}: config.json and params.json contradict each other: {told}")
    return stated


def params_values(config: Mapping[str, Any], key_map: KeyMap, format_name: str) -> dict[str, Any]:
    """``params.json`` of a configuration, checked to say all of it that changes what the model computes."""
    params = key_map.to_params(config)
    back = completed({**key_map.to_config(params), "tie_word_embeddings": config.get("tie_word_embeddings", False)})
    if lost := _differing(config, back):
        told = ", ".join(f"{key}={stated!r} (it would be {other!r})" for key, stated, other in lost)
        raise ModelError(
            f"params.json of the {format_name} format cannot say what this model's configuration says: {told}"
        )
    return params


# What no params.json says and no logit depends on; token ids are in generation_config.json and with the tokenizer.
_ELSEWHERE = frozenset(
    {"architectures", "_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "return_dict",
     "initializer_range", "attention_dropout", "pretraining_tp", "max_position_embeddings", "router_jitter_noise",
     "router_aux_loss_coef", "output_router_logits", "bos_token_id", "eos_token_id", "pad_token_id", "id2label",
     "label2id", "problem_type", "output_hidden_states", "output_attentions", "chunk_size_feed_forward",
     "is_encoder_decoder"}
)  # fmt: skip


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    keys = sorted((one.keys() | other.keys()) - _ELSEWHERE)
    return [(key, one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)]


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """``config.json`` with the defaults of its configuration class filled in."""
    from graftwork.builders.model_config import config_of_values, without_code

    plain = without_code(values)
    complete: dict[str, Any] = config_of_values(plain.pop("model_type"), plain, {}).to_dict()
    if complete.get("head_dim", 0) is None:  # what every model class does with None
        complete["head_dim"] = complete["hidden_size"] // complete["num_attention_heads"]
    return complete


def has_tied_head(checkpoint: Checkpoint, head: str, embeddings: str) -> bool:
    """Whether the head is the embeddings: it is not in the files, or it is there a second time, bit for bit."""
    headers = checkpoint.headers
    if head not in headers or embeddings not in headers:
        return head not in headers
    if headers[head] != headers[embeddings]:
        return False
    return all(
        torch.equal(_bits(checkpoint.read(head, part)), _bits(checkpoint.read(embeddings, part)))
        for part in range(checkpoint.parts)
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def _vocabulary(checkpoint: Checkpoint, embeddings: str, params: Mapping[str, Any]) -> int:
    if embeddings not in checkpoint.headers:
        raise ModelError(f"model {checkpoint.path}: params.json says no vocab_size, and there is no {embeddings}")
    rows, columns = checkpoint.headers[embeddings].shape
    return rows * (checkpoint.parts if columns == params.get("dim") else 1)


# Parts


def _joined_header(checkpoint: Checkpoint, name: str, dimension: int | None) -> Header:
    header = checkpoint.headers[name]
    if dimension is None or checkpoint.parts == 1:
        return header
    shape = list(header.shape)
    shape[dimension] *= checkpoint.parts
    return Header(tuple(shape), header.dtype)


def _joined(checkpoint: Checkpoint, name: str, dimension: int | None) -> torch.Tensor:
    if dimension is None or checkpoint.parts == 1:
        return checkpoint.tensor(name)
    return torch.cat([checkpoint.read(name, part) for part in range(checkpoint.parts)], dim=dimension)


def _rule(theirs: str, key_map: KeyMap) -> Rule:
    mapped = key_map.to_hf(theirs)
    if mapped is None:
        raise ModelError(f"key map: {theirs} is declared as tied, and no rule names it")
    return mapped[1]


def _is_tied_head(name: str, key_map: KeyMap) -> bool:
    return key_map.tied is not None and name == key_map.tied[0]


def _is_hf_head(name: str, key_map: KeyMap) -> bool:
    mapped = key_map.to_theirs(name)
    return mapped is not None and _is_tied_head(mapped[0], key_map)


def _check_tied_head(checkpoint: Checkpoint, key_map: KeyMap) -> None:
    """Raises :class:`ModelError` where the files hold a head that is not the embeddings, as the configuration says."""
    head = next((name for name in checkpoint.headers if _is_hf_head(name, key_map)), None)
    if head is None or key_map.tied is None:
        return
    embeddings = key_map.to_hf(key_map.tied[1])
    if embeddings is not None and not has_tied_head(checkpoint, head, embeddings[0]):
        raise ModelError(
            f"model {checkpoint.path}: config.json says that the head is tied to the embeddings, and {head} holds "
            "other numbers: set tie_word_embeddings to false there if they are what the model computes with"
        )


def _theirs(name: str, key_map: KeyMap) -> str:
    mapped = key_map.to_theirs(name)
    return mapped[0] if mapped else name
