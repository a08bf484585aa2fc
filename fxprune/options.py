"""Options: everything `compile` can be asked, checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fxprune.averages import AVERAGES
from fxprune.densities import RANKINGS
from fxprune.errors import OptionError
from fxprune.idle import BELONG, DECIDES, without_effect
from fxprune.passes.choose import POOLS, KeepRate
from fxprune.passes.initialise import MODES
from fxprune.passes.plan import COUPLINGS
from fxprune.passes.sensitivity import POLICIES
from fxprune.saliency import CRITERIA
from fxprune.saliency import WITH_DATA as WEIGHTS_WITH_DATA
from fxprune.saliency.channels import REDUCTIONS
from fxprune.saliency.selections import SELECTIONS
from fxprune.saliency.selections import WITH_DATA as CHANNELS_WITH_DATA

CROPPING = ("precrop", "precrop-synflow")  # policies that decide widths from densities, without masks
_CHOICES = {
    "select": SELECTIONS,
    "criterion": CRITERIA,
    "ranking": RANKINGS,
    "policy": (*POLICIES, *CROPPING),
    "coupling": COUPLINGS,
    "average": AVERAGES,
    "init": MODES,
    "pool": POOLS,
    "reduction": (None, *REDUCTIONS),
    "approximate": (None, "cut", "freeze"),
}


@dataclass(frozen=True)
class Options:
    """Everything `compile` can be asked; see there."""

    sparsity: float | None = None
    keep_rate: KeepRate | None = None
    select: str = "saliency"
    pool: str = "local"
    reduction: str | None = None
    criterion: str = "magnitude"
    ranking: str = "global"
    policy: str = "reconvene"
    coupling: str = "max"
    average: str = "prunable"
    init: str = "auto"
    seed: int = 0
    keep_weights: bool = False
    approximate: str | None = None
    proof: bool = True
    retry: bool = True
    only: Sequence[str] | None = None
    ignore: Sequence[str] | None = None
    submodule: str | None = None
    method: str | None = None

    def __post_init__(self) -> None:
        for name in ("only", "ignore"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))
        self._check_amount()
        self._check_choices()
        self._check_idle()
        if self.keep_weights and self.init == "kaiming":
            raise OptionError("keep_weights keeps the given weights, init='kaiming' draws new ones: choose one of them")

    def _check_amount(self) -> None:
        """How much goes, as one number or one for each layer."""
        rates = [self.keep_rate]
        if isinstance(self.keep_rate, Mapping):
            rates = list(self.keep_rate.values())
            if not rates or not all(isinstance(pattern, str) for pattern in self.keep_rate):
                raise OptionError(f"keep_rate is {{pattern of module names: fraction}}, not {dict(self.keep_rate)}")
        for name, value in [("sparsity", self.sparsity), *(("keep_rate", rate) for rate in rates)]:
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise OptionError(f"{name} is a number, not {value!r}")
        if (self.sparsity is None) == (self.keep_rate is None):
            raise OptionError("give exactly one of sparsity and keep_rate")
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise OptionError(f"sparsity is the fraction of weights to remove, 0 to below 1, not {self.sparsity}")
        for rate in rates:
            if isinstance(rate, int | float) and not 0 < rate <= 1:
                raise OptionError(f"keep_rate is the fraction of channels to keep, above 0 and up to 1, not {rate}")

    def _check_choices(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise OptionError(f"unknown {name} {getattr(self, name)!r}: choose {', '.join(filter(None, choices))}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise OptionError(f"seed is a whole number, not {self.seed!r}")
        if not 0 <= self.seed < 2**32:
            raise OptionError(f"seed must lie between 0 and 2**32 - 1, not {self.seed}")

    def _check_idle(self) -> None:
        """Raise OptionError for an option that has another value than usual, and that nothing would look at."""
        knob, other = ("sparsity", "keep_rate") if self.keep_rate is None else ("keep_rate", "sparsity")
        decides = DECIDES[knob]
        value = getattr(self, decides)
        reasons = dict.fromkeys(BELONG[other], f"with {knob}")
        reasons |= dict.fromkeys(without_effect(decides, value), f"where {decides} is {value!r}")
        for name, reason in reasons.items():
            if getattr(self, name) != getattr(Options, name):
                raise OptionError(f"{name}={getattr(self, name)!r} has no effect {reason}: leave it out")

    @property
    def inexact(self) -> str:
        """What happens to channels behind a statistic over channels: cut when weights are re-drawn, else they stay."""
        return self.approximate or ("freeze" if self.keep_weights else "cut")

    @property
    def judge(self) -> str | None:
        """The name of what ranks weights or channels; None where shapes decide."""
        if self.keep_rate is not None and self.select != "saliency":
            return self.select
        return None if self.sparsity is not None and self.policy == "precrop" else self.criterion

    @property
    def looks_at_data(self) -> bool:
        """Whether gradients of a loss decide."""
        return self.judge in (*WEIGHTS_WITH_DATA, *CHANNELS_WITH_DATA)


def keep_rate_of(channel_sparsity: KeepRate, keep_rate: object) -> KeepRate:
    """1 - channel_sparsity. Raises OptionError for fractions that are none, and when keep_rate was given too."""
    if keep_rate is not None:
        raise OptionError("give keep_rate or channel_sparsity: one is 1 minus the other")
    rates = channel_sparsity.values() if isinstance(channel_sparsity, Mapping) else [channel_sparsity]
    for rate in rates:
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise OptionError(f"channel_sparsity is the fraction of channels to remove, 0 to below 1, not {rate!r}")
    if isinstance(channel_sparsity, Mapping):
        return {pattern: 1 - rate for pattern, rate in channel_sparsity.items()}
    return 1 - channel_sparsity
