"""What the instructions of a pickle would call, found out before one of them is carried out.

torch's restricted unpickler calls every class and function that it has been allowed, with arguments that the file
chooses, and gives whatever state the file chooses to every object. A network that torch.save wrote needs less: layers
are made without their constructors, `cls.__new__(cls)`, and take their attributes as one dictionary. So the
instructions are followed here first, with stand-ins for everything but plain data, and what no saved network does is
refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capture.opcodes import DICTIONARIES, Made, Named, follow
from fxprune.capture.trust import OTHERWISE, PLAIN
from fxprune.errors import UntrustedError

_FROM_TYPE, _WITH_STATE = "torch._tensor._rebuild_from_type_v2", "torch._utils._rebuild_parameter_with_state"
_ENCODE = "_codecs.encode"
_COLLECTIONS = {*DICTIONARIES, "builtins.bytearray", "builtins.frozenset", "builtins.set", "torch.Size"}
# Of the functions and classes that torch's unpickler knows by itself, those that torch.save uses.
_CALLED = {*_COLLECTIONS, _ENCODE, _FROM_TYPE, "builtins.complex", "torch.device", "torch.serialization._get_layout"}
# Not of tensors within tensors, which are views of memory that the file measures, nor of other classes than tensors'.
_REBUILDS = {
    f"torch._utils._rebuild_{what}"
    for what in (
        *("parameter", "parameter_with_state", "qtensor", "sparse_tensor", "tensor", "tensor_v2", "tensor_v3"),
        *("device_tensor_from_cpu_tensor", "device_tensor_from_numpy", "meta_tensor_no_storage"),
    )
}
_LARGEST_KEY = 1000  # parts of a key: how often hashing looks at one
_NUMBER = re.compile(r"[biufc][0-9]{1,2}")
_LISTED = 3  # names in a message


def check_instructions(pickled: bytes, allowed: Mapping[str, Any], file: str) -> None:
    """Raise UntrustedError for a pickle that does more than make layers, records and tensors, and fill them.

    allowed  what the file's names stand for, those aside that torch's unpickler knows by itself or has been told of
    file     what to call the file in messages

    No constructor and no method is called, and no activation function. A damaged pickle raises anything else.
    """
    try:
        follow(pickled, _Rules({**_registered(), **allowed}))
    except _UnusualError as error:
        raise UntrustedError(
            f"{file} was not loaded: reading it {error}, which no network that torch.save wrote asks for. {OTHERWISE}"
        ) from None


def _registered() -> dict[str, Any]:
    """What the user of the library has told torch to allow."""
    found = [one if isinstance(one, tuple) else (one, "") for one in torch.serialization.get_safe_globals()]
    return {name or f"{one.__module__}.{one.__qualname__}": one for one, name in found}


class _UnusualError(Exception):
    """What the pickle does, as the rest of a sentence."""


class _Rules:
    """What may be called and changed. Raises _UnusualError."""

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
        return Made("" if arguments and name in DICTIONARIES else name)  # of those, all items are to be known

    def _may_be_called(self, name: str) -> bool:
        if name in self.allowed:
            return name in PLAIN or _is(self.allowed[name], Enum)
        return name in _CALLED | _REBUILDS

    def _tensor_with_attributes(self, name: str, arguments: tuple[Any, ...]) -> None:
        first, state = arguments[0], arguments[3]
        if name == _FROM_TYPE:
            if not (isinstance(first, Named) and first.name in _REBUILDS):
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
        if kind.name not in self.allowed:
            raise _UnusualError(f"makes {kind.name}")
        if arguments and (kind.name in PLAIN or _is(self.allowed.get(kind.name), nn.Module)):
            raise _UnusualError(f"makes {kind.name} from arguments")
        return Made(kind.name)

    def fill(self, made: object, state: object) -> None:
        """`made.__setstate__(state)` where there is such a method, otherwise the state becomes attributes."""
        if not isinstance(made, Made) or not (made.name in self.allowed or made.name in DICTIONARIES):
            raise _UnusualError("changes what is no layer or record")
        kind = self.allowed.get(made.name)
        if _is(kind, Enum):
            raise _UnusualError(f"changes a value of {made.name}")
        if isinstance(state, Made | Named) and not (isinstance(state, Made) and state.name in DICTIONARIES):
            raise _UnusualError(f"gives {made.name} a state that is no plain data")
        if made.name == "numpy.dtype" and not _is_plain_number(state):
            raise _UnusualError("changes a numpy type")
        if _is(kind, nn.Module):
            _check_layer(kind, made.name, state)
        elif made.name in DICTIONARIES:
            hidden = [key for key in _names(state) if hasattr(DICTIONARIES[made.name], key)]
            if hidden:
                raise _UnusualError(f"replaces {_listed(hidden)} of {made.name}")
        elif type(state) is tuple and len(state) == 2 and any(key.startswith("__") for key in _names(state)):
            raise _UnusualError(f"replaces what {made.name} is")  # by its __class__: slots are set one by one

    def look_up(self, key: object) -> None:
        """`{}[key]`"""
        _check_key(key)


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
    if isinstance(state, Made) and state.name in DICTIONARIES:
        return list(state.items)
    if type(state) is not dict:
        raise TypeError("a state is no dictionary")
    return list(state)


def _listed(names: list[Any]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"{', '.join(repr(name)[:50] for name in names[:_LISTED])}{more}"
