"""Which groups of channels structure learning may change: a question to the couplings, not a list of layer names."""

from __future__ import annotations

from collections.abc import Iterator

from fxprune.channels.groups import ChannelGroup, Couplings
from fxprune.facts import Prunable
from fxprune.program import Program

SCOPES = ("paper", "all")


def groups_in(program: Program, scope: str) -> Iterator[ChannelGroup]:
    """Groups of more than one channel that can lose some, in the order of the network.

    "all" takes each of them. "paper" takes those that one convolution makes and one layer reads: where several layers
    make a group, or several read it, it is a residual stream or the trunk that one starts from, and its width stays.
    Hidden linear layers stay too. Where a depthwise convolution follows, only a point-wise convolution counts, so that
    the stem of a depthwise separable network stays.
    """
    couplings, prunable = program.fact(Couplings), program.fact(Prunable)
    depthwise = {one.weight for one in couplings.analysis.producers if one.kind == "depthwise"}
    for group in couplings.prunable():
        if group.index in prunable.frozen or group.width < 2:
            continue
        if scope == "all" or _is_plain(program, prunable, group, depthwise):
            yield group


def _is_plain(program: Program, prunable: Prunable, group: ChannelGroup, depthwise: set[str]) -> bool:
    if len(group.producers) != 1 or prunable.kinds.get(group.producers[0]) != "conv":
        return False
    met = {member.parameter for member in group.members}
    if len((met & set(prunable.kinds)) - {group.producers[0]}) > 1:
        return False
    followed = bool(met & depthwise)
    kernel = program.tensors[group.producers[0]].shape[2:]
    return not followed or all(size == 1 for size in kernel)
