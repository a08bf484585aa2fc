"""Where a trace enters a network: its forward, with just the arguments that the example gives.

torch.fx reads the parameters of forward from its code. Under a decorator, with `*args` or with `**kwargs`, the code
that runs has others than the code that it reads.
"""

from __future__ import annotations

import inspect
import keyword
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from torch import nn

ENTRY = "_fxprune_entry"
_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_PLACED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def needs_entry(module: nn.Module) -> bool:
    """Whether forward is decorated or takes any number of arguments, and torch.fx would get them wrong."""
    forward = type(module).forward
    kinds = [one.kind for one in inspect.signature(module.forward).parameters.values()]
    own = "forward" in vars(module) or inspect.unwrap(forward) is not forward
    return own or any(kind in _MANY for kind in kinds)


def flat_arguments(module: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that a call binds; those of `*args` are numbered, those of `**kwargs` have their own names."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        kind = inspect.signature(module.forward).parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            found |= {f"{name}_{number}": one for number, one in enumerate(value)}
        else:
            found |= value if kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    return found


@contextmanager
def entry(module: nn.Module, names: Sequence[str], settings: Mapping[str, Any]) -> Iterator[str]:
    """Give the class of `module` a method that calls forward, and tell its name.

    names     of the arguments that it takes, as `flat_arguments` gives them
    settings  those of them that have these values whatever is given
    """
    kind = type(module)
    signature, forward = inspect.signature(module.forward), module.forward

    def call(self: nn.Module, *values: Any) -> Any:
        args, kwargs = _as_given(signature, {**dict(zip(names, values, strict=True)), **settings})
        return forward(*args, **kwargs)

    setattr(kind, ENTRY, _taking(names, call, getattr(inspect.unwrap(forward), "__globals__", {})))
    try:
        yield ENTRY
    finally:
        delattr(kind, ENTRY)


def _as_given(signature: inspect.Signature, values: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of a call from what `flat_arguments` made of them."""
    rest, args = dict(values), []
    for place, (name, one) in enumerate(signature.parameters.items()):
        if one.kind is one.VAR_POSITIONAL:
            numbered = [key for key in rest if key.startswith(f"{name}_") and key.removeprefix(f"{name}_").isdigit()]
            args += [rest.pop(key) for key in numbered]
        elif one.kind in _PLACED and name in rest and len(args) == place:
            args.append(rest.pop(name))
    return args, rest


def _taking(names: Sequence[str], call: Callable[..., Any], own: dict[str, Any]) -> FunctionType:
    """A function of these arguments, which torch.fx reads from its code. `own` is where forward was written: torch.fx
    wraps what it finds there, as math's functions.
    """
    for name in names:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(f"{name!r} is no name of an argument")
    taken = ", ".join(("self", *names))
    text = (
        f"def made({ENTRY}_call):\n    def {ENTRY}({taken}):\n        return {ENTRY}_call({taken})\n    return {ENTRY}"
    )
    space: dict[str, Any] = {}
    exec(compile(text, "<fxprune entry>", "exec"), space)  # nothing but names of arguments comes from outside
    found = space["made"](call)
    return FunctionType(found.__code__, own, ENTRY, None, found.__closure__)
