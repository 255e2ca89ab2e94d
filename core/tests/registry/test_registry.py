"""What plugins declare and how it is found again: isolation, names, claims, events."""

from __future__ import annotations

import logging
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from graftwork import registry as registry_module
from graftwork.errors import ClashError, PluginError, UnknownNameError
from graftwork.registry import Registry, get_registry, presets, reset_registry
from graftwork.specs import ModelFamily

if TYPE_CHECKING:
    from graftwork.discovery import PluginState

FAMILY = """
@hookimpl
def graftwork_model_families():
    return [ModelFamily(name={name!r}, aliases={aliases!r}, model_types=({model_type!r},), presets={presets})]
"""
GOOD = FAMILY.format(name="Good", aliases=("fine",), model_type="good", presets="()")
TRAINER = """
@hookimpl
def graftwork_trainers():
    return [TrainerSpec(name="T", build=None, schemas=("chat",))]
"""
PRESET = "Preset(name={name!r}, aliases={aliases!r}, model_type='good', values={{}}, num_parameters=1)"


def family(name: str, model_type: str = "", aliases: tuple[str, ...] = (), presets: str = "()") -> str:
    return FAMILY.format(name=name, aliases=aliases, model_type=model_type or name, presets=presets)


def state(registry: Registry, plugin: str) -> PluginState:
    (found,) = [one for one in registry.plugins if one.name == plugin]
    return found


# Isolation: whatever one plugin does, it alone is broken, and the reason says what it was


BREAKAGES = {
    "raises at import": ("raise ValueError('no luck')", "importing fake_graftwork_bad_bad failed: ValueError: no luck"),
    "exits at import": ("raise SystemExit(3)", "SystemExit: 3"),
    "imports what is not there": ("import not_there_at_all", "No module named 'not_there_at_all'"),
    "does not parse": ("def", "SyntaxError"),
    "misspelt hook": (
        "@hookimpl\ndef graftwork_model_familys(): return []",
        "there is no hook graftwork_model_familys; did you mean graftwork_model_families?",
    ),
    "hook without its mark": (
        "def graftwork_trainers(): return []",
        "graftwork_trainers has no @hookimpl, so it would never be called",
    ),
    "unknown argument": (
        "@hookimpl\ndef graftwork_step_finished(run, loss): pass",
        "{'loss'} are declared in the hookimpl but can not be found in the hookspec",
    ),
    "wrapper": (
        "@hookimpl(wrapper=True)\ndef graftwork_trainers(): return (yield)",
        "graftwork_trainers is a wrapper, and here each plugin is called alone",
    ),
    "raises in a hook": (
        "@hookimpl\ndef graftwork_trainers(): return 1 / 0",
        "graftwork_trainers failed: ZeroDivisionError: division by zero",
    ),
    "exits in a hook": (
        "@hookimpl\ndef graftwork_trainers(): raise SystemExit",
        "graftwork_trainers failed: SystemExit",
    ),
    "raises while it yields": (
        "@hookimpl\ndef graftwork_trainers():\n    yield TrainerSpec(name='t', build=None, schemas=())\n    1 / 0",
        "graftwork_trainers failed: ZeroDivisionError",
    ),
    "returns nothing": (
        "@hookimpl\ndef graftwork_trainers(): pass",
        "it must return an iterable of TrainerSpec, and returned NoneType",
    ),
    "returns one record": (
        "@hookimpl\ndef graftwork_trainers(): return TrainerSpec(name='t', build=None, schemas=())",
        "it must return an iterable of TrainerSpec, and returned TrainerSpec",
    ),
    "returns a mapping": (
        "@hookimpl\ndef graftwork_trainers(): return {'t': TrainerSpec(name='t', build=None, schemas=())}",
        "it must return an iterable of TrainerSpec, and returned dict",
    ),
    "wrong record": (
        "@hookimpl\ndef graftwork_trainers(): return [SourceSpec(name='s', fetch=None)]",
        "SourceSpec(name='s', fetch=None, aliases=()) is no TrainerSpec",
    ),
    "text for a tuple": (
        "@hookimpl\ndef graftwork_model_families(): return [ModelFamily(name='f', model_types='llama')]",
        "ModelFamily.model_types must be a tuple, and is 'llama'",
    ),
    "an unknown claim in a set": (
        "@hookimpl\ndef graftwork_chat_templates(): return [ChatTemplate(name='t', path=None, supports=('systm',))]",
        "ChatTemplate.supports cannot be 'systm'; did you mean system? Known: images, system, tools",
    ),
    "text for a set": (
        "@hookimpl\ndef graftwork_chat_templates(): return [ChatTemplate(name='t', path=None, supports='system')]",
        "ChatTemplate.supports must be a set, and is 'system'",
    ),
    "an unknown choice": (
        "@hookimpl\ndef graftwork_chat_templates(): return [ChatTemplate(name='t', path=None, encoding='pieces')]",
        "ChatTemplate.encoding cannot be 'pieces'; known: parts, whole",
    ),
    "an unknown schema": (
        "@hookimpl\ndef graftwork_datasets(): return [DatasetSpec(name='d', open=None, schema='txt')]",
        "DatasetSpec.schema cannot be 'txt'; did you mean text?",
    ),
    "one unknown schema of two": (
        "@hookimpl\ndef graftwork_trainers(): return [TrainerSpec(name='t', build=None, schemas=('chat', 'chats'))]",
        "TrainerSpec.schemas cannot be 'chats'; did you mean chat?",
    ),
    "an unknown feature": (
        "@hookimpl\ndef graftwork_engines():\n"
        "    return [EngineSpec(name='e', build=None, devices=(), features=frozenset({'streams'}))]",
        "EngineSpec.features cannot be 'streams'",
    ),
    "names of nobody": (
        "@hookimpl\ndef graftwork_checkpoint_formats():\n"
        "    return [CheckpointFormat(name='f', sniff=None, open=None, names='hf')]",
        "CheckpointFormat.names cannot be 'hf'",
    ),
    "unusable name": (
        "@hookimpl\ndef graftwork_model_families(): return [ModelFamily(name='a:b')]",
        "'a:b' cannot be the name of a model family: a text without spaces or colons can",
    ),
    "name of two words": (
        "@hookimpl\ndef graftwork_sources(): return [SourceSpec(name='a', aliases=('b c',), fetch=None)]",
        "'b c' cannot be the name of a source: a text without spaces or colons can",
    ),
    "name twice": (
        "@hookimpl\ndef graftwork_sources():\n    yield SourceSpec(name='a', fetch=None)\n"
        "    yield SourceSpec(name='b', aliases=('A',), fetch=None)",
        "the name 'a' is declared twice",
    ),
    "preset twice": (
        family("f", presets=f"({PRESET.format(name='p', aliases=())}, {PRESET.format(name='P', aliases=())})"),
        "the name 'p' is declared twice",
    ),
    "preset of the wrong kind": (family("f", presets="('p',)"), "'p' is no Preset"),
}


@pytest.mark.parametrize(("code", "reason"), BREAKAGES.values(), ids=BREAKAGES.keys())
def test_a_broken_plugin_is_a_row_and_the_others_work(site: Any, code: str, reason: str) -> None:
    site.add("graftwork-bad", code)
    site.add("graftwork-good", GOOD)
    registry = site.registry()
    assert state(registry, "bad").state == "broken"
    assert reason in state(registry, "bad").reason
    assert state(registry, "bad").provides == {}
    assert state(registry, "good").state == "active"
    assert registry.families["good"].name == "Good"


def test_ctrl_c_while_plugins_are_imported_is_not_swallowed(site: Any) -> None:
    site.add("graftwork-bad", "raise KeyboardInterrupt")
    with pytest.raises(KeyboardInterrupt):
        site.registry()


def test_a_failing_hook_takes_everything_of_its_plugin_out_of_use(site: Any) -> None:
    listens = "heard = []\n@hookimpl\ndef graftwork_checkpoint_saved(step): heard.append(step)\n"
    site.add("graftwork-half", GOOD + listens + "@hookimpl\ndef graftwork_trainers(): raise RuntimeError('late')\n")
    registry = site.registry()
    registry.events.checkpoint_saved(None, 1, Path())
    families = registry.families
    assert families["good"].name == "Good"
    assert list(registry.trainers) == []
    with pytest.raises(UnknownNameError, match=r"half \(graftwork-half 1.0\) might, but is broken: graftwork_trainers"):
        families["good"]
    registry.events.checkpoint_saved(None, 2, Path())
    assert sys.modules["fake_graftwork_half_half"].heard == [1]


def test_hooks_are_called_once_and_only_when_their_kind_is_looked_up(site: Any) -> None:
    site.add("graftwork-lazy", "calls = []\n" + GOOD.replace("    return", "    calls.append(1)\n    return"))
    import fake_graftwork_lazy_lazy as lazy  # type: ignore[import-not-found]

    registry = site.registry()
    assert "hf" in registry.sources
    assert lazy.calls == []
    assert "fine" in registry.families
    assert len(registry.plugins) == 2
    assert lazy.calls == [1]


# Names


def test_names_and_aliases_are_found_in_any_case(site: Any) -> None:
    site.add("graftwork-good", GOOD)
    table = site.registry().families
    assert table["GOOD"] is table["Fine"] is table["graftwork_Good:fine"]
    assert "FINE" in table
    assert "bad" not in table
    assert 7 not in table
    assert list(table) == ["generic", "Good"]
    assert len(table) == 2
    assert dict(table.items())["Good"] is table["good"]
    assert table.owner("fine").distribution == "graftwork-good"
    assert table.get_or_none("bad") is None
    assert table.get("bad", 3) == 3


def test_an_unknown_name_suggests_the_nearest_and_says_who_might_have_had_it(site: Any) -> None:
    site.add("graftwork-good", GOOD)
    site.add("graftwork-bad", "raise ImportError('libfoo')")
    site.add("graftwork-off", GOOD)
    site.add("graftwork-new", GOOD, requires=["graftwork>=7"])
    registry = site.registry({"GRAFTWORK_DISABLE_PLUGINS": "off"})
    with pytest.raises(UnknownNameError) as caught:
        registry.families["godo"]
    assert str(caught.value) == (
        "there is no model family 'godo'; did you mean Good? Known: Good, generic. No installed plugin provides it; "
        "`graft plugins` lists what is installed\n"
        "  plugin bad (graftwork-bad 1.0) might, but is broken: "
        "importing fake_graftwork_bad_bad failed: ImportError: libfoo\n"
        "  plugin new (graftwork-new 1.0) might, but is incompatible: it needs graftwork >=7, and this is graftwork "
        "0.1.0; find versions that fit: pip install -U graftwork graftwork-new\n"
        "  blocked plugins might: off (GRAFTWORK_PLUGINS, GRAFTWORK_DISABLE_PLUGINS)"
    )
    assert caught.value.exit_code == 2


def test_an_unknown_name_in_a_distribution_suggests_what_that_one_has(site: Any) -> None:
    site.add("graftwork-good", GOOD)
    with pytest.raises(
        UnknownNameError, match=r"'godo' in distribution 'graftwork-good'; did you mean Good\? Known: Good\."
    ):
        site.registry().families["graftwork-good:godo"]


def test_a_doubly_declared_name_poisons_that_name_alone(site: Any) -> None:
    site.add("graftwork-one", family("same", "one", aliases=("one-too",)))
    site.add("graftwork-two", family("other", "two", aliases=("SAME",)))
    registry = site.registry()
    with pytest.raises(ClashError) as caught:
        registry.families["Same"]
    assert str(caught.value) == (
        "model family 'Same' is declared by plugin one (graftwork-one 1.0) and plugin two (graftwork-two 1.0); "
        "write graftwork-one:same or graftwork-two:other"
    )
    with pytest.raises(ClashError):
        registry.families.get_or_none("same")
    assert "same" not in registry.families
    assert list(registry.families) == ["generic", "other"]
    assert registry.families["graftwork-one:same"].model_types == ("one",)
    assert registry.families["graftwork-two:same"].model_types == ("two",)
    assert registry.families["one-too"].name == "same"
    assert registry.clashes == (str(registry.families.clashes()[0]),)


def test_two_plugins_of_one_distribution_clash_with_another_remedy(site: Any) -> None:
    site.add("graftwork-one", family("same"))
    (site.folder / "fake_more.py").write_text((site.folder / "fake_graftwork_one_one.py").read_text())
    with (site.folder / "graftwork_one-1.0.dist-info" / "entry_points.txt").open("a") as file:
        file.write("more = fake_more\n")
    with pytest.raises(ClashError, match="turn one of the two off with GRAFTWORK_DISABLE_PLUGINS"):
        site.registry().families["same"]


# Families and presets


def test_a_model_is_served_by_the_family_that_claims_it(site: Any) -> None:
    site.add("graftwork-good", GOOD.replace("model_types", "architectures=('GoodForCausalLM',), model_types"))
    registry = site.registry()
    assert registry.family_for("good").name == "Good"
    assert registry.family_for(None, ["GoodForCausalLM"]).name == "Good"
    assert registry.family_for("gpt2", ["GPT2LMHeadModel"]).name == "generic"
    assert registry.family_for(None).name == "generic"


def test_a_doubly_claimed_model_is_an_error_that_shows_how_to_choose(site: Any) -> None:
    site.add("graftwork-one", family("first", "shared"))
    site.add("graftwork-two", family("second", "shared"))
    registry = site.registry()
    with pytest.raises(ClashError) as caught:
        registry.family_for("shared", ["X"])
    assert str(caught.value) == (
        "a model with model_type 'shared', architecture 'X' is claimed by family first of plugin one "
        "(graftwork-one 1.0) and family second of plugin two (graftwork-two 1.0); choose one with "
        "model.family: graftwork-one:first or model.family: graftwork-two:second"
    )
    assert registry.families["graftwork-one:first"].name == "first"
    assert registry.family_for("gpt2").name == "generic"


def test_the_generic_family_stays_reachable_when_another_plugin_uses_its_name(site: Any) -> None:
    site.add("graftwork-one", family("generic", "one"))
    assert site.registry().family_for("gpt2").model_types == ()


def test_serving_generic_says_so_where_a_failed_plugin_may_have_been_meant(
    site: Any, caplog: pytest.LogCaptureFixture
) -> None:
    site.add("graftwork-bad", "raise ImportError")
    registry = site.registry()
    with caplog.at_level(logging.WARNING, "graftwork"):
        registry.family_for("llama")
        registry.family_for("llama")
    (message,) = caplog.messages
    assert "model_type 'llama' is served by the generic family" in message
    assert "bad (graftwork-bad 1.0)" in message


def test_presets_are_found_by_name_with_their_family(site: Any) -> None:
    preset = PRESET.format(name="good_1b", aliases=("good-1b",))
    site.add("graftwork-good", family("Good", "good", presets=f"({preset},)"))
    registry = site.registry()
    assert registry.presets["GOOD-1B"].name == "good_1b"
    assert registry.family_of_preset("good-1b") is registry.families["good"]
    assert state(registry, "good").provides == {"families": ("Good",), "presets": ("good_1b",)}
    with pytest.raises(UnknownNameError, match="there is no preset 'good_2b'; did you mean good_1b"):
        registry.family_of_preset("good_2b")


REFERS = """
@hookimpl
def graftwork_model_families():
    preset = Preset(name="p", model_type="good", values={}, num_parameters=1, chat_template="STABLE")
    maps = {"metta": None, "meta": None}
    return [ModelFamily(name="f", chat_template="stable-chatt", key_maps=maps, presets=(preset,), tokenizer_impl="sp")]
"""
TEMPLATES = """
@hookimpl
def graftwork_chat_templates():
    return [ChatTemplate(name="stable-chat", aliases=("stable",), path=None)]
"""


@pytest.mark.parametrize("names", [("one", "two"), ("two", "one")])
def test_names_of_other_records_that_nobody_has_are_said_in_any_order(site: Any, names: tuple[str, str]) -> None:
    referring, declaring = names
    site.add(f"graftwork-{referring}", REFERS)
    site.add(f"graftwork-{declaring}", TEMPLATES)
    registry = site.registry()
    assert [state(registry, name).state for name in names] == ["active", "active"]
    said = f"plugin {referring} (graftwork-{referring} 1.0): model family 'f': "
    first, second = registry.dangling
    assert first.startswith(
        f"{said}chat_template names 'stable-chatt', and no chat template is called that; did you mean stable-chat? "
    )
    assert second.startswith(
        f"{said}key_maps names 'metta', and no checkpoint format is called that; did you mean meta? "
    )


def test_a_name_that_two_declare_is_no_dangling_one(site: Any) -> None:
    site.add("graftwork-one", REFERS.replace("stable-chatt", "stable-chat").replace("metta", "mistral"))
    site.add("graftwork-two", TEMPLATES)
    assert site.registry().dangling == ()
    site.add("graftwork-three", TEMPLATES)
    assert site.registry().dangling == ()


def test_what_is_shipped_refers_to_what_there_is(process_registry: None) -> None:
    assert get_registry().dangling == ()


# Order


def test_the_order_of_the_path_changes_nothing(site: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.add("graftwork-one", family("same", "one"))
    site.add("graftwork-bad", "raise ImportError", plugin="zzz")
    second = type(site)(tmp_path / "second")
    monkeypatch.syspath_prepend(str(second.folder))
    second.add("graftwork-two", family("same", "two"))
    second.add("graftwork-three", GOOD, plugin="one")
    site.paths.append(str(second.folder))

    def picture(registry: Registry) -> list[Any]:
        rows = [(one.name, one.distribution, one.state, one.reason, dict(one.provides)) for one in registry.plugins]
        return [rows, list(registry.families), list(registry.commands), registry.clashes]

    forwards = picture(site.registry())
    site.paths.reverse()
    assert picture(site.registry()) == forwards
    assert [row[2] for row in forwards[0]] == ["active", "clashing", "clashing", "active", "broken"]


# Events

LISTENER = """
heard = []
@hookimpl
def graftwork_step_finished(step, metrics):
    heard.append((step, metrics))
@hookimpl
def graftwork_run_finished(error):
    heard.append(error)
"""


def test_events_reach_every_listener_with_the_arguments_it_asks_for(site: Any) -> None:
    site.add("graftwork-listen", LISTENER)
    registry = site.registry({"GRAFTWORK_PLUGINS": "listen"})
    import fake_graftwork_listen_listen as listener  # type: ignore[import-not-found]

    registry.events.step_finished(None, 3, {"loss": 1.0})
    failure = RuntimeError("x")
    registry._plugins[0].hooks.clear()  # the core's own listener writes TensorBoard files
    registry.events.run_finished(None, failure)
    assert listener.heard == [(3, {"loss": 1.0}), failure]
    assert state(registry, "listen").provides == {"events": ("run_finished", "step_finished")}


def test_a_failing_listener_is_warned_about_once_per_event(site: Any, caplog: pytest.LogCaptureFixture) -> None:
    site.add("graftwork-bad", "@hookimpl\ndef graftwork_checkpoint_saved(path): raise SystemExit(path)\n")
    site.add("graftwork-good", "heard = []\n@hookimpl\ndef graftwork_checkpoint_saved(step): heard.append(step)\n")
    registry = site.registry()
    with caplog.at_level(logging.WARNING, "graftwork"):
        for step in (1, 2):
            registry.events.checkpoint_saved(None, step, Path("here"))
    import fake_graftwork_good_good as good  # type: ignore[import-not-found]

    assert good.heard == [1, 2]
    assert caplog.messages == [
        "plugin bad (graftwork-bad 1.0) failed in graftwork_checkpoint_saved: SystemExit: here; "
        "the run goes on, and this is said once"
    ]
    assert state(registry, "bad").state == "active"


# The registry of the process


@pytest.fixture
def process_registry() -> Any:
    reset_registry()
    yield
    reset_registry()


def test_the_registry_is_built_once_and_holds_the_core(process_registry: None) -> None:
    registry = get_registry()
    assert get_registry() is registry
    assert isinstance(registry.families["generic"], ModelFamily)
    assert presets() is registry.presets
    assert state(registry, "builtin").distribution == "graftwork"


def test_threads_share_one_registry_and_call_each_hook_once(
    site: Any, process_registry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sleeping for no time hands over to the next thread, in the middle of the hook.
    slow = "    calls.append(1)\n    for _ in range(200): time.sleep(0)\n    return"
    site.add("graftwork-lazy", "import time\ncalls = []\n" + GOOD.replace("    return", slow))
    monkeypatch.setattr(registry_module, "Registry", site.registry)
    with ThreadPoolExecutor(8) as pool:
        registries = list(pool.map(lambda _: get_registry().families["good"] and get_registry(), range(64)))
    import fake_graftwork_lazy_lazy as lazy

    assert len(set(map(id, registries))) == 1
    assert lazy.calls == [1]


def test_a_plugin_that_asks_for_the_registry_while_it_is_built_is_broken(
    site: Any, process_registry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add("graftwork-bad", "from graftwork.registry import get_registry\nget_registry()")
    monkeypatch.setattr(registry_module, "Registry", site.registry)
    assert "the registry was asked for while a plugin is imported" in state(get_registry(), "bad").reason
    assert "hf" in get_registry().sources


def test_a_misspelt_list_is_an_error_unless_the_caller_explains_it(
    process_registry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRAFTWORK_DISABLE_PLUGINS", "bultin")
    assert get_registry(lenient=True).problems
    with pytest.raises(PluginError, match="GRAFTWORK_DISABLE_PLUGINS: no plugin called 'bultin' is installed"):
        get_registry()
