"""Leaf modules: which of them are understood, and how their own numbers follow their parameters' shapes."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fxprune.program import named_tensors


def understood(module: nn.Module) -> bool:
    """True when every number the leaf holds can be derived from its parameters, or it holds nothing but settings."""
    if "parametrizations" in module._modules or module._forward_hooks or module._forward_pre_hooks:
        return False
    if _follower(module):
        return True
    return not named_tensors(module)


def why_opaque(module: nn.Module) -> str:
    """Why a leaf is not understood, to follow its name."""
    if module._forward_hooks or module._forward_pre_hooks:
        return "whose forward hooks may do anything (remove them and compile again)"
    return "whose own numbers fxprune does not know how to change"


def follow_shapes(module: nn.Module) -> None:
    """Set in_channels, num_features and the like from the shapes of the module's parameters. `groups` is not
    touched.
    """
    follow = _follower(module)
    if follow:
        follow(module)


def _follower(module: nn.Module) -> Callable[[nn.Module], None] | None:
    kind = type(module)
    if kind not in _FOLLOWER_OF:
        _FOLLOWER_OF[kind] = next((follow for known, follow in _FOLLOWERS.items() if issubclass(kind, known)), None)
    return _FOLLOWER_OF[kind]


def _convolution(module: nn.Module) -> None:
    assert isinstance(module, _ConvNd)
    rows, columns = module.weight.shape[0], module.weight.shape[1] * module.groups
    transposed = isinstance(module, _ConvTransposeNd)
    module.in_channels, module.out_channels = (rows, columns) if transposed else (columns, rows)


def _linear(module: nn.Module) -> None:
    assert isinstance(module, nn.Linear)
    module.out_features, module.in_features = module.weight.shape


def _features(module: nn.Module) -> None:
    assert isinstance(module, _NormBase)
    tensors = (module.weight, module.bias, module.running_mean)
    for tensor in tensors:
        if tensor is not None:
            module.num_features = tensor.shape[0]


def _last_dims(module: nn.Module) -> None:
    assert isinstance(module, nn.LayerNorm | nn.RMSNorm)
    if module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)


def _group_norm(module: nn.Module) -> None:
    assert isinstance(module, nn.GroupNorm)
    if module.weight is not None:
        module.num_channels = module.weight.shape[0]


def _prelu(module: nn.Module) -> None:
    assert isinstance(module, nn.PReLU)
    module.num_parameters = module.weight.shape[0]


def _embedding(module: nn.Module) -> None:
    assert isinstance(module, nn.Embedding)
    module.num_embeddings, module.embedding_dim = module.weight.shape


_FOLLOWERS: dict[type[nn.Module], Callable[[nn.Module], None]] = {
    _ConvNd: _convolution,
    nn.Linear: _linear,
    _NormBase: _features,
    nn.LayerNorm: _last_dims,
    nn.RMSNorm: _last_dims,
    nn.GroupNorm: _group_norm,
    nn.PReLU: _prelu,
    nn.Embedding: _embedding,
}
_FOLLOWER_OF: dict[type[nn.Module], Callable[[nn.Module], None] | None] = {}  # of every class met so far
