"""Mistakes that no single field shows: settings that contradict each other, files that are not there."""

from __future__ import annotations

from graftwork.config.names import check_names, plugin_params
from graftwork.config.origins import Origins
from graftwork.config.problems import Problem
from graftwork.config.run import RunConfig


def check_all(config: RunConfig, origins: Origins) -> list[Problem]:
    return [*check_names(config)]


__all__ = ["check_all", "plugin_params"]
