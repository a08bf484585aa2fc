"""Dataclasses that networks take and return: PyTorch looks for tensors in those only that it has been told of."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_PLAIN = (Tensor, bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def is_dataclass(kind: type) -> bool:
    return hasattr(kind, "__dataclass_fields__")


def field_names(kind: type) -> tuple[str, ...]:
    """What a dataclass is made of."""
    return tuple(one.name for one in dataclasses.fields(kind) if one.init)


def know(value: Any) -> None:
    """Tell PyTorch of every dataclass in a value, as torch.export asks users to: it finds tensors in them then."""
    for leaf in pytree.tree_leaves(value):
        if is_dataclass(type(leaf)):
            know([getattr(leaf, name) for name in field_names(type(leaf))])
            pytree.register_dataclass(type(leaf))


def check_result(result: Any) -> None:
    """Raise TypeError for what a network returns and nobody can look into: its tensors would not be seen."""
    for leaf in pytree.tree_leaves(result):
        if not isinstance(leaf, _PLAIN):
            raise TypeError(
                f"the network returns {type(leaf).__qualname__}: results are tensors, tuples, lists, dicts or "
                "dataclasses"
            )
