"""What `fxprune compile` prints at the end: costs before and after, widths, what stays and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxprune.cli_errors import printable
from fxprune.cli_layout import facts, module_of, plain_table, some
from fxprune.cli_measured import Row, measured_facts, measured_rows
from fxprune.cli_progress import time_line
from fxprune.cli_widths import widths
from fxprune.wording import counted

if TYPE_CHECKING:
    from fxprune.cli_work import Outcome
    from fxprune.emit.folder import Written
    from fxprune.report import GroupLine, Report


def summary(outcome: Outcome, every_width: bool) -> RenderableType:
    """Everything there is to say about one compilation, or about a dry run. What matters most comes last: that is what
    stays on the screen.
    """
    report, written = outcome.report, outcome.written
    return Group(
        Text(printable(outcome.document["model"]), style="bold"),
        widths(report, every_width),
        facts([*_stays(report.groups), *_remarks(report, written)]),
        Text("\nCosts", style="bold"),
        _costs(report, written),
        Text(""),
        facts([*_outcome(report, written), ("time", time_line(outcome.seconds))]),
    )


def _costs(report: Report, written: Written | None) -> Table:
    table = plain_table("", "before", "after", "smaller by", right=("before", "after", "smaller by"))
    for column in table.columns[1:3]:
        column.min_width = 15  # whatever was measured, the columns stand where they stood
    before, after = report.before, report.after
    rows: Mapping[str, tuple[int, int]] = {
        "parameters": (before.parameters, after.parameters),
        "  of them not zero": (before.nonzeros, after.nonzeros),
        "MACs, one example": (before.macs, after.macs),
        "bytes, weights and buffers": (before.bytes, after.bytes),
    }
    for label, (old, new) in rows.items():
        table.add_row(label, *_smaller(old, new))
    for row in _of_files(written) if written else ():
        table.add_row(*row)
    return table


def _of_files(written: Written) -> Iterator[Row]:
    dense = written.measured.files if written.measured else {}
    for name, size in written.sizes.items():
        if not name.startswith("model."):
            continue  # counted below; too small to look at
        was = dense[name].first if name in dense else None
        yield f"bytes, {name}", *(("", f"{size:,}", "") if was is None else _smaller(was, size))
    yield "bytes, all files", "", f"{sum(written.sizes.values()):,}", ""
    if written.measured:
        yield from measured_rows(written.measured)


def _smaller(old: int, new: int) -> tuple[str, str, str]:
    return f"{old:,}", f"{new:,}", f"{old / new:.2f}x" if new else "-"


def _outcome(report: Report, written: Written | None) -> Iterator[tuple[str, str]]:
    if report.achieved_sparsity is not None:
        yield (
            "sparsity",
            f"{report.asked['sparsity']:.6g} asked, {report.achieved_sparsity:.4f} achieved (weights removed or zero)",
        )
    if written is None:
        yield "dry run", "nothing was written; the proof was left out, and may refuse to cut some of these channels"
        return
    yield "proof", _proof(report)
    onnx = written.onnx
    if onnx:
        batch = "any batch size" if onnx.dynamic_batch else "a fixed batch size"
        yield "ONNX", f"opset {onnx.opset}, {batch}; differs from torch by {onnx.difference:.1e} of the largest output"
    yield "written", f"{written.folder}/"


def _proof(report: Report) -> str:
    if report.proof_error is None:
        return "skipped, nothing was compared"
    return (
        f"differs by {report.proof_error:.1e} in float64 from the dense network with the removed channels zeroed"
        f"{_signal(report.proof_signal)}"
    )


def _signal(signal: float | None) -> str:
    """An agreement of outputs that do not depend on the input would mean little."""
    return "" if signal is None else f" (outputs vary with the input by {signal:.2g} of their size)"


def _stays(groups: Sequence[GroupLine]) -> Iterator[tuple[str, str]]:
    """What is frozen or approximate, by reason."""
    for label, reasons in (
        ("frozen", {one.index: one.frozen for one in groups}),
        ("approximate", {one.index: one.approximate for one in groups if one.after < one.before}),
    ):
        for reason, count in Counter(filter(None, reasons.values())).items():
            met = [one for one in groups if reasons.get(one.index) == reason]
            names = list(dict.fromkeys(member for one in met for member in one.members))
            yield label, f"{some(names)}: {reason}" + (f" ({count} groups)" if count > 1 else "")


def _remarks(report: Report, written: Written | None) -> Iterator[tuple[str, str]]:
    if report.repaired_rows:
        rows, layers = sum(report.repaired_rows.values()), len(report.repaired_rows)
        where = some([module_of(name) for name in report.repaired_rows])
        yield (
            "repairs",
            (
                f"{counted(rows, 'output')} in {counted(layers, 'layer')} had no weight left "
                f"and got the largest one back: {where}"
            ),
        )
    if report.densified:
        names = [module_of(name) for name in report.densified]
        yield "repairs", f"became dense, so that no output is left without inputs: {some(names)}"
    if report.lifted:
        names = [module_of(name) for name in report.lifted]
        yield "repairs", f"bias starts at 1, because only one channel is left: {some(names)}"
    for index, reason in report.refused.items():
        yield "refused", f"group {index} stays, the proof found fault with cutting it: {reason}"
    if report.front_end != "fx":
        yield "captured", f"with torch.{report.front_end}"
    for note in (*report.notes, *(written.notes if written else ())):
        yield "note", note
    if written and written.measured:
        yield from measured_facts(written.measured)
