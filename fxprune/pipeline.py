"""compile(): the default order of passes. The only core module that imports passes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fxprune.averages import AVERAGES
from fxprune.capture.inputs import choose_inputs
from fxprune.capture.module import capture, check_model
from fxprune.channels.engine import analyse
from fxprune.channels.groups import couple
from fxprune.compiled import Compiled, make_recipe, make_report
from fxprune.densities import RANKINGS
from fxprune.errors import OptionError
from fxprune.manager import Observer, Pass, PassManager
from fxprune.metarun import plain_mode
from fxprune.passes.expect import Expect
from fxprune.passes.initialise import MODES, Initialise
from fxprune.passes.mask import Mask
from fxprune.passes.plan import COUPLINGS, Plan
from fxprune.passes.reinit import Reinit
from fxprune.passes.select import Select
from fxprune.passes.sensitivity import POLICIES, Sensitivity
from fxprune.passes.shrink import Shrink
from fxprune.passes.sparsity import Sparsity
from fxprune.passes.uniform import SELECTIONS, Uniform
from fxprune.phases import measured, phase
from fxprune.program import Program, skeleton_of
from fxprune.saliency import CRITERIA
from fxprune.saliency import criterion as criterion_named
from fxprune.saliency.trial import Data, as_data

_CHOICES = {
    "select": SELECTIONS,
    "criterion": CRITERIA,
    "ranking": RANKINGS,
    "policy": tuple(POLICIES),
    "coupling": COUPLINGS,
    "average": AVERAGES,
    "init": MODES,
}


@dataclass(frozen=True)
class Options:
    """Everything `compile` can be asked; see there."""

    sparsity: float | None = None
    keep_rate: float | None = None
    select: str = "saliency"
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

    def __post_init__(self) -> None:
        for name in ("sparsity", "keep_rate"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise OptionError(f"{name} is a number, not {value!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise OptionError(f"seed is a whole number, not {self.seed!r}")
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise OptionError(f"unknown {name} {getattr(self, name)!r}: choose {', '.join(choices)}")
        for name in ("only", "ignore"):
            if isinstance(getattr(self, name), str):
                object.__setattr__(self, name, (getattr(self, name),))
        if (self.sparsity is None) == (self.keep_rate is None):
            raise OptionError("give exactly one of sparsity and keep_rate")
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise OptionError(f"sparsity is the fraction of weights to remove, 0 to below 1, not {self.sparsity}")
        if self.keep_rate is not None and not 0 < self.keep_rate <= 1:
            raise OptionError(
                f"keep_rate is the fraction of channels to keep, above 0 and up to 1, not {self.keep_rate}"
            )
        if not 0 <= self.seed < 2**32:
            raise OptionError(f"seed must lie between 0 and 2**32 - 1, not {self.seed}")
        if self.approximate not in (None, "cut", "freeze"):
            raise OptionError(f"unknown approximate {self.approximate!r}: choose cut, freeze")
        if self.keep_weights and self.init == "kaiming":
            raise OptionError("keep_weights keeps the given weights, init='kaiming' draws new ones: choose one of them")

    @property
    def inexact(self) -> str:
        """What happens to channels behind a statistic over channels: cut when weights are re-drawn, else they stay."""
        return self.approximate or ("freeze" if self.keep_weights else "cut")


@dataclass(frozen=True)
class Analyse:
    """Before: nothing. After: Couplings, the one exact answer for every parameter dimension."""

    approximate: str = "cut"
    name: ClassVar[str] = "analyse"
    requires: ClassVar[tuple[type, ...]] = ()

    def run(self, program: Program) -> Program:
        return program.with_facts(couple(analyse(program, approximate=self.approximate)))


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


def passes_for(options: Options, data: Data | None = None) -> list[Pass]:
    """The program of passes for these options."""
    scores = criterion_named(options.criterion, options.seed, sparsity=options.sparsity or 0.0, data=data)
    init = Initialise("keep" if options.keep_weights else options.init, options.seed)
    if options.keep_rate is not None:
        decide: list[Pass] = [Uniform(options.keep_rate, options.select, scores, options.seed)]
    else:
        assert options.sparsity is not None
        decide = [
            Mask(options.sparsity, scores, options.ranking),
            Sparsity(options.average),
            Sensitivity(options.policy, options.seed),
            Plan(options.coupling),
        ]
    return [*finding_passes(options), init, *decide, *cutting_passes(options)]


def compile(
    model: nn.Module,
    example_inputs: Any = None,
    sparsity: float | None = None,
    *,
    keep_rate: float | None = None,
    select: str = "saliency",
    criterion: str = "magnitude",
    ranking: str = "global",
    data: Data | Iterable[tuple[Any, Any]] | None = None,
    policy: str = "reconvene",
    coupling: str = "max",
    average: str = "prunable",
    init: str = "auto",
    seed: int = 0,
    keep_weights: bool = False,
    approximate: str | None = None,
    proof: bool = True,
    retry: bool = True,
    only: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    observers: Sequence[Observer] = (),
) -> Compiled:
    """Make a network smaller and prove that it was done exactly. The model is left as it was.

    With `sparsity` the widths are decided as in Reconvene (Eccles, Wong, Varghese, CCGrid 2024): mask weights over the
    whole network, shrink the layers that became at least as sparse as the average, keep the mask in the others. With
    `keep_rate` every channel group keeps the same share of its channels and nothing is masked.

    model           any nn.Module that torch.fx or torch.export can follow; it holds numbers (not on the meta device)
    example_inputs  a tensor, a tuple of positional or a dict of keyword arguments, as (N, C, H, W) images; only shapes
                    and dtypes count, and N = 2 lets the proof say how much it saw. None: guessed from the first
                    convolution
    sparsity        fraction of weights to mask before deciding widths, 0 <= sparsity < 1
    keep_rate       instead: the fraction of channels that every group keeps, 0 < keep_rate <= 1, rounded up
    select          with keep_rate, which channels stay: "saliency", "random" or "first"
    criterion       what ranks weights: "magnitude", "random", "synflow", and, with data, "snip", "grasp", "prospr"
    ranking         "global": all weights together; "uniform", "erk": each layer by itself, with these densities
    data            labelled batches for criteria that look at gradients: a DataLoader, or `saliency.trial.Data` to name
                    the loss (cross entropy otherwise)
    policy          which layers are shrunk: "reconvene" (S_l >= S_avg), "all" (SPaI), "none" (UPaI), "inverted",
                    "random"
    coupling        width of coupled layers: "max" of their requests, "keep" all channels, "min"
    average         what S_avg runs over: "prunable", "conv", "all-params", "layer-mean"
    init            "auto": weights that look untrained are drawn (Kaiming) before ranking; "kaiming": always;
                    "keep": never
    seed            of everything that is drawn, 0 to 2**32 - 1; equal seeds give equal results
    keep_weights    keep the surviving weights instead of drawing fresh ones
    approximate     channels behind a normalisation over channels: "cut" (default when weights are drawn anew) or
                    "freeze"
    proof           run dense and cut network in float64 and compare
    retry           leave groups alone that the proof refuses; False: raise ProofError instead
    only, ignore    shell patterns of module names to take part or stay out
    observers       called after each pass with its name, the program and its seconds

    Raises OptionError (an argument makes no sense), CaptureError (the network cannot be traced, or the inputs do not
    fit), NothingPrunableError (no channel can go; the message names what blocks them), ProofError, PassError: all of
    them FxpruneError.
    """
    options = Options(
        sparsity, keep_rate, select, criterion, ranking, policy, coupling, average, init, seed, keep_weights,
        approximate, proof, retry, only, ignore,
    )  # fmt: skip
    with plain_mode():
        return _compile(model, example_inputs, options, observers, as_data(data))


def _compile(
    model: nn.Module, example_inputs: Any, options: Options, observers: Sequence[Observer], data: Data | None
) -> Compiled:
    notes: tuple[str, ...] = ()
    check_model(model)
    with measured() as clock, phase("capture"):
        if example_inputs is None:
            skeleton, _ = skeleton_of(model)
            example_inputs, note = choose_inputs(skeleton, None)
            notes = (note,)
        program = capture(model, example_inputs, compare=options.proof)
    manager = PassManager(passes_for(options, data), observers, clock.seconds())
    return _run(program, options, manager, notes)


def _run(program: Program, options: Options, manager: PassManager, notes: tuple[str, ...]) -> Compiled:
    dense: list[Program] = []  # the last program before the rewrite, which drops facts

    def remember(name: str, current: Program, seconds: float) -> None:
        if name == "plan":
            dense.append(current)

    manager.observers = (*manager.observers, remember)
    small = manager.run(program)
    asked = _asked(options)
    return Compiled(
        small, make_report(dense[-1], small, asked, manager.seconds, notes), make_recipe(dense[-1], small, asked)
    )


def _asked(options: Options) -> dict[str, Any]:
    asked = {name: getattr(options, name) for name in Options.__dataclass_fields__}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()}
