"""Criteria that look at gradients, each against its definition by brute force, in float64. Signs are tested."""

from __future__ import annotations

import copy
import gc
from collections.abc import Mapping

import pytest
import torch
from criterion_scores import NAMES, batches, scored
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune import zoo
from fxprune.capture.module import capture
from fxprune.errors import OptionError
from fxprune.saliency import CRITERIA, criterion
from fxprune.saliency.grasp import Grasp
from fxprune.saliency.prospr import Prospr
from fxprune.saliency.snip import Snip
from fxprune.saliency.trial import Data, ScoresOnce

WITH_DATA = ("snip", "grasp", "prospr")


def network(norm: bool = True) -> nn.Module:
    torch.manual_seed(0)
    parts = [nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)]
    return nn.Sequential(*[part for part in parts if norm or not isinstance(part, nn.BatchNorm2d)]).double()


def loss_at(model: nn.Module, changed: Mapping[str, Tensor], batch: tuple[Tensor, Tensor], cool: float = 1.0) -> Tensor:
    twin = copy.deepcopy(model).train()
    return F.cross_entropy(torch.func.functional_call(twin, dict(changed), batch[0]) / cool, batch[1])


def test_snip_is_the_slope_of_the_loss_along_the_mask() -> None:
    model = network()
    found = scored(Snip(Data(batches())), model)
    step = 1e-6
    for name in NAMES:
        weight = model.get_parameter(name).detach()
        for place in range(0, weight.numel(), 7):
            sides = []
            for sign in (1, -1):
                moved = weight.clone()
                moved.view(-1)[place] *= 1 + sign * step
                sides.append(loss_at(model, {name: moved}, batches()[0]).item())
            slope = abs(sides[0] - sides[1]) / (2 * step)
            assert slope == pytest.approx(found[name].view(-1)[place].item(), rel=1e-4, abs=1e-9)


def hessian_product(model: nn.Module, cool: float) -> dict[str, Tensor]:
    """w * (H g) with the whole Hessian written out."""
    weights = [model.get_parameter(name).detach() for name in NAMES]
    sizes = [weight.numel() for weight in weights]

    def loss(flat: Tensor) -> Tensor:
        parts = [part.view(w.shape) for part, w in zip(flat.split(sizes), weights, strict=True)]
        return loss_at(model, dict(zip(NAMES, parts, strict=True)), batches()[0], cool)

    flat = torch.cat([weight.reshape(-1) for weight in weights])
    slope = torch.autograd.functional.jacobian(loss, flat)
    curve = torch.autograd.functional.hessian(loss, flat)
    parts = (flat * (curve @ slope)).split(sizes)
    return {name: part.view(w.shape) for name, part, w in zip(NAMES, parts, weights, strict=True)}


def test_grasp_is_weight_times_hessian_times_gradient() -> None:
    model = network()
    found, expected = scored(Grasp(Data(batches()), temperature=2.0), model), hessian_product(model, 2.0)
    for name in NAMES:
        assert torch.allclose(found[name], expected[name], rtol=1e-8, atol=1e-14)


def test_grasp_lets_go_of_what_hurts_gradient_flow_least() -> None:
    model = network()
    found = scored(Grasp(Data(batches()), temperature=1.0), model)["4.weight"].view(-1)
    weight = model.get_parameter("4.weight").detach()

    def flow(place: int, keep: float) -> float:
        moved = weight.clone()
        moved.view(-1)[place] *= keep
        own = {"0.weight": model.get_parameter("0.weight").detach().clone().requires_grad_(), "4.weight": moved}
        moved.requires_grad_()
        slopes = torch.autograd.grad(loss_at(model, own, batches()[0]), list(own.values()))
        return sum(float(slope.square().sum()) for slope in slopes)

    lost = [flow(place, 1.0) - flow(place, 1 - 1e-4) for place in range(weight.numel())]
    ours, theirs = found.argsort().tolist(), sorted(range(len(lost)), key=lost.__getitem__)
    assert ours[:5] == theirs[:5]  # the lowest scores go first
    assert ours[-5:] == theirs[-5:]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_prospr_is_the_slope_through_the_steps(momentum: float) -> None:
    model, rate, step = network(), 0.05, 1e-6
    found = scored(Prospr(Data(batches()), rate=rate, momentum=momentum), model)

    def after_training(name: str, place: int, factor: float) -> float:
        twin = copy.deepcopy(model).train()
        with torch.no_grad():
            twin.get_parameter(name).view(-1)[place] *= factor
        optimizer = torch.optim.SGD(twin.parameters(), lr=rate, momentum=momentum)
        for x, y in batches()[:3]:
            optimizer.zero_grad()
            F.cross_entropy(twin(x), y).backward()
            optimizer.step()
        x, y = batches()[3]
        return F.cross_entropy(twin(x), y).item()

    for name in NAMES:
        for place in range(0, found[name].numel(), 17):
            slope = abs(after_training(name, place, 1 + step) - after_training(name, place, 1 - step)) / (2 * step)
            assert slope == pytest.approx(found[name].view(-1)[place].item(), rel=1e-4, abs=1e-9)


def test_the_first_order_form_of_prospr_differs() -> None:
    model = network()
    exact, cheap = (scored(Prospr(Data(batches()), first_order=one), model) for one in (False, True))
    assert not torch.allclose(exact["0.weight"], cheap["0.weight"], rtol=1e-3)


@pytest.mark.parametrize("name", CRITERIA)
def test_each_compiles_a_network_and_leaves_it_alone(name: str) -> None:
    model = zoo.build("resnet8")
    before = copy.deepcopy(model.state_dict())
    draw = torch.Generator().manual_seed(0)
    data = [(torch.randn(8, 3, 32, 32, generator=draw), torch.randint(0, 10, (8,), generator=draw)) for _ in range(4)]
    done = fxprune.compile(
        model, data[0][0][:2], sparsity=0.9, criterion=name, data=data if name in WITH_DATA else None
    )
    assert done.report.achieved_sparsity == pytest.approx(0.9, abs=0.05)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    again = fxprune.compile(
        model, data[0][0][:2], sparsity=0.9, criterion=name, data=data if name in WITH_DATA else None
    )
    assert done.recipe.to_json() == again.recipe.to_json()


@pytest.mark.parametrize("name", WITH_DATA)
def test_data_that_are_missing_or_too_few_are_asked_for(name: str) -> None:
    model = zoo.build("resnet8")
    with pytest.raises(OptionError, match=f"{name} looks at gradients and needs labelled data"):
        fxprune.compile(model, torch.zeros(2, 3, 32, 32), sparsity=0.9, criterion=name)
    with pytest.raises(
        OptionError, match=f"{name} needs . batches of data, 0 were given: give more data, or smaller batches"
    ):
        fxprune.compile(model, torch.zeros(2, 3, 32, 32), sparsity=0.9, criterion=name, data=[])


@pytest.mark.parametrize("ranking", ["global", "uniform"])
@pytest.mark.parametrize("name", WITH_DATA)
def test_scores_that_are_no_numbers_make_no_mask(name: str, ranking: str) -> None:
    broken = [(images * torch.nan, labels) for images, labels in batches()]
    with pytest.raises(OptionError, match="the scores of 0.weight are NaN or infinite"):
        fxprune.compile(network(), batches()[0][0], sparsity=0.5, criterion=name, ranking=ranking, data=broken)


class TwoHeaded(nn.Module):
    """The default loss sees the first of two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.side = nn.Conv2d(2, 4, 3), nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = self.body(x).relu().flatten(1)
        return self.head(flat), self.side(flat)


@pytest.mark.parametrize("name", WITH_DATA)
def test_a_head_that_the_loss_leaves_out_is_not_masked_away(name: str) -> None:
    torch.manual_seed(0)
    model, image = TwoHeaded().double(), batches()[0][0]
    with pytest.raises(OptionError, match="the loss does not reach side.weight: give a loss of all"):
        fxprune.compile(model, image, sparsity=0.5, criterion=name, data=batches())
    ignored = fxprune.compile(model, image, sparsity=0.5, criterion=name, data=batches(), ignore=["side"])
    assert ignored.report.achieved_sparsity > 0
    both = Data(batches(), lambda outputs, labels: F.cross_entropy(outputs[0] + outputs[1], labels))
    assert fxprune.compile(model, image, sparsity=0.5, criterion=name, data=both).report.achieved_sparsity > 0


def test_labels_outside_the_classes_are_said() -> None:
    wrong = [(images, labels + 7) for images, labels in batches()]
    with pytest.raises(OptionError, match=r"these labels for outputs of shape \(5, 3\) \(Target \d is out of bounds"):
        fxprune.compile(network(), batches()[0][0], sparsity=0.5, criterion="snip", data=wrong)


def test_another_loss_may_be_given() -> None:
    model = network()
    doubled = Data(batches(), lambda outputs, labels: 2 * F.cross_entropy(outputs, labels))
    once, twice = scored(Snip(Data(batches())), model), scored(Snip(doubled), model)
    assert torch.allclose(2 * once["0.weight"], twice["0.weight"])


def test_unknown_names_are_refused() -> None:
    with pytest.raises(OptionError, match="choose magnitude, random, synflow, snip, grasp, prospr"):
        criterion("taste", 0)


def test_scores_are_kept_for_the_same_network_and_no_other() -> None:
    once, counted = ScoresOnce(), iter(range(9))
    programs = [capture(zoo.build("resnet8", seed=seed), torch.zeros(2, 3, 32, 32)) for seed in (0, 0)]
    found = [once.get(program, lambda: {"w": torch.tensor(next(counted))})["w"].item() for program in programs * 2]
    assert found == [0, 1, 2, 3]
    assert once.get(programs[1], lambda: {}) is once.get(programs[1], lambda: {})
    del programs[1]
    gc.collect()
    assert once._of() is None, "a program lives no longer for its scores"
