"""The engine on top of transformers' ``generate``: batches with padding on the left, and streams.

B rows, T tokens of the longest prompt.
"""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

from graftwork.errors import ModelError
from graftwork.inference.prompts import EncodedPrompt, encode_prompt
from graftwork.inference.rows import Row, RowRules
from graftwork.inference.sampling import check_params, processors
from graftwork.inference.stream import ThreadStream

if TYPE_CHECKING:
    from graftwork.config import GenerationParams
    from graftwork.inference.engine import Completion, LoadedModel, Prompt

Show = Callable[[str], None]
Cancelled = Callable[[], bool]


class TransformersEngine:
    """Runs any transformers causal model."""

    def __init__(self, loaded: LoadedModel) -> None:
        self.loaded = loaded

    @property
    def context_length(self) -> int | None:
        """See :class:`graftwork.inference.engine.Engine`."""
        length = getattr(self.loaded.model.config.get_text_config(), "max_position_embeddings", None)
        return length if isinstance(length, int) and length > 0 else None

    def count(self, prompt: Prompt) -> int:
        """See :class:`graftwork.inference.engine.Engine`."""
        return len(encode_prompt(prompt, self.loaded).ids)

    def generate(
        self, prompts: Sequence[Prompt], params: GenerationParams, *, first_index: int = 0
    ) -> list[Completion]:
        """See :class:`graftwork.inference.engine.Engine`."""
        check_params(params)
        encoded = [self._encode(prompt) for prompt in prompts]
        seed = _seed(params)
        done: list[Completion] = []
        for batch in self._batches(encoded, params):
            seeds = [_row_seed(seed, first_index + len(done) + place) for place in range(len(batch))]
            done.extend(self._run(batch, params, seeds))
        return done

    def stream(self, prompt: Prompt, params: GenerationParams) -> ThreadStream:
        """See :class:`graftwork.inference.engine.Engine`. The model runs in a thread of its own."""
        check_params(params)
        encoded = self._encode(prompt)
        seed = _row_seed(_seed(params), 0)

        def work(show: Show, cancelled: Cancelled) -> Completion:
            return self._run([encoded], params, [seed], show=show, cancelled=cancelled)[0]

        return ThreadStream(work)

    def _encode(self, prompt: Prompt) -> EncodedPrompt:
        encoded = encode_prompt(prompt, self.loaded)
        context = self.context_length
        if context is not None and len(encoded.ids) >= context:
            raise ModelError(
                f"the prompt has {len(encoded.ids)} tokens and the model's context is {context}, which leaves no "
                "room for an answer: shorten the prompt"
            )
        return encoded

    def _batches(self, prompts: Sequence[EncodedPrompt], params: GenerationParams) -> Iterator[Sequence[EncodedPrompt]]:
        """Neighbours together. A row that the context will cut runs alone: its padding beside it must not
        cut the others, and nothing may run past the last position.
        """
        together = params.batch_size if _accepts_mask(self.loaded.model) else 1
        for start in range(0, len(prompts), together):
            batch = prompts[start : start + together]
            if all(self._room(prompt, params) == params.max_new_tokens for prompt in batch):
                yield batch
            else:
                yield from ([prompt] for prompt in batch)

    def _room(self, prompt: EncodedPrompt, params: GenerationParams) -> int:
        """How many new tokens fit."""
        context = self.context_length
        return params.max_new_tokens if context is None else min(params.max_new_tokens, context - len(prompt.ids))

    def _run(
        self,
        batch: Sequence[EncodedPrompt],
        params: GenerationParams,
        seeds: Sequence[int],
        *,
        show: Show | None = None,
        cancelled: Cancelled | None = None,
    ) -> list[Completion]:
        """Generates for one batch."""
        rows = [self._row(prompt, params, show) for prompt in batch]
        ids, mask = self._padded([prompt.ids for prompt in batch])
        inputs = {"attention_mask": mask} if _accepts_mask(self.loaded.model) else {}
        watched = [] if params.num_beams > 1 else [RowsDone(rows, cancelled)]
        with _evaluating(self.loaded.model) as model:
            made = model.generate(
                input_ids=ids,
                **inputs,
                generation_config=self._generation_config(params, ids.shape[1]),
                logits_processor=processors(params, mask, seeds),
                stopping_criteria=StoppingCriteriaList(watched),
            )
        if not watched:  # which beam is a row's best is known at the end only
            _push_all(rows, made[:, ids.shape[1] :].tolist())
        return [row.finish() for row in rows]

    def _row(self, prompt: EncodedPrompt, params: GenerationParams, show: Show | None) -> Row:
        rules = RowRules(
            stop_ids=self._stop_ids(params),
            stop_strings=(*self.loaded.stop_strings, *(params.stop_strings or ())),
            limit=self._room(prompt, params),
            special=not params.skip_special_tokens,
            echo=not params.exclude_prompt_from_response,
        )
        return Row(prompt, self.loaded.tokenizer, rules, show)

    def _stop_ids(self, params: GenerationParams) -> frozenset[int]:
        return self.loaded.stop_token_ids | frozenset(params.stop_token_ids or ())

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask ``[B, T]``, the padding on the left, where the model can go on at the right end."""
        width = max(map(len, rows))
        pad = self._pad_id()
        device = self.loaded.model.device
        ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=device)
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
        return ids, mask

    def _pad_id(self) -> int:
        pad = self.loaded.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else 0  # masked: any id of the vocabulary will do

    def _generation_config(self, params: GenerationParams, width: int) -> GenerationConfig:
        """Greedy as far as transformers knows: the processors do the sampling. Every value is set, because
        transformers fills what is None from the model's own generation_config.json.
        """
        # Of the two ways to state a limit, the one that does not meet the model's own and warn about it.
        own = self.loaded.model.generation_config.max_new_tokens
        new = params.max_new_tokens
        limit: dict[str, Any] = {"max_length": width + new} if own is None else {"max_new_tokens": new}
        return GenerationConfig(
            **limit,
            min_length=0,
            do_sample=False,
            num_beams=params.num_beams,
            temperature=1.0,
            top_k=50,
            top_p=1.0,
            typical_p=1.0,
            repetition_penalty=1.0,
            use_cache=params.use_cache,
            pad_token_id=self._pad_id(),
            eos_token_id=sorted(self._stop_ids(params)) or None,
        )


class RowsDone(StoppingCriteria):  # type: ignore[misc]
    """Gives every row its new token and says which rows are done."""

    def __init__(self, rows: Sequence[Row], cancelled: Cancelled | None) -> None:
        self._rows = rows
        self._cancelled = cancelled

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        for row, token_id in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            row.push(token_id)
        stop = self._cancelled is not None and self._cancelled()
        flags = [stop or row.done for row in self._rows]
        return torch.tensor(flags, dtype=torch.bool, device=input_ids.device)


def _push_all(rows: Sequence[Row], token_ids: Sequence[Sequence[int]]) -> None:
    for row, ids in zip(rows, token_ids, strict=True):
        for token_id in ids:
            row.push(token_id)


def _accepts_mask(model: Any) -> bool:
    """Whether padding can be masked. A model of one's own may not know ``attention_mask``; PEFT's wrapper of it
    would take one and fail.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return "attention_mask" in inspect.signature(inner.forward).parameters


def _seed(params: GenerationParams) -> int:
    return params.seed if params.seed is not None else secrets.randbits(32)


def _row_seed(seed: int, index: int) -> int:
    """One number per seed and row, far apart for neighbours (the constant is 2^64 over the golden ratio)."""
    return (seed * 0x9E3779B97F4A7C15 + index * 0xD1B54A32D192ED03) % 2**63


@contextmanager
def _evaluating(model: Any) -> Iterator[Any]:
    """Dropout off, and back as it was: engines also run in the middle of a training run."""
    training = model.training
    model.eval()
    try:
        yield model
    finally:
        if training:
            model.train()
