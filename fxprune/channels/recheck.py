"""Run the engine again on a rewritten network: its couplings must be those of the dense one among the survivors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    if not (alone & result.cut.alive).any():
        return
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
    small, hard = settled.root, couplings.hard_root
    axes = couplings.analysis.atoms.axes
    old, new, names = _survivors(couplings, result, again.atoms.axes)
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
    there = np.zeros(couplings.analysis.atoms.total, dtype=np.bool_)
    there[couplings.components.root[result.cut.alive]] = True
    groups = couplings.group_of[there]
    counts = np.bincount(groups[groups >= 0], minlength=len(couplings.groups))
    found: NDArray[np.bool_] = counts[couplings.group_of[atoms]] > 1
    return found


def _name(axis: Axis) -> str:
    return f"{axis.name}[{axis.dim}]"


def _first_split(one: Ints, other: Ints) -> int | None:
    """Position of an entry whose `one` value goes with two different `other` values, if there is one."""
    if not len(one):
        return None
    partner = np.zeros(int(one.max()) + 1, dtype=np.int64)
    partner[one] = other
    places = np.flatnonzero(partner[one] != other)
    return int(places[0]) if len(places) else None


def _survivors(couplings: Couplings, result: Rewritten, small_axes: Sequence[Axis]) -> tuple[Ints, Ints, Ints]:
    """Surviving atoms of parameters: in the dense network, in the cut one, and the number of the axis they lie on.

    Only axes that both have, with as many survivors as the cut one counts. One that has shrunk to a single entry has no
    atoms.
    """
    axes = couplings.analysis.atoms.axes
    twins = {(axis.name, axis.dim): axis for axis in small_axes if axis.kind == "parameter"}
    found = [twins.get((axis.name, axis.dim)) if axis.kind == "parameter" else None for axis in axes]
    starts = np.array([axis.start for axis in axes], dtype=np.int64)
    counts = np.array([axis.count for axis in axes], dtype=np.int64)
    before = np.concatenate([[0], np.cumsum(result.cut.alive)])  # survivors among the atoms below each one
    left = before[starts + counts] - before[starts]
    fits = np.array([twin is not None and twin.count for twin in found], dtype=np.int64) == left
    small = np.array([twin.start if twin else 0 for twin in found], dtype=np.int64)
    owner = np.repeat(np.arange(len(axes)), counts)  # axes follow each other, from atom 1 on
    old = np.flatnonzero(result.cut.alive[1:] & (fits & (left > 0))[owner]) + 1
    names = owner[old - 1]
    return old, small[names] + before[old] - before[starts[names]], names
