"""compile(): the default order of passes. The only core module that imports passes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fxprune.capture.inputs import choose_inputs
from fxprune.capture.module import capture, check_model
from fxprune.channels.engine import analyse
from fxprune.channels.groups import Couplings, couple
from fxprune.cost import cost
from fxprune.emit.module import CompiledModule, build_module, plain_state
from fxprune.errors import OptionError
from fxprune.facts import Prunable, Ranking, Repairs, Shrunk, SparsityReport
from fxprune.manager import Observer, Pass, PassManager
from fxprune.metarun import plain_mode
from fxprune.passes.initialise import MODES, Initialise
from fxprune.passes.mask import Mask
from fxprune.passes.plan import COUPLINGS, Plan
from fxprune.passes.reinit import Reinit
from fxprune.passes.select import Select
from fxprune.passes.sensitivity import POLICIES, Sensitivity
from fxprune.passes.shrink import Shrink
from fxprune.passes.sparsity import AVERAGES, Sparsity
from fxprune.passes.uniform import SELECTIONS, Uniform
from fxprune.program import Program, named_tensors, skeleton_of
from fxprune.proof import FAINT
from fxprune.recipe import Recipe
from fxprune.report import Report, achieved_sparsity, group_lines, layer_lines
from fxprune.saliency import CRITERIA
from fxprune.saliency import criterion as criterion_named

_CHOICES = {
    "select": SELECTIONS,
    "criterion": CRITERIA,
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


@dataclass(frozen=True, eq=False)
class Compiled:
    """The result of `compile`.

    report   asked, decided, achieved, repaired, frozen and why
    recipe   what was kept, in the user's names; `recipe.apply(model)` repeats it
    """

    program: Program
    report: Report
    recipe: Recipe

    @cached_property
    def module(self) -> CompiledModule:
        """The trainable network, in train mode. Masked weights are parametrisations."""
        return build_module(self.program)

    def state_dict(self) -> dict[str, Tensor]:
        """State of `module` under plain names: effective weights, and each mask as `<weight>_mask`."""
        return plain_state(self.module)

    def to_onnx(self, path: str | Path, *, opset: int | None = None) -> Any:
        """Write `module` as it is now to one ONNX file, masks multiplied in, and compare it with torch in onnxruntime.

        Returns the OnnxReport. Raises ExportError.
        """
        from fxprune.emit.onnx import export_onnx  # heavy, and not everybody exports

        metadata = {"producer": f"fxprune {_version('fxprune')}", "seed": str(self.recipe.options["seed"])}
        return export_onnx(
            self._baked(), self.program.inputs.with_storage(), Path(path), opset=opset, metadata=metadata
        )

    def _baked(self) -> nn.Module:
        """The module without parametrisations, with the numbers it has now."""
        baked = build_module(self.program, bake=True)
        state = {name: value for name, value in self.state_dict().items() if not name.endswith("_mask")}
        baked.load_state_dict(state, strict=True)
        return baked.eval()


def passes_for(options: Options) -> list[Pass]:
    """The program of passes for these options."""
    scores = criterion_named(options.criterion, options.seed)
    first: list[Pass] = [
        Analyse(options.inexact),
        Select(options.only, options.ignore),
        Initialise("keep" if options.keep_weights else options.init, options.seed),
    ]
    if options.keep_rate is not None:
        decide: list[Pass] = [Uniform(options.keep_rate, options.select, scores, options.seed)]
    else:
        assert options.sparsity is not None
        decide = [
            Mask(options.sparsity, scores),
            Sparsity(options.average),
            Sensitivity(options.policy, options.seed),
            Plan(options.coupling),
        ]
    shrink = Shrink(options.proof, options.retry, options.seed)
    return [*first, *decide, shrink] + ([] if options.keep_weights else [Reinit(options.seed)])


def compile(
    model: nn.Module,
    example_inputs: Any = None,
    sparsity: float | None = None,
    *,
    keep_rate: float | None = None,
    select: str = "saliency",
    criterion: str = "magnitude",
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

    model           any traceable nn.Module
    example_inputs  a tensor, a tuple of positional or a dict of keyword arguments; None: guessed from the first
                    convolution
    sparsity        fraction of weights to mask before deciding widths (system A: pruning at initialisation)
    keep_rate       instead: the fraction of channels that every group keeps
    select          with keep_rate, which channels stay: "saliency", "random" or "first"
    criterion       what ranks weights: "magnitude" or "random"
    policy          which layers are shrunk: "reconvene" (S_l >= S_avg), "all" (SPaI), "none" (UPaI), "inverted",
                    "random"
    coupling        width of coupled layers: "max" of their requests, "keep" all channels, "min"
    average         what S_avg runs over: "prunable", "conv", "all-params", "layer-mean"
    init            "auto": weights that look untrained are drawn (Kaiming) before ranking; "kaiming": always;
                    "keep": never
    keep_weights    keep the surviving weights instead of drawing fresh ones
    approximate     channels behind a normalisation over channels: "cut" (default when weights are drawn anew) or
                    "freeze"
    proof           run dense and cut network in float64 and compare
    retry           leave groups alone that the proof refuses; False: raise ProofError instead
    only, ignore    shell patterns of module names to take part or stay out
    observers       called after each pass with its name, the program and its seconds

    Raises OptionError, CaptureError, NothingPrunableError, ProofError (all of them FxpruneError).
    """
    options = Options(
        sparsity, keep_rate, select, criterion, policy, coupling, average, init, seed, keep_weights, approximate, proof,
        retry, only, ignore,
    )  # fmt: skip
    with plain_mode():
        return _compile(model, example_inputs, options, observers)


def _compile(model: nn.Module, example_inputs: Any, options: Options, observers: Sequence[Observer]) -> Compiled:
    start = time.perf_counter()
    notes: tuple[str, ...] = ()
    check_model(model)
    if example_inputs is None:
        skeleton, _ = skeleton_of(model)
        example_inputs, note = choose_inputs(skeleton, None)
        notes = (note,)
    program = capture(model, example_inputs, compare=options.proof)
    manager = PassManager(passes_for(options), observers, {"capture": time.perf_counter() - start})
    return _run(program, options, manager, notes)


def _run(program: Program, options: Options, manager: PassManager, notes: tuple[str, ...]) -> Compiled:
    dense: list[Program] = []  # the last program before the rewrite, which drops facts

    def remember(name: str, current: Program, seconds: float) -> None:
        if name == "plan":
            dense.append(current)

    manager.observers = (*manager.observers, remember)
    small = manager.run(program)
    return Compiled(
        small, _report(dense[-1], small, options, manager.seconds, notes), _recipe(dense[-1], small, options)
    )


def _report(
    dense: Program, small: Program, options: Options, seconds: dict[str, float], notes: tuple[str, ...]
) -> Report:
    shrunk, repairs = small.fact(Shrunk), small.fact(Repairs)
    couplings = dense.fact(Couplings)
    average = dense.facts.get(SparsityReport)
    achieved = achieved_sparsity(dense, small)
    ranking = small.fact(Ranking)
    if ranking.trained and not options.keep_weights:
        notes += (
            "the given weights look trained: they decided what stays, then were drawn anew (keep_weights keeps them)",
        )
    if shrunk.signal is not None and shrunk.signal <= FAINT:
        notes += (f"the proof saw little: outputs move by {shrunk.signal:.0e} of their size with the input",)
    if not shrunk.widths:
        notes += ("no channel was removed: no layer is resilient at this setting",)
    return Report(
        asked=_asked(options),
        before=cost(replace(dense, facts={}), couplings.analysis),
        after=cost(small, shrunk.analysis),
        layers=layer_lines(dense, small, couplings),
        groups=group_lines(couplings, shrunk.widths, {**dense.fact(Prunable).frozen, **shrunk.refused}),
        average_sparsity=float(average.average) if average else None,
        achieved_sparsity=achieved,
        repaired_rows=repairs.rows,
        densified=repairs.densified,
        proof_error=shrunk.error,
        proof_signal=shrunk.signal,
        refused=shrunk.refused,
        front_end=small.front_end,
        notes=(*notes, *small.notes),
        seconds=dict(seconds),
    )


def _asked(options: Options) -> dict[str, Any]:
    asked = {name: getattr(options, name) for name in Options.__dataclass_fields__}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()}


def _recipe(dense: Program, small: Program, options: Options) -> Recipe:
    shrunk = small.fact(Shrunk)
    return Recipe(
        kept={name: {dim: kept.tolist() for dim, kept in dims.items()} for name, dims in shrunk.kept.items()},
        kept_per_group={
            name: {dim: kept.tolist() for dim, kept in dims.items()} for name, dims in shrunk.kept_per_group.items()
        },
        numbers=_numbers(dense.module, small.module),
        shapes={
            name: list(tensor.shape)
            for name, tensor in named_tensors(dense.module).items()
            if name in shrunk.kept or name in shrunk.kept_per_group
        },
        indices={name: values.tolist() for name, values in shrunk.renumbered.items()},
        patched=shrunk.patched,
        options=_asked(options),
        versions={"fxprune": _version("fxprune"), "torch": torch.__version__},
    )


def _numbers(dense: nn.Module, small: nn.Module) -> dict[str, dict[str, Any]]:
    """Numbers of leaf modules that shapes do not tell."""
    before = dict(dense.named_modules())
    found: dict[str, dict[str, Any]] = {}
    for path, module in small.named_modules():
        for attribute in ("groups", "num_groups", "num_channels", "normalized_shape", "unflattened_size", "padding"):
            value = getattr(module, attribute, None)
            if value != getattr(before[path], attribute, None):
                found.setdefault(path, {})[attribute] = list(value) if isinstance(value, tuple) else value
    return found


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
