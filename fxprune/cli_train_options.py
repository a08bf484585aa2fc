"""The options of `fxprune train` and `fxprune learn`. torch stays out, so that --help answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from fxprune.cli_options import OUTPUT, flag, option

_HOW, _WIDTHS, _RUN = "How to train", "How widths are learned", "The run"

Data = Annotated[
    str,
    option(
        "Pictures: a folder with one folder for each class, an .npz file with arrays x and y, digits (scikit-learn's), "
        "or synthetic.",
        None,
        "--data",
        metavar="DATA",
    ),
]
Validation = Annotated[
    str | None,
    option("Pictures to validate with.", None, metavar="DATA", default="a part of --data, see --held-out"),
]
Weights = Annotated[
    Path | None,
    option("Trained weights to start from, for the network that MODEL names.", None, metavar="FILE"),
]
Classes = Annotated[
    int | None,
    option(
        "Classes to tell apart; the last layer is replaced where it has another number.",
        None,
        metavar="N",
        min=1,
        default="as many as the labels have",
    ),
]

Epochs = Annotated[int, option("Times through the data, in all.", _HOW, metavar="N", default="160")]
BatchSize = Annotated[int, option("Pictures in a step.", _HOW, "--batch", metavar="N", default="128")]
Rate = Annotated[float, option("Learning rate at the start.", _HOW, "--lr", metavar="R", default="0.1")]
_DROP = "Part of the training after which the learning rate is divided by ten; repeatable."
TrainDrops = Annotated[list[float] | None, option(_DROP, _HOW, "--drop", metavar="P", default="0.5 and 0.75")]
LearnDrops = Annotated[list[float] | None, option(_DROP, _HOW, "--drop", metavar="P", default="each third")]
Momentum = Annotated[float | None, option("Of SGD.", _HOW, metavar="M", default="0.9")]
WeightDecay = Annotated[float, option("Weight decay.", _HOW, metavar="W", default="0.0001")]
Optimizer = Annotated[Literal["sgd", "adamw"], option("sgd or adamw.", _HOW, metavar="NAME", default="sgd")]
Augment = Annotated[
    Literal["none", "shift", "shift-mirror"],
    option(
        "none, shift (by up to an eighth of the width) or shift-mirror, which CIFAR wants.",
        _HOW,
        metavar="HOW",
        default="none",
    ),
]
HeldOut = Annotated[float | None, option("Part of the data kept for validation.", _HOW, metavar="P", default="0.1")]
TrainSeed = Annotated[int, option("Seed of everything that is drawn.", _HOW, "--seed", metavar="N", default="0")]

ChannelRate = Annotated[
    float, option("Channels to keep, of all that are learned.", _WIDTHS, "--keep-rate", metavar="R", default="0.5")
]
Scope = Annotated[
    Literal["paper", "all"],
    option(
        "paper: layers whose channels one layer makes and one reads; all: residual streams too.",
        _WIDTHS,
        default="paper",
    ),
]
StructureEpochs = Annotated[
    int | None,
    option(
        "Epochs after which channels are cut, if widths still move.",
        _WIDTHS,
        metavar="N",
        default="20, or a tenth of --epochs",
    ),
]
Mode = Annotated[
    Literal["conserve", "literal"],
    option("What becomes of budget that a full layer cannot take; literal: as printed.", _WIDTHS, default="conserve"),
]
Fraction = Annotated[
    float, option("Part of the budgets handed out anew each epoch.", _WIDTHS, metavar="S", default="0.5")
]
Decay = Annotated[float, option("Of the running saliency, each step.", _WIDTHS, "--decay", metavar="E", default="0.98")]
LearnOnly = Annotated[list[str] | None, option("Only layers whose names match.", _WIDTHS, "--only", metavar="GLOB")]
LearnIgnore = Annotated[list[str] | None, option("No layers whose names match.", _WIDTHS, "--ignore", metavar="GLOB")]

NoResume = Annotated[
    bool,
    flag("--no-resume", "Start anew where the output folder holds a checkpoint; without this, go on from it.", _RUN),
]
CheckpointSteps = Annotated[
    int | None,
    option("Also write a checkpoint after each N steps.", _RUN, metavar="N", min=1, default="after each epoch only"),
]
Device = Annotated[str, option("Where to compute, as cpu or cuda.", _RUN, metavar="DEVICE", default="cpu")]
TrainThreads = Annotated[
    int | None, option("Threads of torch.", _RUN, "--threads", metavar="N", min=1, max=1024, default="all")
]
Workers = Annotated[
    int, option("Processes that read picture files.", _RUN, metavar="N", min=0, default="0: the run itself")
]
TrainOutput = Annotated[
    Path | None, option("Folder to write.", OUTPUT, "--output", "-o", default="FOLDER-trained", metavar="FOLDER")
]
LearnOutput = Annotated[
    Path | None, option("Folder to write.", OUTPUT, "--output", "-o", default="NAME-learned", metavar="FOLDER")
]
