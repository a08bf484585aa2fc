"""plan(): the widths that a sparsity will lead to, from shapes alone. No weight is drawn, or even allocated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from fxprune.capture.inputs import choose_inputs
from fxprune.capture.module import capture
from fxprune.channels.groups import Couplings
from fxprune.cost import Cost, cost
from fxprune.facts import SensitivityReport, Shrunk, SparsityReport
from fxprune.manager import PassManager
from fxprune.metarun import plain_mode
from fxprune.options import Options
from fxprune.pass_lists import cut_shapes, finding_passes, foreseeing_passes
from fxprune.program import Program, meta_like, skeleton_of
from fxprune.report import LayerLine, layer_lines


@dataclass(frozen=True)
class Forecast:
    """What `compile` would decide at one sparsity, on average over seeds.

    widths   group index -> (width before, width after), for each group that would lose channels
    layers   every layer with its expected sparsity S_l and decision
    before, after   parameters, MACs and bytes; `nonzeros` does not look at masks here and equals `parameters`
    """

    sparsity: float
    average_sparsity: float
    widths: dict[int, tuple[int, int]]
    layers: tuple[LayerLine, ...]
    before: Cost
    after: Cost

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def plan(
    model: nn.Module,
    example_inputs: Any = None,
    sparsity: float | Sequence[float] = 0.98,
    *,
    policy: str = "reconvene",
    coupling: str = "max",
    average: str = "prunable",
    approximate: str | None = None,
    seed: int = 0,
    only: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
) -> list[Forecast]:
    """Foresee the widths of `compile(model, sparsity=...)` for one sparsity or several.

    At Kaiming initialisation the sparsities of magnitude masks are known in closed form, so that shapes decide. The
    model may be on the meta device; its numbers are never read. Options are those of `compile`; the policy "random" is
    drawn from the seed as there.

    Raises OptionError, CaptureError, NothingPrunableError.
    """
    asked = [sparsity] if isinstance(sparsity, int | float) else list(sparsity)
    options = [
        Options(
            sparsity=one, policy=policy, coupling=coupling, average=average, approximate=approximate, seed=seed,
            only=only, ignore=ignore, proof=False,
        )
        for one in asked
    ]  # fmt: skip
    if not options:
        return []
    with plain_mode():
        program = without_numbers(model, example_inputs)
        program = PassManager(finding_passes(options[0])).run(program)
        return [_forecast(program, one) for one in options]


def without_numbers(model: nn.Module, example_inputs: Any) -> Program:
    """The captured program with every tensor on the meta device."""
    if example_inputs is None:
        example_inputs, _ = choose_inputs(skeleton_of(model)[0], None)
    program = capture(model, example_inputs, shapes_only=True)
    return replace(program, tensors={name: meta_like(tensor) for name, tensor in program.tensors.items()})


def _forecast(program: Program, options: Options) -> Forecast:
    assert options.sparsity is not None
    planned = PassManager(foreseeing_passes(options)).run(program)
    small = cut_shapes(planned, options)
    couplings = program.fact(Couplings)
    marks = planned.fact(SensitivityReport).resilient
    lines = tuple(
        replace(line, decision="masked") if line.decision == "dense" and marks.get(line.weight) is False else line
        for line in layer_lines(planned, small, couplings)
    )
    return Forecast(
        options.sparsity,
        float(planned.fact(SparsityReport).average),
        dict(small.fact(Shrunk).widths),
        lines,
        cost(program, couplings.analysis),
        cost(small, small.fact(Shrunk).analysis),
    )
