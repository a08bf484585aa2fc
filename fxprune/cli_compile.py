"""`fxprune compile`: its options, and what it prints."""

from __future__ import annotations

import json
import sys
from typing import Any

import typer

from fxprune import cli_methods as methods
from fxprune import cli_options as options
from fxprune import cli_work
from fxprune.capture.options import LoadOptions
from fxprune.cli_asked import settled
from fxprune.cli_config import names_from_file
from fxprune.cli_errors import one_line_errors


@one_line_errors
def compile_command(
    context: typer.Context,
    model: options.Model,
    sparsity: options.Sparsity = None,
    keep_rate: methods.KeepRate = None,
    channel_sparsity: methods.ChannelSparsity = None,
    ratios: methods.Ratios = None,
    target_params: methods.TargetParams = None,
    target_macs: methods.TargetMacs = None,
    target_size: methods.TargetSize = None,
    only: options.Only = None,
    ignore: options.Ignore = None,
    submodule: options.Submodule = None,
    approximate: options.Approximate = None,
    no_proof: options.NoProof = False,
    method: methods.Method = None,
    criterion: methods.Criterion = None,
    ranking: methods.Ranking = None,
    policy: methods.Policy = None,
    coupling: methods.Coupling = None,
    average: methods.Average = None,
    select: methods.Select = None,
    pool: methods.Pool = None,
    reduction: methods.Reduction = None,
    data: methods.Data = None,
    data_batch: methods.DataBatch = None,
    init: options.Init = "auto",
    keep_weights: options.KeepWeights = False,
    seed: options.Seed = 0,
    input: options.Input = None,
    arch: options.Arch = None,
    trust: options.Trust = None,
    allow_pickle: options.AllowPickle = False,
    output: options.Output = None,
    emit: options.Emit = None,
    force: options.Force = False,
    opset: options.Opset = None,
    no_measure: options.NoMeasure = False,
    threads: options.RunThreads = None,
    dry_run: options.DryRun = False,
    widths: options.Widths = False,
    print_passes: options.PrintPasses = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    config: options.Config = None,
    traceback: options.Traceback = False,
) -> None:
    """Remove channels from MODEL, prove it, and write the smaller network as ONNX and as weights.

    fxprune compile model.pt --sparsity 0.98
    """
    asked: dict[str, Any] = {
        "sparsity": sparsity,
        "keep_rate": keep_rate,
        "channel_sparsity": channel_sparsity,
        "ratios": ratios,
        "target_params": target_params,
        "target_macs": target_macs,
        "target_size": target_size,
        "only": only or None,
        "ignore": ignore or None,
        "submodule": submodule,
        "approximate": approximate,
        "proof": not no_proof,
        "method": method,
        "criterion": criterion,
        "ranking": ranking,
        "policy": policy,
        "coupling": coupling,
        "average": average,
        "select": select,
        "pool": pool,
        "reduction": reduction,
        "init": init,
        "keep_weights": keep_weights or None,
        "seed": seed,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    request = cli_work.Request(
        model=model,
        asked=settled(asked, names_from_file(context)),
        data=data,
        data_batch=data_batch,
        inputs=input or (),
        loading=LoadOptions(trust or (), arch, allow_pickle, seed),
        output=output,
        emit=cli_work.emitted(emit or (), opset),
        force=force,
        opset=opset,
        measure=not no_measure,
        threads=threads,
        dry_run=dry_run,
        passes_to=None if not print_passes else sys.stderr if as_json else sys.stdout,
        quiet=quiet,
    )
    outcome = cli_work.compile_model(request)
    if as_json:
        print(json.dumps(outcome.document, indent=1))
    elif not quiet:
        from fxprune.cli_layout import show
        from fxprune.cli_report import summary

        show(summary(outcome, widths))
