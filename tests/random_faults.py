"""Faults to plant into the engine: each is small, and a careful author could have made it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fxprune.channels import rules
from fxprune.channels.atoms import Atoms
from fxprune.channels.context import Context
from fxprune.channels.records import Call
from fxprune.channels.rules import convolution, moving
from fxprune.channels.rules.joining import _join


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Also entries of a dictionary."""
    table = owner if isinstance(owner, dict) else vars(owner)
    before = table[name]
    _set(owner, name, value)
    try:
        yield
    finally:
        _set(owner, name, before)


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, dict):
        owner[name] = value
    else:
        setattr(owner, name, value)


def addition_ties_nothing() -> Any:
    """Element by element: the result carries the first operand's channels, and the second's are forgotten."""
    whole = rules.RULES["pointwise"]

    def forgetful(ctx: Context, call: Call) -> None:
        if call.function is not torch.ops.aten.add.Tensor or not isinstance(call.arguments["other"], Tensor):
            whole(ctx, call)
            return
        ctx.label(call.result, ctx.of(call.tensor("self")).layers)

    return _replaced(rules.RULES, "pointwise", forgetful)


def conv_groups_uneven() -> Any:
    """Conv groups may keep different numbers of channels."""
    return _replaced(Atoms, "keep_balanced", lambda self, rows, site: None)


def cat_one_off() -> Any:
    """The channels of a concatenation are numbered from one instead of zero."""

    def shifted(ctx: Context, operands: Any, dim: int) -> list[Tensor]:
        return [layer.roll(1, dim) for layer in _join(ctx, operands, dim)]

    return _replaced(rules.joining, "_join", shifted)


def runs_untied() -> Any:
    """A strided slice lets the channels between its own go alone."""
    return _replaced(moving, "_tie_runs", lambda ctx, labels, dim, call: None)


def multiplier_blockwise() -> Any:
    """A depthwise layer with a multiplier is read as blocks of copies instead of neighbours."""

    def blocks(layer: Tensor, width: int, dim: int = 0) -> Tensor:
        size = layer.shape[dim]
        if size in (1, width):
            return layer
        return layer.repeat([width // size if d == dim else 1 for d in range(layer.ndim)])

    return _replaced(convolution, "_repeat", blocks)


FAULTS: dict[str, Callable[[], Any]] = {
    planted.__name__: planted
    for planted in (addition_ties_nothing, conv_groups_uneven, cat_one_off, runs_untied, multiplier_blockwise)
}
