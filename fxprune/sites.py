"""Where the saliency of channels is read: behind the normalisation that follows the layer which makes them.

The first-order change of the loss when channel k of a feature map z is zeroed is the sum over its entries of
z * dJ/dz (Molchanov et al., 2017, equation 4). No activation is needed for it. Where z = gamma * x + beta is the output
of a normalisation, the sum is gamma * dJ/dgamma + beta * dJ/dbeta; where z is the output of a convolution or a linear
layer that no normalisation follows, it is the sum of w * dJ/dw over the filter plus b * dJ/db. Gradients that the
backward pass has left in the parameters are all there is to read. In front of a batch normalisation in training mode
the same sum is zero, whatever the channel is worth, because the loss does not depend on the channel's scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fxprune.channels.engine import Analysis
from fxprune.channels.groups import ChannelGroup, Couplings
from fxprune.channels.records import Producer, Scale
from fxprune.channels.scores import output_layer
from fxprune.channels.solve import Ints


@dataclass(frozen=True, eq=False)
class Site:
    """One parameter whose product with its gradient belongs to channels.

    dims    dimensions of the parameter to sum over
    slots   slot of each remaining entry; slots number the channels of the learned groups, one after the other, and one
            more slot collects what belongs to no learned group
    """

    parameter: str
    dims: tuple[int, ...]
    slots: Tensor


def find_sites(couplings: Couplings, groups: Sequence[ChannelGroup]) -> tuple[Site, ...]:
    """The sites of these groups, each parameter once."""
    slot_of = _slots(couplings, groups)
    chosen: dict[str, Site] = {}
    for reading in readings(couplings, groups):
        for name, layer in _parameters(couplings, reading):
            dims = tuple(dim for dim, size in enumerate(layer.shape) if size == 1)
            slots = torch.from_numpy(slot_of[couplings.components.root[layer.reshape(-1).numpy()]])
            chosen.setdefault(name, Site(name, dims, slots))
    return tuple(chosen.values())


@dataclass(frozen=True)
class Reading:
    """A node of a graph behind which saliency is read: a normalisation, or a layer that none follows."""

    producer: Producer
    scale: Scale | None

    @property
    def place(self) -> tuple[str, str]:
        """(mode, node)"""
        return (self.producer.mode, self.producer.node if self.scale is None else self.scale.node)


def readings(couplings: Couplings, groups: Sequence[ChannelGroup]) -> Iterator[Reading]:
    """Where to read, for each layer that makes channels of these groups, in each graph: the first normalisations on all
    ways from it, and itself if a way reaches another layer, or the end, without meeting one."""
    makers = _followers(couplings.analysis)
    wanted = {name for group in groups for name in group.producers}
    for producer in couplings.analysis.producers:
        if producer.weight not in wanted or producer.kind == "depthwise":
            continue
        scales, bare = _first_scales(producer, makers)
        yield from (Reading(producer, scale) for scale in scales)
        if bare:
            yield Reading(producer, None)


def _slots(couplings: Couplings, groups: Sequence[ChannelGroup]) -> Ints:
    """Root -> slot."""
    total = sum(group.width for group in groups)
    slot_of = np.full(couplings.analysis.atoms.total, total, dtype=np.int64)
    if groups:
        slot_of[np.concatenate([group.roots for group in groups])] = np.arange(total)
    return slot_of


@dataclass(frozen=True)
class _Followers:
    """The graph read forwards: (mode, node) -> nodes that read it; and what stops the search."""

    readers: dict[tuple[str, str], list[str]]
    scales: dict[tuple[str, str], Scale]
    producers: frozenset[tuple[str, str]]


def _followers(analysis: Analysis) -> _Followers:
    readers: dict[tuple[str, str], list[str]] = {}
    for (mode, node), sources in analysis.inputs_of.items():
        for source in sources:
            readers.setdefault((mode, source), []).append(node)
    scales = {(one.mode, one.node): one for one in analysis.scales}
    return _Followers(readers, scales, frozenset((one.mode, one.node) for one in analysis.producers))


def _parameters(couplings: Couplings, reading: Reading) -> Iterator[tuple[str, Tensor]]:
    """(parameter, the layer of its labels) for what the node multiplies by and adds."""
    labels = couplings.analysis.parameter_labels
    if reading.scale is not None:
        for name in filter(None, (reading.scale.weight, reading.scale.bias)):
            if name in labels and labels[name].layers:
                yield name, labels[name].layers[0]
        return
    weight = reading.producer.weight
    yield weight, output_layer(couplings, labels[weight], reading.producer.outputs)
    bias = f"{weight.rpartition('.')[0]}.bias".removeprefix(".")
    if bias in labels and labels[bias].layers:
        yield bias, labels[bias].layers[0]


def _first_scales(producer: Producer, makers: _Followers) -> tuple[list[Scale], bool]:
    start = (producer.mode, producer.node)
    waiting, met, bare = [start], {start}, False
    found: list[Scale] = []
    while waiting:
        place = waiting.pop()
        if place in makers.scales:
            found.append(makers.scales[place])
            continue
        after = [(producer.mode, node) for node in makers.readers.get(place, ())]
        if not after or (place in makers.producers and place != start):
            bare = True
            continue
        waiting += [one for one in after if one not in met]
        met.update(after)
    return found, bare
