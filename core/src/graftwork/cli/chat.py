"""``graft chat``: a conversation in the terminal."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graftwork.cli.inference_options import generation_params, inference_options, open_model, require_model
from graftwork.errors import GraftworkError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from graftwork.config import GenerationParams
    from graftwork.inference import Engine

HELP = """\
/reset          forget the conversation
/system TEXT    set the system message; without TEXT, remove it
/save FILE      write the conversation as a JSON line, as it can be trained on
/quit           leave (Ctrl-D too); Ctrl-C stops an answer"""

Message = dict[str, str]


@click.command()
@click.argument("model", required=False)
@click.option("--system", metavar="TEXT", help="A system message to begin with.")
@inference_options
def chat(model: str | None, **options: Any) -> None:
    """Talk with MODEL: a run folder, a model or adapter folder, or a Hub id.

    /help in the conversation lists its commands. The temperature is 0.7 where none is given.
    """
    name = require_model(model, options)
    params = generation_params(options, temperature=0.7)
    loaded, engine = open_model(name, options)
    if loaded.chat_template is None:
        from graftwork.inference.prompts import without_template

        raise ModelError(without_template(loaded))
    session = Session(engine=engine, params=params, system=options["system"])
    if sys.stdin.isatty():
        _edit_lines()
        click.echo(f"{Path(name).name or name}: write a message; /help lists the commands, Ctrl-D leaves.", err=True)
    converse(session)


def converse(session: Session) -> None:
    """Reads messages and commands until the input ends or ``/quit``."""
    while True:
        try:
            line = input("\n> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        except KeyboardInterrupt:
            notice("Ctrl-D or /quit leaves")
            continue
        if line.split(maxsplit=1)[:1] == ["/quit"]:
            return
        try:
            session.take(line)
        except GraftworkError as error:
            notice(str(error))


@dataclass(slots=True, kw_only=True)
class Session:
    """The conversation. ``turns`` are all messages but the system's; the model sees them from ``first`` on."""

    engine: Engine
    params: GenerationParams
    system: str | None = None
    turns: list[Message] = field(default_factory=list)
    first: int = 0

    def take(self, line: str) -> None:
        """Does what a line asks for."""
        command, _, rest = line.partition(" ")
        if not line:
            return
        if not command.startswith("/"):
            self.ask(line)
            return
        actions: dict[str, Callable[[str], None]] = {
            "/reset": self.reset, "/system": self.set_system, "/save": self.save, "/help": lambda _: notice(HELP),
        }  # fmt: skip
        if command not in actions:
            notice(f"there is no command {command}\n{HELP}")
            return
        actions[command](rest.strip())

    @property
    def messages(self) -> list[Message]:
        """What the model gets."""
        return [*self._system_message(), *self.turns[self.first :]]

    def ask(self, text: str) -> None:
        """Adds a message and streams the answer. A message that does not fit at all is taken back."""
        self.turns.append({"role": "user", "content": text})
        try:
            self._make_room()
            answer = self._answer()
        except BaseException:
            self.turns.pop()
            raise
        self.turns.append({"role": "assistant", "content": answer})

    def _answer(self) -> str:
        """The answer, shown as it comes. Ctrl-C ends it where it is."""
        stream = self.engine.stream(self.messages, self.params)
        pieces: list[str] = []
        try:
            for piece in stream:
                pieces.append(piece)
                click.echo(piece, nl=False)
        except KeyboardInterrupt:
            notice("\n(stopped)")
        finally:
            stream.close()
        click.echo()
        if stream.completion and stream.completion.finish_reason == "length":
            notice(f"(cut off after {stream.completion.completion_tokens} tokens)")
        return "".join(pieces)

    def _make_room(self) -> None:
        """Leaves the oldest exchanges out until the conversation and an answer fit into the model's context."""
        context = self.engine.context_length
        if context is None:
            return
        before = self.first
        room = context - min(self.params.max_new_tokens, context // 4)
        while self.engine.count(self.messages) > room and self.first + 2 < len(self.turns):
            self.first += 2
        if self.first > before:
            notice(
                f"(the conversation has outgrown the model's {context} tokens: "
                f"its {self.first} oldest messages are left out from here on)"
            )

    def reset(self, _: str) -> None:
        """Forgets everything but the system message."""
        self.turns, self.first = [], 0
        notice("(forgotten)")

    def set_system(self, text: str) -> None:
        """Sets or removes the system message."""
        self.system = text or None
        notice("(system message set)" if text else "(no system message)")

    def save(self, name: str) -> None:
        """Writes the whole conversation to a new file."""
        path = Path(name).expanduser()
        if not name or path.exists():
            notice(f"{name} exists already: give a new file" if name else "/save FILE: give a file")
            return
        line = json.dumps({"messages": [*self._system_message(), *self.turns]}, ensure_ascii=False)
        try:
            path.write_text(line + "\n", "utf-8")
        except OSError as error:
            notice(f"{path}: {error.strerror}")
            return
        notice(f"({len(self.turns)} messages saved in {path})")

    def _system_message(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []


def notice(text: str) -> None:
    """Says something about the conversation, beside it."""
    click.echo(text, err=True)


def _edit_lines() -> None:
    """Arrow keys and history, where Python was built with them."""
    try:
        import readline  # noqa: F401
    except ImportError:
        return
