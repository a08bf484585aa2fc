"""Back into the dense network's coordinates: what was cut out and put back is what it was, and computes the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import NETWORKS, call
from test_recipe import Grouped, Tied
from torch import Tensor, nn

import fxprune
from fxprune import Recipe, zoo
from fxprune.errors import RewriteError

DENSE: dict[str, Any] = {
    "grouped": (Grouped, (2, 3, 8, 8)),
    "tied": (Tied, (2, 3, 8, 8)),
    "resnet8": (lambda: zoo.build("resnet8"), (2, 3, 32, 32)),
    "mobilenet10": (lambda: zoo.build("mobilenet10"), (2, 3, 32, 32)),
}


def compiled(name: str, **options: Any) -> tuple[nn.Module, fxprune.Compiled]:
    make, shape = DENSE[name]
    torch.manual_seed(6)
    model = make()
    asked = {"keep_rate": 0.5, "keep_weights": True, "select": "random", "proof": False} | options
    return model, fxprune.compile(model, torch.zeros(shape), **asked)


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("name", DENSE)
def test_slices_put_back_are_the_dense_network(name: str) -> None:
    model, done = compiled(name)
    dense = model.state_dict()
    for small in (done.recipe.apply(model).state_dict(), done.state_dict(), done.module.state_dict()):
        assert same(done.recipe.expand(small, dense), dense)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(["grouped", "tied"]), st.floats(0.1, 1), st.integers(0, 1000))
def test_cut_and_put_back(name: str, keep_rate: float, seed: int) -> None:
    """Any cut of any numbers: small -> dense -> small is small, dense -> small -> dense is dense."""
    model, done = compiled(name, keep_rate=keep_rate, seed=seed)
    recipe = Recipe.from_json(done.recipe.to_json())
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    dense, small = model.state_dict(), recipe.apply(model)
    assert same(recipe.expand(small.state_dict(), dense), dense)
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
    expanded = recipe.expand(small.state_dict(), dense)
    model.load_state_dict(expanded)
    assert same(dict(recipe.apply(model).state_dict()), dict(small.state_dict()))


@pytest.mark.parametrize("name", ["grouped", "resnet8", "mobilenet10"])
def test_put_into_zeros_it_computes_what_the_small_one_does(name: str) -> None:
    model, done = compiled(name)
    small = done.recipe.apply(model.double())
    zeros = {key: torch.zeros_like(one) for key, one in model.state_dict().items()}
    variances = {key: torch.ones_like(one) for key, one in zeros.items() if key.endswith("running_var")}
    model.load_state_dict(done.recipe.expand(small.state_dict(), {**zeros, **variances}))
    x = torch.randn(DENSE[name][1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.allclose(model.eval()(x), small.eval()(x), rtol=1e-9, atol=1e-12)


def test_only_what_is_left_changes() -> None:
    model, done = compiled("grouped")
    dense = model.state_dict()
    small = {name: torch.full_like(one, 7) for name, one in done.state_dict().items()}
    expanded = done.recipe.expand(small, dense)
    for name, tensor in done.state_dict().items():
        assert int((expanded[name] == 7).sum()) == tensor.numel()
        assert torch.equal(expanded[name][expanded[name] != 7], dense[name][expanded[name] != 7])
        assert not (dense[name] == 7).all()


def test_masked_weights_are_zeros_in_their_places() -> None:
    model, done = compiled("resnet8", keep_rate=None, select="saliency", sparsity=0.8)
    dense, small = model.state_dict(), done.state_dict()
    expanded = done.recipe.expand(small, dense)
    assert expanded.keys() == dense.keys() and done.recipe.masks
    for name in done.recipe.masks:
        if name not in done.recipe.kept:
            assert torch.equal(expanded[name] == 0, ~small[f"{name}_mask"])
    revived = {name: one.clone() for name, one in done.module.state_dict().items()}
    for name in revived:
        if name.endswith("original"):
            revived[name] += 1
    again = done.recipe.expand(revived, dense)
    name = next(name for name in done.recipe.masks if name not in done.recipe.kept)
    assert torch.equal(again[name] == 0, expanded[name] == 0)


def test_types_and_other_names_of_the_dense_state_stay() -> None:
    model, done = compiled("grouped")
    dense = {**model.half().state_dict(), "epoch_counter": torch.tensor(3)}
    small = {name: one.double() for name, one in done.state_dict().items() if one.is_floating_point()}
    expanded = done.recipe.expand(small, dense)
    assert {name: one.dtype for name, one in expanded.items()} == {name: one.dtype for name, one in dense.items()}
    assert expanded["epoch_counter"] == 3


@pytest.mark.parametrize("name", ["index_buffer", "index_select", "buffer_factor"])
def test_index_buffers_keep_the_dense_numbers(name: str) -> None:
    case = NETWORKS[name]
    model = case.model()
    done = fxprune.compile(model, case.example(), keep_rate=0.5, keep_weights=True, proof=False)
    dense = model.state_dict()
    assert same(done.recipe.expand(done.state_dict(), dense), dense)
    assert done.recipe.indices or name == "buffer_factor"


def test_constants_and_buffers_without_a_home_are_no_part_of_the_dense_state() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)
            self.register_buffer("scale", torch.rand(6, 1, 1), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.c(self.a(x) * self.scale + torch.tensor([0.5]))
            return out

    model = Scaled()
    done = fxprune.compile(model, torch.zeros(2, 3, 8, 8), keep_rate=0.5, keep_weights=True, proof=False)
    assert set(done.recipe.constants) == set(done.state_dict()) - set(model.state_dict()) and done.recipe.constants
    assert same(done.recipe.expand(done.state_dict(), model.state_dict()), model.state_dict())


@pytest.mark.parametrize(
    ("small", "dense", "complaint"),
    [
        (lambda s: s.pop("first.weight"), lambda d: None, r"the trained state lacks first\.weight"),
        (lambda s: s.update(more=torch.zeros(1)), lambda d: None, "the dense state does not have more"),
        (lambda s: None, lambda d: d.pop("middle.weight"), r"cuts middle\.weight, which the dense state does not have"),
        (lambda s: None, lambda d: d.pop("classes.bias"), r"the dense state does not have classes\.bias"),
        (
            lambda s: s.update({"first.weight": s["first.weight"][:2]}),
            lambda d: None,
            r"first\.weight has shape \(2, .*the recipe leaves \(8, 3, 3, 3\)",
        ),
        (lambda s: s.update({"classes.bias": torch.zeros(6)}), lambda d: None, r"classes\.bias has shape \(6,\)"),
        (lambda s: None, lambda d: d.update({"first.bias": torch.zeros(9)}), r"first\.bias has shape \(9,\)"),
    ],
    ids=range(7),
)  # fmt: skip
def test_what_does_not_fit_is_refused(small: Any, dense: Any, complaint: str) -> None:
    model, done = compiled("grouped")
    theirs, ours = dict(done.state_dict()), dict(model.state_dict())
    small(theirs)
    dense(ours)
    with pytest.raises(RewriteError, match=complaint):
        done.recipe.expand(theirs, ours)


def test_network_that_standardises_its_weights_is_refused() -> None:
    case = NETWORKS["weight_standardised"]
    model = case.model()
    done = fxprune.compile(model, case.example(), keep_rate=0.5, keep_weights=True, approximate="cut", proof=False)
    if done.recipe.folded:
        with pytest.raises(RewriteError, match="computes statistics over its own weights"):
            done.recipe.expand(done.state_dict(), model.state_dict())


def test_dense_network_goes_on_after_a_round() -> None:
    """One round of federated training: the small network trains, the dense one takes its numbers over."""
    model, done = compiled("resnet8")
    before = call(model.eval(), (torch.ones(2, 3, 32, 32),))
    small = done.recipe.apply(model)
    optimiser = torch.optim.SGD(small.parameters(), lr=0.1)
    small(torch.randn(4, 3, 32, 32)).square().mean().backward()
    optimiser.step()
    model.load_state_dict(done.recipe.expand(small.state_dict(), model.state_dict()))
    after = call(model.eval(), (torch.ones(2, 3, 32, 32),))
    assert not torch.allclose(before, after)
