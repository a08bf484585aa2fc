"""From solved atoms to ChannelGroups: parameter dimensions that lose channels together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxprune.channels.atoms import Axis, Site
from fxprune.channels.engine import Analysis
from fxprune.channels.solve import FREE, Components, Ints, hard_ties, settle, solve


@dataclass(frozen=True)
class Member:
    """Dimension `dim` of a parameter or buffer."""

    parameter: str
    dim: int

    def __str__(self) -> str:
        return f"{self.parameter}[{self.dim}]"


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that look alike: each of them consists of entries of the same parameter dimensions.

    index        position in `Couplings.groups`
    roots        one number a channel, in the order of the first weight that has them
    members      the parameter dimensions that lose entries when a channel goes
    producers    weights of convolutions and linear layers that make these channels (depthwise ones follow, they do
                 not make)
    rows         row of each channel; every row must keep equally many (one row: no constraint)
    frozen       why no channel may go, or None
    approximate  what changes value when a channel goes, or None
    """

    index: int
    roots: Ints
    members: tuple[Member, ...]
    producers: tuple[str, ...]
    rows: Ints
    frozen: Site | None
    approximate: Site | None

    @property
    def width(self) -> int:
        return len(self.roots)

    @property
    def prunable(self) -> bool:
        """True when channels may go and at least one weight makes them."""
        return self.frozen is None and bool(self.producers)

    @cached_property
    def row_count(self) -> int:
        return int(self.rows.max()) + 1 if len(self.rows) else 1


@dataclass(frozen=True, eq=False)
class Couplings:
    """The one exact answer for every parameter dimension: which entries go together, and which stay and why."""

    analysis: Analysis
    components: Components
    groups: tuple[ChannelGroup, ...]
    group_of: Ints  # atom -> index of its group, -1 for atoms that no parameter carries
    hard_root: Ints  # as components.root, by the ties of the rules alone

    def kept_atoms(self, kept: Mapping[int, Ints]) -> NDArray[np.bool_]:
        """Which atoms survive when group `index` keeps the channels at positions `kept[index]`; others keep all."""
        alive = np.ones(self.analysis.atoms.total, dtype=np.bool_)
        for index, positions in kept.items():
            roots = self.groups[index].roots
            alive[roots] = False
            alive[roots[positions]] = True
        result: NDArray[np.bool_] = alive[self.components.root]
        return result

    def prunable(self) -> list[ChannelGroup]:
        return [group for group in self.groups if group.prunable]


def couple(analysis: Analysis) -> Couplings:
    """Solve the analysis and sort components into groups. Row constraints that span several groups become ties."""
    ties = hard_ties(analysis.atoms)
    hard = components = settle(analysis.atoms, ties)
    while True:
        components = solve(analysis.atoms, ties, components)
        table = _Table.of(analysis, components)
        rows, clashes = _rows(components, table)
        if not clashes:
            break
        for matrix, site in clashes:
            ties.add(matrix[:1], matrix, site)
        components = settle(analysis.atoms, ties)
    groups = tuple(_groups(analysis, components, table, rows))
    return Couplings(analysis, components, groups, table.group_of_root[components.root], hard.root)


@dataclass(frozen=True, eq=False)
class _Table:
    """Components sorted by what they consist of. `roots` and `owners` are the distinct pairs (component, axis)."""

    axes: tuple[Axis, ...]  # of parameters and buffers only have owners
    roots: Ints
    owners: Ints
    group_of_root: Ints  # root -> group number, -1 where no parameter is involved

    @staticmethod
    def of(analysis: Analysis, components: Components) -> _Table:
        axes = tuple(analysis.atoms.axes)
        total = analysis.atoms.total
        owner = np.full(total, -1, dtype=np.int64)
        for number, axis in enumerate(axes):
            if axis.kind == "parameter":
                owner[axis.start : axis.start + axis.count] = number
        owned = np.flatnonzero(owner >= 0)
        roots, owners = _distinct(components.root[owned], owner[owned], total)
        return _Table(axes, roots, owners, _number_groups(roots, owners, components, len(axes)))


def _distinct(roots: Ints, owners: Ints, total: int) -> tuple[Ints, Ints]:
    """Distinct pairs, by owner. Mostly they are so already: the channels of an axis follow each other."""
    starts = _starts(roots, owners)
    roots, owners = roots[starts], owners[starts]
    if not ((owners[1:] == owners[:-1]) & (roots[1:] <= roots[:-1])).any():
        return roots, owners
    keys = np.sort(owners * total + roots)  # np.unique hashes, which takes four times as long
    owners, roots = np.divmod(keys[_starts(keys)], total)
    return roots, owners


def _starts(*columns: NDArray[Any]) -> Ints:
    """Where runs of equal rows begin."""
    differ = np.ones(len(columns[0]), dtype=np.bool_)
    differ[1:] = False
    for column in columns:
        differ[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(differ)


def _number_groups(roots: Ints, owners: Ints, components: Components, axis_count: int) -> Ints:
    """Equal sets of axes get equal numbers, in the order in which the network meets them.

    A set is known by the sum of two random words an axis. Channels that follow each other mostly have equal sets, so
    that runs of them are compared and not single ones.
    """
    total = len(components.root)
    words = np.random.default_rng(0).integers(0, 2**63 - 1, size=(2, axis_count))
    sums = np.zeros((2, total), dtype=np.int64)
    with np.errstate(over="ignore"):
        for word, column in zip(words, sums, strict=True):
            np.add.at(column, roots, word[owners])
    present = np.zeros(total, dtype=np.bool_)
    present[roots] = True
    known = np.flatnonzero(present)
    columns = (*sums[:, known], components.stuck[known] != FREE)
    starts = _starts(*columns)
    lengths = np.diff(np.append(starts, len(known)))
    group_of_root = np.full(total, -1, dtype=np.int64)
    group_of_root[known] = np.repeat(_by_appearance(*(column[starts] for column in columns)), lengths)
    return group_of_root


def _by_appearance(*columns: NDArray[Any]) -> Ints:
    """Number equal rows equally, in the order in which they first appear."""
    order = np.lexsort(columns)
    ordered = tuple(column[order] for column in columns)
    alike = np.empty(len(order), dtype=np.int64)
    alike[order] = np.cumsum(np.isin(np.arange(len(order)), _starts(*ordered)))
    _, first, number = np.unique(alike, return_index=True, return_inverse=True)
    found: Ints = np.argsort(np.argsort(first))[number]
    return found


def _rows(components: Components, table: _Table) -> tuple[dict[int, Ints], list[tuple[Ints, int]]]:
    """Row of each root, for groups under a row constraint; and the constraints that cannot be met by choosing rows."""
    row_of: dict[int, Ints] = {}
    clashes = []
    for matrix, site in components.rows:
        roots = components.root[matrix]
        numbers = np.unique(table.group_of_root[roots])
        members = np.flatnonzero(table.group_of_root == numbers[0])
        if len(numbers) > 1 or numbers[0] < 0 or len(np.unique(roots)) != len(members):
            clashes.append((matrix, site))
            continue
        rows = np.zeros(len(components.root), dtype=np.int64)
        rows[roots] = np.arange(len(matrix))[:, None]
        combined = _combine(row_of.get(int(numbers[0])), rows[members])
        if combined is None:
            clashes.append((matrix, site))
        else:
            row_of[int(numbers[0])] = combined
    return row_of, clashes


def _combine(known: Ints | None, new: Ints) -> Ints | None:
    """Cells of two row partitions, if equally full cells satisfy both; else None."""
    if known is None:
        return new
    cells, cell_of, counts = np.unique(np.stack([known, new], axis=1), axis=0, return_inverse=True, return_counts=True)
    if (counts != counts[0]).any():
        return None
    per_row = [np.unique(cells[:, side], return_counts=True)[1] for side in (0, 1)]
    if any((count != count[0]).any() for count in per_row):
        return None
    result: Ints = cell_of.reshape(-1)
    return result


def _groups(analysis: Analysis, components: Components, table: _Table, rows: Mapping[int, Ints]) -> list[ChannelGroup]:
    roots = np.flatnonzero(table.group_of_root >= 0)
    numbers = table.group_of_root[roots]
    members = _members(table)
    producers = _producers(analysis, components, table)
    inexact = _flags(analysis, components)
    by_group = roots[np.argsort(numbers, kind="stable")]
    found = []
    for number, start, stop in _runs(numbers):
        own = by_group[start:stop]
        stuck = components.stuck[own].min()
        flagged = inexact[own].min()
        found.append(
            ChannelGroup(
                index=number,
                roots=own,
                members=members[number],
                producers=producers.get(number, ()),
                rows=rows.get(number, np.zeros(len(own), dtype=np.int64)),
                frozen=None if stuck == FREE else _with_reason(analysis.atoms.sites[stuck]),
                approximate=None if flagged == FREE else analysis.atoms.sites[flagged],
            )
        )
    return found


def _with_reason(site: Site) -> Site:
    return site if site.reason else replace(site, reason="goes together with something that cannot be removed")


def _runs(numbers: Ints) -> list[tuple[int, int, int]]:
    """(number, start, stop) for each run of the sorted numbers."""
    found, starts, counts = np.unique(np.sort(numbers), return_index=True, return_counts=True)
    return [(int(n), int(s), int(s + c)) for n, s, c in zip(found, starts, counts, strict=True)]


def _members(table: _Table) -> dict[int, tuple[Member, ...]]:
    numbers = table.group_of_root[table.roots]
    starts = _starts(numbers, table.owners)
    members: dict[int, dict[Member, None]] = {}
    for number, owner in sorted(zip(numbers[starts].tolist(), table.owners[starts].tolist(), strict=True)):
        members.setdefault(number, {})[Member(table.axes[owner].name, table.axes[owner].dim)] = None
    return {number: tuple(found) for number, found in members.items()}


def _producers(analysis: Analysis, components: Components, table: _Table) -> dict[int, tuple[str, ...]]:
    found: dict[int, dict[str, None]] = {}
    for producer in analysis.producers:
        if producer.kind == "depthwise":
            continue
        for number in np.unique(table.group_of_root[components.root[producer.outputs.numpy()]]).tolist():
            found.setdefault(number, {})[producer.weight] = None
    return {number: tuple(names) for number, names in found.items()}


def _flags(analysis: Analysis, components: Components) -> Ints:
    flags = np.full(analysis.atoms.total, FREE, dtype=np.int64)
    for layer, site in analysis.atoms.approximate:
        np.minimum.at(flags, components.root[layer.numpy()], site)
    return flags
