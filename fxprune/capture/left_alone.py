"""What of the user's a trace may reach, and what has to be as it was afterwards."""

from __future__ import annotations

import operator
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_LIBRARIES = ("torch", "torchvision", "timm")
_CONTAINERS = frozenset({dict, list, set})


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """A forward that an instance was given (`model.forward = lambda x: ...`) may hold on to the user's own modules,
    which then run in place of their copies: their buffers get their numbers back.
    """
    reached = any("forward" in vars(module) for module in model.modules())
    before = [(one, one.clone()) for one in model.buffers()] if reached else []
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, kept in before:
                if not torch.equal(buffer, kept):
                    buffer.copy_(kept)


def same_parts(one: Collection[Any], other: Collection[Any]) -> bool:
    """Whether two containers hold the very same things, in the same order."""
    if len(one) != len(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return all(map(operator.is_, one, other)) and all(map(operator.is_, one.values(), other.values()))
    return all(map(operator.is_, one, other))


def shared_containers(skeleton: nn.Module) -> Iterator[Any]:
    """Dicts, lists and sets of the classes and files that the network's own code comes from: a cache that forward fills
    while it is traced holds proxies, which mean nothing afterwards.
    """
    seen: set[int] = set()
    for kind in {base for module in skeleton.modules() for base in type(module).__mro__}:
        if kind.__module__.partition(".")[0] in _LIBRARIES or kind is object:
            continue
        for space in (vars(kind), vars(sys.modules.get(kind.__module__, object))):
            for name, value in list(space.items()):
                if type(value) in _CONTAINERS and not name.startswith("__") and id(value) not in seen:
                    seen.add(id(value))
                    yield value
