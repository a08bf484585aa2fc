"""`fxprune train` and `fxprune learn`: from their options to what they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune import cli_options as options
from fxprune import cli_train_options as own
from fxprune.capture.options import LoadOptions
from fxprune.cli_asked import refuse_idle
from fxprune.cli_errors import one_line_errors
from fxprune.cli_progress import shown_phases
from fxprune.errors import OptionError
from fxprune.phases import Clock, phase
from fxprune.training.settings import HALVES, THIRDS, LearnSettings, Settings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fxprune.training.runs import Finished, RunOptions


@one_line_errors
def train_command(
    folder: options.Folder,
    data: own.Data,
    validation: own.Validation = None,
    epochs: own.Epochs = 160,
    batch: own.BatchSize = 128,
    lr: own.Rate = 0.1,
    drop: own.TrainDrops = None,
    momentum: own.Momentum = None,
    weight_decay: own.WeightDecay = 1e-4,
    optimizer: own.Optimizer = "sgd",
    augment: own.Augment = "none",
    held_out: own.HeldOut = None,
    seed: own.TrainSeed = 0,
    no_resume: own.NoResume = False,
    checkpoint_steps: own.CheckpointSteps = None,
    device: own.Device = "cpu",
    threads: own.TrainThreads = None,
    workers: own.Workers = 0,
    trust: options.TrustSource = False,
    output: own.TrainOutput = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    config: options.Config = None,
    traceback: options.Traceback = False,
) -> None:
    """Train the network of FOLDER on pictures; masked weights stay zero. Writes the same files with its weights.

    fxprune train model-fxprune --data pictures
    """
    _check_belonging(data, validation, optimizer, momentum, held_out, workers)
    settings = Settings(
        epochs, batch, lr, tuple(drop or HALVES), _or(momentum, 0.9), weight_decay, optimizer, augment,
        _or(held_out, 0.1), seed,
    )  # fmt: skip
    place = output or Path(f"{folder.resolve().name}-trained")
    with _run(place, force, not no_resume, checkpoint_steps, device, threads, workers, quiet) as (made, clock):
        from fxprune.training.retrained import open_folder
        from fxprune.training.runs import train

        with shown_phases(not quiet), phase("load"):
            network = open_folder(folder, trust=trust)
        finished = made(lambda run: train(network, data, validation, settings, run))
    _tell(finished, clock, as_json, quiet)


@one_line_errors
def learn_command(
    model: options.Model,
    data: own.Data,
    validation: own.Validation = None,
    weights: own.Weights = None,
    classes: own.Classes = None,
    keep_rate: own.ChannelRate = 0.5,
    scope: own.Scope = "paper",
    structure_epochs: own.StructureEpochs = None,
    mode: own.Mode = "conserve",
    fraction: own.Fraction = 0.5,
    decay: own.Decay = 0.98,
    only: own.LearnOnly = None,
    ignore: own.LearnIgnore = None,
    epochs: own.Epochs = 160,
    batch: own.BatchSize = 128,
    lr: own.Rate = 0.1,
    drop: own.LearnDrops = None,
    momentum: own.Momentum = None,
    weight_decay: own.WeightDecay = 1e-4,
    optimizer: own.Optimizer = "sgd",
    augment: own.Augment = "none",
    held_out: own.HeldOut = None,
    seed: own.TrainSeed = 0,
    input: options.Input = None,
    arch: options.Arch = None,
    trust: options.Trust = None,
    allow_pickle: options.AllowPickle = False,
    no_resume: own.NoResume = False,
    checkpoint_steps: own.CheckpointSteps = None,
    device: own.Device = "cpu",
    threads: own.TrainThreads = None,
    workers: own.Workers = 0,
    output: own.LearnOutput = None,
    force: options.Force = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    config: options.Config = None,
    traceback: options.Traceback = False,
) -> None:
    """Train MODEL on pictures, learn meanwhile how many channels each layer deserves, cut, train on.

    fxprune learn torchvision:resnet18 --weights resnet18.pt --data pictures
    """
    _check_belonging(data, validation, optimizer, momentum, held_out, workers)
    settings = Settings(
        epochs, batch, lr, tuple(drop or THIRDS), _or(momentum, 0.9), weight_decay, optimizer, augment,
        _or(held_out, 0.1), seed,
    )  # fmt: skip
    learning = LearnSettings(
        keep_rate,
        scope,
        mode,
        fraction,
        decay,
        structure_epochs,
        tuple(only or ()) or None,
        tuple(ignore or ()) or None,
    )
    learning.longest(epochs)
    target, loading = _target(model, weights, LoadOptions(trust or (), arch, allow_pickle, seed))
    place = output or Path(f"{_stem(model)}-learned")
    with _run(place, force, not no_resume, checkpoint_steps, device, threads, workers, quiet) as (made, clock):
        from fxprune import cli_work
        from fxprune.training.runs import Given, learn

        with shown_phases(not quiet):
            loaded, inputs = cli_work.ready(target, loading, cli_work.given_inputs(input or ()))
        about = cli_work.about(loaded, inputs)
        given = Given(loaded.module, inputs, about, loaded.notes, trained=not loaded.fresh, classes=classes)
        finished = made(lambda run: learn(given, data, validation, settings, learning, run))
    _tell(finished, clock, as_json, quiet)


def _or(given: float | None, usual: float) -> float:
    return usual if given is None else given


def _check_belonging(
    data: str, validation: str | None, optimizer: str, momentum: float | None, held_out: float | None, workers: int
) -> None:
    """Raise OptionError for an option that would have no effect."""
    refuse_idle(
        (momentum is not None and optimizer != "sgd", "--momentum", f"with --optimizer {optimizer}"),
        (held_out is not None and validation is not None, "--held-out", "with --validation"),
        (
            workers > 0 and not any(Path(one).is_dir() for one in (data, validation or data)),
            "--workers",
            "on such data",
        ),
    )


def _target(model: str, weights: Path | None, loading: LoadOptions) -> tuple[str, LoadOptions]:
    """What to load: with --weights their file, for the network that MODEL names."""
    if weights is None:
        return model, loading
    if loading.arch is not None:
        raise OptionError("with --weights MODEL names the network: leave --arch out")
    return str(weights), replace(loading, arch=model)


def _stem(model: str) -> str:
    """`resnet18` of torchvision:resnet18?num_classes=10 or of path/resnet18.pt."""
    return Path(model.partition("?")[0].rpartition(":")[2]).stem


@contextmanager
def _run(
    output: Path, force: bool, resume: bool, every: int | None, device: str, threads: int | None, workers: int,
    quiet: bool,
) -> Iterator[tuple[Callable[[Callable[[RunOptions], Finished]], Finished], Clock]]:  # fmt: skip
    """(what makes a run with the progress shown, the clock over everything). Options are checked first."""
    from fxprune.cli_train_progress import shown_training

    with shown_phases(False) as clock:
        with shown_phases(not quiet), phase("start"):
            import torch

            from fxprune.training.runs import RunOptions

            if threads:
                torch.set_num_threads(threads)
            asked = RunOptions(output, force, resume, every, device, workers)
            asked.check()
            _check_device(device)

        def make(work: Callable[[RunOptions], Finished]) -> Finished:
            with shown_training(not quiet) as watch:
                return work(replace(asked, watch=watch))

        try:
            yield make, clock
        except KeyboardInterrupt:
            from fxprune.emit.folder import DURING_TRAINING

            if not quiet and any((output / name).exists() for name in DURING_TRAINING):
                print(f"{output} holds the training so far: the same command goes on from there", file=sys.stderr)
            raise


def _check_device(name: str) -> None:
    import torch

    try:
        torch.empty(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError):
        raise OptionError(f"--device {name} cannot be used here: cpu can, and cuda where torch finds a GPU") from None


def _tell(finished: Finished, clock: Clock, as_json: bool, quiet: bool) -> None:
    if as_json:
        print(json.dumps(document(finished), indent=1))
    elif not quiet:
        from fxprune.cli_layout import show

        show(view(finished, clock))


def document(finished: Finished) -> dict[str, Any]:
    """For --json: report.json, the whole history, and where everything lies."""
    return {
        **finished.written.document,
        "folder": str(finished.written.folder),
        "resumed_at": finished.resumed_at,
        "history": finished.history["epochs"],
        "run_notes": list(finished.notes),
    }


def view(finished: Finished, clock: Clock) -> RenderableType:
    """What `compile` says about the cut, where there was one, and then how training went."""
    from rich.console import Group

    from fxprune.cli_layout import facts
    from fxprune.cli_progress import time_line
    from fxprune.cli_report import summary
    from fxprune.cli_work import Outcome

    written, seconds = finished.written, clock.seconds()
    if finished.compiled is None:
        notes = [("note", note) for note in written.notes]
        return facts([*_went(finished), *notes, ("written", f"{written.folder}/"), ("time", time_line(seconds))])
    outcome = Outcome(finished.compiled.report, written, written.document, seconds)
    return Group(summary(outcome, False), facts(_went(finished)))


def _went(finished: Finished) -> list[tuple[str, str]]:
    from fxprune.cli_train_progress import epoch_line

    lines = finished.history["epochs"]
    pictures = finished.history["pictures"]
    told = [("trained", epoch_line(lines[-1], finished.history["settings"]["epochs"]))]
    told.append(("pictures", f"{pictures['trained']:,} to train on, {pictures['validated']:,} to validate with"))
    if finished.resumed_at is not None:
        told.append(("resumed", f"after {finished.resumed_at:,} steps"))
    return [*told, *(("note", note) for note in finished.notes)]
