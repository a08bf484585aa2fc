"""Which atoms go together: all ties solved at once, then the constraints that had to wait for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxprune.channels.atoms import Atoms
from fxprune.channels.balance import Ints as Ints
from fxprune.channels.balance import balanced_sets, free_rows, same_in_each_row
from fxprune.channels.layers import FIXED


@dataclass
class Ties:
    """Pairs of atoms that must go together, each with the site that said so."""

    left: list[Ints] = field(default_factory=list)
    right: list[Ints] = field(default_factory=list)
    sites: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)  # pairs that each site stated

    def add(self, left: Ints, right: Ints, site: int) -> None:
        if left.shape != right.shape:
            left, right = np.broadcast_arrays(left, right)
        self.left.append(left.reshape(-1))
        self.right.append(right.reshape(-1))
        self.sites.append(site)
        self.counts.append(left.size)

    def arrays(self) -> tuple[Ints, Ints, Ints]:
        if not self.left:
            none = np.zeros(0, dtype=np.int64)
            return none, none, none
        sites = np.repeat(np.array(self.sites, dtype=np.int64), self.counts)
        return np.concatenate(self.left), np.concatenate(self.right), sites


@dataclass(frozen=True)
class Components:
    """The solution. `root[a]` is the smallest atom that goes together with atom `a`; `stuck[root]` is the site that
    froze it.
    """

    root: Ints
    stuck: Ints  # site number, or FREE
    rows: tuple[tuple[Ints, int], ...]  # (matrix, site): each row of atoms must keep equally many components

    def frozen(self, atoms: Ints) -> NDArray[np.bool_]:
        """Which of these atoms can never be removed."""
        found: NDArray[np.bool_] = (self.stuck[self.root[atoms]] != FREE) | (atoms == FIXED)
        return found


FREE = np.iinfo(np.int64).max


def connect(total: int, left: Ints, right: Ints) -> Ints:
    """Smallest atom of each connected component, by vectorised hooking and pointer jumping (about log2(total)
    rounds). Memory sets the pace: half as wide numbers take half the time.
    """
    width = np.int32 if total <= np.iinfo(np.int32).max else np.int64
    parent = np.arange(total, dtype=width)
    left, right = left.astype(width), right.astype(width)
    while True:
        a, b = parent[left], parent[right]
        differ = np.flatnonzero(a != b)
        if not len(differ):
            return parent.astype(np.int64)
        left, right, a, b = left[differ], right[differ], a[differ], b[differ]
        np.minimum.at(parent, np.maximum(a, b), np.minimum(a, b))
        parent = _jump(parent)


def _jump(parent: NDArray[Any]) -> NDArray[Any]:
    while True:
        further = parent[parent]
        if np.array_equal(further, parent):
            return parent
        parent = further


def hard_ties(atoms: Atoms) -> Ties:
    """What the rules tied, before any constraint is resolved."""
    ties = Ties()
    for left, right, site in atoms.ties:
        ties.add(left.numpy(), right.numpy(), site)
    return ties


def solve(atoms: Atoms, ties: Ties, settled: Components | None = None) -> Components:
    """Ties first; then rectangles and balances, which may add to `ties`, until nothing changes.

    settled   what `settle` says about these ties, if that is known already
    """
    rectangles = _unique_rectangles(atoms)
    components = settled or settle(atoms, ties)
    while True:
        added = _square_up(components, rectangles, ties)
        if not added:
            components, added = _balance(components, atoms, ties)
        if not added:
            return components
        components = settle(atoms, ties)


def settle(atoms: Atoms, ties: Ties) -> Components:
    """Components of the ties as they stand, and which of them are frozen."""
    left, right, sites = ties.arrays()
    real = (left != FIXED) & (right != FIXED)
    root = connect(atoms.total, left[real], right[real])
    stuck = np.full(atoms.total, FREE, dtype=np.int64)
    half = ~real  # tied to something that can never go
    np.minimum.at(stuck, root[np.maximum(left, right)[half]], sites[half])
    for layer, site in atoms.frozen:
        np.minimum.at(stuck, root[layer.numpy()], site)
    stuck[FIXED] = 0
    return Components(root, stuck, ())


def _unique_rectangles(atoms: Atoms) -> list[tuple[Ints, int]]:
    """The same layer passes through many nodes; each content counts once."""
    found: dict[tuple[object, ...], tuple[Ints, int]] = {}
    for layer, site in atoms.rectangles:
        array = np.ascontiguousarray(layer.squeeze().numpy())
        found.setdefault((array.shape, array.tobytes()), (array, site))
    return list(found.values())


def _square_up(components: Components, rectangles: list[tuple[Ints, int]], ties: Ties) -> bool:
    """Let what remains of each joint layer be a full rectangle: it may vary along one dimension only, the richest
    one.
    """
    added = False
    for array, site in rectangles:
        frozen = components.frozen(array)
        roots = np.where(frozen, FIXED, components.root[array])
        if frozen.all() or _varies_along_one(roots):
            continue
        dim = max(range(array.ndim), key=lambda d: (_parts_left(roots, d), d))
        others = tuple(d for d in range(array.ndim) if d != dim)
        first = array[tuple(slice(0, 1) if d in others else slice(None) for d in range(array.ndim))]
        ties.add(first, array, site)
        added = True
    return added


def _varies_along_one(roots: Ints) -> bool:
    return sum(bool((roots != roots.take([0], axis=d)).any()) for d in range(roots.ndim)) <= 1


def _parts_left(roots: Ints, dim: int) -> int:
    """How many components stay apart when this layer may vary along `dim` only."""
    flat = np.moveaxis(roots, dim, 0).reshape(roots.shape[dim], -1)
    names, local = np.unique(flat, return_inverse=True)
    local = local.reshape(flat.shape)
    left, right = np.broadcast_arrays(local[:, :1], local)
    return len(np.unique(connect(len(names), left.reshape(-1), right.reshape(-1))))


def _balance(components: Components, atoms: Atoms, ties: Ties) -> tuple[Components, bool]:
    """Rows that must keep equally many channels: remembered for the plan where they can be chosen freely; else the
    smallest sets that do are tied.
    """
    remembered: list[tuple[Ints, int]] = []
    added = False
    for balance in atoms.balances:
        matrix = balance.atoms.numpy()
        frozen = components.frozen(matrix)
        roots = np.where(frozen, FIXED, components.root[matrix])
        if frozen.all() or same_in_each_row(roots):
            continue
        if free_rows(roots):
            remembered.append((matrix, balance.site))
            continue
        for members in balanced_sets(roots):
            ties.add(members[:1], members[1:], balance.site)
        added = True
    return Components(components.root, components.stuck, tuple(remembered)), added
