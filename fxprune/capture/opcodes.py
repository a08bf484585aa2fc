"""The instructions of a pickle, followed over stand-ins: rules are asked what may be called, made and filled.

Known are the instructions of torch's restricted unpickler (torch/_weights_only_unpickler.py); others are errors.
"""

from __future__ import annotations

import pickletools
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch._utils import IMPORT_MAPPING, NAME_MAPPING

# Items can be put into these, as into a dictionary.
DICTIONARIES = {"collections.OrderedDict": OrderedDict, "collections.Counter": Counter}


@dataclass(frozen=True, eq=False)
class Named:
    """A class or function that the file names."""

    name: str


@dataclass(frozen=True, eq=False)
class Made:
    """What a call of it would return, with the items that are put into it; of an unknown thing the name is empty."""

    name: str
    items: dict[Any, Any] = field(default_factory=dict)


class Rules(Protocol):
    """What may happen. Each raises when it may not."""

    def call(self, function: object, arguments: object) -> Made:
        """`function(*arguments)`"""

    def make(self, kind: object, arguments: object) -> Made:
        """`kind.__new__(kind, *arguments)`"""

    def fill(self, made: object, state: object) -> None:
        """`made` gets its state."""

    def look_up(self, key: object) -> None:
        """`key` is looked for in a dictionary."""


def follow(pickled: bytes, rules: Rules) -> None:
    """Follow a pickle to its end. Raises what the rules raise, and anything for a pickle that is damaged."""
    machine = _Machine(rules)
    for opcode, argument, _ in pickletools.genops(pickled):
        machine.follow(opcode.name, argument)


class _Machine:
    """The stack and the memory of an unpickler, for the instructions that torch's restricted one has."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # stacks below the marks
        self.memory: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> None:
        """One instruction. Raises what the rules raise; whatever else for a damaged pickle."""
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name](argument))
        elif name in _TUPLES:
            self._gather(_TUPLES[name])
        else:
            _STEPS[name](self, argument)

    def above_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def mark(self, _: Any) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def _gather(self, count: int) -> None:
        if count > len(self.stack):
            raise IndexError("the stack is empty")
        items = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        self.stack.append(items)

    def tuple_above_mark(self, _: Any) -> None:
        items = tuple(self.above_mark())
        self.stack.append(items)

    def named(self, argument: str) -> None:
        module, name = argument.split(" ", 1)
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        self.stack.append(Named(f"{module}.{name}"))

    def get(self, place: int) -> None:
        self.stack.append(self.memory[place])

    def put(self, place: int) -> None:
        self.memory[place] = self.stack[-1]

    def append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def appends(self, _: Any) -> None:
        self._extend(self.above_mark())

    def _extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise TypeError("no list to append to")
        self.stack[-1].extend(items)

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def set_items(self, _: Any) -> None:
        self._update(self.above_mark())

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, Made) and target.name in DICTIONARIES:
            target = target.items
        if type(target) is not dict:
            raise TypeError("no dictionary to put into")
        for key in items[::2]:
            self.rules.look_up(key)
        target.update(zip(items[::2], items[1::2], strict=True))

    def reduce(self, _: Any) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self.rules.call(self.stack[-1], arguments)

    def make(self, _: Any) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        self.stack.append(self.rules.make(kind, arguments))

    def build(self, _: Any) -> None:
        state = self.stack.pop()
        self.rules.fill(self.stack[-1], state)

    def storage(self, _: Any) -> None:
        self.stack[-1] = Made("")

    def stop(self, _: Any) -> None:
        self.stack.pop()

    def protocol(self, _: Any) -> None:
        """Nothing depends on it."""


_CONSTANTS: dict[str, Callable[[Any], Any]] = {
    **{f"BININT{size}": lambda number: number for size in ("", 1, 2)},
    **{name: lambda value: value for name in ("BINFLOAT", "BINUNICODE", "LONG1", "SHORT_BINSTRING")},
    **{"NONE": lambda _: None, "NEWFALSE": lambda _: False, "NEWTRUE": lambda _: True},
    **{"EMPTY_DICT": lambda _: {}, "EMPTY_LIST": lambda _: [], "EMPTY_SET": lambda _: Made("builtins.set")},
}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    **{"MARK": _Machine.mark, "TUPLE": _Machine.tuple_above_mark, "GLOBAL": _Machine.named, "STOP": _Machine.stop},
    **{f"{size}BINGET": _Machine.get for size in ("", "LONG_")},
    **{f"{size}BINPUT": _Machine.put for size in ("", "LONG_")},
    **{"APPEND": _Machine.append, "APPENDS": _Machine.appends, "SETITEM": _Machine.set_item},
    **{"SETITEMS": _Machine.set_items, "REDUCE": _Machine.reduce, "NEWOBJ": _Machine.make, "BUILD": _Machine.build},
    **{"BINPERSID": _Machine.storage, "PROTO": _Machine.protocol},
}
