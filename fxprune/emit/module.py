"""Program -> a trainable torch module: real parameters, masks as parametrisations, one graph for each mode."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from fxprune.copying import copied
from fxprune.errors import ExportError
from fxprune.facts import WeightMasks
from fxprune.program import Program, first_names, materialise


class WeightMask(nn.Module):
    """Parametrisation that multiplies a weight by a 0/1 mask of its shape, so that no optimiser can revive a masked
    weight.
    """

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight * self.mask


class CompiledModule(fx.GraphModule):
    """A compiled network. Where the user's network runs different graphs in training and inference, train() and
    eval() choose.
    """

    def hold(self, train_graph: fx.Graph | None) -> None:
        """Keep a second graph for training, and what it needs; None: one graph serves both modes."""
        self._graphs = {False: self.graph, True: self.graph if train_graph is None else train_graph}

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        wanted = self._graphs[mode]
        if wanted is not self.graph:
            self.graph = wanted
        return self

    def recompile(self) -> Any:
        """A network that owns a masked weight itself has become a subclass of itself; fx would give that one a second
        wrapper around calls, which would call itself for ever.
        """
        code = super().recompile()
        kind = type(self)
        if any("_wrapped_call" in vars(base) for base in kind.__mro__[1:]):
            for name in {"__call__", "_wrapped_call"}.intersection(vars(kind)):
                delattr(kind, name)
        return code

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickling a graph module keeps one graph; a network that needs two would come back as another one."""
        if self._graphs[True] is not self._graphs[False]:
            raise ExportError(
                "this network runs different graphs in train and eval mode and cannot be pickled: save its "
                "state_dict() and compile the same network with the same options to load it into"
            )
        return super().__reduce__()

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModule:
        twin: CompiledModule = type(self).__new__(type(self))
        memo[id(self)] = twin
        nn.Module.__init__(twin)
        state = {name: value for name, value in vars(self).items() if name not in ("_graph", "_graphs")}
        twin.__dict__.update(copied(state, memo))
        evaluate = copied(self._graphs[False])
        train = evaluate if self._graphs[True] is self._graphs[False] else copied(self._graphs[True])
        twin.__dict__["_graphs"] = {False: evaluate, True: train}
        twin.graph = twin._graphs[self.graph is self._graphs[True]]
        return twin


def build_module(program: Program, *, bake: bool = False, share: bool = False) -> CompiledModule:
    """The network of a program with its own copies of all numbers, in train mode, names as in the user's model.

    bake    multiply masks into the weights instead of parametrising them (for export)
    share   use the program's numbers themselves: training the network changes them
    """
    masks = program.facts[WeightMasks].masks if WeightMasks in program.facts else {}
    tensors = program.tensors if share else {name: own(tensor) for name, tensor in program.tensors.items()}
    compiled = materialise(program.module, tensors, CompiledModule)
    compiled.hold(None if program.train_graph is None else copied(program.train_graph))
    for weight, mask in with_tied_names(program, masks).items():
        _apply_mask(compiled, weight, mask, bake)
    return compiled.eval() if bake else compiled.train()


def with_tied_names(program: Program, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Masks by every name of their weights: a tied weight is masked wherever it is used."""
    if not masks:
        return {}
    further = {name: masks[first] for name, first in first_names(program).items() if first in masks}
    return {**masks, **further}


def own(tensor: Tensor) -> Tensor:
    """A contiguous copy, so that training the result leaves the user's model alone."""
    copied = tensor.detach().clone(memory_format=torch.contiguous_format)
    return nn.Parameter(copied, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


def _apply_mask(module: nn.Module, weight: str, mask: Tensor, bake: bool) -> None:
    path, _, leaf = weight.rpartition(".")
    owner = module.get_submodule(path)
    with torch.no_grad():
        getattr(owner, leaf).mul_(mask)
    if not bake:
        parametrize.register_parametrization(owner, leaf, WeightMask(mask.clone()), unsafe=True)


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """State of a compiled module under the user's own names: effective weights, and each mask as `<weight>_mask`.

    Parametrisations that are the user's own stay as they are.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        path, found, rest = f".{name}".partition(".parametrizations.")  # the network itself may own weights
        leaf, _, part = rest.partition(".")
        owner = module.get_submodule(path.removeprefix(".")) if found else module
        if not found or not isinstance(owner.parametrizations[leaf][0], WeightMask):  # type: ignore[index]
            state[name] = tensor
            continue
        plain = f"{path}.{leaf}".removeprefix(".")
        if part == "original":
            state[plain] = getattr(owner, leaf).detach()
        else:
            state[f"{plain}_mask"] = tensor
    return state
