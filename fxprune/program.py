"""Program: what the compiler works on. A graph, its weights, the inputs it was captured with, and facts about it.

The graph's modules are a *skeleton*: all their parameters and buffers live on the meta device and carry shapes only.
The numbers are in `Program.tensors`, keyed by qualified name and shared with the user's model, never copied. Analysis
therefore cannot touch a real weight by accident, and copying a program costs what its graph costs.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.copying import Graphed, copied, graph_twin
from fxprune.errors import PassError

Fact = TypeVar("Fact")


@dataclass(frozen=True)
class Inputs:
    """The arguments of one forward call: any pytree of tensors and plain values."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def with_storage(self) -> Inputs:
        """The same with zeros in place of tensors that have a shape only."""

        def real(tensor: Tensor) -> Tensor:
            return torch.zeros(tensor.shape, dtype=tensor.dtype) if tensor.is_meta else tensor

        args, kwargs = pytree.tree_map_only(Tensor, real, (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs)

    @property
    def batch(self) -> int:
        """First dimension of the first input tensor."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs)))
        return max(1, next((one.shape[0] for one in leaves if isinstance(one, Tensor) and one.ndim), 1))

    def twice(self) -> Inputs:
        """Twice as many examples: tensors whose first dimension is the batch are repeated along it."""
        batch = self.batch

        def two(tensor: Tensor) -> Tensor:
            return torch.cat([tensor, tensor]) if tensor.ndim and tensor.shape[0] == batch else tensor

        args, kwargs = pytree.tree_map_only(Tensor, two, (self.args, dict(self.kwargs)))
        return Inputs(args, kwargs)


@dataclass(frozen=True)
class Program:
    """One network on its way through the passes.

    module      graph of the network in eval mode over the skeleton (parameters and buffers on the meta device)
    tensors     qualified name -> real tensor, for every parameter, buffer and constant; tied names share one object
    inputs      example inputs
    train_graph the graph in train mode where it differs from the one in eval mode, over the same skeleton
    front_end   "fx" or "export"
    notes       what capture had to decide, for the report
    folded      weights that hold what the network's own code computes from them
    dynamic_batch  whether the graphs work with any batch size, or with that of `inputs` only
    facts       what passes found out, one object a type; a rewrite drops them
    constants   names of tensors that the model's own state dict does not have
    """

    module: fx.GraphModule
    tensors: Mapping[str, Tensor]
    inputs: Inputs
    train_graph: fx.Graph | None = None
    front_end: str = "fx"
    notes: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()
    dynamic_batch: bool = True
    facts: Mapping[type, Any] = field(default_factory=dict)
    constants: tuple[str, ...] = ()

    def fact(self, kind: type[Fact]) -> Fact:
        """The fact of this type. Raises PassError when no pass has stated it (or a rewrite has dropped it)."""
        if kind not in self.facts:
            raise PassError(f"no {kind.__name__} is known here: run the pass that states it first")
        found: Fact = self.facts[kind]
        return found

    def with_facts(self, *facts: object) -> Program:
        """The same program knowing more."""
        return replace(self, facts={**self.facts, **{type(fact): fact for fact in facts}})

    def with_tensors(self, changed: Mapping[str, Tensor]) -> Program:
        """The same graph with other numbers. Shapes stay; names not mentioned keep their tensors."""
        return replace(self, tensors={**self.tensors, **changed})

    def graphs(self) -> Iterator[tuple[str, fx.Graph]]:
        """(mode, graph) for each graph the program keeps; "eval" comes first."""
        yield "eval", self.module.graph
        if self.train_graph is not None:
            yield "train", self.train_graph


def skeleton_of(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """Copy a module's structure with meta tensors in place of its numbers.

    Returns the copy and {qualified name: the model's own tensor}. No number is copied and the model is left alone; tied
    tensors stay tied. Tensors that a module keeps as plain attributes (legacy weight_norm does) become meta as well.
    """
    tensors = named_tensors(model)
    memo: dict[int, Any] = {id(tensor): meta_like(tensor) for tensor in tensors.values()}
    memo.update({id(tensor): meta_like(tensor) for tensor in loose_tensors(model) if id(tensor) not in memo})
    return copied(model, memo), tensors


NO_TENSORS = frozenset({bool, int, float, str, tuple, dict, set, OrderedDict, type(None)})  # isinstance is slower


def loose_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that modules keep as plain attributes and that cannot be copied: results of computations."""
    for module in model.modules():
        for value in vars(module).values():
            if type(value) not in NO_TENSORS and isinstance(value, Tensor) and not value.is_leaf:
                yield value


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter, then every buffer, by qualified name; a tied tensor appears under each of its names."""
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    _collect(module, "", parameters, buffers)
    return parameters | buffers


def _collect(module: nn.Module, prefix: str, parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> None:
    for own, found in ((module._parameters, parameters), (module._buffers, buffers)):
        for name, one in own.items():
            if one is not None:
                found[prefix + name] = one
    for name, child in module._modules.items():
        if child is not None:
            _collect(child, f"{prefix}{name}.", parameters, buffers)


def first_names(program: Program) -> dict[str, str]:
    """Further names of tied tensors -> their first name."""
    first: dict[int, str] = {}
    found = {name: first.setdefault(id(empty), name) for name, empty in named_tensors(program.module).items()}
    return {name: known for name, known in found.items() if known != name}


def meta_like(tensor: Tensor, shape: torch.Size | None = None) -> Tensor:
    """A tensor of the same kind (Parameter or not, dtype, requires_grad) without storage."""
    empty = torch.empty(tensor.shape if shape is None else shape, dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(empty, requires_grad=tensor.requires_grad)
    return empty


class Skeleton(fx.GraphModule):
    """A graph over modules without numbers. It is walked, never called, so no Python is generated for it."""

    def recompile(self) -> Any:
        """Nothing to do."""

    def __deepcopy__(self, memo: dict[int, Any]) -> fx.GraphModule:
        return graph_twin(self, memo, Skeleton)


def materialise(
    module: fx.GraphModule,
    tensors: Mapping[str, Tensor],
    kind: type[Graphed] = fx.GraphModule,  # type: ignore[assignment]
) -> Graphed:
    """Copy a skeleton with real tensors in it, to be called. The tensors are used as they are, not copied."""
    memo: dict[int, Any] = {}
    for name, empty in named_tensors(module).items():
        real = tensors[name]
        if isinstance(empty, nn.Parameter) and not isinstance(real, nn.Parameter):
            real = nn.Parameter(real, requires_grad=empty.requires_grad)
        memo.setdefault(id(empty), real)
    return graph_twin(module, memo, kind)


def adopt(module: fx.GraphModule, skeleton: nn.Module, graph: fx.Graph) -> None:
    """Give a GraphModule the modules and tensors that another graph over the same skeleton needs."""
    other = Skeleton(skeleton, graph)
    for name, child in other.named_modules():
        if name and (not _has(module, name) or _only_holds(module, name) and type(child) is not nn.Module):
            module.add_submodule(name, child)
    for name, tensor in named_tensors(other).items():
        if _has(module, name):
            continue
        holder_name, _, leaf = name.rpartition(".")
        holder = module.get_submodule(holder_name)
        if isinstance(tensor, nn.Parameter):
            holder.register_parameter(leaf, tensor)
        else:
            holder.register_buffer(leaf, tensor)


def _only_holds(module: nn.Module, path: str) -> bool:
    """Whether a graph has looked up tensors of a module without calling it: nothing but these is there."""
    return type(operator.attrgetter(path)(module)) is nn.Module


def _has(module: nn.Module, path: str) -> bool:
    for part in path.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
    return True


def real_tensors(module: fx.GraphModule, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The numbers of everything a graph module holds. Constants that tracing has put into it are moved out."""
    found = {}
    for name, empty in named_tensors(module).items():
        if name in tensors:
            found[name] = tensors[name]
            continue
        found[name] = empty.detach()
        holder_name, _, leaf = name.rpartition(".")
        module.get_submodule(holder_name)._buffers[leaf] = torch.empty_like(empty, device="meta")
    return found
