"""From genes to random networks: each gene adds a step or a small construct, or nothing where none fits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from random_networks import BATCH, Network, RandomNet, Step, part_name
from random_steps import OPERATIONS

Gene = tuple[str, int, int, int]
WIDTHS = (4, 6, 8, 12, 3, 10, 5, 9, 2, 16, 7, 1)
WIDEST, LARGEST = 40, 400  # channels, entries of one picture's value
IMAGES = ((3, 6, 6), (3, 4, 4), (3, 8, 5), (2, 8), (2, 4, 4, 4), (1, 6, 4))


class Developer:
    """The network so far, run on an example as it grows, so that every step can be fitted to real shapes."""

    def __init__(self, image: tuple[int, ...]) -> None:
        self.image, self.steps = image, list[Step]()
        self.shell = RandomNet(Network(image, (), ()))
        self.values = [torch.rand(BATCH, *image)]
        self.kinds = ["map"]
        self.read: set[int] = set()
        self.murky: set[int] = set()  # holds constant channels, of which no recipe tells whether they stay

    # -- looking ------------------------------------------------------------------------------------------------------

    @property
    def rank(self) -> int:
        return len(self.image) - 1

    def shape(self, value: int) -> tuple[int, ...]:
        return tuple(self.values[value].shape[1:])

    def width(self, value: int) -> int:
        return self.shape(value)[-1] if self.kinds[value] == "tokens" else self.shape(value)[0]

    def pick(self, a: int, kind: str = "map", *, clear: bool = False) -> int | None:
        """A value of this kind, counted back from the last one; with `clear`, one without constant channels."""
        found = [
            value
            for value, known in enumerate(self.kinds)
            if known == kind
            and not (clear and value in self.murky)
            and value  # the image itself is read by the first step alone
        ]
        return found[-1 - max(0, a - 7) % len(found)] if found else None

    def like(self, value: int, a: int) -> int | None:
        """Another value of the same shape."""
        found = [
            one
            for one, tensor in enumerate(self.values)
            if one not in (0, value)
            and tensor.shape == self.values[value].shape
            and self.kinds[one] == self.kinds[value]
        ]
        return found[a % len(found)] if found else None

    # -- growing ------------------------------------------------------------------------------------------------------

    def add(self, op: str, reads: tuple[int, ...], *numbers: Any, kind: str = "", part: int | None = None) -> int:
        """Append a step; returns its first value."""
        number, first = len(self.steps), len(self.values)
        step = Step(op, reads, numbers, number if part is None else part, ())
        if part is None:
            self.shell.add_part(step)
        with torch.no_grad():
            found = self.shell.eval().run(step, self.values)
        self.steps.append(Step(op, reads, numbers, step.part, tuple(range(first, first + len(found)))))
        self.values += found
        self.kinds += [kind or self.kinds[reads[0]]] * len(found)
        self.read.update(reads)
        constant = op in ("pad", "pad_zeros") or (op == "repeat" and self.width(reads[0]) == 1)
        constant = constant or any(one in self.murky for one in reads)
        alive = OPERATIONS[op].alive
        if constant and alive in ("same", "moved", "folded") and not (alive == "same" and any(self._told(reads))):
            self.murky.update(range(first, first + len(found)))
        return first

    def _told(self, reads: tuple[int, ...]) -> list[bool]:
        """Operands without constant channels that meet the others everywhere."""
        shapes = [self.values[one].shape for one in reads]
        return [
            len(reads) > 1 and one not in self.murky and shape == shapes[0]
            for one, shape in zip(reads, shapes, strict=True)
        ]

    def conv(self, x: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1, bias: bool = True) -> int:
        return self.add("conv", (x,), self.rank, self.width(x), outputs, size, stride, groups, bias)

    def linear(self, x: int, outputs: int) -> int:
        return self.add("linear", (x,), self.width(x), outputs)

    def fits(self, width: int, *pixels: int) -> bool:
        return 0 < width <= WIDEST and width * math.prod(pixels) <= LARGEST


Growth = Callable[[Developer, int, int, int], None]
GENES: dict[str, Growth] = {}
WEIGHTS: dict[str, int] = {}


def gene(weight: int = 2) -> Callable[[Growth], Growth]:
    """Register what the gene of this name does; the weight says how often it is drawn."""

    def register(function: Growth) -> Growth:
        GENES[function.__name__] = function
        WEIGHTS[function.__name__] = weight
        return function

    return register


def divisor(number: int, which: int, least: int = 2) -> int | None:
    found = [one for one in range(least, number + 1) if number % one == 0]
    return found[which % len(found)] if found else None


def develop(image: tuple[int, ...], genes: list[Gene], head: int = 0) -> Network:
    """The network of these genes. Every value that nothing reads gets a head of its own and is an output."""
    grown = Developer(image)
    grown.conv(0, WIDTHS[head % 4])
    for name, a, b, c in genes:
        GENES[name](grown, a, b, c)
    ends = [value for value in range(1, len(grown.values)) if value not in grown.read]
    outputs = tuple(_head(grown, value, head + number) for number, value in enumerate(ends))
    return Network(image, tuple(grown.steps), outputs, as_dict=head % 5 == 4)


def _head(grown: Developer, value: int, which: int) -> int:
    kind = grown.kinds[value]
    if kind in ("tokens", "vector"):
        return grown.linear(value, 3)
    if which % 4 == 1:
        pooled = grown.add("pool", (value,), grown.rank, 2)
        return grown.linear(grown.add("flatten", (pooled,), kind="vector"), 4)
    if which % 4 == 2:
        size = math.prod(grown.shape(value))
        return grown.linear(grown.add("view", (value,), size, kind="vector"), 4)
    return grown.conv(value, 3, 1)


def networks() -> st.SearchStrategy[Network]:
    """Networks of up to 14 genes; what shrinks is the list of genes."""
    import random_growth  # noqa: F401  (imported for the genes they register)
    import random_layout  # noqa: F401

    names = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
    number = st.integers(0, 15)
    genes = st.lists(st.tuples(st.sampled_from(names), number, number, number), min_size=1, max_size=14)
    return st.builds(develop, st.sampled_from(IMAGES[:3] * 3 + IMAGES), genes, st.integers(0, 9))


def modules_before(grown: Developer, op: str) -> list[int]:
    """Steps of this kind that own their part."""
    return [number for number, step in enumerate(grown.steps) if step.op == op and step.part == number]


def part_of(grown: Developer, number: int) -> Any:
    return getattr(grown.shell, part_name(grown.steps[number]))


def same_pixels(grown: Developer, value: int) -> list[int]:
    """Maps with the same pixels, the value itself included."""
    pixels = grown.shape(value)[1:]
    return [one for one in range(1, len(grown.values)) if grown.kinds[one] == "map" and grown.shape(one)[1:] == pixels]
