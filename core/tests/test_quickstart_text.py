"""Where the quickstart's text comes from, and that nothing is learned from and held out at once."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

from graftwork.errors import DataError
from graftwork.quickstart import topics
from graftwork.quickstart.corpus import Corpus, check_apart, gather, shown_first, write_corpus
from graftwork.quickstart.docstrings import Question, first_paragraph, read_questions
from graftwork.quickstart.split import hold_out
from graftwork.quickstart.topics import Document, read_topics, related

if TYPE_CHECKING:
    from pathlib import Path

LONG = "This paragraph is long enough to be told apart from every other one, whatever its line breaks are."


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return read_questions()


@pytest.fixture
def corpus(questions: list[Question], monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setattr("graftwork.quickstart.corpus.read_questions", lambda: questions)
    return gather(0)


# Topics


def test_topics_are_those_of_this_python() -> None:
    documents = {document.name: document.text for document in read_topics()}
    original: dict[str, str] = import_module("pydoc_data.topics").topics
    assert {name: text.strip() for name, text in original.items()} == {
        name: text.strip() for name, text in documents.items()
    }
    assert "for_stmt" in documents["for"]
    assert sum(map(len, documents.values())) > 300_000


def test_topics_that_repeat_a_paragraph_are_one_group() -> None:
    reflowed = "\n      ".join(textwrap.wrap(LONG, 30))
    documents = [
        Document("a", f"Heading\n\n{LONG}\n"),
        Document("b", "Another text of which no paragraph is anywhere else, as far as one can see.\n"),
        Document("c", f"Heading\n\n   {reflowed}\n\nAnd {LONG}"),
        Document("d", f"And\n{LONG}\n"),
    ]
    assert [[one.name for one in group] for group in related(documents)] == [["b"], ["a", "c", "d"]]


def test_the_topics_of_this_python_repeat_each_other() -> None:
    groups = [{document.name for document in group} for group in related(read_topics())]
    assert next(group for group in groups if "compound" in group) >= {"for", "while", "if", "try", "with"}


def test_a_python_without_topics_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(DataError, match=r"no pydoc_data\.topics.*install the whole standard library"):
        topics.read_topics()


# Docstrings


def test_docstrings_are_those_that_python_shows(questions: list[Question]) -> None:
    answers = {question.name: question.answer for question in questions}
    assert answers["textwrap.dedent"] == " ".join((textwrap.dedent.__doc__ or "").split("\n\n")[0].split())
    assert answers["json.dumps"].startswith("Serialize ``obj`` to a JSON formatted ``str``.")


def test_reading_docstrings_imports_nothing() -> None:
    program = (
        "import sys, sysconfig; from graftwork.quickstart.docstrings import read_questions\n"
        "sysconfig.get_path('stdlib'); before = set(sys.modules)  # it has loaded a module of build settings\n"
        "assert read_questions(); print(sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True)
    assert (run.stdout.strip(), run.stderr) == ("[]", "")


def test_only_public_names_with_something_to_say_are_asked_for(tmp_path: Path) -> None:
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text('def top():\n    """Says what the top one does.\n\n    More."""\n')
    (tmp_path / "pack" / "_private.py").write_text('def hidden():\n    """Says what is hidden here."""\n')
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "case.py").write_text('def checks():\n    """Checks something in a test."""\n')
    (tmp_path / "broken.py").write_text("def broken(:\n")
    (tmp_path / "plain.py").write_text(
        textwrap.dedent('''
        import a_module_that_does_not_exist
        raise SystemExit("this file is never run")

        class Thing:
            """A thing on two
            lines of text."""

            def method(self):
                """Says what the TOP one does"""

            def _own(self):
                """Says what its own one does."""

            async def waits(self):
                """Waits for a thing."""

            def short(self):
                """Short."""
        ''')
    )
    found = [(question.name, question.answer) for question in read_questions(tmp_path)]
    assert found == [
        ("pack.top", "Says what the top one does."),
        ("plain.Thing", "A thing on two lines of text."),
        ("plain.Thing.waits", "Waits for a thing."),
    ]


@pytest.mark.parametrize(
    ("docstring", "paragraph"),
    [
        ("Return the\n   sum of all.\n\nMore.", "Return the sum of all."),
        ("dedent(text) -> text with less in front", None),
        ("Adds.", None),
        ("Adds two: >>> add(1, 2)", None),
        ("Word " * 100, None),
    ],
)
def test_an_answer_is_a_sentence(docstring: str, paragraph: str | None) -> None:
    assert first_paragraph(docstring) == paragraph


def test_a_library_without_sources_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no source files of the standard library"):
        read_questions(tmp_path)


# Splits


def test_groups_stay_whole_and_large_ones_are_learned_from() -> None:
    groups = [["b" * 20], ["c" * 6, "d" * 4], *([letter * 10] for letter in "efghijkl")]
    for seed in range(20):
        train, held_out = hold_out(groups, 0.4, len, seed)
        assert sorted(train + held_out) == sorted(member for group in groups for member in group)
        assert ("c" * 6 in held_out) == ("d" * 4 in held_out)
        assert "b" * 20 in train
        assert sum(map(len, held_out)) == 40
        assert (train, held_out) == hold_out(groups, 0.4, len, seed)
    assert len({tuple(hold_out(groups, 0.4, len, seed)[1]) for seed in range(20)}) > 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_is_on_both_sides(seed: int, questions: list[Question], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graftwork.quickstart.corpus.read_questions", lambda: questions)
    corpus = gather(seed)
    learned = " ".join(" ".join(corpus.texts()).split())
    for document in corpus.held_out_documents:
        assert not [paragraph for paragraph in document.paragraphs() if paragraph in learned]
    packages = {question.name.split(".")[0] for question in corpus.questions}
    assert not packages & {question.name.split(".")[0] for question in corpus.held_out_questions}
    answers = {question.answer.casefold() for question in corpus.questions}
    assert not answers & {question.answer.casefold() for question in corpus.held_out_questions}
    assert 0.05 < corpus.held_out_characters / corpus.characters < 0.1
    assert 0.08 < len(corpus.held_out_questions) / len(corpus.questions) < 0.12


def test_what_is_on_both_sides_is_an_error() -> None:
    question = Question("json.dumps", "Serialize an object.")
    other = Question("pickle.dumps", "serialize an OBJECT")
    for documents, questions, what in (
        ([Document("a", LONG)], [], "1 paragraphs are"),
        ([], [question], "1 modules are"),
        ([], [other], "1 docstrings are"),
    ):
        corpus = Corpus(
            documents=[Document("b", f"   {LONG}")],
            held_out_documents=documents,
            questions=[question],
            held_out_questions=questions,
        )
        with pytest.raises(DataError, match=what):
            check_apart(corpus)


def test_the_questions_that_are_shown_come_first(corpus: Corpus) -> None:
    shown = corpus.shown
    assert len({question.package for question in shown}) == len(shown) == 4
    assert all(question.name.count(".") == 1 for question in shown)
    assert sorted(map(id, shown_first(corpus.held_out_questions))) == sorted(map(id, corpus.held_out_questions))


def test_files_hold_documents_and_conversations(corpus: Corpus, tmp_path: Path) -> None:
    write_corpus(corpus, tmp_path / "corpus")
    rows = {
        path.name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for path in (tmp_path / "corpus").iterdir()
    }
    assert sorted(rows) == [
        "docstrings-held-out.jsonl",
        "docstrings-train.jsonl",
        "topics-held-out.jsonl",
        "topics-train.jsonl",
    ]
    first = corpus.held_out_questions[0]
    assert rows["docstrings-held-out.jsonl"][0]["messages"] == [
        {"role": "user", "content": f"What does `{first.name}` do?"},
        {"role": "assistant", "content": first.answer},
    ]
    assert [row["text"] for row in rows["topics-train.jsonl"]] == [document.text for document in corpus.documents]
