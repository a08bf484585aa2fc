"""Check of a rewrite: structure on the meta device, then numbers in float64; freeze and retry where it was not exact.

The claim: the cut network computes what the dense network computes when every consumer's columns of the removed
channels are set to zero. Both are run on random numbers with perturbed normalisation statistics. Calls that average
over channels cannot be exact; the reference lets them see the surviving channels only, and the report calls those
groups approximate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch.utils import _pytree as pytree

from fxprune.channels.engine import Seen, WalkError
from fxprune.channels.groups import Couplings
from fxprune.channels.layers import Labels
from fxprune.channels.recheck import analyse_again, disagreement
from fxprune.channels.rewrite import Rewritten, rewrite
from fxprune.channels.solve import Ints
from fxprune.errors import ProofError, RewriteError, described
from fxprune.phases import phase
from fxprune.program import Program
from fxprune.proof import Verdict, prove


def check(dense: Program, couplings: Couplings, result: Rewritten, *, numbers: bool = True, seed: int = 0) -> Verdict:
    """Structure first (the engine run again: shapes at every node, then couplings), then numbers. Changes nothing."""
    try:
        again = analyse_again(couplings, result)
    except WalkError as error:
        verdict = _shapes(couplings, result, error.seen)  # an earlier node may be the one at fault
        return verdict if not verdict else Verdict(fault=str(error), node=error.place)
    verdict = _shapes(couplings, result, again.seen)
    if verdict:
        verdict = Verdict(fault=disagreement(couplings, result, again))
    if verdict and numbers:
        verdict = _proved(dense, couplings, result, seed)
    return replace(verdict, analysis=again)


def _proved(dense: Program, couplings: Couplings, result: Rewritten, seed: int) -> Verdict:
    try:
        with phase("proof"):
            return prove(dense, couplings, result, seed)
    except Exception as error:  # a network that does not run on numbers proves nothing
        return Verdict(fault=f"the proof could not be run: {described(error)}")


def _shapes(couplings: Couplings, result: Rewritten, found: Mapping[tuple[str, str], Seen]) -> Verdict:
    """Every tensor of the cut network has the shape that its labels demand."""
    for place, seen in found.items():
        dense = couplings.analysis.seen.get(place)
        if dense is None:
            return Verdict(fault=f"{place[1]} is not a node of the dense network")
        before, after = _labels(dense.value), _labels(seen.value)
        if len(before) != len(after):
            return Verdict(fault=f"{place[1]} gives {len(after)} tensors instead of {len(before)}", node=place)
        for was, now in zip(before, after, strict=True):
            wanted = result.cut.shape(was)
            if now.shape != wanted:
                fault = f"{place[1]} has shape {now.shape} where the labels say {wanted}"
                return Verdict(fault=fault, node=place)
    return Verdict()


def _labels(value: Any) -> list[Labels]:
    if isinstance(value, Labels):
        return [value]
    leaves = pytree.tree_leaves(value, is_leaf=lambda one: isinstance(one, Labels))
    return [leaf for leaf in leaves if isinstance(leaf, Labels)]


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
        if not kept:
            raise ProofError(
                f"the check fails even with no channel removed, so it can tell nothing: {verdict.fault}. "
                "proof=False (--no-proof) leaves the comparison out"
            )
        if not retry:
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
        return None, Verdict(fault=str(error), node=error.place)
    return result, check(program, couplings, result, numbers=numbers, seed=seed)


def _touching(couplings: Couplings, kept: Mapping[int, Ints], verdict: Verdict) -> list[int]:
    """Groups under decision whose channels pass through the node at fault, when it is known."""
    if verdict.node is None:
        return []
    mode, name = verdict.node
    analysis = couplings.analysis
    labels = _labels(analysis.seen[mode, name].value)
    for source in analysis.inputs_of.get(verdict.node, ()):
        labels += _labels(analysis.seen[mode, source].value)
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
