"""More genes: channels that are moved about, and maps that become vectors and maps again."""

from __future__ import annotations

import math

from random_genes import WIDTHS, Developer, divisor, gene


@gene(5)
def split(grown: Developer, a: int, b: int, c: int) -> None:
    """Two or three uneven pieces, or equal ones."""
    x = grown.pick(a)
    assert x is not None
    width = grown.width(x)
    if width < 2:
        return
    equal = divisor(width, b)
    if c % 3 == 2 and equal and equal <= 4:
        grown.add("chunk", (x,), equal, 1)
        return
    first = 1 + b % (width - 1)
    rest = width - first
    sizes = (first, rest) if rest < 2 or c % 2 else (first, 1 + c % (rest - 1), rest - 1 - c % (rest - 1))
    grown.add("split", (x,), (1, -3)[c // 3 % 2] if grown.rank == 2 else 1, *sizes)


@gene(4)
def shuffle(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a)
    assert x is not None
    groups = divisor(grown.width(x), b)
    if groups is None or (c % 3 == 1 and grown.rank != 2):
        return
    if c % 3 == 0:
        grown.add("shuffle", (x,), groups, *grown.shape(x))
    else:
        grown.add("shuffle_sizes" if c % 3 == 2 else "shuffle_module", (x,), groups, *[grown.rank] * (c % 3 == 2))


@gene(3)
def piece(grown: Developer, a: int, b: int, c: int) -> None:
    """A slice, with or without a step, from the front or from behind."""
    x = grown.pick(a)
    assert x is not None
    width = grown.width(x)
    if width < 3:
        return
    start, step = b % (width - 1), 1 + c % 3
    if c == 15:
        grown.add("select", (x,), b % width)
    elif c % 4 == 3:
        grown.add("slice", (x,), -1 - start, None, step)
    elif c % 4 == 2:
        grown.add("narrow", (x,), start, 1 + c % (width - start))
    else:
        grown.add("slice", (x,), start or None, width - c % 2 or None, step)


@gene(3)
def turn(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a)
    assert x is not None
    if c % 3 == 0:
        grown.add("flip", (x,))
    elif c % 3 == 1:
        grown.add("roll", (x,), (b % 9) - 3)
    elif grown.fits(2 * grown.width(x), *grown.shape(x)[1:]):
        grown.add("repeat", (x,), 2, grown.rank)


@gene(3)
def pick_out(grown: Developer, a: int, b: int, c: int) -> None:
    """Channels by number: a permutation, some of them, some twice; from a buffer, or one by one."""
    x = grown.pick(a)
    assert x is not None
    width = grown.width(x)
    if width < 2:
        return
    step = next(one for one in range(1 + b, 2 * width + b + 1) if math.gcd(one, width) == 1)
    order = tuple((c + step * one) % width for one in range(width))
    if c % 4 == 1:
        order = order[: max(1, width - b % 4)]
    elif c % 4 == 2:
        order = (*order[: max(1, width - 2)], order[0])
    if c % 4 == 3 and b % 4 == 3:
        grown.add("unbind_stack", (x,), *order)
    else:
        grown.add(("index_select", "index")[b % 2], (x,), *order)


@gene(3)
def pixels(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a)
    assert x is not None
    if grown.rank != 2:
        return
    width, height, breadth = grown.shape(x)
    if width % 4 == 0 and (c % 2 or height % 2 or breadth % 2) and max(height, breadth) <= 6:
        grown.add("pixel_shuffle", (x,), 2)
    elif height % 2 == breadth % 2 == 0 and grown.fits(width * 4, height // 2, breadth // 2):
        grown.add("pixel_unshuffle", (x,), 2)


@gene(3)
def pad(grown: Developer, a: int, b: int, c: int) -> None:
    """Channels of a constant at either end, as in the shortcuts of the first residual networks."""
    x = grown.pick(a)
    assert x is not None
    if not grown.fits(grown.width(x) + 5, *grown.shape(x)[1:]):
        return
    if c % 3 == 2:
        y = grown.add("pad_zeros", (x,), grown.rank, 1 + b % 4)
    else:
        y = grown.add("pad", (x,), grown.rank, b % 3, 1 + c % 3, (0.0, 0.5)[b % 2])
    if c % 4:
        grown.add("add", (y, grown.conv(x, grown.width(y))))


@gene(2)
def halves(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a, clear=True)
    if x is None:
        return
    count = divisor(grown.width(x), b) or 1
    if c % 2 and grown.width(x) % 2 == 0:
        grown.add("glu", (x,))
    elif 1 < count <= 4:
        grown.add("split_attention", (x,), count, *grown.shape(x))


@gene(3)
def flat(grown: Developer, a: int, b: int, c: int) -> None:
    """A map as a vector, in four spellings, and a linear layer on it."""
    x = grown.pick(a)
    assert x is not None
    ways = ("flatten", "flatten_module", "view", "view_sizes")
    way = ways[c % 4]
    numbers = {"view": (math.prod(grown.shape(x)),), "view_sizes": (grown.rank,)}.get(way, ())
    grown.linear(grown.add(way, (x,), *numbers, kind="vector"), WIDTHS[b % 8])


@gene(3)
def vector(grown: Developer, a: int, b: int, c: int) -> None:
    """What hangs together in vectors."""
    x = grown.pick(a, "vector")
    if x is None:
        return
    y = grown.like(x, b)
    if c % 6 == 0:
        grown.add("norm", (x,), 0, grown.width(x))
    elif c % 6 == 1 and y is not None:
        grown.add("add", (x, y))
    elif c % 6 == 2 and y is not None:
        grown.add("cat", (x, y), (1, -1)[b % 2])
    elif c % 6 == 3:
        grown.add("matmul", (x,), grown.width(x), WIDTHS[b % 8])
    elif c % 6 == 4 and grown.width(x) > 2:
        grown.add("split", (x,), 1, 1 + b % 2, grown.width(x) - 1 - b % 2)
    else:
        grown.linear(x, WIDTHS[b % 8])


@gene(2)
def map_of_vector(grown: Developer, a: int, b: int, c: int) -> None:
    """A linear layer makes a map: a gate of 1 x 1 pixels, or channels times pixels in one number."""
    x = grown.pick(a, "vector")
    if x is None:
        return
    width, side = WIDTHS[b % 6], 1 + c % 2
    y = grown.linear(x, width * side**grown.rank)
    grown.add("view", (y,), width, *[side] * grown.rank, kind="map")
