"""Facts that passes hand to each other: frozen, keyed by qualified parameter name, dropped by every rewrite."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from torch import Tensor

from fxprune.channels.engine import Analysis
from fxprune.channels.solve import Ints


@dataclass(frozen=True, eq=False)
class Prunable:
    """Weights that may be masked, in the order in which the network meets them.

    kinds      name -> "conv" or "linear"; depthwise weights have no width of their own and are not listed
    frozen     group index -> reason, for groups that an option keeps as they are
    """

    kinds: Mapping[str, str]
    frozen: Mapping[int, str]


@dataclass(frozen=True)
class Ranking:
    """Where the ranked weights come from. `trained` is a guess from the numbers; `drawn` says they were drawn anew."""

    trained: bool
    drawn: bool


@dataclass(frozen=True, eq=False)
class WeightMasks:
    """0/1 masks, shaped as their weights, 1 = kept."""

    masks: Mapping[str, Tensor]


@dataclass(frozen=True)
class Share:
    """Zeros among the weights of one layer, counted on the mask."""

    zeros: int
    total: int

    @property
    def sparsity(self) -> float:
        return self.zeros / self.total

    @property
    def kept(self) -> int:
        return self.total - self.zeros


@dataclass(frozen=True)
class SparsityReport:
    """S_l of each masked layer and S_avg, exactly."""

    layers: Mapping[str, Share]
    average: Fraction


@dataclass(frozen=True)
class SensitivityReport:
    """True for resilient layers, False for sensitive ones; layers whose width cannot change are not listed."""

    resilient: Mapping[str, bool]


@dataclass(frozen=True, eq=False)
class WidthPlan:
    """Positions of the channels that stay, for each group that loses any (group index -> ascending positions)."""

    kept: Mapping[int, Ints]


@dataclass(frozen=True, eq=False)
class Shrunk:
    """What a rewrite removed.

    kept            name -> dimension -> surviving indices
    kept_per_group  name -> dimension -> surviving indices of each conv group
    renumbered      constant index tensors with their new values
    patched         nodes whose source held a width that had to change
    widths          group index -> (width before, width after)
    refused         group index -> what the proof found wrong with cutting it
    error           largest relative difference found by the proof, None when it was skipped
    signal          how much the compared outputs depended on the input, relative to their size; None when it was
                    skipped
    dense           weights that lost their mask because their layer was shrunk
    single          biases of groups that were cut down to one channel, those of normalisations where there are any
    analysis        the engine's answers about the smaller network
    """

    kept: Mapping[str, Mapping[int, Ints]]
    kept_per_group: Mapping[str, Mapping[int, Ints]]
    renumbered: Mapping[str, Tensor]
    patched: tuple[str, ...]
    widths: Mapping[int, tuple[int, int]]
    refused: Mapping[int, str]
    error: float | None
    signal: float | None
    dense: frozenset[str]
    single: tuple[str, ...]
    analysis: Analysis = field(repr=False)


@dataclass(frozen=True)
class Repairs:
    """What was done to keep the network alive.

    rows       weight -> rows that slicing had emptied and that got their largest weight back
    densified  weights that became dense
    lifted     biases of single channels that start at 1, so that a ReLU behind them passes something
    """

    rows: Mapping[str, int]
    densified: tuple[str, ...]
    lifted: tuple[str, ...] = ()
