"""What a cut network must compute, worked out without the engine: the user's own module with input columns zeroed.

A channel is gone for the rest of the network when everything that consumes it multiplies it by zero. So the columns
of convolutions and linear layers that the recipe does not list as kept are zeroed in a copy of the dense module; the
removed channels are still computed there, and nobody looks at them. Only the recipe's names and indices are used.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.recipe import Recipe


def oracle(model: nn.Module, recipe: Recipe) -> nn.Module:
    """A copy of `model` in eval mode that ignores every channel the recipe removes."""
    dense = copy.deepcopy(model).eval()
    with torch.no_grad():
        for path, part in dense.named_modules():
            if isinstance(part, nn.modules.conv._ConvNd | nn.Linear):
                part.weight.mul_(columns(f"{path}.weight", part, recipe))
    return dense


def columns(name: str, layer: nn.modules.conv._ConvNd | nn.Linear, recipe: Recipe) -> Tensor:
    """0 for the input columns of a layer's weight that the recipe drops, 1 elsewhere; shaped as the weight."""
    ones = torch.ones_like(layer.weight)
    kept = recipe.kept.get(name, {})
    conv_groups = getattr(layer, "groups", 1)
    if conv_groups > 1 and conv_groups in layer.weight.shape[:2] and 1 in layer.weight.shape[:2]:
        return ones  # depthwise: rows follow their channel, there are no columns
    dim = int(not getattr(layer, "transposed", False))
    if dim in kept:
        ones *= listed(ones, dim, kept[dim])
    if 1 in recipe.kept_per_group.get(name, {}):
        rows = len(ones) // conv_groups
        alive = sorted({row // rows for row in kept.get(0, range(len(ones)))})
        lists = recipe.kept_per_group[name][1]
        for number, positions in zip(alive, lists, strict=True):
            block = ones[number * rows : (number + 1) * rows]
            block *= listed(block, 1, positions)
    return ones


def listed(like: Tensor, dim: int, positions: list[int]) -> Tensor:
    """1 at these positions of a dimension and 0 elsewhere, broadcastable to `like`."""
    found = torch.zeros(like.shape[dim], dtype=like.dtype)
    found[positions] = 1
    return found.reshape([-1 if d == dim else 1 for d in range(like.ndim)])


def over_kept_channels(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Each LayerNorm of the user's module computes its statistics from the channels that the recipe keeps."""
    for path, part in model.named_modules():
        if isinstance(part, nn.LayerNorm):
            kept = recipe.kept.get(f"{path}.weight", {}).get(0, list(range(len(part.weight))))
            dim = 1 if type(part) is not nn.LayerNorm else -1  # torchvision's LayerNorm2d has its channels second
            part.forward = OverKept(part, kept, dim)
    return model


class OverKept:
    """Forward of one LayerNorm; removed channels come out as zero."""

    def __init__(self, norm: nn.LayerNorm, kept: list[int], dim: int) -> None:
        self.norm, self.kept, self.dim = norm, torch.tensor(kept), dim

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.movedim(self.dim, -1)
        weight, bias = self.norm.weight[self.kept], self.norm.bias[self.kept]
        few = F.layer_norm(rows[..., self.kept], (len(self.kept),), weight, bias, self.norm.eps)
        return torch.zeros_like(rows).index_copy(-1, self.kept, few).movedim(-1, self.dim)


def relative(expected: Any, found: Any) -> float:
    """max|a - b| / max|a|, the worst of all tensors of two results; infinite where that is no number."""
    left, right = (pytree.tree_leaves(value) for value in (expected, found))
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape, f"{tuple(a.shape)} against {tuple(b.shape)}"
        gap = ((a - b).abs().max() / a.abs().max()).item()
        worst = max(worst, gap if gap == gap else float("inf"))
    return worst
