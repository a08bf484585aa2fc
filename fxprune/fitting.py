"""fit(): how much to remove so that the result costs no more than a budget."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fxprune.budget import Budget, search
from fxprune.channels.groups import Couplings
from fxprune.cost import Cost, cost
from fxprune.facts import Shrunk
from fxprune.manager import PassManager
from fxprune.options import Options
from fxprune.pass_lists import Judges, cut_shapes, deciding_passes, remembering_judges
from fxprune.program import Program
from fxprune.saliency.trial import Data

_ALMOST_ALL = 0.99999  # the far end of a search: every layer that can be cut is down to its last channels


def fit(budget: Budget, program: Program, options: Options, data: Data | None) -> tuple[Options, Judges | None]:
    """The options with the sparsity or keep rate that meets the budget, and what ranked weights and channels on the
    way: whoever goes on with it decides the same. Raises OptionError when nothing meets it.
    """
    knob = "sparsity" if options.keep_rate is None else "keep_rate"
    dense = cost(replace(program, facts={}), program.fact(Couplings).analysis)
    judges = remembering_judges(options, data)

    def at(value: float) -> Options:
        changed: dict[str, Any] = {knob: value}
        return replace(options, **changed)

    def cost_at(value: float) -> Cost:
        tried = at(value)
        small = cut_shapes(PassManager(deciding_passes(tried, data, judges)).run(program), tried)
        return cost(small, small.fact(Shrunk).analysis)

    most, least = (_ALMOST_ALL, 0.0) if knob == "sparsity" else (1 - _ALMOST_ALL, 1.0)
    return at(search(budget, dense, cost_at, most, least)), judges
