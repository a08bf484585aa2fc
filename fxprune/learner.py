"""StructureLearner: learn during ordinary training how many channels each layer deserves, then cut once.

After "channel redistribution": Algorithm 2, with equations 5 to 10. The training loop stays the user's own.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.capture.module import capture
from fxprune.channels.first_walk import first_walk
from fxprune.channels.groups import ChannelGroup, Couplings
from fxprune.channels.scores import feasible, strongest
from fxprune.compiled import Compiled, finished
from fxprune.errors import NothingPrunableError, OptionError
from fxprune.facts import Ranking, WidthPlan
from fxprune.manager import PassManager
from fxprune.metarun import plain_mode
from fxprune.momentum import cut_optimizer
from fxprune.options import Options
from fxprune.pass_lists import cutting_passes, finding_passes
from fxprune.program import Program, named_tensors
from fxprune.scope import SCOPES, groups_in
from fxprune.sites import Site, find_sites
from fxprune.structure import MODES, change, redistribute, whole_widths
from fxprune.wording import counted

CONVERGED = 0.01  # Algorithm 2: the widths move by at most this share
_FORMAT = 1


@dataclass(frozen=True)
class Epoch:
    """One redistribution: the widths it led to, and how far they moved."""

    widths: tuple[float, ...]
    change: float


class StructureLearner:
    """Keeps book of channel saliency while a network trains, and cuts it to the widths that it learned.

        learner = StructureLearner(model, example_inputs, keep_rate=0.5)
        ...
            loss.backward()
            learner.update()                # each step, before the gradients are cleared
            optimizer.step()
        learner.redistribute()              # each epoch, until learner.converged
        done = learner.finish(optimizer)    # done.module is the compact network, done.report says what went

    model           the network that is trained; it is read and never changed
    example_inputs  as for `fxprune.compile`
    keep_rate       kept / original channels over all learned groups (`p` of the paper), in (0, 1]
    scope           "paper": groups that one convolution makes, which leaves out residual streams; "all": every group
                    that can lose channels, saliency summed over the layers that make it
    fraction        part of every budget that is handed out anew each epoch (`s`)
    decay           of the running saliency (`eps` of equation 7)
    mode            "conserve" or "literal", see `fxprune.structure.redistribute`
    max_epochs      redistributions after which `converged` holds in any case, with a warning
    only, ignore    shell patterns of module names, as for `compile`

    Groups whose parameters are frozen (requires_grad is False) keep their widths; `left_out` lists them. Works with
    gradient accumulation (call `update` once a step), with a GradScaler (before or after unscaling: only ratios within
    a layer count; steps whose gradients overflowed are skipped), with a torch.compile'd copy of the model (build the
    learner on the model itself) and under torch.distributed, where saliencies are summed over the ranks.

    Raises OptionError, CaptureError, and NothingPrunableError when the scope is empty.
    """

    def __init__(
        self, model: nn.Module, example_inputs: Any = None, keep_rate: float = 0.5, *, scope: str = "paper",
        fraction: float = 0.5, decay: float = 0.98, mode: str = "conserve", max_epochs: int = 20, seed: int = 0,
        only: Sequence[str] | None = None, ignore: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        _check(keep_rate, scope, fraction, decay, mode, max_epochs)
        self.options = Options(
            keep_rate=keep_rate, keep_weights=True, init="keep", approximate="freeze", seed=seed, only=only,
            ignore=ignore,
        )  # fmt: skip
        self.model, self.scope, self.fraction, self.decay = model, scope, fraction, decay
        self.mode, self.max_epochs = mode, max_epochs
        with plain_mode():
            manager = PassManager(finding_passes(self.options), (), {})
            self._program = manager.run(capture(model, example_inputs, trial=first_walk(self.options.inexact)))
        self._couplings = self._program.fact(Couplings)
        found = tuple(groups_in(self._program, scope))
        self.groups, self.left_out = _with_gradients(self._couplings, found, dict(model.named_parameters()))
        if not self.groups:
            frozen = "; the others are frozen (requires_grad is False)" if self.left_out else ""
            raise NothingPrunableError(
                f"no group of channels lies in scope {scope!r} of this network{frozen}; scope='all' takes residual "
                "streams too"
            )
        self._sites = find_sites(self._couplings, self.groups)
        self.limits = [group.width for group in self.groups]
        self.keep_rate = keep_rate
        self.widths = [keep_rate * limit for limit in self.limits]
        self.history: list[Epoch] = []
        self.updates = 0
        self._saliency = _Saliency(self._sites, self.limits, decay)

    @property
    def saliency(self) -> list[Tensor]:
        """Running saliency of each group's channels (`f`, equation 7), in the order of `groups`."""
        return list(self._saliency.running.split(self.limits))

    @property
    def converged(self) -> bool:
        """The last redistribution moved the widths by 1 % or less, or `max_epochs` is reached."""
        if not self.history:
            return False
        return self.history[-1].change <= CONVERGED or len(self.history) >= self.max_epochs

    def update(self) -> bool:
        """Take in the gradients of one step (equations 5 to 7). Call after backward, before they are cleared or
        clipped to zero.

        Returns False when they hold infinities or NaN, as they do when a GradScaler's scale was too large: such a step
        leaves the book as it was. Raises OptionError where a parameter has no gradient.
        """
        taken = self._saliency.take(dict(self.model.named_parameters()))
        self.updates += taken
        return taken

    def redistribute(self) -> float:
        """Move budgets to where saliency lies (equations 8 to 10). Call at the end of an epoch.

        Returns by how much the widths moved, relative to their sum.
        """
        if not self.updates:
            raise OptionError("nothing has been learned yet: call update() after each backward pass")
        significance = [_significance(one, width) for one, width in zip(self.saliency, self.widths, strict=True)]
        total = sum(significance)
        shares = [one / total if total else 1 / len(significance) for one in significance]
        before, self.widths = self.widths, redistribute(self.widths, shares, self.limits, self.fraction, self.mode)
        moved = change(before, self.widths)
        self.history.append(Epoch(tuple(self.widths), moved))
        if len(self.history) == self.max_epochs and moved > CONVERGED:
            warnings.warn(
                f"the widths still move by {moved:.1%} after {counted(self.max_epochs, 'epoch')}", stacklevel=2
            )
        return moved

    def final_widths(self) -> list[int]:
        """Whole numbers of channels for the widths as they are now; a group under a row constraint keeps full rows."""
        found = whole_widths(self.widths, self.limits, round(self.keep_rate * sum(self.limits)))
        rows = [group.row_count for group in self.groups]
        return [max(row, round(width / row) * row) for width, row in zip(found, rows, strict=True)]

    def finish(self, optimizer: torch.optim.Optimizer | None = None, *, proof: bool = True) -> Compiled:
        """The compact network: the channels with the largest saliency stay, with their weights and statistics.

        optimizer  its parameters are replaced by those of the compact network, its momentum is cut along
        proof      compare with the full network, removed channels zeroed

        The model is left as it is; training goes on with the result's `module`.
        """
        if not self.updates:
            warnings.warn("nothing has been learned: no backward pass was followed by update()", stacklevel=2)
        with plain_mode():
            program = self._current_program()
            manager = PassManager(cutting_passes(replace(self.options, proof=proof)), (), {})
            small = manager.run(program)
        asked = asdict(self.options) | {"scope": self.scope, "mode": self.mode, "epochs": len(self.history)}
        told = f"{counted(len(self.history), 'epoch')} of {counted(self.updates, 'step')} in all"
        notes: tuple[str, ...] = (f"widths were learned in {told}",)
        if self.left_out:
            names = ", ".join(group.producers[0].removesuffix(".weight") for group in self.left_out[:3])
            notes += (f"frozen weights keep their widths ({counted(len(self.left_out), 'group')}: {names})",)
        done = finished(program, small, asked, manager.seconds, notes)
        if optimizer is not None:
            cut_optimizer(optimizer, self.model, done.module, done.recipe)
        return done

    def _current_program(self) -> Program:
        """The dense program with the numbers that the model has now and the learned plan."""
        now = named_tensors(self.model)
        tensors = {name: now.get(name, tensor) for name, tensor in self._program.tensors.items()}
        scores = np.zeros(self._couplings.analysis.atoms.total)
        kept = {}
        for group, saliency, width in zip(self.groups, self.saliency, self.final_widths(), strict=True):
            scores[group.roots] = saliency.double().cpu().numpy()
            kept[group.index] = strongest(group, width, scores[group.roots])
        plan = WidthPlan(feasible(self._couplings, kept, scores))
        return replace(self._program, tensors=tensors).with_facts(plan, Ranking(trained=True, drawn=False))

    def state_dict(self) -> dict[str, Any]:
        """Everything that was learned, for a checkpoint; plain data and one tensor."""
        return {
            "format": _FORMAT,
            "groups": [list(group.producers) for group in self.groups],
            "limits": list(self.limits),
            "widths": list(self.widths),
            "saliency": self._saliency.running.clone(),
            "history": [{"widths": list(one.widths), "change": one.change} for one in self.history],
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`. Raises OptionError when it is of another network or scope."""
        if state.get("format") != _FORMAT:
            raise OptionError(f"the learner's state has format {state.get('format')!r}; this version reads {_FORMAT}")
        if missing := sorted(self.state_dict().keys() - state.keys()):
            raise OptionError(f"the learner's state lacks {', '.join(missing)}: it is damaged or cut short")
        if state["groups"] != [list(group.producers) for group in self.groups] or state["limits"] != self.limits:
            raise OptionError("the learner's state belongs to another network, or to another scope of this one")
        self.widths = list(state["widths"])
        self.history = [Epoch(tuple(one["widths"]), one["change"]) for one in state["history"]]
        self.updates = state["updates"]
        self._saliency.running = state["saliency"].clone()


def _with_gradients(
    couplings: Couplings, groups: Sequence[ChannelGroup], parameters: Mapping[str, Tensor]
) -> tuple[tuple[ChannelGroup, ...], tuple[ChannelGroup, ...]]:
    """(groups whose saliency can be read, groups with a frozen parameter where it would be)."""
    owner = np.repeat(np.arange(len(groups) + 1), [*(group.width for group in groups), 1])
    frozen: set[int] = set()
    for site in find_sites(couplings, groups) if groups else ():
        if not parameters[site.parameter].requires_grad:
            frozen.update(owner[site.slots.numpy()].tolist())
    kept = tuple(group for number, group in enumerate(groups) if number not in frozen)
    return kept, tuple(group for number, group in enumerate(groups) if number in frozen)


class _Saliency:
    """Equations 5 to 7 for all groups at once. Slots number the channels of the groups one after the other."""

    def __init__(self, sites: Sequence[Site], limits: Sequence[int], decay: float) -> None:
        self.sites, self.decay = sites, decay
        self.size = sum(limits)
        self.group_of = torch.repeat_interleave(torch.arange(len(limits)), torch.tensor(limits))
        self.slots = torch.cat([site.slots for site in sites])
        self.groups = len(limits)
        self.running = torch.zeros(self.size)

    @torch.no_grad()
    def take(self, parameters: Mapping[str, Tensor]) -> bool:
        change = _over_ranks(self._first_order(parameters))
        if not bool(torch.isfinite(change).all()):
            return False
        theta = change.abs()
        largest = torch.zeros(self.groups, dtype=theta.dtype, device=theta.device)
        largest.scatter_reduce_(0, self.group_of, theta, "amax")
        scale = torch.where(largest > 0, largest, torch.ones_like(largest))  # a group that is dead scores zero
        self.running = self.decay * self.running.to(theta) + theta / scale[self.group_of]
        return True

    def _first_order(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """First-order change of the loss when each channel is zeroed, up to a factor that a group shares (eq. 5)."""
        parts = [_product(parameters[site.parameter], site) for site in self.sites]
        sums = torch.cat(parts)
        if self.slots.device != sums.device:
            self.slots, self.group_of = self.slots.to(sums.device), self.group_of.to(sums.device)
        change = torch.zeros(self.size + 1, dtype=sums.dtype, device=sums.device).index_add_(0, self.slots, sums)
        return change[: self.size]


def _product(parameter: Tensor, site: Site) -> Tensor:
    if parameter.grad is None:
        raise OptionError(f"{site.parameter} has no gradient: call update() after backward() and before zero_grad()")
    product = (parameter * parameter.grad).to(torch.promote_types(parameter.dtype, torch.float32))
    return (product.sum(site.dims) if site.dims else product).reshape(-1)


def _over_ranks(change: Tensor) -> Tensor:
    """Summed over the ranks, so that all take the same decision. A factor the ranks share falls out."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(change)
    return change


def _significance(saliency: Tensor, width: float) -> float:
    """Mean of the `width` largest entries (equation 8)."""
    count = min(len(saliency), max(1, round(width)))
    return float(saliency.double().topk(count).values.sum()) / count


def _check(keep_rate: object, scope: str, fraction: float, decay: float, mode: str, max_epochs: int) -> None:
    if isinstance(keep_rate, bool) or not isinstance(keep_rate, int | float):
        raise OptionError(f"keep_rate is one number for all groups, whose shares are learned, not {keep_rate!r}")
    if scope not in SCOPES:
        raise OptionError(f"unknown scope {scope!r}: choose {', '.join(SCOPES)}")
    if mode not in MODES:
        raise OptionError(f"unknown mode {mode!r}: choose {', '.join(MODES)}")
    for name, value in (("fraction", fraction), ("decay", decay)):
        if not (0 <= value <= 1) or math.isnan(value):
            raise OptionError(f"{name} lies between 0 and 1, not at {value}")
    if max_epochs < 1:
        raise OptionError(f"max_epochs is at least 1, not {max_epochs}")
