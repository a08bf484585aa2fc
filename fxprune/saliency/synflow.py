"""SynFlow: iterative synaptic flow, without data (Tanaka, Kunin, Yamins, Ganguli, NeurIPS 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from fxprune.errors import OptionError
from fxprune.program import Program
from fxprune.saliency.selection import masks_without_lowest
from fxprune.saliency.trial import ScoresOnce, same_draws, trial_network, weights_of


@dataclass(frozen=True)
class Synflow:
    """score = (dR/dw) * w, R the sum of outputs for an all-ones input and absolute parameters.

    sparsity     that the mask will have; iteration k of n leaves (1 - sparsity)^(k/n) of the weights
    iterations   n; one alone collapses layers

    In float64, since products of sums over many layers leave the range of float32, and in inference mode, so that batch
    normalisations are a positive factor. Running statistics are left as they are; biases take part in R and are not
    scored. Scores of masked weights are 0, and masks are applied before each iteration. Activations that saturate are
    replaced, see `_Unsaturated`.
    """

    sparsity: float
    iterations: int = 100
    seed: int = 0
    name: ClassVar[str] = "synflow"
    _found: ScoresOnce = field(default_factory=ScoresOnce, repr=False)

    def scores(self, program: Program, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        found = self._found.get(program, lambda: self._work(program, names))
        return ((name, found[name]) for name in names)

    def _work(self, program: Program, names: Sequence[str]) -> dict[str, Tensor]:
        network = trial_network(program, training=False, dtype=torch.float64)
        inputs = _ones(program)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.abs_()
        weights = weights_of(network, names)
        total = sum(weight.numel() for weight in weights.values())
        found = self._flow(network, weights, inputs)
        for step in range(1, self.iterations if self.sparsity else 1):
            kept = (1 - self.sparsity) ** (step / self.iterations)
            masks = masks_without_lowest(found.items, total - round(kept * total))
            with torch.no_grad():
                for name, mask in masks.items():
                    weights[name].mul_(mask)
            found = self._flow(network, weights, inputs)
        return found

    def _flow(
        self, network: nn.Module, weights: dict[str, nn.Parameter], inputs: tuple[tuple[Any, ...], dict[str, Any]]
    ) -> dict[str, Tensor]:
        with same_draws(self.seed), _Unsaturated():
            outputs = pytree.tree_leaves(network(*inputs[0], **inputs[1]))
            total = sum(one.sum() for one in outputs if isinstance(one, Tensor) and one.requires_grad)
            slopes = torch.autograd.grad(total, list(weights.values()), allow_unused=True)  # type: ignore[arg-type]
        found = {}
        for (name, weight), slope in zip(weights.items(), slopes, strict=True):
            found[name] = torch.zeros_like(weight.data) if slope is None else slope * weight.detach()
            if not math.isfinite(found[name].sum().item()):  # of numbers that are not negative
                raise OptionError(f"SynFlow's scores of {name} overflow even in float64: choose another criterion")
        return found


class _Unsaturated(TorchFunctionMode):
    """Runs activations that saturate without their upper end, be they modules, functions, methods or ATen calls.

    Sums of absolute weights lie far beyond it: there is no slope left there, and every score in front would be 0.
    Where one layer's activation feeds the next, the identity (or ReLU) keeps what flows equal from layer to layer.
    Sigmoids multiply feature maps (squeeze-and-excitation): as the identity each of them would square the magnitude and
    double the scores in front of it, which after a few blocks overflows or starves the last layers. A logarithm keeps
    their slope positive and their growth small; close to 0 it is about the sigmoid.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "").partition(".")[0].rstrip("_")
        if name not in _STAND_INS:
            return func(*args, **(kwargs or {}))
        return _STAND_INS[name](*args, **(kwargs or {}))


def _identity(input: Tensor, **_: Any) -> Tensor:
    return input.clone()  # what follows may write into it


def _slow_gate(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return functional.softplus(input).log1p()


def _rectified(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return input.relu()


def _above(input: Tensor, min_val: float = -1.0, *_: Any, **__: Any) -> Tensor:
    return input.clamp(min=min_val)


_STAND_INS: dict[str, Callable[..., Tensor]] = {
    **dict.fromkeys(("sigmoid", "hardsigmoid", "expit", "special_expit"), _slow_gate),
    **dict.fromkeys(("tanh", "softsign", "logsigmoid", "log_sigmoid"), _identity),
    "relu6": _rectified,
    "hardtanh": _above,
}


def _ones(program: Program) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of ones, one example where the batch may be chosen; whole numbers (indices) are zeros."""
    fixed = program.front_end != "fx"  # an exported graph may hold its batch size

    def like(one: Any) -> Any:
        if not isinstance(one, Tensor):
            return one
        shape = one.shape if fixed or not one.ndim else (1, *one.shape[1:])
        if not one.is_floating_point():
            return torch.zeros(shape, dtype=one.dtype)
        return torch.ones(shape, dtype=torch.float64)

    return pytree.tree_map(like, program.inputs.args), pytree.tree_map(like, dict(program.inputs.kwargs))
