"""The numerical proof: dense and cut network in float64, on random numbers, output against output."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from fxprune.channels.engine import Analysis
from fxprune.channels.groups import Couplings
from fxprune.channels.rewrite import Rewritten
from fxprune.compare import difference, random_inputs
from fxprune.metarun import bind_inputs
from fxprune.program import Inputs, Program, first_names
from fxprune.reference import NumberRunner, Reference, Watcher

TOLERANCE = 1e-9  # max|a - b| / max|a| in float64
FAINT = 1e-6  # a signal below this could hide a fault from the tolerance
_DRAWS = 3
_ROUNDING = 100.0  # a deep network rounds at every layer, the nudge at the input is felt once
_ILL_CONDITIONED = 1e-5  # never allowed more than this


@dataclass(frozen=True)
class Verdict:
    """Outcome of one check.

    error   largest relative difference found
    signal  how far apart the outputs for two different images are, relative to their size: the proof sees faults of
            that size at most
    fault   what is wrong, if anything
    """

    error: float = 0.0
    fault: str = ""
    signal: float = 1.0
    node: tuple[str, str] | None = None  # (mode, node) where the structure went wrong, if known
    analysis: Analysis | None = field(default=None, repr=False)  # the engine's answers about the cut network

    def __bool__(self) -> bool:
        return not self.fault


def prove(dense: Program, couplings: Couplings, result: Rewritten, seed: int) -> Verdict:
    """Compare all outputs; drawn again where the numbers happen to leave outputs that hardly depend on the input."""
    verdict = Verdict()
    for attempt in range(_DRAWS):
        noise = _Noise(dense, couplings, result, seed + attempt, amplify=attempt % 2 == 0)
        verdict = _compare(dense, couplings, result, noise, seed + attempt)
        if not verdict or verdict.signal > FAINT:
            break
    return verdict


def _compare(dense: Program, couplings: Couplings, result: Rewritten, noise: _Noise, seed: int) -> Verdict:
    """Run both networks in float64 on the same random numbers."""
    inputs = random_inputs(dense.inputs, seed, torch.float64)
    worst, signal = 0.0, 1.0
    for mode, graph in dense.graphs():
        reference_mode = Reference(mode, couplings, result.cut)
        expected = _run(dense, graph, inputs, noise.dense, reference_mode, noise.calibrate)
        small_graph = dict(result.program.graphs())[mode]
        found = _run(result.program, small_graph, inputs, noise.small, Watcher(), _keep)
        missed = reference_mode.missed()
        if missed:
            return Verdict(fault=f"{missed} was not called as analysed, so nothing can be proved about it")
        error = difference(expected, found)
        worst, signal = max(worst, error), min(signal, _signal(expected))
        if error <= TOLERANCE:
            continue
        nudged = _run(dense, graph, _nudged(inputs), noise.dense, Reference(mode, couplings, result.cut), _keep)
        allowed = min(max(TOLERANCE, _ROUNDING * difference(expected, nudged)), _ILL_CONDITIONED)
        if not error <= allowed:
            fault = f"outputs of the {mode} graph differ by {error:.1e} (at most {allowed:.0e} is allowed)"
            return Verdict(error, fault, signal)
    return Verdict(worst, signal=signal)


def _nudged(inputs: Inputs) -> Inputs:
    """The inputs with last bits changed at random: how far the outputs move is what rounding alone can do."""
    generator = torch.Generator().manual_seed(0)

    def nudge(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor * (1 + 2**-52 * torch.randint(-1, 2, tensor.shape, generator=generator))

    args, kwargs = pytree.tree_map_only(Tensor, nudge, (inputs.args, dict(inputs.kwargs)))
    return Inputs(args, kwargs)


def _signal(outputs: Any) -> float:
    """Largest relative difference between the first two examples of a batch; 1 where there are no two to compare."""
    found = [
        difference(one[0], one[1])
        for one in pytree.tree_leaves(outputs)
        if isinstance(one, Tensor) and one.ndim and one.shape[0] == 2 and one.numel()
    ]
    return max(found, default=1.0)


class _Noise:
    """Numbers for the proof: the weights in float64; vectors (biases, affine parameters, statistics) and zeros
    perturbed.

    A fresh BatchNorm has mean 0, variance 1 and bias 0, under which many faults cancel; a head of zeros hides all of
    them. The noise is drawn once for the dense network and cut for the small one, so that the small one's own
    numbers are what is tested. A weight that loses most of its inputs is scaled up in both, so that the signal does
    not drown in the biases after a few layers.
    """

    def __init__(self, dense: Program, couplings: Couplings, result: Rewritten, seed: int, *, amplify: bool) -> None:
        self.amplify = amplify
        self.tensors, self.result = dense.tensors, result
        self.labels_of = couplings.analysis.parameter_labels
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.drawn: dict[str, Tensor] = {}
        self.shift: dict[str, Tensor] = {}
        self.first = first_names(dense)

    def dense(self, name: str) -> Tensor:
        tensor, known = self.tensors[name], self.first.get(name, name)
        if known in self.shift:
            return tensor.detach().double() + self.shift[known]
        return self._perturbed(name, tensor, self._factor(known, tensor))

    def small(self, name: str) -> Tensor:
        """The small network's own number, with the dense one's noise. Runs after `dense` has drawn it."""
        known, tensor = self.first.get(name, name), self.result.program.tensors[name]
        if known in self.shift:
            return tensor.detach().double() + self._cut(known, self.shift[known])
        factor = self.drawn.get(known)
        return self._perturbed(name, tensor, None if factor is None else self._cut(known, factor))

    def _cut(self, name: str, value: Tensor) -> Tensor:
        return self.result.cut.slice(self.labels_of[name], value) if name in self.labels_of else value

    def calibrate(self, mean: str, var: str, tensor: Tensor) -> None:
        """Move running statistics to those of the dense network's own activations, more or less.

        Otherwise the signal fades away, or overflows, in a network that was never trained.
        """
        others = [dim for dim in range(tensor.ndim) if dim != 1]
        found_var, found_mean = torch.var_mean(tensor, others, correction=0)
        draw = torch.rand(2, len(found_mean), generator=self.generator, dtype=torch.float64)
        found_var = found_var * (0.5 + draw[0]) + 0.1 * found_var.mean() + 1e-12
        found_mean = found_mean + 0.2 * found_var.sqrt() * (draw[1] - 0.5)
        for name, found in ((mean, found_mean), (var, found_var)):
            name = self.first.get(name, name)
            if name not in self.shift:  # a shared norm keeps what its first input gave
                self.shift[name] = found - self.tensors[name].detach().double()

    def _factor(self, name: str, tensor: Tensor) -> Tensor | None:
        vector = sum(size > 1 for size in tensor.shape) <= 1
        if not tensor.is_floating_point() or not (vector or not bool(tensor.any())):
            return None
        if name not in self.drawn:
            self.drawn[name] = torch.rand(tensor.shape, generator=self.generator, dtype=torch.float64)
        return self.drawn[name]

    def _perturbed(self, name: str, tensor: Tensor, factor: Tensor | None) -> Tensor:
        if not tensor.is_floating_point():
            return tensor.detach().clone()  # a traced BatchNorm counts its batches, in place
        exact = tensor.detach().to(torch.float64, copy=True)
        if factor is None:
            return exact * self._gain(name)
        return exact * (0.5 + factor) if name.endswith("var") else exact + 0.4 * (factor - 0.5)

    def _gain(self, name: str) -> float:
        """Square root of inputs before / inputs now."""
        labels = self.labels_of.get(self.first.get(name, name))
        if not self.amplify or labels is None or labels.ndim < 2:
            return 1.0
        small = self.result.cut.shape(labels)
        return math.sqrt(math.prod(labels.shape[1:]) / max(1, math.prod(small[1:])))


def _run(
    program: Program,
    graph: fx.Graph,
    inputs: Inputs,
    number: Callable[[str], Tensor],
    mode: Watcher,
    calibrate: Callable[[str, str, Tensor], None],
) -> Any:
    """The outputs of one graph in eval mode, through the calls that the analysis saw on the meta device."""
    runner = NumberRunner(program, graph, number, mode, calibrate)
    values = bind_inputs(graph, inputs)
    program.module.eval()
    with torch.random.fork_rng(devices=[]), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), mode:
        return runner.run(*values)


def _keep(mean: str, var: str, tensor: Tensor) -> None:
    """Statistics are what an earlier run has made of them."""
