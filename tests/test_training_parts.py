"""What the trainer is made of: settings, the order of pictures, randomness, the head, the picture of a history."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from digit_networks import inputs, settings
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fxprune.errors import OptionError, TrainingError
from fxprune.training import loop
from fxprune.training.batches import Part, augmented, epoch_order, fingerprint, read_batches, split
from fxprune.training.head import classes_of, replace_head
from fxprune.training.picture import picture
from fxprune.training.randomness import own_randomness, random_state, set_random_state
from fxprune.training.settings import THIRDS, LearnSettings, Settings


def test_learning_rate_of_the_papers() -> None:
    rates = [Settings().rate_at(epoch, 160) for epoch in (0, 79, 80, 119, 120, 159)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    rates = [Settings(drops=THIRDS).rate_at(step, 90) for step in (0, 29, 30, 59, 60, 89)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs is at least 1"),
        ({"rate": float("nan")}, "--lr is above 0"),
        ({"optimizer": "adam"}, "--optimizer 'adam' does not exist: choose from sgd, adamw"),
        ({"momentum": 1.0}, "--momentum lies"),
        ({"weight_decay": -1.0}, "--weight-decay is"),
        ({"held_out": 1.0}, "--held-out is"),
        ({"drops": (1.5,)}, "--drop is"),
        ({"seed": -1}, "--seed lies between 0"),
        ({"seed": 2**32}, "--seed lies between 0"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        settings(**changes)


def test_longest_structure_learning() -> None:
    assert [LearnSettings().longest(epochs) for epochs in (4, 60, 160, 1000)] == [1, 6, 16, 20]
    assert LearnSettings(structure_epochs=3).longest(3) == 3
    with pytest.raises(OptionError, match="at most --epochs"):
        LearnSettings(structure_epochs=4).longest(3)


def numbered(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count).float().reshape(-1, 1, 1, 1), torch.arange(count))


def test_each_picture_once_in_an_order_of_the_epoch() -> None:
    part, held = split(numbered(50), None, 0.2, 3)
    assert sorted([*part.numbers.tolist(), *held.numbers.tolist()]) == list(range(50))
    assert (len(part), len(held)) == (40, 10)
    first, again, later = (epoch_order(part, 16, 3, epoch) for epoch in (0, 0, 1))
    assert [len(one) for one in first] == [16, 16, 8]
    assert torch.equal(torch.cat(first), torch.cat(again))
    assert not torch.equal(torch.cat(first), torch.cat(later))
    assert sorted(torch.cat(later).tolist()) == part.numbers.tolist()
    assert len(epoch_order(part, 39, 3, 0)) == 1, "one picture alone is no batch"


def test_data_of_their_own_to_validate_with() -> None:
    part, held = split(numbered(5), numbered(3), 0.2, 3)
    assert (len(part), len(held)) == (5, 3)
    for data, validation, message in (
        (numbered(2), None, "the data has too few pictures to train on: 2, of which 1 are held out"),
        (numbered(1), numbered(3), "too few pictures to train on: 1"),
        (numbered(5), numbered(0), "hold no pictures"),
    ):
        with pytest.raises(OptionError, match=message):
            split(data, validation, 0.5, 0)


class Slow(torch.utils.data.Dataset[Any]):
    """Not a TensorDataset: read picture by picture."""

    def __len__(self) -> int:
        return 9

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return torch.full((1, 1, 1), float(place)), place


@pytest.mark.parametrize("data", [numbered(9), Slow()], ids=["tensors", "one by one"])
def test_batches_come_in_order_and_draw_nothing(data: Any) -> None:
    before = torch.get_rng_state()
    found = list(read_batches(data, [torch.tensor([4, 2]), torch.tensor([8])]))
    assert [labels.tolist() for _, labels in found] == [[4, 2], [8]]
    assert [pictures.flatten().tolist() for pictures, _ in found] == [[4, 2], [8]]
    assert torch.equal(before, torch.get_rng_state())


def test_augmented_pictures_are_moved_and_mirrored() -> None:
    pictures = torch.zeros(64, 2, 16, 16)
    pictures[:, 0, 8, 6], pictures[:, 1, 8, 6] = 1, 2
    assert augmented(pictures, "none", 0, 0, 0) is pictures
    moved, again, other = (augmented(pictures, "shift", 0, 0, step) for step in (0, 0, 1))
    assert torch.equal(moved, again) and not torch.equal(moved, other)
    assert torch.equal(moved[:, 0] * 2, moved[:, 1]), "all planes of a picture move together"
    places = moved[:, 0].nonzero()[:, 1:]
    assert len(places) == 64
    assert set(places[:, 0].tolist()) == set(range(6, 11)) and set(places[:, 1].tolist()) == set(range(4, 9))
    mirrored = augmented(pictures, "shift-mirror", 0, 0, 0)[:, 0].nonzero()[:, 2]
    assert set(mirrored.tolist()) == {*range(4, 9), *range(7, 12)}


def test_fingerprints_tell_data_apart() -> None:
    part = split(numbered(20), None, 0.1, 0)[0]
    other = numbered(20)
    other.tensors[0][part.numbers[0]] += 1
    assert fingerprint(part) == fingerprint(split(numbered(20), None, 0.1, 0)[0])
    assert (
        len({fingerprint(one) for one in (part, Part(other, part.numbers), split(numbered(20), None, 0.1, 1)[0])}) == 3
    )


def test_randomness_is_given_back() -> None:
    before = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[index]
    with own_randomness(5):
        state = random_state()
        first = (random.random(), np.random.rand(), torch.rand(1).item())
        set_random_state(state)
        assert first == (random.random(), np.random.rand(), torch.rand(1).item())
    after = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # type: ignore[index]
    assert before == after


# ---- the head


class Tail(nn.Module):
    """An output that no layer makes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.conv(x).mean((2, 3))
        return torch.cat([found, found], 1)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(), nn.Linear(10, 10)), "3"),
        (
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 10, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            "1",
        ),
    ],
)
def test_the_last_layer_is_replaced(model: nn.Module, name: str) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert classes_of(model, inputs()) == 10
    note = replace_head(model, inputs(), 3)
    assert note == f"{name}, which tells 10 classes apart, was replaced by one for 3"
    assert classes_of(model, inputs()) == 3
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items() if key[0] != name)
    assert model.training


def test_a_head_that_is_not_found_is_told() -> None:
    model = Tail()
    with pytest.raises(TrainingError, match="makes the 10 outputs was not found"):
        replace_head(model, inputs(), 3)
    assert model.conv.out_channels == 5


def test_only_rows_of_scores_can_be_trained_on() -> None:
    assert loop.logits_of((torch.zeros(2, 3), None)).shape == (2, 3)
    assert loop.logits_of({"out": torch.zeros(2, 3), "aux": None}).shape == (2, 3)
    with pytest.raises(TrainingError, match="not 2x3x8x8"):
        loop.logits_of(torch.zeros(2, 3, 8, 8))


# ---- the picture


@pytest.mark.parametrize("groups", [0, 3, 30])
def test_the_picture_of_a_history(groups: int) -> None:
    pytest.importorskip("matplotlib")
    lines: list[dict[str, Any]] = [
        {"epoch": k, "loss": 1 / k, "accuracy": 0.5, "validation_loss": None, "validation_accuracy": None}
        for k in range(1, 5)
    ]
    for line in lines[: 2 * bool(groups)]:
        line["widths"] = [3.5] * groups
    history = {"epochs": lines, "groups": [{"layer": f"{k}.weight", "limit": 8, "width": 4} for k in range(groups)]}
    drawn = picture(history)
    assert drawn is not None and drawn.startswith(b"\x89PNG")
    assert drawn == picture(history)


def test_without_matplotlib_there_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert picture({"epochs": []}) is None
