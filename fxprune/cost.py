"""What a network costs: parameters, non-zeros, multiply-accumulates, bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from torch import nn

from fxprune.channels.engine import Analysis
from fxprune.facts import WeightMasks
from fxprune.program import Program, named_tensors


@dataclass(frozen=True)
class Cost:
    """parameters counted once when tied; nonzeros of them under their masks; macs of convolutions and linear layers
    for one
    example; bytes of the state dict's tensors (parameters and buffers)."""

    parameters: int
    nonzeros: int
    macs: int
    bytes: int

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


def cost(program: Program, analysis: Analysis) -> Cost:
    """Cost of a program, from shapes and masks alone.

    MACs are half the FLOPs that torch.utils.flop_counter's formulas gave during the analysis, divided by the batch.
    """
    own = {id(one): one for one in named_tensors(program.module).values()}.values()
    total = sum(one.numel() for one in own if isinstance(one, nn.Parameter))
    size = sum(one.numel() * one.element_size() for one in own)
    masks = program.facts[WeightMasks].masks if WeightMasks in program.facts else {}
    zeros = sum(mask.numel() - int(mask.count_nonzero()) for mask in masks.values())
    return Cost(total, total - zeros, analysis.flops // 2 // program.inputs.batch, size)
