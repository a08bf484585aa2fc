"""References for networks whose channels meet outside of layers. They use a recipe's names and indices only."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from family_oracle import columns, oracle
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fxprune.program import named_tensors
from fxprune.recipe import Recipe


def references(dense: nn.Module, recipe: Recipe) -> Iterator[tuple[str, nn.Module]]:
    """(name, what the cut network may have to equal), each right for networks of one kind."""
    zeroed = oracle(dense, recipe)
    yield "oracle", zeroed
    yield "oracle, queries", query_rows_too(zeroed, recipe)
    yield "oracle, computed weights", columns_at_calls(dense, recipe)


def query_rows_too(zeroed: nn.Module, recipe: Recipe) -> nn.Module:
    """The zeroed network with removed outputs of linear layers and convolutions silent as well.

    Queries and keys of attention meet in a product that no layer holds: what is gone from both must count as zero.
    """
    silent = copy.deepcopy(zeroed)
    with torch.no_grad():
        for path, part in silent.named_modules():
            kept = recipe.kept.get(f"{path}.weight", {}).get(0)
            if isinstance(part, nn.Linear | nn.Conv2d) and kept is not None:
                gone = torch.ones(len(part.weight), dtype=torch.bool)
                gone[kept] = False
                for tensor in (part.weight, part.bias):
                    if tensor is not None:
                        tensor[gone] = 0
    return silent


def columns_at_calls(model: nn.Module, recipe: Recipe) -> nn.Module:
    """The dense network whose layers drop removed columns when they are called, not before: for weights that are
    computed from parameters at each call, as standardised ones are, over all columns.
    """
    twin = copy.deepcopy(model).eval()
    for path, part in twin.named_modules():
        if isinstance(part, nn.modules.conv._ConvNd | nn.Linear):
            mode = _Dropping(columns(f"{path}.weight", part, recipe))
            part.forward = mode.around(part.forward)
    return twin


class _Dropping(TorchFunctionMode):
    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def around(self, forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            with self:
                return forward(*args, **kwargs)

        return run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _SUMMING and len(args) > 1 and args[1].shape == self.mask.shape:
            args = (args[0], args[1] * self.mask, *args[2:])
        return func(*args, **kwargs or {})


@contextmanager
def kept_channels_only(model: nn.Module, recipe: Recipe) -> Iterator[None]:
    """Layer, group and RMS normalisations of this network compute their statistics from the channels that the recipe
    keeps of their weights; removed channels come out as zero. A window of one channel that slides over as many entries
    as the last batch norm had channels sees those that are kept of these.
    """
    kept = {id(tensor): recipe.kept.get(name, {}).get(0) for name, tensor in named_tensors(model).items()}
    with _OverKept({key: torch.tensor(value) for key, value in kept.items() if value is not None}):
        yield


class _OverKept(TorchFunctionMode):
    def __init__(self, kept: dict[int, Tensor]) -> None:
        super().__init__()
        self.kept = kept
        self.last: tuple[int, Tensor | None] = (0, None)  # channels of the last batch norm, and those that are kept

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            weight = dict(zip(_BATCH, args, strict=False)) | kwargs
            self.last = args[0].shape[1], self.kept.get(id(weight.get("weight")))
        if func is F.conv1d and args[1].shape[:2] == (1, 1) and args[0].shape[-1] == self.last[0]:
            return self._slid(args, kwargs)
        names = _NORMS.get(func)
        if names is None:
            return func(*args, **kwargs)
        bound = dict(zip(names, args, strict=False)) | kwargs
        kept = self.kept.get(id(bound.get("weight")))
        if kept is None:
            return func(**bound)
        x = bound["input"]
        few = {name: bound[name][kept] for name in ("weight", "bias") if bound.get(name) is not None}
        dim = 1
        if func is F.group_norm:
            width = x.shape[1] // bound["num_groups"]
            few["num_groups"] = len(torch.unique(kept // width))  # a group without channels is gone
        else:
            shape = tuple(bound["normalized_shape"])
            few["normalized_shape"] = (len(kept), *shape[1:])
            dim = x.dim() - len(shape)
        few["input"] = x.index_select(dim, kept)
        return torch.zeros_like(x).index_copy(dim, kept, func(**bound | few))

    def _slid(self, args: Any, kwargs: Any) -> Tensor:
        x, kept = args[0], self.last[1]
        if kept is None:
            return F.conv1d(*args, **kwargs)
        return torch.zeros_like(x).index_copy(-1, kept, F.conv1d(x.index_select(-1, kept), *args[1:], **kwargs))


_SUMMING = {F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, F.linear}
_LAYER = ("input", "normalized_shape", "weight", "bias", "eps")
_BATCH = ("input", "running_mean", "running_var", "weight", "bias")
_GROUP = ("input", "num_groups", "weight", "bias", "eps")
_RMS = ("input", "normalized_shape", "weight", "eps")
_NORMS = {F.layer_norm: _LAYER, F.group_norm: _GROUP, F.rms_norm: _RMS}
