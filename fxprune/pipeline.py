"""compile(): from a network to its smaller twin, its report and its recipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from fxprune.budget import Budget, one_budget
from fxprune.capture.module import as_network, check_numbers
from fxprune.channels.first_walk import first_walk
from fxprune.compiled import Compiled, finished
from fxprune.errors import OptionError
from fxprune.fitting import fit
from fxprune.fold import fold_statistics
from fxprune.manager import Observer, PassManager
from fxprune.metarun import plain_mode
from fxprune.methods import start_of_search, with_method
from fxprune.options import Options, keep_rate_of
from fxprune.pass_lists import cutting_passes, deciding_passes, starting_passes
from fxprune.passes.choose import KeepRate
from fxprune.phases import measured, phase
from fxprune.program import Program
from fxprune.report import Report
from fxprune.saliency.trial import Data, as_data, needed
from fxprune.submodule import Whole, capture_chosen


def compile(
    model: nn.Module,
    example_inputs: Any = None,
    sparsity: float | None = None,
    *,
    keep_rate: KeepRate | None = None,
    channel_sparsity: KeepRate | None = None,
    select: str | None = None,
    pool: str | None = None,
    reduction: str | None = None,
    criterion: str | None = None,
    ranking: str = "global",
    data: Data | Iterable[tuple[Any, Any]] | None = None,
    policy: str | None = None,
    coupling: str = "max",
    average: str = "prunable",
    init: str = "auto",
    seed: int = 0,
    keep_weights: bool | None = None,
    approximate: str | None = None,
    proof: bool = True,
    retry: bool = True,
    only: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    submodule: str | None = None,
    method: str | None = None,
    target_params: float | None = None,
    target_macs: float | None = None,
    target_size: float | None = None,
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
    keep_rate       instead: the fraction of channels that every group keeps, or {pattern of module names: fraction}
    channel_sparsity
                    or: the fraction that every group loses, or {pattern: fraction}; 1 - keep_rate
    select          with keep_rate, which channels stay: "saliency" (sums of the criterion; the default), "random",
                    "first", "l1", "l2", "fpgm", "bn-scale", with data "taylor", "gate", ...; see
                    `fxprune.saliency.selections`
    pool            with keep_rate, what competes: "local" channels of one group (the default), "global" of all,
                    "isomorphic" of groups with the same shapes
    reduction       with keep_rate, of scores over coupled layers: "mean", "max", "sum", "first"
    criterion       what ranks weights: "magnitude" (the default), "random", "synflow", and, with data, "snip", "grasp",
                    "prospr"
    ranking         "global": all weights together; "uniform", "erk": each layer by itself, with these densities
    data            labelled batches for criteria that look at gradients: a DataLoader, or `saliency.trial.Data` to name
                    the loss (cross entropy otherwise)
    policy          which layers are shrunk: "reconvene" (S_l >= S_avg; the default), "all" (SPaI), "none" (UPaI),
                    "inverted", "random"
    coupling        width of coupled layers: "max" of their requests, "keep" all channels, "min"
    average         what S_avg runs over: "prunable", "conv", "all-params", "layer-mean"
    init            "auto": weights that look untrained are drawn (Kaiming) before ranking; "kaiming": always;
                    "keep": never
    seed            of everything that is drawn, 0 to 2**32 - 1; equal seeds give equal results
    keep_weights    keep the surviving weights instead of drawing fresh ones
    approximate     channels behind a statistic over channels, such as LayerNorm: "cut" (default when weights are drawn
                    anew) or "freeze"
    proof           run dense and cut network in float64 and compare
    retry           leave groups alone that the proof refuses; False: raise ProofError instead
    only, ignore    shell patterns of module names to take part or stay out
    submodule       compile this module of the network alone, as "backbone.body": only it has to be traceable. Its
                    inputs are those it gets when the network runs on the example inputs, its outputs keep their widths
    method          a whole method by name, which sets several of the above, so that they cannot be given as anything
                    else: see `fxprune.methods`
    target_params, target_macs, target_size
                    instead of sparsity or keep_rate, the most that the result may cost: parameters stored, MACs of one
                    example, bytes of weights and buffers; a fraction up to 1 of the dense network, or absolute
    observers       called after each pass with its name, the program and its seconds

    Raises OptionError (an argument makes no sense), CaptureError (the network cannot be traced, or the inputs do not
    fit), NothingPrunableError (no channel can go; the message names what blocks them), ProofError, PassError: all of
    them FxpruneError.
    """
    options, budget = settled(
        method, one_budget(target_params, target_macs, target_size), sparsity=sparsity, keep_rate=keep_rate,
        channel_sparsity=channel_sparsity, select=select, pool=pool, reduction=reduction, criterion=criterion,
        ranking=ranking, policy=policy, coupling=coupling, average=average, init=init, seed=seed,
        keep_weights=keep_weights, approximate=approximate, proof=proof, retry=retry, only=only, ignore=ignore,
        submodule=submodule,
    )  # fmt: skip
    with plain_mode():
        return _compile(model, example_inputs, options, budget, as_data(data), observers)


def dry_run(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    data: Data | Iterable[tuple[Any, Any]] | None = None,
    method: str | None = None,
    target_params: float | None = None,
    target_macs: float | None = None,
    target_size: float | None = None,
    observers: Sequence[Observer] = (),
    **asked: Any,
) -> Report:
    """What `compile` would decide with the same arguments: every width, and what the network would cost.

    Nothing is proved and no weight is drawn, which saves most of the time. The numbers are those of `compile`, save
    where the proof would have refused to cut a group. Raises what `compile` raises, except ProofError.
    """
    options, budget = settled(method, one_budget(target_params, target_macs, target_size), **asked)
    with plain_mode():
        return _compile(model, example_inputs, options, budget, as_data(data), observers, dry=True).report


def settled(
    method: str | None, budget: Budget | None, *, channel_sparsity: KeepRate | None = None, **asked: Any
) -> tuple[Options, Budget | None]:
    """The options with what a method sets, and something to begin the search with where a target decides. What is None
    was not given.
    """
    given = {name: value for name, value in asked.items() if value is not None}
    if channel_sparsity is not None:
        given["keep_rate"] = keep_rate_of(channel_sparsity, given.get("keep_rate"))
    if budget is not None:
        given |= start_of_search(method, given)
    return (Options(**given) if method is None else with_method(method, given)), budget


def check_data(options: Options, given: bool) -> None:
    """Raise OptionError for labelled data that are missing, and for such as nothing looks at."""
    if options.looks_at_data and not given:
        needed(None, str(options.method or options.judge))
    if given and not options.looks_at_data:
        raise OptionError(f"data has no effect: {options.judge or options.policy} looks at the network alone")


def _compile(
    model: nn.Module,
    example_inputs: Any,
    options: Options,
    budget: Budget | None,
    data: Data | None,
    observers: Sequence[Observer],
    *,
    dry: bool = False,
) -> Compiled:
    if options.submodule is not None and data is not None:
        raise OptionError("data belongs to the whole network: channels of a submodule cannot be ranked by it")
    check_data(options, data is not None)
    model = as_network(model)
    check_numbers(model)
    with measured() as clock, phase("capture"):
        compare, trial = options.proof and not dry, first_walk(options.inexact)
        program, notes = capture_chosen(model, example_inputs, options.submodule, compare=compare, trial=trial)
        if options.inexact == "freeze":
            program = fold_statistics(program)
    manager = PassManager(starting_passes(options), observers, clock.seconds())
    program = manager.run(program)
    judges = None
    if budget is not None:
        with measured() as clock, phase("search"):
            options, judges = fit(budget, program, options, data)
        manager.seconds |= clock.seconds()
    last = cutting_passes(replace(options, proof=False))[:1] if dry else cutting_passes(options)
    manager.passes = [*deciding_passes(options, data, judges), *last]
    done = _run(program, manager, _asked(options, budget, data), notes)
    if budget is not None:
        told = budget.told(done.report.before, done.report.after)
        done = replace(done, report=replace(done.report, notes=(told, *done.report.notes)))
    return replace(done, whole=Whole(model, options.submodule)) if options.submodule else done


def _run(program: Program, manager: PassManager, asked: dict[str, Any], notes: tuple[str, ...]) -> Compiled:
    dense: list[Program] = []  # the last program before the rewrite, which drops facts

    def remember(name: str, current: Program, seconds: float) -> None:
        if name == "plan":
            dense.append(current)

    manager.observers = (*manager.observers, remember)
    small = manager.run(program)
    return finished(dense[-1], small, asked, manager.seconds, notes)


def _asked(options: Options, budget: Budget | None, data: Data | None) -> dict[str, Any]:
    """For recipe.json. A target and data stand there only where they were given."""
    asked = {name: getattr(options, name) for name in Options.__dataclass_fields__}
    asked = {name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()}
    target = {} if budget is None else {f"target_{budget.kind}": budget.limit}
    return asked | target | ({} if data is None or data.name is None else {"data": data.name})
