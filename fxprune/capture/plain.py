"""Weights that a module computes from other tensors at each call become plain weights with the values they have now.

weight_norm, spectral_norm, masks of torch.nn.utils.prune and every other parametrisation would change the kept weights
when channels go: a norm over fewer columns is another norm. The weight itself can be cut exactly.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm

from fxprune.copying import copied
from fxprune.program import loose_tensors, named_tensors


def plain_weights(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The network with plain weights, and their qualified names; the model itself where it has no others.

    The copy shares every tensor that is not touched with the model, which is left as it was.
    """
    computed = [path for path, module in model.named_modules() if _computes(module)]
    if not computed:
        return model, ()
    own = {id(tensor) for path in computed for tensor in named_tensors(model.get_submodule(path)).values()}
    memo = {id(tensor): tensor for tensor in named_tensors(model).values() if id(tensor) not in own}
    memo |= {id(tensor): tensor.detach() for tensor in loose_tensors(model)}
    plain = copied(model, memo)
    names = [f"{path}.{name}" for path in computed for name in _settle(plain.get_submodule(path))]
    return plain, tuple(names)


def _computes(module: nn.Module) -> bool:
    parametrised = "parametrizations" in module._modules and parametrize.is_parametrized(module)
    return parametrised or (bool(module._forward_pre_hooks) and any(_legacy(module)))


def _legacy(module: nn.Module) -> Iterator[WeightNorm | SpectralNorm | prune.BasePruningMethod]:
    """Hooks of the time before parametrisations that set a weight before each call."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm | SpectralNorm | prune.BasePruningMethod):
            yield hook


def _settle(module: nn.Module) -> Iterator[str]:
    """Make the weights of one module plain. Spectral norms take a step at each call in training, so not there."""
    training = module.training
    module.eval()
    with torch.no_grad():
        if parametrize.is_parametrized(module):
            yield from _settle_parametrised(module)
        for hook in list(_legacy(module)):
            yield _settle_legacy(module, hook)
    module.train(training)


def _settle_parametrised(module: nn.Module) -> Iterator[str]:
    """By hand: PyTorch's own way takes the property from the class, which the user's module shares with its copy."""
    values = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore[union-attr]
    del module.parametrizations
    module.__class__ = type(module).__bases__[0]
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value))
        yield name


def _forget_loading(module: nn.Module, hook: SpectralNorm) -> None:
    """What reads the norm's own numbers from a state dict, which `remove_spectral_norm` leaves behind."""
    for key, held in list(module._load_state_dict_pre_hooks.items()):
        inner = getattr(held, "hook", held)
        if isinstance(inner, SpectralNormLoadStateDictPreHook) and inner.fn.name == hook.name:
            del module._load_state_dict_pre_hooks[key]


def _settle_legacy(module: nn.Module, hook: WeightNorm | SpectralNorm | prune.BasePruningMethod) -> str:
    if isinstance(hook, WeightNorm):
        remove_weight_norm(module, hook.name)
        return hook.name
    if isinstance(hook, SpectralNorm):
        remove_spectral_norm(module, hook.name)
        _forget_loading(module, hook)
        return hook.name
    prune.remove(module, hook._tensor_name)
    return str(hook._tensor_name)
