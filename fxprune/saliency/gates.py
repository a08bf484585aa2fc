"""Gates: a factor on each channel, behind the normalisation, and what the loss makes of it at one.

The product of a feature map with a gate is the same network with the scale and shift of its normalisation (or the
filter and bias, where there is none) multiplied by the gate, so that no activation is touched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from fxprune.channels.groups import ChannelGroup, Couplings
from fxprune.channels.scores import Scores
from fxprune.group_costs import weight_macs
from fxprune.program import Program
from fxprune.saliency.channels import cuttable
from fxprune.saliency.trial import Data, needed, same_draws, trial_network
from fxprune.sites import Site, find_sites


@dataclass(frozen=True)
class GateSlope:
    """score = |dL/dgate| at 1, SNIP for channels: 3SP (van Amersfoort et al., 2020), or ProsPr's structured form.

    steps      0: the slope of the loss as it is (3SP); M: of the loss after M steps of plain SGD through which
               gradients flow (ProsPr, Alizadeh et al., ICLR 2022)
    per_mac    divide by the multiply-accumulates that one channel costs (3SP's compute-aware form)

    Needs steps + 1 batches. Training mode.
    """

    data: Data | None
    seed: int = 0
    steps: int = 0
    rate: float = 0.1
    per_mac: bool = False
    name: ClassVar[str] = "gate"

    def scores(self, program: Program, couplings: Couplings) -> Scores:
        data = needed(self.data, self.name)
        batches = data.take(self.steps + 1, self.name)
        groups = cuttable(program, couplings)
        sites = find_sites(couplings, groups)
        network = trial_network(program, training=True)
        buffers = {name: one.clone() for name, one in network.named_buffers()}
        with same_draws(self.seed):
            total = sum(group.width for group in groups)
            gates = torch.ones(total + 1, dtype=torch.promote_types(torch.float32, _dtype(network))).requires_grad_()
            weights = gated({name: one.detach() for name, one in network.named_parameters()}, sites, gates)

            def loss(number: int) -> Tensor:
                inputs, labels = batches[number]
                return data.loss_of(functional_call(network, (weights, buffers), inputs), labels)

            for number in range(self.steps):
                slopes = torch.autograd.grad(
                    loss(number), list(weights.values()), create_graph=True, allow_unused=True, materialize_grads=True
                )
                moved = zip(list(weights.items()), slopes, strict=True)
                weights.update({name: weight - self.rate * slope for (name, weight), slope in moved})
            [slope] = torch.autograd.grad(loss(self.steps), [gates])
        return self._by_root(program, couplings, groups, slope.abs()[:-1].double().numpy())

    def _by_root(self, program: Program, couplings: Couplings, groups: list[ChannelGroup], slopes: Scores) -> Scores:
        macs = weight_macs(program, couplings) if self.per_mac else {}
        found = np.zeros(couplings.analysis.atoms.total)
        start = 0
        for group in groups:
            own = slopes[start : start + group.width]
            found[group.roots] = own / channel_macs(couplings, group, macs) if self.per_mac else own
            start += group.width
        return found


def _dtype(network: torch.nn.Module) -> torch.dtype:
    return next((one.dtype for one in network.parameters() if one.is_floating_point()), torch.float32)


def gated(parameters: Mapping[str, Tensor], sites: tuple[Site, ...], gates: Tensor) -> dict[str, Tensor]:
    """Parameters with a gate on each channel; the last gate is nobody's and stays at 1."""
    found = {name: one.clone().requires_grad_() for name, one in parameters.items()}
    for site in sites:
        own = found[site.parameter]
        shape = [1 if dim in site.dims else size for dim, size in enumerate(own.shape)]
        found[site.parameter] = own * gates[site.slots].reshape(shape).to(own.dtype)
    return found


def channel_macs(couplings: Couplings, group: ChannelGroup, macs: Mapping[str, int]) -> float:
    """Multiply-accumulates of the layers that make a group, for one of its channels and one example.

    macs   of each weight, as `weight_macs` gives them
    """
    channels = {one.weight: len(one.outputs) for one in couplings.analysis.producers}
    total = sum(macs.get(weight, 0) / channels[weight] for weight in dict.fromkeys(group.producers))
    return max(total, 1.0)
