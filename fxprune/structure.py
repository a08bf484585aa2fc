"""Structure learning's arithmetic: how channel budgets move between layers, and how they end as whole numbers.

Pure functions on plain numbers, after "Channel redistribution" (equations 8 to 10 and Algorithm 1). The book-keeping
during training is `fxprune.learner`.
"""

from __future__ import annotations

from collections.abc import Sequence

from fxprune.errors import OptionError
from fxprune.rounding import rounded

MODES = ("conserve", "literal")
_SPENT = 1e-9  # an excess below this is rounding


def redistribute(
    widths: Sequence[float], shares: Sequence[float], limits: Sequence[int], fraction: float = 0.5,
    mode: str = "conserve",
) -> list[float]:  # fmt: skip
    """Move part of every layer's budget to where significance lies (equation 10 and Algorithm 1).

    widths    channels a layer may use now, real numbers in [0, limit]
    shares    normalised layer significance, equation 9: non-negative, summing to 1
    limits    channels of each layer in the full network
    fraction  of every budget that is handed out anew (`s`)
    mode      what happens to budget that a full layer cannot take. "conserve" hands out exactly that much, so that the
              sum of widths stays; "literal" adds one channel a layer and looks only after each sweep, as printed,
              stopping when every layer is full

    Returns the new widths. Raises OptionError for lists that do not fit together.
    """
    _check(widths, shares, limits, fraction, mode)
    pool = fraction * sum(widths)
    wanted = [(1 - fraction) * width + share * pool for width, share in zip(widths, shares, strict=True)]
    given = [min(value, float(limit)) for value, limit in zip(wanted, limits, strict=True)]
    excess = sum(value - new for value, new in zip(wanted, given, strict=True))
    spread = _conserving if mode == "conserve" else _literal
    return spread(given, limits, excess)


def _conserving(given: list[float], limits: Sequence[int], excess: float) -> list[float]:
    """One channel a visit, in the order of the layers, the last one in part."""
    open_layers = [layer for layer, limit in enumerate(limits) if given[layer] < limit]
    while excess > _SPENT and open_layers:
        for layer in open_layers:
            step = min(1.0, limits[layer] - given[layer], excess)
            given[layer] += step
            excess -= step
        open_layers = [layer for layer in open_layers if given[layer] < limits[layer]]
    return given


def _literal(given: list[float], limits: Sequence[int], excess: float) -> list[float]:
    """As printed, but never beyond a limit, and ending when all layers are full."""
    while excess > 0 and any(value < limit for value, limit in zip(given, limits, strict=True)):
        for layer, limit in enumerate(limits):
            if given[layer] < limit:
                given[layer] = min(given[layer] + 1, float(limit))
                excess -= 1
    return given


def _check(widths: Sequence[float], shares: Sequence[float], limits: Sequence[int], fraction: float, mode: str) -> None:
    if not len(widths) == len(shares) == len(limits):
        raise OptionError(
            f"{len(widths)} widths, {len(shares)} shares and {len(limits)} limits were given: one each for every layer"
        )
    if mode not in MODES:
        raise OptionError(f"unknown mode {mode!r}: choose {', '.join(MODES)}")
    if not 0 <= fraction <= 1:
        raise OptionError(f"fraction is the part of each budget that moves, 0 to 1, not {fraction}")
    for width, share, limit in zip(widths, shares, limits, strict=True):
        if not (0 <= width <= limit and share >= 0):
            raise OptionError(f"a layer of {limit} channels cannot have width {width} and share {share}")
    if shares and abs(sum(shares) - 1) > 1e-6:
        raise OptionError(f"shares sum to {sum(shares)}, not to 1")


def change(before: Sequence[float], after: Sequence[float]) -> float:
    """How far the widths moved: sum |a_i - a_(i-1)| / sum a_i (Algorithm 2; converged at 0.01 or less)."""
    return sum(abs(new - old) for old, new in zip(before, after, strict=True)) / sum(after)


def whole_widths(widths: Sequence[float], limits: Sequence[int], total: int) -> list[int]:
    """Integers near `widths`, at least 1 and at most the limit each, summing to `total` where the limits allow it."""
    return rounded(widths, 1, limits, total)
