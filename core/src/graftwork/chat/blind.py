"""A rendering in which the template may write the messages' texts and never look at them.

Each text is a mark of its own here. A template that only puts marks where they belong writes every conversation of the
same roles in the same way, whatever its texts say; :mod:`graftwork.chat.moulds` then has the conversation's text by
putting the texts in place of the marks. Whatever could depend on a text is refused: the expressions of Jinja are few,
each that could look at a value is guarded, and a template with any other is not rendered here at all. The truth of a
text is no secret: those that stand behind a mark are not empty and not white space only, nor is what remains of them
when white space at their ends is taken away.
"""

from __future__ import annotations

import re
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Undefined, nodes
from jinja2.runtime import Macro

from graftwork.chat import limits, sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import jinja2
    from jinja2.runtime import Context

OPEN, CLOSE = "\ufdd0", "\ufdd1"
"""Around the number of a mark; no characters of any text, says Unicode."""
MARK = re.compile(f"{OPEN}([0-9]+){CLOSE}")
MOST_MARKS = 64
"""In one value on the way to the text, so that no value of a real conversation is too long for the sandbox."""
_STRIPS = ("strip", "lstrip", "rstrip")
_SIMPLE = (str, int, float, type(None), Undefined)


class LooksError(Exception):
    """The template would look at a text."""


class Strip(NamedTuple):
    """A method of texts that takes white space away, and what it is called with."""

    method: str
    characters: str | None = None

    def __call__(self, text: str) -> str:
        stripped: str = getattr(text, self.method)(self.characters)
        return stripped


class Slot(NamedTuple):
    """The text of message number ``message``, stripped by ``strips`` one after the other."""

    message: int
    strips: tuple[Strip, ...] = ()


class Moment(NamedTuple):
    """A time in the format that the template asked for."""

    format: str
    text: str


class Marks:
    """The slots that a rendering uses; a mark has the number of its slot. ``written`` counts the marks put out, and
    ``moments`` are the times that it told.
    """

    def __init__(self) -> None:
        self.slots: list[Slot] = []
        self.written = 0
        self.moments: list[Moment] = []

    def new(self, slot: Slot) -> str:
        self.slots.append(slot)
        return f"{OPEN}{len(self.slots) - 1}{CLOSE}"

    def stripped(self, text: str, strip: Strip) -> str:
        """``text`` without white space at its ends; where a mark stands there, with the mark of what remains of it."""
        if strip.characters is not None and strip.characters.strip():
            raise LooksError
        if MARK.fullmatch(text):
            return self._remaining(text, strip)
        if strip.method != "rstrip":
            head, opened, rest = text.partition(OPEN)
            head, (number, closed, rest) = head.lstrip(strip.characters), rest.partition(CLOSE)
            mark = opened + number + closed
            text = (head + mark if head else self._remaining(mark, strip._replace(method="lstrip"))) + rest
        if strip.method != "lstrip":
            rest, closed, tail = text.rpartition(CLOSE)
            tail, (rest, opened, number) = tail.rstrip(strip.characters), rest.rpartition(OPEN)
            mark = opened + number + closed
            text = rest + (mark + tail if tail else self._remaining(mark, strip._replace(method="rstrip")))
        return text

    def _remaining(self, mark: str, strip: Strip) -> str:
        slot = self.slots[int(mark[1:-1])]
        return self.new(Slot(slot.message, (*slot.strips, strip)))


class _BlindRendering(limits.Rendering):
    """A rendering with its marks."""

    __slots__ = ("marks",)

    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self.marks = marks


def render_blindly(
    source: str, roles: Sequence[str], variables: Mapping[str, Any]
) -> tuple[str, limits.Rendering, Marks] | None:
    """The text of a conversation of these roles with marks for its texts; None where the template looks at a text,
    refuses the conversation, or may do either.
    """
    if any(mark in text for text in (source, str(variables)) for mark in (OPEN, CLOSE)):
        return None
    marks = Marks()
    messages = [{"role": role, "content": marks.new(Slot(index))} for index, role in enumerate(roles)]
    try:
        template = _compiled(source)
        text, rendering = sandbox.rendered(template, {**variables, "messages": messages}, _BlindRendering(marks))
    except MemoryError:
        raise
    except Exception:  # whatever the template's own words raise; the plain rendering says what
        return None
    return text, rendering, marks


@lru_cache(maxsize=64)
def _compiled(source: str) -> jinja2.Template:
    template: jinja2.Template = _environment().from_string(source)
    return template


@lru_cache(maxsize=1)
def _environment() -> _BlindEnvironment:
    environment = _BlindEnvironment(**sandbox.SETTINGS, finalize=_emitted)
    sandbox.furnish(environment)
    filters: dict[str, Any] = environment.filters
    tests: dict[str, Any] = environment.tests
    environment.filters = {name: _guarded(name, function, _FILTERS) for name, function in filters.items()}
    environment.tests = {name: _guarded(name, function, _TESTS) for name, function in tests.items()}
    environment.globals["strftime_now"] = _strftime_now
    del environment.filters["random"]  # something else each time
    environment.filters |= {"_look": _look, "_look_in": _look_in, "_slice": _slice}
    return environment


class _BlindEnvironment(sandbox.Environment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> Any:
        tree = super()._parse(source, name, filename)
        _require_known(tree)
        _guard(tree)
        return tree

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        texts = type(left) is str and type(right) is str
        lists = isinstance(left, list) and isinstance(right, list)
        if not (operator == "+" and (texts or lists)):
            _refuse_holders((left, right))
        result = super().call_binop(context, operator, left, right)
        return _short(result) if texts else result

    def getitem(self, obj: Any, argument: Any) -> Any:
        if holds(argument) or (isinstance(obj, str) and holds(obj) and not isinstance(argument, str)):
            raise LooksError
        return super().getitem(obj, argument)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        if isinstance(__obj, Macro) or __obj is sandbox.PlainNamespace:
            return super().call(__context, __obj, *args, **kwargs)
        method = getattr(__obj, "__wrapped__", __obj)
        subject, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        named = {key: value for key, value in kwargs.items() if key not in _OF_JINJA}
        _refuse_holders((*args, *named.values()))
        if type(subject) is str and holds(subject):
            if name not in _STRIPS or named:
                raise LooksError
            return _marks().stripped(subject, Strip(name, *args))
        if isinstance(subject, (list, tuple, str)) or (isinstance(subject, dict) and name not in _OF_DICTS):
            _refuse_holders((subject,))
        return super().call(__context, __obj, *args, **kwargs)


_OF_JINJA = ("_loop_vars", "_block_vars")
"""Jinja's own, which it keeps to itself."""
_OF_DICTS = ("get", "items", "keys", "values")


def holds(value: Any) -> bool:
    """Whether a text may be in ``value``. What is no plain data is not searched: it may."""
    if isinstance(value, str):
        return OPEN in value
    if isinstance(value, (list, tuple)):
        return any(map(holds, value))
    if isinstance(value, dict):
        return any(map(holds, value)) or any(map(holds, value.values()))
    return not isinstance(value, (*_SIMPLE, Macro, range))


def _refuse_holders(values: Iterable[Any]) -> None:
    if any(map(holds, values)):
        raise LooksError


def _marks() -> Marks:
    rendering = limits.CURRENT.get()
    assert isinstance(rendering, _BlindRendering)
    return rendering.marks


def _short(text: str) -> str:
    if text.count(OPEN) > MOST_MARKS:
        raise LooksError
    return text


def _emitted(value: Any) -> Any:
    """As :func:`~graftwork.chat.limits.emitted`; an object or a list would be written with the texts in it."""
    if not isinstance(value, _SIMPLE):
        raise LooksError
    if isinstance(value, str) and OPEN in value:
        _marks().written += value.count(OPEN)
        _short(value)
    return limits.emitted(value)


def _strftime_now(format: str) -> str:
    text = sandbox.strftime_now(format)
    _marks().moments.append(Moment(format, text))
    return text


# Filters and tests that may be given texts


def _guarded(name: str, function: Any, allowed: Mapping[str, Callable[[list[Any]], bool]]) -> Callable[..., Any]:
    """The filter or test, refused where it would look at a text."""
    skip = 1 if hasattr(function, "jinja_pass_arg") else 0
    may = allowed.get(name, _never)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        given = [*args[skip:], *kwargs.values()]
        if any(map(holds, given)):
            if name == "trim" and len(given) == 1 and type(given[0]) is str:
                return _marks().stripped(given[0], Strip("strip"))
            if not may(given):
                raise LooksError
        return function(*args, **kwargs)

    return call


def _never(given: list[Any]) -> bool:
    return False


def _of_items(given: list[Any]) -> bool:
    return len(given) == 1 and not isinstance(given[0], str)


def _chosen(given: list[Any]) -> bool:
    """What chooses or changes items does so by tests, filters and attributes, which are guarded themselves."""
    return not isinstance(given[0], str) and not any(map(holds, given[1:]))


def _of_text(given: list[Any]) -> bool:
    return len(given) == 1 and type(given[0]) is str


def _alone(given: list[Any]) -> bool:
    return len(given) == 1


def _of_simple(given: list[Any]) -> bool:
    """Values that become one text."""
    return all(isinstance(value, _SIMPLE) for value in given[0]) and bool(_short("".join(map(str, given[0]))))


def _looped(given: list[Any]) -> bool:
    """A loop over a list may take any path; one over a text looks at its letters."""
    return not isinstance(given[0], str) and not any(isinstance(item, str) and holds(item) for item in given[0])


def _is_list(given: list[Any]) -> bool:
    return isinstance(given[0], (list, tuple, dict, type({}.items()), type({}.keys()), type({}.values())))


_FILTERS: Mapping[str, Callable[[list[Any]], bool]] = {
    **dict.fromkeys(("length", "count", "first", "last", "list"), _of_items),
    **dict.fromkeys(("select", "reject", "selectattr", "rejectattr", "map"), _chosen),
    **dict.fromkeys(("default", "d"), lambda given: isinstance(given[0], (*_SIMPLE, dict, list))),
    "string": _of_text,
    "_concat": _of_simple,
    "_watch": lambda given: _is_list(given) and _looped(given),
}
_KINDS = ("none", "string", "mapping", "iterable", "sequence", "number", "integer", "float", "boolean", "true", "false")
_TESTS: Mapping[str, Callable[[list[Any]], bool]] = dict.fromkeys(("defined", "undefined", *_KINDS), _alone)


# Expressions that Jinja works out itself


def _look(value: Any) -> Any:
    """What is compared."""
    _refuse_holders((value,))
    return value


def _look_in(value: Any) -> Any:
    """What something is looked for in: of an object that is among its keys."""
    _refuse_holders((list(value) if isinstance(value, dict) else value,))
    return value


def _slice(value: Any) -> Any:
    if isinstance(value, str):
        _refuse_holders((value,))
    return value


_KNOWN_NODES = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Const,
    nodes.Name,
    nodes.NSRef,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
    nodes.Call,
    nodes.Filter,
    nodes.Test,
    nodes.If,
    nodes.CondExpr,
    nodes.For,
    nodes.Assign,
    nodes.AssignBlock,
    nodes.Macro,
    nodes.CallBlock,
    nodes.ExprStmt,
    nodes.Compare,
    nodes.Operand,
    nodes.BinExpr,
    nodes.UnaryExpr,
    nodes.List,
    nodes.Tuple,
    nodes.Dict,
    nodes.Pair,
    nodes.Keyword,
    nodes.Break,
    nodes.Continue,
    nodes.ExtensionAttribute,
)


def _require_known(tree: nodes.Template) -> None:
    """Raises where the template has an expression that is not spoken of here, or takes values apart unasked."""
    for node in tree.find_all(nodes.Node):
        apart = getattr(node, "dyn_args", None) or getattr(node, "dyn_kwargs", None)
        several = getattr(node, "target", None) if isinstance(node, (nodes.For, nodes.Assign)) else None
        nested = isinstance(several, nodes.Tuple) and (
            isinstance(node, nodes.Assign) or not all(isinstance(item, nodes.Name) for item in several.items)
        )
        if apart or nested or not isinstance(node, _KNOWN_NODES):
            raise LooksError


def _guard(tree: nodes.Template) -> None:
    for node in [*tree.find_all((nodes.Compare, nodes.Getitem, nodes.Pair))]:
        if isinstance(node, nodes.Compare):
            node.expr = _filtered(node.expr, "_look")
            for operand in node.ops:
                operand.expr = _filtered(operand.expr, "_look_in" if operand.op in ("in", "notin") else "_look")
        elif isinstance(node, nodes.Pair):
            node.key = _filtered(node.key, "_look")
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            node.node = _filtered(node.node, "_slice")


def _filtered(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
