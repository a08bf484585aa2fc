"""Scores for weights: one criterion a file, all behind one interface."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Protocol

from torch import Tensor

from fxprune.errors import OptionError
from fxprune.program import Program


class Criterion(Protocol):
    """A rule that scores every weight; the lowest scores are masked first.

    `scores` yields (name, float tensor shaped as the weight) for each name, in order. It is called more than once
    and must give the same numbers each time. A criterion that needs gradients computes them at its first call, from
    the program and whatever data it was constructed with, and keeps only the scores.
    """

    name: ClassVar[str]

    def scores(self, program: Program, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]: ...


CRITERIA = ("magnitude", "random")


def criterion(name: str, seed: int) -> Criterion:
    """The criterion of this name. Raises OptionError for an unknown one."""
    from fxprune.saliency.magnitude import Magnitude
    from fxprune.saliency.random import Random

    known: dict[str, Criterion] = {"magnitude": Magnitude(), "random": Random(seed)}
    if name not in known:
        raise OptionError(f"unknown criterion {name!r}: choose {', '.join(known)}")
    return known[name]
