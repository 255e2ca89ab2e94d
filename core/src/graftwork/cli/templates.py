"""``graft templates``: which chat templates there are, what they write, and whether one fits a tokenizer."""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graftwork.errors import DataError, UsageError
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.text import Text

    from graftwork.chat.check import ShownToken, TemplateReport
    from graftwork.specs import ChatTemplate

HEAD = ("template", "from", "supports", "ends a turn in", "also called")
COLOURS = {"system": "yellow", "user": "cyan", "assistant": "green", "tool": "magenta"}
WIDTH = 96
_variables = click.option(
    "--var", "variables", multiple=True, metavar="NAME=VALUE", help="A variable of the template; the value is YAML."
)


@click.group()
def templates() -> None:
    """List, show and render chat templates; prove that one fits a tokenizer."""


@templates.command("ls")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def ls(as_json: bool) -> None:
    """List the chat templates that can be named."""
    records = get_registry().chat_templates
    if as_json:
        click.echo(json.dumps([_described(record) for record in records.values()], indent=2))
        return
    rows = [HEAD, *(_row(_described(record)) for record in records.values())]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


@templates.command("show")
@click.argument("name")
def show(name: str) -> None:
    """Print the Jinja text of NAME, a template's name or file."""
    from graftwork.chat import find_template

    click.echo(find_template(name).source, nl=False)


@templates.command("render")
@click.argument("name")
@click.option("--messages", required=True, help="JSON file with a list of messages, or {messages, tools}; - is stdin.")
@click.option("--tokenizer", help="Folder, file or name: its BOS and EOS tokens are the template's.")
@click.option("--tools", help="JSON file with a list of tools.")
@click.option("--generation-prompt", is_flag=True, help="Go on to where the assistant's answer begins.")
@_variables
def render_(
    name: str,
    messages: str,
    tokenizer: str | None,
    tools: str | None,
    generation_prompt: bool,
    variables: Sequence[str],
) -> None:
    """Print what the template NAME (a name or a file) writes for a conversation, byte for byte."""
    from graftwork import load_tokenizer, render_chat

    conversation = _conversation(messages, _json(messages))
    offered = _json(tools) if tools else conversation.get("tools")
    text = render_chat(
        conversation["messages"],
        template=name,
        tokenizer=load_tokenizer(tokenizer).hf if tokenizer else None,
        tools=offered,
        add_generation_prompt=generation_prompt,
        **_parsed(variables),
    )
    click.echo(text, nl=False)


@templates.command("check")
@click.argument("name", required=False)
@click.option("--tokenizer", required=True, help="Folder, file or name.")
@click.option("--family", help="Model family, whose stop tokens count too; else the one that config.json tells.")
@click.option("--rows", help="JSONL file with rows of your own, as for training, to try as well.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, with every token.")
@_variables
@click.pass_context
def check(
    ctx: click.Context,
    name: str | None,
    tokenizer: str,
    family: str | None,
    rows: str | None,
    as_json: bool,
    variables: Sequence[str],
) -> None:
    """Prove that the template NAME (a name or a file; the tokenizer's own without it) and a tokenizer fit together.

    Every rule is tried on conversations with one and two questions, a system message, tools and images. The exit
    code is 1 where one does not hold.
    """
    from graftwork import load_tokenizer
    from graftwork.chat.check import check_template
    from graftwork.tokenizers.load import family_of_folder

    loaded = load_tokenizer(tokenizer, family=family)
    folder = loaded.path if loaded.path.is_dir() else loaded.path.parent
    report = check_template(
        name,
        loaded,
        family=get_registry().families[family] if family else family_of_folder(folder),
        rows=list(_rows(rows)) if rows else (),
        variables=_parsed(variables),
        generation_config=_generation_config(folder),
    )
    if as_json:
        click.echo(json.dumps(_plain(report), indent=2, ensure_ascii=False))
    else:
        _print(report)
    ctx.exit(0 if report.ok else 1)


# What is listed


def _described(record: ChatTemplate) -> dict[str, Any]:
    owner = get_registry().chat_templates.owner(record.name)
    return {
        "name": record.name,
        "distribution": owner.distribution,
        "supports": sorted(record.supports),
        "stop": list(record.stop),
        "encoding": record.encoding,
        "rewrites": record.rewrites,
        "aliases": list(record.aliases),
        "path": str(record.path),
    }


def _row(facts: Mapping[str, Any]) -> tuple[str, ...]:
    supports, aliases = ", ".join(facts["supports"]) or "-", ", ".join(facts["aliases"]) or "-"
    return facts["name"], facts["distribution"], supports, " ".join(facts["stop"]) or "eos_token", aliases


# What is read


def _json(file: str) -> Any:
    text = sys.stdin.read() if file == "-" else _text(file)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{file}:{error.lineno}: no JSON: {error.msg}; mend that line") from None


def _text(file: str) -> str:
    path = Path(file).expanduser()
    if not path.is_file():
        raise UsageError(f"{file}: there is no such file; give a JSON file, or - for standard input")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from None


def _conversation(where: str, value: Any) -> dict[str, Any]:
    found = {"messages": value} if isinstance(value, list) else value
    if not isinstance(found, dict) or not isinstance(found.get("messages"), list):
        keys = f"an object with {', '.join(found) or 'nothing'}" if isinstance(found, dict) else type(value).__name__
        raise DataError(f"{where}: expected a list of messages or an object with 'messages', found {keys}")
    return found


def _rows(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a JSONL file, in any shape that training takes."""
    from graftwork.data.conversations import to_conversation, tools_of
    from graftwork.data.readers import START, Row

    for number, line in enumerate(_text(file).splitlines(), 1):
        if line.strip():
            row = Row(where=f"{file}:{number}", data=_object(line, f"{file}:{number}"), after=START)
            yield row.where, {"messages": to_conversation(row).messages, "tools": tools_of(row)}


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: no JSON: {error.msg}; one conversation belongs on each line") from None
    if isinstance(value, list):
        return {"messages": value}
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object or a list of messages, found {type(value).__name__}")
    return value


def _parsed(variables: Sequence[str]) -> dict[str, Any]:
    import yaml

    found = {}
    for given in variables:
        name, equals, value = given.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"--var {given!r}: expected NAME=VALUE, such as date_string='26 Jul 2024'")
        found[name] = yaml.safe_load(value) if value else ""
    return found


def _generation_config(folder: Path) -> dict[str, Any]:
    file = folder / "generation_config.json"
    return json.loads(file.read_text("utf-8")) if file.is_file() else {}


# What is printed


def _print(report: TemplateReport) -> None:
    from rich.console import Console

    from graftwork.chat.check import RULES

    terminal = sys.stdout.isatty()
    console = Console(width=None if terminal else WIDTH, highlight=False, soft_wrap=not terminal)
    console.print("Each line is one stretch of a conversation; bold and marked + is what is trained.", markup=False)
    for line in _lines(report.tokens):
        console.print(line)
    console.print()
    states = dict.fromkeys(RULES, "holds") | dict.fromkeys(report.excused, "excused")
    states |= {violation.rule: "VIOLATED" for violation in report.violations}
    for rule, state in states.items():
        console.print(f"{state:<9} {RULES[rule]}", markup=False)
    for violation in report.violations:
        console.print(
            f"\n{RULES[violation.rule]}: VIOLATED ({_named(violation.conversations)})", style="bold red", markup=False
        )
        console.print(violation.message, markup=False)
    for note in report.notes:
        console.print(f"\nnote: {note}", markup=False)


def _named(conversations: Sequence[str]) -> str:
    return ", ".join(conversations[:3]) + (f", {len(conversations) - 3} more" if len(conversations) > 3 else "")


def _lines(tokens: Sequence[ShownToken]) -> Iterator[Text]:
    """A line for each stretch of one role that is or is not trained; a space parts tokens, a dot is a space."""
    from rich.text import Text

    for (role, trained), stretch in groupby(tokens, key=lambda token: (token.role, token.trained)):
        colour = COLOURS.get(role or "", "bright_black")
        line = Text(f"{role or '-':<10}{'+' if trained else ' '} ", style="bright_black")
        yield line.append(" ".join(token.text for token in stretch), style=f"bold {colour}" if trained else colour)


def _plain(report: TemplateReport) -> dict[str, Any]:
    return {
        "template": report.template.name or report.template.origin,
        "ok": report.ok,
        "conversations": list(report.conversations),
        "violations": [violation._asdict() for violation in report.violations],
        "excused": list(report.excused),
        "notes": list(report.notes),
        "tokens": [token._asdict() for token in report.tokens],
    }
