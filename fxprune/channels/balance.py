"""Rows of channels that must keep equally many entries each (the groups of a grouped convolution).

An entry is named by its component; 0 names everything that can never go. A component may stand in several rows, often
unequally: behind a channel shuffle the channels of one component are spread over the rows of the next layer. What goes
together must then be chosen so that every row loses as much as the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fxprune.channels.layers import FIXED

Ints = NDArray[np.int64]


def same_in_each_row(roots: Ints) -> bool:
    """Every row holds the same components: whatever goes, all rows lose the same."""
    ordered = np.sort(roots, axis=1)
    return bool((ordered == ordered[:1]).all())


def free_rows(roots: Ints) -> bool:
    """Each component lies in one row, equally often, and none is frozen: any choice of equally many a row will do."""
    if (roots == FIXED).any():
        return False
    _, counts, _ = _counts(roots)
    return bool(((counts > 0).sum(axis=1) == 1).all() and (counts.max(axis=1) == counts.max()).all())


def balanced_sets(roots: Ints) -> list[Ints]:
    """Components to tie, set by set, so that each set takes equally many entries from every row.

    Components that do so alone are not listed. What fits into no set is tied to FIXED: it stays. Sets are as small as
    a quick search finds them: one component of each row where components lie in single rows, those of one column first
    (other layers are likely to want the same), then pairs that complete each other, then runs in the order of the
    channels.
    """
    names, counts, columns = _counts(roots)
    excess = counts - counts.min(axis=1, keepdims=True)  # what a component takes beyond the same of every row
    open_ = [int(one) for one in np.flatnonzero((excess > 0).any(axis=1) & (names != FIXED))]
    sets: list[list[int]] = []
    for search in (partial(_one_of_each_row, columns=columns), _one_of_each_row, _complements, _runs):
        found = list(search(open_, excess))
        taken = {one for members in found for one in members}
        sets += found
        open_ = [one for one in open_ if one not in taken]
    result = [names[members] for members in sets]
    if open_:
        result.append(np.concatenate([[FIXED], names[open_]]))
    return result


def _counts(roots: Ints) -> tuple[Ints, Ints, Ints]:
    """Components in the order in which they are met, how many entries each has in each row (components x rows), and
    the column of its first entry.
    """
    names, first, local = np.unique(roots, return_index=True, return_inverse=True)
    counts = np.zeros((len(names), len(roots)), dtype=np.int64)
    rows = np.repeat(np.arange(len(roots)), roots.shape[1])
    np.add.at(counts, (local.reshape(-1), rows), 1)
    order = np.argsort(first)
    return names[order], counts[order], first[order] % roots.shape[1]


def _one_of_each_row(open_: Iterable[int], excess: Ints, columns: Ints | None = None) -> Iterator[list[int]]:
    """Components that take the same number from one row each; with `columns`, those of the same column."""
    alike: dict[tuple[int, int], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for one in open_:
        rows = np.flatnonzero(excess[one])
        if len(rows) == 1:
            column = 0 if columns is None else int(columns[one])
            alike[int(excess[one, rows[0]]), column][int(rows[0])].append(one)
    for of_row in alike.values():
        if len(of_row) == excess.shape[1]:
            yield from (list(members) for members in zip(*of_row.values(), strict=False))


def _complements(open_: Iterable[int], excess: Ints) -> Iterator[list[int]]:
    """Pairs of which one takes what the other leaves."""
    waiting: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for one in open_:
        wanted = tuple((excess[one].max() - excess[one]).tolist())
        if waiting[wanted]:
            yield [waiting[wanted].pop(0), one]
        else:
            waiting[tuple(excess[one].tolist())].append(one)


def _runs(open_: Iterable[int], excess: Ints) -> Iterator[list[int]]:
    """Neighbours, until every row has given as much as the others."""
    run: list[int] = []
    total = np.zeros(excess.shape[1], dtype=np.int64)
    for one in open_:
        run.append(one)
        total += excess[one]
        if (total == total[0]).all():
            yield run
            run, total = [], np.zeros_like(total)
