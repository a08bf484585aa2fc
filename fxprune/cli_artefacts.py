"""`fxprune export` and `fxprune verify`: their options, and what they do between parsing and printing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fxprune.cli_options import flag, option
from fxprune.cli_progress import shown_phases
from fxprune.phases import phase

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fxprune.artefact_checks import Check
    from fxprune.emit.onnx import OnnxReport

Trained = Annotated[
    Path | None,
    option(
        "Trained weights: torch.save(network.state_dict(), FILE), or .safetensors.", None, "--weights", metavar="FILE"
    ),
]
OnnxFile = Annotated[
    Path | None,
    option("File to write.", None, "--output", "-o", default="that of --weights, ending in .onnx", metavar="FILE"),
]
ReplaceFile = Annotated[bool, flag("--force", "Replace a file that is there.", None)]


def run_export(
    folder: Path, weights: Path | None, output: Path | None, *, opset: int | None, force: bool, trust: bool, quiet: bool
) -> OnnxReport:
    """Write trained weights as ONNX. Raises what `fxprune.artefacts.export` does."""
    with shown_phases(not quiet):
        with phase("start"):
            from fxprune.artefacts import export
            from fxprune.cli_work import check_opset

            check_opset(opset)
        with phase("export"):
            return export(folder, weights, output, opset=opset, force=force, trust=trust)


def export_document(report: OnnxReport) -> dict[str, Any]:
    """Plain data for --json."""
    return {**asdict(report), "path": str(report.path)}


def export_view(report: OnnxReport) -> RenderableType:
    """What was written, and how close it is to torch."""
    from fxprune.cli_layout import facts

    batch = "any batch size" if report.dynamic_batch else "a fixed batch size"
    told = f"opset {report.opset}, {batch}, differs from torch by {report.difference:.1e} of the largest output"
    notes = [("note", note) for note in report.notes]
    return facts([("written", f"{report.path}, {report.size:,} bytes"), ("ONNX", told), *notes])


def run_verify(folder: Path, *, trust: bool, quiet: bool) -> Sequence[Check]:
    """Every check of an artefact folder. Raises LoadError when there is no recipe to check against."""
    with shown_phases(not quiet):
        with phase("start"):
            from fxprune.artefact_checks import verify
        with phase("verify"):
            return verify(folder, trust=trust)


def verify_document(folder: Path, checks: Sequence[Check]) -> Mapping[str, Any]:
    """Plain data for --json."""
    return {"folder": str(folder), "ok": all(one.ok for one in checks), "checks": [asdict(one) for one in checks]}


def verify_view(checks: Sequence[Check]) -> RenderableType:
    """One line a check."""
    from rich.table import Table
    from rich.text import Text

    from fxprune.cli_errors import printable

    grid = Table.grid(padding=(0, 2))
    for one in checks:
        grid.add_row("OK" if one.ok else "FAIL", one.name, Text(printable(one.detail), overflow="fold"))
    return grid
