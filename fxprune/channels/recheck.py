"""Run the engine again on a rewritten network: its couplings must be those of the dense one among the survivors."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.channels.atoms import Axis
from fxprune.channels.engine import Analysis, analyse
from fxprune.channels.groups import Couplings
from fxprune.channels.rewrite import Rewritten
from fxprune.channels.solve import Ints, hard_ties, settle


def analyse_again(couplings: Couplings, result: Rewritten) -> Analysis:
    """The engine's answers about the rewritten network, calls read as they were in the dense one.

    What is the last of its group is no channel any more. Laid out along a dimension of its own (one channel a head),
    it would be taken for one and couple with others there.
    """
    dense = couplings.analysis
    last = dict(_last_channels(couplings, result))
    return analyse(result.program, approximate=dense.approximate, readings=dense.readings, last=last)


def _last_channels(couplings: Couplings, result: Rewritten) -> Iterator[tuple[tuple[str, int], Tensor]]:
    alone = ~_has_company(couplings, result, np.arange(couplings.analysis.atoms.total))
    for axis in couplings.analysis.atoms.axes:
        places = slice(axis.start, axis.start + axis.count)
        last = alone[places][result.cut.alive[places]]
        if axis.kind == "parameter" and last.any():
            yield (axis.name, axis.dim), torch.from_numpy(last)


def disagreement(couplings: Couplings, result: Rewritten, again: Analysis) -> str:
    """What is coupled differently after the rewrite; empty when nothing is.

    Entries that are frozen in the small network, or the last of their group, can say nothing about couplings: a tensor
    of one channel carries no atoms, and whoever meets it is frozen.
    """
    settled = settle(again.atoms, hard_ties(again.atoms))
    small = settled.root
    hard = settle(couplings.analysis.atoms, hard_ties(couplings.analysis.atoms)).root
    matched = list(_matched_axes(couplings, result, again.atoms.axes))
    if not matched:
        return ""
    old = np.concatenate([atoms for atoms, _, _ in matched])
    new = np.concatenate([atoms for _, atoms, _ in matched])
    names = np.concatenate([np.full(len(atoms), number) for number, (atoms, _, _) in enumerate(matched)])
    axes = [axis for _, _, axis in matched]
    telling = ~settled.frozen(new) & _has_company(couplings, result, old)
    old, new, names = old[telling], new[telling], names[telling]
    merged = _first_split(small[new], couplings.components.root[old])
    if merged is not None:
        return f"channels of {_name(axes[names[merged]])} are coupled after the rewrite that were not before"
    parted = _first_split(hard[old], small[new])
    if parted is not None:
        return f"channels of {_name(axes[names[parted]])} were coupled before the rewrite and are not after it"
    return ""


def _has_company(couplings: Couplings, result: Rewritten, atoms: Ints) -> NDArray[np.bool_]:
    """Which atoms belong to a group that kept more than one channel; the last one is not a channel any more."""
    left = np.unique(couplings.components.root[np.flatnonzero(result.cut.alive)])
    groups = couplings.group_of[left]
    counts = np.bincount(groups[groups >= 0], minlength=len(couplings.groups))
    found: NDArray[np.bool_] = counts[couplings.group_of[atoms]] > 1
    return found


def _name(axis: Axis) -> str:
    return f"{axis.name}[{axis.dim}]"


def _first_split(one: Ints, other: Ints) -> int | None:
    """Position of an entry whose `one` value goes with two different `other` values, if there is one."""
    order = np.lexsort((other, one))
    same, differs = one[order][1:] == one[order][:-1], other[order][1:] != other[order][:-1]
    places = np.flatnonzero(same & differs)
    return int(order[places[0] + 1]) if len(places) else None


def _matched_axes(couplings: Couplings, result: Rewritten, axes: list[Axis]) -> Iterator[tuple[Ints, Ints, Axis]]:
    """Surviving atoms of each axis, dense and cut, in the same order. Axes that have shrunk to one entry have no
    atoms.
    """
    cut_axes = {(axis.name, axis.dim): axis for axis in axes if axis.kind == "parameter"}
    for axis in couplings.analysis.atoms.axes:
        twin = cut_axes.get((axis.name, axis.dim))
        if axis.kind != "parameter" or twin is None:
            continue
        atoms = np.arange(axis.start, axis.start + axis.count)
        atoms = atoms[result.cut.alive[atoms]]
        if len(atoms) == twin.count:
            yield atoms, np.arange(twin.start, twin.start + twin.count), axis
