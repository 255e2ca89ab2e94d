"""A run folder as the report needs it. Whatever is missing or half-written is left out: a report about a run
that broke is when one is needed most.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from pathlib import Path

    from graftwork.runs.curves import Point


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What is on the disk: ``info`` is run.json, ``train`` and ``evaluations`` the lines of metrics.jsonl."""

    folder: Path
    info: Mapping[str, Any]
    config: Mapping[str, Any]
    config_text: str
    train: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    samples: list[dict[str, Any]]

    def setting(self, path: str, default: Any = None) -> Any:
        """The value at a dotted path of the configuration."""
        return lookup(self.config, path, default)

    def curve(self, name: str) -> list[Point]:
        """A training metric over the steps."""
        return points(self.train, name)


def read_run(folder: Path) -> RunRecord:
    """Reads what there is in ``folder``."""
    rows = [row for row in json_lines(folder / "metrics.jsonl") if isinstance(row.get("step"), int)]
    text = _text(folder / "config.yaml")
    return RunRecord(
        folder=folder,
        info=_json_object(folder / "run.json"),
        config=_yaml_object(text),
        config_text=text,
        train=[row for row in rows if "loss" in row],
        evaluations=[row for row in rows if "eval_loss" in row],
        samples=[row for row in json_lines(folder / "samples.jsonl") if "prompt" in row],
    )


def lookup(tree: Any, path: str, default: Any = None) -> Any:
    """The value at a dotted path of nested mappings; ``default`` where there is none, or None."""
    for part in path.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return default if tree is None else tree


def points(rows: list[dict[str, Any]], name: str) -> list[Point]:
    """The rows' numbers called ``name``, NaN and infinity included."""
    return [(row["step"], float(row[name])) for row in rows if is_number(row.get(name))]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON lines file; a line that was cut off is passed over."""
    for line in _text(path).split("\n"):  # splitlines would also split at U+2028 inside a string
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_text(path) or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _yaml_object(text: str) -> dict[str, Any]:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return value if isinstance(value, dict) else {}


def _text(path: Path) -> str:
    return path.read_text("utf-8", errors="replace") if path.is_file() else ""
