"""The words of a command that takes a configuration and overrides of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graftwork.errors import UsageError, nearest

if TYPE_CHECKING:
    import click


def configuration(ctx: click.Context, path: str | None, words: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    """The file and the overrides: without ``-c`` the file is the first word.

    Raises :class:`UsageError` where there is none, and where a word is nearly one of the command's own options.
    """
    refuse_misspelt(ctx, words)
    if path is not None:
        return path, words
    first = words[0] if words else ""
    if not first or first.startswith("-") or "=" in first:
        hint = "(graft recipes ls shows some to begin with)"
        raise UsageError(f"no configuration: {ctx.command_path} -c run.yaml {hint}")
    return first, words[1:]


def refuse_misspelt(ctx: click.Context, words: tuple[str, ...]) -> None:
    """``--resum`` is no setting, though everything unknown that begins with ``--`` is taken for one."""
    from graftwork.config import RunConfig
    from graftwork.config.elsewhere import meant_by
    from graftwork.config.fields import known_names, section_fields

    given = [word.partition("=")[0].removeprefix("--") for word in words if word.startswith("--")]
    options = {name.removeprefix("--") for param in ctx.command.get_params(ctx) for name in param.opts}
    settings = [*known_names(RunConfig), *section_fields(RunConfig)]
    for name in given:
        if "." in name or meant_by(name):
            continue
        near = nearest(name, [*options, *(setting.replace("_", "-") for setting in settings)])
        if near in options:
            raise UsageError(f"there is no option --{name}; did you mean --{near}? {ctx.command_path} --help lists all")
