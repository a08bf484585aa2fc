"""Cut an optimizer along with its network: momentum and other running averages lose the entries that weights lost."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxprune.recipe import Recipe


def cut_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, small: nn.Module, recipe: Recipe) -> None:
    """Make `optimizer` of `model` an optimizer of `small`, in place.

    State tensors of a parameter's shape are cut as the parameter was; other state (step counts) stays. Parameters
    that the small network does not have are dropped from their group. Settings of the groups stay.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    fresh = dict(small.named_parameters())
    state: dict[Tensor, dict[str, Any]] = {}
    for group in optimizer.param_groups:
        replaced = []
        for old in group["params"]:
            name = names.get(id(old))
            if name is None:  # the user's own extra, such as a learned temperature of the loss
                replaced.append(old)
                state.update({old: optimizer.state[old]} if old in optimizer.state else {})
                continue
            if name not in fresh:
                continue
            new = fresh[name]
            replaced.append(new)
            if old in optimizer.state:
                state[new] = {key: _cut(recipe, name, old, value) for key, value in optimizer.state[old].items()}
        group["params"] = replaced
    optimizer.state.clear()
    optimizer.state.update(state)


def _cut(recipe: Recipe, name: str, parameter: Tensor, value: Any) -> Any:
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return value
    return recipe._cut(name, value)
