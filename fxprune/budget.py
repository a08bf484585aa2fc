"""Budgets: find how much to remove so that the result costs no more than a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fxprune.cost import Cost
from fxprune.errors import OptionError
from fxprune.wording import UNITS

_TRIALS = 16  # halvings: a 65 536th of the range
# Of the way from `most` to `least`; they lie closer where a step changes more.
_STEPS = (0.9, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 1e-3, 1e-4)
_NAMES = {"params": "parameters", "macs": "macs", "size": "bytes"}


@dataclass(frozen=True)
class Budget:
    """What the result may cost at most.

    kind   "params" (parameters stored, masked ones included), "macs" (of one example) or "size" (bytes of weights and
           buffers)
    limit  absolute when above 1, else a fraction of the dense network's
    """

    kind: str
    limit: float

    def __post_init__(self) -> None:
        if isinstance(self.limit, bool) or not isinstance(self.limit, int | float) or not self.limit > 0:
            raise OptionError(
                f"a target is a positive number, or a fraction up to 1 of the dense network, not {self.limit!r}"
            )

    @property
    def unit(self) -> str:
        """What is counted, for people."""
        return UNITS[_NAMES[self.kind]]

    def of(self, cost: Cost) -> int:
        """The number that is bounded."""
        found: int = getattr(cost, _NAMES[self.kind])
        return found

    def told(self, dense: Cost, reached: Cost) -> str:
        """A sentence on what became of it."""
        bound, found = self.bound(dense), self.of(reached)
        met = "met" if found <= bound else "missed, because the proof refused to cut some groups"
        share = f"{found / self.of(dense):.2%} of the dense network's"
        return f"target of {bound:,.0f} {self.unit} at most is {met}: {found:,}, {share}"

    def bound(self, dense: Cost) -> float:
        """The limit in units of `of`."""
        return self.limit * self.of(dense) if self.limit <= 1 else self.limit


def one_budget(params: float | None, macs: float | None, size: float | None) -> Budget | None:
    """The budget that was given. Raises OptionError for several."""
    given = [(kind, value) for kind, value in (("params", params), ("macs", macs), ("size", size)) if value is not None]
    if len(given) > 1:
        raise OptionError("give one target: target_params, target_macs or target_size")
    return Budget(*given[0]) if given else None


def search(budget: Budget, dense: Cost, cost_at: Callable[[float], Cost], most: float, least: float) -> float:
    """The setting, between `most` (removes most) and `least`, whose cost comes nearest to the bound from below.

    Costs need not fall at every step, so that the best of all trials is taken; nor need they be smallest at `most`, so
    that steps on the way are tried where it lies above the bound. Raises OptionError naming the smallest cost seen
    when all of them do.
    """
    bound = budget.bound(dense)
    if budget.of(dense) <= bound:
        return least
    tried = {most: budget.of(cost_at(most))}
    low, high = most, least
    if tried[most] > bound:
        low, high = _bracket(lambda setting: budget.of(cost_at(setting)), bound, tried, least)
    if tried[low] > bound:
        smallest = min(tried.values())
        raise OptionError(
            f"the target of {bound:,.0f} {budget.unit} cannot be met: the smallest found here is "
            f"{smallest:,} ({smallest / budget.of(dense):.2%} of the dense network's {budget.of(dense):,})"
        )
    fits, best = low, tried[low]
    for _ in range(_TRIALS):
        middle = (low + high) / 2
        found = budget.of(cost_at(middle))
        if found <= bound:
            low = middle
            fits, best = (middle, found) if found > best else (fits, best)
        else:
            high = middle
    return fits


def _bracket(
    number_at: Callable[[float], int], bound: float, tried: dict[float, int], least: float
) -> tuple[float, float]:
    """(the first step from `least` that lies below the bound, the one before it); adds to what was tried."""
    (most,), before = tried, least
    for rest in _STEPS:
        setting = most + (least - most) * rest
        tried[setting] = number_at(setting)
        if tried[setting] <= bound:
            return setting, before
        before = setting
    return most, before
