"""Entry module of the Ray plugin: one more command, and nothing heavy."""

from __future__ import annotations

from typing import Any

from graftwork import hookimpl
from graftwork.specs import CommandSpec


def _command() -> Any:
    from graftwork_ray.command import ray_train

    return ray_train


@hookimpl
def graftwork_commands() -> list[CommandSpec]:
    return [CommandSpec(name="ray-train", help="Train on the machines of a Ray cluster.", load=_command)]
