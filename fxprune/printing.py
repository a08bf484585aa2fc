"""Program -> text: one line a node, then what the passes have found out. For tests, --print-passes and error
messages.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.channels.groups import ChannelGroup, Couplings
from fxprune.facts import SensitivityReport, Shrunk, SparsityReport, WeightMasks, WidthPlan
from fxprune.metarun import meta_values, on_meta
from fxprune.program import Program


def program_text(program: Program) -> str:
    """The whole program. Equal programs give equal text."""
    lines = []
    for mode, graph in program.graphs():
        lines.append(f"{mode} graph ({program.front_end})")
        lines += [f"  {line}" for line in _graph_lines(program, graph, mode)]
    lines += _fact_lines(program)
    return "\n".join(lines)


def groups_text(couplings: Couplings) -> str:
    """The channel groups: width, rows, members, and what keeps them."""
    return "\n".join(_group_line(group) for group in couplings.groups)


def _group_line(group: ChannelGroup) -> str:
    rows = f" in {group.row_count} rows" if group.row_count > 1 else ""
    members = " ".join(str(member) for member in group.members)
    line = f"group {group.index}: {group.width} channels{rows}: {members}"
    if group.frozen:
        return f"{line}\n  frozen: {group.frozen}"
    if not group.producers:
        return f"{line}\n  no convolution or linear layer makes them"
    return f"{line}\n  approximate: {group.approximate}" if group.approximate else line


class _Shapes(fx.Interpreter):
    """Runs on the meta device and keeps the shape of every node."""

    def __init__(self, program: Program, graph: fx.Graph) -> None:
        super().__init__(program.module, graph=graph)
        self.shapes: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self.shapes[n.name] = pytree.tree_map_only(Tensor, lambda t: list(t.shape), result)
        return result


def _graph_lines(program: Program, graph: fx.Graph, mode: str) -> Iterator[str]:
    walker = _Shapes(program, graph)
    with on_meta(program.module, mode):
        walker.run(*meta_values(graph, program.inputs))
    for node in graph.nodes:
        yield f"{_node_text(program, node)} : {walker.shapes[node.name]}"


def _node_text(program: Program, node: fx.Node) -> str:
    args = ", ".join([*map(_value_text, node.args), *(f"{key}={_value_text(one)}" for key, one in node.kwargs.items())])
    if node.op == "placeholder":
        return node.name
    if node.op == "output":
        return f"return {args}"
    if node.op == "get_attr":
        return f"{node.name} = {node.target}"
    if node.op == "call_module":
        return f"{node.name} = {node.target}({args}) {_leaf_text(program.module.get_submodule(str(node.target)))}"
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"{node.name} = {target}({args})"


def _value_text(value: Any) -> str:
    if isinstance(value, slice):
        parts = [value.start, value.stop, *([value.step] if value.step is not None else [])]
        return ":".join("" if part is None else _value_text(part) for part in parts)
    if isinstance(value, list | tuple):
        inside = ", ".join(map(_value_text, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    return "..." if value is Ellipsis else str(value)


def _leaf_text(leaf: nn.Module) -> str:
    """The module as PyTorch prints it, on one line."""
    return " ".join(str(leaf).split())


def _fact_lines(program: Program) -> Iterator[str]:
    facts = program.facts
    if Couplings in facts:
        prunable = facts[Couplings].prunable()
        yield f"couplings: {len(facts[Couplings].groups)} groups, {len(prunable)} prunable"
    if SparsityReport in facts:
        report = facts[SparsityReport]
        yield f"sparsity: average {float(report.average):.6f}"
        resilient = facts[SensitivityReport].resilient if SensitivityReport in facts else {}
        words = {True: " resilient", False: " sensitive", None: ""}
        yield from (
            f"  {name}: {share.zeros}/{share.total}{words[resilient.get(name)]}"
            for name, share in report.layers.items()
        )
    if WidthPlan in facts:
        for index, kept in facts[WidthPlan].kept.items():
            yield f"plan: group {index} keeps {len(kept)} of {facts[Couplings].groups[index].width}"
    if Shrunk in facts:
        for index, (before, after) in facts[Shrunk].widths.items():
            yield f"shrunk: group {index} from {before} to {after}"
    if WeightMasks in facts:
        for name, mask in facts[WeightMasks].masks.items():
            yield f"mask: {name} keeps {int(mask.count_nonzero())} of {mask.numel()}"
