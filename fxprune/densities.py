"""How many weights each layer gives up when layers are not ranked together.

"uniform" takes the same share everywhere. "erk", Erdos-Renyi-Kernel (Evci et al., "Rigging the Lottery", ICML 2020,
after Mocanu et al. 2018), keeps more of small layers: density ~ (outputs + inputs + kernel sizes) / (their product).
Layers that would be more than full are dense, and the rest is scaled to meet the total.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fxprune.errors import OptionError
from fxprune.rounding import rounded

RANKINGS = ("global", "uniform", "erk")


def layer_zeros(shapes: Sequence[Sequence[int]], sparsity: float, ranking: str) -> list[int]:
    """Zeros for each layer, exactly round(sparsity * n) in all.

    shapes   of the weights, output dimension first
    ranking  "uniform" or "erk"
    """
    sizes = [math.prod(shape) for shape in shapes]
    zeros = round(sparsity * sum(sizes))
    if ranking == "uniform":
        return rounded([sparsity * size for size in sizes], 0, sizes, zeros)
    if ranking == "erk":
        kept = _erk(shapes, sizes, sum(sizes) - zeros)
        return rounded([size - keep for size, keep in zip(sizes, kept, strict=True)], 0, sizes, zeros)
    raise OptionError(f"unknown ranking {ranking!r}: choose {', '.join(RANKINGS)}")


def _erk(shapes: Sequence[Sequence[int]], sizes: Sequence[int], budget: int) -> list[float]:
    """Weights each layer keeps. Layers that would be more than full are full, and the others share what is left."""
    raw = [float(sum(shape)) for shape in shapes]
    full: set[int] = set()
    while True:
        others = sum(value for layer, value in enumerate(raw) if layer not in full)
        left = budget - sum(sizes[layer] for layer in full)
        scale = left / others if others else 0.0
        over = {layer for layer, size in enumerate(sizes) if layer not in full and raw[layer] * scale > size}
        if not over:
            return [float(size) if layer in full else raw[layer] * scale for layer, size in enumerate(sizes)]
        full |= over


def even_weights(sizes: Sequence[int], budget: int) -> list[int]:
    """Weights each layer keeps when all layers that are not full keep the same number, `budget` in all."""
    full: set[int] = set()
    while True:
        others = len(sizes) - len(full)
        level = (budget - sum(sizes[layer] for layer in full)) / others if others else 0.0
        over = {layer for layer, size in enumerate(sizes) if layer not in full and size <= level}
        if not over:
            wanted = [float(size) if layer in full else level for layer, size in enumerate(sizes)]
            return rounded(wanted, 0, list(sizes), budget)
        full |= over
