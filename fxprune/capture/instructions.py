"""What the instructions of a pickle would call, found out before one of them is carried out.

torch's restricted unpickler calls every class and function that it has been allowed, with arguments that the file
chooses, and gives whatever state the file chooses to every object. A network that torch.save wrote needs less: layers
are made without their constructors, `cls.__new__(cls)`, and take their attributes as one dictionary. So the
instructions are followed here first, with stand-ins for everything but plain data, and what no saved network does is
refused.
"""

from __future__ import annotations

import pickletools
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from torch import Tensor, nn
from torch._utils import IMPORT_MAPPING, NAME_MAPPING

from fxprune.capture.trust import OTHERWISE, PLAIN
from fxprune.errors import UntrustedError

_FROM_TYPE, _WITH_STATE = "torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_parameter_with_state"
_ENCODE = "_codecs.encode"
_DICTIONARIES = {"collections.OrderedDict": OrderedDict, "collections.Counter": Counter}
_COLLECTIONS = {*_DICTIONARIES, "builtins.bytearray", "builtins.frozenset", "builtins.set", "torch.Size"}
# Of the functions and classes that torch's unpickler knows by itself, those that torch.save uses.
_CALLED = {*_COLLECTIONS, _ENCODE, _FROM_TYPE, "builtins.complex", "torch.device", "torch.serialization._get_layout"}
_REBUILDS = "torch._utils._rebuild_"
_LARGEST_KEY = 1000  # parts of a key: how often hashing looks at one
_NUMBER = re.compile(r"[biufc][0-9]{1,2}")
_LISTED = 3  # names in a message


@dataclass(frozen=True, eq=False)
class Named:
    """A class or function that the file names."""

    name: str


@dataclass(frozen=True, eq=False)
class Made:
    """What a call of it would return, with the items that are put into it; of an unknown thing the name is empty."""

    name: str
    items: dict[Any, Any] = field(default_factory=dict)


def check_instructions(pickled: bytes, allowed: Mapping[str, Any], file: str) -> None:
    """Raise UntrustedError for a pickle that does more than make layers, records and tensors, and fill them.

    allowed  what the file's names stand for, those aside that torch's unpickler knows by itself
    file     what to call the file in messages

    No constructor and no method is called, and no activation function. A damaged pickle raises anything else.
    """
    machine = _Machine(_Rules(allowed))
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            machine.follow(opcode.name, argument)
    except _UnusualError as error:
        raise UntrustedError(
            f"{file} was not loaded: reading it {error}, which no network that torch.save wrote asks for. {OTHERWISE}"
        ) from None


class _UnusualError(Exception):
    """What the pickle does, as the rest of a sentence."""


class _Rules:
    """What may be called and changed."""

    def __init__(self, allowed: Mapping[str, Any]) -> None:
        self.allowed = allowed

    def call(self, function: object, arguments: object) -> Made:
        """`function(*arguments)`"""
        if not isinstance(function, Named):
            raise _UnusualError("calls what it has made itself")
        if type(arguments) is not tuple:
            raise ValueError("arguments are no tuple")
        name = function.name
        if not self._may_be_called(name):
            raise _UnusualError(f"calls {name}")
        if name in _COLLECTIONS:
            _check_contents(name, arguments)
        if name == _ENCODE and arguments[1:] not in (("latin1",), ("latin-1",)):
            raise _UnusualError("makes text that cannot be read beforehand")
        if name == "numpy.dtype" and not (isinstance(arguments[0], str) and _NUMBER.fullmatch(arguments[0])):
            raise _UnusualError("makes a numpy type that is no number")
        if name in (_FROM_TYPE, _WITH_STATE):
            self._tensor_with_attributes(name, arguments)
        return Made("" if arguments and name in _DICTIONARIES else name)  # of those, all items are to be known

    def _may_be_called(self, name: str) -> bool:
        if name in self.allowed:
            return name in PLAIN or _is(self.allowed[name], Enum)
        return name in _CALLED or name.startswith(_REBUILDS)

    def _tensor_with_attributes(self, name: str, arguments: tuple[Any, ...]) -> None:
        first, state = arguments[0], arguments[3]
        if name == _FROM_TYPE:
            if not (isinstance(first, Named) and first.name.startswith(_REBUILDS)):
                raise _UnusualError("calls something other than torch's functions that rebuild a tensor")
            self.call(first, arguments[2])
        hidden = [key for key in _names(state) if hasattr(Tensor, key)]
        if hidden:
            raise _UnusualError(f"replaces {_listed(hidden)} of a tensor")

    def make(self, kind: object, arguments: object) -> Made:
        """`kind.__new__(kind, *arguments)`"""
        if not isinstance(kind, Named):
            raise _UnusualError("makes an object of a class that it has made itself")
        if type(arguments) is not tuple:
            raise ValueError("arguments are no tuple")
        if arguments and (kind.name in PLAIN or _is(self.allowed.get(kind.name), nn.Module)):
            raise _UnusualError(f"makes {kind.name} from arguments")
        return Made(kind.name)

    def fill(self, made: object, state: object) -> None:
        """`made.__setstate__(state)` where there is such a method, otherwise the state becomes attributes."""
        if not isinstance(made, Made) or not (made.name in self.allowed or made.name in _DICTIONARIES):
            raise _UnusualError("changes what is no layer or record")
        kind = self.allowed.get(made.name)
        if _is(kind, Enum):
            raise _UnusualError(f"changes a value of {made.name}")
        if isinstance(state, Made | Named) and not (isinstance(state, Made) and state.name in _DICTIONARIES):
            raise _UnusualError(f"gives {made.name} a state that is no plain data")
        if made.name == "numpy.dtype" and not _is_plain_number(state):
            raise _UnusualError("changes a numpy type")
        if _is(kind, nn.Module):
            _check_layer(kind, made.name, state)
        elif made.name in _DICTIONARIES:
            hidden = [key for key in _names(state) if hasattr(_DICTIONARIES[made.name], key)]
            if hidden:
                raise _UnusualError(f"replaces {_listed(hidden)} of {made.name}")
        elif type(state) is tuple and len(state) == 2 and any(key.startswith("__") for key in _names(state)):
            raise _UnusualError(f"replaces what {made.name} is")  # by its __class__: slots are set one by one


def _check_layer(kind: Any, name: str, state: object) -> None:
    """A __setstate__ of the class's own may call its methods, and attributes go before methods. torch's call none."""
    _names(state)
    if not kind.__setstate__.__module__.startswith("torch.nn.modules."):
        _check_hidden(kind, name, state if isinstance(state, dict) else getattr(state, "items", {}))
    if issubclass(kind, nn.RNNBase):
        _check_recurrent(state)


def _check_hidden(kind: type, name: str, state: dict[Any, Any]) -> None:
    callables = [key for key, value in state.items() if isinstance(value, Made | Named)]
    hidden = [key for key in callables if key != "forward" and callable(getattr(kind, key, None))]
    if hidden:
        raise _UnusualError(f"replaces {_listed(hidden)} of {name}")


def _check_recurrent(state: object) -> None:
    """Where names of weights are missing, torch makes names for as many layers as the file says. Raises ValueError."""
    rows = state.get("all_weights", state.get("_all_weights")) if isinstance(state, dict) else None
    if type(rows) is not list or type(rows[0]) is not list or type(rows[0][0]) is not str:
        raise ValueError("a recurrent layer does not name its weights")


def _is(kind: Any, parent: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, parent)


def _is_plain_number(state: object) -> bool:
    """What numpy says about a type of numbers: anything else there would be about records and objects."""
    known = type(state) is tuple and len(state) == 8 and state[1] in ("<", ">", "=", "|")
    return known and (*state[:1], *state[2:]) == (3, None, None, None, -1, -1, 0)  # type: ignore[index]


def _check_contents(name: str, arguments: tuple[Any, ...]) -> None:
    """A collection is made from things that the file lists: a number or a range would be a size of its choice."""
    for one in arguments:
        if type(one) not in (dict, list, str, tuple) and not (isinstance(one, Made) and one.name == _ENCODE):
            raise _UnusualError(f"makes {name} from something other than its items")
        for part in one if isinstance(one, dict | list | tuple) else ():
            _check_key(part)


def _check_key(key: object) -> None:
    """Hashing takes a tuple apart down to its last part, however deep that is and however often one occurs."""
    parts, seen = [key], 0
    while parts:
        part = parts.pop()
        seen += 1
        if type(part) is tuple:
            parts += part[:_LARGEST_KEY]
        if seen + len(parts) > _LARGEST_KEY:
            raise _UnusualError("makes a key of very many parts")


def _names(state: object) -> list[str]:
    """Attributes that a state sets, or a pair of states."""
    found = [key for part in (state if type(state) is tuple else (state,)) for key in _keys(part)]
    if not all(type(key) is str for key in found):
        raise _UnusualError("sets attributes whose names are no text")
    return found


def _keys(state: object) -> list[Any]:
    """Of a plain dictionary, an ordered one, or None. Raises TypeError."""
    if state is None:
        return []
    if isinstance(state, Made) and state.name in _DICTIONARIES:
        return list(state.items)
    if type(state) is not dict:
        raise TypeError("a state is no dictionary")
    return list(state)


def _listed(names: list[Any]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(repr(name)[:50] for name in names[:_LISTED])}{more}"


class _Machine:
    """The stack and the memory of an unpickler, for the instructions that torch's restricted one has."""

    def __init__(self, rules: _Rules) -> None:
        self.rules = rules
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # stacks below the marks
        self.memory: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> None:
        """One instruction. Raises _UnusualError; whatever else for a damaged pickle."""
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
        if isinstance(target, Made) and target.name in _DICTIONARIES:
            target = target.items
        if type(target) is not dict:
            raise TypeError("no dictionary to put into")
        for key in items[::2]:
            _check_key(key)
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
