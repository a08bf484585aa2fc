"""Are all ties needed? A proof of exactness cannot see a rule that ties too much: cutting in step is never wrong.

So each tie is left out in turn, the rest is solved again, and channels are cut that only the weaker solution sets free.
Where the numbers still agree, nothing needed the tie. Meant for small networks, in tests and tools.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fxprune.channels.groups import ChannelGroup, Couplings, couple
from fxprune.channels.rewrite import rewrite
from fxprune.channels.scores import strongest
from fxprune.channels.solve import FREE, Ints
from fxprune.errors import RewriteError
from fxprune.program import Program
from fxprune.proof import prove

Tie = tuple[Tensor, Tensor, int]  # left atoms, right atoms, site

DRAWS = 3  # plans that must pass before a tie counts as unneeded: one alone may pass by luck


def unneeded_ties(program: Program, couplings: Couplings, seed: int = 0) -> list[str]:
    """One line for each tie that can be left out without harm: its site, and how many pairs of channels it ties.

    couplings   of `program`, as `couple(analyse(program))` gives them
    seed        of the channels that are cut

    A tie is what a rule stated at one node about the channels of one group; where it stated the same again (in the
    other mode, say), both are left out together. A tie that others imply is passed over, so two unneeded ones that
    imply each other go unseen.
    """
    found = []
    ties = _by_group(couplings)
    for (site, _), positions in _alike(couplings, ties).items():
        reduced = _without(couplings, ties, positions)
        if _equal(reduced, couplings):
            continue
        plans = list(_forbidden_plans(couplings, reduced, np.random.default_rng(seed)))
        if plans and all(_passes(program, reduced, plan, seed + draw) for draw, plan in enumerate(plans)):
            found.append(f"{site} ({ties[positions[0]][0].numel()} pairs)")
    return found


def _by_group(couplings: Couplings) -> list[Tie]:
    """The ties, each cut into parts that lie in one group of the full solution."""
    found = []
    for left, right, site in couplings.analysis.atoms.ties:
        numbers = torch.from_numpy(couplings.group_of)[torch.maximum(left, right)]
        found += [(left[numbers == one], right[numbers == one], site) for one in numbers.unique()]
    return found


def _alike(couplings: Couplings, ties: list[Tie]) -> Mapping[tuple[str, bytes], list[int]]:
    """Positions of ties that say the same thing at the same node."""
    found: dict[tuple[str, bytes], list[int]] = defaultdict(list)
    for position, (left, right, site) in enumerate(ties):
        content = left.numpy().tobytes() + right.numpy().tobytes()
        found[str(couplings.analysis.atoms.sites[site]), content].append(position)
    return found


def _without(couplings: Couplings, ties: list[Tie], positions: list[int]) -> Couplings:
    """The solution when these ties had never been recorded."""
    analysis = couplings.analysis
    dropped = set(positions)
    rest = [tie for position, tie in enumerate(ties) if position not in dropped]
    return couple(replace(analysis, atoms=replace(analysis.atoms, ties=rest)))


def _equal(reduced: Couplings, full: Couplings) -> bool:
    same = np.array_equal(reduced.components.root, full.components.root)
    return same and np.array_equal(_frozen(reduced), _frozen(full))


def _frozen(couplings: Couplings) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = couplings.components.stuck[couplings.components.root] != FREE
    return found


def _forbidden_plans(full: Couplings, reduced: Couplings, draw: np.random.Generator) -> Iterator[dict[int, Ints]]:
    """Random halves of what the dropped tie held together, none of which the full solution would allow."""
    loose = [group for group in reduced.groups if group.frozen is None and _is_looser(group, full, reduced)]
    for _ in range(DRAWS):
        plan = {group.index: strongest(group, group.width // 2, draw.random(group.width)) for group in loose}
        plan = {index: kept for index, kept in plan.items() if len(kept) < reduced.groups[index].width}
        if plan and not _allowed(full, reduced.kept_atoms(plan)):
            yield plan


def _is_looser(group: ChannelGroup, full: Couplings, reduced: Couplings) -> bool:
    """Does any channel of the group lie in a component that was larger, or frozen, with the tie?"""
    roots = full.components.root[group.roots]
    parts = np.bincount(full.components.root[np.unique(reduced.components.root)], minlength=len(full.components.root))
    return bool((parts[roots] > 1).any() or _frozen(full)[group.roots].any())


def _allowed(full: Couplings, alive: NDArray[np.bool_]) -> bool:
    """True when every component stays or goes as a whole, and no frozen one goes."""
    gone = np.zeros(len(alive), dtype=np.bool_)
    gone[full.components.root[~alive]] = True
    return not bool((gone[full.components.root] & (alive | _frozen(full))).any())


def _passes(program: Program, couplings: Couplings, plan: Mapping[int, Ints], seed: int) -> bool:
    """Numbers only: the engine, run again on the result, would always miss the tie that was left out."""
    try:
        return bool(prove(program, couplings, rewrite(program, couplings, plan), seed))
    except (RewriteError, RuntimeError, IndexError, ValueError):  # cannot be built or run: as wrong as other numbers
        return False
