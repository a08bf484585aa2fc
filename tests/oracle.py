"""The oracle of the construct tests: it knows nothing of labels.

It runs the user's dense network with those columns of the consumers set to zero that the recipe says are gone.
"""

from __future__ import annotations

from typing import Any

import torch
from models import Case
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune

EXACT = 1e-9  # max|a - b| / max|a| in float64


def halved(case: Case, **options: Any) -> fxprune.Compiled:
    """Every group keeps half its channels and its weights; the first fault ends it."""
    asked: dict[str, Any] = {"approximate": "cut" if case.inexact else None, "keep_rate": 0.5, **options}
    return fxprune.compile(case.model(), case.example(), select="random", keep_weights=True, retry=False, **asked)


def difference(expected: Any, found: Any) -> float:
    """max|a - b| / max|a| of the worst tensor; structures and shapes must be equal."""
    ours, theirs = pytree.tree_flatten(expected), pytree.tree_flatten(found)
    assert ours[1] == theirs[1]
    errors = [0.0]
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert a.shape == b.shape
        assert bool(a.isfinite().all()) and bool(a.any())
        errors.append(((a - b).abs().max() / a.abs().max()).item())
    return max(errors)


def zeroed(model: nn.Module, case: Case, recipe: fxprune.Recipe) -> nn.Module:
    """The dense network in which nothing reads a removed channel."""
    with torch.no_grad():
        silenced = [(name, 0) for name in case.silenced]
        for name, dim in [*consumers(model).items(), *case.consumers.items(), *silenced]:
            tensor = model.get_parameter(name)
            tensor.mul_(kept_mask(tensor, dim, recipe.kept.get(name, {}).get(dim)))
            if name in recipe.kept_per_group and dim == 1:
                tensor.mul_(kept_per_group_mask(tensor, recipe.kept_per_group[name][1], recipe.kept.get(name, {})))
    return model


def consumers(model: nn.Module) -> dict[str, int]:
    """Weights of convolutions and linear layers, and the dimension over which each sums."""
    found = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            found[f"{path}.weight"] = 1
        elif isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            found[f"{path}.weight"] = 0
    own = dict(model.named_parameters(remove_duplicate=False))  # a parametrised weight is none
    return {name: dim for name, dim in found.items() if name in own}


def kept_mask(tensor: Tensor, dim: int, kept: list[int] | None) -> Tensor:
    if kept is None:
        return torch.ones(1)
    mask = torch.zeros(tensor.shape[dim])
    mask[kept] = 1
    return mask.reshape([-1 if d == dim else 1 for d in range(tensor.ndim)])


def kept_per_group_mask(tensor: Tensor, groups: list[list[int]], kept: Any) -> Tensor:
    """Rows of conv group g read the columns `groups[g]`. No network here loses whole conv groups of such a layer."""
    mask = torch.zeros(tensor.shape[:2])
    per_group = tensor.shape[0] // len(groups)
    for number, columns in enumerate(groups):
        rows = torch.arange(number * per_group, (number + 1) * per_group)
        mask[rows[:, None], columns] = 1
    return mask.reshape(*tensor.shape[:2], *[1] * (tensor.ndim - 2))
