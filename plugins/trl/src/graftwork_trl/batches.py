"""Rows of the core's loader to the batches that TRL's losses take: the same ids, the same masks, no second template.

Shapes: B samples, S tokens in the longest, T tokens in a row, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from graftwork.data.batch import Row

IGNORED = -100
Batch = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens, and which of them are learned."""

    ids: torch.Tensor  # [T] int64
    learned: torch.Tensor  # [T] bool

    def __add__(self, other: Piece) -> Piece:
        return Piece(torch.cat((self.ids, other.ids)), torch.cat((self.learned, other.learned)))

    @property
    def labels(self) -> torch.Tensor:
        """The ids where they are learned, else -100."""
        return torch.where(self.learned, self.ids, IGNORED)


@dataclass(frozen=True, slots=True)
class PairPieces:
    """A preference pair: each answer behind its prompt, and the number of the prompt's tokens."""

    chosen: Piece
    rejected: Piece
    prompt: int


def samples_of(row: Row) -> list[Piece]:
    """The segments of a row."""
    learned = torch.zeros(row.num_tokens, dtype=torch.bool)
    learned[row.label_positions + 1] = True  # a token is predicted at the place before it
    parts = zip(row.input_ids[0].split(row.segment_lengths), learned.split(row.segment_lengths), strict=True)
    return [Piece(ids, mask) for ids, mask in parts]


def pairs_of(row: Row) -> list[PairPieces]:
    """The preference pairs of a row. Its labels stand pair by pair, the chosen answer's before the rejected one's."""
    assert row.pairs is not None
    assert row.pair_labels is not None
    found, start, label = [], 0, 0
    for parts, counts, ids in zip(row.pairs, row.pair_labels, row.input_ids[0].split(row.segment_lengths), strict=True):
        places = row.label_positions[label : label + sum(counts)] - start
        prompt, chosen, rejected = ids.split(list(parts))
        asked = Piece(prompt, torch.zeros(len(prompt), dtype=torch.bool))
        good = answer(chosen, places[: counts[0]], parts[0])
        bad = answer(rejected, places[counts[0] :], parts[0] + parts[1])
        found.append(PairPieces(asked + good, asked + bad, len(prompt)))
        start, label = start + len(ids), label + sum(counts)
    return found


def answer(ids: torch.Tensor, places: torch.Tensor, start: int) -> Piece:
    """One answer of a pair, which begins at ``start``; its first token is predicted at the prompt's last one."""
    learned = torch.zeros(len(ids), dtype=torch.bool)
    learned[(places + 1 - start).clamp_min(0)] = True
    return Piece(ids, learned)


def padded(pieces: Sequence[Piece], pad_id: int) -> Batch:
    """Below one another, padded on the right: ``input_ids`` and ``attention_mask``, [B, S]."""
    ids = [piece.ids for piece in pieces]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id),
        "attention_mask": pad_sequence([torch.ones_like(one) for one in ids], batch_first=True),
    }


def labels_of(pieces: Sequence[Piece]) -> torch.Tensor:
    """[B, S], -100 where nothing is learned."""
    return pad_sequence([piece.labels for piece in pieces], batch_first=True, padding_value=IGNORED)


def learned_of(pieces: Sequence[Piece]) -> torch.Tensor:
    """[B, S] int64, 1 where a token is learned: what TRL calls a completion mask."""
    return pad_sequence([piece.learned.long() for piece in pieces], batch_first=True)


def language(row: Row, pad_id: int) -> Batch:
    """For SFT: samples below one another."""
    pieces = samples_of(row)
    return {**padded(pieces, pad_id), "labels": labels_of(pieces)}


def packed(row: Row, pad_id: int) -> Batch:
    """For SFT: samples side by side in one row, told apart by their positions (TRL's padding-free form)."""
    bounds = torch.tensor([0, *torch.tensor(row.segment_lengths).cumsum(0)], dtype=torch.int32)
    labels = torch.cat([piece.labels for piece in samples_of(row)])
    return {
        "input_ids": row.input_ids,
        "labels": labels[None],
        "position_ids": row.position_ids,
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": max(row.segment_lengths),
        "max_length_k": max(row.segment_lengths),
    }


def preference(row: Row, pad_id: int) -> Batch:
    """For DPO: the chosen answers, then the rejected ones."""
    pairs = pairs_of(row)
    pieces = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    return {**padded(pieces, pad_id), "completion_mask": learned_of(pieces)}


def reward(row: Row, pad_id: int) -> Batch:
    """For a reward model: the chosen conversations, then the rejected ones."""
    pairs = pairs_of(row)
    return padded([pair.chosen for pair in pairs] + [pair.rejected for pair in pairs], pad_id)


def odds(row: Row, pad_id: int) -> Batch:
    """For ORPO: prompts, chosen and rejected answers apart."""
    pairs = pairs_of(row)
    sides = {
        "prompt": [Piece(pair.chosen.ids[: pair.prompt], pair.chosen.learned[: pair.prompt]) for pair in pairs],
        "chosen": [pair.chosen for pair in pairs],
        "rejected": [pair.rejected for pair in pairs],
    }
    batch = {f"{side}_{name}": value for side, ones in sides.items() for name, value in padded(ones, pad_id).items()}
    return {**batch, **{f"{side}_labels": labels_of(sides[side]) for side in ("chosen", "rejected")}}


def unpaired(row: Row, pad_id: int, labels: Mapping[str, bool]) -> Batch:
    """For KTO: answers, each good or bad, and beside them the mismatched ones that the KL term is estimated from:
    each prompt with the answer of the sample before it, as TRL rotates them within a batch.

    ``labels`` says by its place whether a sample is good; of a pair both answers are taken.
    """
    if row.pairs is not None:
        cut = [(piece, pair.prompt) for pair in pairs_of(row) for piece in (pair.chosen, pair.rejected)]
        good = [True, False] * len(row.pairs)
    else:
        cut = [(piece, int(piece.learned.nonzero()[0])) for piece in samples_of(row)]
        good = [labels[where] for where in row.wheres]
    pieces = [piece for piece, _ in cut]
    return {
        **padded(pieces, pad_id),
        "completion_mask": learned_of(pieces),
        **{f"KL_{name}": value for name, value in mismatched(cut, pad_id).items()},
        "label": torch.tensor(good),
    }


def mismatched(cut: Sequence[tuple[Piece, int]], pad_id: int) -> Batch:
    """Each prompt with the answer before its own, the first with the last one."""
    prompts = [Piece(piece.ids[:end], piece.learned[:end]) for piece, end in cut]
    endings = [Piece(piece.ids[end:], piece.learned[end:]) for piece, end in cut]
    pieces = [prompt + ending for prompt, ending in zip(prompts, [endings[-1], *endings[:-1]], strict=True)]
    return {**padded(pieces, pad_id), "completion_mask": learned_of(pieces)}


def maker(batch: str, pad_id: int, *, pack: bool, labels: Mapping[str, bool]) -> Callable[[Row], Batch]:
    """The function that makes a method's batches."""
    if batch == "unpaired":
        return lambda row: unpaired(row, pad_id, labels)
    make: Callable[[Row, int], Batch] = {
        "language": packed if pack else language, "preference": preference, "reward": reward, "odds": odds
    }[batch]  # fmt: skip
    return lambda row: make(row, pad_id)


def weight(batch: Mapping[str, Any]) -> int:
    """What the mean of a batch's loss is over: labelled tokens, pairs or answers."""
    if "labels" in batch:
        return int((batch["labels"][:, 1:] != IGNORED).sum())
    if "label" in batch:
        return len(batch["label"])
    key = "chosen_input_ids" if "chosen_input_ids" in batch else "input_ids"
    return len(batch[key]) if key != "input_ids" else len(batch[key]) // 2
