"""Atoms: the book that the rules write into. Which atoms exist, which must go together, which must stay, and why.

Nothing is solved while the network runs. Rules append whole arrays of pairs; `groups.py` solves all of them at once.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fxprune.channels.layers import FIXED


@dataclass(frozen=True)
class Axis:
    """Where a run of atoms was born: dimension `dim` of the parameter, buffer or in-graph tensor `name`."""

    name: str
    dim: int
    start: int
    count: int
    kind: str  # "parameter" (parameters and buffers) or "made" (a constant or padding that the graph itself creates)


@dataclass(frozen=True)
class Site:
    """A place in the graph where something was decided: the fx node, the ATen operator and, if it froze, the reason."""

    node: str
    operator: str
    reason: str = ""

    def __str__(self) -> str:
        where = f"{self.operator} at {self.node}"
        return f"{self.reason} ({where})" if self.reason else where


@dataclass(frozen=True)
class Balance:
    """The rows of `atoms` (rows x columns) must keep equally many entries each."""

    atoms: Tensor
    site: int


@dataclass
class Atoms:
    """All atoms of one analysis. Atom 0 stands for everything that can never be removed.

    last   (parameter, dimension) -> mask of the entries that are the last of their group: they get atom 0
    """

    last: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)
    total: int = 1
    axes: list[Axis] = field(default_factory=list)
    sites: list[Site] = field(default_factory=list)
    ties: list[tuple[Tensor, Tensor, int]] = field(default_factory=list)
    frozen: list[tuple[Tensor, int]] = field(default_factory=list)
    approximate: list[tuple[Tensor, int]] = field(default_factory=list)
    rectangles: list[tuple[Tensor, int]] = field(default_factory=list)
    balances: list[Balance] = field(default_factory=list)
    least: list[tuple[Tensor, int]] = field(default_factory=list)  # of these entries, so many must stay at least
    _site_ids: dict[tuple[str, str, str], int] = field(default_factory=dict)

    def fresh(self, name: str, dim: int, count: int, kind: str = "parameter") -> Tensor:
        """`count` new atoms, owned by dimension `dim` of `name`."""
        self.axes.append(Axis(name, dim, self.total, count, kind))
        self.total += count
        found = torch.arange(self.total - count, self.total, device="cpu")  # also where new tensors are meta
        last = self.last.get((name, dim))
        return found.masked_fill(last, FIXED) if last is not None and len(last) == count else found

    def made(self, layer: Tensor) -> bool:
        """Whether all entries of a layer come from one constant that the graph itself made."""
        ends = layer.reshape(-1)[[0, -1]].tolist()
        position = bisect_right(self.axes, ends[0], key=lambda axis: axis.start) - 1
        axis = self.axes[position] if position >= 0 else None
        return (
            axis is not None
            and axis.kind == "made"
            and all(axis.start <= one < axis.start + axis.count for one in ends)
        )

    def site(self, node: str, operator: str, reason: str = "") -> int:
        """The number of this site; equal sites share one."""
        known = self._site_ids.setdefault((node, operator, reason), len(self.sites))
        if known == len(self.sites):
            self.sites.append(Site(node, operator, reason))
        return known

    def tie(self, left: Tensor, right: Tensor, site: int) -> None:
        """Entries of the two layers, broadcast against each other, are removed together or not at all."""
        if left is right:
            return
        if left.shape != right.shape:
            left, right = torch.broadcast_tensors(left, right)
        self.ties.append((left, right, site))

    def freeze(self, layer: Tensor, site: int) -> None:
        """None of these atoms may be removed."""
        self.frozen.append((layer.reshape(-1), site))

    def flag_approximate(self, layer: Tensor, site: int) -> None:
        """Removing any of these atoms changes the value of what remains (a normalisation sees fewer channels)."""
        self.approximate.append((layer.reshape(-1), site))

    def keep_rectangular(self, layer: Tensor, site: int) -> None:
        """What remains of this layer, which varies along several dimensions, must be a full rectangle."""
        self.rectangles.append((layer, site))

    def keep_balanced(self, rows: Tensor, site: int) -> None:
        """Every row of `rows` must keep equally many entries."""
        self.balances.append(Balance(rows, site))
