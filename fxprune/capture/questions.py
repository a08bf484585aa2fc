"""Questions about types that code asks while it is traced: a proxy answers for the value it stands for."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import fx

from fxprune.capture.sizes import NotASizeError


@contextmanager
def types_answered(value_of: Callable[[fx.Node], Any]) -> Iterator[None]:
    """torch.is_tensor, torch.jit.isinstance, torch._check and torch.finfo look at what a node returns on the meta
    device.
    """
    is_tensor, is_instance, torch_check = torch.is_tensor, torch.jit.isinstance, torch._check
    finfo, iinfo = torch.finfo, torch.iinfo

    def value(x: Any) -> Any:
        return value_of(x.node) if isinstance(x, fx.Proxy) else x

    def instance(obj: Any, target_type: Any) -> Any:
        return is_instance(value(obj), target_type)  # type: ignore[no-untyped-call]

    def check(cond: Any, *message: Any) -> None:
        torch_check(bool(cond), *message)  # type: ignore[no-untyped-call]

    def limits(kind: Any, *number: Any) -> Any:
        return kind(*map(value, number))

    torch._check = check
    torch.finfo, torch.iinfo = partial(limits, finfo), partial(limits, iinfo)  # type: ignore[assignment, misc]
    torch.is_tensor = lambda obj: is_tensor(value(obj))  # type: ignore[assignment]
    torch.jit.isinstance = instance
    try:
        yield
    finally:
        torch.is_tensor, torch.jit.isinstance, torch._check = is_tensor, is_instance, torch_check
        torch.finfo, torch.iinfo = finfo, iinfo  # type: ignore[misc]


@contextmanager
def instances_answered(value_of: Callable[[fx.Node], Any]) -> Iterator[None]:
    """isinstance too. For networks that cannot be traced otherwise: it is asked all the time, and also by torch's own
    code, which must see proxies as what they are.
    """
    original = builtins.isinstance

    def answer(obj: Any, kinds: Any, /) -> bool:
        if original(obj, kinds) or not original(obj, fx.Proxy):
            return original(obj, kinds)
        asking = sys._getframe(1).f_globals.get("__name__", "")
        if asking.partition(".")[0] in _OWN:
            return False
        try:
            return original(value_of(obj.node), kinds)
        except NotASizeError:
            return False

    builtins.isinstance = answer
    try:
        yield
    finally:
        builtins.isinstance = original


_OWN = ("torch", "fxprune", "einops", "typing", "inspect", "functools", "numpy")
