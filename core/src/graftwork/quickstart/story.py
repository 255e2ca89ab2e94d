"""What the quickstart prints: what happens, what came out, and what a person may do next."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from graftwork.quickstart.folder import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from graftwork.quickstart.configurations import Layout
    from graftwork.quickstart.corpus import Corpus
    from graftwork.quickstart.steps import Answer, Stage, Unigrams

INDENT = " " * 3

LABEL = 26
"""Columns of the names at the left."""

WIDTH = 100


def line(label: str, text: str) -> str:
    """A name and what belongs to it; never broken, as it may be a command or a path."""
    return f"{INDENT}{label:<{LABEL}}{text}"


def paragraph(label: str, text: str) -> str:
    """A name and a text of any length, its further lines below it."""
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=f"{INDENT}{label:<{LABEL}}",
        subsequent_indent=INDENT + " " * LABEL,
        break_on_hyphens=False,
    )


def beginning(folder: Path, before: Path | None) -> Iterator[str]:
    """What this is, and where it goes."""
    yield "A small Llama, from nothing but the documentation inside this Python. It takes a few minutes."
    if before is None:
        yield f"Everything goes to {shown(folder)}"
    else:
        yield f"{shown(before)} is from an earlier quickstart and stays as it is; this one goes to {shown(folder)}"


def text(corpus: Corpus) -> Iterator[str]:
    """What there is to learn from."""
    yield heading(1, "Text")
    learned, held_out = f"{corpus.characters:,}", f"{corpus.held_out_characters:,}"
    yield line("the language reference", f"{learned:>7} characters to learn from, {held_out:>6} held out")
    learned, held_out = f"{len(corpus.questions):,}", f"{len(corpus.held_out_questions):,}"
    yield line("docstrings", f"{learned:>7} questions  to learn from, {held_out:>6} held out")
    yield line("", "no paragraph, module or docstring is on both sides")


def tokenizer(vocab_size: int, characters_per_token: float) -> Iterator[str]:
    """How the text is cut."""
    yield heading(2, "Tokenizer")
    yield line("byte-level BPE", f"{vocab_size:,} tokens; one stands for {characters_per_token:.1f} characters")


def pretraining() -> Iterator[str]:
    """What comes now."""
    yield heading(3, "Pretraining: it reads the language reference")


def pretrained(stage: Stage, unigrams: Unigrams) -> Iterator[str]:
    """What came of it."""
    yield line("model", f"{stage.num_parameters / 1e6:.1f} million parameters, {stage.tokens:,} tokens read")
    yield line("held-out loss before", f"{stage.before:.3f} nat/token")
    yield line("word counts alone", f"{unigrams.entropy:.3f} nat/token, the unigram entropy of the same text")
    yield line(
        "held-out loss after",
        f"{stage.after:.3f} nat/token, {unigrams.entropy - stage.after:.2f} below what word counts give",
    )


def fine_tuning() -> Iterator[str]:
    """What comes now."""
    yield heading(4, "Fine-tuning with LoRA: it learns to answer")


def fine_tuned(stage: Stage) -> Iterator[str]:
    """What came of it."""
    share = 100 * stage.trained_parameters / stage.num_parameters
    yield line("adapter", f"{stage.trained_parameters:,} trained parameters, {share:.0f} % of all; merged afterwards")
    yield line("loss of held-out answers", f"{stage.before:.3f} nat/token before")
    yield line("", f"{stage.after:.3f} nat/token after, {100 * (1 - stage.after / stage.before):.0f} % lower")


def asked(answers: Sequence[Answer]) -> Iterator[str]:
    """Questions, answers, and the truth."""
    yield heading(5, "Questions about modules that it has never seen")
    for answer in answers:
        yield INDENT + answer.question
        yield paragraph("  model", answer.answer or "(nothing)")
        yield paragraph("  docstring", answer.docstring)
    yield f"{INDENT}A model this small, after minutes, has learned how docstrings sound, not what is true."


def ending(layout: Layout, seconds: float) -> Iterator[str]:
    """Where everything is, and what next."""
    minutes, rest = divmod(round(seconds), 60)
    yield heading(6, f"Done in {minutes} min {rest:02} s")
    yield line("model", shown(layout.model))
    yield line("reports, for a browser", shown(layout.pretrained / "report.html"))
    yield line("", shown(layout.fine_tuned / "report.html"))
    yield line("talk with it", f"graft chat {shown(layout.model)}")
    yield line("ask it once", f"graft generate {shown(layout.model)} --prompt 'What does `textwrap.dedent` do?'")
    yield line("let it go on writing", f"graft generate {shown(layout.pretrained)} --prompt 'The syntax for'")
    yield line("train it otherwise", f"change {shown(layout.config(layout.fine_tuned))} or give values:")
    yield f"{INDENT}  {again(layout, layout.fine_tuned)}"


def again(layout: Layout, run: Path) -> str:
    """The command that trains once more, into another folder."""
    target = run.with_name(f"{run.name}-again")
    return f"graft train -c {shown(layout.config(run))} training.output_dir={shown(target)}"


def interrupted(layout: Layout, run: Path | None) -> Iterator[str]:
    """What is left after Ctrl-C."""
    yield f"Stopped. What is there so far stays in {shown(layout.folder)}; graft quickstart begins anew beside it."
    if run is not None:
        yield f"To go on with this training alone: graft train -c {shown(layout.config(run))} --resume"


def heading(number: int, title: str) -> str:
    """A step's title, with an empty line above it."""
    return f"\n{number}  {title}"
