"""Statistics over a network's own weights (weight standardisation), folded into the weights.

A standardised weight depends on all of its columns: cutting some would change the others. Where weights are kept, the
standardised weight itself becomes the parameter, and cutting it is exact. Where weights are drawn anew, the network is
left as it is: its statistics then run over what is left (Qiao et al., Micro-Batch Training with Batch-Channel
Normalization and Weight Standardization, 2019).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.copying import copied
from fxprune.program import Program, Skeleton, adopt, first_names, named_tensors
from fxprune.wording import counted

_STATISTICS = {
    "batch_norm", "group_norm", "instance_norm", "layer_norm", "linalg_norm", "linalg_vector_norm", "mean", "norm",
    "normalize", "std", "std_mean", "var", "var_mean", "vector_norm",
}  # fmt: skip


def fold_statistics(program: Program) -> Program:
    """The program with each weight that nothing but a statistic over it reads replaced by what is computed from it."""
    found = [dict(_foldable(program, graph)) for _, graph in program.graphs()]
    tied = {name for pair in first_names(program).items() for name in pair} if any(found) else set()
    names = [name for name in found[0] if all(name in one for one in found) and name not in tied]
    if not names:
        return program
    values = {name: _value(program, found[0][name]) for name in names}
    both = zip(program.graphs(), found, strict=True)
    graphs = [_folded(graph, {name: one[name] for name in names}) for (_, graph), one in both]
    what = counted(len(names), "weight")
    note = f"{what} standardised by the network at each call, plain weights now: {', '.join(names[:5])}"
    module = Skeleton(program.module, graphs[0], class_name=type(program.module).__name__)
    if len(graphs) > 1:
        adopt(module, program.module, graphs[1])
    module.eval()
    return replace(
        program,
        module=module,
        tensors={name: values.get(name, program.tensors[name]) for name in named_tensors(module)},
        train_graph=graphs[1] if len(graphs) > 1 else None,
        notes=(*program.notes, note),
        folded=tuple(names),
        facts={},
    )


def _foldable(program: Program, graph: fx.Graph) -> Iterator[tuple[str, fx.Node]]:
    """(parameter, node): the node computes a tensor of the parameter's shape from parameters alone, with a statistic,
    and the parameter is read for nothing else.
    """
    own = _of_parameters(program, graph) if any(node.op == "get_attr" for node in graph.nodes) else {}
    for node in own:
        if node.op == "get_attr" or all(user in own for user in node.users):
            continue
        above = _above(node)
        if not any(_name(one) in _STATISTICS for one in above):
            continue
        for read in [one for one in above if one.op == "get_attr"]:
            name = str(read.target)
            reads = [one for one in graph.nodes if one.op == "get_attr" and one.target == name]
            alone = all(_ends(one, own) == {node} for one in reads)
            if alone and program.tensors[name].ndim > 1 and program.tensors[name].shape == _value(program, node).shape:
                yield name, node
                break


def _of_parameters(program: Program, graph: fx.Graph) -> dict[fx.Node, None]:
    """Nodes whose values depend on parameters alone, in order."""
    parameters = {name for name, one in named_tensors(program.module).items() if isinstance(one, nn.Parameter)}
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        read = node.op == "get_attr" and node.target in parameters
        computed = node.op in ("call_function", "call_method") and bool(node.all_input_nodes)
        if read or (computed and all(one in found for one in node.all_input_nodes)):
            found[node] = None
    return found


def _above(node: fx.Node) -> set[fx.Node]:
    found = {node}
    waiting = [node]
    while waiting:
        fresh = [one for one in waiting.pop().all_input_nodes if one not in found]
        found.update(fresh)
        waiting += fresh
    return found


def _ends(node: fx.Node, own: dict[fx.Node, None]) -> set[fx.Node]:
    """Where values computed from this node meet the rest of the network."""
    ends = {node} if any(user not in own for user in node.users) else set()
    return ends.union(*(_ends(user, own) for user in node.users if user in own))


def _name(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "").split(".")[0]


def _value(program: Program, node: fx.Node) -> Tensor:
    """The node's value on the program's own numbers."""
    with torch.no_grad():
        found: Any = _run(program, node, {})
    return nn.Parameter(found.detach().clone())


def _run(program: Program, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    for one in node.graph.nodes:  # in their order: writes in place come before what reads them
        if one in _above(node):
            args, kwargs = fx.map_arg((one.args, dict(one.kwargs)), known.__getitem__)
            if one.op == "get_attr":
                known[one] = program.tensors[str(one.target)].detach().clone()
            elif one.op == "call_method":
                known[one] = getattr(args[0], str(one.target))(*args[1:], **kwargs)
            else:
                assert callable(one.target)
                known[one] = one.target(*args, **kwargs)
    return known[node]


def _folded(graph: fx.Graph, nodes: dict[str, fx.Node]) -> fx.Graph:
    """A copy of the graph that reads each parameter where it computed something from it."""
    fresh = copied(graph)
    twin = dict(zip(graph.nodes, fresh.nodes, strict=True))
    for name, node in nodes.items():
        with fresh.inserting_before(twin[node]):
            read = fresh.get_attr(name)
        unread = [one for one in fresh.nodes if one in {twin[above] for above in _above(node)}]
        twin[node].replace_all_uses_with(read)
        for one in reversed(unread):
            if not one.users:
                fresh.erase_node(one)
    return fresh
