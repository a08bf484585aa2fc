"""What the commands do between parsing and printing: check, load, compile, write. torch is imported on the way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fxprune.cli_progress import Phases
from fxprune.errors import OptionError

if TYPE_CHECKING:
    from fxprune.capture.loaded import Loaded
    from fxprune.capture.options import LoadOptions
    from fxprune.compiled import Compiled
    from fxprune.emit.folder import Written
    from fxprune.emit.onnx import OnnxReport
    from fxprune.explanation import Explanation
    from fxprune.options import Options
    from fxprune.program import Inputs, Program
    from fxprune.runtime.measured import Measured

# Options that one of the two ways to ask for less does not look at.
_BELONG = {"sparsity": ("policy", "coupling", "average"), "keep_rate": ("select",)}
_OPSETS_FROM = 18  # the oldest that torch's exporter writes


@dataclass(frozen=True)
class Request:
    """One `fxprune compile`. `asked` holds the arguments of `fxprune.compile` that were given."""

    model: str
    asked: Mapping[str, Any]
    inputs: Sequence[str]
    loading: LoadOptions
    output: Path | None
    force: bool
    opset: int | None
    measure: bool
    threads: int
    passes_to: IO[str] | None
    quiet: bool


def compile_and_write(request: Request) -> tuple[Compiled, Written]:
    """The result and what was written of it. Options are checked before the model is loaded."""
    check_belonging(request.asked)
    with Phases(not request.quiet and request.passes_to is None) as phases:
        phases.begin("start torch")
        from fxprune.emit.folder import check_folder, write_folder
        from fxprune.options import Options
        from fxprune.pipeline import compile

        options = Options(**request.asked)
        inputs = given_inputs(request.inputs)
        check_opset(request.opset)
        if request.output:
            check_folder(request.output, request.force)
        phases.begin("load")
        loaded = _load(request.model, request.loading)
        folder = request.output or Path(f"{loaded.name}-fxprune")
        check_folder(folder, request.force)
        inputs, notes = (inputs, ()) if inputs else _chosen_inputs(loaded)
        phases.begin("capture, analyse")
        observer = _Observer(phases, options, request.passes_to)
        done = compile(loaded.module, inputs, **request.asked, observers=(observer,))
        done = replace(done, report=replace(done.report, notes=(*notes, *loaded.notes, *done.report.notes)))
        about = {"model": loaded.origin, "input": _shapes(inputs)}
        written = write_folder(
            done, folder, force=request.force, opset=request.opset, about=about,
            measure=_measurement(observer.dense, done, request.threads) if request.measure else None,
        )  # fmt: skip
    return done, written


def explain(model: str, inputs: Sequence[str], loading: LoadOptions, quiet: bool) -> tuple[str, Explanation]:
    """(what was analysed, the answers)."""
    with Phases(not quiet) as phases:
        phases.begin("start torch")
        from fxprune.explanation import explain as analysed

        given = given_inputs(inputs)
        phases.begin("load")
        loaded = _load(model, loading)
        phases.begin("capture, analyse")
        chosen, notes = (given, ()) if given else _chosen_inputs(loaded)
        found = analysed(loaded.module, chosen)
    return loaded.origin, replace(found, notes=(*notes, *loaded.notes, *found.notes))


def check_belonging(asked: Mapping[str, Any]) -> None:
    """Raise OptionError unless sparsity or keep_rate was given, and nothing that has no effect with it."""
    ways = [way for way in _BELONG if way in asked]
    if len(ways) != 1:
        found = "both were given" if ways else "neither was given"
        raise OptionError(
            f"give --sparsity or --keep-rate, and only one of them ({found}): --sparsity 0.98 does without 98 % of the "
            "weights, --keep-rate 0.5 keeps half of the channels everywhere"
        )
    for way, names in _BELONG.items():
        without = [name for name in names if name in asked]
        if way not in ways and without:
            used, needed = (f"--{name.replace('_', '-')}" for name in (ways[0], way))
            raise OptionError(f"--{without[0]} has no effect with {used}: leave it out, or give {needed} instead")


def check_opset(opset: int | None) -> None:
    """Raise OptionError for an opset that cannot be written."""
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not _OPSETS_FROM <= opset <= newest:
        raise OptionError(f"--opset {opset} cannot be written: choose one from {_OPSETS_FROM} to {newest}")


def given_inputs(texts: Sequence[str]) -> Inputs | None:
    """The inputs that --input describes, None without any. Raises OptionError."""
    from fxprune.capture.inputs import parse_inputs

    return parse_inputs(texts, device="cpu") if texts else None


def _load(model: str, options: LoadOptions) -> Loaded:
    from fxprune.capture.load import load
    from fxprune.capture.names import check_names

    loaded = load(model, options)
    check_names(loaded.module)  # before anything runs the network
    return loaded


def _chosen_inputs(loaded: Loaded) -> tuple[Inputs, tuple[str, ...]]:
    """Inputs that fit, and a note saying how they were found. Zeros on the CPU: the ONNX export needs real tensors."""
    import torch

    from fxprune.capture.inputs import choose_inputs
    from fxprune.program import skeleton_of

    skeleton, _ = skeleton_of(loaded.module)
    inputs, note = choose_inputs(skeleton, loaded.input_hint)
    return replace(inputs, args=tuple(torch.zeros_like(one, device="cpu") for one in inputs.args)), (note,)


def _shapes(inputs: Inputs) -> dict[str, list[int]]:
    named = {**{str(number): one for number, one in enumerate(inputs.args)}, **inputs.kwargs}
    return {name: list(one.shape) for name, one in named.items()}


def _measurement(dense: Program | None, done: Compiled, threads: int) -> Callable[[OnnxReport], Measured]:
    from fxprune.runtime.dense_and_pruned import MeasureOptions, measure

    assert dense is not None  # analyse always runs
    return lambda onnx: measure(dense, done.program, onnx, MeasureOptions(threads=threads))


class _Observer:
    """Called after each pass: prints the program if asked to, tells which phase comes next, and keeps `dense`, the
    program as it was captured.
    """

    def __init__(self, phases: Phases, options: Options, passes_to: IO[str] | None) -> None:
        from fxprune.pipeline import passes_for

        names = [one.name for one in passes_for(options)]
        self._next = dict(zip(names, [*names[1:], "write"], strict=True))
        self._phases, self._stream = phases, passes_to
        self.dense: Program | None = None

    def __call__(self, name: str, program: Program, _seconds: float) -> None:
        self.dense = self.dense or replace(program, facts={})
        if self._stream is not None:
            from fxprune.printing import program_text

            print(f"== after {name}\n{program_text(program)}\n", file=self._stream)
        self._phases.begin(self._next[name])
