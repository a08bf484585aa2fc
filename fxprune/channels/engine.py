"""Run a network on channel labels instead of numbers.

An fx.Interpreter walks the graph over meta tensors and says which node is at work; a TorchDispatchMode underneath
sees every ATen call, whatever Python spelling it came from, and hands it to its rule. No real weight or activation
exists during the walk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.channels.atoms import Atoms
from fxprune.channels.calls import by_name, flops_of, plain_layout, with_places
from fxprune.channels.context import Context
from fxprune.channels.layers import Labels
from fxprune.channels.leaves import understood, why_opaque
from fxprune.channels.records import Call, CallKey, Claim, Contraction, Normalisation, Producer, Scale
from fxprune.channels.rules import rule_for
from fxprune.channels.rules.table import freeze_everything, tensors_in
from fxprune.channels.shortcuts import KnownCall, known_call, known_function
from fxprune.containers import check_result
from fxprune.errors import described, first_line
from fxprune.metarun import in_mode, meta_values, on_paper
from fxprune.program import Program, named_tensors


@dataclass(frozen=True)
class Seen:
    """A node's value in the dense network: tensors are replaced by their labels, everything else is the value
    itself.
    """

    value: Any


@dataclass(frozen=True)
class Analysis:
    """Everything one walk found out, unsolved. `seen` is keyed by (mode, node name)."""

    atoms: Atoms
    parameter_labels: Mapping[str, Labels]
    producers: tuple[Producer, ...]
    scales: tuple[Scale, ...]
    claims: tuple[Claim, ...]
    contractions: tuple[Contraction, ...]
    normalisations: tuple[Normalisation, ...]
    seen: Mapping[tuple[str, str], Seen]
    inputs_of: Mapping[tuple[str, str], tuple[str, ...]]  # (mode, node) -> names of the nodes it reads
    opaque: Mapping[str, int]
    approximate: str
    readings: Mapping[tuple[str, str], str]  # (mode, node) -> how a call with several readings was read
    flops: int
    flops_at: Mapping[str, int]  # node of the eval graph -> its own


def analyse(
    program: Program,
    *,
    approximate: str = "cut",
    freeze_nodes: Mapping[tuple[str, str], str] | None = None,
    freeze_parameters: Mapping[str, str] | None = None,
    readings: Mapping[tuple[str, str], str] | None = None,
    last: Mapping[tuple[str, int], Tensor] | None = None,
) -> Analysis:
    """Label every tensor of the network.

    approximate        "cut": channels behind a normalisation over channels may go (flagged); "freeze": they stay
    freeze_nodes       (mode, node) -> reason: whatever these nodes return stays as it is
    freeze_parameters  qualified name -> reason: these parameters keep their shape
    readings           (mode, node) -> how to read a call that a cut may have made ambiguous (a grouped convolution with
                       one channel a group looks depthwise)
    last               (name, dimension) -> mask of entries that are no channels, being the last of theirs after a cut
    """
    context = Context(values=program.tensors, approximate=approximate, forced=readings or {}, atoms=Atoms(last or {}))
    for name, tensor in named_tensors(program.module).items():
        context.names.setdefault(id(tensor), name)
        if isinstance(tensor, nn.Parameter):
            context.parameters.add(name)
    seen: dict[tuple[str, str], Seen] = {}
    eval_flops = 0
    for mode, graph in program.graphs():
        context.mode, context.flops = mode, 0
        _walk(program, graph, context, freeze_nodes or {}, seen)
        eval_flops = eval_flops or context.flops
    _freeze_parameters(context, freeze_parameters or {})
    _freeze_numbers(context)
    return Analysis(
        context.atoms,
        context.parameter_labels,
        tuple(context.producers),
        tuple(context.scales),
        tuple(context.claims),
        tuple(context.contractions),
        tuple(context.normalisations),
        seen,
        {
            (mode, node.name): tuple(source.name for source in node.all_input_nodes)
            for mode, graph in program.graphs()
            for node in graph.nodes
        },
        context.opaque,
        approximate,
        context.readings,
        eval_flops,
        context.flops_at,
    )


def _walk(
    program: Program,
    graph: fx.Graph,
    context: Context,
    freeze_nodes: Mapping[tuple[str, str], str],
    seen: dict[tuple[str, str], Seen],
) -> None:
    mode = LabelMode(context)
    walker = LabelWalker(program.module, graph, mode, freeze_nodes, seen)
    values = meta_values(graph, program.inputs)
    try:
        with in_mode(program.module, context.mode):
            try:
                walker.run(*values)
            finally:
                walker.remember_parameters()
    except Exception as error:
        raise WalkError(context.mode, context.node, error, seen) from error


class WalkError(Exception):
    """The network does not run on the meta device; says in which mode, at which node, and what came before."""

    def __init__(self, mode: str, node: str, cause: Exception, seen: Mapping[tuple[str, str], Seen]) -> None:
        super().__init__(f"the {mode} graph fails at {node}: {type(cause).__name__}: {first_line(cause)}")
        self.place = (mode, node)
        self.seen = seen  # what the nodes before it returned


_PICKING = {torch.ops.aten.index.Tensor, torch.ops.aten.index_select.default}


class LabelMode(TorchDispatchMode):
    """Hand each ATen call to its rule after the meta device has worked out its shape."""

    def __init__(self, context: Context) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.context = context
        self.counts: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, names = kwargs or {}, self.context.names
        stride = args[0].stride() if args and isinstance(args[0], Tensor) else ()
        result = plain_layout(func, on_paper(func, with_places(func, args, self.context.mask), kwargs))
        if func not in _PICKING:
            whole = (one for one in tensors_in((*args, *kwargs.values())) if not one.is_floating_point())
            self.context.numbers_used.update(names[id(one)] for one in whole if id(one) in names)
        self.take(func, args, kwargs, result, stride)
        return result

    def take(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any, stride: tuple[int, ...]
    ) -> None:
        """Hand one call and its result to its rule. `stride` is that of the first argument before the call."""
        context = self.context
        flops = flops_of(func, args, kwargs, result)
        context.flops += flops
        if flops and context.mode == "eval":
            context.flops_at[context.node] = context.flops_at.get(context.node, 0) + flops
        context.operator = str(func).removesuffix(".default")
        slot = (context.node, context.operator)
        context.key = CallKey(context.mode, context.node, context.operator, self.counts[slot])
        self.counts[slot] += 1
        call = Call(by_name(func, args, kwargs), (args[1:], kwargs), result, func, stride)
        self._apply(func, call)

    def _apply(self, func: Any, call: Call) -> None:
        context = self.context
        if context.opaque_node:
            freeze_everything(context, call, context.opaque_node)
            return
        rule = rule_for(func)
        if rule is None:
            freeze_everything(context, call, "no rule for this operator")
            return
        try:
            rule(context, call)
        except Exception as error:  # a case the rule's author did not think of: give up channels, not correctness
            freeze_everything(context, call, f"the rule for this operator failed: {described(error)}")


class LabelWalker(fx.Interpreter):
    """Run nodes one by one, tell the context which, and keep what each returned."""

    def __init__(
        self,
        module: nn.Module,
        graph: fx.Graph,
        label_mode: LabelMode,
        freeze_nodes: Mapping[tuple[str, str], str],
        seen: dict[tuple[str, str], Seen],
    ) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)
        self.extra_traceback = False
        self.label_mode, self.context = label_mode, label_mode.context
        self.freeze_nodes = freeze_nodes
        self.seen = seen
        self.waiting: list[tuple[fx.Node, Any]] = []

    def run_node(self, node: fx.Node) -> Any:
        context = self.context
        context.node, context.operator = node.name, node.op
        context.opaque_node = self._opaque(node)
        call = None if context.opaque_node else self._known_call(node)
        if call is None:
            with torch.device("meta"), self.label_mode:
                result = super().run_node(node)
        else:
            result = call.value
            self.label_mode.take(call.function, call.args, {}, call.result, call.args[0].stride())
        if node.op == "get_attr":
            self.waiting.append((node, result))
            self.seen[context.mode, node.name] = Seen(None)  # its place in the order of the graph
            return result
        context.operator = node.op
        self._remember(node, result)
        return result

    def remember_parameters(self) -> None:
        """Parameters that the graph reads itself: by now the calls that read them have laid out their labels."""
        for node, result in self.waiting:
            self._remember(node, result)

    def _leaf(self, node: fx.Node) -> nn.Module:
        target = str(node.target)
        return self.submodules[target] if target in self.submodules else self.module.get_submodule(target)

    def _known_call(self, node: fx.Node) -> KnownCall | None:
        """What a node is known to do with tensors that other nodes made; None where it has to be run."""
        sources = [one for one in node.args if isinstance(one, fx.Node)]
        if node.kwargs or len(sources) < len(node.args):
            return None
        if node.op == "call_module" and len(sources) == 1:
            return known_call(self._leaf(node), self.env[sources[0]])
        if node.op == "call_function" and len(sources) == 2:
            return known_function(node.target, self.env[sources[0]], self.env[sources[1]])
        return None

    def _remember(self, node: fx.Node, result: Any) -> None:
        context = self.context
        one = isinstance(result, Tensor)
        value = context.of(result) if one else pytree.tree_map_only(Tensor, context.of, result)
        self.seen[context.mode, node.name] = Seen(value)
        if node.op == "output":
            check_result(result)
        reason = "a network output" if node.op == "output" else self.freeze_nodes.get((context.mode, node.name))
        if reason is not None:
            for labels in self._labels_of(result):
                context.freeze_all(labels, reason)

    def _labels_of(self, value: Any) -> list[Labels]:
        return [self.context.of(leaf) for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]

    def _opaque(self, node: fx.Node) -> str:
        """Why the inside of this leaf module cannot be rewritten; empty when it can."""
        if node.op != "call_module":
            return ""
        module = self._leaf(node)
        if understood(module):
            return ""
        reason = f"inside {type(module).__name__}, {why_opaque(module)}"
        for name, _ in module.named_parameters(prefix=str(node.target)):
            self.context.opaque.setdefault(name, self.context.site(reason))
        return reason


def _freeze_numbers(context: Context) -> None:
    """An index whose values are used as numbers too cannot be renumbered: what it picks from stays."""
    for claim in context.claims:
        if claim.kind == "index" and claim.detail in context.numbers_used:
            context.node, context.operator = claim.node, "index"
            context.freeze(claim.layer, f"picked by {claim.detail}, whose numbers are used elsewhere too")


def _freeze_parameters(context: Context, reasons: Mapping[str, str]) -> None:
    for name, reason in reasons.items():
        context.node, context.operator = name, "parameter"
        if name in context.parameter_labels:
            context.freeze_all(context.parameter_labels[name], reason)
