"""Options of the command line that say which method decides, and how much is removed. torch stays out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from fxprune.cli_options import WHAT, WIDTHS, option
from fxprune.cli_values import METHODS

KeepRate = Annotated[float | None, option("Or: fraction of channels that every layer keeps.", WHAT, metavar="R")]
ChannelSparsity = Annotated[float | None, option("Or: fraction that every layer loses.", WHAT, metavar="R")]
Ratios = Annotated[
    Path | None,
    option(
        "Or: YAML or JSON file with patterns of layers and what they keep, as layer3.*: 0.25; others keep all.",
        WHAT,
        metavar="FILE",
    ),
]
TargetParams = Annotated[
    str | None,
    option("Or: at most so many parameters, as 2.5M, or a share of them, as 25%.", WHAT, metavar="N|P%"),
]
TargetMacs = Annotated[
    str | None, option("Or: at most so many multiply-accumulates, as 300M or 25%.", WHAT, metavar="N|P%")
]
TargetSize = Annotated[
    str | None, option("Or: at most so many bytes of weights, as 10MiB or 25%.", WHAT, metavar="N|P%")
]

Method = Annotated[
    str | None,
    option(
        f"A whole method, which sets what it needs of the options below: {', '.join(METHODS)}.",
        WIDTHS,
        metavar="NAME",
        autocompletion=lambda: list(METHODS),
    ),
]
Criterion = Annotated[
    Literal["magnitude", "random", "synflow", "snip", "grasp", "prospr"] | None,
    option(
        "What ranks weights: magnitude, random, synflow, snip, grasp or prospr.",
        WIDTHS,
        default="magnitude",
        metavar="SCORE",
    ),
]
Policy = Annotated[
    Literal["reconvene", "all", "none", "inverted", "random"] | None,
    option(
        "With --sparsity, layers that lose channels: reconvene (those at least as sparse as the average), all, none, "
        "inverted or random.",
        WIDTHS,
        default="reconvene",
        metavar="POLICY",
    ),
]
Coupling = Annotated[
    Literal["max", "keep", "min"] | None,
    option("With --sparsity, width of layers that must agree.", WIDTHS, default="max"),
]
Average = Annotated[
    Literal["prunable", "conv", "all-params", "layer-mean"] | None,
    option(
        "With --sparsity, what that average runs over: prunable, conv, all-params or layer-mean.",
        WIDTHS,
        default="prunable",
        metavar="OVER",
    ),
]
Select = Annotated[
    Literal[
        "saliency",
        "random",
        "first",
        "l1",
        "l2",
        "group-l1",
        "group-l2",
        "fpgm",
        "bn-scale",
        "taylor",
        "taylor-batch",
        "taylor-element",
        "gate",
        "gate-per-mac",
        "gate-after-steps",
    ]
    | None,
    option(
        "With --keep-rate, what says which channels stay: saliency, random, first, l1, l2, group-l1, group-l2, fpgm, "
        "bn-scale, taylor, taylor-batch, taylor-element, gate, gate-per-mac or gate-after-steps.",
        WIDTHS,
        default="saliency",
        metavar="SCORE",
    ),
]
Ranking = Annotated[
    Literal["global", "uniform", "erk"] | None,
    option(
        "With --sparsity, what is ranked: global (all weights together), or each layer with the same density (uniform) "
        "or more of small layers (erk).",
        WIDTHS,
        default="global",
        metavar="HOW",
    ),
]
Pool = Annotated[
    Literal["local", "global", "isomorphic"] | None,
    option(
        "With --keep-rate, channels that compete: those of one group (local), of all (global), or of groups with the "
        "same shapes (isomorphic).",
        WIDTHS,
        default="local",
        metavar="WHERE",
    ),
]
Reduction = Annotated[
    Literal["mean", "max", "sum", "first"] | None,
    option(
        "With --keep-rate, how scores of coupled layers become one: mean, max, sum or first.",
        WIDTHS,
        default="mean, for taylor sum",
        metavar="HOW",
    ),
]
Data = Annotated[
    str | None,
    option(
        "Labelled pictures for snip, grasp, prospr, taylor and gate: a folder with one folder for each class, an .npz "
        "file with x and y, digits, or synthetic.",
        WIDTHS,
        metavar="SOURCE",
    ),
]
DataBatch = Annotated[
    int | None, option("Pictures in one batch of --data.", WIDTHS, default="32", metavar="N", min=1, max=65536)
]
