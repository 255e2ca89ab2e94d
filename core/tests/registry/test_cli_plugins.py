"""``graft`` itself and ``graft plugins``: help, names, exit codes, and plugins that fail."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import Any

import pytest

from graftwork import cli
from graftwork import registry as registry_module
from graftwork.cli import main
from graftwork.registry import reset_registry

COMMANDS = """
def _load():
    {load}

@hookimpl
def graftwork_commands():
    return [CommandSpec(name={name!r}, help="Do it.", load=_load)]
"""
RAISES = """
import click
from graftwork import errors

def _load():
    @click.command()
    @click.argument("way")
    def act(way):
        raise eval(way)
    return act

@hookimpl
def graftwork_commands():
    return [CommandSpec(name="act", help="Do it.", load=_load)]
"""


def command(load: str, name: str = "act") -> str:
    return COMMANDS.format(load=load, name=name)


@pytest.fixture(autouse=True)
def over_the_site(site: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets ``graft`` see the test's site, with the environment that monkeypatch made."""
    reset_registry()
    monkeypatch.setattr(registry_module, "Registry", lambda: site.registry(dict(os.environ)))
    monkeypatch.setenv("COLUMNS", "160")
    for variable in ("GRAFTWORK_PLUGINS", "GRAFTWORK_DISABLE_PLUGINS", "GRAFTWORK_DEBUG"):
        monkeypatch.delenv(variable, raising=False)
    yield
    reset_registry()


# Help


def test_help_lists_every_command_and_loads_none(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    site.add("graftwork-act", command("raise AssertionError('loaded')"))
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "act         Do it.\n" in out
    assert "plugins     Show every plugin: its state, what it provides, and why not.\n" in out
    assert "Troubles" not in out


def test_help_survives_every_kind_of_broken_plugin(
    site: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add("graftwork-one", "raise SystemExit(1)")
    site.add("graftwork-two", "@hookimpl\ndef graftwork_commands(): raise OSError\n")
    site.add("graftwork-three", command("return None", "twin"))
    site.add("graftwork-four", command("return None", "twin"))
    monkeypatch.setenv("GRAFTWORK_DISABLE_PLUGINS", "nobody")
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "quickstart" in out
    assert "GRAFTWORK_DISABLE_PLUGINS: no plugin called 'nobody' is installed" in out
    assert "write graftwork-four:twin or graftwork-three:twin" in " ".join(out.split())


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == "graft 0.1.0\n"


# Names of commands


def test_an_unknown_command_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugin"]) == 2
    err = capsys.readouterr().err
    assert "Error: there is no command 'plugin'; did you mean plugins? Known: audit, cat, chat, check, config" in err
    assert "Traceback" not in err


def test_an_unknown_option_is_clicks_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--vershun"]) == 2
    assert "No such option" in capsys.readouterr().err


def test_clashing_commands_are_chosen_by_distribution(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    act = "import click; return click.Command('act', callback=lambda: click.echo({!r}))"
    site.add("graftwork-one", command(act.format("from one")))
    site.add("graftwork-two", command(act.format("from two")))
    assert main(["act"]) == 2
    assert "command 'act' is declared by plugin one (graftwork-one 1.0) and plugin two" in capsys.readouterr().err
    assert main(["graftwork-two:ACT"]) == 0
    assert capsys.readouterr().out == "from two\n"


# Failures and exit codes


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (
            "raise ValueError('no luck')",
            "command 'act' cannot be loaded: ValueError: no luck; it comes from",
        ),
        ("raise SystemExit(0)", "command 'act' cannot be loaded: SystemExit: 0"),
        ("return 3", "command 'act' cannot be loaded: it is a int, not a click command"),
        (
            "raise ModuleNotFoundError('x', name='torch.nn')",
            "this needs torch.nn, which is not installed: pip install 'graftwork[models]'",
        ),
    ],
)
def test_a_command_that_cannot_be_loaded(
    site: Any, capsys: pytest.CaptureFixture[str], load: str, message: str
) -> None:
    site.add("graftwork-act", command(load))
    assert main(["act"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("way", "code", "message"),
    [
        ("errors.RunError('the disk is full')", 1, "Error: the disk is full\n"),
        ("errors.DataError('row 3: no')", 2, "Error: row 3: no\n"),
        ("OSError(28, 'No space left on device', 'x')", 1, "No space left on device: 'x'\n"),
        ("KeyError('x')", 1, "Error: KeyError: 'x'\nThis looks like a bug: `graft --debug ...` shows where.\n"),
        ("KeyboardInterrupt()", 130, "Interrupted.\n"),
        ("click.Abort()", 1, "Aborted.\n"),
        ("click.UsageError('bad')", 2, "Error: bad\n"),
        ("ModuleNotFoundError('x', name='peft.tuners')", 2, "pip install 'graftwork[models]'\n"),
    ],
)
def test_errors_are_one_message_and_an_exit_code(
    site: Any, capsys: pytest.CaptureFixture[str], way: str, code: int, message: str
) -> None:
    site.add("graftwork-act", RAISES)
    assert main(["act", way]) == code
    captured = capsys.readouterr()
    assert captured.err.endswith(message)
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("how", ["option", "environment"])
def test_debug_shows_the_traceback(
    site: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    site.add("graftwork-act", RAISES)
    if how == "environment":
        monkeypatch.setenv("GRAFTWORK_DEBUG", "1")
    assert main([*(["--debug"] if how == "option" else []), "act", "errors.DataError('row 3')"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last):" in err
    assert err.endswith("Error: row 3\n")


def test_the_value_a_command_returns_is_no_exit_code(site: Any) -> None:
    site.add("graftwork-act", command("import click; return click.Command('act', callback=lambda: 7)"))
    assert main(["act"]) == 0


def test_an_exit_code_that_a_command_asks_for_is_kept(site: Any) -> None:
    site.add(
        "graftwork-act",
        command("import click; return click.Command('act', callback=lambda: click.get_current_context().exit(5))"),
    )
    assert main(["act"]) == 5


def test_notices_are_plain_lines_on_stderr(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    site.add(
        "graftwork-act",
        command(
            "import click, logging\n"
            "    log = logging.getLogger('graftwork.somewhere')\n"
            "    def run():\n"
            "        log.debug('hidden'); log.info('saved to %s', 'x'); log.warning('odd')\n"
            "    return click.Command('act', callback=run)"
        ),
    )
    before = list(cli.logger.handlers), cli.logger.level
    assert main(["act"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "saved to x\nwarning: odd\n")
    assert (list(cli.logger.handlers), cli.logger.level) == before
    assert logging.getLogger().handlers is not cli.logger.handlers


@pytest.mark.parametrize(("options", "more"), [([], ""), (["--debug"], "how\n")])
def test_a_plugin_is_heard_as_the_core_is(
    site: Any, capsys: pytest.CaptureFixture[str], options: list[str], more: str
) -> None:
    """And nobody else: what a library has to say is not graftwork's."""
    site.add(
        "graftwork-act",
        command(
            "import click, logging\n"
            "    log = logging.getLogger(f'{__name__}.inner')\n"
            "    def run():\n"
            "        log.info('once'); log.debug('how'); log.warning('odd')\n"
            "        logging.getLogger('somelibrary').info('chatter')\n"
            "    return click.Command('act', callback=run)"
        ),
    )
    assert main([*options, "act"]) == 0
    assert capsys.readouterr().err == f"once\n{more}warning: odd\n"
    from graftwork.notices import own_loggers

    assert {"graftwork"} < {own.name for own in own_loggers()}
    assert not any(own.handlers for own in own_loggers())


@pytest.mark.parametrize("way", ["pass", "cli.graft.invoke = lambda ctx: print('flushed by main')"])
def test_a_closed_pipe_ends_quietly(way: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code = f"import sys; from graftwork import cli; {way}; sys.exit(cli.main(['plugins']))"
    # Buffered, as a terminal user's Python is: only then is there something left to flush on the way out.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run([sys.executable, "-c", code], stdout=writing, stderr=subprocess.PIPE, env=env, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, b"")


# graft plugins


def test_plugins_prints_a_row_for_each_and_the_reasons(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    site.add("graftwork-act", command("return None"))
    site.add("graftwork-bad", "raise ImportError('libfoo')")
    site.add("graftwork-new", requires=["graftwork>=7"], version="7.1")
    assert main(["plugins"]) == 0
    table, *troubles = capsys.readouterr().out.split("\n\n")
    rows = {line.split()[0]: line.split() for line in table.splitlines() if not line.startswith(" ")}
    assert rows["name"] == ["name", "distribution", "version", "state", "import", "ms", "provides"]
    assert rows["act"][:4] == ["act", "graftwork-act", "1.0", "active"]
    assert float(rows["act"][4]) >= 0
    assert rows["act"][5:] == ["command", "act"]
    assert rows["bad"][3] == "broken"
    assert rows["new"] == ["new", "graftwork-new", "7.1", "incompatible", "-", "-"]
    assert " commands; sources hf, file, https; model family generic; " in " ".join(table.split())
    assert troubles[0].startswith("bad (graftwork-bad 1.0) is broken: importing fake_graftwork_bad_bad failed")
    assert troubles[1].startswith("new (graftwork-new 7.1) is incompatible: it needs graftwork >=7")
    assert troubles[2].startswith("`graft --debug plugins` shows where")


def test_plugins_explains_clashes_and_wrong_lists(
    site: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add("graftwork-one", command("return None", "twin"))
    site.add("graftwork-two", command("return None", "twin"))
    monkeypatch.setenv("GRAFTWORK_PLUGINS", "one,two,tow")
    assert main(["plugins"]) == 0
    out = capsys.readouterr().out
    assert "command 'twin' is declared by plugin one (graftwork-one 1.0) and plugin two (graftwork-two 1.0)" in out
    assert "GRAFTWORK_PLUGINS: no plugin called 'tow' is installed; did you mean two?" in out
    assert main(["twin"]) == 2
    assert capsys.readouterr().err.startswith("Error: GRAFTWORK_PLUGINS: no plugin called 'tow'")


def test_plugins_says_which_names_are_nobodys(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    family = "@hookimpl\ndef graftwork_model_families(): return [ModelFamily(name='f', chat_template='chatmll')]"
    site.add("graftwork-one", family)
    said = "plugin one (graftwork-one 1.0): model family 'f': chat_template names 'chatmll', and no chat template"
    assert main(["plugins"]) == 0
    assert f"\n\n{said} is called that; did you mean chatml? " in capsys.readouterr().out
    assert main(["plugins", "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)["dangling"]
    assert line.startswith(said)


def test_plugins_as_json(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    site.add("graftwork-bad", "raise ImportError('libfoo')")
    assert main(["plugins", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["problems"] == document["clashes"] == []
    bad, builtin = document["plugins"]
    assert bad["state"] == "broken"
    assert "libfoo" in bad["reason"]
    assert builtin["provides"]["families"] == ["generic"]
    assert builtin["reason"] == ""
    assert set(builtin) == {"name", "distribution", "version", "state", "reason", "provides", "import_ms"}


def test_debug_shows_where_a_plugin_broke(site: Any, capsys: pytest.CaptureFixture[str]) -> None:
    site.add("graftwork-bad", "raise ImportError('libfoo')")
    assert main(["--debug", "plugins"]) == 0
    err = capsys.readouterr().err
    assert "fake_graftwork_bad_bad.py" in err
    assert "ImportError: libfoo" in err
