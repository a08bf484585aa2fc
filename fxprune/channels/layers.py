"""Labels of one tensor, and the arithmetic on them. Everything here is about positions; no network value is read.

A *layer* is an int64 tensor that broadcasts to the labelled tensor's shape. Each entry names the channel atom that the
element belongs to; removing the atom removes the element. Dimensions along which a layer does not vary have size 1, so
that a feature map of a million pixels is described by as many labels as it has channels. Atom 0 is never removed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

FIXED = 0  # the atom of elements that can never be removed


@dataclass(frozen=True)
class Labels:
    """Shape and layers of one tensor; `source` is the parameter it was computed from, if from one alone."""

    shape: tuple[int, ...]
    layers: tuple[Tensor, ...] = ()
    source: str | None = None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def layers_along(self, dims: Iterable[int]) -> list[Tensor]:
        """The layers that vary along at least one of the dimensions."""
        wanted = set(dims)
        return [layer for layer in self.layers if wanted & varying(layer)]


def varying(layer: Tensor) -> frozenset[int]:
    """Dimensions along which the layer has more than one entry."""
    return _wide(layer.shape)


@lru_cache(1024)
def _wide(shape: torch.Size) -> frozenset[int]:
    return frozenset(dim for dim, size in enumerate(shape) if size > 1)


def along(layer: Tensor, dim: int, ndim: int) -> Tensor:
    """A one-dimensional list of atoms laid along dimension `dim` of an `ndim`-dimensional tensor."""
    return layer if ndim == layer.ndim == 1 else layer.reshape([-1 if d == dim else 1 for d in range(ndim)])


def collapse(layer: Tensor) -> Tensor:
    """Reduce to size 1 every dimension along which all entries are equal."""
    for dim, size in enumerate(layer.shape):
        if size > 1 and (layer.stride(dim) == 0 or _constant_along(layer, dim)):
            layer = layer.narrow(dim, 0, 1)
    held = layer.untyped_storage().nbytes()
    return layer.clone() if held > 2 * layer.nbytes else layer  # a view would keep all of it alive


def _constant_along(layer: Tensor, dim: int) -> bool:
    first = layer.narrow(dim, 0, 1)
    if not torch.equal(first, layer.narrow(dim, 1, 1)):  # most layers differ at once
        return False
    return bool((layer == first).all())


def move(labels: Labels, function: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """Carry out an index-moving operation on every layer. The layer is expanded to the tensor's shape by strides
    only.
    """
    return tuple(collapse(function(layer.expand(labels.shape))) for layer in labels.layers)


def pad_left(labels: Labels, ndim: int) -> Labels:
    """Add leading dimensions of size 1, as broadcasting does."""
    extra = ndim - labels.ndim
    if extra <= 0:
        return labels
    layers = tuple(layer.reshape((1,) * extra + tuple(layer.shape)) for layer in labels.layers)
    return Labels((1,) * extra + labels.shape, layers, labels.source)


def insert_dims(labels: Labels, positions: Sequence[int]) -> Labels:
    """Insert dimensions of size 1 so that they stand at `positions` of the result."""
    shape = list(labels.shape)
    layers = list(labels.layers)
    for position in sorted(positions):
        shape.insert(position, 1)
        layers = [layer.unsqueeze(position) for layer in layers]
    return Labels(tuple(shape), tuple(layers), labels.source)


def drop_dim(labels: Labels, dim: int) -> Labels:
    """Remove a dimension that no layer varies along."""
    shape = labels.shape[:dim] + labels.shape[dim + 1 :]
    return Labels(shape, tuple(layer.squeeze(dim) for layer in labels.layers), labels.source)
