"""The numerical proof: dense and cut network in float64, on random numbers, output against output."""

from __future__ import annotations

import math
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from fxprune.capture.trace import own_training_leaf
from fxprune.channels.engine import Analysis
from fxprune.channels.groups import Couplings
from fxprune.channels.rewrite import Rewritten
from fxprune.compare import difference, random_inputs
from fxprune.metarun import bind_inputs
from fxprune.program import Inputs, Program, first_names
from fxprune.reference import NumberRunner, Reference, Watcher

Calibrate = Callable[[str, str, Tensor], None]
TOLERANCE = 1e-9  # max|a - b| / max|a| in float64
FAINT = 1e-6  # a signal below this could hide a fault from the tolerance
_DRAWS = 6
_ROUNDING = 100.0  # sums are rounded too, more often than their terms are nudged
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
        noise = _Noise(dense, couplings, result, seed, attempt)
        verdict = _compare(dense, couplings, result, noise, seed + attempt)
        if not verdict or verdict.signal > FAINT:
            break
    return verdict


def _compare(dense: Program, couplings: Couplings, result: Rewritten, noise: _Noise, seed: int) -> Verdict:
    """Both networks in float64 on the same random numbers, each graph; the user's own random leaves in both modes."""
    inputs = random_inputs(dense.inputs, seed, torch.float64)
    pair = _Pair(dense, couplings, result, noise, inputs)
    own_leaves = any(own_training_leaf(module) for module in dense.module.modules())
    worst, signal = 0.0, 1.0
    for mode, _ in dense.graphs():
        for training_leaves in (False, True) if own_leaves else (False,):
            verdict = pair.compare(mode, training_leaves)
            if not verdict:
                return verdict
            worst, signal = max(verdict.error, worst), min(signal, verdict.signal)
    return Verdict(worst, signal=signal)


@dataclass(frozen=True)
class _Pair:
    """The dense network and the cut one, about to be run on the same inputs."""

    dense: Program
    couplings: Couplings
    result: Rewritten
    noise: _Noise
    inputs: Inputs

    def compare(self, mode: str, training_leaves: bool) -> Verdict:
        reference = Reference(mode, self.couplings, self.result.cut)
        expected = self._dense(mode, self.inputs, reference, self.noise.calibrate, training_leaves)
        graph = dict(self.result.program.graphs())[mode]
        found = _run(self.result.program, graph, self.inputs, self.noise.small, Watcher(), _keep, training_leaves)
        missed = "" if training_leaves else reference.missed()
        if missed:
            return Verdict(fault=f"{missed} was not called as analysed, so nothing can be proved about it")
        error, signal = difference(expected, found), _signal(expected)
        if not _any_finite(expected):
            return Verdict(math.nan, signal=0.0)  # nothing could be compared
        if error <= TOLERANCE:
            return Verdict(error, signal=signal)
        again = Reference(mode, self.couplings, self.result.cut)
        nudge = _Nudge()
        nudged = self._dense(
            mode, nudge.inputs(self.inputs), again, _keep, training_leaves, lambda name: nudge(self.noise.dense(name))
        )
        allowed = min(max(TOLERANCE, _ROUNDING * difference(expected, nudged)), _ILL_CONDITIONED)
        where = f"the {mode} graph" + (" with random layers in training" if training_leaves else "")
        fault = f"outputs of {where} differ by {error:.1e} (at most {allowed:.0e} is allowed)"
        return Verdict(error, "" if error <= allowed else fault, signal)

    def _dense(
        self,
        mode: str,
        inputs: Inputs,
        reference: Reference,
        calibrate: Calibrate,
        training: bool,
        number: Callable[[str], Tensor] | None = None,
    ) -> Any:
        graph = dict(self.dense.graphs())[mode]
        return _run(self.dense, graph, inputs, number or self.noise.dense, reference, calibrate, training)


class _Nudge:
    """Changes last bits at random, of the inputs and of every number of the network: how far the outputs move then is
    what rounding alone can do, at each layer.
    """

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(0)

    def __call__(self, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        draw = torch.randint(
            -1, 2, tensor.shape, generator=self.generator, dtype=tensor.dtype
        )  # not an integer's float32
        return tensor * (1 + torch.finfo(tensor.dtype).eps * draw)

    def inputs(self, inputs: Inputs) -> Inputs:
        args, kwargs = pytree.tree_map_only(Tensor, self, (inputs.args, dict(inputs.kwargs)))
        return Inputs(args, kwargs)


def _any_finite(outputs: Any) -> bool:
    found = [one for one in pytree.tree_leaves(outputs) if isinstance(one, Tensor)]
    return any(bool(one.isfinite().any()) for one in found)


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
    not drown in the biases after a few layers. Later attempts do without that, and turn some weights around: the only
    channel that a layer keeps may be negative for every input, and a ReLU behind it lets nothing through.
    """

    def __init__(self, dense: Program, couplings: Couplings, result: Rewritten, seed: int, attempt: int) -> None:
        self.attempt = attempt
        self.tensors, self.result = dense.tensors, result
        self.labels_of = couplings.analysis.parameter_labels
        self.generator = torch.Generator().manual_seed(seed + attempt + 1)
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
            return exact * self._gain(name) * self._sign(name)
        return exact * (0.5 + factor) if name.endswith("var") else exact + 0.4 * (factor - 0.5)

    def _gain(self, name: str) -> float:
        """Square root of inputs before / inputs now."""
        labels = self.labels_of.get(self.first.get(name, name))
        if self.attempt % 2 or labels is None or labels.ndim < 2:
            return 1.0
        small = self.result.cut.shape(labels)
        return math.sqrt(math.prod(labels.shape[1:]) / max(1, math.prod(small[1:])))

    def _sign(self, name: str) -> int:
        """1 in the first attempt, then 1 or -1 at random, the same for both networks."""
        known = f"{self.first.get(name, name)} {self.attempt}"
        return 1 if self.attempt == 0 else 1 - 2 * (zlib.crc32(known.encode()) & 1)


def _run(
    program: Program,
    graph: fx.Graph,
    inputs: Inputs,
    number: Callable[[str], Tensor],
    mode: Watcher,
    calibrate: Calibrate,
    training_leaves: bool,
) -> Any:
    """The outputs of one graph in eval mode, through the calls that the analysis saw on the meta device."""
    runner = NumberRunner(program, graph, number, mode, calibrate)
    runner.training_leaves = training_leaves
    values = pytree.tree_map_only(Tensor, torch.clone, bind_inputs(graph, inputs))  # a network may write into them
    program.module.eval()
    dice, usual = random.getstate(), torch.get_default_dtype()
    random.seed(0)
    torch.set_default_dtype(torch.float64)  # what a division of whole numbers gives
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), mode:
            return runner.run(*values)
    finally:
        torch.set_default_dtype(usual)
        random.setstate(dice)


def _keep(mean: str, var: str, tensor: Tensor) -> None:
    """Statistics are what an earlier run has made of them."""
