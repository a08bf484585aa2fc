"""What remains of a labelled tensor once it is known which atoms survive."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.channels.layers import Labels
from fxprune.channels.solve import Ints

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Cut:
    """The decision, atom by atom, and what follows from it for any labelled tensor."""

    alive: Mask
    parameter_labels: Mapping[str, Labels]
    _shapes: dict[int, tuple[Labels, tuple[int, ...]]] = field(default_factory=dict)
    _positions: dict[int, tuple[Labels, dict[int, Ints]]] = field(default_factory=dict)

    def mask(self, layer: Tensor) -> Tensor:
        """True where an entry of the layer survives; shaped as the layer."""
        return torch.from_numpy(self.alive[layer.numpy()])

    def kept_along(self, labels: Labels, dim: int) -> Tensor:
        """Positions of dimension `dim` that survive, as a mask of its full length."""
        return torch.from_numpy(self._kept(labels.layers, labels.shape, dim % labels.ndim))

    def _kept(self, layers: Iterable[Tensor], shape: Sequence[int], dim: int) -> Mask:
        kept: Mask | None = None
        for layer in layers:
            if layer.shape[dim] > 1:
                alive: Mask = self.alive[layer.numpy()]
                if alive.size > shape[dim]:
                    alive = np.asarray(alive.any(axis=tuple(d for d in range(alive.ndim) if d != dim)))
                kept = alive.reshape(-1) if kept is None else kept & alive.reshape(-1)
        return np.ones(shape[dim], dtype=np.bool_) if kept is None else kept

    def shape(self, labels: Labels) -> tuple[int, ...]:
        """The tensor's shape after the cut."""
        known = self._shapes.get(id(labels))
        if known is not None:
            return known[1]
        shape = list(labels.shape)
        for dim in range(labels.ndim):
            if any(layer.shape[dim] > 1 for layer in labels.layers):
                shape[dim] = int(np.count_nonzero(self._kept(labels.layers, labels.shape, dim)))
        joint = self._joint(labels)
        if joint is not None:  # columns of a grouped weight: as many as one row keeps
            rows = self._plain(labels, joint, 0)
            shape[0] = int(np.count_nonzero(rows))
            shape[1] = int(self.mask(joint)[torch.from_numpy(rows)][0].sum())
        self._shapes[id(labels)] = (labels, tuple(shape))
        return tuple(shape)

    def _joint(self, labels: Labels) -> Tensor | None:
        """The layer over (rows, columns) of a grouped convolution's weight; on activations such layers are
        rectangles.
        """
        if labels.source is None or labels.ndim < 2 or self.parameter_labels.get(labels.source) is not labels:
            return None
        return next((layer for layer in labels.layers if layer.shape[0] > 1 and layer.shape[1] > 1), None)

    def kept_positions(self, labels: Labels) -> dict[int, Ints]:
        """Dimension -> surviving indices, for each dimension that loses any in the same way throughout."""
        known = self._positions.get(id(labels))
        if known is not None:
            return known[1]
        joint = self._joint(labels)
        found = {}
        for dim in range(labels.ndim):
            own = any(layer.shape[dim] > 1 for layer in labels.layers)
            if not own or (joint is not None and dim == 1):
                continue
            kept = self._plain(labels, joint, dim)
            positions = kept.nonzero()[0]
            if len(positions) < len(kept):
                found[dim] = positions
        self._positions[id(labels)] = (labels, found)
        return found

    def _plain(self, labels: Labels, joint: Tensor | None, dim: int) -> Mask:
        """What survives along `dim` by all layers but the joint one."""
        return self._kept((layer for layer in labels.layers if layer is not joint), labels.shape, dim)

    def kept_rows(self, labels: Labels) -> Tensor:
        """Surviving rows (dimension 0) of a parameter, as a mask."""
        return torch.from_numpy(self._plain(labels, self._joint(labels), 0))

    def kept_columns(self, labels: Labels) -> Ints | None:
        """Surviving columns of each surviving row of a grouped weight (rows x columns), or None where nothing is
        lost.
        """
        joint = self._joint(labels)
        if joint is None:
            return None
        alive = self.mask(joint).reshape(joint.shape[0], joint.shape[1])[self.kept_rows(labels)]
        if bool(alive.all()):
            return None
        found: Ints = alive.nonzero()[:, 1].reshape(alive.shape[0], -1).numpy()
        return found

    def slice(self, labels: Labels, tensor: Tensor) -> Tensor:
        """The surviving part of a tensor of shape `labels.shape`, as a new tensor; the same object when nothing is
        lost.
        """
        result = _selected(tensor.detach(), self.kept_positions(labels))
        columns = self.kept_columns(labels)
        if columns is not None:
            index = torch.from_numpy(columns).reshape(*columns.shape, *[1] * (result.ndim - 2))
            result = result.gather(1, index.expand(*columns.shape, *result.shape[2:]))
        return tensor if result.shape == tensor.shape else result


def _selected(tensor: Tensor, positions: Mapping[int, Ints]) -> Tensor:
    """These positions along these dimensions, block by block where doing one dimension after the other takes room."""
    index = {dim: torch.from_numpy(kept) for dim, kept in positions.items()}
    if len(index) > 1 and 0 in index and tensor.numel() > _BLOCK:
        rows = index.pop(0)
        shape = [len(index[dim]) if dim in index else size for dim, size in enumerate(tensor.shape)]
        result = tensor.new_empty((len(rows), *shape[1:]))
        step = max(1, _BLOCK * tensor.shape[0] // tensor.numel())
        for start in range(0, len(rows), step):
            result[start : start + step] = _one_by_one(tensor.index_select(0, rows[start : start + step]), index)
        return result
    return _one_by_one(tensor, index)


_BLOCK = 1 << 20  # elements


def _one_by_one(tensor: Tensor, index: Mapping[int, Tensor]) -> Tensor:
    for dim, kept in index.items():
        tensor = tensor.index_select(dim, kept)
    return tensor
