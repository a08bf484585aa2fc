"""`fxprune bench A B`: what it does between parsing and printing, and its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.cli_progress import shown_phases
from fxprune.phases import phase

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fxprune.runtime.feeds import Given
    from fxprune.runtime.measured import Measured, Pair

_COUNTS = {"parameters": "parameters", "nonzeros": "  of them not zero", "macs": "MACs, one example"}


@dataclass(frozen=True)
class BenchRequest:
    """One `fxprune bench`. `repeat` and `batch` are None where nobody asked."""

    first: Path
    second: Path
    inputs: Sequence[str]
    batch: int | None
    repeat: int | None
    runtimes: str | None
    threads: int
    quiet: bool


def run_bench(request: BenchRequest) -> Measured:
    """Both sides measured. Raises MeasureError and OptionError."""
    with shown_phases(not request.quiet):
        with phase("start"):
            from fxprune.runtime.bench import BenchOptions, bench
            from fxprune.runtime.latency import Rounds

        rounds = Rounds() if request.repeat is None else Rounds.exactly(request.repeat)
        runtimes = None if request.runtimes is None else tuple(request.runtimes.replace(" ", "").split(","))
        options = BenchOptions(request.threads, runtimes, rounds, _given(request.inputs, request.batch))
        return bench(request.first, request.second, options)


def bench_document(request: BenchRequest, measured: Measured) -> dict[str, Any]:
    """Plain data for --json."""
    return {"A": str(request.first), "B": str(request.second), **measured.to_dict()}


def bench_view(request: BenchRequest, measured: Measured) -> RenderableType:
    """The table, and how its numbers came about."""
    from rich.console import Group
    from rich.text import Text

    from fxprune.cli_layout import facts, plain_table
    from fxprune.cli_measured import measured_facts, measured_rows

    table = plain_table("", "A", "B", "A / B", right=("A", "B", "A / B"))
    for name, label in _COUNTS.items():
        table.add_row(label, *_cells(measured.counts[name]))
    for name, pair in measured.files.items():
        table.add_row(f"bytes, {name}", *_cells(pair))
    for row in measured_rows(measured):
        table.add_row(*row)
    sides = facts([("A", str(request.first)), ("B", str(request.second))])
    return Group(sides, Text(""), table, Text(""), facts(list(measured_facts(measured))))


def _cells(pair: Pair[int | None]) -> tuple[str, str, str]:
    first, second = pair.first, pair.second
    texts = ("-" if one is None else f"{one:,}" for one in (first, second))
    return *texts, f"{first / second:.2f}x" if first is not None and second else "-"  # type: ignore[return-value]


def _given(texts: Sequence[str], batch: int | None) -> Given:
    from fxprune.runtime.feeds import Given

    if not texts:
        return Given(batch=batch)
    from fxprune.capture.inputs import parse_inputs

    inputs = parse_inputs(texts)
    named = {name: tuple(one.shape) for name, one in inputs.kwargs.items()}
    return Given([tuple(one.shape) for one in inputs.args], named, batch)
