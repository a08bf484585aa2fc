"""Copies of modules and graphs: what copy.deepcopy makes, without its detours.

A network of two hundred layers holds two thousand empty hook tables, and deepcopy takes a microsecond or more to copy
nothing. Here the tables and numbers of ordinary modules are copied directly; whatever has its own idea of being copied
is left to deepcopy.
"""

from __future__ import annotations

import copy
import warnings
from collections import OrderedDict
from functools import cache
from typing import Any, TypeVar

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

Copied = TypeVar("Copied")
Graphed = TypeVar("Graphed", bound=fx.GraphModule)
_ATOMS = frozenset({int, float, bool, str, bytes, type(None), type})
_CONTAINERS = frozenset({dict, OrderedDict, list, set})


def copied(thing: Copied, memo: dict[int, Any] | None = None) -> Copied:
    """A deep copy. What `memo` knows (by id) is not copied but replaced.

    Silent where PyTorch warns: it does so when it copies an exported graph's input specification.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        found: Copied = _value(thing, {} if memo is None else memo)
        return found


def graph_twin(module: fx.GraphModule, memo: dict[int, Any], kind: type[Graphed]) -> Graphed:
    """A copy of a graph module, graph included, as another kind of graph module."""
    twin = kind.__new__(kind)
    memo[id(module)] = twin
    type(twin).__name__ = type(module).__name__
    twin.__dict__.update({name: _value(value, memo) for name, value in vars(module).items() if name != "_graph"})
    twin.graph = copied(module.graph)
    return twin


def _graph(graph: fx.Graph) -> fx.Graph:
    """As fx copies a graph. Arguments are set afterwards: creating a node with them searches them for symbolic sizes,
    for a third of the time.
    """
    twin = fx.Graph(tracer_cls=graph._tracer_cls)
    twins: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        new = twins[node] = twin.create_node(node.op, node.target, name=node.name, type_expr=node.type)
        new.args = fx.map_arg(node.args, twins.__getitem__)
        if node.kwargs:
            new.kwargs = fx.map_arg(dict(node.kwargs), twins.__getitem__)
        new.meta = copy.copy(node.meta)
    twin._codegen = copy.deepcopy(graph._codegen)
    return twin


def _value(value: Any, memo: dict[int, Any]) -> Any:
    kind: Any = type(value)
    if kind in _ATOMS:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if kind in _CONTAINERS and not value:
        return memo.setdefault(id(value), kind())
    if kind is dict or kind is OrderedDict:
        return _table(value, memo)
    if kind is tuple and _ATOMS.issuperset(map(type, value)):
        return value
    if kind is fx.Graph:
        return memo.setdefault(id(value), _graph(value))
    if isinstance(value, nn.Module) and _is_plain(kind):
        return _module(value, memo)
    return copy.deepcopy(value, memo)


def _table(table: dict[Any, Any], memo: dict[int, Any]) -> dict[Any, Any]:
    twin = memo[id(table)] = type(table)()
    for key, value in table.items():
        twin[key if type(key) in _ATOMS else copy.deepcopy(key, memo)] = _value(value, memo)
    return twin


def _module(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    twin = type(module).__new__(type(module))
    memo[id(module)] = twin
    state = module.__getstate__()
    for name, value in state.items():
        kind = type(value)
        if name in _HOOKS and not value:  # half of a module's attributes, and no two modules share them
            state[name] = kind()
        elif kind in _CONTAINERS and not value:
            state[name] = memo.setdefault(id(value), kind())
        elif kind not in _ATOMS:
            state[name] = _value(value, memo)
    if type(module).__setstate__ in _FOR_OLD_PICKLES:
        twin.__dict__.update(state)
    else:
        twin.__setstate__(state)
    return twin


_HOOKS = frozenset(name for name, value in vars(nn.Module()).items() if type(value) is OrderedDict)
_FOR_OLD_PICKLES = {nn.Module.__setstate__, _ConvNd.__setstate__}  # these add what older versions of PyTorch left out


@cache
def _is_plain(kind: Any) -> bool:
    """Whether deepcopy would make a blank object of this class and hand it a copy of the old one's attributes."""
    return (
        not hasattr(kind, "__deepcopy__")
        and kind.__reduce_ex__ is object.__reduce_ex__
        and kind.__reduce__ is object.__reduce__
        and kind.__getstate__ is nn.Module.__getstate__
        and not any(getattr(base, "__slots__", ()) for base in kind.__mro__)
    )
