"""Recipes: applied to the user's own class they give the function that was compiled; what does not fit is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cut_networks import compiled, noisy
from torch import Tensor, nn

import fxprune
from fxprune import Recipe, zoo
from fxprune.capture.zoo_imports import import_torchvision
from fxprune.errors import LoadError, RewriteError


class Grouped(nn.Module):
    """Conv groups that lose different positions, GroupNorm, a depthwise layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, groups=4, padding=1)
        self.norm, self.depthwise = nn.BatchNorm2d(24), nn.Conv2d(24, 24, 3, groups=24)
        self.middle, self.classes = nn.Conv2d(24, 12, 1), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.norm(self.grouped(self.first(x).relu())).relu())
        out: Tensor = self.classes(self.middle(x).relu().mean((2, 3)))
        return out


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.again = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.again.weight = self.second.weight
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.again(self.second(self.first(x)).relu()))
        return out


def resnet18() -> nn.Module:
    return import_torchvision().models.resnet18(num_classes=7)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (resnet18, 64),
    "mobilenet10": (lambda: zoo.build("mobilenet10"), 32),
    "vgg11": (lambda: zoo.build("vgg11"), 32),
    "grouped": (Grouped, 8),
    "tied": (Tied, 8),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_applied_to_the_user_s_class_it_gives_the_same_function(name: str) -> None:
    make, size = NETWORKS[name]
    model = noisy(make())
    done = compiled(model, size)
    small = done.recipe.apply(model)
    assert type(small) is type(model)
    x = torch.randn(3, 3, size, size, dtype=torch.float64)
    with torch.no_grad():
        expected, found = done.module.eval()(x), small.eval()(x)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)
    assert {key: value.shape for key, value in small.state_dict().items()} == {
        key: value.shape for key, value in done.state_dict().items()
    }
    assert sum(one.numel() for one in small.parameters()) < sum(one.numel() for one in model.parameters())


def test_modules_say_their_new_sizes() -> None:
    model = Grouped()
    small = compiled(model, 8).recipe.apply(model)
    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            assert module.out_channels == module.weight.shape[0]
            assert module.in_channels == module.weight.shape[1] * module.groups
        if isinstance(module, nn.BatchNorm2d):
            assert module.num_features == module.running_mean.shape[0]  # type: ignore[union-attr]
    assert small.depthwise.groups == small.depthwise.out_channels == 12


def test_the_given_model_is_left_alone_and_shares_nothing() -> None:
    model = zoo.build("mobilenet10")
    before = copy.deepcopy(model.state_dict())
    small = compiled(model, 32).recipe.apply(model)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.fill_(7.0)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model.fc.out_features == 10 and model.features[0].out_channels == 32


def test_tied_weights_stay_tied() -> None:
    model = Tied()
    small = compiled(model, 8).recipe.apply(model)
    assert small.again.weight is small.second.weight


def test_kept_indices_name_what_the_compiled_network_holds() -> None:
    model = zoo.build("vgg11")
    done = compiled(model, 32)
    for name, dims in done.recipe.kept.items():
        tensor = model.state_dict()[name]
        for dim, kept in dims.items():
            assert kept == sorted(set(kept)) and kept[0] >= 0 and kept[-1] < tensor.shape[dim]
            tensor = tensor.index_select(dim, torch.tensor(kept))
        assert torch.equal(tensor, done.state_dict()[name])


def test_every_tensor_that_lost_entries_is_in_the_recipe() -> None:
    model = Grouped()
    done = compiled(model, 8)
    lost = {name for name, tensor in model.state_dict().items() if done.state_dict()[name].shape != tensor.shape}
    assert set(done.recipe.kept) | set(done.recipe.kept_per_group) == lost


def test_conv_groups_that_lose_different_positions() -> None:
    model = Grouped()
    recipe = compiled(model, 8).recipe
    (columns,) = recipe.kept_per_group["grouped.weight"].values()
    assert [len(one) for one in columns] == [2] * 4
    assert all(0 <= place < 4 for one in columns for place in one)
    assert 1 not in recipe.kept.get("grouped.weight", {})


def test_applied_to_another_copy_with_other_weights() -> None:
    """The recipe carries positions, not numbers."""
    recipe = compiled(zoo.build("vgg11"), 32).recipe
    other = zoo.build("vgg11", seed=9)
    small = recipe.apply(other)
    kept = recipe.kept["features.0.weight"][0]
    assert torch.equal(small.features[0].weight, other.features[0].weight[kept])


def test_recipe_of_masks_cuts_and_does_not_mask() -> None:
    model = zoo.build("vgg11")
    done = compiled(model, 32, keep_rate=None, select="saliency", sparsity=0.9)
    small = done.recipe.apply(model)
    assert bool((small.features[0].weight != 0).all())
    assert small.classifier.in_features < 512


# ---- misfits


def test_refuses_a_network_without_the_parameter() -> None:
    recipe = compiled(zoo.build("vgg11"), 32).recipe
    with pytest.raises(RewriteError, match=r"features\.\d+\.\w+, which Sequential does not have"):
        recipe.apply(nn.Sequential(nn.Conv2d(3, 64, 3)))


@pytest.mark.parametrize("width", [8, 32], ids=["narrower", "wider"])
def test_refuses_a_network_of_another_width(width: int) -> None:
    def make(channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 4, 1))

    recipe = compiled(make(16), 8, select="saliency").recipe
    with pytest.raises(RewriteError, match=r"0\.(weight|bias)"):
        recipe.apply(make(width))


def test_refuses_a_network_of_other_dimensions() -> None:
    recipe = compiled(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 4, 1)), 8).recipe
    with pytest.raises(RewriteError, match="weight"):
        recipe.apply(nn.Sequential(nn.Linear(3, 16), nn.Linear(4, 4)))


# ---- text


def test_text_is_sorted_json_with_everything_in_it() -> None:
    recipe = compiled(Grouped(), 8).recipe
    content = json.loads(recipe.to_json())
    assert set(content) == set(Recipe.model_fields)
    assert (content["format"], content["version"]) == ("fxprune-recipe", 1)
    assert content["kept"]["first.weight"] == {"0": recipe.kept["first.weight"][0]}
    assert content["options"]["keep_rate"] == 0.5 and content["options"]["select"] == "random"
    assert content["versions"]["torch"] == torch.__version__
    assert recipe.to_json() == compiled(Grouped(), 8).recipe.to_json()


def test_text_differs_with_the_seed() -> None:
    assert compiled(Grouped(), 8).recipe.to_json() != compiled(Grouped(), 8, seed=1).recipe.to_json()


def test_option_lists_reach_the_text() -> None:
    recipe = compiled(Grouped(), 8, ignore=["middle"]).recipe
    assert json.loads(recipe.to_json())["options"]["ignore"] == ["middle"]
    assert "middle.weight" not in recipe.kept or 0 not in recipe.kept["middle.weight"]


# ---- read back


def test_recipe_comes_back_from_its_text_and_works() -> None:
    model = Grouped()
    recipe = compiled(model, 8).recipe
    again = Recipe.from_json(recipe.to_json())
    assert again.to_json() == recipe.to_json() and again.kept == recipe.kept
    ours, theirs = (fxprune.apply(one, model).state_dict() for one in (recipe, again))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def damaged(change: Callable[[dict[str, Any]], Any]) -> str:
    content = json.loads(compiled(Grouped(), 8).recipe.to_json())
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda r: r.update(version=2), "has version 2, and this fxprune reads up to 1: install a newer fxprune"),
        (lambda r: r.update(version="1"), "is damaged: version"),
        (lambda r: r.update(format="other"), "is not a recipe that fxprune wrote"),
        (lambda r: r.pop("format"), "is damaged|is not a recipe"),
        (lambda r: r.pop("kept"), "is damaged: kept: Field required"),
        (lambda r: r.update(run="os.system"), "is damaged: run: Extra inputs are not permitted"),
        (lambda r: r["kept"].update({"first.weight": {"0": [3, 1]}}), "keeps position 1 of dimension 0"),
        (lambda r: r["kept"].update({"first.weight": {"0": [99]}}), "keeps position 99 of dimension 0, which has 16"),
        (lambda r: r["kept"].update({"first.weight": {"0": [-1]}}), "keeps position -1"),
        (lambda r: r["kept"].update({"first.weight": {"9": [1]}}), "has no dimension 9"),
        (lambda r: r["kept"].update({"nowhere": {"0": [1]}}), "nowhere has no dimension 0"),
        (lambda r: r["kept"].update({"first.weight": {"0": [1.5]}}), "is damaged: kept.first.weight.0.0"),
        (lambda r: r["kept"].update({"first.weight": {"x": [1]}}), "is damaged: kept.first.weight.x"),
        (lambda r: r["kept_per_group"].update({"grouped.weight": {"1": [[0], [0, 1]]}}), "equally many columns"),
        (lambda r: r["kept_per_group"].update({"grouped.weight": {"1": []}}), "equally many columns"),
        (lambda r: r["kept_per_group"].update({"grouped.weight": {"1": [[0]] * 5}}), "12 rows, which 5 conv groups"),
        (lambda r: r["numbers"].update({"grouped": {"forward": 1}}), "is damaged: numbers.grouped.forward"),
        (lambda r: r["numbers"].update({"grouped": {"groups": {}}}), "is damaged: numbers.grouped.groups"),
        (lambda r: r.update(files={"../../evil": "0"}), "is damaged: files"),
    ],
    ids=range(19),
)  # fmt: skip
def test_damaged_recipes_are_refused_in_one_line(change: Callable[[dict[str, Any]], Any], complaint: str) -> None:
    with pytest.raises(LoadError, match=complaint) as caught:
        Recipe.from_json(damaged(change), "net/recipe.json")
    assert str(caught.value).startswith("net/recipe.json ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "NaN", b"\xff\xfe", "[" * 100_000, '{"format": "fxprune-recipe", "version": 1e999}',
             '{"kept": ' * 5000, "9" * 10_000], ids=range(10),
)  # fmt: skip
def test_what_is_no_recipe_is_refused(text: str | bytes) -> None:
    with pytest.raises(LoadError):
        Recipe.from_json(text)


def test_numbers_of_modules_that_the_network_lacks_are_refused() -> None:
    recipe = compiled(Grouped(), 8).recipe.model_copy(update={"numbers": {"no.where": {"groups": 2}}})
    with pytest.raises(RewriteError, match=r"changes no\.where, which Grouped does not have"):
        recipe.apply(Grouped())
