"""`fxprune compare`: its options, what it does, and its tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from fxprune import cli_methods as methods
from fxprune import cli_options as options
from fxprune import cli_work
from fxprune.capture.options import LoadOptions
from fxprune.cli_asked import refuse_idle
from fxprune.cli_errors import one_line_errors
from fxprune.cli_options import OUTPUT, WHAT, WIDTHS, option
from fxprune.cli_progress import shown_phases
from fxprune.cli_several import fractions, values
from fxprune.cli_values import METHODS
from fxprune.phases import phase

_USUAL = "reconvene,spai,precrop,uniform"
_Methods = Annotated[
    list[str] | None,
    option(
        f"What to compare, as a,b; repeatable: {', '.join(METHODS)}.",
        WIDTHS,
        default=_USUAL,
        metavar="NAME,NAME",
        autocompletion=lambda: list(METHODS),
    ),
]
_Equal = Annotated[
    Literal["params", "macs", "sparsity"] | None,
    option(
        "What methods with a keep rate are cut to: parameters or MACs of the first method that takes a sparsity, or "
        "parameters to 1 - S of the dense network's (sparsity).",
        WHAT,
        default="params",
        metavar="TO",
    ),
]
_Plot = Annotated[
    Path | None, option("Draw the comparison, as picture.svg or .png; needs matplotlib.", OUTPUT, metavar="FILE")
]


@one_line_errors
def compare_command(
    model: options.Model,
    sparsity: options.Sparsities,
    methods: _Methods = None,
    equal: _Equal = None,
    only: options.Only = None,
    ignore: options.Ignore = None,
    no_proof: options.NoProof = False,
    data: methods.Data = None,
    data_batch: methods.DataBatch = None,
    seed: options.Seed = 0,
    input: options.Input = None,
    arch: options.Arch = None,
    trust: options.Trust = None,
    allow_pickle: options.AllowPickle = False,
    plot: _Plot = None,
    no_measure: options.NoMeasure = False,
    threads: options.Threads = 1,
    as_json: options.Json = False,
    quiet: options.NoProgress = False,
    traceback: options.Traceback = False,
) -> None:
    """Compile MODEL with several methods at several sparsities, and show what comes out side by side.

    fxprune compare model.pt --sparsity 0.9 0.95 0.98 --methods reconvene,spai,precrop,uniform
    """
    with shown_phases(not quiet):
        with phase("start"):
            from fxprune.comparison import Contest, compare
            from fxprune.comparison_plot import write_plot
            from fxprune.pictures import check_picture

            asked = {"only": only or None, "ignore": ignore or None, "proof": not no_proof, "seed": seed}
            contest = Contest(values(methods or [_USUAL]), fractions(sparsity), equal or "params", asked)
            _check_belonging(contest.methods, data, data_batch, equal, no_measure and threads != 1)
            if plot is not None:
                check_picture("--plot", plot)
        loading = LoadOptions(trust or (), arch, allow_pickle, seed)
        loaded, inputs = cli_work.ready(model, loading, cli_work.given_inputs(input or ()))
        batches = cli_work.data_of(data, data_batch, loaded, inputs, seed)
        found = compare(loaded.module, inputs, contest, data=batches, measure=not no_measure, threads=threads)
        if plot is not None:
            with phase("plot"):
                write_plot(found, loaded.origin, plot)
    if as_json:
        print(json.dumps({"model": loaded.origin, **found.to_dict()}, indent=1))
    else:
        from fxprune.cli_comparison import view
        from fxprune.cli_layout import show

        show(view(loaded.origin, found, (*loaded.notes, *found.notes), plot))
    if all(row.error for row in found.rows):
        raise typer.Exit(1)


def _check_belonging(
    methods: Sequence[str], data: str | None, batch: int | None, equal: str | None, idle_threads: bool
) -> None:
    """Raise OptionError for an option that would have no effect."""
    from fxprune.methods import method_named, wants_data

    named = ", ".join(methods)
    blind, alike = not any(map(wants_data, methods)), all(method_named(one).knob == "sparsity" for one in methods)
    refuse_idle(
        (data is not None and blind, "--data", f"with {named}, which look at the network alone"),
        (batch is not None and data is None, "--data-batch", "without --data"),
        (equal is not None and alike, "--equal", f"with {named}, which take the sparsity as it is"),
        (idle_threads, "--threads", "with --no-measure"),
    )
