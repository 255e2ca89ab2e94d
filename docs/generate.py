"""Writes the parts of the documents that come from the code: between ``<!-- generated: ... -->`` and ``<!-- end -->``.

python docs/generate.py            write them again
python docs/generate.py --check    exit 1 where a document differs from the code, and show how
"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from graftwork import hookspecs
from graftwork.cli import graft
from graftwork.declarations import DECLARED, PRESETS
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"(<!-- generated: (?P<what>[\w-]+)(?: (?P<argument>\S+))? -->\n).*?(<!-- end -->)", re.S)
# What happens to be installed beside this repository does not belong into its documents.
OURS = ("builtin", *(path.name for path in sorted((ROOT / "plugins").iterdir()) if (path / "pyproject.toml").is_file()))
HELP_WIDTH = 100
HOOKS = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("graftwork_")}


def main(arguments: Sequence[str]) -> int:
    """Writes, or checks with ``--check``."""
    os.environ["GRAFTWORK_PLUGINS"] = ",".join(OURS)
    check = "--check" in arguments
    stale = [path for path in DOCUMENTS if update(path, check=check)]
    return 1 if check and stale else 0


def update(path: Path, *, check: bool) -> bool:
    """Whether ``path`` differed from the code."""
    before = path.read_text(encoding="utf-8")
    after = BLOCK.sub(lambda found: found[1] + GENERATORS[found["what"]](found["argument"]) + found[4], before)
    if after == before:
        return False
    name = str(path.relative_to(ROOT))
    if check:
        lines = before.splitlines(keepends=True), after.splitlines(keepends=True)
        sys.stdout.writelines(difflib.unified_diff(*lines, name, f"{name} (by `make docs`)"))
    else:
        path.write_text(after, encoding="utf-8")
        sys.stdout.write(f"wrote {name}\n")
    return True


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))


def hooks(_: str | None) -> str:
    """The hooks in the order of a run, with what they return and who implements them here."""
    records = {kind.hook: kind.record for kind in DECLARED}
    owners = implementers()
    rows = [
        (
            f"`{name}({', '.join(inspect.signature(hook).parameters)})`",
            f"`{records[name].__name__}`" if name in records else "nothing",
            first_sentence(hook),
            ", ".join(owners.get(name, ())) or "-",
        )
        for name, hook in HOOKS.items()
    ]
    return table(("hook", "returns", "what it is", "in this repository"), rows)


def implementers() -> dict[str, list[str]]:
    """Hook to the plugins of this repository that implement it."""
    found: dict[str, list[str]] = {}
    for plugin in get_registry().plugins:
        module = sys.modules[ENTRY[plugin.name]]
        for name in HOOKS:
            if hasattr(module, name):
                found.setdefault(name, []).append(plugin.name)
    return found


MANY_PRESETS = 3
"""More than these the table counts; `graft models ls` has them all."""

ENTRY = {"builtin": "graftwork.builtin"} | {name: f"graftwork_{name}.plugin" for name in OURS[1:]}


def first_sentence(documented: Any) -> str:
    """The first sentence of a docstring."""
    text = markdown(documented).partition("\n\n")[0].removesuffix("::")
    return re.split(r"(?<=[a-z`\"])[.:](?: |$)", text, maxsplit=1)[0].strip() + "."


def markdown(documented: Any) -> str:
    """A docstring with Markdown's code instead of reStructuredText's, each paragraph on one line."""
    text = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", (inspect.getdoc(documented) or "").replace("``", "`"))
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def records(_: str | None) -> str:
    """Each record with its fields; those without a default come first and must be given."""
    kinds = sorted({kind.record for kind in (*DECLARED, PRESETS)}, key=lambda record: record.__name__)
    return "\n".join(f"### {record.__name__}\n\n{markdown(record)}\n\n{record_fields(record)}" for record in kinds)


def record_fields(record: type[Any]) -> str:
    """The fields of one record."""
    rows = [(f"`{field.name}`", f"`{annotation(field.type)}`", default(field)) for field in fields(record)]
    return table(("field", "type", "default"), rows)


def annotation(text: Any) -> str:
    """A type as it is written, safe inside a table."""
    return str(text).replace("|", "\\|")


def default(field: Any) -> str:
    """The default as code, or that there is none."""
    if field.default is not MISSING:
        return f"`{field.default!r}`"
    return "must be given" if field.default_factory is MISSING else f"`{field.default_factory()!r}`"


def plugins(_: str | None) -> str:
    """The distributions of this repository and what each provides."""
    rows = [
        (f"`{plugin.name}`", f"`{plugin.distribution}`", "; ".join(provided(plugin.name)))
        for plugin in get_registry().plugins
    ]
    return table(("plugin", "distribution", "provides"), rows)


def provided(plugin: str) -> Iterator[str]:
    """What one plugin brings, by kind."""
    registry = get_registry()
    for kind in (*DECLARED, PRESETS):
        entries = getattr(registry, kind.name)
        names = [f"`{name}`" for name in entries if entries.owner(name).name == plugin]
        if kind is PRESETS and len(names) > MANY_PRESETS:
            yield f"{len(names)} presets, {names[0]} to {names[-1]}"
        elif names:
            yield f"{kind.noun if len(names) == 1 else plural(kind.noun)} {', '.join(names)}"
    declaring = {kind.hook for kind in DECLARED}
    if plugin in {owner for hook, owners in implementers().items() if hook not in declaring for owner in owners}:
        yield "listens to the events of a run"


def plural(noun: str) -> str:
    """Of the nouns in :data:`DECLARED`."""
    return noun.removesuffix("y") + "ies" if noun.endswith("y") else noun + "s"


def templates(_: str | None) -> str:
    """The chat templates, and what each supports."""
    listed = get_registry().chat_templates
    rows = [
        (
            f"`{name}`",
            f"`{listed.owner(name).distribution}`",
            ", ".join(sorted(record.supports)) or "-",
            " ".join(f"`{annotation(text)}`" for text in record.stop) or "the tokenizer's `eos_token`",
            ", ".join(f"`{alias}`" for alias in record.aliases) or "-",
        )
        for name, record in listed.items()
    ]
    return table(("template", "comes with", "supports", "ends a turn in", "also called"), rows)


def commands(_: str | None) -> str:
    """The help of ``graft`` and of every command under it."""
    return "\n".join(help_of(graft, "graft", None))


def help_of(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    """One section a command, groups before what is in them."""
    settings = {**command.context_settings, "max_content_width": HELP_WIDTH}
    context = click.Context(command, info_name=name, parent=parent, terminal_width=HELP_WIDTH, **settings)
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from help_of(found, inner, context)


def file(name: str | None) -> str:
    """A file of this repository as a block of code."""
    path = ROOT / str(name)
    language = {".py": "python", ".toml": "toml", ".yaml": "yaml"}[path.suffix]
    return f"```{language}\n{path.read_text(encoding='utf-8')}```\n"


GENERATORS: dict[str, Callable[[str | None], str]] = {
    "hooks": hooks,
    "records": records,
    "plugins": plugins,
    "templates": templates,
    "commands": commands,
    "file": file,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
