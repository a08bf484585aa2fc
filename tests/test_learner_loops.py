"""StructureLearner in training loops of all kinds: interrupted, accumulated, scaled, compiled; calls and options."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from learner_networks import batch, learned, plain, step
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune import zoo
from fxprune.errors import OptionError
from fxprune.learner import StructureLearner


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
