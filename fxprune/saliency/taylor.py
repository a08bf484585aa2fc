"""Taylor: what the loss loses when a feature map goes, to first order (Molchanov et al., ICLR 2017)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, fx

from fxprune.channels.engine import Seen
from fxprune.channels.groups import Couplings
from fxprune.channels.layers import Labels
from fxprune.channels.scores import Scores
from fxprune.emit.module import CompiledModule
from fxprune.errors import OptionError
from fxprune.program import Program
from fxprune.saliency.channels import Part, cuttable, gathered
from fxprune.saliency.trial import Data, needed, same_draws, trial_network
from fxprune.sites import readings

ABSOLUTE = ("example", "batch", "element")
SCALINGS = ("l2", "max", "none")


@dataclass(frozen=True)
class Taylor:
    """score = |z * dL/dz| of the feature map behind the normalisation, put together in one of three ways.

    absolute   where the absolute value is taken: "example" after the mean over space, then the mean over examples (the
               paper); "batch" after the mean over space and batch; "element" at once. They rank differently
    scaling    of each layer's scores before layers are compared: "l2" by their norm (the paper), "max", "none"
    reduction  over coupled layers, see `gathered`
    batches    how many are averaged

    Needs data. Training mode.
    """

    data: Data | None
    seed: int = 0
    absolute: str = "example"
    scaling: str = "l2"
    reduction: str = "sum"
    batches: int = 1
    name: ClassVar[str] = "taylor"

    def scores(self, program: Program, couplings: Couplings) -> Scores:
        for value, known in ((self.absolute, ABSOLUTE), (self.scaling, SCALINGS)):
            if value not in known:
                raise OptionError(f"taylor has no {value!r}: choose {', '.join(known)}")
        data = needed(self.data, self.name)
        mode = "eval" if program.train_graph is None else "train"
        nodes = {place[1] for place in _places(program, couplings) if place[0] == mode}
        labels = {node: _labels(couplings, mode, node) for node in sorted(nodes)}
        found: dict[str, Scores] = {}
        network = trial_network(program, training=True)
        assert isinstance(network, CompiledModule)
        for number, (inputs, expected) in enumerate(data.take(self.batches, self.name)):
            with same_draws(self.seed + number):
                watcher = _Maps(network, nodes)
                data.loss_of(watcher.run(*inputs), expected).backward()
            for node in labels:
                if watcher.maps[node].grad is None:
                    raise OptionError(
                        f"the loss does not reach the feature map at {node}: give a loss of all that the network "
                        "returns with the data, or leave its layer out with ignore"
                    )
                ours = self._score(watcher.maps[node], labels[node])
                found[node] = found[node] + ours if node in found else ours
        return gathered(couplings, self._parts(couplings, found, labels), self.reduction)

    def _score(self, value: Tensor, labels: Labels) -> Scores:
        """One number a label of the map's channel layer."""
        assert value.grad is not None
        product = (value * value.grad).detach().double()
        if self.absolute == "element":
            product = product.abs()
        [layer] = labels.layers
        keep = {dim for dim, size in enumerate(layer.shape) if size > 1}
        space = [dim for dim in range(1, product.ndim) if dim not in keep]
        product = product.mean(space, keepdim=True) if space else product
        if self.absolute == "example":
            product = product.abs()
        product = product.mean(0, keepdim=True) if 0 not in keep else product
        found: Scores = product.abs().reshape(-1).numpy()
        return found

    def _parts(self, couplings: Couplings, found: dict[str, Scores], labels: dict[str, Labels]) -> Iterator[Part]:
        for node, scores in found.items():
            [layer] = labels[node].layers
            norm = {"l2": np.linalg.norm(scores), "max": scores.max(), "none": 1.0}[self.scaling]
            yield couplings.components.root[layer.reshape(-1).numpy()], scores / norm if norm else scores


def _places(program: Program, couplings: Couplings) -> Iterator[tuple[str, str]]:
    return (one.place for one in readings(couplings, cuttable(program, couplings)))


def _labels(couplings: Couplings, mode: str, node: str) -> Labels:
    """Labels of a node's result. Raises OptionError where it is not one tensor with one layer of channels."""
    seen = couplings.analysis.seen.get((mode, node), Seen(None)).value
    if not isinstance(seen, Labels) or len(seen.layers) != 1:
        raise OptionError(f"taylor cannot read the feature map at {node}: leave its layer out with --ignore")
    return seen


class _Maps(fx.Interpreter):
    """Runs a graph with numbers and keeps chosen results, whose gradients come with the backward pass."""

    def __init__(self, network: CompiledModule, nodes: set[str]) -> None:
        super().__init__(network)
        self.nodes = nodes
        self.maps: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in self.nodes:
            result = result.clone()  # what follows may write into it
            result.retain_grad()
            self.maps[n.name] = result
        return result
