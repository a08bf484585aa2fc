"""The options of the command line: names, values and help. torch stays out, so that --help answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

_FILE, _WHAT, _WIDTHS, _WEIGHTS, _OUT = "Model files", "What to remove", "How widths are decided", "Weights", "Output"


def _option(help: str, panel: str | None, *names: str, **settings: Any) -> Any:
    """An option without a default of its own in the help, unless `show_default` names one."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **{"show_default": False, **settings})


def _flag(name: str, help: str, panel: str | None, *short: str) -> Any:
    return _option(help, panel, name, *short, metavar="")


Model = Annotated[
    str,
    typer.Argument(
        help="A model file (.pt, .pth, .safetensors), or zoo:NAME, torchvision:NAME, timm:NAME.",
        metavar="MODEL",
        show_default=False,
    ),
]
Spec = Annotated[
    str, typer.Argument(help="zoo:NAME, torchvision:NAME or timm:NAME.", metavar="SPEC", show_default=False)
]
Input = Annotated[
    list[str] | None,
    _option(
        "Example input, as 1x3x224x224, x=1x3x224x224 or 1x77:int64; repeatable. Without it one is guessed, and named.",
        None,
        metavar="SHAPE",
    ),
]
Trust = Annotated[
    list[str] | None,
    _option(
        "Package, or path of the training script, whose classes the model file may use; a script is executed. "
        "Repeatable.",
        _FILE,
        metavar="PKG",
    ),
]
Arch = Annotated[
    str | None,
    _option(
        "Network that a file with weights only belongs to: torchvision:NAME, timm:NAME, zoo:NAME, module:factory or "
        "train.py:factory; the latter two run that code.",
        _FILE,
        metavar="ARCH",
    ),
]
AllowPickle = Annotated[
    bool, _flag("--allow-pickle", "Let the model file run any code while it is read. Only for files you made.", _FILE)
]
Layer = Annotated[str | None, _option("Tell what else goes when this layer loses a channel.", None, metavar="NAME")]
Traceback = Annotated[bool, _flag("--traceback", "Show where an error comes from.", None)]
Json = Annotated[bool, _flag("--json", "Print JSON on stdout and nothing else.", _OUT)]
Quiet = Annotated[bool, _flag("--quiet", "No progress on stderr.", _OUT, "-q")]

Sparsity = Annotated[float | None, _option("Fraction of weights to do without, as in 0.98.", _WHAT, metavar="S")]
Sparsities = Annotated[list[float], _option("Fraction of weights to do without; repeatable.", _WHAT, metavar="S")]
KeepRate = Annotated[float | None, _option("Or: fraction of channels that every layer keeps.", _WHAT, metavar="R")]
Only = Annotated[list[str] | None, _option("Only layers whose names match; repeatable.", _WHAT, metavar="GLOB")]
Ignore = Annotated[list[str] | None, _option("No layers whose names match; repeatable.", _WHAT, metavar="GLOB")]
Approximate = Annotated[
    Literal["cut", "freeze"] | None,
    _option(
        "Channels behind a statistic over channels, as LayerNorm is: removing one changes the others.",
        _WHAT,
        show_default="cut, with --keep-weights freeze",
    ),
]
NoProof = Annotated[bool, _flag("--no-proof", "Do not compare the cut network with the dense one.", _WHAT)]

Criterion = Annotated[
    Literal["magnitude", "random", "synflow", "snip", "grasp", "prospr"],
    _option("What ranks weights.", _WIDTHS, show_default="magnitude"),
]
Policy = Annotated[
    Literal["reconvene", "all", "none", "inverted", "random"] | None,
    _option(
        "With --sparsity, layers that lose channels: reconvene takes those at least as sparse as the average.",
        _WIDTHS,
        show_default="reconvene",
    ),
]
Coupling = Annotated[
    Literal["max", "keep", "min"] | None,
    _option("With --sparsity, width of layers that must agree.", _WIDTHS, show_default="max"),
]
Average = Annotated[
    Literal["prunable", "conv", "all-params", "layer-mean"] | None,
    _option("With --sparsity, what that average runs over.", _WIDTHS, show_default="prunable"),
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
    _option("With --keep-rate, channels that stay.", _WIDTHS, show_default="saliency"),
]

Init = Annotated[
    Literal["auto", "kaiming", "keep"],
    _option("Draw weights before ranking them; auto: if they look untrained.", _WEIGHTS, show_default="auto"),
]
KeepWeights = Annotated[bool, _flag("--keep-weights", "Keep surviving weights instead of drawing new ones.", _WEIGHTS)]
Seed = Annotated[int, _option("Of everything that is drawn.", _WEIGHTS, show_default="0", metavar="N")]

Output = Annotated[
    Path | None,
    _option("Folder to write.", _OUT, "--output", "-o", show_default="NAME-fxprune", metavar="FOLDER"),
]
Force = Annotated[bool, _flag("--force", "Replace the folder of an earlier run.", _OUT)]
Opset = Annotated[int | None, _option("Operator set of the ONNX file.", _OUT, metavar="N")]
NoMeasure = Annotated[bool, _flag("--no-measure", "Do not measure latency and memory, before and after.", _OUT)]
Threads = Annotated[
    int, _option("Threads of each runtime that is measured.", _OUT, show_default="1", metavar="N", min=1)
]
PrintPasses = Annotated[bool, _flag("--print-passes", "Print the program after each pass.", _OUT)]


def _side(letter: str) -> Any:
    what = "An ONNX file, or a folder that `fxprune compile` wrote."
    return typer.Argument(help=what, metavar=letter, show_default=False)


FirstSide = Annotated[Path, _side("A")]
SecondSide = Annotated[Path, _side("B")]
BenchInput = Annotated[
    list[str] | None,
    _option(
        "Shape of an input, as 1x3x224x224 or x=1x3x224x224, where the files leave it open.", None, metavar="SHAPE"
    ),
]
Batch = Annotated[int | None, _option("Examples in one pass.", None, show_default="1", metavar="N", min=1)]
Repeat = Annotated[
    int | None,
    _option(
        "Timed passes for each side.", None, show_default="30, or as many as fit into a second", metavar="N", min=1
    ),
]
