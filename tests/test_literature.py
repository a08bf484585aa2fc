"""Networks as the literature writes them: cut by half at random, exact, trainable, and written as source.

The oracle is the user's own network in which nothing reads a removed channel; where channels meet outside of layers too
(attention, lengths of vectors), they are not made either.
"""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from family_oracle import listed, oracle, relative
from models_literature import LITERATURE, inputs, trained_alike
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

import fxprune
from fxprune.program import named_tensors

EXACT = 1e-9
every_work = pytest.mark.parametrize("name", LITERATURE)


@cache
def halved(name: str) -> fxprune.Compiled:
    """Half of every group goes at random; the first group that the proof refuses ends it."""
    work = LITERATURE[name]
    return fxprune.compile(
        trained_alike(work), inputs(work), keep_rate=0.5, select="random", keep_weights=True, approximate="cut",
        retry=False, seed=3,
    )  # fmt: skip


def silent(model: nn.Module, recipe: fxprune.Recipe) -> nn.Module:
    """The network with removed entries of its parameters at zero; running statistics stay, nothing reads them."""
    with torch.no_grad():
        for name, tensor in named_tensors(model).items():
            for dim, kept in recipe.kept.get(name, {}).items():
                if isinstance(tensor, nn.Parameter):
                    tensor.mul_(listed(tensor, dim, kept))
    return model


def plain(model: nn.Module) -> nn.Module:
    """Weights that are computed become what they are."""
    for part in model.modules():
        for name in list(getattr(part, "parametrizations", {})):
            parametrize.remove_parametrizations(part, name)
    return model


@every_work
def test_exact(name: str) -> None:
    work, done = LITERATURE[name], halved(name)
    assert not done.report.refused and done.report.proof_error is not None and done.report.proof_error <= EXACT
    if work.statistic:
        assert any(work.statistic in reason for reason in done.report.approximate.values())
        return  # the engine's own reference has shown it the kept channels
    assert not done.report.approximate
    dense = oracle(plain(trained_alike(work)), done.recipe)
    if work.meets:
        silent(dense, done.recipe)
    with torch.no_grad():
        found, expected = done.module.eval()(*inputs(work)), dense(*inputs(work))
        assert type(found) is type(expected)
        assert relative(expected, found) <= EXACT
        assert relative(trained_alike(work)(*inputs(work)), found) > 1e-6, "nothing was at stake"


@every_work
def test_share_and_reasons(name: str) -> None:
    """Nearly all can go, and what cannot is either the network's output or has the reason that is expected."""
    work, done = LITERATURE[name], halved(name)
    sizes = {parameter: one.numel() for parameter, one in named_tensors(plain(trained_alike(work))).items()}
    made = {parameter for group in done.report.groups for parameter in group.producers}
    free = {parameter for group in done.report.groups if not group.frozen for parameter in group.producers}
    assert sum(sizes[one] for one in free) >= work.share * sum(sizes[one] for one in made)
    reasons = " ".join(group.frozen for group in done.report.groups if group.frozen and group.producers)
    assert all(words in reasons for words in work.frozen), reasons


@every_work
def test_trains_and_is_written_as_source(name: str) -> None:
    work, done = LITERATURE[name], halved(name)
    own = copy.deepcopy(done.module).train()  # training moves statistics, and other tests look at the same network
    outputs = [one for one in pytree.tree_leaves(own(*inputs(work))) if isinstance(one, Tensor)]
    torch.stack([one.square().mean() for one in outputs]).sum().backward()
    gradients = [one.grad for one in own.parameters() if one.grad is not None]
    assert gradients and all(bool(one.isfinite().all()) for one in gradients)
    assert done.report.front_end == "fx"
    assert done.to_source().difference <= EXACT


def test_the_oracle_sees_a_wrong_channel() -> None:
    name = "Res2Net"
    work, done = LITERATURE[name], halved(name)
    kept = copy.deepcopy(dict(done.recipe.kept))
    width = named_tensors(trained_alike(work))["b.weight"].shape[1]
    kept["b.weight"][1] = [(index + 1) % width for index in kept["b.weight"][1]]
    dense = oracle(trained_alike(work), done.recipe.model_copy(update={"kept": kept}))
    with torch.no_grad():
        assert relative(dense(*inputs(work)), done.module.eval()(*inputs(work))) > 1e-6
