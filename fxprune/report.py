"""Report: asked, decided, achieved, repaired, frozen and why. Only what was measured or decided in this run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from fxprune.channels.groups import ChannelGroup, Couplings
from fxprune.channels.scores import output_layer
from fxprune.cost import Cost
from fxprune.facts import SparsityReport, WeightMasks
from fxprune.program import Program, named_tensors


@dataclass(frozen=True)
class LayerLine:
    """One convolution or linear layer: output width before and after, its sparsity S_l, and what became of it."""

    weight: str
    before: int
    after: int
    sparsity: float | None
    decision: str  # "shrunk", "masked", "dense" (never masked, or its mask was dropped) or "follows" (depthwise)


@dataclass(frozen=True)
class GroupLine:
    """One ChannelGroup: who is in it, how wide it is and was, and why it is frozen or only approximate, if so."""

    index: int
    before: int
    after: int
    members: tuple[str, ...]
    producers: tuple[str, ...]
    frozen: str | None
    approximate: str | None


@dataclass(frozen=True)
class Report:
    """What was asked, decided, achieved, repaired and refused.

    achieved_sparsity     zeros among the weights that were ranked, over all weights the dense network had there
                          (removed ones count as zeros); None without a mask
    proof_error           largest relative difference between the cut network and the dense one with channels zeroed;
                          None if skipped
    proof_signal          how much the compared outputs depended on the input, relative to their size
    """

    asked: Mapping[str, Any]
    before: Cost
    after: Cost
    layers: tuple[LayerLine, ...]
    groups: tuple[GroupLine, ...]
    average_sparsity: float | None
    achieved_sparsity: float | None
    repaired_rows: Mapping[str, int]
    densified: tuple[str, ...]
    lifted: tuple[str, ...]
    proof_error: float | None
    proof_signal: float | None
    refused: Mapping[int, str]
    front_end: str
    notes: tuple[str, ...]
    seconds: Mapping[str, float]

    @property
    def frozen(self) -> dict[str, str]:
        """Every parameter dimension that must stay -> why."""
        return {member: one.frozen for one in self.groups if one.frozen for member in one.members}

    @property
    def approximate(self) -> dict[int, str]:
        """Groups that lost channels behind a statistic over channels -> which statistic."""
        return {one.index: one.approximate for one in self.groups if one.approximate and one.after < one.before}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def group_lines(
    couplings: Couplings, widths: Mapping[int, tuple[int, int]], extra: Mapping[int, str]
) -> tuple[GroupLine, ...]:
    """Every group with its widths; `extra` holds reasons that are not the engine's (options, the proof)."""
    return tuple(_line(group, widths.get(group.index), extra.get(group.index)) for group in couplings.groups)


def _line(group: ChannelGroup, width: tuple[int, int] | None, extra: str | None) -> GroupLine:
    return GroupLine(
        group.index,
        group.width,
        width[1] if width else group.width,
        tuple(str(member) for member in group.members),
        group.producers,
        str(group.frozen) if group.frozen else extra,
        str(group.approximate) if group.approximate else None,
    )


def layer_lines(dense: Program, small: Program, couplings: Couplings) -> tuple[LayerLine, ...]:
    """Every layer that makes channels, in the order of the network."""
    shares = dense.facts[SparsityReport].layers if SparsityReport in dense.facts else {}
    masks = small.facts[WeightMasks].masks if WeightMasks in small.facts else {}
    skeletons = [named_tensors(program.module) for program in (dense, small)]
    lines: dict[str, LayerLine] = {}
    for producer in couplings.analysis.producers:
        name = producer.weight
        axis = _output_dim(couplings, name, producer.outputs)
        before, after = (known[name].shape[axis] for known in skeletons)
        shrunk = after < before
        kind = (
            "follows"
            if producer.kind == "depthwise"
            else "shrunk"
            if shrunk
            else "masked"
            if name in masks
            else "dense"
        )
        share = shares.get(name)
        lines.setdefault(name, LayerLine(name, before, after, share.sparsity if share else None, kind))
    return tuple(lines.values())


def _output_dim(couplings: Couplings, name: str, outputs: Tensor) -> int:
    labels = couplings.analysis.parameter_labels[name]
    if not labels.layers:
        return 0
    layer = output_layer(couplings, labels, outputs)
    return next((dim for dim, size in enumerate(layer.shape) if size > 1), 0)


def achieved_sparsity(dense: Program, small: Program) -> float | None:
    """Share of the ranked weights that are gone or masked."""
    if SparsityReport not in dense.facts:
        return None
    layers = dense.fact(SparsityReport).layers
    masks = small.fact(WeightMasks).masks
    left = sum(int(masks[n].count_nonzero()) if n in masks else small.module.get_parameter(n).numel() for n in layers)
    return 1 - left / sum(share.total for share in layers.values())
