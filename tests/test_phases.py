"""Seconds by phase: each second counts once, for the innermost phase, on every open clock."""

from __future__ import annotations

import pytest
import torch

import fxprune
from fxprune import phases, zoo
from fxprune.phases import measured, phase, seconds_so_far


class Time:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    stub = Time()
    monkeypatch.setattr(phases, "time", stub)
    return stub


def test_a_phase_inside_another_stops_it(time: Time) -> None:
    with measured() as clock:
        time.now += 1  # belongs to no phase
        with phase("outer"):
            time.now += 2
            with phase("inner"):
                time.now += 4
            time.now += 8
            with phase("inner"):
                time.now += 16
        time.now += 32
        with phase("outer"):
            time.now += 64
    assert clock.seconds() == {"outer": 2 + 8 + 64, "inner": 4 + 16}
    assert list(clock.seconds()) == ["outer", "inner"]


def test_a_running_phase_counts_up_to_now(time: Time) -> None:
    with measured() as clock, phase("long"):
        assert clock.running == "long"
        time.now += 3
        assert clock.seconds() == {"long": 3}
        time.now += 1
        assert clock.seconds() == {"long": 4}
    assert clock.running is None


def test_clocks_around_a_clock_go_on(time: Time) -> None:
    with measured() as all_of_it, phase("first"):
        time.now += 1
        with measured() as part, phase("second"):
            time.now += 2
        time.now += 4
        assert seconds_so_far() == {"first": 5, "second": 2}
    assert all_of_it.seconds() == {"first": 5, "second": 2}
    assert part.seconds() == {"second": 2}
    assert seconds_so_far() == {}


def test_an_error_ends_its_phases(time: Time) -> None:
    with measured() as clock:
        with pytest.raises(ZeroDivisionError), phase("outer"), phase("inner"):
            time.now += 1
            raise ZeroDivisionError
        time.now += 2
        assert clock.running is None
    assert clock.seconds() == {"outer": 0, "inner": 1}


def test_without_a_clock_nothing_is_kept() -> None:
    with phase("unseen"), measured() as clock:
        pass
    assert clock.seconds() == {}


def test_compile_reports_the_proof_apart() -> None:
    with measured() as clock:
        done = fxprune.compile(zoo.build("resnet8"), torch.zeros(2, 3, 8, 8), sparsity=0.5)
    names = ["capture", "analyse", "select", "initialise", "mask", "sparsity", "sensitivity", "plan", "shrink", "proof"]
    assert list(done.report.seconds) == list(clock.seconds()) == [*names, "reinit"]
    assert all(seconds > 0 for seconds in done.report.seconds.values())
    without = fxprune.compile(zoo.build("resnet8"), torch.zeros(2, 3, 8, 8), sparsity=0.5, proof=False)
    assert "proof" not in without.report.seconds
