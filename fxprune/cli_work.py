"""What the commands do between parsing and printing: check, load, compile, write. torch is imported on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fxprune.cli_asked import as_arguments, check_belonging, check_sources
from fxprune.cli_progress import shown_phases
from fxprune.cli_values import EMITTED
from fxprune.errors import OptionError
from fxprune.phases import phase, seconds_so_far

if TYPE_CHECKING:
    from fxprune.capture.loaded import Loaded
    from fxprune.capture.options import LoadOptions
    from fxprune.compiled import Compiled
    from fxprune.emit.folder import Written
    from fxprune.emit.onnx import OnnxReport
    from fxprune.explanation import Explanation
    from fxprune.manager import Observer
    from fxprune.program import Inputs, Program
    from fxprune.report import Report
    from fxprune.runtime.measured import Measured
    from fxprune.saliency.trial import Data

_OPSETS_FROM = 18  # the oldest that torch's exporter writes


@dataclass(frozen=True)
class Request:
    """One `fxprune compile`. `asked` holds the options that were given and that `fxprune.compile` knows."""

    model: str
    asked: Mapping[str, Any]
    data: str | None
    data_batch: int | None
    inputs: Sequence[str]
    loading: LoadOptions
    output: Path | None
    emit: Sequence[str]
    force: bool
    opset: int | None
    measure: bool
    threads: int | None
    dry_run: bool
    passes_to: IO[str] | None
    quiet: bool


@dataclass(frozen=True)
class Outcome:
    """What became of a request. `written` is None after a dry run; `document` is what --json prints."""

    report: Report
    written: Written | None
    document: Mapping[str, Any]
    seconds: Mapping[str, float]


def compile_model(request: Request) -> Outcome:
    """Compile and write, or only plan. Options are checked before the model is loaded."""
    with shown_phases(not request.quiet and request.passes_to is None) as clock:
        with phase("start"):
            import torch

            import fxprune.pipeline  # noqa: F401 - takes its seconds here, not in a later phase

            check_belonging(request.asked)
            request = replace(request, asked=as_arguments(request.asked))
            check_sources(request.asked, request.data, request.data_batch)
            if request.threads:
                torch.set_num_threads(request.threads)
            given = given_inputs(request.inputs)
            check_opset(request.opset)
            if not request.dry_run:
                _check_folder(request.output, request.force)
        loaded, inputs = ready(request.model, request.loading, given, request.asked.get("submodule"))
        work = _dry_run if request.dry_run else _compile
        report, written, document = work(request, loaded, inputs)
    return Outcome(report, written, document, clock.seconds())


def _dry_run(request: Request, loaded: Loaded, inputs: Inputs) -> tuple[Report, None, dict[str, Any]]:
    from fxprune.pipeline import dry_run

    data = data_of(request.data, request.data_batch, loaded, inputs, request.loading.seed)
    report = dry_run(loaded.module, inputs, **request.asked, data=data, observers=_printing(request.passes_to))
    report = replace(report, notes=(*loaded.notes, *report.notes))
    seconds = {**seconds_so_far(), **report.seconds}
    return report, None, {**about(loaded, inputs), "dry_run": True, **report.to_dict(), "seconds": seconds}


def _compile(request: Request, loaded: Loaded, inputs: Inputs) -> tuple[Report, Written, dict[str, Any]]:
    from fxprune.emit.folder import write_folder
    from fxprune.manager import FirstProgram
    from fxprune.pipeline import compile

    folder = request.output or Path(f"{loaded.name}-fxprune")
    _check_folder(folder, request.force)
    captured, data = FirstProgram(), data_of(request.data, request.data_batch, loaded, inputs, request.loading.seed)
    observers: list[Observer] = [captured, *_printing(request.passes_to)]
    done = compile(loaded.module, inputs, **request.asked, data=data, observers=observers)
    done = replace(done, report=replace(done.report, notes=(*loaded.notes, *done.report.notes)))
    written = write_folder(
        done, folder, force=request.force, opset=request.opset, emit=request.emit, about=about(loaded, inputs),
        measure=_measurement(captured.program, done, request.threads or 1) if request.measure else None,
    )  # fmt: skip
    return done.report, written, {**written.document, "folder": str(written.folder)}


def data_of(source: str | None, batch: int | None, loaded: Loaded, inputs: Inputs, seed: int) -> Data | None:
    """The batches that --data names, if it does."""
    if source is None:
        return None
    with phase("data"):
        from fxprune.data import BATCH, labelled

        return labelled(source, loaded.module, inputs, batch or BATCH, seed)


def explain(
    model: str,
    inputs: Sequence[str],
    loading: LoadOptions,
    quiet: bool,
    submodule: str | None = None,
    picture: Path | None = None,
) -> tuple[str, Explanation]:
    """(what was analysed, the answers). Draws the picture where one is asked for."""
    with shown_phases(not quiet):
        with phase("start"):
            from fxprune.coupling_picture import write_picture
            from fxprune.explanation import explain as analysed
            from fxprune.pictures import check_picture

            if picture is not None:
                check_picture("--picture", picture)
            given = given_inputs(inputs)
        loaded, chosen = ready(model, loading, given, submodule)
        with phase("analyse"):
            found = analysed(loaded.module, chosen, submodule=submodule)
        if picture is not None:
            with phase("draw"):
                write_picture(found, f"{loaded.origin}: channels that go together", picture)
    return loaded.origin, replace(found, notes=(*loaded.notes, *found.notes))


def emitted(texts: Sequence[str], opset: int | None) -> tuple[str, ...]:
    """What --emit asks for, each value one name or several with commas; everything without any. Raises OptionError."""
    names = [name.strip() for text in texts for name in text.split(",")] or EMITTED
    for name in names:
        if name not in EMITTED:
            raise OptionError(f"--emit {name!r} cannot be written: choose from {', '.join(EMITTED)}")
    if opset is not None and "onnx" not in names:
        raise OptionError("--opset has no effect without model.onnx: leave it out, or add onnx to --emit")
    return tuple(dict.fromkeys(names))


def check_opset(opset: int | None) -> None:
    """Raise OptionError for an opset that cannot be written."""
    if opset is None:
        return
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if not _OPSETS_FROM <= opset <= newest:
        raise OptionError(f"--opset {opset} cannot be written: choose one from {_OPSETS_FROM} to {newest}")


def given_inputs(texts: Sequence[str]) -> Inputs | None:
    """The inputs that --input describes, None without any. Raises OptionError."""
    from fxprune.capture.inputs import parse_inputs

    return parse_inputs(texts, device="cpu") if texts else None


def _check_folder(folder: Path | None, force: bool) -> None:
    """Raise ExportError where the folder is known and cannot be written."""
    from fxprune.emit.folder import check_folder

    if folder is not None:
        check_folder(folder, force)


def ready(
    model: str, options: LoadOptions, given: Inputs | None, submodule: str | None = None
) -> tuple[Loaded, Inputs]:
    """The network, and inputs that fit: the given ones, or chosen ones with a note saying how they were found."""
    from fxprune.capture.load import load

    with phase("load"):
        loaded = load(model, options)
    if given:
        return loaded, given
    with phase("choose input"):
        inputs, note = _chosen_inputs(loaded, submodule)
    return replace(loaded, notes=(note, *loaded.notes)), inputs


def _chosen_inputs(loaded: Loaded, submodule: str | None) -> tuple[Inputs, str]:
    """Inputs that fit, and a note saying how they were found. On the CPU: the ONNX export needs real tensors."""
    from fxprune.capture.inputs import inputs_for
    from fxprune.submodule import choose_for_part

    if submodule is None:
        inputs, note = inputs_for(loaded.module, loaded.input_hint)
    else:
        inputs, note = choose_for_part(loaded.module, submodule, loaded.input_hint)
    return inputs.with_storage(), note


def about(loaded: Loaded, inputs: Inputs) -> dict[str, Any]:
    """What the report says first: which network, and the shapes it was run with."""
    named = {**{str(number): one for number, one in enumerate(inputs.args)}, **inputs.kwargs}
    return {"model": loaded.origin, "input": {name: list(one.shape) for name, one in named.items()}}


def _measurement(dense: Program | None, done: Compiled, threads: int) -> Callable[[OnnxReport, Path], Measured]:
    from fxprune.runtime.dense_and_pruned import MeasureOptions, measure

    assert dense is not None  # there is always a first pass
    return lambda onnx, box: measure(dense, done.program, onnx, MeasureOptions(threads=threads), box)


def _printing(stream: IO[str] | None) -> tuple[Observer, ...]:
    """What prints the program after each pass, if that is asked for."""
    if stream is None:
        return ()

    def print_program(name: str, program: Program, _seconds: float) -> None:
        from fxprune.printing import program_text

        print(f"== after {name}\n{program_text(program)}\n", file=stream)

    return (print_program,)
