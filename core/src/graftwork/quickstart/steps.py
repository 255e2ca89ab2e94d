"""The steps of the quickstart, each of them what a person would do with the command beside it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from graftwork.adapters import merge_adapter
from graftwork.config import GenerationParams
from graftwork.errors import MissingExtraError
from graftwork.files import write_text
from graftwork.inference.engine import build_engine, load_model
from graftwork.quickstart.configurations import ANSWER_TOKENS, LENGTH, PRESET, VOCAB_SIZE, Layout, read_config
from graftwork.quickstart.measure import own_entropy, predicted_tokens, unigram_entropy
from graftwork.quickstart.tokenizer import EOS, save_tokenizer, train_tokenizer
from graftwork.registry import get_registry
from graftwork.training import train

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

    from graftwork.quickstart.corpus import Corpus
    from graftwork.quickstart.docstrings import Question
    from graftwork.runs.run import Listener, Run


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What a training came to: mean held-out losses in nat/token before and after."""

    before: float
    after: float
    steps: int
    tokens: int
    num_parameters: int
    trained_parameters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unigrams:
    """The entropy of the held-out text in nat/token, under the training text's token frequencies and under its own.

    ``tokens`` are those that the model can learn from.
    """

    entropy: float
    own: float
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A held-out question, what the model says, and the docstring."""

    question: str
    answer: str
    docstring: str


class Interrupted(KeyboardInterrupt):
    """Ctrl-C during a training, which has saved a checkpoint in ``run``."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.run = run


@dataclass(slots=True)
class Losses:
    """A listener that remembers the held-out losses of a run."""

    seen: list[float] = field(default_factory=list)

    def __call__(self, run: Run, step: int, metrics: Mapping[str, float]) -> None:
        if "eval_loss" in metrics:
            self.seen.append(metrics["eval_loss"])


def require_plugins() -> None:
    """Raises :class:`MissingExtraError` where what the quickstart trains, or trains with, is not there."""
    registry = get_registry()
    needed: dict[str, tuple[Mapping[str, Any], str]] = {
        "graftwork-llama": (registry.presets, PRESET),
        "graftwork-native": (registry.trainers, "NATIVE_SFT"),
    }
    missing = [package for package, (table, name) in needed.items() if name not in table]
    if missing:
        raise MissingExtraError(
            f"the quickstart needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not in use "
            f"here: pip install {' '.join(missing)} (graft plugins shows what is){registry.unavailable()}"
        )


def make_tokenizer(corpus: Corpus, layout: Layout) -> PreTrainedTokenizerFast:
    """A tokenizer of the training texts, in its folder."""
    tokenizer = train_tokenizer(corpus.texts(), VOCAB_SIZE, LENGTH)
    save_tokenizer(tokenizer, layout.tokenizer)
    return tokenizer


def run_stage(layout: Layout, run: Path, listener: Listener) -> Stage:
    """``graft train -c``. Raises :class:`Interrupted` after Ctrl-C."""
    losses = Losses()
    result = train(read_config(layout, run), listeners=[losses, listener])
    if result.interrupted:
        raise Interrupted(run)
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return Stage(
        before=losses.seen[0],
        after=losses.seen[-1],
        steps=result.step,
        tokens=int(result.metrics["total_tokens"]),
        num_parameters=record["num_parameters"],
        trained_parameters=record["trained_parameters"],
    )


def measure_unigrams(layout: Layout, tokenizer: PreTrainedTokenizerFast) -> Unigrams:
    """What the pretrained model's loss is compared with, on just the tokens that it is measured on."""
    data = read_config(layout, layout.pretrained).data
    stop_ids = frozenset({tokenizer.convert_tokens_to_ids(EOS)})
    learned, held_out = (
        predicted_tokens(split, tokenizer, LENGTH, stop_ids) for split in (data.train, data.validation)
    )
    return Unigrams(
        entropy=unigram_entropy(learned, held_out, VOCAB_SIZE), own=own_entropy(held_out), tokens=len(learned)
    )


def merge(layout: Layout) -> None:
    """``graft merge``."""
    merge_adapter(layout.fine_tuned / "final", output_dir=layout.model)


def ask(layout: Layout, questions: Sequence[Question]) -> list[Answer]:
    """``graft generate``, greedily."""
    engine = build_engine(load_model(str(layout.model)))
    prompts = [[{"role": "user", "content": question.text}] for question in questions]
    completions = engine.generate(prompts, GenerationParams(max_new_tokens=ANSWER_TOKENS, batch_size=len(prompts)))
    return [
        Answer(question=question.text, answer=completion.text.strip(), docstring=question.answer)
        for question, completion in zip(questions, completions, strict=True)
    ]


def write_results(
    layout: Layout, seed: int, unigrams: Unigrams, pretraining: Stage, fine_tuning: Stage, answers: Sequence[Answer]
) -> None:
    """``results.json``: every number that was printed."""
    results = {
        "seed": seed,
        "unigrams": asdict(unigrams),
        "pretraining": asdict(pretraining),
        "fine_tuning": asdict(fine_tuning),
        "answers": [asdict(answer) for answer in answers],
    }
    write_text(layout.folder / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
