"""Tracing with torch.fx, so that one graph serves training and inference wherever that is possible."""

from __future__ import annotations

import inspect
import operator
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.capture.chance import nothing_drawn
from fxprune.capture.einops_calls import einops_for
from fxprune.capture.entry import entry, flat_arguments, needs_entry
from fxprune.capture.graph_equality import same_graph
from fxprune.capture.left_alone import same_parts, shared_containers
from fxprune.capture.makers import recorded_makers
from fxprune.capture.modes import switches_itself, watched_mode
from fxprune.capture.no_gradients import detach_what_leaves
from fxprune.capture.own_functions import functions_followed
from fxprune.capture.proxies import AskingAttribute, AskingProxy, HeldProxy, SizedParameterProxy, WritingProxy
from fxprune.capture.questions import instances_answered, types_answered
from fxprune.capture.sizes import SizeReader
from fxprune.containers import field_names, is_dataclass, know
from fxprune.program import named_tensors

_PROXIES = (AskingAttribute, AskingProxy, HeldProxy, SizedParameterProxy, WritingProxy)


class LeafTracer(fx.Tracer):
    """Symbolic tracing that keeps random regularisers whole.

    A module without parameters, buffers and children whose forward reads `training` (dropout, stochastic depth)
    stays one node, because its behaviour in the two modes could not be told apart in the graph. Sizes of parameters
    are plain numbers; other sizes become plain numbers where Python code needs one. What runs without gradients leaves
    such a block detached.
    """

    def __init__(
        self, skeleton: nn.Module, given: Mapping[str, Any], record_sources: bool = False, instances: bool = False
    ) -> None:
        super().__init__()
        self.instances = instances
        self.record_stack_traces = record_sources
        self.sizes = SizeReader(skeleton, given)
        self.names: dict[int, str] = {}
        self.proxies: dict[str, fx.Proxy] = {}
        self.without_gradients: set[fx.Node] = set()
        self.in_function = 0  # how deep in forwards of torch.autograd.Function, which run without gradients

    def proxy(self, node: fx.Node) -> fx.Proxy:
        if not torch.is_grad_enabled() and not self.in_function:
            self.without_gradients.add(node)
        return WritingProxy(node, self)

    @contextmanager
    def function(self) -> Iterator[None]:
        """Around the forward of a torch.autograd.Function: what it computes has gradients."""
        self.in_function += 1
        try:
            yield
        finally:
            self.in_function -= 1

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        self.names = {id(tensor): name for name, tensor in reversed(named_tensors(root).items())}
        self.proxies = {}

        def asleep() -> bool:
            return self.sizes.reading

        answered = instances_answered(self.sizes.value) if self.instances else nullcontext()
        with recorded_makers(self, asleep), types_answered(self.sizes.value), answered, torch.enable_grad():
            graph = super().trace(root, concrete_args)
        detach_what_leaves(graph, self.without_gradients, self.sizes.value)
        return graph

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Parameters and buffers become get_attr nodes, each once, found in one step however many there are."""
        if self.sizes.reading:
            return attr_val
        name = self.names.get(id(attr_val)) if isinstance(attr_val, Tensor) else None
        if name is None:
            return attr_val
        if name not in self.proxies:
            self.proxies[name] = self.create_proxy("get_attr", name, (), {}, proxy_factory_fn=self._factory(attr_val))
        return self.proxies[name]

    def create_arg(self, a: Any) -> Any:
        """Dataclasses stay what they are, those too that are dicts. Numbers of numpy become Python's."""
        if isinstance(a, np.generic):
            return super().create_arg(a.item())
        if not is_dataclass(type(a)):
            return super().create_arg(a)
        know(a)
        held = {name: self.create_arg(getattr(a, name)) for name in field_names(type(a))}
        return self.create_node("call_function", type(a), (), held)

    def _factory(self, tensor: Tensor) -> Callable[[fx.Node], fx.Proxy]:
        if not isinstance(tensor, nn.Parameter):
            return lambda node: HeldProxy(node, self)
        return lambda node: SizedParameterProxy(self, node, str(node.target), tensor)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self.sizes.reading:
            return forward(*args, **kwargs)
        if m not in (self.submodule_paths or {}) and self._made_of_known(m):
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        plain = not kwargs and not self.record_stack_traces and all(isinstance(one, fx.Proxy) for one in args)
        if not plain or not self.is_leaf_module(m, path):
            if kwargs and self.is_leaf_module(m, path):
                inspect.signature(m.forward).bind(*args, **kwargs)  # code that catches the TypeError tries another call
            return super().call_module(m, forward, args, kwargs)
        # Nine calls in ten. fx would check the arguments and note scopes that nobody asks for.
        given = tuple(one.node for one in args)  # an attribute of a proxy makes its node when it is asked for it
        node = self.graph.create_node("call_module", path)
        node.args = given  # given at once, they would be searched for symbolic sizes
        return self.proxy(node)

    def _made_of_known(self, m: nn.Module) -> bool:
        """A module made in forward, or kept where modules do not register, that holds no numbers of its own."""
        return all(id(one) in self.names for one in (*m.parameters(), *m.buffers()))

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A branch on sizes goes the way it goes for the example inputs."""
        return bool(self.sizes.read(obj.node))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return (operator.getitem(obj, position) for position in range(self.sizes.count(obj.node)))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return super().is_leaf_module(m, module_qualified_name) or reads_training(m)


def own_training_leaf(module: nn.Module) -> bool:
    """A leaf of the user's own that behaves differently in training: nobody has looked at what it does there."""
    known = ("torch.", "torchvision.", "timm.")
    return reads_training(module) and not type(module).__module__.startswith(known)


def reads_training(module: nn.Module) -> bool:
    """True for a childless module without state whose forward looks at `self.training`."""
    if next(module.children(), None) or next(module.parameters(), None) is not None:
        return False
    code = getattr(type(module).forward, "__code__", None)
    return code is not None and "training" in code.co_names and next(module.buffers(), None) is None


def trace_modes(skeleton: nn.Module, given: Mapping[str, Any], **how: bool) -> tuple[fx.Graph, fx.Graph | None, bool]:
    """The graph in eval mode, the one in train mode where it differs, and whether the network's own code looks at the
    mode or changes it. Leaves the skeleton in eval mode.

    One trace is enough when nothing in it has asked for the mode. `how`: see `trace`.
    """
    with watched_mode() as usual:
        skeleton.eval()
    with watched_mode() as mode:
        evaluate = trace(skeleton, given, training=False, **how)
    if not mode.read and mode.written == usual.written and not any(map(switches_itself, skeleton.modules())):
        return evaluate, None, False
    train = trace(skeleton, given, training=True, **how)
    skeleton.eval()
    return evaluate, None if same_graph(train, evaluate) else train, True


def trace(skeleton: nn.Module, given: Mapping[str, Any], *, training: bool, **how: bool) -> fx.Graph:
    """Trace the skeleton in train or eval mode. Arguments of forward that are not `given` are fixed at their defaults.

    how   record_sources: keep source lines; instances: answer isinstance for what proxies stand for
    """
    skeleton.train(training)
    tracer = LeafTracer(skeleton, given, **how)
    with _attributes_kept(skeleton), nothing_drawn(), functions_followed(tracer.function), einops_for(_PROXIES):
        graph = _traced(tracer, skeleton, given)
        made = {node.target: vars(skeleton).get(str(node.target)) for node in graph.find_nodes(op="get_attr")}
    vars(skeleton).update((str(name), value) for name, value in made.items() if isinstance(value, Tensor))
    _drop_specialised(graph)
    graph.eliminate_dead_code(is_impure_node=_must_stay)
    return graph


def _traced(tracer: LeafTracer, skeleton: nn.Module, given: Mapping[str, Any]) -> fx.Graph:
    settings = {name: value for name, value in given.items() if _is_setting(value)}
    if not settings and not needs_entry(skeleton):
        return tracer.trace(skeleton, concrete_args=_fixed_arguments(skeleton, given))
    with entry(skeleton, list(given), settings) as tracer.traced_func_name:
        return tracer.trace(skeleton)


@contextmanager
def _attributes_kept(skeleton: nn.Module) -> Iterator[None]:
    """What forward stores on its modules while it is traced are proxies, which mean nothing afterwards; hooks that it
    registers at its first call would be there twice at the next one.
    """
    held = [(module, dict(vars(module))) for module in skeleton.modules()]
    inside = [
        (value, value.copy() if value else value)  # most are empty
        for _, attributes in held
        for name, value in attributes.items()
        if type(value) in _CONTAINERS and name not in _REGISTERED
    ]
    inside += [(value, value.copy()) for value in shared_containers(skeleton)]
    try:
        yield
    finally:
        for module, attributes in held:
            vars(module).clear()
            vars(module).update(attributes)
        for value, before in inside:
            kept = () if before is value else before
            if same_parts(value, kept):
                continue
            value.clear()
            value.extend(kept) if isinstance(value, list) else value.update(kept)


_CONTAINERS = frozenset({list, set, dict, OrderedDict})
_REGISTERED = frozenset({"_parameters", "_modules"})


def bind_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Which argument of forward gets which value. Raises TypeError as the call itself would."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs)
    return flat_arguments(module, bound.arguments)


def _fixed_arguments(skeleton: nn.Module, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments that have their defaults. Settings that are given enter elsewhere."""
    fixed = {}
    for name, parameter in inspect.signature(skeleton.forward).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if name not in given and parameter.default is not parameter.empty:
            fixed[name] = parameter.default
    return fixed or None


def _is_setting(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _drop_specialised(graph: fx.Graph) -> None:
    """Arguments fixed at their defaults leave an assertion and a placeholder behind; both go."""
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in _ASSERTIONS and "has been specialized" in str(node.args[1:]):
            condition = node.args[0]
            graph.erase_node(node)
            if isinstance(condition, fx.Node) and condition.target is operator.eq and not condition.users:
                graph.erase_node(condition)
    for node in list(graph.nodes):
        if node.op == "placeholder" and not node.users and _was_fixed(node):
            graph.erase_node(node)


_ASSERTIONS = (torch._assert, fx._symbolic_trace._assert_is_none)


def _was_fixed(node: fx.Node) -> bool:
    stem, _, number = str(node.target).rpartition("_")
    return bool(node.args) and bool(stem) and number.isdigit()


def _must_stay(node: fx.Node) -> bool:
    """Only looking things up and arithmetic are dead when nobody reads them: anything else may write in place."""
    if node.op == "get_attr" or node.target in _LOOKING:
        return False
    return node.op != "call_method" or node.target not in ("size", "dim", "numel")


_LOOKING: set[Any] = {
    getattr, operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv,
}  # fmt: skip
