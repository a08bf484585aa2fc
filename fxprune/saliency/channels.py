"""Scores for channels: what decides which of a group stay. One number for each channel, lowest goes first.

A channel consists of slices of several parameters. A criterion scores each slice, and `gathered` puts the slices of one
channel together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from fxprune.channels.groups import ChannelGroup, Couplings
from fxprune.channels.scores import Scores, channel_scores, output_layer
from fxprune.channels.solve import Ints
from fxprune.drawing import generator
from fxprune.errors import OptionError
from fxprune.facts import Prunable
from fxprune.program import Program, first_names
from fxprune.saliency import Criterion
from fxprune.saliency.magnitude import Magnitude

REDUCTIONS = ("mean", "max", "sum", "first")
Part = tuple[Ints, Scores]  # roots of one parameter's slices, and the score of each


class ChannelCriterion(Protocol):
    """A rule that scores channels. `scores` gives one number for each root; higher is worth more. A group in which some
    are NaN, because there is nothing to tell them by, keeps all of its channels.
    """

    name: ClassVar[str]

    def scores(self, program: Program, couplings: Couplings) -> Scores: ...


@dataclass(frozen=True)
class FromWeights:
    """The sum of a weight criterion's scores over the filters that make the channel."""

    criterion: Criterion
    name: ClassVar[str] = "saliency"

    def scores(self, program: Program, couplings: Couplings) -> Scores:
        names = list(program.fact(Prunable).kinds)
        if isinstance(self.criterion, Magnitude):  # scores any piece of a weight without the rest
            weights = ((name, program.tensors[name].detach()) for name in names)
            return channel_scores(couplings, weights, self.criterion.of)
        return channel_scores(couplings, self.criterion.scores(program, names))


@dataclass(frozen=True)
class RandomChannels:
    """Drawn from the seed: the control for every other criterion."""

    seed: int
    name: ClassVar[str] = "random"

    def scores(self, program: Program, couplings: Couplings) -> Scores:
        draw = generator(self.seed, "select")
        return torch.rand(couplings.analysis.atoms.total, generator=draw, dtype=torch.float64).numpy()


@dataclass(frozen=True)
class FirstChannels:
    """All alike, so that the first ones stay."""

    name: ClassVar[str] = "first"

    def scores(self, program: Program, couplings: Couplings) -> Scores:
        return np.zeros(couplings.analysis.atoms.total)


@dataclass(frozen=True)
class Slices:
    """Where the channels of one parameter lie.

    roots   of its slices along `dims`, in order
    dims    the dimensions to keep; a score of a slice runs over all others
    """

    parameter: str
    roots: Ints
    dims: tuple[int, ...]

    def summed(self, value: Tensor) -> Scores:
        """`value`, shaped as the parameter, summed over everything but the slices."""
        others = tuple(dim for dim in range(value.ndim) if dim not in self.dims)
        found: Scores = (value.sum(others) if others else value).reshape(-1).double().numpy()
        return found


def output_slices(couplings: Couplings) -> Iterator[Slices]:
    """Filters of the layers that make channels."""
    seen: set[str] = set()
    for producer in couplings.analysis.producers:
        if producer.kind == "depthwise" or producer.weight in seen:
            continue
        seen.add(producer.weight)
        labels = couplings.analysis.parameter_labels[producer.weight]
        if labels.layers:
            yield _slices(couplings, producer.weight, output_layer(couplings, labels, producer.outputs))


def norm_slices(couplings: Couplings) -> Iterator[Slices]:
    """Scales of normalisations."""
    for name in dict.fromkeys(scale.weight for scale in couplings.analysis.scales):
        for layer in couplings.analysis.parameter_labels[name].layers:
            yield _slices(couplings, name, layer)


def all_slices(couplings: Couplings) -> Iterator[Slices]:
    """Everything of a channel that multiplies: filters, the inputs of the layers that read it, scales. No biases."""
    names = dict.fromkeys(producer.weight for producer in couplings.analysis.producers)
    for name in names:
        for layer in couplings.analysis.parameter_labels[name].layers:
            yield _slices(couplings, name, layer)
    yield from norm_slices(couplings)


def _slices(couplings: Couplings, name: str, layer: Tensor) -> Slices:
    dims = tuple(dim for dim, size in enumerate(layer.shape) if size > 1)
    return Slices(name, couplings.components.root[layer.reshape(-1).numpy()], dims)


def numbers_of(program: Program, name: str) -> Tensor:
    """A parameter's numbers, on the CPU."""
    found = program.tensors.get(name)  # names are told apart for tied ones only: that looks at all parameters
    return (program.tensors[first_names(program)[name]] if found is None else found).detach().cpu()


def gathered(couplings: Couplings, parts: Iterable[Part], reduction: str) -> Scores:
    """One score a root from the scores of its slices.

    reduction   over the parameters that a channel has slices of: "mean", "max", "sum", or "first" (the one that the
                network meets first). Slices of one parameter that belong to one channel (a feature map flattened into
                a linear layer) are summed in any case.
    """
    if reduction not in REDUCTIONS:
        raise OptionError(f"unknown reduction {reduction!r}: choose {', '.join(REDUCTIONS)}")
    total = couplings.analysis.atoms.total
    found, count = np.zeros(total), np.zeros(total)
    for roots, values in parts:
        own = np.zeros(total)
        np.add.at(own, roots, values)
        met = np.unique(roots)
        if reduction == "max":
            found[met] = np.where(count[met] > 0, np.maximum(found[met], own[met]), own[met])
        elif reduction == "first":
            found[met] = np.where(count[met] > 0, found[met], own[met])
        else:
            found[met] += own[met]
        count[met] += 1
    return found / np.maximum(count, 1) if reduction == "mean" else found


@dataclass(frozen=True)
class ChannelNorm:
    """Sum of |w|^power over each slice: "l1" (power 1) and "l2" (power 2, without the root) filter norms.

    power      of the norm
    members    "outputs": the filters that make a channel (Li et al., ICLR 2017); "all": also the inputs of the layers
               that read it, and the scales of its normalisations (group norms of Fang et al., CVPR 2023)
    reduction  over coupled layers, see `gathered`
    """

    power: int = 1
    members: str = "outputs"
    reduction: str = "mean"
    name: ClassVar[str] = "norm"

    def scores(self, program: Program, couplings: Couplings) -> Scores:
        walk = {"outputs": output_slices, "all": all_slices}[self.members]
        parts = ((one.roots, one.summed(self._raised(program, one))) for one in walk(couplings))
        return gathered(couplings, parts, self.reduction)

    def _raised(self, program: Program, one: Slices) -> Tensor:
        return numbers_of(program, one.parameter).abs().pow(self.power)


@dataclass(frozen=True)
class Fpgm:
    """Filters near the geometric median of their layer are the most replaceable (He et al., CVPR 2019).

    score of filter i = sum over j of the Euclidean distance between filters i and j of the layer; the lowest go.
    Torch-Pruning's FPGMImportance measures distances between |w|^p instead of w, and between input slices too, so that
    it ranks alike only where weights are not negative, with p = 1 and a group of one layer. Quadratic in the filters
    of a layer, by definition.
    """

    reduction: str = "mean"
    name: ClassVar[str] = "fpgm"

    def scores(self, program: Program, couplings: Couplings) -> Scores:
        parts = ((one.roots, _distances(program, one)) for one in output_slices(couplings))
        return gathered(couplings, parts, self.reduction)


def _distances(program: Program, one: Slices) -> Scores:
    weight = numbers_of(program, one.parameter).double()
    filters = weight.movedim(one.dims, tuple(range(len(one.dims)))).reshape(len(one.roots), -1)
    found: Scores = torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1).numpy()
    return found


@dataclass(frozen=True)
class NormScale:
    """|gamma| of the normalisations of a channel (network slimming, Liu et al., ICCV 2017).

    Torch-Pruning's BNScaleImportance agrees; for a channel with several normalisations both take the mean. A channel
    without any has no score (NaN).
    """

    reduction: str = "mean"
    name: ClassVar[str] = "bn-scale"

    def scores(self, program: Program, couplings: Couplings) -> Scores:
        slices = list(norm_slices(couplings))
        met = np.zeros(couplings.analysis.atoms.total, dtype=bool)
        for one in slices:
            met[one.roots] = True
        groups = cuttable(program, couplings)
        if not any(met[group.roots].all() for group in groups):
            raise OptionError(
                f"bn-scale needs normalisations with scales; behind {groups[0].producers[0]} there is none, nor behind "
                "any other layer that could be cut: choose another criterion"
            )
        parts = ((one.roots, one.summed(numbers_of(program, one.parameter).abs())) for one in slices)
        found = gathered(couplings, parts, self.reduction)
        found[~met] = np.nan
        return found


def cuttable(program: Program, couplings: Couplings) -> list[ChannelGroup]:
    """Groups that can lose channels and that no option keeps as they are."""
    frozen = program.fact(Prunable).frozen
    return [group for group in couplings.prunable() if group.index not in frozen]
