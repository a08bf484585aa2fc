"""SoftFilterPruning: filters that are zeroed after every epoch and may grow back, until they are cut for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.capture.module import capture
from fxprune.channels.first_walk import first_walk
from fxprune.channels.groups import Couplings
from fxprune.channels.solve import Ints
from fxprune.errors import OptionError
from fxprune.facts import WidthPlan
from fxprune.manager import PassManager
from fxprune.metarun import plain_mode
from fxprune.options import Options
from fxprune.pass_lists import deciding_passes, finding_passes
from fxprune.program import Program, named_tensors
from fxprune.saliency.channels import Slices, output_slices

_SELECT = ("l2", "l1", "fpgm")  # what ranks filters by their own weights, which compile() ranks alike in the end


class SoftFilterPruning:
    """Zero the smallest filters after each epoch (He, Kang, Dong, Fu, Yang, IJCAI 2018).

        pruning = SoftFilterPruning(model, example_inputs, keep_rate=0.5)
        for epoch in range(epochs):
            ...                                 # train as ever; zeroed filters get gradients and may grow back
            pruning.step()
        small = fxprune.compile(model, example_inputs, method="sfp", keep_rate=0.5)

    In a layer of N filters F_i the N - ceil(keep_rate * N) of smallest ||F_i||_2 become 0. Where layers have to agree,
    as those that are added together do, a channel is zeroed in all of them or in none, by the mean of squared norms:
    what `compile` with the same options cuts is what the last step has zeroed. Biases and normalisations are left
    alone, as in the paper: a filter whose output is 0 gets a gradient where the shift behind it lets a ReLU pass.

    model           the network that is trained; `step` changes its weights in place
    example_inputs  as for `fxprune.compile`
    keep_rate       fraction of channels that stay, or {pattern of module names: fraction}
    select          what says which filters are small: "l2" (the paper), "l1", or "fpgm" (He et al., CVPR 2019); give
                    compile(method="l1" or "fpgm") in the end
    only, ignore    shell patterns of module names to take part or stay out

    Raises OptionError, CaptureError, NothingPrunableError.
    """

    def __init__(
        self, model: nn.Module, example_inputs: Any = None, keep_rate: float | Mapping[str, float] = 0.5, *,
        select: str = "l2", only: Sequence[str] | None = None, ignore: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        if select not in _SELECT:
            raise OptionError(f"unknown select {select!r}: choose {', '.join(_SELECT)}")
        self.options = Options(
            keep_rate=keep_rate, select=select, keep_weights=True, init="keep", only=only, ignore=ignore
        )
        self.model = model
        with plain_mode():
            manager = PassManager(finding_passes(self.options), (), {})
            self._program = manager.run(capture(model, example_inputs, trial=first_walk(self.options.inexact)))

    @torch.no_grad()
    def step(self) -> dict[str, int]:
        """Zero what is smallest now. Call after each epoch. Returns weight -> filters that were zeroed."""
        couplings = self._program.fact(Couplings)
        with plain_mode():
            removed = self._removed(couplings)
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        counts = {}
        for one in output_slices(couplings):
            gone = removed[one.roots]
            if gone.any():
                counts[one.parameter] = int(gone.sum())
                _zero(parameters, one, gone)
        return counts

    def _removed(self, couplings: Couplings) -> Ints:
        """True at the roots of channels that the weights, as they are now, would lose."""
        program: Program = replace(self._program, tensors={**self._program.tensors, **named_tensors(self.model)})
        planned = PassManager(deciding_passes(self.options, None), (), {}).run(program).fact(WidthPlan)
        removed = np.zeros(couplings.analysis.atoms.total, dtype=bool)
        for index, kept in planned.kept.items():
            group = couplings.groups[index]
            removed[np.delete(group.roots, kept)] = True
        return removed


def _zero(parameters: Mapping[str, Tensor], one: Slices, gone: Ints) -> None:
    weight = parameters[one.parameter]
    shape = [size if dim in one.dims else 1 for dim, size in enumerate(weight.shape)]
    weight.masked_fill_(torch.from_numpy(gone).reshape(shape).to(weight.device), 0)
