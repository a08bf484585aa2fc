"""Networks halved at random, with statistics that are not at their initial values."""

from __future__ import annotations

import torch
from torch import nn

import fxprune
from fxprune import Compiled


def noisy(model: nn.Module) -> nn.Module:
    """Statistics that are not at their initial values, in float64."""
    model.double()
    draw = torch.Generator().manual_seed(2)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=draw, dtype=torch.float64))
    return model


def compiled(model: nn.Module, size: int, **options: object) -> Compiled:
    asked = {"keep_rate": 0.5, "select": "random", "keep_weights": True, "proof": False} | options
    return fxprune.compile(model, torch.empty(2, 3, size, size, dtype=next(model.parameters()).dtype), **asked)  # type: ignore[arg-type]
