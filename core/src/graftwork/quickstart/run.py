"""From an empty folder to a model that answers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from graftwork.quickstart import steps, story
from graftwork.quickstart.configurations import PRETRAINING_STEPS, VOCAB_SIZE, Layout, write_configurations
from graftwork.quickstart.corpus import gather, write_corpus
from graftwork.quickstart.folder import fresh_folder
from graftwork.runs.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    Say = Callable[[str], None]


def run(parent: Path, *, seed: int, num_steps: int = PRETRAINING_STEPS, say: Say) -> Layout:
    """The whole quickstart, in a new folder in ``parent``; ``say`` gets every line of the story.

    Raises :class:`graftwork.errors.GraftworkError` where something is missing, and ``KeyboardInterrupt`` at Ctrl-C
    after a line about what is left.
    """
    begin = time.monotonic()
    steps.require_plugins()
    folder, before = fresh_folder(parent.absolute())
    layout = Layout(folder)
    tell(say, story.beginning(folder, before))
    try:
        go_through(layout, seed, num_steps, say)
    except KeyboardInterrupt as stop:
        tell(say, story.interrupted(layout, stop.run if isinstance(stop, steps.Interrupted) else None))
        raise
    tell(say, story.ending(layout, time.monotonic() - begin))
    return layout


def go_through(layout: Layout, seed: int, num_steps: int, say: Say) -> None:
    """Every step, each with what came of it."""
    corpus = gather(seed)
    write_corpus(corpus, layout.corpus)
    write_configurations(layout, seed=seed, steps=num_steps)
    tell(say, story.text(corpus))

    tokenizer = steps.make_tokenizer(corpus, layout)
    unigrams = steps.measure_unigrams(layout, tokenizer)
    tell(say, story.tokenizer(VOCAB_SIZE, corpus.characters / unigrams.tokens))

    tell(say, story.pretraining())
    pretraining = steps.run_stage(layout, layout.pretrained, Progress(indent=story.INDENT))
    tell(say, story.pretrained(pretraining, unigrams))

    tell(say, story.fine_tuning())
    fine_tuning = steps.run_stage(layout, layout.fine_tuned, Progress(indent=story.INDENT))
    steps.merge(layout)
    tell(say, story.fine_tuned(fine_tuning))

    answers = steps.ask(layout, corpus.shown)
    tell(say, story.asked(answers))
    steps.write_results(layout, seed, unigrams, pretraining, fine_tuning, answers)


def tell(say: Say, lines: Iterable[str]) -> None:
    """Says each line."""
    for line in lines:
        say(line)
