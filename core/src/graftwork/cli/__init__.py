"""The command ``graft``: every command that a plugin declares, imported only when it is run."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from graftwork import __version__
from graftwork.discovery import describe
from graftwork.errors import GraftworkError, MissingExtraError, PluginError, did_you_mean
from graftwork.registry import get_registry
from graftwork.threads import wait_briefly

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# What `graftwork[models]` brings: a command that misses one of these says so.
MODELS_EXTRA = frozenset({"accelerate", "datasets", "numpy", "peft", "safetensors", "torch", "transformers"})
logger = logging.getLogger("graftwork")


class Graft(click.Group):
    """A group whose commands are the registry's."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(get_registry(lenient=True).commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        # `graft plugins` must work where the plugin lists are wrong: it is what explains them.
        commands = get_registry(lenient=cmd_name == "plugins").commands
        spec = commands.get_or_none(cmd_name)
        if spec is None:
            return None
        try:
            command = spec.load()
        except (Exception, SystemExit) as error:
            raise _missing_extra(error) or _failed(cmd_name, describe(error)) from error
        if not isinstance(command, click.Command):
            raise _failed(cmd_name, f"it is a {type(command).__name__}, not a click command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        command = None if name.startswith("-") else self.get_command(ctx, name)
        if command is None and not name.startswith("-"):
            registry = get_registry()
            hint = did_you_mean(name, registry.commands, limit=50)
            raise click.UsageError(f"there is no command {name!r}; {hint}{registry.unavailable()}", ctx)
        return (name, command, args[1:]) if command else super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        registry = get_registry(lenient=True)
        with formatter.section("Commands"):
            formatter.write_dl([(name, spec.help) for name, spec in registry.commands.items()])
        troubles = [*registry.problems, *map(str, registry.commands.clashes())]
        if troubles:
            with formatter.section("Troubles"):
                formatter.write_dl([("!", trouble) for trouble in troubles])

    def invoke(self, ctx: click.Context) -> int:
        """Runs the command. What it returns is for those who call it from Python, never an exit code."""
        from graftwork.notices import own_loggers

        # The plugins' notices go the core's way, from the level that --debug has set by now.
        with _heard([own for own in own_loggers() if own is not logger], logger.level):
            super().invoke(ctx)
        return 0


def _failed(name: str, reason: str) -> PluginError:
    owner = get_registry(lenient=True).commands.owner(name)
    return PluginError(
        f"command {name!r} cannot be loaded: {reason}; it comes from plugin {owner.name} "
        f"({owner.distribution} {owner.version}): reinstall or update that"
    )


def _missing_extra(error: BaseException) -> MissingExtraError | None:
    if not isinstance(error, ModuleNotFoundError) or (error.name or "").partition(".")[0] not in MODELS_EXTRA:
        return None
    return MissingExtraError(f"this needs {error.name}, which is not installed: pip install 'graftwork[models]'")


def _debug(_ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        logger.setLevel(logging.DEBUG)


@click.group(cls=Graft, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="graft", message="%(prog)s %(version)s")
@click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    envvar="GRAFTWORK_DEBUG",
    callback=_debug,
    help="Show tracebacks and debugging notices.",
)
def graft() -> None:
    """Build, fine-tune and ask open language models. Families and methods are plugins: see `graft plugins`."""


def main(args: Sequence[str] | None = None) -> int:
    """Runs ``graft`` and returns its exit code: 0, 1 (the world failed), 2 (the request was wrong), 130 (Ctrl-C),
    143 (SIGTERM), 129 (SIGHUP).
    """
    wait_briefly()
    with _heard([logger], logging.INFO):
        try:
            code: int = graft.main(args=args, prog_name="graft", standalone_mode=False)
            sys.stdout.flush()
        except BrokenPipeError:
            # Python flushes stdout once more on its way out, and would complain there.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (Exception, KeyboardInterrupt) as error:
            logger.debug("%s", type(error).__name__, exc_info=error)
            return _report(error)
    return code


def _report(error: BaseException) -> int:
    """Says what went wrong on stderr, without a traceback, and gives the exit code."""
    from graftwork.launch.once import mine_to_say
    from graftwork.runs.signals import exit_code

    # click turns Ctrl-C into Abort, which is also what a declined question raises.
    for interrupt in (error, error.__context__):
        if isinstance(interrupt, KeyboardInterrupt):
            click.echo("Interrupted.", err=True)
            return exit_code(interrupt)
    if isinstance(error, click.Abort):
        click.echo("Aborted.", err=True)
        return 1
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    known = error if isinstance(error, GraftworkError) else _missing_extra(error)
    advice = "" if known or isinstance(error, OSError) else "\nThis looks like a bug: `graft --debug ...` shows where."
    text = f"Error: {known or describe(error)}{advice}"
    if mine_to_say(text):
        click.echo(text, err=True)
    return known.exit_code if known else 1


class _Plain(logging.Formatter):
    """The bare text of a notice, with the level in front where it is a warning or worse."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


@contextmanager
def _heard(loggers: Sequence[logging.Logger], level: int) -> Iterator[None]:
    """Within the block what these have to say goes to stderr, from ``level`` on."""
    handler: logging.StreamHandler[Any] = logging.StreamHandler()
    handler.setFormatter(_Plain())
    before = [own.level for own in loggers]
    for own in loggers:
        own.addHandler(handler)
        own.setLevel(level)
    try:
        yield
    finally:
        for own, level_before in zip(loggers, before, strict=True):
            own.removeHandler(handler)
            own.setLevel(level_before)
