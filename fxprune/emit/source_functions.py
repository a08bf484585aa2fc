"""The functions a graph calls, under the names that a reader of PyTorch code expects."""

from __future__ import annotations

import builtins
import functools
import importlib
import keyword
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

from fxprune.containers import field_names, is_dataclass
from fxprune.emit.source_text import SourceError

INFIX: dict[Any, str] = {
    operator.add: "+", operator.sub: "-", operator.mul: "*", operator.truediv: "/", operator.floordiv: "//",
    operator.mod: "%", operator.pow: "**", operator.matmul: "@", operator.and_: "&", operator.or_: "|",
    operator.xor: "^", operator.lshift: "<<", operator.rshift: ">>", operator.eq: "==", operator.ne: "!=",
    operator.lt: "<", operator.le: "<=", operator.gt: ">", operator.ge: ">=",
}  # fmt: skip
PREFIX: dict[Any, str] = {operator.neg: "-", operator.pos: "+", operator.invert: "~"}
AUGMENTED: dict[Any, str] = {
    operator.iadd: "+=", operator.isub: "-=", operator.imul: "*=", operator.itruediv: "/=", operator.ifloordiv: "//=",
    operator.imod: "%=", operator.ipow: "**=", operator.imatmul: "@=", operator.iand: "&=", operator.ior: "|=",
    operator.ixor: "^=", operator.ilshift: "<<=", operator.irshift: ">>=",
}  # fmt: skip
RESERVED = {"F", "getattr", "math", "namedtuple", "nn", "operator", "self", "slice", "super", "torch"}
BUILTINS = ("abs", "bool", "float", "int", "len", "max", "min", "round", "sum")
HOMES = {
    "F": F, "torch": torch, "torch.linalg": torch.linalg, "torch.fft": torch.fft, "torch.special": torch.special,
}  # fmt: skip


@dataclass
class Needs:
    """What a source file needs besides torch and its own network.

    imports   lines such as `import operator`
    packages  packages other than torch and the standard library, which have to be installed where the file is used
    parts     names of the small classes that are written out, see fxprune.emit.source_parts
    records   named tuples and dataclasses that the network returns: name -> fields
    calls     kinds of layers that have been met -> arguments that make them
    """

    imports: set[str] = field(default_factory=set)
    packages: set[str] = field(default_factory=set)
    parts: set[str] = field(default_factory=set)
    records: dict[str, tuple[str, ...]] = field(default_factory=dict)
    calls: dict[tuple[type, str], dict[str, Any]] = field(default_factory=dict)


def function_text(function: Any, needs: Needs) -> str:
    """The name to call `function` by; what has to be imported for it is added to `needs`. Raises SourceError."""
    if isinstance(function, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return _operator_of_torch(str(function))
    known = _torch_functions().get(id(function))
    if known is not None:
        return known
    name = getattr(function, "__name__", "")
    for module in (operator, math):
        if name and getattr(module, name, None) is function:
            needs.imports.add(f"import {module.__name__}")
            return f"{module.__name__}.{name}"
    if name in BUILTINS and getattr(builtins, name) is function:
        return str(name)
    if is_record(function):
        return record_text(function, needs)
    return imported(function, needs)


def _operator_of_torch(name: str) -> str:
    """`torch.ops.aten.relu.default`; operators of other packages are there only when these have been imported."""
    if not name.replace("::", ".").startswith("aten."):
        raise SourceError(f"the operator {name} is not one of torch's own")
    return f"torch.ops.{name.replace('::', '.')}"


def is_free_name(name: str) -> bool:
    """A name that Python takes and that means nothing else in the file."""
    return name.isidentifier() and not keyword.iskeyword(name) and name not in RESERVED and name not in BUILTINS


def is_attribute(name: str) -> bool:
    """A name that can follow a dot. Python changes names that begin with two underscores inside a class."""
    return name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("__")


@functools.cache
def _torch_functions() -> dict[int, str]:
    """Public functions of torch by identity; the first home wins, and in it the name that the function gives itself."""
    found: dict[int, str] = {}
    for home, module in HOMES.items():
        public = {name: value for name, value in vars(module).items() if not name.startswith("_") and callable(value)}
        own = {id(value): name for name, value in public.items() if getattr(value, "__name__", "") == name}
        for name, value in public.items():
            found.setdefault(id(value), f"{home}.{own.get(id(value), name)}")
    return found


def imported(thing: Callable[..., Any] | type, needs: Needs) -> str:
    """A class or function of another package, imported by name. Raises SourceError where that is impossible."""
    module, name = getattr(thing, "__module__", None) or "", getattr(thing, "__qualname__", "")
    what = f"{module}.{name}"
    if module == "__main__" or not is_free_name(name):
        raise SourceError(f"{what} cannot be imported: it would have to be defined at the top of a module")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:
        raise SourceError(f"{what} cannot be imported: {type(error).__name__}") from error
    if found is not thing:
        raise SourceError(f"{what} is not what its module has under that name")
    line = f"from {module} import {name}"
    if any(other.endswith(f" import {name}") and other != line for other in needs.imports):
        raise SourceError(f"two different things are called {name}")
    needs.imports.add(line)
    needs.packages.add(module.partition(".")[0])
    return name


def is_record(kind: Any) -> bool:
    """A class of named tuples, or a dataclass."""
    return isinstance(kind, type) and (issubclass(kind, tuple) and hasattr(kind, "_fields") or is_dataclass(kind))


def record_text(kind: Any, needs: Needs) -> str:
    """The name of a class of named tuples or a dataclass, written out anew as named tuples. Raises SourceError."""
    name, fields = kind.__name__, field_names(kind) if is_dataclass(kind) else tuple(kind._fields)
    if kind.__module__.startswith("torch.return_types") or not all(map(is_free_name, (name, *fields))):
        raise SourceError(f"a result of type {kind.__module__}.{name} cannot be made anew")
    if needs.records.setdefault(name, fields) != fields:
        raise SourceError(f"two kinds of results are called {name}")
    needs.imports.add("from collections import namedtuple")
    return str(name)
