"""fxprune: a graph-rewriting compiler over torch.fx that makes convolutional networks small, and proves that it did
so exactly.

The public names are loaded when they are first used, so that `fxprune --help` does not wait for torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from fxprune.errors import FxpruneError
    from fxprune.explain import Explanation, explain
    from fxprune.pipeline import Compiled, compile
    from fxprune.recipe import Recipe

__all__ = ["Compiled", "Explanation", "FxpruneError", "Recipe", "apply", "compile", "explain"]

_HOMES = {
    "Compiled": "fxprune.pipeline",
    "Explanation": "fxprune.explain",
    "FxpruneError": "fxprune.errors",
    "Recipe": "fxprune.recipe",
    "compile": "fxprune.pipeline",
    "explain": "fxprune.explain",
}


def apply(recipe: Recipe, model: nn.Module) -> nn.Module:
    """A copy of `model` with the channels removed that the recipe names; see `Recipe.apply`. Raises RewriteError."""
    return recipe.apply(model)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing a submodule binds it to its package, and the function fxprune.explain would be lost to its module."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
