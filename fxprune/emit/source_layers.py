"""One layer -> the call that makes it anew. It counts only when the layer it makes is equal in all that it knows."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.rnn import RNNBase

from fxprune.emit.source_functions import Needs, imported
from fxprune.emit.source_parts import MASKABLE
from fxprune.emit.source_text import SourceError, literal

Arguments = dict[str, Any]
# Layers that leave a branch out in training; one small class in the file stands for them.
_DROPPING = {
    ("torchvision.ops.stochastic_depth", "StochasticDepth"): {"p": "p", "mode": "mode"},
    ("timm.layers.drop", "DropPath"): {"p": "drop_prob", "scale": "scale_by_keep"},
}
# Arguments of constructors that are kept under another name.
_KEPT_AS = {"add_bias_kv": "bias_k"}
_REGISTRIES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


def layer_text(path: str, layer: nn.Module, masked: bool, needs: Needs) -> str:
    """`nn.Conv2d(3, 8, 3, bias=False)`. Raises SourceError when no call can be found that makes an equal layer."""
    _check_plain(path, layer)
    names = _DROPPING.get((type(layer).__module__, type(layer).__qualname__))
    if names is not None:
        needs.parts.add("DropPath")
        found = {name: getattr(layer, own) for name, own in names.items()}
        return call_text("DropPath", {name: one for name, one in found.items() if (name, one) not in _USUAL}, ("p",))
    arguments = _arguments(path, layer, needs)
    required = [name for name, one in _signature(layer).items() if one.default is one.empty]
    return call_text(_class_text(path, layer, masked, needs), arguments, required)


_USUAL = (("mode", "row"), ("scale", True))


def call_text(function: str, arguments: Mapping[str, Any], positional: Any = ()) -> str:
    """A call with the `positional` arguments first and the others by name."""
    parts = [literal(arguments[name]) for name in positional]
    parts += [f"{name}={literal(value)}" for name, value in arguments.items() if name not in positional]
    return f"{function}({', '.join(parts)})"


def _check_plain(path: str, layer: nn.Module) -> None:
    """A hook or a parametrisation is code that no constructor brings back."""
    for part in layer.modules():
        if hasattr(part, "parametrizations"):
            raise SourceError(f"{path} has parametrised weights of its own")
        if part._forward_hooks or part._forward_pre_hooks:
            raise SourceError(f"{path} has hooks")
        if part._non_persistent_buffers_set:
            raise SourceError(f"{path} has numbers that its state dict leaves out")


def _class_text(path: str, layer: nn.Module, masked: bool, needs: Needs) -> str:
    kind, name = type(layer), type(layer).__name__
    if getattr(nn, name, None) is not kind:
        if masked:
            raise SourceError(f"{path} is a {name} with a mask")
        return imported(kind, needs)
    if not masked:
        return f"nn.{name}"
    if name not in MASKABLE:
        raise SourceError(f"{path} is a {name} with a mask")
    needs.parts.add(f"Masked{name}")
    return f"Masked{name}"


def _arguments(path: str, layer: nn.Module, needs: Needs) -> Arguments:
    """The shortest arguments that make an equal layer. Layers come in kinds, so that an answer serves many."""
    exact = _exact_arguments(path, layer)
    kind = (type(layer), repr(exact))
    known = needs.calls.get(kind)
    if known is not None and _makes_equal(layer, known):
        return known
    if not _makes_equal(layer, exact):
        raise SourceError(f"no call of {type(layer).__name__} makes a layer like {path}")
    found = needs.calls[kind] = _shortened(layer, exact)
    return found


def _shortened(layer: nn.Module, arguments: Arguments) -> Arguments:
    """Without what may be left out, and with 3 for (3, 3) where that is the same."""
    for name, parameter in _signature(layer).items():
        if name not in arguments:
            continue
        tries = [{**arguments, name: _one_number(arguments[name])}]
        if parameter.default is not parameter.empty:
            tries.insert(0, {other: value for other, value in arguments.items() if other != name})
        arguments = next((one for one in tries if _makes_equal(layer, one)), arguments)
    return arguments


def _exact_arguments(path: str, layer: nn.Module) -> Arguments:
    found = {}
    for name, parameter in _signature(layer).items():
        value = _value(layer, name, parameter.default)
        if value is not inspect.Parameter.empty and not _same(value, parameter.default):
            found[name] = value
        elif parameter.default is parameter.empty:
            raise SourceError(f"{path} does not tell the argument {name!r} that {type(layer).__name__} was made with")
    return found


def _signature(layer: nn.Module) -> dict[str, inspect.Parameter]:
    """Named arguments of the constructor."""
    owner: Any = RNNBase if isinstance(layer, RNNBase) else type(layer)
    try:
        parameters = inspect.signature(owner.__init__).parameters
    except (TypeError, ValueError):
        raise SourceError(f"{type(layer).__name__} does not say how it is made") from None
    left_out = ("self", "device", "mode") if owner is RNNBase else ("self", "device")
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: one for name, one in parameters.items() if name not in left_out and one.kind not in variadic}


def _value(layer: nn.Module, name: str, default: Any) -> Any:
    """What the layer was made with under this name; the default where it does not say."""
    if name == "dtype":
        kinds = [one.dtype for one in _tensors(layer) if one.is_floating_point() or one.is_complex()]
        return kinds[0] if kinds and kinds[0] != torch.float32 else default
    if name == "bias" and not hasattr(layer, "bias") and hasattr(layer, "in_proj_bias"):
        return layer.in_proj_bias is not None
    value = getattr(layer, _KEPT_AS.get(name, name), default)
    if isinstance(default, bool) and (value is None or isinstance(value, Tensor)):
        return value is not None
    return value


def _one_number(value: Any) -> Any:
    """3 for (3, 3)."""
    return value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value


def _makes_equal(layer: nn.Module, arguments: Arguments) -> bool:
    try:
        with torch.device("meta"):
            return _equal(layer, type(layer)(**arguments))
    except Exception:  # constructors complain in every possible way
        return False


def _equal(layer: nn.Module, other: nn.Module) -> bool:
    """Equal settings, and tensors of equal names, kinds and shapes. torch's own layers read nothing else."""
    if type(layer) is not type(other):
        return False
    settings, theirs = (_settings(one) for one in (layer, other))
    if not settings.keys() >= theirs.keys():
        return False
    if not _is_torchs(layer) and any(_names(type(layer), extra) for extra in settings.keys() - theirs.keys()):
        return False
    if not all(_same(settings[name], value) for name, value in theirs.items()):
        return False
    if _described(layer) != _described(other) or layer._modules.keys() != other._modules.keys():
        return False
    return all(map(_equal, layer.children(), other.children()))


def _names(kind: type[nn.Module], attribute: str) -> bool:
    """Whether code of the class names this attribute. What others hang onto a module to remember it is not named."""
    codes = [
        getattr(one, "__code__", None)
        for owner in kind.__mro__[: kind.__mro__.index(nn.Module)]
        for value in vars(owner).values()
        for one in (value, getattr(value, "fget", None), getattr(value, "__func__", None))
    ]
    return any(attribute in (*code.co_names, *code.co_consts) for code in codes if code is not None)


def _settings(layer: nn.Module) -> dict[str, Any]:
    """Attributes that are no tables of nn.Module. What torch's own layers hide is derived from the others."""
    own = _is_torchs(layer)
    return {
        name: one
        for name, one in vars(layer).items()
        if name not in _REGISTRIES and name != "training" and not (own and name.startswith("_"))
    }


def _is_torchs(layer: nn.Module) -> bool:
    return type(layer).__module__.startswith("torch.nn.")


def _described(layer: nn.Module) -> list[Any]:
    """Own parameters and buffers without their numbers."""
    registries = (layer._parameters, layer._buffers)
    return [
        {name: None if one is None else (one.shape, one.dtype) for name, one in registry.items()}
        for registry in registries
    ]


def _tensors(layer: nn.Module) -> Iterator[Tensor]:
    yield from layer.parameters()
    yield from layer.buffers()


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return False
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    return left is right or (type(left) is type(right) and bool(left == right)) or _equal_numbers(left, right)


def _equal_numbers(left: Any, right: Any) -> bool:
    numbers = (int, float)
    return type(left) in numbers and type(right) in numbers and left == right
