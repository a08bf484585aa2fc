"""Scores of channels, and the choice of those that stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.channels.groups import ChannelGroup, Couplings
from fxprune.channels.layers import Labels, varying
from fxprune.channels.solve import Ints

Scores = NDArray[np.float64]


def feasible(couplings: Couplings, kept: Mapping[int, Ints], scores: Scores) -> dict[int, Ints]:
    """The plan with more channels where a slice, a piece of a split or a statistic would have too few; groups that lose
    none left out.

    scores   one number a root; the best ones come back
    """
    alive = couplings.kept_atoms(kept)
    more: dict[int, list[int]] = {}
    for layer, least in couplings.analysis.atoms.least:
        atoms = layer.numpy()
        while np.count_nonzero(alive[atoms]) < least:
            roots = np.unique(couplings.components.root[atoms[~alive[atoms]]])
            best = int(roots[np.argmax(scores[roots])])
            alive |= couplings.components.root == best
            more.setdefault(int(couplings.group_of[best]), []).append(best)
    grown = {index: _with_roots(couplings.groups[index], kept[index], roots) for index, roots in more.items()}
    plan = {**kept, **grown}
    return {index: positions for index, positions in plan.items() if len(positions) < couplings.groups[index].width}


def _with_roots(group: ChannelGroup, positions: Ints, roots: list[int]) -> Ints:
    """Positions that stay when further channels must; every row gets as many as the one that now has most."""
    score = np.zeros(group.width)
    score[positions] = 1
    score[np.searchsorted(group.roots, roots)] = 2
    per_row = np.bincount(group.rows[score > 0], minlength=group.row_count).max()
    return strongest(group, int(per_row) * group.row_count, score)


def strongest(group: ChannelGroup, count: int, scores: Scores) -> Ints:
    """Positions of `count` channels with the highest scores, equally many of each row, in ascending order.

    Ties go to the lowest index. With several rows the count is rounded up to a multiple of them.
    """
    per_row = max(1, -(-count // group.row_count))
    order = np.lexsort((np.arange(group.width), -scores, group.rows))  # by row, best first
    rank = np.empty(group.width, dtype=np.int64)
    starts = np.searchsorted(group.rows[order], np.arange(group.row_count))
    rank[order] = np.arange(group.width) - starts[group.rows[order]]
    return np.flatnonzero(rank < per_row)


def channel_scores(
    couplings: Couplings, values: Iterable[tuple[str, Tensor]], score: Callable[[Tensor], Tensor] | None = None
) -> Scores:
    """Sum of `values` (masks or |w|, shaped as their weights) over each component's output entries, one number a
    root.

    score   what to sum instead of the values themselves: an element-wise function, called with pieces of them, so that
            a large weight needs little memory
    """
    outputs = {producer.weight: producer.outputs for producer in couplings.analysis.producers}
    scores = np.zeros(couplings.analysis.atoms.total)
    for name, value in values:
        layer = output_layer(couplings, couplings.analysis.parameter_labels[name], outputs[name])
        atoms = layer.reshape(-1).numpy()
        np.add.at(scores, couplings.components.root[atoms], _sums(value, layer, score))
    return scores


def _sums(value: Tensor, layer: Tensor, score: Callable[[Tensor], Tensor] | None) -> Scores:
    """Sums over the dimensions along which `layer` does not vary."""
    dims = tuple(dim for dim, size in enumerate(layer.shape) if size == 1)
    if value.dtype == torch.bool:  # a hundred times faster than torch's sum
        counts: Scores = np.count_nonzero(value.numpy(), axis=dims).astype(np.float64).reshape(-1)
        return counts
    wide = varying(layer)
    pieces = [value]
    if score is not None and len(wide) == 1:
        (dim,) = wide
        pieces = list(value.split(max(1, _PIECE * value.shape[dim] // value.numel()), dim))
    sums = [_sum(score(piece) if score else piece, dims) for piece in pieces]
    return sums[0] if len(sums) == 1 else np.concatenate(sums)


_PIECE = 1 << 16  # elements: a piece and its scores stay in the processor's cache


def _sum(value: Tensor, dims: tuple[int, ...]) -> Scores:
    """In float64, whatever the order of adding: numbers must not depend on the machine's vector length."""
    sums = value.sum(dims, dtype=torch.float64) if dims else value.to(torch.float64)
    found: Scores = sums.reshape(-1).numpy(force=True)
    return found


def output_layer(couplings: Couplings, labels: Labels, outputs: Tensor) -> Tensor:
    """The layer of a weight whose components are those of its outputs."""
    root = couplings.components.root
    made = root[outputs.numpy()]
    for layer in labels.layers:
        own = root[layer.reshape(-1).numpy()]
        if np.array_equal(own, made) or np.array_equal(np.unique(own), np.unique(made)):
            return layer
    return labels.layers[0]
