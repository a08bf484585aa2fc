"""Real shares to whole numbers with a given sum."""

from __future__ import annotations

import math
from collections.abc import Sequence


def rounded(wanted: Sequence[float], lowest: int, limits: Sequence[int], total: int) -> list[int]:
    """Integers near `wanted`, between `lowest` and the limit each, that sum to `total` as far as these allow it.

    Largest remainders go up first; ties go to the earlier place.
    """
    total = min(max(total, lowest * len(limits)), sum(limits))
    found = [min(max(lowest, math.floor(value)), limit) for value, limit in zip(wanted, limits, strict=True)]
    while missing := total - sum(found):
        step = 1 if missing > 0 else -1
        movable = [k for k, limit in enumerate(limits) if (found[k] < limit if step > 0 else found[k] > lowest)]
        movable.sort(key=lambda k: step * (found[k] - wanted[k]))  # stable: the earlier place first
        for place in movable[: abs(missing)]:
            found[place] += step
    return found
