"""Sets of channels that take equally many entries from every row."""

from __future__ import annotations

import numpy as np
import pytest

from fxprune.channels.balance import Ints, balanced_sets, free_rows, same_in_each_row


def taken(roots: Ints, members: Ints) -> list[int]:
    """How many entries of each row the members are."""
    return [int(count) for count in np.isin(roots, members).sum(axis=1)]


def shuffled(groups: int, width: int) -> Ints:
    """Rows of a grouped convolution behind a shuffle of as many groups; component j + 1 is position j of each group."""
    return np.tile(np.arange(width)[:, None] + 1, (1, groups)).reshape(groups, width)


@pytest.mark.parametrize(("groups", "width"), [(2, 5), (3, 8), (3, 20), (4, 34), (8, 12)])
def test_sets_behind_a_shuffle_are_even_and_small(groups: int, width: int) -> None:
    roots = shuffled(groups, width)
    sets = balanced_sets(roots)
    assert all(len(set(taken(roots, members))) == 1 for members in sets)
    listed = np.concatenate(sets)
    alone = [one for one in np.unique(roots) if one not in listed]
    assert len(np.unique(listed)) == len(listed) and all(len(set(taken(roots, one))) == 1 for one in alone)
    assert len(sets) + len(alone) >= width // groups


def test_what_fits_into_no_set_stays() -> None:
    """Component 9 stands in the first row alone, so the second row has nothing that could go with it."""
    roots = np.array([[1, 2, 9], [1, 2, 0]])
    assert [sorted(members.tolist()) for members in balanced_sets(roots)] == [[0, 9]]


def test_pairs_that_complete_each_other() -> None:
    roots = np.array([[1, 1, 3], [1, 1, 3], [1, 3, 3]])  # (2, 2, 1) and (1, 1, 2)
    assert [sorted(members.tolist()) for members in balanced_sets(roots)] == [[1, 3]]


def test_rows_that_hold_the_same_or_are_free() -> None:
    assert same_in_each_row(np.array([[1, 2, 3], [3, 1, 2]]))
    assert free_rows(np.array([[1, 2], [3, 4]])) and not same_in_each_row(np.array([[1, 2], [3, 4]]))
    assert not free_rows(np.array([[1, 2], [3, 0]]))  # frozen
    assert not free_rows(np.array([[1, 1], [2, 3]]))  # one of them is twice as large
