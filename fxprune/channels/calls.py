"""What is to be known about one ATen call: its arguments by name, the layout of its result, what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import conv_flop_count, flop_registry


def flops_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> int:
    """Floating-point operations of a call; 0 for operators that PyTorch does not count."""
    if func is torch.ops.aten.convolution.default:  # PyTorch's own formula, without its way there
        return conv_flop_count(args[0].shape, args[1].shape, result.shape, transposed=args[6])
    known = flop_registry.get(func._overloadpacket)
    return known(*args, **kwargs, out_val=result) if known else 0


# Their results lie in memory in another order on the meta device than on the CPU, where inputs are channels-last.
_OWN_ORDER = {
    *("convolution", "native_group_norm", "roll", "pixel_shuffle", "channel_shuffle", "native_channel_shuffle"),
    *(f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)),
}


def plain_layout(func: Any, result: Any) -> Any:
    """The result in row-major order where backends differ: which matrix products are issued depends on it."""
    if func._schema.name.removeprefix("aten::") not in _OWN_ORDER:
        return result
    return pytree.tree_map_only(Tensor, Tensor.contiguous, result)


def with_places(func: Any, args: tuple[Any, ...], mask_of: Callable[[Tensor | None], Tensor | None]) -> tuple[Any, ...]:
    """A constant mask as an index becomes its places: how many they are is known from its numbers alone."""
    if func is not torch.ops.aten.index.Tensor:
        return args
    masks = [mask_of(one) for one in args[1]]
    places = [mask if mask is None else mask.nonzero()[:, 0].to("meta") for mask in masks]
    found = [one if place is None else place for one, place in zip(args[1], places, strict=True)]
    return (args[0], found, *args[2:])


def by_name(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of an ATen call by schema name and in its order, defaults filled in."""
    names, defaults = _signature(func)
    bound = dict(zip(names, args, strict=False))
    for name in names[len(args) :]:
        if name in kwargs or name in defaults:
            bound[name] = kwargs[name] if name in kwargs else defaults[name]
    return bound


@cache
def _signature(func: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Names of the arguments in order, and those with a default value."""
    arguments = func._schema.arguments
    defaults = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    return tuple(argument.name for argument in arguments), defaults
