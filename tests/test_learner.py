"""StructureLearner: saliency against its definition, scopes, and the cut."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from learner_networks import IMAGES, batch, learned, plain, step
from models import Case
from oracle import EXACT, difference, zeroed
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune import zoo
from fxprune.errors import NothingPrunableError
from fxprune.learner import StructureLearner


def first_order(learner: StructureLearner) -> dict[str, Tensor]:
    """Signed sums by the first layer that makes the group."""
    sums = learner._saliency._first_order(dict(learner.model.named_parameters()))
    return {group.producers[0]: one for group, one in zip(learner.groups, sums.split(learner.limits), strict=True)}


READ_AT = {"inner.0.weight": ("inner.1",), "bare.weight": ("bare",), "stem.0.weight": ("stem.1", "outer.1")}


def test_sums_equal_those_over_the_feature_maps() -> None:
    model, data = plain(torch.float64), batch(torch.float64)
    learner = StructureLearner(model, data[0], scope="all")
    seen: dict[str, list[Tensor]] = {}

    def note(name: str, _module: nn.Module, _given: Any, output: Tensor) -> None:
        output.retain_grad()
        seen.setdefault(name, []).append(output)

    for names in READ_AT.values():
        for name in names:
            model.get_submodule(name).register_forward_hook(partial(note, name))
    step(model, data)
    found = first_order(learner)
    assert set(found) == set(READ_AT)
    for producer, names in READ_AT.items():
        maps = [one for name in names for one in seen[name]]
        expected = sum((one * one.grad).sum((0, 2, 3)).detach() for one in maps if one.grad is not None)
        assert torch.allclose(found[producer], expected, rtol=1e-9, atol=1e-15)  # type: ignore[arg-type]


@pytest.mark.parametrize(("producer", "part"), [("inner.0.weight", "inner.1"), ("bare.weight", "bare")])
def test_equation_5_is_the_change_of_the_loss_to_first_order(producer: str, part: str) -> None:
    model, data = plain(torch.float64), batch(torch.float64)
    learner = StructureLearner(model, data[0], scope="all")
    step(model, data)
    expected = first_order(learner)[producer]
    small = 1e-6

    def loss_with(channel: int, scale: float) -> float:
        twin = copy.deepcopy(model)
        owner = twin.get_submodule(part)
        with torch.no_grad():
            owner.get_parameter("weight")[channel] *= scale
            owner.get_parameter("bias")[channel] *= scale
        return F.cross_entropy(twin(data[0]), data[1]).item()

    for channel in range(len(expected)):
        slope = (loss_with(channel, 1 + small) - loss_with(channel, 1 - small)) / (2 * small)
        assert slope == pytest.approx(expected[channel].item(), rel=1e-5, abs=1e-10)


def test_in_front_of_a_batch_norm_there_is_nothing_to_read() -> None:
    model, data = plain(torch.float64), batch(torch.float64)
    learner = StructureLearner(model, data[0], scope="all")
    maps: list[Tensor] = []
    model.get_submodule("inner.0").register_forward_hook(
        lambda _module, _given, output: (output.retain_grad(), maps.append(output))[0]
    )
    step(model, data)
    in_front = (maps[0] * maps[0].grad).sum((0, 2, 3)).abs().max()  # type: ignore[operator]
    behind = first_order(learner)["inner.0.weight"].abs().max()
    assert behind > 1e-3
    assert in_front < 1e-4 * behind  # not zero to the last bit: eps of the normalisation has a scale


def test_equations_6_and_7() -> None:
    model = plain()
    learner = StructureLearner(model, batch()[0], scope="all", decay=0.9)
    expected = [torch.zeros(limit) for limit in learner.limits]
    for seed in range(3):
        step(model, batch(seed=seed))
        assert learner.update()
        for number, sums in enumerate(first_order(learner).values()):
            expected[number] = 0.9 * expected[number] + sums.abs() / sums.abs().max()
    for ours, theirs in zip(learner.saliency, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5)


def test_a_dead_group_scores_zero() -> None:
    model = plain()
    with torch.no_grad():
        model.get_parameter("head.weight").zero_()
    learner = StructureLearner(model, batch()[0], scope="all")
    step(model, batch())
    assert learner.update()
    assert all(bool(one.isfinite().all()) and not bool(one.any()) for one in learner.saliency)
    learner.redistribute()
    assert sum(learner.widths) == pytest.approx(0.5 * sum(learner.limits))


@pytest.mark.parametrize(
    ("name", "layers"), [("resnet32", 15), ("resnet56", 27), ("vgg16", 13), ("mobilenet10", 10), ("resnet50", 32)]
)
def test_prunable_layers_of_the_paper(name: str, layers: int) -> None:
    shape = zoo.entry(name).input_shape
    learner = StructureLearner(zoo.build(name), torch.zeros(2, *shape[-3:]))
    assert len(learner.groups) == layers
    assert all(len(group.producers) == 1 for group in learner.groups)


def test_residual_groups_take_part_in_scope_all() -> None:
    model = zoo.build("resnet8")
    assert len(StructureLearner(model, torch.zeros(2, 3, 32, 32), scope="all").groups) == 6
    assert len(StructureLearner(model, torch.zeros(2, 3, 32, 32)).groups) == 3


def test_an_empty_scope_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4))
    with pytest.raises(NothingPrunableError, match="scope='all'"):
        StructureLearner(model, batch()[0])


def test_frozen_layers_keep_their_widths() -> None:
    model = plain()
    model.get_submodule("inner").requires_grad_(False)
    learner = learned(model)
    assert [group.producers[0] for group in learner.left_out] == ["inner.0.weight"]
    assert "inner.0.weight" not in {group.producers[0] for group in learner.groups}
    done = learner.finish()
    assert done.module.get_parameter("inner.0.weight").shape[0] == 6
    assert "frozen weights keep their widths (1 group: inner.0)" in done.report.notes
    with pytest.raises(NothingPrunableError, match="the others are frozen"):
        StructureLearner(plain().requires_grad_(False), batch()[0])


def test_the_cut_network_equals_the_full_one_with_channels_zeroed() -> None:
    model = plain()
    learner = learned(model)
    dense = copy.deepcopy(model)
    done = learner.finish()
    assert done.report.proof_error is not None
    assert done.report.proof_error <= EXACT
    case = Case(plain, IMAGES, cut={})
    expected = zeroed(dense, case, done.recipe).double().eval()(batch(torch.float64)[0])
    assert difference(expected, done.module.double().eval()(batch(torch.float64)[0])) <= EXACT


def test_the_largest_saliencies_stay_and_the_counts_add_up() -> None:
    learner = learned(plain())
    done = learner.finish()
    kept = done.recipe.kept["inner.0.weight"][0]
    number = next(k for k, group in enumerate(learner.groups) if "inner.0.weight" in group.producers)
    best = learner.saliency[number].argsort(descending=True, stable=True)[: len(kept)]
    assert kept == sorted(best.tolist())
    widths = learner.final_widths()
    assert sum(widths) == round(0.5 * sum(learner.limits))
    assert all(1 <= width <= limit for width, limit in zip(widths, learner.limits, strict=True))
    assert len(kept) == widths[number]


def test_the_model_itself_is_left_alone() -> None:
    model = plain()
    learner = learned(model)
    before = copy.deepcopy(model.state_dict())
    done = learner.finish()
    step(done.module, batch())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_momentum_is_cut_along() -> None:
    model = plain()
    learner = StructureLearner(model, batch()[0])
    scale = nn.Parameter(torch.ones(()))
    optimizer = torch.optim.Adam([{"params": model.parameters()}, {"params": [scale], "lr": 0.5}], lr=0.01)
    for number in range(3):
        step(model, batch(seed=number))
        learner.update()
        optimizer.step()
    learner.redistribute()
    before = optimizer.state[model.get_parameter("inner.0.weight")]["exp_avg"].clone()
    done = learner.finish(optimizer)
    ours = done.module.get_parameter("inner.0.weight")
    kept = done.recipe.kept["inner.0.weight"][0]
    assert torch.equal(optimizer.state[ours]["exp_avg"], before[kept])
    assert optimizer.param_groups[1]["params"] == [scale]
    held = ours.detach().clone()
    step(done.module, batch(seed=7))
    optimizer.step()
    assert not torch.equal(held, ours)
    assert set(map(id, optimizer.param_groups[0]["params"])) == set(map(id, done.module.parameters()))
