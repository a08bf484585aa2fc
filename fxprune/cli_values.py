"""Shell completion of values: the names of networks, found without importing torch or the packages they live in."""

from __future__ import annotations

import contextlib
import glob
import io
import os
import re
from collections.abc import Callable, Iterator, MutableMapping
from importlib.util import find_spec
from pathlib import Path

# Those of fxprune.emit.folder, fxprune.methods and fxprune.zoo, which import torch.
EMITTED = ("onnx", "source", "weights")
METHODS = (
    *("reconvene", "upai", "spai", "inverted", "random", "precrop", "precrop-synflow", "3sp", "3sp-per-mac"),
    *("prospr-structured", "l1", "fpgm", "slimming", "sfp", "taylor", "taylor-batch", "taylor-element", "uniform"),
)
ZOO = (
    *("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_nobias", "vgg13_nobias", "vgg16_nobias", "vgg19_nobias"),
    *("resnet8", "resnet20", "resnet32", "resnet56", "resnet8_a", "resnet20_a", "resnet32_a", "resnet56_a"),
    *("resnet50", "resnet50_3x3", "mobilenet10"),
)
# `@register_model`, `@register_model()` or `@register_model(name="other")`, further decorators, `def name(`.
_REGISTERED = re.compile(
    r'^@register_model(?:\((?:name="(?P<other>\w+)")?[^)]*\))?$.*?^def (?P<name>\w+)\(', re.MULTILINE | re.DOTALL
)


def models(incomplete: str) -> list[str]:
    """Specs and files that a MODEL may begin with. None at all leaves it to the shell to offer files."""
    found = specs(incomplete)
    files = glob.glob(f"{glob.escape(incomplete)}*") if found else []
    return [*found, *(f"{name}/" if os.path.isdir(name) else name for name in sorted(files))]


def specs(incomplete: str) -> list[str]:
    """`zoo:`, `torchvision:` and `timm:`; the networks of one of them where only that one fits."""
    sources = [
        source for source in _NAMES if f"{source}:".startswith(incomplete) or incomplete.startswith(f"{source}:")
    ]
    if len(sources) != 1:
        return [f"{source}:" for source in sources]
    names = [f"{sources[0]}:{name}" for name in _NAMES[sources[0]]()]
    return [name for name in names if name.startswith(incomplete)]


def registered(package: str) -> list[str]:
    """Networks that the sources of `package.models` register under their names, sorted; none if it is not installed."""
    found = find_spec(package)
    folders = found.submodule_search_locations if found else None
    paths = [path for folder in folders or () for path in Path(folder, "models").rglob("*.py")]
    texts = (path.read_text("utf-8", "replace") for path in paths)
    return sorted({one["other"] or one["name"] for text in texts for one in _REGISTERED.finditer(text)})


_NAMES: dict[str, Callable[[], list[str]]] = {
    "zoo": lambda: list(ZOO),
    "torchvision": lambda: registered("torchvision"),
    "timm": lambda: registered("timm"),
}


@contextlib.contextmanager
def whole_words(environment: MutableMapping[str, str]) -> Iterator[None]:
    """bash takes `zoo:vgg16` for three words and replaces the last one only: hand it to typer as one word, and cut
    what it answers to what bash will replace.
    """
    words, cursor = environment["COMP_WORDS"].split("\n"), int(environment["COMP_CWORD"])
    joined = [""]
    at = 0
    for number, word in enumerate(words):
        if number and not (word == ":" or joined[-1].endswith(":")):
            joined.append("")
        joined[-1] += word
        at = len(joined) - 1 if number <= cursor else at
    environment.update({"COMP_WORDS": "\n".join(joined), "COMP_CWORD": str(at)})
    typed = joined[at]
    answer = io.StringIO()
    try:
        with contextlib.redirect_stdout(answer):
            yield
    finally:
        kept = typed[: typed.rfind(":") + 1] if typed != words[min(cursor, len(words) - 1)] else ""
        print("\n".join(line.removeprefix(kept) for line in answer.getvalue().splitlines()))
