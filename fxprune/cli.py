"""The command line: parse, call, print. torch is imported inside the commands, so that --help answers at once."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from fxprune import cli_artefacts, cli_bench, cli_train, cli_work
from fxprune import cli_methods as methods
from fxprune import cli_options as options
from fxprune.capture.options import LoadOptions
from fxprune.cli_compare import compare_command
from fxprune.cli_compile import compile_command
from fxprune.cli_errors import Commands, one_line_errors
from fxprune.cli_several import SeveralValues, fractions

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    from fxprune.own_version import own_version

    print(f"fxprune {own_version()}")
    raise typer.Exit


_VERSION = typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.", metavar="")


@app.callback()
def _fxprune(version: Annotated[bool, _VERSION] = False) -> None:
    """Makes convolutional networks small, and proves that it did so exactly."""


app.command("compile")(compile_command)
app.command("train")(cli_train.train_command)
app.command("learn")(cli_train.learn_command)
app.command("compare", cls=SeveralValues)(compare_command)


@app.command("export")
@one_line_errors
def export_command(
    folder: options.Folder,
    weights: cli_artefacts.Trained = None,
    output: cli_artefacts.OnnxFile = None,
    opset: options.Opset = None,
    force: cli_artefacts.ReplaceFile = False,
    trust: options.TrustSource = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Write the network of FOLDER as ONNX with the weights that training has given it.

    fxprune export model-fxprune --weights trained.pt
    """
    report = cli_artefacts.run_export(
        folder, weights, output, opset=opset, force=force, trust=trust, quiet=quiet
    )  # fmt: skip
    if as_json:
        print(json.dumps(cli_artefacts.export_document(report), indent=1))
    elif not quiet:
        from fxprune.cli_layout import show

        show(cli_artefacts.export_view(report))


@app.command("verify")
@one_line_errors
def verify_command(
    folder: options.Folder,
    trust: options.TrustSource = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    traceback: options.Traceback = False,
) -> None:
    """Check that FOLDER is whole: hashes, weights against the recipe, masks, ONNX against torch.

    fxprune verify model-fxprune
    """
    checks = cli_artefacts.run_verify(folder, trust=trust, quiet=quiet)
    if as_json:
        print(json.dumps(cli_artefacts.verify_document(folder, checks), indent=1))
    elif not quiet:
        from fxprune.cli_layout import show

        show(cli_artefacts.verify_view(checks))
    if not all(one.ok for one in checks):
        raise typer.Exit(1)


@app.command("bench")
@one_line_errors
def bench_command(
    first: options.FirstSide,
    second: options.SecondSide,
    input: options.BenchInput = None,
    batch: options.Batch = None,
    repeat: options.Repeat = None,
    runtime: options.Runtime = None,
    threads: options.Threads = 1,
    as_json: options.Json = False,
    quiet: options.NoProgress = False,
    traceback: options.Traceback = False,
) -> None:
    """Measure two networks side by side: bytes, parameters, MACs, peak memory, latency.

    fxprune bench dense.onnx model-fxprune
    """
    request = cli_bench.BenchRequest(first, second, input or (), batch, repeat, runtime, threads, quiet)
    measured = cli_bench.run_bench(request)
    if as_json:
        print(json.dumps(cli_bench.bench_document(request, measured), indent=1))
        return
    from fxprune.cli_layout import show

    show(cli_bench.bench_view(request, measured))


@app.command("explain")
@one_line_errors
def explain_command(
    model: options.Model,
    layer: options.Layer = None,
    picture: options.Picture = None,
    submodule: options.Submodule = None,
    input: options.Input = None,
    arch: options.Arch = None,
    trust: options.Trust = None,
    allow_pickle: options.AllowPickle = False,
    as_json: options.Json = False,
    quiet: options.NoProgress = False,
    traceback: options.Traceback = False,
) -> None:
    """Show which channels of MODEL go together, which cannot be removed, and why."""
    loading = LoadOptions(trust or (), arch, allow_pickle)
    origin, found = cli_work.explain(model, input or (), loading, quiet, submodule, picture)
    from fxprune.cli_explain import coupled, coupled_view, overview
    from fxprune.cli_layout import show

    told = None if layer is None else coupled(found, layer)
    if not as_json:
        show(overview(origin, found) if told is None else coupled_view(told))
    elif told is None:
        print(json.dumps({"model": origin, **found.to_dict()}, indent=1))
    else:
        print(json.dumps({"model": origin, "layer": layer, "groups": [one.to_dict() for one in told]}, indent=1))


@app.command("plan", cls=SeveralValues)
@one_line_errors
def plan_command(
    model: options.Spec,
    sparsity: options.Sparsities,
    policy: methods.Policy = None,
    coupling: methods.Coupling = None,
    average: methods.Average = None,
    only: options.Only = None,
    ignore: options.Ignore = None,
    seed: options.Seed = 0,
    input: options.Input = None,
    as_json: options.Json = False,
    traceback: options.Traceback = False,
) -> None:
    """Foresee the widths of MODEL at one sparsity or several, from its shapes alone.

    fxprune plan torchvision:resnet50 --sparsity 0.9 --sparsity 0.98
    """
    asked = {"policy": policy, "coupling": coupling, "average": average, "only": only or None, "ignore": ignore or None}
    given = {name: value for name, value in asked.items() if value is not None}
    from fxprune.cli_layout import show
    from fxprune.cli_plan import forecast_view, forecasts

    found = forecasts(model, fractions(sparsity), input or (), {**given, "seed": seed})
    if as_json:
        print(json.dumps({"model": model, "forecasts": [one.to_dict() for one in found]}, indent=1))
    else:
        show(forecast_view(model, found))


@app.command("zoo")
@one_line_errors
def zoo_command(as_json: options.Json = False, traceback: options.Traceback = False) -> None:
    """List the networks that come with fxprune; `compile` and `explain` take them as zoo:NAME."""
    from fxprune import zoo
    from fxprune.cli_explain import zoo_view
    from fxprune.cli_layout import show

    entries = [zoo.entry(name) for name in zoo.names()]
    if as_json:
        fields = ("name", "input_shape", "num_classes", "description")
        print(json.dumps([{field: getattr(one, field) for field in fields} for one in entries], indent=1))
    else:
        show(zoo_view(entries))


def main() -> None:
    """Read sys.argv, run, exit."""
    app(prog_name="fxprune")
