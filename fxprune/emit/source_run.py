"""From the text of a model.py to a network: run in a namespace of its own, and with nothing in reach if not trusted."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.copying import copied
from fxprune.emit import source_allowed as allowed
from fxprune.emit.source_check import check_source
from fxprune.emit.source_functions import BUILTINS
from fxprune.emit.source_grammar import Checked, Path
from fxprune.errors import LoadError, UntrustedError, described
from fxprune.program import named_tensors

_IN_REACH = (*BUILTINS, "__build_class__", "getattr", "isinstance", "setattr", "slice", "super")
_PACKAGES = ("collections", "math", "operator", "torch")


def network_from(text: str, state: Mapping[str, Tensor], file: str, *, trust: bool = False) -> nn.Module:
    """The network that a model.py defines, with the numbers of `state`, in train mode.

    state  plain names and masks, as model.safetensors holds them; the network goes on using these tensors
    file   what to call the text in messages
    trust  run it whatever it says; otherwise only a text that `check_source` accepts is run, and its forward can reach
           nothing but the layers it has made

    Layers are made without memory and get the numbers of `state`, so that a file cannot claim more than it brings.

    Raises UntrustedError, and LoadError when the text does not run or does not fit the numbers. The global random
    state is left alone.
    """
    checked = None if trust else check_source(text, file)
    try:
        with torch.random.fork_rng(devices=[]):
            made = _class(text, checked)
            with torch.device("meta"):
                empty = made()
        _check_fits(empty, state, file)
        if checked is not None:
            _check_paths(empty, checked, file)
        return _filled(empty, state)
    except LoadError:
        raise
    except Exception as error:  # code fails in every possible way
        raise LoadError(f"{file} does not make a network: {described(error)}") from error


def _filled(empty: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """A copy with numbers; what is tied stays tied."""
    memo: dict[int, Any] = {}
    for name, one in named_tensors(empty).items():
        number = state[name].detach()
        if isinstance(one, nn.Parameter):
            number = nn.Parameter(number, requires_grad=one.requires_grad)
        memo.setdefault(id(one), number)
    return copied(empty, memo)


def _class(text: str, checked: Checked | None) -> type[nn.Module]:
    reach: Any = builtins if checked is None else {name: getattr(builtins, name) for name in _IN_REACH}
    if checked is not None:
        reach["__import__"] = _import_torch_only
    namespace: dict[str, Any] = {"__name__": "model", "__builtins__": reach}
    exec(compile(text, "model.py", "exec"), namespace)
    name = checked.class_name if checked is not None else namespace["__all__"][0]
    found: type[nn.Module] = namespace[name]
    return found


def _import_torch_only(name: str, *rest: Any) -> Any:
    if name.partition(".")[0] not in _PACKAGES:
        raise ImportError(f"{name} is out of reach")
    return builtins.__import__(name, *rest)


def _check_fits(network: nn.Module, state: Mapping[str, Tensor], file: str) -> None:
    """Names, shapes and types."""
    own = {name: _shape_and_type(one) for name, one in named_tensors(network).items()}
    given = {name: _shape_and_type(one) for name, one in state.items()}
    wrong = [name for name in {**own, **given} if own.get(name) != given.get(name)]
    if wrong:
        name = wrong[0]
        ours, theirs = own.get(name, "nothing"), given.get(name, "nothing")
        raise LoadError(f"{file} has {ours} as {name} and the weights have {theirs}: they do not fit")


def _shape_and_type(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _check_paths(network: nn.Module, checked: Checked, file: str) -> None:
    """Whatever forward calls or reads below self is a layer or a tensor of the network."""
    layers = {tuple(name.split(".")) for name, _ in network.named_modules(remove_duplicate=False)}
    tensors = {tuple(name.split(".")) for name in named_tensors(network)}

    def refuse(path: Path) -> None:
        raise UntrustedError(f"{file} was not run: its forward uses self.{'.'.join(path)}, which is no layer or tensor")

    for path in sorted(checked.called - layers):
        if not (path[:-1] in tensors and allowed.is_method(path[-1])):
            refuse(path)
    for path in sorted(checked.read - tensors):
        if not (path[:-1] in tensors and path[-1] in allowed.ATTRIBUTES):
            refuse(path)
