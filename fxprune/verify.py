"""Proof that a rewrite was exact: structure on the meta device, then numbers in float64.

The claim: the cut network computes what the dense network computes when every consumer's columns of the removed channels are set to
zero. Both are run on random numbers with perturbed normalisation statistics. Calls that average over channels cannot be exact;
the reference lets them see the surviving channels only, and the report calls those groups approximate.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.channels.context import CallKey, Contraction, Normalisation
from fxprune.channels.cut import Cut
from fxprune.channels.engine import bind_inputs, plain_layout
from fxprune.channels.groups import Couplings
from fxprune.channels.layers import Labels
from fxprune.channels.recheck import disagreement
from fxprune.channels.rewrite import Rewritten, rewrite
from fxprune.channels.solve import Ints
from fxprune.errors import ProofError, RewriteError
from fxprune.program import Inputs, Program, first_names, named_tensors

TOLERANCE = 1e-9  # max|a - b| / max|a| in float64
_FAINT = 1e-6  # a signal below this could hide a fault from the tolerance
_DRAWS = 3
_DROPOUTS = {
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
    torch.ops.aten.dropout.default,
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """Outcome of one check.

    error   largest relative difference found
    signal  how far apart the outputs for two different images are, relative to their size: the proof sees faults of that size at most
    fault   what is wrong, if anything
    """

    error: float = 0.0
    fault: str = ""
    signal: float = 1.0
    node: tuple[str, str] | None = None  # (mode, node) where the structure went wrong, if known

    def __bool__(self) -> bool:
        return not self.fault


def check(dense: Program, couplings: Couplings, result: Rewritten, *, numbers: bool = True, seed: int = 0) -> Verdict:
    """Structure first (shapes at every node, the engine run again), then numbers. Nothing is changed."""
    verdict = _shapes(couplings, result)
    if verdict:
        verdict = Verdict(fault=disagreement(couplings, result))
    if not verdict or not numbers:
        return verdict
    return _numbers(dense, couplings, result, seed)


# -- structure ------------------------------------------------------------------------------------------------------


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


# -- numbers --------------------------------------------------------------------------------------------------------


def _numbers(dense: Program, couplings: Couplings, result: Rewritten, seed: int) -> Verdict:
    """Compare all outputs; drawn again where the numbers happen to leave outputs that hardly depend on the input."""
    verdict = Verdict()
    for attempt in range(_DRAWS):
        verdict = _compare(dense, couplings, result, seed + attempt)
        if not verdict or verdict.signal > _FAINT:
            break
    return verdict


def _compare(dense: Program, couplings: Couplings, result: Rewritten, seed: int) -> Verdict:
    """Run both networks in float64 on the same random numbers."""
    noise = _Noise(dense, couplings, result, seed)
    inputs = random_inputs(dense, seed)
    worst, signal = 0.0, 1.0
    for mode, graph in dense.graphs():
        reference_mode = _Reference(mode, couplings, result.cut)
        expected = _run(dense, graph, inputs, noise.dense, reference_mode)
        small_graph = dict(result.program.graphs())[mode]
        found = _run(result.program, small_graph, inputs, noise.small, _Watcher())
        missed = reference_mode.missed()
        if missed:
            return Verdict(fault=f"{missed} was not called as analysed, so nothing can be proved about it")
        error = difference(expected, found)
        worst, signal = max(worst, error), min(signal, _signal(expected))
        if not error <= TOLERANCE:
            fault = f"outputs of the {mode} graph differ by {error:.1e} (at most {TOLERANCE:.0e} is allowed)"
            return Verdict(error, fault, signal)
    return Verdict(worst, signal=signal)


def _signal(outputs: Any) -> float:
    """Largest relative difference between the first two examples of a batch; 1 where there are no two to compare."""
    found = [
        ((one[0] - one[1]).abs().max() / one.abs().max().clamp_min(1e-300)).item()
        for one in pytree.tree_leaves(outputs)
        if isinstance(one, Tensor) and one.ndim and one.shape[0] == 2 and one.numel()
    ]
    return max(found, default=1.0)


def difference(expected: Any, found: Any) -> float:
    """max|a - b| / max|a| over all tensors of two equal structures; infinite when shapes differ, NaN where not finite."""
    worst = 0.0
    for a, b in zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True):
        if not isinstance(a, Tensor) or a.numel() == 0:
            continue
        if a.shape != b.shape:
            return float("inf")
        a, b = a.double(), b.double()
        scale = a.abs().max().item()
        gap = (a - b).abs().max().item()
        error = gap / scale if scale else gap
        if error != error:
            return float("nan")
        worst = max(worst, error)
    return worst


def random_inputs(program: Program, seed: int) -> Inputs:
    """Random numbers in place of the example's floating-point tensors; a batch of more than two is cut to two if it can."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            return torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor

    args, kwargs = pytree.tree_map_only(Tensor, draw, (program.inputs.args, dict(program.inputs.kwargs)))
    return Inputs(args, kwargs)


class _Noise:
    """Numbers for the proof: the weights in float64; vectors (biases, affine parameters, statistics) and zeros perturbed.

    A fresh BatchNorm has mean 0, variance 1 and bias 0, under which many faults cancel; a head of zeros hides all of them. The noise
    is drawn once for the dense network and cut for the small one, so that the small one's own numbers are what is tested. A weight
    that loses most of its inputs is scaled up in both, so that the signal does not drown in the biases after a few layers.
    """

    def __init__(self, dense: Program, couplings: Couplings, result: Rewritten, seed: int) -> None:
        self.tensors, self.result = dense.tensors, result
        self.labels_of = couplings.analysis.parameter_labels
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.drawn: dict[str, Tensor] = {}
        self.first = first_names(dense)

    def dense(self, name: str) -> Tensor:
        tensor = self.tensors[name]
        return self._perturbed(name, tensor, self._factor(self.first.get(name, name), tensor))

    def small(self, name: str) -> Tensor:
        """The small network's own number, with the dense one's noise. Runs after `dense` has drawn it."""
        known = self.first.get(name, name)
        factor = self.drawn.get(known)
        if factor is not None and known in self.labels_of:
            factor = self.result.cut.slice(self.labels_of[known], factor)
        return self._perturbed(name, self.result.program.tensors[name], factor)

    def _factor(self, name: str, tensor: Tensor) -> Tensor | None:
        vector = sum(size > 1 for size in tensor.shape) <= 1
        if not tensor.is_floating_point() or not (vector or not bool(tensor.any())):
            return None
        if name not in self.drawn:
            self.drawn[name] = torch.rand(tensor.shape, generator=self.generator, dtype=torch.float64)
        return self.drawn[name]

    def _perturbed(self, name: str, tensor: Tensor, factor: Tensor | None) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        exact = tensor.detach().double()
        if factor is None:
            return exact * self._gain(name)
        return exact * (0.5 + factor) if name.endswith("var") else exact + 0.4 * (factor - 0.5)

    def _gain(self, name: str) -> float:
        """Square root of inputs before / inputs now."""
        labels = self.labels_of.get(self.first.get(name, name))
        if labels is None or labels.ndim < 2:
            return 1.0
        small = self.result.cut.shape(labels)
        return math.sqrt(math.prod(labels.shape[1:]) / max(1, math.prod(small[1:])))


def _run(program: Program, graph: fx.Graph, inputs: Inputs, number: Callable[[str], Tensor], mode: _Watcher) -> Any:
    runner = NumberRunner(program, graph, number, mode)
    values = bind_inputs(graph, inputs.args, inputs.kwargs)
    program.module.eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), mode:  # the calls that the analysis saw on the meta device
        return runner.run(*values)


class NumberRunner(fx.Interpreter):
    """Run a skeleton on numbers that are fetched when a node needs them and dropped after it."""

    def __init__(self, program: Program, graph: fx.Graph, number: Callable[[str], Tensor], watcher: _Watcher) -> None:
        super().__init__(program.module, graph=graph)
        self.number, self.watcher = number, watcher

    def run_node(self, n: fx.Node) -> Any:
        self.watcher.node = n.name
        if n.op == "call_function" and n.target in _DROPOUTS:
            return self.env[n.all_input_nodes[0]]  # random: nothing to compare
        return super().run_node(n)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._fetch([str(target)])[0]

    def _fetch(self, names: list[str]) -> list[Tensor]:
        """Numbers are made outside the network's own arithmetic."""
        self.watcher.paused = True
        try:
            return [self.number(name) for name in names]
        finally:
            self.watcher.paused = False

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        leaf = self.fetch_attr(str(target))
        names = list(named_tensors(leaf))
        numbers = dict(zip(names, self._fetch([f"{target}.{name}" for name in names]), strict=True))
        return torch.func.functional_call(leaf, numbers, args, kwargs)


class _Watcher(TorchDispatchMode):
    """Keeps everything in float64, whatever the network casts to."""

    def __init__(self) -> None:
        super().__init__()
        self.node = ""
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.paused:
            return func(*args, **(kwargs or {}))
        kwargs = dict(kwargs or {})
        wanted = kwargs.get("dtype")
        if wanted is not None and wanted.is_floating_point:
            kwargs["dtype"] = torch.float64
        return plain_layout(func, self.execute(func, args, kwargs))

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)


class _Reference(_Watcher):
    """The dense network with consumers' columns of removed channels zeroed, and statistics over surviving channels only."""

    def __init__(self, mode: str, couplings: Couplings, cut: Cut) -> None:
        super().__init__()
        self.mode, self.cut = mode, cut
        self.counts: Counter[tuple[str, str]] = Counter()
        self.contractions: dict[CallKey, list[Contraction]] = defaultdict(list)
        for contraction in couplings.analysis.contractions:
            if contraction.key.mode == mode and not bool(cut.mask(contraction.layer).all()):
                self.contractions[contraction.key].append(contraction)
        self.normalisations = {
            one.key: one for one in couplings.analysis.normalisations if one.key.mode == mode and self._loses(one)
        }
        self.met: set[CallKey] = set()

    def _loses(self, one: Normalisation) -> bool:
        first = one.inputs[0]
        return first is not None and self.cut.shape(first) != first.shape

    def missed(self) -> str:
        """The first call of the analysis that has not come by."""
        lacking = [key for key in (*self.contractions, *self.normalisations) if key not in self.met]
        return f"{lacking[0].operator} at {lacking[0].node}" if lacking else ""

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        operator = str(func).removesuffix(".default")
        key = CallKey(self.mode, self.node, operator, self.counts[self.node, operator])
        self.counts[self.node, operator] += 1
        self.met.add(key)
        if key in self.contractions:
            args = self._zeroed(args, self.contractions[key])
        result = func(*args, **kwargs)
        if key in self.normalisations:
            return self._normalised(func, args, kwargs, result, self.normalisations[key])
        return result

    def _zeroed(self, args: tuple[Any, ...], contractions: list[Contraction]) -> tuple[Any, ...]:
        values = list(args)
        for contraction in contractions:
            operand = values[contraction.operand]
            values[contraction.operand] = operand * self.cut.mask(contraction.layer).to(operand.dtype)
        return tuple(values)

    def _normalised(self, func: Any, args: Any, kwargs: Any, dense: Any, one: Normalisation) -> Any:
        """Compute the statistic on surviving entries and put the result in their places."""
        remaining = iter(one.inputs)
        few = [self._gather(value, next(remaining)) if isinstance(value, Tensor) else value for value in args]
        result = func(*_resized(func, few), **kwargs)
        if isinstance(dense, Tensor):
            return self._scatter(dense, result, one.outputs[0])
        pairs = zip(dense, result, (*one.outputs, *[None] * (len(dense) - len(one.outputs))), strict=True)
        return tuple(self._scatter(old, new, labels) for old, new, labels in pairs)

    def _gather(self, tensor: Tensor, labels: Labels | None) -> Tensor:
        if labels is None:
            return tensor
        for dim in range(labels.ndim):
            tensor = tensor.index_select(dim, self.cut.kept_along(labels, dim).nonzero().reshape(-1))
        return tensor

    def _scatter(self, dense: Tensor, few: Tensor, labels: Labels | None) -> Tensor:
        if labels is None:
            return few
        places = [self.cut.kept_along(labels, dim).nonzero().reshape(-1) for dim in range(labels.ndim)]
        result = dense.clone()
        result[torch.meshgrid(*places, indexing="ij") if len(places) > 1 else tuple(places)] = few
        return result


def _resized(func: Any, args: list[Any]) -> list[Any]:
    """Sizes that some normalisations take as arguments follow their tensor."""
    name = func._schema.name
    if name in ("aten::native_layer_norm", "aten::_fused_rms_norm"):
        args[1] = list(args[0].shape[-len(args[1]) :])
    elif name == "aten::native_group_norm":
        args[3:6] = [args[0].shape[0], args[0].shape[1], args[0][0, 0].numel()]
    return args


# -- freeze and retry -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Proved:
    """A rewrite that passed, the verdict, and the groups that had to be left alone for it (index -> why)."""

    result: Rewritten
    kept: Mapping[int, Ints]
    verdict: Verdict
    refused: Mapping[int, str]


def rewrite_and_prove(
    program: Program, couplings: Couplings, kept: Mapping[int, Ints], *, numbers: bool = True, retry: bool = True, seed: int = 0
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


