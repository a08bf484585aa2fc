"""explain(): which channels hang together in a network, what cannot be cut, and why."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import networkx as nx
import torch
from torch import fx, nn

from fxprune.capture.module import as_network
from fxprune.channels.atoms import Site
from fxprune.channels.first_walk import first_walk, take_analysis
from fxprune.channels.graph import coupled_with, coupling_graph
from fxprune.channels.groups import ChannelGroup, Couplings, Member, couple
from fxprune.errors import OptionError
from fxprune.group_costs import GroupCost, group_costs
from fxprune.metarun import plain_mode
from fxprune.program import Program
from fxprune.submodule import capture_chosen


@dataclass(frozen=True, eq=False)
class Explanation:
    """Answers about one network.

    program    what was captured
    couplings  the channel groups, and what they were worked out from
    sources    node name -> the user's line ("file:line: code"), empty where it is not known
    notes      what had to be decided on the way: guessed inputs, parameters that are never read, ...
    """

    program: Program
    couplings: Couplings
    sources: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def groups(self) -> tuple[ChannelGroup, ...]:
        """All groups, frozen ones too, in the order in which the network meets them."""
        return self.couplings.groups

    @cached_property
    def graph(self) -> nx.Graph:
        """The coupling graph, see `fxprune.channels.graph`."""
        return coupling_graph(self.couplings)

    def coupled_with(self, layer: str) -> list[tuple[ChannelGroup, list[Member]]]:
        """(group, everybody else in it) for each group that this layer or parameter has channels in. Raises OptionError
        when there is no such layer, naming those that are spelled alike.
        """
        found = coupled_with(self.couplings, layer)
        if not found:
            raise OptionError(self._unknown(layer))
        return found

    def __repr__(self) -> str:
        prunable = sum(group.prunable for group in self.groups)
        return f"<Explanation of {type(self.program.module).__name__}: {len(self.groups)} groups, {prunable} prunable>"

    def _unknown(self, layer: str) -> str:
        members = {member.parameter for group in self.groups for member in group.members}
        names = sorted(members | {name.rpartition(".")[0] for name in members} - {""})
        near = difflib.get_close_matches(layer, names, n=3)
        return f"no layer or parameter {layer!r} has channels; " + (
            f"did you mean {' or '.join(near)}?" if near else f"layers are named like {', '.join(names[:3])}"
        )

    def source_of(self, site: Site) -> str:
        """The user's source line behind a decision, or an empty text."""
        return self.sources.get(site.node, "")

    @cached_property
    def costs(self) -> dict[int, GroupCost]:
        """Group index -> parameters and MACs that go when all channels of the group go."""
        return group_costs(self.program, self.couplings)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"notes": list(self.notes), "groups": [self._group_dict(group) for group in self.groups]}

    def _group_dict(self, group: ChannelGroup) -> dict[str, Any]:
        return {
            "index": group.index,
            "width": group.width,
            "rows": group.row_count,
            "parameters": self.costs[group.index].parameters,
            "macs": self.costs[group.index].macs,
            "members": [str(member) for member in group.members],
            "producers": list(group.producers),
            "prunable": group.prunable,
            "frozen": str(group.frozen) if group.frozen else None,
            "frozen_at": self.source_of(group.frozen) if group.frozen else None,
            "approximate": str(group.approximate) if group.approximate else None,
            "approximate_at": self.source_of(group.approximate) if group.approximate else None,
        }


def explain(
    model: nn.Module, example_inputs: Any = None, *, approximate: str = "cut", submodule: str | None = None
) -> Explanation:
    """Analyse a network without changing it: which channels go together, which stay, and why.

    model, example_inputs   as for `compile`
    approximate             channels behind a normalisation over channels: "cut" (they may go, and are flagged) or
                            "freeze"
    submodule               look at this module of the network alone, as "backbone.body"

    Raises CaptureError when the network cannot be traced or the inputs do not fit.
    """
    with plain_mode():
        return _explain(as_network(model), example_inputs, approximate, submodule)


def _explain(model: nn.Module, example_inputs: Any, approximate: str, submodule: str | None) -> Explanation:
    trial = first_walk(approximate)
    program, notes = capture_chosen(model, example_inputs, submodule, record_sources=True, trial=trial)
    program, analysis = take_analysis(program, approximate)
    couplings = couple(analysis)
    sources = {node.name: _last_line(node) for _, graph in program.graphs() for node in graph.nodes}
    return Explanation(program, couplings, sources, (*notes, *program.notes))


def _last_line(node: fx.Node) -> str:
    """The innermost frame outside PyTorch and the tracer that made this node."""
    frames = [line.strip() for line in (node.stack_trace or "").splitlines()]
    ours = tuple(f'File "{folder}/' for folder in (Path(torch.__file__).parent, Path(__file__).parent / "capture"))
    places = [n for n, line in enumerate(frames) if line.startswith('File "') and not line.startswith(ours)]
    if not places:
        return ""
    position = places[-1]
    file, _, rest = frames[position].removeprefix('File "').partition('", line ')
    number = rest.split(",")[0]
    code = frames[position + 1] if position + 1 < len(frames) else ""
    return f"{file}:{number}: {code}"
