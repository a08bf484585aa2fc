"""fxprune: a graph-rewriting compiler over torch.fx that makes convolutional networks small, and proves that it did
so exactly.
"""

from fxprune.errors import FxpruneError
from fxprune.explain import Explanation, explain
from fxprune.pipeline import Compiled, compile
from fxprune.recipe import Recipe

__all__ = ["Compiled", "Explanation", "FxpruneError", "Recipe", "compile", "explain"]
