"""StructureLearner: saliency against its definition, scopes, the cut, state, and training loops of all kinds."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from models import Case
from oracle import EXACT, difference, zeroed
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune import zoo
from fxprune.errors import NothingPrunableError, OptionError
from fxprune.learner import StructureLearner

IMAGES = (6, 3, 8, 8)


class Plain(nn.Module):
    """Convolution with and without a normalisation behind it, a residual add, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.inner = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.outer = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.GroupNorm(8, 8))
        self.bare = nn.Conv2d(8, 5, 3, padding=1)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(x + self.outer(F.relu(self.inner(x))))
        return self.head(F.relu(self.bare(x)).mean((2, 3)))


def plain(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = Plain().to(dtype)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model


def batch(dtype: torch.dtype = torch.float32, seed: int = 1) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(IMAGES, generator=draw, dtype=dtype), torch.randint(0, 4, IMAGES[:1], generator=draw)


def step(model: nn.Module, data: tuple[Tensor, Tensor]) -> Tensor:
    model.zero_grad()
    loss = F.cross_entropy(model(data[0]), data[1])
    loss.backward()
    return loss.detach()


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


def learned(model: nn.Module, epochs: int = 2, **options: Any) -> StructureLearner:
    learner = StructureLearner(model, batch()[0], scope="all", **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(epochs):
        for number in range(3):
            step(model, batch(seed=10 * epoch + number))
            learner.update()
            optimizer.step()
        learner.redistribute()
    return learner


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


def through_disk(state: dict[str, Any]) -> dict[str, Any]:
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    loaded: dict[str, Any] = torch.load(stream, weights_only=True)
    return loaded


def test_a_run_that_is_interrupted_goes_on_bit_for_bit() -> None:
    def run(break_after: int | None) -> tuple[list[float], Tensor, dict[str, Tensor]]:
        model = plain()
        learner = StructureLearner(model, batch()[0], scope="all")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for number in range(8):
            if number == break_after:
                saved = through_disk({"m": model.state_dict(), "o": optimizer.state_dict(), "l": learner.state_dict()})
                model = plain()
                learner = StructureLearner(model, batch()[0], scope="all")
                optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
                model.load_state_dict(saved["m"])
                optimizer.load_state_dict(saved["o"])
                learner.load_state_dict(saved["l"])
            step(model, batch(seed=number))
            learner.update()
            optimizer.step()
            if number % 4 == 3:
                learner.redistribute()
        return learner.widths, torch.cat(learner.saliency), learner.finish(proof=False).state_dict()

    whole, broken = run(None), run(5)
    assert whole[0] == broken[0]
    assert torch.equal(whole[1], broken[1])
    assert all(torch.equal(value, broken[2][name]) for name, value in whole[2].items())


def test_state_of_another_network_is_refused() -> None:
    state = learned(plain()).state_dict()
    other = StructureLearner(zoo.build("resnet8"), torch.zeros(2, 3, 32, 32))
    with pytest.raises(OptionError, match="another network"):
        other.load_state_dict(state)
    with pytest.raises(OptionError, match="format 7"):
        other.load_state_dict({**state, "format": 7})


def accumulated(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    model.zero_grad()
    for part in range(2):
        x, y = (one[part::2] for one in data)
        (F.cross_entropy(model(x), y) / 2).backward()


def scaled(model: nn.Module, data: tuple[Tensor, Tensor], unscale: bool = False) -> None:
    model.zero_grad()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler.scale(F.cross_entropy(model(data[0]), data[1])).backward()
    if unscale:
        scaler.unscale_(optimizer)


def compiled_copy(model: nn.Module, data: tuple[Tensor, Tensor]) -> None:
    step(torch.compile(model, backend="aot_eager"), data)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", [accumulated, scaled, partial(scaled, unscale=True), compiled_copy])
def test_other_ways_to_take_a_step_lead_to_the_same_saliency(
    way: Callable[[nn.Module, tuple[Tensor, Tensor]], None],
) -> None:
    model = plain().eval()  # in training mode half a batch has other statistics than the whole
    usual, other = (StructureLearner(model, batch()[0], scope="all") for _ in range(2))
    step(model, batch())
    usual.update()
    way(model, batch())
    other.update()
    for ours, theirs in zip(usual.saliency, other.saliency, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_steps_that_overflowed_do_not_count() -> None:
    model = plain()
    learner = learned(model)
    before, steps = torch.cat(learner.saliency), learner.updates
    step(model, batch())
    model.get_parameter("bare.weight").grad[0, 0, 0, 0] = torch.inf  # type: ignore[index]
    assert not learner.update()
    assert torch.equal(before, torch.cat(learner.saliency))
    assert learner.updates == steps


def test_a_whole_run_with_a_grad_scaler() -> None:
    """Its first steps overflow: the optimizer leaves them out, and so does the book."""
    model = plain()
    learner = StructureLearner(model, batch()[0], scope="all")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    taken = []
    for number in range(40):
        optimizer.zero_grad()
        x, y = batch(seed=number)
        scaler.scale(1024 * F.cross_entropy(model(x), y)).backward()
        before = model.get_parameter("head.weight").detach().clone()
        taken.append(learner.update())
        scaler.step(optimizer)
        scaler.update()
        assert taken[-1] == (not torch.equal(before, model.get_parameter("head.weight")))
    assert taken[0] is False and taken[-1] is True
    assert learner.updates == sum(taken)
    learner.redistribute()
    done = learner.finish(optimizer)
    loss = F.cross_entropy(done.module(batch()[0]), batch()[1])
    scaler.scale(loss).backward()
    before = done.module.get_parameter("head.weight").detach().clone()
    scaler.step(optimizer)
    assert not torch.equal(before, done.module.get_parameter("head.weight"))


def test_forgotten_calls_are_named() -> None:
    model = plain()
    learner = StructureLearner(model, batch()[0])
    with pytest.raises(OptionError, match="call update\\(\\) after backward"):
        learner.update()
    with pytest.raises(OptionError, match="nothing has been learned yet"):
        learner.redistribute()


def test_converged_after_max_epochs_with_a_warning() -> None:
    model = plain()
    learner = StructureLearner(model, batch()[0], max_epochs=1)
    assert not learner.converged
    step(model, batch())
    learner.update()
    with pytest.warns(UserWarning, match="still move by"):
        learner.redistribute()
    assert learner.converged


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep_rate": 1.5}, "keep_rate is the fraction"),
        ({"keep_rate": {"*": 0.5}}, "keep_rate is one number for all groups"),
        ({"scope": "some"}, "unknown scope 'some'"),
        ({"mode": "fair"}, "unknown mode 'fair'"),
        ({"decay": float("nan")}, "decay lies between 0 and 1"),
        ({"max_epochs": 0}, "max_epochs is at least 1"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        StructureLearner(plain(), batch()[0], **options)
