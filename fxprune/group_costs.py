"""What stands behind each channel group: parameters and multiply-accumulates that go when all its channels go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxprune.channels.groups import Couplings
from fxprune.channels.layers import Labels, varying
from fxprune.program import Program


@dataclass(frozen=True)
class GroupCost:
    """parameters and macs (of one example) of the group's makers, readers and norms; a weight between two groups
    counts for both.
    """

    parameters: int = 0
    macs: int = 0


def group_costs(program: Program, couplings: Couplings) -> dict[int, GroupCost]:
    """Group index -> cost, for every group."""
    macs = weight_macs(program, couplings)
    of_group = torch.from_numpy(couplings.group_of)
    parameters, products = Counter[int](), Counter[int]()
    for name, labels in couplings.analysis.parameter_labels.items():
        tensor = program.tensors[name]
        for index, part in _parts(labels, of_group).items():
            if isinstance(tensor, nn.Parameter):
                parameters[index] += round(part * tensor.numel())
            products[index] += round(part * macs.get(name, 0))
    return {group.index: GroupCost(parameters[group.index], products[group.index]) for group in couplings.groups}


def weight_macs(program: Program, couplings: Couplings) -> Mapping[str, int]:
    """Weight of a convolution or linear layer -> multiply-accumulates of its calls in eval mode, for one example."""
    analysis = couplings.analysis
    calls = {(one.weight, one.node) for one in analysis.producers if one.mode == "eval"}
    sharing = Counter(node for _, node in calls)
    found = Counter[str]()
    for weight, node in calls:
        found[weight] += analysis.flops_at.get(node, 0) // sharing[node] // 2 // program.inputs.batch
    return found


def _parts(labels: Labels, of_group: Tensor) -> dict[int, float]:
    """Group index -> share of a tensor's entries that are in it."""
    owners = [of_group[layer.reshape(-1)].reshape(layer.shape) for layer in labels.layers]
    indices = {int(index) for owner in owners for index in owner.unique()} - {-1}
    return {index: 1 - _free(owners, index) for index in sorted(indices)}


def _free(owners: list[Tensor], index: int) -> float:
    """Share of entries that are not in the group. Layers over different dimensions are independent of each other."""
    free, seen = 1.0, set[int]()
    for owner in owners:
        if varying(owner) & seen:
            outside = [one != index for one in owners]
            return float(torch.stack(torch.broadcast_tensors(*outside)).all(0).double().mean())
        seen |= varying(owner)
        free *= float((owner != index).double().mean())
    return free
