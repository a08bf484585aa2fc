"""fxprune: a graph-rewriting compiler over torch.fx that makes convolutional networks small, and proves that it did
so exactly.

The public names are loaded when they are first used, so that `fxprune --help` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from fxprune.artefacts import load
    from fxprune.compiled import Compiled
    from fxprune.errors import FxpruneError
    from fxprune.explanation import Explanation, explain
    from fxprune.learner import StructureLearner
    from fxprune.pipeline import compile
    from fxprune.planning import plan
    from fxprune.recipe import Recipe

__all__ = [
    "Compiled",
    "Explanation",
    "FxpruneError",
    "Recipe",
    "StructureLearner",
    "apply",
    "compile",
    "explain",
    "load",
    "plan",
]

_HOMES = {
    "Compiled": "fxprune.compiled",
    "Explanation": "fxprune.explanation",
    "FxpruneError": "fxprune.errors",
    "Recipe": "fxprune.recipe",
    "StructureLearner": "fxprune.learner",
    "compile": "fxprune.pipeline",
    "explain": "fxprune.explanation",
    "load": "fxprune.artefacts",
    "plan": "fxprune.planning",
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
