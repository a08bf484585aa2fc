"""compare(): several methods at several sparsities on one network, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from fxprune.cost import Cost
from fxprune.errors import FxpruneError, OptionError
from fxprune.manager import FirstProgram
from fxprune.methods import method_named, wants_data
from fxprune.options import Options
from fxprune.phases import phase
from fxprune.pipeline import compile
from fxprune.program import Program
from fxprune.report import LayerLine, Report
from fxprune.runtime.together import Measuring, Together
from fxprune.wording import UNITS

EQUAL = {"params": "parameters", "macs": "macs", "sparsity": ""}  # what is made equal; nothing: a share of parameters
DENSE = "dense"


@dataclass(frozen=True)
class Row:
    """One method at one sparsity.

    keep_rate    of channels, for a method that takes that
    target       what such a method was cut to, in words
    error        why there is nothing else
    """

    method: str
    sparsity: float
    cost: Cost | None = None
    keep_rate: float | None = None
    target: str | None = None
    layers: tuple[LayerLine, ...] = ()
    proof_error: float | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None

    @property
    def name(self) -> str:
        """What it is called among what was measured."""
        return f"{self.method} {self.sparsity:g}"


@dataclass(frozen=True)
class Comparison:
    """dense: what the network costs as it is; None when no method worked. measured: None where nobody asked, or where
    it failed, which a note tells.
    """

    dense: Cost | None
    rows: tuple[Row, ...]
    measured: Together | None = None
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Contest:
    """What is compared.

    equal     what methods with a keep rate are cut to: "params" or "macs": those of the first method that takes the
              sparsity; "sparsity": parameters, to 1 - sparsity of the dense network's, as is "params" without one
    options   arguments of `compile` for all of them, as seed or ignore
    """

    methods: Sequence[str]
    sparsities: Sequence[float]
    equal: str = "params"
    options: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("methods", "sparsities"):  # a row is known by both: each is there once
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        if not self.methods or not self.sparsities:
            raise OptionError("nothing to compare: name methods and sparsities")
        if self.equal not in EQUAL:
            raise OptionError(f"unknown equal {self.equal!r}: choose {', '.join(EQUAL)}")
        for name in self.methods:
            method_named(name)
        for sparsity in self.sparsities:
            Options(sparsity=sparsity)
        if self.equal == "macs" and not self.takes_sparsity:
            raise OptionError(
                "equal='macs' takes a method with a sparsity for its measure: name one, these have a keep rate"
            )

    @property
    def takes_sparsity(self) -> tuple[str, ...]:
        """Those of the methods that know what a sparsity is."""
        return tuple(name for name in self.methods if method_named(name).knob == "sparsity")


def compare(
    model: nn.Module, example_inputs: Any, contest: Contest, *, data: Any = None, measure: bool = True, threads: int = 1
) -> Comparison:
    """Compile the network with each method at each sparsity, and measure all results in turns.

    data      as for `compile`, for methods that look at gradients
    measure   latency in onnxruntime, with the dense network and all others in each round

    What a method refuses becomes the error of its row. Raises OptionError for a contest that makes no sense.
    """
    with TemporaryDirectory() as folder:
        work = _Work(model, example_inputs, contest, data, Measuring(Path(folder), threads) if measure else None)
        rows = tuple(row for sparsity in contest.sparsities for row in work.rows(sparsity))
        measured = work.measured()
    return Comparison(work.dense, rows, measured, tuple(work.notes))


class _Work:
    """What the rows share."""

    def __init__(
        self, model: nn.Module, example_inputs: Any, contest: Contest, data: Any, measuring: Measuring | None
    ) -> None:
        self.model, self.inputs, self.contest = model, example_inputs, contest
        self.data, self.measuring = data, measuring
        self.dense: Cost | None = None
        self.notes: list[str] = []

    def rows(self, sparsity: float) -> list[Row]:
        """One for each method; those that take the sparsity run first, because one of them measures the others."""
        measures = self.contest.takes_sparsity
        found: dict[str, Row] = {}
        for name in (*measures, *(one for one in self.contest.methods if one not in measures)):
            with phase(f"{name} {sparsity:g}"):
                measure = next((found[one] for one in measures if one in found and found[one].cost), None)
                found[name] = self._row(name, sparsity, measure)
        return [found[name] for name in self.contest.methods]

    def _row(self, name: str, sparsity: float, measure: Row | None) -> Row:
        try:
            amount = self._amount(name, sparsity, measure)
            report, small = self._compiled(name, amount)
        except FxpruneError as error:
            return Row(name, sparsity, error=str(error))
        self.dense = report.before
        row = Row(
            name, sparsity, report.after, report.asked["keep_rate"], _target(amount, report.before, measure),
            report.layers, report.proof_error, report.notes,
        )  # fmt: skip
        return self._exported(row, small)

    def _amount(self, name: str, sparsity: float, measure: Row | None) -> dict[str, float]:
        """The argument of `compile` that says how much is removed."""
        if method_named(name).knob == "sparsity":
            return {"sparsity": sparsity}
        kind = EQUAL[self.contest.equal]
        if not kind or not self.contest.takes_sparsity:
            return {"target_params": 1 - sparsity}
        if measure is None:
            raise OptionError(f"{self.contest.takes_sparsity[0]}, whose {UNITS[kind]} are the measure, did not work")
        return {f"target_{self.contest.equal}": getattr(measure.cost, kind)}

    def _compiled(self, name: str, amount: Mapping[str, float]) -> tuple[Report, Program]:
        captured = FirstProgram()
        given: dict[str, Any] = {**(self.contest.options or {}), **amount}
        done = compile(self.model, self.inputs, method=name, data=self._data_for(name), observers=(captured,), **given)
        if self.measuring is not None and not self.measuring.files and captured.program is not None:
            self._add_dense(self.measuring, captured.program)
        return done.report, done.program

    def _data_for(self, name: str) -> Any:
        """Recipes of the others do not name data that nothing looked at."""
        return self.data if wants_data(name) else None

    def _add_dense(self, measuring: Measuring, program: Program) -> None:
        try:
            measuring.add(DENSE, program)
        except FxpruneError as error:
            self.notes.append(f"nothing was measured: {error}")
            self.measuring = None

    def _exported(self, row: Row, small: Program) -> Row:
        if self.measuring is None:
            return row
        try:
            self.measuring.add(row.name, small)
        except FxpruneError as error:
            return replace(row, notes=(*row.notes, f"not measured: {error}"))
        return row

    def measured(self) -> Together | None:
        """Everything that could be written as ONNX."""
        if self.measuring is None or not self.measuring.files:
            return None
        try:
            return self.measuring.run()
        except FxpruneError as error:
            self.notes.append(str(error))
            return None


def _target(amount: Mapping[str, float], dense: Cost, measure: Row | None) -> str | None:
    """What a method with a keep rate was cut to, with numbers; None for one that took the sparsity."""
    ((name, value),) = amount.items()
    if name == "sparsity":
        return None
    if value <= 1:
        return f"{value * dense.parameters:,.0f} parameters, {value:.3g} of the dense network's"
    assert measure is not None  # only its costs are absolute
    return f"{value:,.0f} {UNITS[EQUAL[name.removeprefix('target_')]]}, those of {measure.method}"
