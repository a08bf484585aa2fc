"""Channel criteria by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fxprune.errors import OptionError
from fxprune.saliency import Criterion
from fxprune.saliency.channels import (
    ChannelCriterion,
    ChannelNorm,
    FirstChannels,
    Fpgm,
    FromWeights,
    NormScale,
    RandomChannels,
)
from fxprune.saliency.gates import GateSlope
from fxprune.saliency.taylor import Taylor
from fxprune.saliency.trial import Data


@dataclass(frozen=True, eq=False)
class Wanted:
    """What a channel criterion may be made of.

    reduction  over coupled layers; None: the criterion's own
    """

    weights: Criterion
    seed: int
    data: Data | None
    reduction: str | None = None


def selection(name: str, wanted: Wanted) -> ChannelCriterion:
    """The channel criterion of this name. Raises OptionError for an unknown one."""
    if name not in _MAKERS:
        raise OptionError(f"unknown selection {name!r}: choose {', '.join(_MAKERS)}")
    return _MAKERS[name](wanted)


def _reduced(wanted: Wanted, otherwise: str = "mean") -> str:
    return wanted.reduction or otherwise


_MAKERS: dict[str, Callable[[Wanted], ChannelCriterion]] = {
    "saliency": lambda one: FromWeights(one.weights),
    "random": lambda one: RandomChannels(one.seed),
    "first": lambda one: FirstChannels(),
    "l1": lambda one: ChannelNorm(1, "outputs", _reduced(one)),
    "l2": lambda one: ChannelNorm(2, "outputs", _reduced(one)),
    "group-l1": lambda one: ChannelNorm(1, "all", _reduced(one)),
    "group-l2": lambda one: ChannelNorm(2, "all", _reduced(one)),
    "fpgm": lambda one: Fpgm(_reduced(one)),
    "bn-scale": lambda one: NormScale(_reduced(one)),
    "taylor": lambda one: Taylor(one.data, one.seed, reduction=_reduced(one, "sum")),
    "taylor-batch": lambda one: Taylor(one.data, one.seed, "batch", reduction=_reduced(one, "sum")),
    "taylor-element": lambda one: Taylor(one.data, one.seed, "element", reduction=_reduced(one, "sum")),
    "gate": lambda one: GateSlope(one.data, one.seed),
    "gate-per-mac": lambda one: GateSlope(one.data, one.seed, per_mac=True),
    "gate-after-steps": lambda one: GateSlope(one.data, one.seed, steps=3),
}
SELECTIONS = tuple(_MAKERS)
WITH_DATA = tuple(name for name in SELECTIONS if name.startswith(("taylor", "gate")))  # they look at gradients
