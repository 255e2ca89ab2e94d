"""Which plugins are installed and may load, before any code of theirs runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from importlib_metadata import Distribution

from graftwork import discovery

if TYPE_CHECKING:
    from graftwork.registry import Registry

EXPLODES = "raise AssertionError('this must not be imported')"
FAMILY = "@hookimpl\ndef graftwork_model_families(): return [ModelFamily(name={!r})]\n"


def states(registry: Registry) -> dict[str, str]:
    return {one.name: one.state for one in registry.plugins}


def reasons(registry: Registry) -> dict[str, str]:
    return {f"{one.distribution}:{one.name}": one.reason for one in registry.plugins if one.reason}


# Allow and deny


@pytest.mark.parametrize(
    ("environ", "active"),
    [
        ({}, {"builtin", "one", "two"}),
        ({"GRAFTWORK_PLUGINS": ""}, {"builtin", "one", "two"}),
        ({"GRAFTWORK_PLUGINS": "one"}, {"builtin", "one"}),
        ({"GRAFTWORK_PLUGINS": " One , graftwork-two "}, {"builtin", "one", "two"}),
        ({"GRAFTWORK_PLUGINS": "builtin"}, {"builtin"}),
        ({"GRAFTWORK_DISABLE_PLUGINS": "two"}, {"builtin", "one"}),
        ({"GRAFTWORK_DISABLE_PLUGINS": "graftwork-two:two"}, {"builtin", "one"}),
        ({"GRAFTWORK_PLUGINS": "one,two", "GRAFTWORK_DISABLE_PLUGINS": "two"}, {"builtin", "one"}),
    ],
)
def test_allow_and_deny_lists(site: Any, environ: dict[str, str], active: set[str]) -> None:
    site.add("graftwork-one")
    site.add("graftwork-two")
    registry = site.registry(environ)
    assert {name for name, state in states(registry).items() if state == "active"} == active
    assert registry.problems == ()


def test_a_blocked_plugin_is_not_imported_and_says_which_list_blocks_it(site: Any) -> None:
    site.add("graftwork-one", EXPLODES)
    site.add("graftwork-two", EXPLODES)
    registry = site.registry({"GRAFTWORK_PLUGINS": "two", "GRAFTWORK_DISABLE_PLUGINS": "two"})
    assert reasons(registry) == {
        "graftwork-one:one": "GRAFTWORK_PLUGINS does not name it",
        "graftwork-two:two": "GRAFTWORK_DISABLE_PLUGINS names it",
    }
    assert {one.import_ms for one in registry.plugins if one.state == "blocked"} == {None}


def test_unknown_names_in_the_lists_are_reported_with_the_nearest(site: Any) -> None:
    site.add("graftwork-llama")
    registry = site.registry({"GRAFTWORK_PLUGINS": "lama", "GRAFTWORK_DISABLE_PLUGINS": "builtin,wandb"})
    assert registry.problems == (
        "GRAFTWORK_PLUGINS: no plugin called 'lama' is installed; did you mean llama? Known: builtin, llama",
        "GRAFTWORK_DISABLE_PLUGINS: no plugin called 'wandb' is installed; known: builtin, llama",
        "GRAFTWORK_DISABLE_PLUGINS: 'builtin' is the core itself and cannot be turned off; take it out of the list",
    )
    assert states(registry)["builtin"] == "active"


# Requirements


@pytest.mark.parametrize(
    ("requires", "state"),
    [
        (["graftwork>=0.1,<0.2"], "active"),
        (["graftwork[models]>=0.1,<0.2", "torch>=99"], "active"),
        (["Graft.Work>=9"], "active"),
        (["GRAFTWORK>=9"], "incompatible"),
        (["graftwork[models]>=0.2"], "incompatible"),
        (["graftwork (<0.1)"], "incompatible"),
        (["graftwork~=0.1.0rc1"], "active"),
        (["graftwork>=9; extra == 'later'"], "active"),
        (["graftwork>=9; python_version < '3'"], "active"),
        (["graftwork>=9; python_version > '3'"], "incompatible"),
        (["graftwork-llama>=9"], "active"),
        (["graftwork>>1"], "broken"),
        ([], "active"),
    ],
)
def test_the_requirement_on_the_core_is_checked(site: Any, requires: list[str], state: str) -> None:
    site.add("graftwork-one", "" if state == "active" else EXPLODES, requires=requires)
    assert states(site.registry())["one"] == state


@pytest.mark.parametrize(
    ("core", "state"), [("0.1.1rc1", "active"), ("0.2.0.dev1", "incompatible"), ("0.1.0+local", "active")]
)
def test_pre_releases_of_the_core_count(site: Any, core: str, state: str) -> None:
    site.add("graftwork-one", requires=["graftwork>=0.1,<0.2"])
    plugins = discovery.installed(Distribution.discover(path=site.paths))
    discovery.sort_out(plugins, {}, core)
    assert plugins[-1].state == state


def test_an_incompatible_plugin_shows_both_versions_and_what_to_do(site: Any) -> None:
    site.add("graftwork-one", EXPLODES, requires=["graftwork>=0.2,<0.3"])
    assert reasons(site.registry())["graftwork-one:one"] == (
        "it needs graftwork <0.3,>=0.2, and this is graftwork 0.1.0; "
        "find versions that fit: pip install -U graftwork graftwork-one"
    )


def test_an_unreadable_requirement_breaks_its_plugin_alone(site: Any) -> None:
    site.add("graftwork-one", EXPLODES, requires=["graftwork>>1"])
    site.add("graftwork-two")
    registry = site.registry()
    assert "its requirement 'graftwork>>1' cannot be read: InvalidRequirement" in reasons(registry)["graftwork-one:one"]
    assert states(registry)["two"] == "active"


# Clashes of plugins


def test_two_distributions_with_one_plugin_name_are_both_set_aside(site: Any) -> None:
    site.add("graftwork-one", EXPLODES, plugin="same")
    site.add("other-one", EXPLODES, plugin="SAME", version="2.0")
    reason = "other-one 2.0 and graftwork-one 1.0 both bring a plugin called {!r}; uninstall one of them, or name one "
    assert reasons(site.registry()) == {
        "graftwork-one:same": reason.format("same") + "distribution in GRAFTWORK_DISABLE_PLUGINS",
        "other-one:SAME": reason.format("SAME") + "distribution in GRAFTWORK_DISABLE_PLUGINS",
    }


def test_naming_one_distribution_in_the_deny_list_resolves_a_clash(site: Any) -> None:
    site.add("graftwork-one", FAMILY.format("one"), plugin="same")
    site.add("other-one", EXPLODES, plugin="same")
    registry = site.registry({"GRAFTWORK_DISABLE_PLUGINS": "other-one"})
    assert [one.state for one in registry.plugins if one.name == "same"] == ["active", "blocked"]
    assert "one" in registry.families


def test_nobody_takes_the_name_of_the_cores_own_plugin(site: Any) -> None:
    site.add("graftwork-evil", EXPLODES, plugin="builtin")
    registry = site.registry()
    assert [(one.distribution, one.state) for one in registry.plugins] == [
        ("graftwork", "active"),
        ("graftwork-evil", "clashing"),
    ]


@pytest.mark.parametrize(
    "stale", [{"info": "egg-info", "version": "0.9"}, {"version": "0.9"}, {"info": "egg-info", "version": "2.0"}]
)
def test_a_stale_description_of_the_same_distribution_is_no_clash(site: Any, stale: dict[str, str]) -> None:
    site.add("graftwork-one", FAMILY.format("one"), version="1.0")
    site.add("graftwork_One", entry_points={"one": "not_there", "gone": "not_there"}, **stale)
    registry = site.registry()
    assert [(one.name, one.version, one.state) for one in registry.plugins[1:]] == [("one", "1.0", "active")]


def test_of_two_installs_the_one_that_an_import_finds_is_shown(site: Any, tmp_path: Any) -> None:
    site.add("graftwork-one", version="1.0")
    later = type(site)(tmp_path / "later")
    later.add("graftwork-one", version="2.0")
    site.paths.append(str(later.folder))
    assert [one.version for one in site.registry().plugins if one.name == "one"] == ["1.0"]


def test_an_egg_info_alone_counts_with_its_requirements(site: Any) -> None:
    site.add("graftwork-one", EXPLODES, info="egg-info")
    (site.folder / "graftwork_one-1.0.egg-info" / "requires.txt").write_text("graftwork>=9\n")
    assert states(site.registry())["one"] == "incompatible"


# Damaged metadata


def test_an_unreadable_entry_points_file_is_a_row(site: Any) -> None:
    site.add("graftwork-one")
    site.add("graftwork-two")
    (site.folder / "graftwork_one-1.0.dist-info" / "entry_points.txt").write_text("[graftwork.plugins]\njunk\n")
    registry = site.registry()
    assert states(registry)["graftwork-one"] == "broken"
    assert "its entry_points.txt in" in reasons(registry)["graftwork-one:graftwork-one"]
    assert "reinstall graftwork-one" in reasons(registry)["graftwork-one:graftwork-one"]
    assert states(registry)["two"] == "active"


def test_metadata_that_is_no_text_is_a_row(site: Any) -> None:
    site.add("graftwork-one")
    (site.folder / "graftwork_one-1.0.dist-info" / "METADATA").write_bytes(b"Name: \xff\xfe")
    registry = site.registry()
    assert states(registry) == {"builtin": "active", "unnamed": "broken"}
    assert f"metadata in {site.folder} cannot be read: UnicodeDecodeError" in reasons(registry)["unnamed:unnamed"]


def test_a_leftover_with_an_unreadable_version_yields(site: Any) -> None:
    site.add("graftwork-one", version="not-a-version")
    site.add("graftwork-one", version="0.1")
    assert [one.version for one in site.registry().plugins if one.name == "one"] == ["0.1"]


def test_metadata_is_read_from_its_head_alone(site: Any) -> None:
    site.add("graftwork-one")
    folder = site.folder / "graftwork_one-1.0.dist-info"
    (folder / "METADATA").write_text(
        "Name: graftwork-one\nVersion: 1.0\nRequires-Dist: graftwork\n >=9\n\nVersion: 2\n"
    )
    (found,) = [one for one in site.registry().plugins if one.name == "one"]
    assert (found.version, found.state) == ("1.0", "incompatible")


def test_what_plugins_cost_is_measured(site: Any) -> None:
    site.add("graftwork-one", "import time; time.perf_counter()")
    (found,) = [one for one in site.registry().plugins if one.name == "one"]
    assert found.import_ms is not None
    assert found.import_ms > 0
