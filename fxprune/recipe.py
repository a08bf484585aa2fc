"""Recipe: what was decided, in the user's own names, and how to do it again to another copy of the network."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capture.plain import plain_weights
from fxprune.channels.leaves import follow_shapes
from fxprune.errors import RewriteError
from fxprune.program import named_tensors

Indices = Mapping[str, Mapping[int, Any]]


@dataclass(frozen=True)
class Recipe:
    """Decisions of one compilation.

    kept            parameter or buffer name -> dimension -> surviving original indices, for everything that lost
                    channels
    kept_per_group  the same for grouped convolutions whose conv groups lost different positions: one list a conv group
    numbers         module name -> attribute -> value, for numbers that cannot be read off the shapes (groups,
                    num_groups)
    shapes          name -> shape in the dense network, of everything in `kept` and `kept_per_group`
    indices         index buffer -> its new values, which count among the survivors
    patched         graph nodes whose source holds a width; with any of them `apply` cannot work on the user's own class
    folded          weights that the network standardises: it would do so again with what is left of them, so `apply`
                    cannot work on the user's own class either
    options         what was asked: sparsity or keep_rate, criterion, policy, coupling, seed, ...
    versions        of fxprune and torch
    """

    kept: Mapping[str, Mapping[int, list[int]]]
    kept_per_group: Mapping[str, Mapping[int, list[list[int]]]]
    numbers: Mapping[str, Mapping[str, Any]]
    shapes: Mapping[str, list[int]]
    indices: Mapping[str, list[int]]
    patched: tuple[str, ...]
    options: Mapping[str, Any]
    versions: Mapping[str, str]
    folded: tuple[str, ...] = ()

    def apply(self, model: nn.Module) -> nn.Module:
        """A copy of the user's own network with the same channels removed; weights that survive are kept, masks are
        not applied, parametrised weights become plain ones.

        Works where the network's forward holds no width in its source. Raises RewriteError when names or sizes do
        not fit.
        """
        if self.patched:
            raise RewriteError(
                f"the source of {type(model).__name__} holds widths that would have to change "
                f"(at {', '.join(self.patched[:5])}): use the compiled module, in which they are patched"
            )
        if self.folded:
            raise RewriteError(
                f"{type(model).__name__} computes statistics over its own weights (over {self.folded[0]}), which "
                "change when channels go: use the compiled module, in which they are folded into the weights"
            )
        model, _ = plain_weights(model)
        tensors = named_tensors(model)
        missing = [name for name in (*self.kept, *self.kept_per_group) if name not in tensors]
        if missing:
            raise RewriteError(f"the recipe cuts {missing[0]}, which {type(model).__name__} does not have")
        wrong = [name for name, shape in self.shapes.items() if list(tensors[name].shape) != shape]
        if wrong:
            found, shape = tuple(tensors[wrong[0]].shape), tuple(self.shapes[wrong[0]])
            raise RewriteError(f"{wrong[0]} has shape {found}; the recipe was made for {shape}")
        memo: dict[int, Any] = {}
        for name, tensor in tensors.items():
            if id(tensor) not in memo:
                memo[id(tensor)] = _like(tensor, self._cut(name, tensor.detach()))
        small = copy.deepcopy(model, memo)
        for path, attributes in self.numbers.items():
            for attribute, value in attributes.items():
                setattr(small.get_submodule(path), attribute, tuple(value) if isinstance(value, list) else value)
        for module in small.modules():
            follow_shapes(module)
        return small

    def _cut(self, name: str, tensor: Tensor) -> Tensor:
        if name in self.indices:
            return torch.tensor(self.indices[name], dtype=tensor.dtype)
        try:
            for dim, kept in self.kept.get(name, {}).items():
                tensor = tensor.index_select(dim, torch.tensor(kept))
            for dim, groups in self.kept_per_group.get(name, {}).items():
                rows = torch.tensor(groups).repeat_interleave(tensor.shape[0] // len(groups), dim=0)
                index = rows.reshape(*rows.shape, *[1] * (tensor.ndim - 2)).expand(*rows.shape, *tensor.shape[2:])
                tensor = tensor.gather(dim, index)
        except (IndexError, RuntimeError) as error:
            raise RewriteError(
                f"{name} has shape {tuple(tensor.shape)}, which the recipe does not fit: {error}"
            ) from None
        return tensor.clone()

    def to_json(self) -> str:
        """The recipe as text; equal recipes give equal text."""
        content = {
            "kept": _plain(self.kept),
            "kept_per_group": _plain(self.kept_per_group),
            "numbers": self.numbers,
            "shapes": self.shapes,
            "indices": self.indices,
            "patched": self.patched,
            "folded": self.folded,
            "options": self.options,
            "versions": self.versions,
        }
        return json.dumps(content, sort_keys=True)


def _plain(indices: Indices) -> dict[str, dict[str, Any]]:
    return {name: {str(dim): list(kept) for dim, kept in dims.items()} for name, dims in indices.items()}


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    return nn.Parameter(value, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
