"""The command ``graft``: every command that a plugin declares, imported only when it is run."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from graftwork import __version__
from graftwork.errors import GraftworkError, MissingExtraError, PluginError, did_you_mean
from graftwork.registry import get_registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

INTERRUPTED = 130
MODELS_EXTRA = frozenset({"accelerate", "datasets", "numpy", "peft", "safetensors", "torch", "transformers"})


class Graft(click.Group):
    """A group whose commands are the registry's."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(get_registry().commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        commands = get_registry().commands
        spec = commands.get_or_none(cmd_name)
        if spec is None:
            return None
        try:
            loaded = spec.load()
        except (Exception, SystemExit) as error:
            raise _unloadable(cmd_name, error) from error
        if not isinstance(loaded, click.Command):
            raise PluginError(f"command {cmd_name!r} of plugin {commands.owner(cmd_name).name} is no click command")
        return loaded

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        registry = get_registry()
        if registry.problems and args[0] != "plugins":
            raise PluginError("\n".join(registry.problems))
        if not args[0].startswith("-") and registry.commands.get_or_none(args[0]) is None:
            hint = did_you_mean(args[0], registry.commands, limit=50)
            raise click.UsageError(f"There is no command {args[0]!r}; {hint}{registry.unavailable()}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        commands = get_registry().commands
        with formatter.section("Commands"):
            formatter.write_dl([(name, spec.help) for name, spec in commands.items()])

    def invoke(self, ctx: click.Context) -> int:
        """Runs the command. What it returns is for those who call it from Python, never an exit code."""
        super().invoke(ctx)
        return 0


def _unloadable(name: str, error: BaseException) -> GraftworkError:
    missing = _missing_extra(error)
    if missing:
        return missing
    owner = get_registry().commands.owner(name)
    return PluginError(
        f"command {name!r} of plugin {owner.name} ({owner.distribution} {owner.version}) could not be loaded: "
        f"{type(error).__name__}: {error}"
    )


def _missing_extra(error: BaseException) -> MissingExtraError | None:
    if not isinstance(error, ModuleNotFoundError) or (error.name or "").partition(".")[0] not in MODELS_EXTRA:
        return None
    return MissingExtraError(f"this needs {error.name}, which is not installed; run: pip install 'graftwork[models]'")


@click.group(cls=Graft, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="graft", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, envvar="GRAFTWORK_DEBUG", help="Show tracebacks and debugging notices.")
def graft(debug: bool) -> None:
    """Build, fine-tune and ask open language models. Families and methods are plugins: `graft plugins`."""
    if debug:
        logging.getLogger("graftwork").setLevel(logging.DEBUG)


def main(args: Sequence[str] | None = None) -> int:
    """Runs ``graft`` and returns its exit code: 0, 1 (the world failed), 2 (the request was wrong), 130."""
    with _notices():
        try:
            code = graft.main(args=args, prog_name="graft", standalone_mode=False)
            sys.stdout.flush()
        except BrokenPipeError:
            # Python flushes stdout once more on its way out, and would complain there.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (Exception, KeyboardInterrupt) as error:
            if logging.getLogger("graftwork").isEnabledFor(logging.DEBUG):
                logging.getLogger("graftwork").debug("traceback", exc_info=error)
            return _report(error)
    return int(code)


def _report(error: BaseException) -> int:
    """Says what went wrong on stderr, without a traceback, and gives the exit code."""
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return INTERRUPTED
    if isinstance(error, click.ClickException):
        error.show()
        return error.exit_code
    known = error if isinstance(error, GraftworkError) else _missing_extra(error)
    if known:
        click.echo(f"Error: {known}", err=True)
        return known.exit_code
    hint = "" if isinstance(error, OSError) else "\nThis looks like a bug; `graft --debug ...` shows where."
    click.echo(f"Error: {type(error).__name__}: {error}{hint}", err=True)
    return 1


class _Plain(logging.Formatter):
    """One line a notice: the bare text, with the level in front where it is a warning or worse."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return f"{record.levelname.lower()}: {text}" if record.levelno >= logging.WARNING else text


@contextmanager
def _notices() -> Iterator[None]:
    """While a command runs, what the library has to say goes to stderr."""
    logger = logging.getLogger("graftwork")
    handler: logging.StreamHandler[Any] = logging.StreamHandler()
    handler.setFormatter(_Plain())
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
