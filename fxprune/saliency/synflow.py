"""SynFlow: iterative synaptic flow, without data (Tanaka, Kunin, Yamins, Ganguli, NeurIPS 2020)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from fxprune.emit.module import CompiledModule
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
    scored. Scores of masked weights are 0, and masks are applied before each iteration. ReLU6 is taken for ReLU: sums
    of absolute weights lie far above 6, where it has no slope and every score in front of it would be 0.
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
        network = _unclipped(trial_network(program, training=False, dtype=torch.float64))
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
        with same_draws(self.seed):
            outputs = pytree.tree_leaves(network(*inputs[0], **inputs[1]))
            total = sum(one.sum() for one in outputs if isinstance(one, Tensor) and one.requires_grad)
            slopes = torch.autograd.grad(total, list(weights.values()), allow_unused=True)  # type: ignore[arg-type]
        found = {}
        for (name, weight), slope in zip(weights.items(), slopes, strict=True):
            found[name] = torch.zeros_like(weight.data) if slope is None else slope * weight.detach()
            if not math.isfinite(found[name].sum().item()):  # of numbers that are not negative
                raise OptionError(f"SynFlow's scores of {name} overflow even in float64: choose another criterion")
        return found


def _unclipped(network: nn.Module) -> nn.Module:
    """The network, without an upper end to its activations."""
    assert isinstance(network, CompiledModule)
    for module in network.modules():
        if isinstance(module, nn.Hardtanh):  # ReLU6 is one
            module.max_val = math.inf
    for node in network.graph.nodes:
        if node.target is functional.relu6:
            node.target = functional.relu
    network.recompile()
    return network


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
