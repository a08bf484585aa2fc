"""What each ATen operator does to labels, one family a file. Importing this package fills the table.

A rule answers one question: which channels must be removed together so that the operator computes the same on what
is left? It ties or freezes atoms through the context and labels the results. An operator without a rule freezes all
it touches.
"""

from fxprune.channels.rules import (  # noqa: F401  (imported for the rules they register)
    contraction,
    convolution,
    frequencies,
    indexing,
    joining,
    making,
    moving,
    normalisation,
    pointwise,
    reduction,
    sampling,
)
from fxprune.channels.rules.table import RULES, rule, rule_for

__all__ = ["RULES", "rule", "rule_for"]
