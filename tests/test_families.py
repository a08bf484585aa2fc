"""Whole families of networks at half their channels: the result equals an oracle that knows nothing of the engine."""

from __future__ import annotations

import copy
import zlib
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from families import EXACT, FAMILIES, build, conv_share, pictures, prunable
from family_oracle import columns, oracle, over_kept_channels, relative
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

import fxprune
from fxprune import Compiled, Recipe

TOLERANCE = 1e-9


def halved(model: nn.Module, x: Tensor, **options: Any) -> Compiled:
    return fxprune.compile(model, x, keep_rate=0.5, select="random", keep_weights=True, seed=3, **options)


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Everything that compiling must leave alone: names, kinds and modes of modules, and the bytes of all numbers."""
    modules = {path: (type(part), part.training) for path, part in model.named_modules()}
    state = {name: (t.dtype, tuple(t.shape), zlib.crc32(t.numpy(force=True))) for name, t in model.state_dict().items()}
    flags = {name: (p.requires_grad, p.grad is None) for name, p in model.named_parameters()}
    return {"modules": modules, "state": state, "flags": flags}


@pytest.mark.parametrize("name", EXACT)
def test_half_of_a_network_is_exact(name: str) -> None:
    model = build(name)
    next(part for part in model.modules() if not list(part.children())).eval()  # modes need not be uniform
    before = fingerprint(model)
    done = halved(model, pictures(name))
    assert fingerprint(model) == before
    assert_report(model, done)
    assert_names(model, done.module)
    assert_equal_to(oracle(model, done.recipe), model, done.module, name)
    assert_trains(done.module, pictures(name))


def assert_report(model: nn.Module, done: Compiled) -> None:
    """Nothing refused, nearly everything prunable, and what is prunable was cut."""
    assert dict(done.report.refused) == {}
    assert conv_share(model, done.report) >= 0.95
    groups = [group for group in prunable(done.report) if group.before > 1]
    assert [group for group in groups if group.after >= group.before] == [] != groups


def assert_names(model: nn.Module, small: nn.Module) -> None:
    """The user's names; modules without numbers that the graph does not call may be missing."""
    assert dict(small.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert small.state_dict().keys() == model.state_dict().keys()
    assert dict(small.named_modules()).keys() <= dict(model.named_modules()).keys()


def assert_equal_to(expected: nn.Module, model: nn.Module, small: nn.Module, name: str) -> None:
    """The oracle's numbers at every batch in eval mode, and in train mode once nothing is random any more.

    Leaves `expected` in train mode and `model` in eval mode.
    """
    small.eval()
    with torch.no_grad():
        for batch in (1, 2, 5):
            x = pictures(name, batch)
            assert relative(expected(x), small(x)) <= TOLERANCE
        assert relative(expected(x), model.eval()(x)) > 1e-3  # else the zeroed columns would not matter
        with NothingDropped():
            twin = copy.deepcopy(small).train()  # keeps the statistics of `small` as they are
            assert relative(expected.train()(x), twin(x)) <= TOLERANCE


class NothingDropped(TorchFunctionMode):
    """Dropout lets everything pass, whether a module or the source calls it; the noise of stochastic depth is 1."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.dropout:
            return args[0]
        if func is Tensor.bernoulli_:
            return args[0].fill_(args[1])  # divided by the survival rate next, which gives 1
        return func(*args, **(kwargs or {}))


def assert_trains(small: nn.Module, x: Tensor) -> None:
    """One step changes the parameters, and every one of them has a finite gradient."""
    optimiser = torch.optim.SGD(small.train().parameters(), lr=1e-3)
    sum(out.square().mean() for out in pytree.tree_leaves(small(x))).backward()
    gradients = {name: parameter.grad for name, parameter in small.named_parameters()}
    assert [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all()] == []
    optimiser.step()
    assert all(parameter.isfinite().all() for parameter in small.parameters())


# -- the checks above can fail ---------------------------------------------------------------------------------------


def test_oracle_rejects_a_wrong_recipe() -> None:
    model, x = build("ghostnet_100"), pictures("ghostnet_100")
    done = halved(model, x)
    name = next(name for name, dims in done.recipe.kept.items() if 1 in dims)
    with torch.no_grad():
        found = done.module.eval()(x)
        assert relative(oracle(model, done.recipe)(x), found) <= TOLERANCE
        assert relative(oracle(model, shifted(done.recipe, name))(x), found) > TOLERANCE


def shifted(recipe: Recipe, name: str) -> Recipe:
    """The recipe with one kept column of one weight exchanged for a removed one."""
    kept = recipe.kept[name][1]
    gone = next(position for position in range(len(kept) + 1) if position not in kept)
    wrong = {**recipe.kept[name], 1: sorted([gone, *kept[1:]])}
    return recipe.model_copy(update={"kept": {**recipe.kept, name: wrong}})


def test_oracle_knows_grouped_and_transposed_layers() -> None:
    def kept_by(layer: nn.Module, kept: dict[int, list[int]], rows: list[list[int]] | None = None) -> list[list[int]]:
        recipe = Recipe.model_construct(kept={"w": kept}, kept_per_group={"w": {1: rows}} if rows else {})
        found = columns("w", layer, recipe)
        return found[..., 0].long().tolist()

    assert kept_by(nn.Conv1d(3, 2, 1), {1: [0, 2], 0: [1]}) == [[1, 0, 1]] * 2
    assert kept_by(nn.ConvTranspose1d(3, 2, 1), {0: [2], 1: [0]}) == [[0, 0], [0, 0], [1, 1]]
    assert kept_by(nn.Conv1d(4, 4, 1, groups=4), {0: [1, 3]}) == [[1]] * 4
    assert kept_by(nn.Conv1d(6, 4, 1, groups=2), {0: [0, 2]}, [[0, 1], [2]]) == [[1, 1, 0]] * 2 + [[0, 0, 1]] * 2
    assert kept_by(nn.Conv1d(6, 4, 1, groups=2), {0: [2, 3]}, [[1]]) == [[1, 1, 1]] * 2 + [[0, 1, 0]] * 2


def test_a_changed_model_is_noticed() -> None:
    model = build("squeezenet1_1")
    before = fingerprint(model)
    with torch.no_grad():
        next(model.parameters()).view(-1)[0].nextafter_(torch.tensor(9.0, dtype=torch.float64))
    assert fingerprint(model) != before


# -- normalisation over channels -------------------------------------------------------------------------------------


def test_convnext_is_exact_where_weights_are_kept() -> None:
    """By default channels behind a LayerNorm stay when weights do; the hidden layers of its blocks are cut exactly."""
    name = "convnext_tiny"
    model = build(name)
    before = fingerprint(model)
    done = halved(model, pictures(name))
    assert fingerprint(model) == before and not done.report.refused
    assert done.report.approximate == {}
    assert "layer normalisation" in done.report.frozen["features.1.0.layer_scale[0]"]
    assert {group.after / group.before for group in prunable(done.report)} == {0.5}
    assert_names(model, done.module)
    assert_equal_to(oracle(model, done.recipe), model, done.module, name)
    assert_trains(done.module, pictures(name))


def test_convnext_cut_equals_layer_norms_over_kept_channels() -> None:
    name = "convnext_tiny"
    model = build(name)
    done = halved(model, pictures(name), approximate="cut")
    assert not done.report.refused and conv_share(model, done.report) >= 0.95
    approximate = done.report.approximate
    assert len(approximate) >= 4 and all("layer normalisation" in why for why in approximate.values())
    assert [group for group in prunable(done.report) if group.after >= group.before] == []
    whole = oracle(model, done.recipe)
    reference = over_kept_channels(copy.deepcopy(whole), done.recipe)
    assert_equal_to(reference, model, done.module, name)
    with torch.no_grad():
        x = pictures(name)
        assert relative(whole(x), reference(x)) > 1e-3  # that is what approximate means
    assert_trains(done.module, pictures(name))


def test_convnext_is_approximate_by_default_when_weights_are_drawn() -> None:
    model, x = build("convnext_tiny", dtype=torch.float32), pictures("convnext_tiny", dtype=torch.float32)
    done = fxprune.compile(model, x, keep_rate=0.5, select="random", seed=3)
    assert done.report.approximate and not done.report.refused
    assert_trains(done.module, x)


def test_every_network_is_listed_once() -> None:
    assert len(FAMILIES) == 22 and len({family.spec for family in FAMILIES.values()}) == 22 and len(EXACT) == 21
