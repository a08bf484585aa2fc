"""Comparing two runs of a network."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxprune.program import Inputs


def difference(expected: Any, found: Any) -> float:
    """max|a - b| / max|a| over all tensors of two equal structures; infinite where shapes or NaNs differ."""
    worst = 0.0
    for a, b in zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True):
        if isinstance(a, Tensor):
            worst = max(worst, relative(a, b))
    return worst


def relative(a: Tensor, b: Tensor) -> float:
    """max|a - b| / max|a|, or max|a - b| where that is zero; what is not finite counts as equal in the same places."""
    if a.shape != b.shape:
        return math.inf
    if not a.numel():
        return 0.0
    a, b = (torch.view_as_real(one) if one.is_complex() else one for one in (a, b))
    a, b = a.double(), b.double()
    same = (a == b) | (a.isnan() & b.isnan())  # infinities and NaN in the same places
    gap = (a - b).abs().masked_fill(same, 0.0).nan_to_num(nan=math.inf).max().item()
    scale = a.abs().nan_to_num(nan=0.0, posinf=0.0).max().item()
    return gap / scale if scale else gap


def random_inputs(inputs: Inputs, seed: int, dtype: torch.dtype | None = None) -> Inputs:
    """Normal numbers in place of floating-point tensors, of their own type unless one is given; others as they are."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, generator=generator, dtype=torch.float64).to(dtype or tensor.dtype)
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor.clone()

    args, kwargs = pytree.tree_map_only(Tensor, draw, (inputs.args, dict(inputs.kwargs)))
    return Inputs(args, kwargs)
