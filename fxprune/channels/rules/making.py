"""Operators that make a tensor from sizes or from another tensor's shape."""

from __future__ import annotations

from fxprune.channels.context import Context
from fxprune.channels.records import Call
from fxprune.channels.rules.table import rule


@rule("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")
def made_alike(ctx: Context, call: Call) -> None:
    """Every element is as good as any other: the result loses what its model loses."""
    ctx.label(call.result, ctx.of(call.tensor("self")).layers)


@rule("zeros", "ones", "full", "empty", "rand", "randn", "new_zeros", "new_ones", "new_full", "new_empty")
def made_from_sizes(ctx: Context, call: Call) -> None:
    """Constant channels have atoms of their own; whoever meets them decides, and the sizes are patched."""
    ctx.label(call.result, ctx.made(call.result))


@rule("arange", "linspace", "eye", "scalar_tensor", "randint", "randperm", "tril_indices", "triu_indices")
def made_with_positions(ctx: Context, call: Call) -> None:
    """Elements tell positions apart, so nothing may go."""
    ctx.label(call.result, ())
