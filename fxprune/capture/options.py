"""LoadOptions: what the user allows and says about a model file. torch stays out: the command line imports this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fxprune.errors import OptionError


@dataclass(frozen=True)
class LoadOptions:
    """How a file or a spec becomes a network.

    trust         packages ("mylib") and scripts ("path/to/train.py") whose classes a file may use, besides torch,
                  torchvision, timm and the zoo. Naming a package allows importing it, naming a script runs it.
    arch          the network that a file with weights only belongs to: a spec (`torchvision:resnet50`),
                  `package.module:factory` or `path/to/train.py:factory`. The latter two run that code.
    allow_pickle  unpickle without any restriction: the file can run whatever it wants
    seed          of the weights of a spec, in [0, 2**32)
    """

    trust: Sequence[str] = ()
    arch: str | None = None
    allow_pickle: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.trust, str):
            object.__setattr__(self, "trust", (self.trust,))
        for one in self.trust:
            if not is_script(one) and (not is_dotted(one) or one == "__main__"):
                raise OptionError(f"{one!r} cannot be trusted: give the name of a package, or the path of a .py file")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise OptionError(f"seed is {self.seed!r}: give an integer from 0 up to, not including, 2**32")


def is_script(text: str) -> bool:
    """Whether a text names a Python file rather than a package."""
    return text.endswith(".py")


def is_dotted(name: str) -> bool:
    """Whether a text is a name such as `package.module.Class`."""
    return all(part.isidentifier() for part in name.split("."))
