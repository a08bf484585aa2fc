"""What `fxprune compare` prints: a table of costs, and the widths of each row in one line."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxprune.cli_errors import printable
from fxprune.cli_layout import facts, plain_table
from fxprune.cli_measured import count_text, size_text, time_text
from fxprune.cli_widths import folded
from fxprune.wording import counted

if TYPE_CHECKING:
    from fxprune.comparison import Comparison, Row
    from fxprune.cost import Cost
    from fxprune.report import LayerLine
    from fxprune.runtime.together import Together

_COUNTS = ("params", "not zero", "MACs", "bytes")
_MOST_RUNS, _MOST_PARTS = 24, 8  # of widths in one line


def view(title: str, found: Comparison, notes: Sequence[str], plot: Path | None) -> RenderableType:
    """A table of costs, and under it the widths of each row in one line."""
    return Group(
        Text(printable(title), style="bold"), _costs(found), Text("\nWidths (output channels)", style="bold"),
        _widths(found), Text(""), facts([*_remarks(found), *(("note", note) for note in notes), *_plotted(plot)]),
    )  # fmt: skip


def _plotted(plot: Path | None) -> list[tuple[str, str]]:
    return [] if plot is None else [("written", str(plot))]


def _costs(found: Comparison) -> Table:
    numbers = (*_COUNTS, "latency", "faster") if found.measured else _COUNTS
    table = plain_table("sparsity", "method", *numbers, right=numbers)
    if found.dense is not None:
        table.add_row("", "dense", *_counts(found.dense), *_measured("dense", found.measured))
    for sparsity, rows in groupby(found.rows, key=lambda row: row.sparsity):
        for row in rows:
            cells = _counts(row.cost) if row.cost else ("-",) * len(_COUNTS)
            table.add_row(f"{sparsity:g}", row.method, *cells, *_measured(row.name, found.measured))
    return table


def _counts(cost: Cost) -> tuple[str, ...]:
    return (*map(count_text, (cost.parameters, cost.nonzeros, cost.macs)), size_text(cost.bytes))


def _measured(name: str, measured: Together | None) -> tuple[str, ...]:
    if measured is None:
        return ()
    if name not in measured.latency:
        return ("-", "-")
    return time_text(measured.latency[name].median), f"{measured.faster[name].median:.2f}x"


def _widths(found: Comparison) -> Table:
    table = plain_table("sparsity", "method", "widths")
    first = next((row for row in found.rows if row.layers), None)
    if first is not None:
        table.add_row("", "dense", Text(folded_widths(first.layers, dense=True)))
    for row in found.rows:
        table.add_row(f"{row.sparsity:g}", row.method, Text(folded_widths(row.layers) or "-"))
    return table


def folded_widths(layers: Sequence[LayerLine], dense: bool = False) -> str:
    """`64x2 128x2 10`: equal neighbours counted. Of a deep network sums over its parts: `layer1.* 832`."""
    wide = [(layer, layer.before if dense else layer.after) for layer in layers]
    runs = [(width, len(list(same))) for width, same in groupby(width for _, width in wide)]
    if len(runs) <= _MOST_RUNS:
        return " ".join(f"{width}x{count}" if count > 1 else str(width) for width, count in runs)
    parts = folded(layers, _MOST_PARTS)
    sums = ((name, sum(one.before if dense else one.after for one in part)) for name, part in parts.items())
    return "  ".join(f"{name} {total:,}" for name, total in sums)


def _remarks(found: Comparison) -> list[tuple[str, str]]:
    remarks = [("failed", f"{row.name}: {row.error}") for row in found.rows if row.error]
    remarks += [*_equalised(found.rows), *_proofs(found.rows)]
    return [*remarks, *(_circumstances(found.measured) if found.measured else ())]


def _circumstances(measured: Together) -> list[tuple[str, str]]:
    machine, threads = measured.machine, counted(measured.threads, "thread")
    runtime = f"onnxruntime {machine.versions.get('onnxruntime', '')}"
    turns = f"median of {measured.passes} passes for each network, all in turns, after {measured.warm_up} to warm up"
    return [
        ("measured", f"{machine.processor}, {threads}, batch {measured.batch}, {runtime}"),
        ("latency", f"{turns}; faster is the middle of the ratios to the dense network within each turn"),
    ]


def _proofs(rows: Sequence[Row]) -> list[tuple[str, str]]:
    errors = [row.proof_error for row in rows if row.proof_error is not None]
    if not errors:
        return []
    told = "in float64 from the dense one with the removed channels zeroed"
    return [("proof", f"{counted(len(errors), 'network')} compared, different by at most {max(errors):.1e} {told}")]


def _equalised(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What a sparsity means to a method that does not know any."""
    return [("cut to", f"{row.name}: at most {row.target}") for row in rows if row.target]
