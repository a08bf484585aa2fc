"""Compiled: what `compile` returns, and how its report and recipe are put together."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxprune.channels.groups import Couplings
from fxprune.cost import cost
from fxprune.drawing import DrawnTensors
from fxprune.emit.module import build_module, own, plain_state, with_tied_names
from fxprune.example import described
from fxprune.facts import Prunable, Ranking, Repairs, Shrunk, SparsityReport, WeightMasks
from fxprune.own_version import own_version
from fxprune.program import Program, named_tensors
from fxprune.proof import FAINT
from fxprune.recipe import NUMBERS, Recipe
from fxprune.report import Report, achieved_sparsity, group_lines, layer_lines
from fxprune.submodule import Whole

if TYPE_CHECKING:
    from fxprune.emit.source_proof import ProvedSource


@dataclass(frozen=True, eq=False)
class Compiled:
    """The result of `compile`.

    program  the cut network on its way: a graph over a skeleton without numbers, and its tensors, which are those of
             `module`
    report   asked, decided, achieved, repaired, frozen and why
    whole    the given network, where only a part of it was compiled: then `program` is the part, `module` a copy of the
             whole with the part replaced
    """

    program: Program
    report: Report
    write_recipe: Callable[[], Recipe]
    whole: Whole | None = None

    def __repr__(self) -> str:
        before, after = self.report.before, self.report.after
        name = type(self.program.module).__name__
        return f"<Compiled {name}: {before.parameters:,} -> {after.parameters:,} parameters>"

    @cached_property
    def recipe(self) -> Recipe:
        """What was kept, in the user's names; `recipe.apply(model)` repeats it."""
        return self.write_recipe()

    @cached_property
    def module(self) -> nn.Module:
        """The trainable network, in train mode, always the same object. Takes and returns what the given model did.

        Module and parameter names are those of the given model. A masked weight is a parametrisation: its zeros stay
        zero whatever an optimiser does.
        """
        return self.whole.rebuilt(self.program) if self.whole else build_module(self.program, share=True)

    def state_dict(self) -> dict[str, Tensor]:
        """State of `module` under plain names: effective weights, and each mask as `<weight>_mask`."""
        return plain_state(self.module)

    def to_onnx(self, path: str | Path, *, opset: int | None = None) -> Any:
        """Write `module` as it is now to one ONNX file, masks multiplied in, and compare it with torch in onnxruntime.
        Of a network that was compiled in part, the part alone.

        The batch size stays free where the network allows it. `opset`: a number from 18 on, None for the default.
        Returns the OnnxReport (opset, whether the batch is free, largest difference). Raises ExportError.
        """
        from fxprune.emit.onnx import export_onnx  # heavy, and not everybody exports

        metadata = {"producer": f"fxprune {own_version()}", "seed": str(self.recipe.options["seed"])}
        return export_onnx(
            self._baked(),
            self.program.inputs.with_storage(),
            Path(path),
            opset=opset,
            metadata=metadata,
            dynamic_batch=self.program.dynamic_batch,
        )

    def to_source(self) -> ProvedSource:
        """Source of `module` that stands alone on torch, run and compared with it. Raises ExportError where the network
        cannot be written as source, or was compiled in part only.
        """
        from fxprune.emit.source import write_source
        from fxprune.emit.source_proof import prove_source
        from fxprune.emit.source_text import SourceError

        if self.whole:
            raise SourceError(f"only {self.whole.path} was compiled, and the rest of the network has no graph")
        source = write_source(self.program, self.recipe.masks)
        return prove_source(source, self.module, self.program.inputs)

    def _baked(self) -> nn.Module:
        """The module without parametrisations, with the numbers it has now."""
        baked = build_module(self.program, bake=True)
        known = baked.state_dict()
        baked.load_state_dict({name: one for name, one in self.state_dict().items() if name in known}, strict=True)
        return baked.eval()


def finished(
    dense: Program, small: Program, asked: dict[str, Any], seconds: dict[str, float], notes: tuple[str, ...]
) -> Compiled:
    """What `compile` returns. Numbers that the cut program still shares with the given network are copied."""
    small = replace(small, tensors=_apart(small.tensors, dense.tensors))
    skeleton = dense.module
    return Compiled(
        small, make_report(dense, small, asked, seconds, notes), lambda: make_recipe(skeleton, small, asked)
    )


def _apart(tensors: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors without any memory of the given ones; tied names keep sharing one object."""
    held = given.base if isinstance(given, DrawnTensors) else given
    theirs = {one.untyped_storage().data_ptr() for one in held.values()}
    found: dict[int, Tensor] = {}
    for one in tensors.values():
        if id(one) not in found:
            found[id(one)] = own(one) if one.untyped_storage().data_ptr() in theirs else one
    return {name: found[id(one)] for name, one in tensors.items()}


def make_report(
    dense: Program, small: Program, asked: dict[str, Any], seconds: dict[str, float], notes: tuple[str, ...]
) -> Report:
    shrunk, repairs = small.fact(Shrunk), small.fact(Repairs)
    couplings = dense.fact(Couplings)
    average = dense.facts.get(SparsityReport)
    achieved = achieved_sparsity(dense, small)
    ranking = small.fact(Ranking)
    if ranking.trained and not asked["keep_weights"]:
        notes += (
            "the given weights look trained: they decided what stays, then were drawn anew (keep_weights keeps them)",
        )
    if shrunk.signal is not None and (shrunk.error is None or math.isnan(shrunk.error)):
        notes += ("nothing was proved: on random numbers all outputs of the network are NaN or infinite",)
    elif shrunk.signal is not None and shrunk.signal <= FAINT:
        notes += (f"the proof saw little: outputs move by {shrunk.signal:.0e} of their size with the input",)
    if not shrunk.widths:
        why = "no layer is resilient at this setting"
        if asked["keep_rate"] is not None or not asked["sparsity"]:
            why = "each group keeps all of its own"
        notes += (f"no channel was removed: {why}",)
    return Report(
        asked=asked,
        before=cost(replace(dense, facts={}), couplings.analysis),
        after=cost(small, shrunk.analysis),
        layers=layer_lines(dense, small, couplings),
        groups=group_lines(couplings, shrunk.widths, {**dense.fact(Prunable).frozen, **shrunk.refused}),
        average_sparsity=float(average.average) if average else None,
        achieved_sparsity=achieved,
        repaired_rows=repairs.rows,
        densified=repairs.densified,
        lifted=repairs.lifted,
        proof_error=shrunk.error,
        proof_signal=shrunk.signal,
        refused=shrunk.refused,
        front_end=small.front_end,
        notes=(*notes, *small.notes),
        seconds=dict(seconds),
    )


def make_recipe(dense: nn.Module, small: Program, asked: dict[str, Any]) -> Recipe:
    """dense: the skeleton of the given network."""
    shrunk = small.fact(Shrunk)
    return Recipe(
        kept={name: {dim: kept.tolist() for dim, kept in dims.items()} for name, dims in shrunk.kept.items()},
        kept_per_group={
            name: {dim: kept.tolist() for dim, kept in dims.items()} for name, dims in shrunk.kept_per_group.items()
        },
        numbers=_numbers(dense, small.module),
        shapes={
            name: list(tensor.shape)
            for name, tensor in named_tensors(dense).items()
            if name in shrunk.kept or name in shrunk.kept_per_group
        },
        indices={name: values.reshape(-1).tolist() for name, values in shrunk.renumbered.items()},
        patched=shrunk.patched,
        folded=small.folded,
        masks={name: int(mask.count_nonzero()) for name, mask in _masks(small).items()},
        constants=small.constants,
        inputs=described(small.inputs),
        dynamic_batch=small.dynamic_batch,
        options=asked,
        versions={"fxprune": own_version(), "torch": torch.__version__},
    )


def _masks(small: Program) -> dict[str, Tensor]:
    return with_tied_names(small, small.fact(WeightMasks).masks) if WeightMasks in small.facts else {}


def _numbers(dense: nn.Module, small: nn.Module) -> dict[str, Any]:
    """Numbers of leaf modules that shapes do not tell."""
    before = dict(dense.named_modules())
    found: dict[str, dict[str, Any]] = {}
    for path, module in small.named_modules():
        for attribute in NUMBERS:
            value = vars(module).get(attribute)
            if value != vars(before[path]).get(attribute):
                found.setdefault(path, {})[attribute] = list(value) if isinstance(value, tuple) else value
    return found
