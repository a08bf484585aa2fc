"""The public names: a list that changes on purpose only, loaded when first used."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import fxprune
from fxprune import zoo

PUBLIC = [
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


def test_public_names_are_these() -> None:
    assert fxprune.__all__ == PUBLIC
    assert len(PUBLIC) <= 10


@pytest.mark.parametrize("name", PUBLIC)
def test_each_name_is_there_under_its_own_name(name: str) -> None:
    assert getattr(fxprune, name).__name__ == name
    assert name in dir(fxprune)


def test_other_names_are_refused() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'compilation'"):
        fxprune.compilation  # noqa: B018


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, fxprune; print('torch' in sys.modules); fxprune.Recipe; print('torch' in sys.modules)"
    assert run(code).split() == ["False", "True"]


@pytest.mark.parametrize(
    "first",
    ["import fxprune.explanation", "from fxprune.explanation import Explanation", "from fxprune import explain"],
)
def test_submodule_does_not_take_the_place_of_the_function(first: str) -> None:
    code = f"{first}\nimport fxprune\nprint(type(fxprune.explain).__name__)"
    assert run(code) == "function"


def test_apply_does_what_the_recipe_does() -> None:
    model = zoo.build("resnet8")
    recipe = fxprune.compile(model, torch.zeros(2, 3, 32, 32), keep_rate=0.5).recipe
    small = fxprune.apply(recipe, model)
    assert isinstance(small, nn.Sequential)
    expected = recipe.apply(model).state_dict()
    assert {name: one.shape for name, one in small.state_dict().items()} == {
        name: one.shape for name, one in expected.items()
    }
    assert small.state_dict()["conv1.weight"].shape[0] == 8
