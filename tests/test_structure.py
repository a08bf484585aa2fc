"""Redistribution of channel budgets: Algorithm 1 in both modes, and rounding to whole widths."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxprune.errors import OptionError
from fxprune.structure import change, redistribute, whole_widths

LIMITS = (64, 128, 512)
BEFORE = (32, 64, 256)
SHARES = (0.4, 0.4, 0.2)


@pytest.mark.parametrize(
    ("mode", "expected", "total"),
    [("literal", (64, 114.4, 175.2), 353.6), ("conserve", (64, 113.8, 174.2), 352.0)],
)
def test_worked_example(mode: str, expected: tuple[float, ...], total: float) -> None:
    after = redistribute(BEFORE, SHARES, LIMITS, 0.5, mode)
    assert after == pytest.approx(expected, abs=1e-9)
    assert sum(after) == pytest.approx(total, abs=1e-9)


def test_change_of_the_worked_example() -> None:
    after = redistribute(BEFORE, SHARES, LIMITS, 0.5, "literal")
    assert change(BEFORE, after) == pytest.approx(163.2 / 353.6, abs=1e-9)


def test_without_a_full_layer_equation_10_holds_as_it_stands() -> None:
    assert redistribute((10, 20), (0.75, 0.25), (100, 100), 0.5) == pytest.approx([16.25, 13.75])


def layers() -> st.SearchStrategy[tuple[list[float], list[float], list[int], float]]:
    def drawn(limits: list[int]) -> st.SearchStrategy[tuple[list[float], list[float], list[int], float]]:
        count = len(limits)
        fractions = st.lists(st.floats(0.01, 1), min_size=count, max_size=count)
        weights = st.lists(st.floats(0.001, 1), min_size=count, max_size=count)
        return st.tuples(fractions, weights, st.floats(0, 1)).map(
            lambda found: (
                [part * limit for part, limit in zip(found[0], limits, strict=True)],
                [weight / math.fsum(found[1]) for weight in found[1]],
                limits,
                found[2],
            )
        )

    return st.lists(st.integers(1, 600), min_size=1, max_size=20).flatmap(drawn)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(layers())
def test_conserving_keeps_the_sum_and_the_limits(
    drawn: tuple[list[float], list[float], list[int], float],
) -> None:
    widths, shares, limits, fraction = drawn
    after = redistribute(widths, shares, limits, fraction)
    assert sum(after) == pytest.approx(sum(widths), rel=1e-9)
    assert all(0 <= new <= limit for new, limit in zip(after, limits, strict=True))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(layers())
def test_literal_ends_within_the_limits(drawn: tuple[list[float], list[float], list[int], float]) -> None:
    widths, shares, limits, fraction = drawn
    after = redistribute(widths, shares, limits, fraction, "literal")
    assert all(0 <= new <= limit for new, limit in zip(after, limits, strict=True))
    assert sum(after) <= sum(widths) + len(limits)  # at most one sweep too many


@pytest.mark.parametrize("mode", ["conserve", "literal"])
def test_all_layers_full_ends(mode: str) -> None:
    assert redistribute(LIMITS, SHARES, LIMITS, 0.5, mode) == list(LIMITS)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(layers())
def test_whole_widths_are_whole_and_sum_up(drawn: tuple[list[float], list[float], list[int], float]) -> None:
    widths, _, limits, _ = drawn
    total = round(sum(widths))
    found = whole_widths(widths, limits, total)
    assert all(isinstance(width, int) and 1 <= width <= limit for width, limit in zip(found, limits, strict=True))
    assert sum(found) == min(max(total, len(limits)), sum(limits))


def test_largest_remainders_go_up_first() -> None:
    assert whole_widths([2.5, 3.9, 4.6], [9, 9, 9], 11) == [2, 4, 5]
    assert whole_widths([2.5, 2.5, 2.0], [9, 9, 9], 7) == [3, 2, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((1, 2), (1.0,), (3, 3)), "2 widths, 1 shares"),
        (((4,), (1.0,), (3,)), "a layer of 3 channels cannot have width 4"),
        (((1, 1), (0.5, 0.6), (3, 3)), "shares sum to 1.1"),
        (((1,), (1.0,), (3,), 1.5), "fraction is the part"),
        (((1,), (1.0,), (3,), 0.5, "fair"), "unknown mode 'fair'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        redistribute(*arguments)  # type: ignore[arg-type]
