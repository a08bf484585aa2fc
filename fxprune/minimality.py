"""Are all ties needed? A proof of exactness cannot see a rule that ties too much: cutting in step is never wrong.

So each tie is left out in turn, the rest is solved again, and channels are cut that only the weaker solution sets free.
Where the numbers still agree, nothing needed the tie. Meant for small networks, in tests and tools.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fxprune.channels.groups import ChannelGroup, Couplings, couple
from fxprune.channels.rewrite import rewrite
from fxprune.channels.scores import strongest
from fxprune.channels.solve import FREE, Ints
from fxprune.errors import RewriteError
from fxprune.program import Program
from fxprune.proof import prove

DRAWS = 3  # plans that must pass before a tie counts as unneeded: one alone may pass by luck


def unneeded_ties(program: Program, couplings: Couplings, seed: int = 0) -> list[str]:
    """One line for each tie that can be left out without harm: its site, and how many pairs of channels it ties.

    couplings   of `program`, as `couple(analyse(program))` gives them
    seed        of the channels that are cut

    Ties of one node that say the same (in both modes, say) are left out together. A tie that others imply is passed
    over; two unneeded ties that imply each other therefore go unseen.
    """
    found = []
    for (site, _), positions in _alike(couplings).items():
        reduced = _without(couplings, positions)
        if _equal(reduced, couplings):
            continue
        plans = list(_forbidden_plans(couplings, reduced, np.random.default_rng(seed)))
        if plans and all(_passes(program, reduced, plan, seed + draw) for draw, plan in enumerate(plans)):
            pairs = couplings.analysis.atoms.ties[positions[0]][0].numel()
            found.append(f"{site} ({pairs} pairs)")
    return found


def _alike(couplings: Couplings) -> Mapping[tuple[str, bytes], list[int]]:
    """Positions of ties that say the same thing at the same node."""
    found: dict[tuple[str, bytes], list[int]] = defaultdict(list)
    atoms = couplings.analysis.atoms
    for position, (left, right, site) in enumerate(atoms.ties):
        found[str(atoms.sites[site]), _content(left, right)].append(position)
    return found


def _content(left: Tensor, right: Tensor) -> bytes:
    return left.numpy().tobytes() + b"|" + right.numpy().tobytes()


def _without(couplings: Couplings, positions: list[int]) -> Couplings:
    """The solution when these ties had never been recorded."""
    analysis = couplings.analysis
    dropped = set(positions)
    ties = [tie for position, tie in enumerate(analysis.atoms.ties) if position not in dropped]
    return couple(replace(analysis, atoms=replace(analysis.atoms, ties=ties)))


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
