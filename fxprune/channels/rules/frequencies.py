"""Fourier transforms, and complex numbers made from real ones and back."""

from __future__ import annotations

from fxprune.channels.context import Context
from fxprune.channels.layers import collapse
from fxprune.channels.records import Call
from fxprune.channels.rules.table import rule


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def transformed(ctx: Context, call: Call) -> None:
    """Every frequency hangs on every entry along the transformed dimensions; other dimensions stay apart."""
    tensor = call.tensor("self")
    labels = ctx.fold_all(ctx.of(tensor), call.dims("dim", tensor.ndim))
    ctx.label(call.result, labels.layers)


@rule("view_as_complex")
def to_complex(ctx: Context, call: Call) -> None:
    """The last dimension, real and imaginary part, becomes one number."""
    tensor = call.tensor("self")
    labels = ctx.fold_all(ctx.of(tensor), {tensor.ndim - 1})
    ctx.label(call.result, [layer.squeeze(-1) for layer in labels.layers])


@rule("view_as_real")
def to_real(ctx: Context, call: Call) -> None:
    labels = ctx.of(call.tensor("self"))
    ctx.label(call.result, [collapse(layer.unsqueeze(-1)) for layer in labels.layers])
