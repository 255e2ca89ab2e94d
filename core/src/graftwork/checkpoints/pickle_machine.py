"""Follows a pickle's instructions on a stack of plain values, without ever importing or calling what they name.

Python's own unpickler imports whatever a pickle names and calls it. Here an import, a call and a reference to
something outside the pickle are questions to a :class:`Rules`, which answers with a description or refuses.
Torch-free.
"""

from __future__ import annotations

import pickletools
from typing import IO, TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_NUMBERS = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_TEXTS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING", "SHORT_BINSTRING"}
_BYTES = {"BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"}
_CONSTANTS = frozenset(_NUMBERS | _TEXTS | _BYTES)
_SCALARS = (str, int, float, bytes, type(None))
_MOST_BYTES = 128 * 2**20  # half a kilobyte for each of 250,000 tensors


class MalformedPickleError(ValueError):
    """The instructions do not fit each other: a stack that is empty, a memo that was never set, no end."""


class Rules(Protocol):
    """What stands for the world outside the pickle. Each method may raise to stop the walk."""

    def named(self, module: str, name: str) -> Any:
        """The pickle would import ``module.name``."""

    def called(self, function: Any, arguments: Any) -> Any:
        """It would call ``function``, or make an object of that class."""

    def built(self, target: Any, state: Any) -> None:
        """It would set the state of ``target``, which may be of any kind."""

    def referred(self, identity: Any) -> Any:
        """It refers to something that lies beside it, in torch's files a storage."""

    def unusual(self, what: str) -> Any:
        """It does something that plain containers of tensors have no need of; the answer takes its place."""


def follow(stream: IO[bytes], rules: Rules) -> Any:
    """The value of one pickle in terms of ``rules``; leaves ``stream`` behind its end.

    Raises :class:`MalformedPickleError`, and what ``rules`` raise.
    """
    machine = _Machine(rules)
    end = stream.tell() + _MOST_BYTES
    try:
        for opcode, argument, position in pickletools.genops(stream):
            if position is not None and position > end:
                raise MalformedPickleError(f"it has more than {_MOST_BYTES:,} bytes of instructions")
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except (IndexError, KeyError, UnicodeError, ValueError) as error:
        if isinstance(error, MalformedPickleError):
            raise
        raise MalformedPickleError(f"its instructions do not fit each other ({str(error)[:120]})") from error
    raise MalformedPickleError("it has no end")


class _Machine:
    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # what lay on the stack at each open mark
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self.stack.append(argument)
        elif name in _STEPS:
            _STEPS[name](self, argument)
        elif name not in {"PROTO", "FRAME"}:
            self.stack.append(self.rules.unusual(f"the instruction {name}"))

    def take(self, count: int) -> list[Any]:
        if count > len(self.stack):
            raise MalformedPickleError("it takes more from its stack than it put there")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def take_marked(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self, _: Any) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.take_marked()

    def drop_marked(self, _: Any) -> None:
        self.take_marked()

    def put(self, index: Any) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def append(self, items: Sequence[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        else:
            self.rules.built(target, list(items))

    def set_items(self, items: Sequence[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            self.fill(target, items)
        else:
            self.rules.built(target, list(items))

    def fill(self, target: dict[Any, Any], items: Sequence[Any]) -> dict[Any, Any]:
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, _SCALARS):
                target[key] = value
            else:  # the hash of a nested tuple can take forever
                self.rules.unusual(f"a key of type {type(key).__name__}")
        return target

    def stack_global(self, _: Any) -> None:
        module, name = self.take(2)
        if isinstance(module, str) and isinstance(name, str):
            self.stack.append(self.rules.named(module, name))
        else:
            self.stack.append(self.rules.unusual("an import whose name is no text"))

    def instance(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        arguments = tuple(self.take_marked())
        self.stack.append(self.rules.called(self.rules.named(module, name), arguments))

    def marked_object(self, _: Any) -> None:
        function, *arguments = self.take_marked()
        self.stack.append(self.rules.called(function, tuple(arguments)))

    def named(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.stack.append(self.rules.named(module, name))

    def reduce(self, _: Any) -> None:
        function, arguments = self.take(2)
        self.stack.append(self.rules.called(function, arguments))

    def new_with_keywords(self, _: Any) -> None:
        function, arguments, keywords = self.take(3)
        self.stack.append(self.rules.called(function, (arguments, keywords)))

    def build(self, _: Any) -> None:
        (state,) = self.take(1)
        self.rules.built(self.stack[-1], state)


def _pushing(make: Callable[[_Machine], Any]) -> Callable[[_Machine, Any], None]:
    def push(machine: _Machine, _: Any) -> None:
        value = make(machine)  # which may exchange the stack
        machine.stack.append(value)

    return push


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    return _pushing(lambda machine: tuple(machine.take(count)))


def _recall(machine: _Machine, index: int) -> None:
    machine.stack.append(machine.memo[index])


def _refer(machine: _Machine, identity: Any) -> None:
    machine.stack.append(machine.rules.referred(identity))


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "NONE": _pushing(lambda _: None),
    "NEWTRUE": _pushing(lambda _: True),
    "NEWFALSE": _pushing(lambda _: False),
    "EMPTY_TUPLE": _pushing(lambda _: ()),
    "EMPTY_LIST": _pushing(lambda _: []),
    "EMPTY_DICT": _pushing(lambda _: {}),
    "TUPLE": _pushing(lambda machine: tuple(machine.take_marked())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "LIST": _pushing(lambda machine: machine.take_marked()),
    "DICT": _pushing(lambda machine: machine.fill({}, machine.take_marked())),
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.drop_marked,
    "DUP": _pushing(lambda machine: machine.stack[-1]),
    "GET": _recall,
    "BINGET": _recall,
    "LONG_BINGET": _recall,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "APPEND": lambda machine, _: machine.append(machine.take(1)),
    "APPENDS": lambda machine, _: machine.append(machine.take_marked()),
    "SETITEM": lambda machine, _: machine.set_items(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.take_marked()),
    "GLOBAL": _Machine.named,
    "STACK_GLOBAL": _Machine.stack_global,
    "INST": _Machine.instance,
    "OBJ": _Machine.marked_object,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "BUILD": _Machine.build,
    "PERSID": _refer,
    "BINPERSID": lambda machine, _: _refer(machine, machine.take(1)[0]),
}
