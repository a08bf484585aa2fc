"""Scores for weights: one criterion a file, all behind one interface."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Protocol

from torch import Tensor

from fxprune.errors import OptionError
from fxprune.program import Program

if TYPE_CHECKING:
    from fxprune.saliency.trial import Data


class Criterion(Protocol):
    """A rule that scores every weight; the lowest scores are masked first.

    `scores` yields (name, float32 or float64 tensor shaped as the weight) for each name, in order. It is called more
    than once and must give the same numbers each time. A criterion that needs gradients computes them at its first
    call, from the program and whatever data it was constructed with, and keeps only the scores.
    """

    name: ClassVar[str]

    def scores(self, program: Program, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]: ...


def criterion(name: str, seed: int, *, sparsity: float = 0.0, data: Data | None = None) -> Criterion:
    """The criterion of this name. Raises OptionError for an unknown one.

    sparsity  that its mask will have; iterative criteria approach it step by step
    data      labelled batches, for those that look at gradients of the loss
    """
    if name not in _MAKERS:
        hint = (
            "; as a ranking there is also erk and uniform (ranking=, --ranking)" if name in ("erk", "uniform") else ""
        )
        raise OptionError(f"unknown criterion {name!r}: choose {', '.join(_MAKERS)}{hint}")
    return _MAKERS[name](seed, sparsity, data)


Maker = Callable[[int, float, "Data | None"], Criterion]


def _magnitude(_seed: int, _sparsity: float, _data: Data | None) -> Criterion:
    from fxprune.saliency.magnitude import Magnitude

    return Magnitude()


def _random(seed: int, _sparsity: float, _data: Data | None) -> Criterion:
    from fxprune.saliency.random import Random

    return Random(seed)


def _synflow(seed: int, sparsity: float, _data: Data | None) -> Criterion:
    from fxprune.saliency.synflow import Synflow

    return Synflow(sparsity, seed=seed)


def _snip(seed: int, _sparsity: float, data: Data | None) -> Criterion:
    from fxprune.saliency.snip import Snip

    return Snip(data, seed)


def _grasp(seed: int, _sparsity: float, data: Data | None) -> Criterion:
    from fxprune.saliency.grasp import Grasp

    return Grasp(data, seed)


def _prospr(seed: int, _sparsity: float, data: Data | None) -> Criterion:
    from fxprune.saliency.prospr import Prospr

    return Prospr(data, seed)


_MAKERS: dict[str, Maker] = {
    "magnitude": _magnitude,
    "random": _random,
    "synflow": _synflow,
    "snip": _snip,
    "grasp": _grasp,
    "prospr": _prospr,
}
CRITERIA = tuple(_MAKERS)
WITH_DATA = ("snip", "grasp", "prospr")  # those that look at gradients of the loss
