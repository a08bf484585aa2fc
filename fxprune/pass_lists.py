"""Which passes make up a compilation, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

from fxprune.channels.first_walk import take_analysis
from fxprune.channels.groups import Couplings, couple
from fxprune.facts import Ranking, WidthPlan
from fxprune.manager import Pass, PassManager
from fxprune.options import Options
from fxprune.passes.choose import Choose
from fxprune.passes.crop import Crop
from fxprune.passes.even import Even
from fxprune.passes.expect import Expect
from fxprune.passes.initialise import Initialise
from fxprune.passes.mask import Mask
from fxprune.passes.plan import Plan
from fxprune.passes.reinit import Reinit
from fxprune.passes.select import Select
from fxprune.passes.sensitivity import Sensitivity
from fxprune.passes.shrink import Shrink
from fxprune.passes.sparsity import Sparsity
from fxprune.program import Program, named_tensors
from fxprune.saliency import Criterion
from fxprune.saliency import criterion as criterion_named
from fxprune.saliency.channels import ChannelCriterion
from fxprune.saliency.remembered import Remembered, RememberedChannels
from fxprune.saliency.selections import Wanted, selection
from fxprune.saliency.trial import Data


@dataclass(frozen=True)
class Analyse:
    """Before: nothing. After: Couplings, the one exact answer for every parameter dimension."""

    approximate: str = "cut"
    name: ClassVar[str] = "analyse"
    requires: ClassVar[tuple[type, ...]] = ()

    def run(self, program: Program) -> Program:
        program, analysis = take_analysis(program, self.approximate)
        return program.with_facts(couple(analysis))


def finding_passes(options: Options) -> list[Pass]:
    """Up to Prunable: what can be removed at all."""
    return [Analyse(options.inexact), Select(options.only, options.ignore)]


def foreseeing_passes(options: Options) -> list[Pass]:
    """From Prunable to WidthPlan by shapes alone: the widths to expect at Kaiming initialisation."""
    assert options.sparsity is not None
    return [
        Expect(options.sparsity, options.average),
        Sensitivity(options.policy, options.seed),
        Plan(options.coupling),
    ]


def cutting_passes(options: Options) -> list[Pass]:
    """From WidthPlan on: the cut and its proof, and fresh weights unless the old ones stay."""
    shrink = Shrink(options.proof, options.retry, options.seed)
    return [shrink] if options.keep_weights else [shrink, Reinit(options.seed)]


class Judges(NamedTuple):
    """What ranks weights; and channels, where a keep rate was asked for."""

    weights: Criterion
    channels: ChannelCriterion | None


def judges_for(options: Options, data: Data | None) -> Judges:
    """Those that the options name."""
    weights = criterion_named(options.criterion, options.seed, sparsity=options.sparsity or 0.0, data=data)
    return Judges(weights, _channels(options, data, weights))


def remembering_judges(options: Options, data: Data | None) -> Judges | None:
    """Those that the options name, each asked once only; None where what they say depends on the sparsity."""
    if options.keep_rate is None and options.criterion == "synflow":
        return None
    weights = Remembered(criterion_named(options.criterion, options.seed, data=data))
    channels = _channels(options, data, weights)
    return Judges(weights, None if channels is None else RememberedChannels(channels))


def _channels(options: Options, data: Data | None, weights: Criterion) -> ChannelCriterion | None:
    if options.keep_rate is None:
        return None
    return selection(options.select, Wanted(weights, options.seed, data, options.reduction))


def deciding_passes(options: Options, data: Data | None, judges: Judges | None = None) -> list[Pass]:
    """From Prunable and the weights to WidthPlan."""
    weights, channels = judges or judges_for(options, data)
    if options.keep_rate is not None:
        assert channels is not None
        return [Choose(options.keep_rate, channels, options.pool)]
    assert options.sparsity is not None
    if options.policy == "precrop":
        return [Even(options.sparsity), Crop()]
    masking: list[Pass] = [Mask(options.sparsity, weights, options.ranking), Sparsity(options.average)]
    if options.policy == "precrop-synflow":
        return [*masking, Crop(up=True)]
    return [*masking, Sensitivity(options.policy, options.seed), Plan(options.coupling)]


def passes_for(options: Options, data: Data | None = None) -> list[Pass]:
    """The program of passes for these options."""
    return [*starting_passes(options), *deciding_passes(options, data), *cutting_passes(options)]


def starting_passes(options: Options) -> list[Pass]:
    return [*finding_passes(options), Initialise("keep" if options.keep_weights else options.init, options.seed)]


def cut_shapes(planned: Program, options: Options) -> Program:
    """The cut network without numbers, for a program with a WidthPlan: what it would cost."""
    bare = named_tensors(planned.module)
    known = (planned.fact(Couplings), planned.fact(WidthPlan), Ranking(trained=False, drawn=True))
    shapes = replace(planned, tensors=bare, facts={}).with_facts(*known)
    return PassManager(cutting_passes(replace(options, proof=False, keep_weights=True, init="keep"))).run(shapes)
