"""Latency: statistics, turns, budgets, and what runs a pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fxprune.program import Inputs
from fxprune.runtime import runners
from fxprune.runtime.budget import Budget
from fxprune.runtime.latency import Latency, Rounds, alternate, latency, ratio
from fxprune.runtime.runners import cuda_once, torch_once, torch_threads

LONG = 600.0  # seconds: however busy the machine is, what has to happen within them happens


class FakeTime:
    """A clock that only its own sides move."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, ""

    def side(self, name: str, seconds: float) -> Callable[[], float]:
        def once() -> float:
            self.now += seconds
            self.calls += name
            return seconds

        return once

    def perf_counter(self) -> float:
        return self.now

    def budget(self, seconds: float) -> Budget:
        return Budget(seconds, self.perf_counter)


def test_statistics_by_hand() -> None:
    assert latency([4.0, 1.0, 2.0, 3.0]) == Latency(median=2.5, p90=3.7, mean=2.5, deviation=pytest.approx(1.2909944))
    assert latency([2.0]) == Latency(2.0, 2.0, 2.0, 0.0)
    found = ratio([(2.0, 1.0), (9.0, 3.0), (4.0, 1.0)])
    assert (found.low, found.median, found.high) == (pytest.approx(2.2), 3.0, pytest.approx(3.8))


def test_what_slows_a_whole_round_cancels_in_the_ratio() -> None:
    found = ratio([(2.0, 1.0), (200.0, 100.0), (2.0, 1.0)])
    assert (found.low, found.median, found.high) == (2.0, 2.0, 2.0)


# --- turns and budgets ------------------------------------------------------------------------------------------------


def test_sides_take_turns() -> None:
    fake = FakeTime()
    found = alternate(fake.side("A", 0.3), fake.side("B", 0.1), Rounds(), fake.budget(1000).left)
    assert fake.calls == "AB" * 40
    assert found is not None and (found.warm_up, found.passes, found.full) == (10, 30, True)
    assert found.first.median == 0.3 and found.second.median == 0.1 and found.ratio.median == pytest.approx(3.0)


def test_short_passes_are_repeated_up_to_a_limit() -> None:
    fake = FakeTime()
    found = alternate(fake.side("A", 0.005), fake.side("B", 0.005), Rounds(), fake.budget(1000).left)
    assert found is not None and found.passes in (100, 101)
    found = alternate(fake.side("A", 1e-6), fake.side("B", 1e-6), Rounds(), fake.budget(1000).left)
    assert found is not None and found.passes == 300
    found = alternate(fake.side("A", 1e-6), fake.side("B", 1e-6), Rounds.exactly(2), fake.budget(1000).left)
    assert found is not None and (found.passes, found.full) == (2, True)


@pytest.mark.parametrize(
    ("seconds", "warm_up", "passes"),
    [
        (100.0, 10, 30),
        (35.0, 5, 30),  # the warm-up shrinks first
        (20.5, 1, 20),  # then the passes
    ],
)
def test_the_budget_holds(seconds: float, warm_up: int, passes: int) -> None:
    fake = FakeTime()
    found = alternate(fake.side("A", 0.75), fake.side("B", 0.25), Rounds(), fake.budget(seconds).left)
    assert found is not None and (found.warm_up, found.passes) == (warm_up, passes)
    assert found.full == (seconds == 100.0)
    assert fake.now <= seconds + 1.0, "no more than one round too long"


def test_the_fewest_passes_are_run_though_no_time_is_left() -> None:
    fake = FakeTime()
    found = alternate(fake.side("A", 1.5), fake.side("B", 0.5), Rounds(), fake.budget(1.0).left)
    assert found is not None and (found.warm_up, found.passes, found.full) == (1, 5, False)


def test_too_few_passes_are_no_statistic() -> None:
    fake = FakeTime()
    assert alternate(fake.side("A", 9.0), fake.side("B", 1.0), Rounds(), fake.budget(45.0).left) is None
    assert fake.calls == "AB", "nothing is run for nothing"


def test_part_of_a_budget() -> None:
    fake = FakeTime()
    whole = fake.budget(10.0)
    fake.now = 4.0
    assert whole.left() == 6.0
    assert whole.part(0.5).left() == 3.0
    fake.now = 12.0
    assert whole.left() == -2.0
    assert whole.part(0.5).left() == 0.0


# --- runners ----------------------------------------------------------------------------------------------------------


def test_a_slow_side_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Lasting(nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            fake.now += self.seconds
            return x

    fake = FakeTime()
    monkeypatch.setattr(runners, "time", fake)
    fast, slow = (torch_once(Lasting(seconds), Inputs((torch.zeros(1),))) for seconds in (0.25, 2.0))
    found = alternate(slow, fast, Rounds.exactly(5), lambda: LONG)
    assert found is not None and (found.first.median, found.second.median) == (2.0, 0.25)
    assert (found.ratio.low, found.ratio.high) == (8, 8)


def test_gpu_passes_are_timed_by_events_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            calls.append("record")

        def elapsed_time(self, _end: object) -> float:
            return 2.5  # milliseconds

    class Net(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            calls.append("run")
            return x

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("wait"))
    assert cuda_once(Net(), Inputs((torch.zeros(1),)))() == 0.0025
    assert calls == ["wait", "record", "run", "record", "wait"]


def test_threads_of_torch_come_back() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
