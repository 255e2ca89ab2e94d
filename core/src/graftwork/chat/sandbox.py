"""Jinja as chat templates expect it: what transformers offers them, in a sandbox, with ``{% generation %}``.

The environment has the settings, filters and globals that templates on the Hub are written against
(trim_blocks, ``raise_exception``, ``strftime_now``, ``tojson``, loop controls), so that the text is the same.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace, pass_context

from graftwork.chat import limits
from graftwork.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jinja2.parser import Parser
    from jinja2.runtime import Context, Macro


class _Generation(Extension):
    """Notes where the text of each ``{% generation %}`` block begins, as the pieces before it have been yielded."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_note"), [], [], body).set_lineno(line)

    def _note(self, caller: Macro) -> str:
        text = str(caller())
        rendering = limits.CURRENT.get()
        if rendering is not None:
            rendering.spans.append((rendering.length, text))
        return text


class PlainNamespace(Namespace):
    """Jinja's ``namespace`` without underscore names, which lead out of the sandbox."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _refuse_private(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


class Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
        """The syntax tree, with every loop counted and every ``~`` measured."""
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            loop.iter = nodes.Filter(loop.iter, "_watch", [], [], None, None, lineno=loop.lineno)
        return _measure_concats(tree)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        limits.check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        limits.tick()
        name = "." + getattr(__obj, "__name__", "")
        args = limits.held(name, args)
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        subject = getattr(method, "__self__", args[0] if args else None)
        limits.check_call(name, subject, [*args, *kwargs.values()])
        return super().call(__context, __obj, *args, **kwargs)


class _TracedEnvironment(Environment):
    """Notes every output and every item of a loop as it comes."""

    def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
        tree = super()._parse(source, name, filename)
        for output in _straight_outputs(tree):
            output.nodes = [_noted(node) for node in output.nodes]
        _note_loops(tree)
        return tree


def render(source: str, variables: Mapping[str, Any]) -> tuple[str, list[tuple[int, str]]]:
    """The text, and for each ``{% generation %}`` block where it begins in it and its own text.

    A block whose output a macro or a filter held back does not lie where it is said to: the caller compares.
    Raises what Jinja raises, and :class:`~graftwork.chat.limits.TemplateLimitError`.
    """
    text, rendering = rendered(compiled(source), variables)
    return text, rendering.spans


def trace(source: str, variables: Mapping[str, Any]) -> tuple[str, limits.Rendering]:
    """As :func:`render`, with all that a traced rendering notes."""
    return rendered(compiled(source, traced=True), variables)


def rendered(
    template: jinja2.Template, variables: Mapping[str, Any], rendering: limits.Rendering | None = None
) -> tuple[str, limits.Rendering]:
    """The text, and what was noted in ``rendering``."""
    rendering = rendering or limits.Rendering()
    token = limits.CURRENT.set(rendering)
    pieces = []
    try:
        for piece in template.generate(variables):
            pieces.append(piece)
            rendering.length += len(piece)
            limits.measured(rendering.length)
    finally:
        limits.CURRENT.reset(token)
    return "".join(pieces), rendering


@lru_cache(maxsize=64)
def compiled(source: str, traced: bool = False) -> jinja2.Template:
    """The compiled template; raises :class:`UsageError` with the line where its syntax is wrong, or with what else
    keeps it from being compiled.
    """
    try:
        template: jinja2.Template = _environment(traced).from_string(source)
        return template
    except jinja2.TemplateSyntaxError as error:
        lines = source.splitlines()
        line = lines[error.lineno - 1].strip() if 0 < error.lineno <= len(lines) else ""
        raise UsageError(
            f"the chat template is not valid Jinja: line {error.lineno}: {error.message}: {line[:80]!r}; mend that line"
        ) from None
    except (UsageError, MemoryError):
        raise
    except Exception as error:  # Python's own compiler, on what Jinja made of it
        what = str(error).partition(" (<template>")[0]
        raise UsageError(f"the chat template cannot be compiled: {type(error).__name__}: {what}; mend it") from None


@lru_cache(maxsize=2)
def _environment(traced: bool) -> Environment:
    kind = _TracedEnvironment if traced else Environment
    environment = kind(**SETTINGS, finalize=limits.emitted)
    furnish(environment)
    return environment


SETTINGS: Mapping[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "extensions": (_Generation, loopcontrols)}


def furnish(environment: Environment) -> None:
    """Gives the environment the filters and globals that templates are written against, each within its limits."""
    environment.filters = {name: limits.guarded(name, function) for name, function in environment.filters.items()}
    environment.filters["tojson"] = limits.guarded("tojson", _tojson)
    environment.filters["from_json"] = limits.guarded("from_json", _from_json)
    environment.filters["_watch"] = limits.watch
    environment.filters["_concat"] = limits.join_texts
    environment.filters["_written"] = _written
    environment.filters["_visited"] = _visited
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = strftime_now
    environment.globals["dict"] = _plain_dict
    environment.globals["namespace"] = PlainNamespace
    del environment.globals["lipsum"]  # text of any length


def _measure_concats(tree: Any) -> Any:
    for node in tree.iter_child_nodes():
        _measure_concats(node)
    for field, value in tree.iter_fields():
        if isinstance(value, nodes.Concat):
            setattr(tree, field, _measured_concat(value))
        elif isinstance(value, list):
            value[:] = [_measured_concat(item) if isinstance(item, nodes.Concat) else item for item in value]
    return tree


def _measured_concat(node: nodes.Concat) -> nodes.Filter:
    return nodes.Filter(nodes.List(node.nodes), "_concat", [], [], None, None, lineno=node.lineno)


def _straight_outputs(node: nodes.Node) -> Iterator[nodes.Output]:
    """What is written to the text as it comes: no macro, filter or ``{% set %}`` block holds it back."""
    for child in node.iter_child_nodes():
        if isinstance(child, nodes.Output):
            yield child
        elif not isinstance(child, (nodes.Macro, nodes.AssignBlock, nodes.FilterBlock)):
            yield from _straight_outputs(child)


def _noted(node: nodes.Expr) -> nodes.Expr:
    kind = "markup" if _is_markup(node) else "content"
    if isinstance(node, nodes.TemplateData):
        node, kind = nodes.Const(node.data), "literal"
    return nodes.Filter(node, "_written", [nodes.Const(kind)], [], None, None, lineno=node.lineno)


def _is_markup(node: nodes.Node) -> bool:
    """Whether the output is the template's own text: a constant, a special token, or a choice between such."""
    if isinstance(node, nodes.CondExpr):
        return _is_markup(node.expr1) and (node.expr2 is None or _is_markup(node.expr2))
    return all(
        name.name.endswith("_token") for name in (node, *node.find_all(nodes.Name)) if isinstance(name, nodes.Name)
    )


def _note_loops(tree: nodes.Node) -> None:
    """Has each loop note the item that it takes up, and that it is over, also after a ``{% break %}``."""
    loops = [(loop, loop.target.name) for loop in tree.find_all(nodes.For) if isinstance(loop.target, nodes.Name)]
    numbers = {id(loop): number for number, (loop, _) in enumerate(loops)}
    for node in [tree, *tree.find_all(nodes.Node)]:
        for _, value in node.iter_fields():
            if isinstance(value, list):
                value[:] = [part for item in value for part in _with_end(item, numbers)]
    for loop, name in loops:
        loop.body.insert(0, _visit(numbers[id(loop)], nodes.Name(name, "load")))


def _with_end(item: Any, numbers: Mapping[int, int]) -> list[Any]:
    number = numbers.get(id(item))
    return [item] if number is None else [item, _visit(number, nodes.Const(None))]


def _visit(loop: int, item: nodes.Expr) -> nodes.ExprStmt:
    return nodes.ExprStmt(nodes.Filter(item, "_visited", [nodes.Const(loop)], [], None, None))


@pass_context
def _written(context: Context, value: Any, kind: limits.PieceKind) -> Any:
    rendering = limits.CURRENT.get()
    if rendering is not None:
        rendering.pieces.append(limits.Piece(str(value), kind))
    return value


@pass_context
def _visited(context: Context, item: Any, loop: int) -> None:
    rendering = limits.CURRENT.get()
    if rendering is not None:
        rendering.visits.append(limits.Visit(rendering.length, loop, item))


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(
            f"a namespace may not hold the name {name!r}: it begins with an underscore"
        )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is: Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _from_json(text: Any) -> Any:
    """The value that ``text`` is the JSON of; other text is its own value. The template asks first whether there
    is such a filter: transformers has none.
    """
    try:
        return json.loads(text)
    except (TypeError, json.JSONDecodeError):
        return text


def strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _plain_dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)
