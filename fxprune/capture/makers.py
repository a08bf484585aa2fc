"""Functions that make a tensor from sizes, while a network is traced.

`torch.zeros(x.size(0), 8)` takes no tensor, so that torch.fx neither sees the call nor can give it a number for a size
that is not known yet. And a random tensor must be drawn anew each time, not once and for all while tracing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx
from torch.autograd.variable import VariableMeta
from torch.utils import _pytree as pytree
from torch.utils._device import _device_constructors

_BERNOULLI = torch.bernoulli
_RANDOM = ("rand", "randn", "randint", "randperm", "normal", "bernoulli")
_PLAIN = ("zeros", "ones", "empty", "full", "eye", "arange", "linspace", "tensor", "as_tensor")


@contextmanager
def recorded_makers(tracer: fx.Tracer, asleep: Callable[[], bool]) -> Iterator[None]:
    """Calls of these functions become nodes where they are given proxies or draw numbers; not while `asleep`."""
    _device_constructors()  # remembers these functions for `with torch.device(...)`: as they are, not as they will be
    originals = {name: getattr(torch, name) for name in (*_RANDOM, *_PLAIN)}
    for name, original in originals.items():
        setattr(torch, name, _recording(tracer, original, asleep, always=name in _RANDOM))
    try:
        with _variables_are_tensors():
            yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


@contextmanager
def _variables_are_tensors() -> Iterator[None]:
    """`Variable(x)`, as it was written before PyTorch 0.4, is x."""

    def call(kind: type, data: Any, *args: Any, **kwargs: Any) -> Any:
        return data if isinstance(data, fx.Proxy) else type.__call__(kind, data, *args, **kwargs)

    VariableMeta.__call__ = call  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del VariableMeta.__call__


def _recording(
    tracer: fx.Tracer, original: Callable[..., Any], asleep: Callable[[], bool], *, always: bool
) -> Callable[..., Any]:
    @functools.wraps(original)
    def make(*args: Any, **kwargs: Any) -> Any:
        given = any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves((args, kwargs)))
        if asleep() or not (always or given) or "generator" in kwargs:
            return original(*args, **kwargs)
        if original is _BERNOULLI and not given and len(args) == 1 and not kwargs:
            return (torch.rand(args[0].shape) < args[0]).to(args[0].dtype)  # a constant is no probability to everybody
        return tracer.create_proxy("call_function", original, args, kwargs)

    return make
