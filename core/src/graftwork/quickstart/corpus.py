"""What is learned from and what is held out, as files that ``graft train`` reads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from graftwork.errors import DataError
from graftwork.files import write_text
from graftwork.quickstart.docstrings import Question, read_questions
from graftwork.quickstart.split import hold_out
from graftwork.quickstart.topics import Document, read_topics, related

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

HELD_OUT_TEXT, HELD_OUT_QUESTIONS = 0.08, 0.1
"""The share of the characters, and of the questions, that is held out."""

SHOWN = 4
"""Held-out questions that are answered at the end. They stand first in their file, where the report looks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """Both parts of both texts."""

    documents: list[Document]
    held_out_documents: list[Document]
    questions: list[Question]
    held_out_questions: list[Question]

    @property
    def characters(self) -> int:
        """Characters of language reference to learn from."""
        return sum(len(document.text) for document in self.documents)

    @property
    def held_out_characters(self) -> int:
        """Characters of language reference held out."""
        return sum(len(document.text) for document in self.held_out_documents)

    @property
    def shown(self) -> list[Question]:
        """The questions that are answered at the end."""
        return self.held_out_questions[:SHOWN]

    def texts(self) -> Iterator[str]:
        """All texts to learn from."""
        yield from (document.text for document in self.documents)
        yield from (f"{question.text}\n{question.answer}" for question in self.questions)


def gather(seed: int) -> Corpus:
    """Reads and splits the text of this Python: topics by groups that share no paragraph, questions by package."""
    documents, held_out_documents = hold_out(
        related(read_topics()), HELD_OUT_TEXT, lambda document: len(document.text), seed
    )
    packages = [list(group) for _, group in groupby(read_questions(), key=lambda question: question.package)]
    questions, held_out_questions = hold_out(packages, HELD_OUT_QUESTIONS, lambda question: 1, seed)
    corpus = Corpus(
        documents=documents,
        held_out_documents=held_out_documents,
        questions=questions,
        held_out_questions=shown_first(held_out_questions),
    )
    check_apart(corpus)
    return corpus


def shown_first(questions: list[Question]) -> list[Question]:
    """The questions with :data:`SHOWN` of them moved to the front: functions of different packages from A to Z, if
    there are enough such as have a name of several words, which gives a small model something to go by.
    """
    functions = [question for question in questions if question.name.count(".") == 1 and question.name.islower()]
    telling = one_each([question for question in functions if "_" in question.name])
    candidates = telling if len(telling) >= SHOWN else one_each(functions)
    count = min(SHOWN, len(candidates))
    shown = [candidates[(2 * place + 1) * len(candidates) // (2 * count)] for place in range(count)]
    return [*shown, *(question for question in questions if question not in shown)]


def one_each(questions: list[Question]) -> list[Question]:
    """The first question of each package."""
    first: dict[str, Question] = {}
    for question in questions:
        first.setdefault(question.package, question)
    return list(first.values())


def check_apart(corpus: Corpus) -> None:
    """Raises :class:`DataError` where something is learned from and held out at once: such numbers would be a lie."""
    pairs: dict[str, tuple[Iterable[Any], Iterable[Any]]] = {
        "paragraph": (
            (paragraph for document in corpus.documents for paragraph in document.paragraphs()),
            (paragraph for document in corpus.held_out_documents for paragraph in document.paragraphs()),
        ),
        "module": (
            (question.package for question in corpus.questions),
            (question.package for question in corpus.held_out_questions),
        ),
        "docstring": (
            (question.key for question in corpus.questions),
            (question.key for question in corpus.held_out_questions),
        ),
    }
    for what, (learned, held_out) in pairs.items():
        if shared := set(learned) & set(held_out):
            raise DataError(
                f"{len(shared)} {what}s are in the training and in the held-out data, such as {min(shared)!r:.100}; "
                "please report this as a bug, with the version of Python"
            )


def write_corpus(corpus: Corpus, folder: Path) -> None:
    """Four JSONL files: documents as ``text``, questions as ``messages``."""
    folder.mkdir()
    for name, documents in (("train", corpus.documents), ("held-out", corpus.held_out_documents)):
        write_rows(folder / f"topics-{name}.jsonl", [{"name": one.name, "text": one.text} for one in documents])
    for name, questions in (("train", corpus.questions), ("held-out", corpus.held_out_questions)):
        write_rows(folder / f"docstrings-{name}.jsonl", map(to_row, questions))


def to_row(question: Question) -> dict[str, Any]:
    """A conversation of two turns."""
    turns = [{"role": "user", "content": question.text}, {"role": "assistant", "content": question.answer}]
    return {"name": question.name, "messages": turns}


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
