"""The genes: every construct in which channels hang together, written in the ways that users write it."""

from __future__ import annotations

import math

from random_genes import WIDTHS, Developer, divisor, gene, modules_before, same_pixels
from random_steps import ACTIVATIONS

# -- layers ----------------------------------------------------------------------------------------------------------


@gene(6)
def conv(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a)
    assert x is not None
    stride = 2 if c == 7 and min(grown.shape(x)[1:]) >= 4 else 1
    grown.conv(x, WIDTHS[b % len(WIDTHS)], 1 if c % 4 == 3 else 3, stride, bias=c % 3 > 0)


@gene(4)
def conv_norm_act(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a)
    assert x is not None
    y = grown.conv(x, WIDTHS[b % len(WIDTHS)], bias=c % 2 > 0)
    grown.add("act", (grown.add("norm", (y,), grown.rank, grown.width(y)),), c % ACTIVATIONS)


@gene(3)
def depthwise(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a)
    assert x is not None
    width = grown.width(x)
    outputs = width * (1, 1, 2, 3)[b % 4]
    if grown.fits(outputs, *grown.shape(x)[1:]):
        grown.conv(x, outputs, groups=width, bias=c % 2 > 0)


@gene(5)
def grouped(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a)
    assert x is not None
    groups = divisor(grown.width(x), b)
    if groups and grown.fits(outputs := groups * (2, 3, 1, 4)[c % 4], *grown.shape(x)[1:]):
        grown.conv(x, outputs, (3, 1)[c // 4 % 2], groups=groups)


@gene(3)
def transposed(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a)
    assert x is not None
    width, pixels = grown.width(x), grown.shape(x)[1:]
    groups = (divisor(width, b) if c % 2 else 1) or 1
    outputs = groups * (2, 3, 4, 1)[c // 2 % 4]
    size = 2 if max(pixels) <= 4 else 3
    if grown.fits(outputs, *(one * 2 if size == 2 else one for one in pixels)):
        grown.add("up", (x,), grown.rank, width, outputs, size, groups)


@gene(3)
def function_conv(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a)
    assert x is not None
    groups = (divisor(grown.width(x), c) if c % 3 == 2 else 1) or 1
    grown.add("function_conv", (x,), grown.rank, grown.width(x), groups * (3, 2, 4, 5)[b % 4], groups)


@gene(1)
def standardised_conv(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a, clear=True)
    if x is not None:
        grown.add("standardised_conv", (x,), grown.rank, grown.width(x), WIDTHS[b % 8])


@gene(2)
def einsum(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a)
    assert x is not None
    grown.add("einsum", (x,), grown.width(x), WIDTHS[b % 8])


@gene(4)
def shared(grown: Developer, a: int, b: int, c: int) -> None:
    """A convolution that is there already is called on another value."""
    first = modules_before(grown, ("conv", "conv", "up", "function_conv")[c % 4])
    if not first:
        return
    step = grown.steps[number := first[-1 - b % len(first)]]
    fitting = [
        one for one in range(1, len(grown.values)) if grown.kinds[one] == "map" and grown.width(one) == step.numbers[1]
    ]
    if fitting:
        grown.add(step.op, (fitting[-1 - a % len(fitting)],), *step.numbers, part=number)


@gene(3)
def norm(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a)
    assert x is not None
    if b % 4 == 3 and math.prod(grown.shape(x)[1:]) > 1:
        grown.add("instance_norm", (x,), grown.rank, grown.width(x), bool(c % 2))
    else:
        grown.add("norm", (x,), grown.rank, grown.width(x))


@gene(2)
def group_norm(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a, clear=True)
    if x is not None:
        grown.add("group_norm", (x,), divisor(grown.width(x), b, 1), grown.width(x))


@gene(1)
def layer_norm(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a, clear=True)
    if x is not None:
        grown.add("layer_norm", (x,), grown.width(x))


@gene(1)
def slid_over_channels(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a, clear=True)
    if x is not None:
        grown.add("slid_over_channels", (x,), (3, 5)[c % 2])


@gene(3)
def act(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a, ("map", "map", "vector", "tokens")[c % 4])
    if x is None:
        return
    if b % 5 == 4:
        grown.add("act_module", (x,), c % 4)
    elif b % 5 == 3 and grown.kinds[x] == "map":
        grown.add("prelu", (x,), grown.width(x) if c % 2 else 1)
    else:
        grown.add("act", (x,), c % ACTIVATIONS)


@gene(2)
def scale(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a)
    assert x is not None
    grown.add(("layer_scale", "buffer_scale")[c % 2], (x,), grown.width(x), grown.rank)


@gene(2)
def pool(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a)
    assert x is not None
    which = b % 2
    pixels = [one * 2 if which else one // 2 for one in grown.shape(x)[1:]]
    if min(pixels) and grown.fits(grown.width(x), *pixels):
        grown.add("pool", (x,), grown.rank, which)


# -- values meet -----------------------------------------------------------------------------------------------------


@gene(6)
def residual(grown: Developer, a: int, b: int, c: int) -> None:
    """With a value of the same shape, else with a convolution: of another value, or of this one."""
    x = grown.pick(a)
    assert x is not None
    y = grown.like(x, b) if c % 4 else None
    if y is None:
        around = same_pixels(grown, x)
        y = grown.conv(around[-1 - b % len(around)], grown.width(x), (3, 1)[c % 2])
    op = ("add", "add", "mul", "add_into", "stack_sum")[c % 5]
    grown.add(op, (x, y) if b % 2 else (y, x))


@gene(3)
def gate(grown: Developer, a: int, b: int, c: int) -> None:
    """Squeeze and excitation; or one map that weighs all channels."""
    x = grown.pick(a)
    assert x is not None
    if c % 4 == 3:
        grown.add("mul", (x, grown.conv(x, 1)))
        return
    y = grown.add("pool", (x,), grown.rank, 2)
    y = grown.add("act", (grown.conv(y, WIDTHS[b % 4], 1),), 0)
    grown.add("mul", (x, grown.conv(y, grown.width(x), 1)))


@gene(2)
def branches(grown: Developer, a: int, b: int, c: int) -> None:
    """Selective kernels."""
    x = grown.pick(a)
    assert x is not None
    y = grown.like(x, b) or grown.conv(x, grown.width(x))
    squeezed = grown.add("pool", (grown.add("add", (x, y)),), grown.rank, 2)
    weights = [grown.conv(squeezed, grown.width(x), 1) for _ in range(2)]
    grown.add("branches", (x, y, *weights))


@gene(6)
def cat(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a)
    assert x is not None
    around = same_pixels(grown, x)
    values = [x, around[-1 - b % len(around)], around[-1 - c % len(around)]][: 2 + c % 2]
    if grown.fits(sum(grown.width(one) for one in values), *grown.shape(x)[1:]):
        grown.add("cat", tuple(values), 1)


@gene(2)
def interleave(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a)
    assert x is not None
    y = grown.like(x, b) or grown.conv(x, grown.width(x))
    if grown.fits(2 * grown.width(x), *grown.shape(x)[1:]):
        grown.add("interleave", (x, y))


# -- channels in the open --------------------------------------------------------------------------------------------


@gene(1)
def over_channels(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a, clear=True)
    if x is None:
        return
    if b % 6 == 5:
        grown.add("softmax_channels", (x,))
        return
    one = grown.add(("sum_channels", "mean_channels", "sum_channels", "mean_channels", "max_channels")[b % 6 % 5], (x,))
    if c % 2:
        grown.add("mul", (x, one))


@gene(2)
def attention(grown: Developer, a: int, b: int, c: int) -> None:
    x = grown.pick(a)
    assert x is not None
    pixels = grown.shape(x)[1:]
    if math.prod(pixels) > 36:
        return
    tokens = grown.add("tokens", (x,), kind="tokens")
    heads = 1 + b % 2
    q, k = (grown.linear(tokens, heads * (2, 3, 4)[c % 3]) for _ in range(2))
    v = grown.linear(tokens, heads * (3, 2, 5)[b % 3])
    mixed = grown.add(("attention", "fused_attention")[c % 2], (q, k, v), heads)
    back = (
        grown.add("matmul", (mixed,), grown.width(mixed), WIDTHS[c % 6])
        if b % 2
        else grown.linear(mixed, WIDTHS[c % 6])
    )
    grown.add("untokens", (back,), *pixels, kind="map")
