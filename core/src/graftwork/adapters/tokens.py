"""Tokens that were added to a model: rows for them in its embeddings, and how they are trained beside a LoRA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from graftwork.adapters.record import read_record, rows_of
from graftwork.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from torch import nn

    from graftwork.config import ModelParams


def added_token_ids(params: ModelParams) -> list[int]:
    """The ids of ``model.added_tokens``, by which the tokenizer of ``params`` was extended."""
    if not params.added_tokens:
        return []
    from graftwork.builders import build_tokenizer

    tokenizer = build_tokenizer(params)
    return sorted({int(tokenizer.convert_tokens_to_ids(text)) for text in params.added_tokens})


def add_rows(model: Any, ids: Sequence[int]) -> None:
    """Gives each added token a row in the embeddings and in the output layer: the mean of all rows there were.

    Where the vocabulary was padded, the rows are there already and only get their values. The mean is where a token
    about which nothing is known disturbs the others least (Hewitt 2021, "Initializing New Word Embeddings for
    Pretrained Language Models"), and it is the same at every start.
    """
    before = rows_of(model)
    assert before is not None
    old = [row for row in range(before) if row not in set(ids)]
    make_room(model, max(ids) + 1)
    with torch.no_grad():
        for weight in _matrices(model):
            weight[torch.tensor(ids)] = weight[torch.tensor(old)].float().mean(0).to(weight.dtype)


def make_room(model: Any, rows: int | None) -> None:
    """Lengthens the embeddings to ``rows``; new rows are the mean of the old. Longer ones stay as they are."""
    before = rows_of(model)
    if before is None or rows is None or rows <= before:
        return
    model.resize_token_embeddings(rows, mean_resizing=False)
    with torch.no_grad():
        for weight in _matrices(model):
            weight[before:] = weight[:before].float().mean(0).to(weight.dtype)


def rows_in(folder: Path) -> int | None:
    """How many rows the base's embeddings must have for the adapter in ``folder``; None where it does not say.

    Written here it is recorded; other tools put the resized embeddings themselves into the adapter's file.
    """
    recorded = read_record(folder).embedding_rows
    if recorded is not None:
        return recorded
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as file:
        whole = [name for name in file.keys() if name.endswith((".embed_tokens.weight", ".wte.weight"))]  # noqa: SIM118
        return int(file.get_slice(whole[0]).get_shape()[0]) if whole else None


def token_targets(model: Any, ids: Sequence[int], whole: Iterable[str]) -> dict[str, list[int]]:
    """PEFT's ``trainable_token_indices``: by module, without those in ``whole``, which are trained anyway.

    Raises :class:`UsageError` where ``whole`` names the output layer and that is tied to the embeddings.
    """
    whole = tuple(whole)
    modules = [model.get_input_embeddings()]
    output = model.get_output_embeddings()
    if output is not None and output.weight is not modules[0].weight:
        modules.append(output)
    names = [_leaf(model, module) for module in modules]
    if len(modules) == 1 and output is not None and _leaf(model, output) in set(whole) - set(names):
        raise UsageError(
            f"peft.lora_modules_to_save: {_leaf(model, output)!r} shares its weight with {names[0]!r}, of "
            f"which model.added_tokens trains rows (tie_word_embeddings): name {names[0]!r} instead, or leave it out"
        )
    return {name: list(ids) for name in names if name not in set(whole)}


def require_trained(adapted: Any, ids: Sequence[int]) -> None:
    """Raises :class:`UsageError` where an adapter that is trained further leaves the rows of added tokens frozen."""
    config = adapted.peft_config["default"]
    indices = config.trainable_token_indices or {}
    trained = set(indices) if isinstance(indices, list) else {one for each in indices.values() for one in each}
    name = _leaf(adapted.get_base_model(), adapted.get_base_model().get_input_embeddings())
    if not set(ids) <= trained and not any(name.startswith(whole) for whole in config.modules_to_save or ()):
        raise UsageError(
            f"model.added_tokens: the adapter that is trained further has no rows for the tokens {sorted(ids)}; add "
            "them when the adapter is made, or leave them out"
        )


def _matrices(model: Any) -> list[nn.Parameter]:
    """The weights of the embeddings and of an output layer that is not tied to them."""
    weights = [model.get_input_embeddings().weight]
    output = model.get_output_embeddings()
    if output is not None and output.weight is not weights[0]:
        weights.append(output.weight)
    return weights


def _leaf(model: Any, module: Any) -> str:
    path: str = next(name for name, found in model.named_modules() if found is module)
    return path.rpartition(".")[2]
