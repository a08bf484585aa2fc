"""The options of the command line: names, values and help. torch stays out, so that --help answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fxprune.cli_config import from_file
from fxprune.cli_values import EMITTED, models, specs

_FILE, WHAT, WIDTHS, _WEIGHTS, OUTPUT = "Model files", "What to remove", "How widths are decided", "Weights", "Output"


def option(help: str, panel: str | None, *names: str, default: str = "", **settings: Any) -> Any:
    """An option whose help ends with what happens without it, where that is worth saying."""
    text = f"{help} Default: {default}." if default else help
    return typer.Option(*names, help=text, rich_help_panel=panel, **{"show_default": False, **settings})


def flag(name: str, help: str, panel: str | None, *short: str) -> Any:
    return option(help, panel, name, *short, metavar="")


Model = Annotated[
    str,
    typer.Argument(
        help="A model file (.pt, .pth, .safetensors), or zoo:NAME, torchvision:NAME, timm:NAME.",
        metavar="MODEL",
        show_default=False,
        autocompletion=models,
    ),
]
Spec = Annotated[
    str,
    typer.Argument(
        help="zoo:NAME, torchvision:NAME or timm:NAME.", metavar="SPEC", show_default=False, autocompletion=specs
    ),
]
Folder = Annotated[Path, typer.Argument(help="A folder that compile, learn or train wrote.", metavar="FOLDER")]
Input = Annotated[
    list[str] | None,
    option(
        "Example input, as 1x3x224x224, x=1x3x224x224 or 1x77:int64; repeatable. Without it one is guessed, and named.",
        None,
        metavar="SHAPE",
    ),
]
Trust = Annotated[
    list[str] | None,
    option(
        "Package, or path of the training script, whose classes the model file may use; a script is executed. "
        "Repeatable.",
        _FILE,
        metavar="PKG",
    ),
]
Arch = Annotated[
    str | None,
    option(
        "Network that a file with weights only belongs to: torchvision:NAME, timm:NAME, zoo:NAME, module:factory or "
        "train.py:factory; the latter two run that code.",
        _FILE,
        metavar="ARCH",
        autocompletion=specs,
    ),
]
AllowPickle = Annotated[
    bool, flag("--allow-pickle", "Let the model file run any code while it is read. Only for files you made.", _FILE)
]
TrustSource = Annotated[
    bool, flag("--trust", "Run the folder's model.py whatever it says; it can do anything that you can.", _FILE)
]
Layer = Annotated[str | None, option("Tell what else goes when this layer loses a channel.", None, metavar="NAME")]
Picture = Annotated[
    Path | None,
    option("Draw which layers share channels, as .svg, .png or .pdf (needs the extra report).", None, metavar="FILE"),
]
Config = Annotated[
    Path | None,
    option(
        "YAML file with options under these names, as in sparsity: 0.98; options given here win over it.",
        None,
        "--config",
        callback=from_file,
        is_eager=True,
        metavar="FILE",
    ),
]
Traceback = Annotated[bool, flag("--traceback", "Show where an error comes from.", None)]
Json = Annotated[bool, flag("--json", "Print JSON on stdout and nothing else.", OUTPUT)]
Quiet = Annotated[bool, flag("--quiet", "No progress, and no table at the end.", OUTPUT, "-q")]
NoProgress = Annotated[bool, flag("--quiet", "No progress.", OUTPUT, "-q")]  # of commands that are asked for a table

Sparsity = Annotated[float | None, option("Fraction of weights to do without, as in 0.98.", WHAT, metavar="S")]
Sparsities = Annotated[
    list[str], option("Fractions of weights to do without, as in 0.9,0.95; repeatable.", WHAT, metavar="S,S")
]
Only = Annotated[list[str] | None, option("Only layers whose names match; repeatable.", WHAT, metavar="GLOB")]
Ignore = Annotated[list[str] | None, option("No layers whose names match; repeatable.", WHAT, metavar="GLOB")]
Submodule = Annotated[
    str | None, option("Only this module, as backbone.body; the rest may be untraceable.", WHAT, metavar="NAME")
]
Approximate = Annotated[
    Literal["cut", "freeze"] | None,
    option(
        "Channels behind a statistic over channels, as LayerNorm is: removing one changes the others.",
        WHAT,
        default="cut, with --keep-weights freeze",
    ),
]
NoProof = Annotated[bool, flag("--no-proof", "Do not compare the cut network with the dense one.", WHAT)]

Init = Annotated[
    Literal["auto", "kaiming", "keep"],
    option("Draw weights before ranking them; auto: if they look untrained.", _WEIGHTS, default="auto"),
]
KeepWeights = Annotated[bool, flag("--keep-weights", "Keep surviving weights instead of drawing new ones.", _WEIGHTS)]
Seed = Annotated[int, option("Seed of everything that is drawn.", _WEIGHTS, default="0", metavar="N")]

Output = Annotated[
    Path | None,
    option("Folder to write.", OUTPUT, "--output", "-o", default="NAME-fxprune", metavar="FOLDER"),
]
Emit = Annotated[
    list[str] | None,
    option(
        "What to write beside recipe.json and the report: onnx, source, weights, or several with commas between them.",
        OUTPUT,
        default="all three",
        metavar="WHAT",
        autocompletion=lambda: list(EMITTED),
    ),
]
Force = Annotated[bool, flag("--force", "Replace the folder of an earlier run.", OUTPUT)]
DryRun = Annotated[bool, flag("--dry-run", "Only say what would come out: widths and costs. Writes nothing.", OUTPUT)]
Widths = Annotated[bool, flag("--widths", "List the widths of all layers, however many there are.", OUTPUT)]
Opset = Annotated[int | None, option("Operator set of the ONNX file, 18 or later.", OUTPUT, metavar="N")]
NoMeasure = Annotated[bool, flag("--no-measure", "Do not measure latency and memory, before and after.", OUTPUT)]
_FEW = {"metavar": "N", "min": 1, "max": 1024}  # far more end in a crash of the runtimes
Threads = Annotated[int, option("Threads of each runtime that is measured.", OUTPUT, default="1", **_FEW)]
RunThreads = Annotated[
    int | None,
    option("Threads of torch, and of each runtime that is measured.", OUTPUT, default="all, 1 for measuring", **_FEW),
]
PrintPasses = Annotated[bool, flag("--print-passes", "Print the program after each pass.", OUTPUT)]


def _side(letter: str) -> Any:
    what = "An ONNX file, or a folder that `fxprune compile` wrote."
    return typer.Argument(help=what, metavar=letter, show_default=False)


FirstSide = Annotated[Path, _side("A")]
SecondSide = Annotated[Path, _side("B")]
BenchInput = Annotated[
    list[str] | None,
    option("Shape of an input, as 1x3x224x224 or x=1x3x224x224, where the files leave it open.", None, metavar="SHAPE"),
]
Batch = Annotated[int | None, option("Examples in one pass.", None, show_default="1", metavar="N", min=1)]
Runtime = Annotated[
    str | None,
    option(
        "What to run in; with commas between them.",
        None,
        show_default="onnxruntime, and torch for two folders",
        metavar="R,R",
    ),
]
Repeat = Annotated[
    int | None,
    option("Timed passes for each side.", None, show_default="30, or as many as fit into a second", metavar="N", min=1),
]
