"""tools/fuzz.py: a hundred damaged files do no harm, and every planted fault is noticed."""

from __future__ import annotations

import re
from collections.abc import Iterator

import fuzz
import pytest
from fuzz_targets import write_sound


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> fuzz.Plan:
    folder = tmp_path_factory.mktemp("fuzz").resolve()
    return fuzz.Plan(range(100), 0, write_sound(folder), folder)


@pytest.fixture(scope="module")
def reader(plan: fuzz.Plan) -> Iterator[fuzz.Reader]:
    """One watched process for all tests, begun anew by those that end it."""
    made = fuzz.Reader(plan.folder, plan.sound, patience=60.0)
    yield made
    made.end()


def test_sound_files_are_accepted(plan: fuzz.Plan, reader: fuzz.Reader) -> None:
    assert [reader.read(path)[0] for path in plan.sound] == ["accepted"] * len(plan.sound)


def test_damaged_files_do_no_harm(plan: fuzz.Plan, reader: fuzz.Reader) -> None:
    results = [plan.read(case, reader) for case in plan.cases]
    assert [result for result in results if result.outcome == "fault"] == []
    count = [result.outcome for result in results]
    assert count.count("refused") > 50 and count.count("accepted") > 3


def test_a_seed_always_gives_the_same_files(plan: fuzz.Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(seed: int) -> list[bytes]:
        return [fuzz.damaged(case, seed, plan.sound, plan.folder).read_bytes() for case in range(8)]

    first = made(7)
    monkeypatch.setattr("zipfile.time.localtime", lambda *_: (2031, 5, 4, 3, 2, 1, 0, 0, 0))  # an archive keeps dates
    assert first == made(7)
    assert first != made(8)


PLANTED = {
    "pickle without the gate": ("whole.pt", "unpickled .* with Python's pickle"),
    "export without the gate": ("exported.pt2", "not allowed: (executed|unpickled)"),
    "writes": ("weights.safetensors", "not allowed: opened .*canary for writing"),
    "stumbles": ("weights.safetensors", "KeyError"),
    "says two lines": ("weights.safetensors", "one line"),
    "grows": ("weights.safetensors", r"took \d{4} MiB"),
    "sleeps": ("weights.safetensors", r"not done after 3 s\n(.*\n)*.*in read_watched"),
    "quits": ("weights.safetensors", "ended with status -6"),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_noticed(
    fault: str, plan: fuzz.Plan, reader: fuzz.Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In files that are not even damaged."""
    name, message = PLANTED[fault]
    path = next(one for one in plan.sound if one.name == name)
    if fault == "sleeps":
        monkeypatch.setattr(reader, "patience", 3.0)
    outcome, found, _ = reader.read(path, fault)
    assert outcome == "fault" and re.search(message, found), found
