"""What a network costs: parameters, non-zeros, multiply-accumulates, bytes."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from fxprune.channels.engine import bind_inputs
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


def cost(program: Program) -> Cost:
    """Cost of a program, from shapes and masks alone. MACs = FLOPs / 2 of torch.utils.flop_counter, divided by the
    batch.
    """
    parameters = {id(one): one.numel() for one in program.module.parameters()}
    total = sum(parameters.values())
    masks = program.facts[WeightMasks].masks if WeightMasks in program.facts else {}
    zeros = sum(mask.numel() - int(mask.count_nonzero()) for mask in masks.values())
    held = {id(one): one.numel() * one.element_size() for one in named_tensors(program.module).values()}
    return Cost(total, total - zeros, macs(program), sum(held.values()))


def macs(program: Program) -> int:
    """Multiply-accumulates of convolutions and matrix products for one example."""
    values = bind_inputs(program.module.graph, program.inputs.args, program.inputs.kwargs)
    values = pytree.tree_map_only(Tensor, lambda t: torch.empty_like(t, device="meta"), values)
    batch = next((one.shape[0] for one in pytree.tree_leaves(values) if isinstance(one, Tensor) and one.ndim), 1)
    program.module.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        fx.Interpreter(program.module).run(*values)
    return int(counter.get_total_flops()) // 2 // max(batch, 1)
