"""Apply a decision mechanically: slice every tensor by its surviving labels, patch every number that a width hides
in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from fxprune.channels import literal_places, literal_sizes  # noqa: F401  (imported for the owners they register)
from fxprune.channels.cut import Cut
from fxprune.channels.groups import Couplings
from fxprune.channels.layers import Labels, varying
from fxprune.channels.leaves import follow_shapes
from fxprune.channels.literals import Patcher
from fxprune.channels.records import Claim
from fxprune.channels.solve import Ints
from fxprune.copying import copied
from fxprune.program import Program, meta_like, named_tensors


@dataclass(frozen=True, eq=False)
class Rewritten:
    """The smaller program, and which entries of every parameter and buffer survived.

    kept            name -> dimension -> surviving indices, for everything that lost channels
    kept_per_group  name -> dimension -> surviving indices of each conv group (conv groups x kept), for weights of
                    grouped convolutions whose conv groups lost different positions
    """

    program: Program
    cut: Cut
    kept: Mapping[str, Mapping[int, Ints]]
    kept_per_group: Mapping[str, Mapping[int, Ints]]
    renumbered: Mapping[str, Tensor]  # constant index tensors with their new values
    patched: tuple[str, ...]  # nodes that held a width in the source


def rewrite(program: Program, couplings: Couplings, kept: Mapping[int, Ints]) -> Rewritten:
    """Cut every group down to the channels at positions `kept[index]`; groups not mentioned keep all.

    Raises RewriteError when a number in the graph cannot be computed for the new widths.
    """
    cut = Cut(couplings.kept_atoms(kept), couplings.analysis.parameter_labels)
    skeleton = named_tensors(program.module)
    labels_of = _labels_by_name(skeleton, couplings)
    tensors = _slice_all(program, skeleton, labels_of, cut)
    module, train_graph = _copy_graphs(program, skeleton, tensors)
    claims = couplings.analysis.claims
    renumbered = _renumbered(claims, cut, tensors)
    tensors.update(renumbered)
    patched: list[str] = []
    for mode, graph in (("eval", module.graph), ("train", train_graph)):
        if graph is None:
            continue
        patcher = Patcher(module, mode, cut, couplings.analysis.seen, _by_node(claims, mode))
        patcher.run(graph)
        patched += patcher.patched
    for leaf in module.modules():
        follow_shapes(leaf)
    result = replace(program, module=module, tensors=tensors, train_graph=train_graph, facts={})
    return Rewritten(result, cut, *_record(labels_of, cut), renumbered, tuple(dict.fromkeys(patched)))


def _by_node(claims: tuple[Claim, ...], mode: str) -> dict[str, list[Claim]]:
    found: dict[str, list[Claim]] = defaultdict(list)
    for claim in claims:
        if claim.mode == mode:
            found[claim.node].append(claim)
    return found


def _slice_all(
    program: Program, skeleton: Mapping[str, Tensor], labels_of: Mapping[str, Labels], cut: Cut
) -> dict[str, Tensor]:
    """Every tensor of the program after the cut; tied names keep sharing one object."""
    tensors: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    for name, empty in skeleton.items():
        known = first.setdefault(id(empty), name)
        if known != name:
            tensors[name] = tensors[known]
            continue
        labels = labels_of.get(name)
        tensor = program.tensors[name]
        tensors[name] = tensor if labels is None else cut.slice(labels, tensor)
    return tensors


def _labels_by_name(skeleton: Mapping[str, Tensor], couplings: Couplings) -> dict[str, Labels]:
    """Labels of every name of a tensor; the analysis knows a tied tensor by its first name."""
    known = couplings.analysis.parameter_labels
    by_id: dict[int, Labels] = {}
    found = {}
    for name, empty in skeleton.items():
        if name in known:
            by_id[id(empty)] = known[name]
        if id(empty) in by_id:
            found[name] = by_id[id(empty)]
    return found


def _copy_graphs(
    program: Program, skeleton: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> tuple[fx.GraphModule, fx.Graph | None]:
    """The graph module over a skeleton of the new shapes. Only structure is copied."""
    memo: dict[int, Any] = {}
    for name, empty in skeleton.items():
        memo.setdefault(id(empty), meta_like(empty, tensors[name].shape))
    return copied(program.module, memo), copied(program.train_graph)


def _renumbered(claims: tuple[Claim, ...], cut: Cut, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Constant index tensors point at positions among the survivors."""
    found = {}
    for claim in claims:
        if claim.kind == "index" and claim.detail not in found:
            rank = torch.cumsum(cut.mask(claim.layer).to(torch.int64), 0) - 1
            old = tensors[claim.detail]
            found[claim.detail] = rank[old.long() % len(rank)].to(old.dtype)
    return found


def _record(labels_of: Mapping[str, Labels], cut: Cut) -> tuple[dict[str, dict[int, Ints]], dict[str, dict[int, Ints]]]:
    kept, per_group = {}, {}
    for name, labels in labels_of.items():
        positions = cut.kept_positions(labels)
        if positions:
            kept[name] = positions
        columns = cut.kept_columns(labels)
        if columns is not None:
            per_group[name] = {1: columns[_first_rows(labels, cut)]}
    return kept, per_group


def _first_rows(labels: Labels, cut: Cut) -> Ints:
    """Among the surviving rows of a grouped weight, the first of each conv group."""
    joint = next(layer for layer in labels.layers if varying(layer) >= {0, 1})
    first_atom = joint.reshape(joint.shape[0], -1)[:, 0][cut.kept_rows(labels)]
    starts = torch.ones(len(first_atom), dtype=torch.bool)
    starts[1:] = first_atom[1:] != first_atom[:-1]
    found: Ints = starts.nonzero().reshape(-1).numpy()
    return found
