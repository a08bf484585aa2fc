"""Running a skeleton on real numbers: the cut network as it is, and the dense one as the reference that it must equal.

The reference is the dense network in which every consumer's columns of the removed channels are zero. Calls that
average over channels see the surviving channels only.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.capture.trace import own_training_leaf
from fxprune.channels.calls import plain_layout
from fxprune.channels.cut import Cut
from fxprune.channels.groups import Couplings
from fxprune.channels.layers import Labels
from fxprune.channels.literals import argument
from fxprune.channels.records import CallKey, Contraction, Normalisation
from fxprune.program import Program, named_tensors

_DROPOUTS = {
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
    torch.ops.aten.dropout.default,
}  # fmt: skip
_NAMES = ("running_mean", "running_var")
_STATISTICS = {F.batch_norm: (1, 2), torch.ops.aten.batch_norm.default: (3, 4)}  # positions in the call


class NumberRunner(fx.Interpreter):
    """Run a skeleton on numbers that are fetched when a node needs them and dropped after it.

    number     gives the number of a qualified name
    calibrate  hears of the input of each batch norm before its running statistics (two names) are fetched
    """

    def __init__(
        self,
        program: Program,
        graph: fx.Graph,
        number: Callable[[str], Tensor],
        watcher: Watcher,
        calibrate: Callable[[str, str, Tensor], None],
    ) -> None:
        super().__init__(program.module, graph=graph)
        self.number, self.watcher, self.calibrate = number, watcher, calibrate
        self.training_leaves = False  # run the user's own random regularisers as in training
        self.trainable = {name: one.requires_grad for name, one in named_tensors(program.module).items()}

    def run_node(self, n: fx.Node) -> Any:
        self.watcher.node = n.name
        if n.op == "call_function" and n.target in _DROPOUTS:
            return self.env[n.all_input_nodes[0]]  # random: nothing to compare
        if n.target in _STATISTICS:
            self._before_batch_norm(n, *_STATISTICS[n.target])
        return super().run_node(n)

    def _before_batch_norm(self, n: fx.Node, *positions: int) -> None:
        """A batch norm written as a function: its statistics are nodes of their own, fetched anew after calibration."""
        nodes = [argument(n, position, name) for position, name in zip(positions, _NAMES, strict=True)]
        if not all(isinstance(one, fx.Node) and one.op == "get_attr" for one in nodes):
            return
        names = [str(one.target) for one in nodes]
        self._calibrate(names[0], names[1], self.env[n.all_input_nodes[0]])
        for one, value in zip(nodes, self._fetch(names), strict=True):
            self.env[one] = value

    def _calibrate(self, mean: str, var: str, tensor: Tensor) -> None:
        self.watcher.paused = True
        self.calibrate(mean, var, tensor)
        self.watcher.paused = False

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target not in self.trainable:  # a graph within the graph (what runs under autocast)
            return super().get_attr(target, args, kwargs)
        return self._fetch([str(target)])[0]

    def _fetch(self, names: list[str]) -> list[Tensor]:
        """Numbers are made outside the network's own arithmetic.

        They require gradients where the skeleton's do: PyTorch issues other products for such weights.
        """
        self.watcher.paused = True
        try:
            return [self.number(name).requires_grad_(self.trainable[name]) for name in names]
        finally:
            self.watcher.paused = False

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        leaf = self.fetch_attr(str(target))
        if isinstance(leaf, _BatchNorm) and leaf.running_mean is not None:
            self._calibrate(f"{target}.running_mean", f"{target}.running_var", args[0])
        names = list(named_tensors(leaf))
        numbers = dict(zip(names, self._fetch([f"{target}.{name}" for name in names]), strict=True))
        leaf.training = self.training_leaves and own_training_leaf(leaf)
        try:
            return torch.func.functional_call(leaf, numbers, args, kwargs)
        finally:
            leaf.training = False


class Watcher(TorchDispatchMode):
    """Keeps everything in float64, whatever the network casts to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.node = ""
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.paused:
            return func(*args, **(kwargs or {}))
        kwargs = dict(kwargs or {})
        wanted = kwargs.get("dtype")
        if wanted is not None and wanted.is_floating_point:
            kwargs["dtype"] = torch.float64
        result = plain_layout(func, self.execute(func, args, kwargs))
        return _settled(func, args, result) if torch.Tag.nondeterministic_seeded in func.tags else result

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return func(*args, **kwargs)


def _settled(func: Any, args: tuple[Any, ...], result: Any) -> Any:
    """Random numbers are no property of a network: dropout passes everything, a draw of floats is 0.5 throughout."""
    if func._schema.name == "aten::native_dropout":
        return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
    return result.fill_(0.5) if isinstance(result, Tensor) and result.is_floating_point() else result


class Reference(Watcher):
    """The dense network with consumers' columns of removed channels zeroed, and statistics over surviving channels
    only.
    """

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
        return self.cut.shape(one.tensor) != one.tensor.shape

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
        places = [index for index, value in enumerate(args) if isinstance(value, Tensor)]
        few = list(args)
        few[places[0]] = self._gather(args[places[0]], one.tensor, 0)
        if one.first is not None:
            for index in places[1:]:
                few[index] = self._gather(args[index], one.tensor, one.first)
        result = func(*_resized(func, few), **kwargs)
        if isinstance(dense, Tensor):
            return self._scatter(dense, result, one.outputs[0])
        pairs = zip(dense, result, (*one.outputs, *[None] * (len(dense) - len(one.outputs))), strict=True)
        return tuple(self._scatter(old, new, labels) for old, new, labels in pairs)

    def _gather(self, tensor: Tensor, labels: Labels, first: int) -> Tensor:
        """What survives of a tensor whose dimension 0 lies along dimension `first` of the labelled one."""
        for dim in range(tensor.ndim):
            tensor = tensor.index_select(dim, self.cut.kept_along(labels, first + dim).nonzero().reshape(-1))
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
