"""YAML as people mean it: equal keys are mistakes, only true and false are booleans, 1e-5 is a number.

Both differ from what PyYAML does by itself, which reads YAML 1.1 and keeps the last of two equal keys.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from graftwork.config.fields import canonical, model_at
from graftwork.config.origins import Origin, Origins, Path
from graftwork.config.problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pydantic import BaseModel

_CORE = "tag:yaml.org,2002:"
_MERGE = f"{_CORE}merge"
_KNOWN_TAGS = ("str", "null", "bool", "int", "float", "merge", "seq", "map")
_MOST_VALUES = 100_000
_SCALARS = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """PyYAML's table: by the first character of a scalar, the tags that it may have."""
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for kind, pattern, first in _SCALARS:
        for character in first:
            table.setdefault(character, []).append((f"{_CORE}{kind}", re.compile(f"(?:{pattern})$")))
    return table


class CoreSchema(yaml.SafeLoader):
    """A loader that tags plain scalars as the core schema of YAML 1.2 does."""

    yaml_implicit_resolvers = _resolvers()


def _scalar(node: ScalarNode) -> Any:
    text = node.value
    kind = node.tag.removeprefix(_CORE)
    if kind == "null":
        return None
    if kind == "bool":
        return text.casefold() == "true"
    if kind == "int":
        return int(text, 0) if text[:2].casefold() in ("0o", "0x") else int(text)
    if kind == "float":
        return float(re.sub(r"\.(?=inf|nan)", "", text.casefold()))
    return text


def parse_value(text: str) -> Any:
    """The value that ``text`` has as a YAML scalar or flow collection; raises ``yaml.YAMLError``."""
    value, reader = read_yaml(text, "", None)
    if reader.problems:
        raise yaml.YAMLError(reader.problems[0].text)
    return value


class Reader:
    """Builds plain data from the nodes of one document, and notes lines and mistakes on the way.

    Keys of known sections are stored under the field's own name, so that an alias in the file and the
    field's name on the command line are one setting.
    """

    def __init__(self, source: str, model: type[BaseModel] | None) -> None:
        self.source = source
        self.model = model
        self.origins = Origins()
        self.problems: list[Problem] = []
        self._open: list[Node] = []
        self._count = 0

    def value(self, node: Node, path: Path) -> Any:
        """The data of a node. Raises ``yaml.YAMLError`` where anchors multiply it beyond all measure."""
        self._tally(1)
        if node.tag.removeprefix(_CORE) not in _KNOWN_TAGS:
            self._complain(node, path, f"the tag {node.tag} is not allowed; a configuration is plain data")
            return None
        if isinstance(node, ScalarNode):
            return self._scalar(node, path)
        if node in self._open:
            self._complain(node, path, f"the anchor at line {node.start_mark.line + 1} contains itself")
            return None
        self._open.append(node)
        value = self._items(node, path) if isinstance(node, SequenceNode) else self._mapping(node, path)
        self._open.pop()
        return value

    def _tally(self, count: int) -> None:
        self._count += count
        if self._count > _MOST_VALUES:
            raise yaml.YAMLError(f"more than {_MOST_VALUES:,} values; do its anchors repeat each other?")

    def _scalar(self, node: ScalarNode, path: Path) -> Any:
        try:
            return _scalar(node)
        except ValueError:
            self._complain(node, path, f"{node.value!r} does not fit its tag {node.tag}")
            return None

    def _items(self, node: SequenceNode, path: Path) -> list[Any]:
        for index, item in enumerate(node.value):
            self.origins.add((*path, index), self._origin(item))
        return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]

    def _mapping(self, node: Node, path: Path) -> dict[str, Any]:
        section = model_at(self.model, path) if self.model else None
        result: dict[str, Any] = {}
        seen: dict[str, tuple[str, Node]] = {}
        merged: list[tuple[Node, Node]] = []
        for key, item in self._pairs(node, path):
            if key.tag == _MERGE:
                merged.extend(self._merged(item, path))
                continue
            name = canonical(section, key.value)
            if name in seen:
                self._duplicate((*path, name), seen[name], key)
                continue
            seen[name] = (key.value, key)
            self._put(result, name, key, item, path)
        self._put_merged(result, merged, section, path)
        return result

    def _pairs(self, node: Node, path: Path) -> Iterator[tuple[ScalarNode, Node]]:
        for key, item in node.value:
            if isinstance(key, ScalarNode):
                yield key, item
            else:
                self._complain(key, path, "a key must be a single word")

    def _merged(self, node: Node, path: Path) -> list[tuple[Node, Node]]:
        """The pairs that ``<<`` brings, those of an earlier mapping first; they count less than own ones."""
        nodes = node.value if isinstance(node, SequenceNode) else [node]
        pairs: list[tuple[Node, Node]] = []
        for one in nodes:
            if not isinstance(one, MappingNode) or one in self._open:
                self._complain(one, path, "<< takes a mapping, or a list of mappings")
                continue
            self._open.append(one)
            for key, item in self._pairs(one, path):
                pairs.extend(self._merged(item, path) if key.tag == _MERGE else [(key, item)])
            self._open.pop()
        self._tally(len(pairs))
        return pairs

    def _put_merged(
        self, result: dict[str, Any], pairs: list[tuple[Node, Node]], section: type[BaseModel] | None, path: Path
    ) -> None:
        for key, item in pairs:
            name = canonical(section, key.value)
            if name not in result:
                self._put(result, name, key, item, path)

    def _put(self, result: dict[str, Any], name: str, key: Node, item: Node, path: Path) -> None:
        self.origins.add((*path, name), self._origin(key))
        result[name] = self.value(item, (*path, name))

    def _duplicate(self, path: Path, first: tuple[str, Node], second: ScalarNode) -> None:
        spelling, node = first
        lines = f"lines {node.start_mark.line + 1} and {second.start_mark.line + 1}"
        spellings = "" if spelling == second.value else f" (as {spelling} and {second.value}, which are one setting)"
        self._complain(second, path, f"written twice, at {lines}{spellings}; keep one")

    def _complain(self, node: Node, path: Path, text: str) -> None:
        self.problems.append(Problem(path=path or ("<top>",), text=text, origin=self._origin(node)))

    def _origin(self, node: Node) -> Origin:
        return Origin(self.source, node.start_mark.line + 1)


def read_yaml(text: str, source: str, model: type[BaseModel] | None) -> tuple[Any, Reader]:
    """The data of a document and the reader that knows its lines; raises ``yaml.YAMLError`` on bad syntax."""
    reader = Reader(source, model)
    try:
        node = yaml.compose(text, Loader=CoreSchema)
        return (reader.value(node, ()) if node is not None else None), reader
    except RecursionError:
        raise yaml.YAMLError("too many blocks within blocks") from None
