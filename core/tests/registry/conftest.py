"""A site of made-up distributions, so that the registry can be tried on any set of plugins."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
from importlib_metadata import Distribution

from graftwork.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

CORE_ENTRY_POINT = {"builtin": "graftwork.builtin"}


class Site:
    """A folder on ``sys.path`` into which distributions are put, and the registry over what lies there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.paths = [str(folder)]

    def add(
        self,
        name: str,
        code: str = "",
        *,
        plugin: str | None = None,
        version: str = "1.0",
        requires: Sequence[str] = (),
        entry_points: Mapping[str, str] | None = None,
        info: str = "dist-info",
    ) -> None:
        """Installs a distribution with one plugin whose entry module holds ``code``.

        ``entry_points`` (plugin name to object reference) stands in for that one; ``info`` is ``dist-info`` or
        ``egg-info``.
        """
        plugin = plugin or name.removeprefix("graftwork-")
        module = f"fake_{name}_{plugin}".replace("-", "_")
        if entry_points is None:
            head = "from graftwork import hookimpl\nfrom graftwork.specs import *\n"
            (self.folder / f"{module}.py").write_text(head + code, encoding="utf-8")
        self._describe(name, version, requires, entry_points or {plugin: module}, info)

    def _describe(
        self, name: str, version: str, requires: Sequence[str], entry_points: Mapping[str, str], info: str
    ) -> None:
        folder = self.folder / f"{name.replace('-', '_')}-{version}.{info}"
        folder.mkdir()
        head = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        head += [f"Requires-Dist: {requirement}" for requirement in requires]
        metadata = "METADATA" if info == "dist-info" else "PKG-INFO"
        (folder / metadata).write_text("\n".join(head) + "\n\nA README.\nName: not-this-one\n", encoding="utf-8")
        lines = ["[graftwork.plugins]", *(f"{plugin} = {value}" for plugin, value in entry_points.items())]
        (folder / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def registry(self, environ: Mapping[str, str] | None = None) -> Registry:
        return Registry(Distribution.discover(path=self.paths), environ or {})


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An empty site with nothing but the core's own plugin in it."""
    before = set(sys.modules)
    site = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(str(site.folder))
    site.add("graftwork", version="0.1.0", entry_points=CORE_ENTRY_POINT)
    yield site
    for module in set(sys.modules) - before:
        if module.startswith("fake_"):
            del sys.modules[module]
