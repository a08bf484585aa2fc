"""The trainer: runs that learn, checkpoints, and runs that go on bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from digit_networks import digits, inputs, network, settings
from torch import nn

from fxprune.errors import ExportError, LoadError, NothingPrunableError, OptionError, TrainingError
from fxprune.training import loop
from fxprune.training.checkpoints import AT_THE_CUT, CHECKPOINT, Checkpoints
from fxprune.training.keeping import Keeping, alone_in
from fxprune.training.learning import Asked, Learning
from fxprune.training.loop import Training
from fxprune.training.randomness import own_randomness
from fxprune.training.settings import LearnSettings

pytest.importorskip("sklearn")
CPU = torch.device("cpu")


class Interrupted(Exception):
    """What a test ends a run with."""


# ---- runs


def test_it_learns() -> None:
    with own_randomness(0):
        training = Training(network(), digits(), settings(epochs=3, batch=64), CPU)
        while not training.finished:
            training.train_epoch()
    first, *_, last = training.history
    assert last["loss"] < first["loss"]
    assert last["validation_accuracy"] > 0.7
    assert [line["rate"] for line in training.history] == pytest.approx([0.1, 0.1, 0.01])


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    with own_randomness(0), pytest.raises(TrainingError, match="the loss became .* in step .* of epoch .* --lr"):
        training = Training(network(), digits(), settings(rate=1e30), CPU)
        training.train_epoch()


def plain_run(folder: Path, changes: dict[str, Any], stop_at: int | None) -> dict[str, Any]:
    """A run to its end, or to an interruption after a step; begins with the checkpoint that is there."""
    asked = settings(**changes)
    with own_randomness(asked.seed):
        training = Training(network(), digits(), asked, CPU)
        checkpoints = Checkpoints(folder, {})
        state = checkpoints.read()
        if state is not None:
            training.load_state_dict(state)
        keeping = Keeping(checkpoints, 3, lambda run: interrupt(run, stop_at))
        keeping.attach(training, training.state_dict)
        while not training.finished:
            training.train_epoch()
        return {"weights": training.network.state_dict(), "history": training.history}


def interrupt(run: Training, stop_at: int | None) -> None:
    if run.steps_done == stop_at:
        raise Interrupted


def learning_run(folder: Path, changes: dict[str, Any], stop_at: int | None) -> dict[str, Any]:
    """The same with structure learning."""
    asked = settings(**changes)
    with own_randomness(asked.seed):
        run = Learning(network(), inputs(), digits(), Asked(asked, LearnSettings(structure_epochs=1), CPU))
        run.restore(Checkpoints(folder, {}))
        done = run.run(Keeping(Checkpoints(folder, {}), 3, lambda training: interrupt(training, stop_at)))
        told = {"history": run.training.history, "recipe": done.recipe.to_json(), "proof": done.report.proof_error}
        return {"weights": done.state_dict(), **told}


def same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    weights = all(torch.equal(one["weights"][name], value) for name, value in other["weights"].items())
    return weights and all(one[name] == other[name] for name in one if name != "weights")


RUNS = [
    (plain_run, {}),
    (plain_run, {"optimizer": "adamw", "rate": 0.01, "augment": "shift-mirror"}),
    (learning_run, {}),
]


@pytest.mark.parametrize(("run", "changes"), RUNS)
def test_interrupted_runs_end_with_the_same_bits(
    run: Callable[..., dict[str, Any]], changes: dict[str, Any], tmp_path: Path
) -> None:
    whole = run(tmp_path / "whole", changes, None)
    for stop_at in (2, 5, 7, 10, 13):  # epochs have seven steps
        with pytest.raises(Interrupted):
            run(tmp_path / "broken", changes, stop_at)
    assert same(whole, run(tmp_path / "broken", changes, None))


@pytest.mark.parametrize("forgotten", ["set_random_state", "Tally"])
def test_what_is_forgotten_shows(forgotten: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above would notice."""
    whole = plain_run(tmp_path / "whole", {}, None)
    with pytest.raises(Interrupted):
        plain_run(tmp_path / "broken", {}, 5)
    kept = loop.Tally
    monkeypatch.setattr(loop, forgotten, lambda *_, **state: kept() if forgotten == "Tally" else None)
    assert not same(whole, plain_run(tmp_path / "broken", {}, None))


def test_the_cut_comes_when_the_widths_have_settled(tmp_path: Path) -> None:
    asked = Asked(settings(epochs=3), LearnSettings(keep_rate=1.0, structure_epochs=3), CPU)  # full widths do not move
    with own_randomness(0):
        run = Learning(network(), inputs(), digits(), asked)
        done = run.run(Keeping(Checkpoints(tmp_path, {})))
    assert [line["phase"] for line in run.training.history] == ["structure", "weights", "weights"]
    assert run.notes() == ()
    assert done.report.before.parameters == done.report.after.parameters


def test_structure_learning_to_the_last_epoch(tmp_path: Path) -> None:
    asked = Asked(settings(epochs=1), LearnSettings(structure_epochs=1), CPU)
    with own_randomness(0):
        run = Learning(network(), inputs(), digits(), asked)
        done = run.run(Keeping(Checkpoints(tmp_path, {})))
    assert done.report.after.parameters < done.report.before.parameters
    assert run.notes() == (f"the widths still moved by {run.learner.history[0].change:.1%} when the network was cut, "
                           "after 1 epoch",)  # fmt: skip


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(NothingPrunableError):
        Learning(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), inputs(), digits(), Asked(settings(), LearnSettings()))


# ---- checkpoints


def test_checkpoints_of_another_run_are_refused(tmp_path: Path) -> None:
    mine = {"command": "learn", "epochs": 3, "drops": (0.5, 0.75), "network fingerprint": "a", "data fingerprint": "b"}
    Checkpoints(tmp_path, mine).write({"x": torch.ones(2)})
    found = Checkpoints(tmp_path, dict(mine)).read()
    assert found is not None and torch.equal(found["x"], torch.ones(2))
    for changed, message in (
        ({"epochs": 4}, "made with --epochs 3, not 4: give the same options, or --no-resume starts anew"),
        ({"drops": (0.5,)}, "made with --drop "),
        ({"command": "train"}, "made with fxprune learn, not train"),
        ({"network fingerprint": "c"}, "made with another network"),
        ({"data fingerprint": "c"}, "made with another data"),
        ({"further": 1}, "made with --further None, not 1"),
    ):
        with pytest.raises(OptionError, match=message):
            Checkpoints(tmp_path, {**mine, **changed}).read()


def test_another_machine_is_noted(tmp_path: Path) -> None:
    Checkpoints(tmp_path, {}, {"threads": 2, "torch": "2"}).write({})
    again = Checkpoints(tmp_path, {}, {"threads": 8, "torch": "2"})
    assert again.read() == {}
    [note] = again.notes
    assert note.startswith("the run began with threads 2 and goes on with 8: the last bits")


class Code:
    """Would run when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code of a checkpoint was run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK", "is damaged or no checkpoint"),
        ({"epoch": 3}, "is not a checkpoint that fxprune wrote"),
        ({"format": 9, "identity": {}, "state": {}}, "has format 9"),
        ({"format": 1, "identity": {}, "state": Code()}, "is damaged or no checkpoint"),
    ],
)
def test_damaged_checkpoints_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(LoadError, match=message):
        Checkpoints(tmp_path, {}).read()


def test_checkpoints_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, {})
    checkpoints.write({"step": 1})
    with monkeypatch.context() as patched, pytest.raises(ExportError, match="cannot write .*checkpoint.pt: disk full"):
        patched.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        checkpoints.write({"step": 2})
    assert checkpoints.read() == {"step": 1}
    checkpoints.write({"step": 3}, AT_THE_CUT)
    checkpoints.remove()
    assert checkpoints.read() is None and checkpoints.read(AT_THE_CUT) is None


def test_without_the_state_at_the_cut_a_run_cannot_go_on(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        learning_run(tmp_path, {}, 10)
    (tmp_path / AT_THE_CUT).unlink()
    with pytest.raises(LoadError, match="structure.pt is missing: --no-resume starts anew"):
        learning_run(tmp_path, {}, None)


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        alone_in(tmp_path / "out"),
        pytest.raises(ExportError, match="another run is at work"),
        alone_in(tmp_path / "out"),
    ):
        pass
    with alone_in(tmp_path / "out"):
        pass
