"""Any two ONNX files or artefact folders, measured side by side.

The files may come from anywhere. Each is run in a process of its own first: one that crashes onnxruntime, never ends or
eats all memory takes that process down and becomes an error here.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from fxprune.errors import MeasureError, OptionError
from fxprune.phases import phase
from fxprune.runtime.collector import Collector
from fxprune.runtime.feeds import Given, feeds_for
from fxprune.runtime.latency import Rounds
from fxprune.runtime.machine import this_machine
from fxprune.runtime.measured import Measured, Pair
from fxprune.runtime.onnx_files import OnnxFile, count_parameters, declared_inputs, read_onnx
from fxprune.runtime.onnx_macs import count_macs
from fxprune.runtime.peak import Feed, PeakJob
from fxprune.runtime.peak_child import draw
from fxprune.runtime.runners import onnx_once

NAMES = ("A", "B")
RUNTIMES = ("onnxruntime", "torch")
PATIENCE = 120.0  # seconds after which a process that measures memory is ended


@dataclass(frozen=True)
class BenchOptions:
    """`given` holds shapes and the batch; `threads` are those of each runtime. Without `runtimes`: onnxruntime, and
    torch too where both sides are folders that can be loaded.
    """

    threads: int = 1
    runtimes: tuple[str, ...] | None = None
    rounds: Rounds = field(default_factory=Rounds)
    given: Given = field(default_factory=Given)


@dataclass(frozen=True)
class _Side:
    """One of the two, read but not yet run."""

    path: Path
    file: OnnxFile
    feeds: tuple[Feed, ...]

    @property
    def batch(self) -> int:
        return next((shape[0] for _, shape, _ in self.feeds if shape), 1)


def bench(first: Path, second: Path, options: BenchOptions | None = None) -> Measured:
    """Bytes, parameters, MACs, peak memory and latency. Raises MeasureError where a file is no ONNX file, cannot be fed
    or cannot be run, OptionError for a runtime that does not exist, LoadError and UntrustedError for a folder that was
    to be measured in torch.
    """
    wanted, found = options or BenchOptions(), Collector(NAMES)
    chosen = _runtimes(wanted.runtimes, first, second)
    machine = this_machine(chosen)
    with phase("read"):
        sides = Pair(_side(first, wanted.given), _side(second, wanted.given))
    if "onnxruntime" in chosen:
        _in_onnxruntime(sides, wanted, found)
    if "torch" in chosen:
        with nullcontext() if wanted.runtimes else found.tried("torch"):
            _in_torch(sides, wanted, found)
    with phase("count"):
        counts = _counts(sides, found)
    _compare_inputs(sides, found)
    found.note_load(machine)
    return Measured(
        NAMES, machine, Pair(sides.first.batch, sides.second.batch), wanted.threads, _files(sides), counts,
        found.latency, found.memory, tuple(found.notes),
    )  # fmt: skip


def _runtimes(asked: tuple[str, ...] | None, first: Path, second: Path) -> tuple[str, ...]:
    if asked is None:
        both = all((side / "model.py").is_file() for side in (first, second))
        return ("onnxruntime", "torch") if both else ("onnxruntime",)
    unknown = [name for name in asked if name not in RUNTIMES]
    if unknown or not asked:
        raise OptionError(f"unknown runtime {', '.join(unknown)!r}: choose {', '.join(RUNTIMES)}")
    for side in (first, second) if "torch" in asked else ():
        if not (side / "model.py").is_file():
            raise MeasureError(f"{side} cannot be measured in torch: it is no folder with a model.py")
    return asked


def _in_onnxruntime(sides: Pair[_Side], wanted: BenchOptions, found: Collector) -> None:
    with phase("memory"):
        found.peaks(Pair(_job(sides.first, wanted), _job(sides.second, wanted)), PATIENCE)
    with phase("latency"):
        once = Pair(*(onnx_once(one.file.path, draw(one.feeds), wanted.threads) for one in (sides.first, sides.second)))
        found.time("onnxruntime", once, wanted.rounds, lambda: inf)


def _in_torch(sides: Pair[_Side], wanted: BenchOptions, found: Collector) -> None:
    with phase("torch"):
        from fxprune.runtime.bench_torch import Artefact, measure_in_torch  # torch takes a while to import

        first, second = (Artefact(side.path, side.feeds) for side in (sides.first, sides.second))
        measure_in_torch(found, Pair(first, second), wanted.threads, wanted.rounds, PATIENCE)


def _side(path: Path, given: Given) -> _Side:
    where = path / "model.onnx" if path.is_dir() else path
    if path.is_dir() and not where.is_file():
        raise MeasureError(f"{path} holds no model.onnx: name an ONNX file, or a folder that fxprune wrote")
    file = read_onnx(where)
    return _Side(path, file, feeds_for(str(path), declared_inputs(file), given))


def _job(side: _Side, wanted: BenchOptions) -> PeakJob:
    return PeakJob("onnxruntime", str(side.file.path), side.feeds, wanted.threads)


def _files(sides: Pair[_Side]) -> dict[str, Pair[int | None]]:
    """The ONNX file with the numbers it keeps beside it, and of two folders the weights."""
    found: dict[str, Pair[int | None]] = {
        "ONNX": Pair(sum(sides.first.file.files.values()), sum(sides.second.file.files.values()))
    }
    weights = [side.path / "model.safetensors" for side in (sides.first, sides.second)]
    if all(one.is_file() for one in weights):
        found["model.safetensors"] = Pair(*(one.stat().st_size for one in weights))
    return found


def _counts(sides: Pair[_Side], found: Collector) -> dict[str, Pair[int | None]]:
    first, second = _side_counts("A", sides.first, found), _side_counts("B", sides.second, found)
    return {what: Pair(first[what], second[what]) for what in first}


def _side_counts(name: str, side: _Side, found: Collector) -> dict[str, int | None]:
    """None, and a note, for what cannot be counted."""
    parameters = nonzeros = macs = None
    with found.tried(f"parameters of {name}", "counted"):
        parameters, nonzeros = count_parameters(side.file)
    with found.tried(f"MACs of {name}", "counted"):
        counted = count_macs(side.file.model, {name: shape for name, shape, _ in side.feeds})
        macs = counted.count // side.batch
        if counted.left_out:
            found.notes.append(f"MACs of {name} are without those of {', '.join(counted.left_out)}")
    return {"parameters": parameters, "nonzeros": nonzeros, "macs": macs}


def _compare_inputs(sides: Pair[_Side], found: Collector) -> None:
    first, second = ([(shape, dtype) for _, shape, dtype in side.feeds] for side in (sides.first, sides.second))
    if first != second:
        told = [", ".join(f"{'x'.join(map(str, shape))} {dtype}" for shape, dtype in one) for one in (first, second)]
        found.notes.append(f"the inputs differ: A takes {told[0]}; B takes {told[1]}")
