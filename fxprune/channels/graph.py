"""The coupling graph: parameters and channel groups, and the node that brought them together.

Single channels never enter it; it has as many vertices as the network has parameters and groups.
"""

from __future__ import annotations

import networkx as nx
import numpy as np

from fxprune.channels.groups import ChannelGroup, Couplings, Member
from fxprune.channels.solve import FREE


def coupling_graph(couplings: Couplings) -> nx.Graph:
    """Bipartite graph. Vertices: parameter names (kind="parameter") and group numbers (kind="group", width, frozen).

    An edge carries `dim`, the parameter's dimension that belongs to the group, and `via`, the node that tied them
    (None where nothing did: the parameter's own channels).
    """
    via = _first_ties(couplings)
    graph = nx.Graph()
    for group in couplings.groups:
        graph.add_node(group.index, kind="group", width=group.width, frozen=str(group.frozen or ""))
        for member in group.members:
            graph.add_node(member.parameter, kind="parameter")
            graph.add_edge(group.index, member.parameter, dim=member.dim, via=via.get(member))
    return graph


def coupled_with(couplings: Couplings, layer: str) -> list[tuple[ChannelGroup, list[Member]]]:
    """Groups that a layer's or parameter's channels belong to, with everybody else in them."""
    graph = coupling_graph(couplings)
    own = [name for name in graph if isinstance(name, str) and (name == layer or name.rpartition(".")[0] == layer)]
    indices = sorted({index for name in own for index in graph.neighbors(name)})
    groups = [couplings.groups[index] for index in indices]
    return [(group, [one for one in group.members if one.parameter not in own]) for group in groups]


def _first_ties(couplings: Couplings) -> dict[Member, str]:
    """The node at which each parameter dimension first met another one."""
    atoms = couplings.analysis.atoms
    owner = np.full(atoms.total, -1, dtype=np.int64)
    for number, axis in enumerate(atoms.axes):
        owner[axis.start : axis.start + axis.count] = number
    first = np.full(len(atoms.axes) + 1, FREE, dtype=np.int64)  # the last entry collects atoms without owner
    for left, right, site in atoms.ties:
        for side in (left, right):
            owners = owner[side.numpy()]
            first[owners] = np.minimum(first[owners], site)
    found: dict[Member, str] = {}
    for number, axis in enumerate(atoms.axes):
        if first[number] != FREE:
            found.setdefault(Member(axis.name, axis.dim), atoms.sites[first[number]].node)
    return found
