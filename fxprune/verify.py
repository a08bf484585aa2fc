"""Proof that a rewrite was exact: structure on the meta device, then numbers in float64; freeze and retry where it was not.

The claim: the cut network computes what the dense network computes when every consumer's columns of the removed
channels are set to zero. Both are run on random numbers with perturbed normalisation statistics. Calls that average
over channels cannot be exact; the reference lets them see the surviving channels only, and the report calls those
groups approximate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxprune.channels.cut import Cut
from fxprune.channels.engine import bind_inputs
from fxprune.channels.groups import Couplings
from fxprune.channels.layers import Labels
from fxprune.channels.recheck import disagreement
from fxprune.channels.rewrite import Rewritten, rewrite
from fxprune.channels.solve import Ints
from fxprune.errors import ProofError, RewriteError
from fxprune.program import Program
from fxprune.proof import Verdict, prove


def check(dense: Program, couplings: Couplings, result: Rewritten, *, numbers: bool = True, seed: int = 0) -> Verdict:
    """Structure first (shapes at every node, the engine run again), then numbers. Nothing is changed."""
    verdict = _shapes(couplings, result)
    if verdict:
        verdict = Verdict(fault=disagreement(couplings, result))
    if not verdict or not numbers:
        return verdict
    return prove(dense, couplings, result, seed)


def _shapes(couplings: Couplings, result: Rewritten) -> Verdict:
    """Every tensor of the cut network has the shape that its labels demand."""
    for mode, graph in result.program.graphs():
        walker = _ShapeWalker(result.program, graph, mode, couplings, result.cut)
        values = bind_inputs(graph, result.program.inputs.args, result.program.inputs.kwargs)
        values = pytree.tree_map_only(Tensor, lambda t: torch.empty_like(t, device="meta"), values)
        result.program.module.train(mode == "train")
        try:
            with torch.no_grad():
                walker.run(*values)
        except ProofError as error:
            return Verdict(fault=str(error), node=(mode, walker.at))
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            fault = f"the {mode} graph fails at {walker.at}: {type(error).__name__}: {first}"
            return Verdict(fault=fault, node=(mode, walker.at))
        finally:
            result.program.module.eval()
    return Verdict()


class _ShapeWalker(fx.Interpreter):
    def __init__(self, program: Program, graph: fx.Graph, mode: str, couplings: Couplings, cut: Cut) -> None:
        super().__init__(program.module, graph=graph)
        self.mode, self.couplings, self.cut, self.at = mode, couplings, cut, ""

    def run_node(self, n: fx.Node) -> Any:
        self.at = n.name
        result = super().run_node(n)
        seen = self.couplings.analysis.seen.get((self.mode, n.name))
        if seen is None:
            raise ProofError(f"{n.name} is not a node of the dense network")
        wanted = [leaf for leaf in _leaves(seen.value) if isinstance(leaf, Labels)]
        found = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        for labels, tensor in zip(wanted, found, strict=True):
            if tuple(tensor.shape) != self.cut.shape(labels):
                raise ProofError(
                    f"{n.name} has shape {tuple(tensor.shape)} where the labels say {self.cut.shape(labels)}"
                )
        return result


def _leaves(value: Any) -> list[Any]:
    return pytree.tree_leaves(value, is_leaf=lambda one: isinstance(one, Labels))


@dataclass(frozen=True)
class Proved:
    """A rewrite that passed, the verdict, and the groups that had to be left alone for it (index -> why)."""

    result: Rewritten
    kept: Mapping[int, Ints]
    verdict: Verdict
    refused: Mapping[int, str]


def rewrite_and_prove(
    program: Program,
    couplings: Couplings,
    kept: Mapping[int, Ints],
    *,
    numbers: bool = True,
    retry: bool = True,
    seed: int = 0,
) -> Proved:
    """Rewrite, check, and where the check fails find the group at fault by bisection, leave it alone and try again.

    numbers  also run both networks (else structure only)
    retry    False: raise ProofError at the first fault instead
    """
    kept = dict(kept)
    refused: dict[int, str] = {}
    while True:
        result, verdict = _attempt(program, couplings, kept, numbers, seed)
        if result is not None and verdict:
            return Proved(result, kept, verdict, refused)
        if not retry or not kept:
            raise ProofError(f"the rewritten network is not the dense one with channels zeroed: {verdict.fault}")
        culprits = _touching(couplings, kept, verdict)
        fault = verdict.fault
        if not culprits:
            culprit, fault = _bisect(program, couplings, kept, numbers, seed)
            culprits = [culprit]
        for culprit in culprits:
            refused[culprit] = fault
            del kept[culprit]


def _attempt(
    program: Program, couplings: Couplings, kept: Mapping[int, Ints], numbers: bool, seed: int
) -> tuple[Rewritten | None, Verdict]:
    try:
        result = rewrite(program, couplings, kept)
    except RewriteError as error:
        return None, Verdict(fault=str(error))
    return result, check(program, couplings, result, numbers=numbers, seed=seed)


def _touching(couplings: Couplings, kept: Mapping[int, Ints], verdict: Verdict) -> list[int]:
    """Groups under decision whose channels pass through the node at fault, when it is known."""
    if verdict.node is None:
        return []
    mode, name = verdict.node
    analysis = couplings.analysis
    labels = [leaf for leaf in _leaves(analysis.seen[mode, name].value) if isinstance(leaf, Labels)]
    for source in analysis.inputs_of.get(verdict.node, ()):
        labels += [leaf for leaf in _leaves(analysis.seen[mode, source].value) if isinstance(leaf, Labels)]
    atoms = [layer.reshape(-1).numpy() for one in labels for layer in one.layers]
    found = {int(index) for one in atoms for index in set(couplings.group_of[one].tolist())}
    return sorted(found & set(kept))


def _bisect(
    program: Program, couplings: Couplings, kept: Mapping[int, Ints], numbers: bool, seed: int
) -> tuple[int, str]:
    """The last group of the shortest failing run of groups, in the order of the network."""
    order = sorted(kept)
    good, bad = 0, len(order)
    fault = ""
    while bad - good > 1:
        middle = (good + bad) // 2
        _, verdict = _attempt(program, couplings, {index: kept[index] for index in order[:middle]}, numbers, seed)
        if verdict:
            good = middle
        else:
            bad, fault = middle, verdict.fault
    if not fault:
        _, verdict = _attempt(program, couplings, {index: kept[index] for index in order[:bad]}, numbers, seed)
        fault = verdict.fault
    return order[bad - 1], fault
