"""Solving: components against networkx, and constraints that wait until the ties are known."""

from __future__ import annotations

import networkx as nx
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxprune.channels.atoms import Atoms
from fxprune.channels.layers import FIXED
from fxprune.channels.solve import FREE, Components, Ints, Ties, connect, hard_ties, settle, solve

pairs = st.integers(1, 60).flatmap(
    lambda total: st.tuples(
        st.just(total), st.lists(st.tuples(st.integers(0, total - 1), st.integers(0, total - 1)), max_size=80)
    )
)


def smallest_members(total: int, edges: list[tuple[int, int]]) -> list[int]:
    """The smallest member of each vertex's component, by networkx."""
    graph = nx.Graph(edges)
    graph.add_nodes_from(range(total))
    found = {vertex: min(part) for part in nx.connected_components(graph) for vertex in part}
    return [found[vertex] for vertex in range(total)]


@given(pairs)
def test_connect_finds_the_smallest_member_of_each_component(case: tuple[int, list[tuple[int, int]]]) -> None:
    total, edges = case
    array = np.array(edges, dtype=np.int64).reshape(-1, 2)
    assert connect(total, array[:, 0], array[:, 1]).tolist() == smallest_members(total, edges)


def test_connect_on_long_chains_in_any_order() -> None:
    count = 20_000
    order = np.random.default_rng(0).permutation(count - 1)
    for places in (np.arange(count - 1), np.arange(count - 1)[::-1], order):
        assert not connect(count, places, places + 1).any()
        assert not connect(count, places + 1, places).any()


def atoms(total: int) -> Atoms:
    """A book with `total` atoms, atom 0 included."""
    book = Atoms()
    book.fresh("w", 0, total - 1)
    return book


def solved(book: Atoms) -> Components:
    return solve(book, hard_ties(book))


def parts(components: Components, of: Ints) -> int:
    """How many components these atoms lie in."""
    return len(np.unique(components.root[of]))


def test_without_ties_every_atom_stands_alone() -> None:
    components = solved(atoms(4))
    assert components.root.tolist() == [0, 1, 2, 3]
    assert components.frozen(np.arange(4)).tolist() == [True, False, False, False]


def test_a_tie_with_what_can_never_go_freezes_but_does_not_join() -> None:
    book = atoms(5)
    site = book.site("add", "aten.add")
    book.tie(torch.tensor([1, 2, FIXED]), torch.tensor([FIXED, FIXED, 3]), site)
    components = solved(book)
    assert components.frozen(np.arange(5)).tolist() == [True, True, True, True, False]
    assert components.root.tolist() == [0, 1, 2, 3, 4]
    assert components.stuck.tolist() == [0, site, site, site, FREE]


def test_freezing_one_atom_freezes_its_component_and_the_first_site_is_kept() -> None:
    book = atoms(5)
    book.tie(torch.tensor([3]), torch.tensor([1]), book.site("add", "aten.add"))
    first, second = book.site("a", "x", "first"), book.site("b", "x", "second")
    book.freeze(torch.tensor([3]), second)
    book.freeze(torch.tensor([1]), first)
    components = solved(book)
    assert components.root.tolist() == [0, 1, 2, 1, 4]
    assert components.frozen(np.arange(5)).tolist() == [True, True, False, True, False]
    assert book.sites[components.stuck[1]].reason == "first"


def test_tie_broadcasts_one_atom_against_many() -> None:
    book = atoms(6)
    book.tie(torch.tensor([[1]]), torch.tensor([[2, 3], [4, 5]]), book.site("x", "y"))
    assert solved(book).root.tolist() == [0, 1, 1, 1, 1, 1]


def grid(rows: int, columns: int) -> Tensor:
    return torch.arange(1, 1 + rows * columns).reshape(rows, columns)


def test_a_rectangle_keeps_the_richer_dimension() -> None:
    for rows, columns in ((3, 4), (4, 3)):
        book = atoms(13)
        layer = grid(rows, columns)
        book.keep_rectangular(layer, book.site("view", "aten.view"))
        root = solved(book).root[layer.numpy()]
        along = 1 if columns > rows else 0
        assert (root == root.take([0], axis=1 - along)).all()
        assert len(np.unique(root)) == 4


def test_ties_decide_which_dimension_is_richer() -> None:
    book = atoms(13)
    layer = grid(3, 4)
    book.tie(layer[:, :1], layer[:, 1:], book.site("add", "aten.add"))  # nothing varies along the columns any more
    book.keep_rectangular(layer, book.site("view", "aten.view"))
    root = solved(book).root[layer.numpy()]
    assert len(np.unique(root)) == 3
    assert (root == root[:, :1]).all()


def test_a_rectangle_of_frozen_atoms_imposes_nothing() -> None:
    book = atoms(13)
    layer = grid(3, 4)
    book.freeze(layer, book.site("output", "output"))
    book.keep_rectangular(layer, book.site("view", "aten.view"))
    assert parts(solved(book), layer.numpy()) == 12


def test_rectangles_of_three_dimensions() -> None:
    book = atoms(25)
    layer = torch.arange(1, 25).reshape(2, 3, 4)
    book.keep_rectangular(layer, book.site("view", "aten.view"))
    root = solved(book).root[layer.numpy()]
    assert (root == root[:1, :1]).all() and len(np.unique(root)) == 4


def test_free_rows_are_remembered_for_the_plan() -> None:
    book = atoms(13)
    rows = grid(3, 4)
    book.keep_balanced(rows, book.site("conv", "aten.convolution"))
    components = solved(book)
    assert parts(components, rows.numpy()) == 12
    ((matrix, _),) = components.rows
    assert (matrix == rows.numpy()).all()


def test_rows_of_which_one_cannot_lose_are_tied_column_by_column() -> None:
    book = atoms(13)
    rows = grid(3, 4)
    book.freeze(rows[1, 2:3], book.site("output", "output"))
    book.keep_balanced(rows, book.site("conv", "aten.convolution"))
    components = solved(book)
    free = rows[:, [0, 1, 3]].numpy()
    assert parts(components, free) == 3 and (components.root[free] == components.root[free[:1]]).all()
    assert not components.rows
    assert components.frozen(rows.numpy()).tolist() == [[False, False, True, False]] * 3


def test_rows_tied_across_are_balanced_already() -> None:
    book = atoms(9)
    rows = grid(2, 4)
    book.tie(rows[0], rows[1].flip(0), book.site("add", "aten.add"))
    book.keep_balanced(rows, book.site("conv", "aten.convolution"))
    components = solved(book)
    assert parts(components, rows.numpy()) == 4 and not components.rows


def test_rows_whose_components_differ_in_size_are_tied() -> None:
    book = atoms(9)
    rows = grid(2, 4)
    book.tie(rows[0, :1], rows[0, 1:2], book.site("add", "aten.add"))
    book.keep_balanced(rows, book.site("conv", "aten.convolution"))
    components = solved(book)
    assert not components.rows
    root = components.root[rows.numpy()]
    assert (root[0] == root[1]).all() and len(np.unique(root)) == 3


def test_ties_made_for_one_constraint_are_seen_by_the_others() -> None:
    book = atoms(13)
    square = grid(3, 4)
    book.keep_rectangular(square, book.site("view", "aten.view"))
    book.keep_balanced(square, book.site("conv", "aten.convolution"))
    components = solved(book)
    assert parts(components, square.numpy()) == 4 and not components.rows


layers = st.tuples(st.integers(1, 3), st.integers(1, 3)).flatmap(
    lambda shape: st.lists(st.integers(0, 9), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
        lambda flat: torch.tensor(flat).reshape(shape)
    )
)
ties = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=4)
removals = st.lists(st.booleans(), min_size=10, max_size=10)


@settings(max_examples=300, deadline=None)
@given(
    ties, st.lists(layers, max_size=3), st.lists(layers, max_size=3), st.sets(st.integers(1, 9), max_size=2), removals
)
def test_whatever_goes_leaves_rectangles_and_balanced_rows(
    tied: list[tuple[int, int]], rectangles: list[Tensor], balances: list[Tensor], frozen: set[int], gone: list[bool]
) -> None:
    book = atoms(10)
    site = book.site("node", "operator")
    for left, right in tied:
        book.tie(torch.tensor([left]), torch.tensor([right]), site)
    for layer in rectangles:
        book.keep_rectangular(layer, site)
    for layer in balances:
        book.keep_balanced(layer, site)
    book.freeze(torch.tensor(sorted(frozen), dtype=torch.int64), site)
    components = solved(book)
    assert all(components.frozen(np.array(pair)).sum() in (0, 2) for pair in tied)
    alive = components.frozen(np.arange(10)) | ~np.array(gone)[components.root]
    for layer in rectangles:
        left = alive[layer.numpy()]
        assert (left == np.outer(left.any(axis=1), left.any(axis=0))).all()
    chosen = [matrix.tolist() for matrix, _ in components.rows]
    for layer in balances:
        if layer.tolist() not in chosen:
            assert len(set(alive[layer.numpy()].sum(axis=1).tolist())) == 1


def test_settle_on_no_ties() -> None:
    components = settle(atoms(3), Ties())
    assert components.root.tolist() == [0, 1, 2]
