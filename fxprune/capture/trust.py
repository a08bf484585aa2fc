"""What a pickled network may name: an allow-list by package and kind, never a deny-list.

A pickle calls what it names, with arguments it chooses. `torch.load(weights_only=True)` calls only what it has been
allowed to, so the question is what to allow. Here: nn.Module subclasses, enumerations and plain records that a trusted
package or script defines, and activation functions by name. No other function is allowed, not even from there.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pathlib
import sys
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from torch import nn

from fxprune.capture.options import is_dotted, is_script
from fxprune.capture.scripts import check_exists, run_script, searching
from fxprune.capture.zoo_imports import import_timm, import_torchvision
from fxprune.errors import FxpruneError, LoadError, UntrustedError, described

SafeGlobals = list[tuple[Any, str]]  # what a name stands for, and the name
# Where layers and networks live; the rest of these packages has no business in a saved network.
_KNOWN_PACKAGES = {
    "torch": (
        *("torch.nn", "torch.ao.nn.intrinsic.modules", "torch.ao.nn.quantized.modules.functional_modules"),
        "torch.ao.quantization.stubs",
    ),
    "torchvision": ("torchvision.models", "torchvision.ops", "torchvision.transforms"),
    "timm": ("timm.layers", "timm.models"),
    "fxprune": ("fxprune.zoo",),
}
# Building one of these, or a subclass, runs code that is part of its data, or talks to other machines. A layer may keep
# a class and call it in its forward. By name: some need optional parts of torch.
_NEVER = {
    "torch.fx.graph_module.GraphModule",
    "torch.jit._script.ScriptModule",
    "torch.distributed.nn.api.remote_module._RemoteModule",
    "torch.nn.parallel.distributed.DistributedDataParallel",
    "torch._dynamo.eval_frame.OptimizedModule",
    "timm.models._features_fx.FeatureGraphNet",
    "timm.models._features_fx.GraphExtractNet",
}
# Plain data, also what training scripts put beside their weights: their arguments, paths, a best accuracy of numpy's.
# A partial only stores its function, which has to be on this list as well.
PLAIN: dict[str, Any] = {
    "argparse.Namespace": Namespace,
    "builtins.frozenset": frozenset,
    "builtins.range": range,
    "builtins.slice": slice,
    "functools.partial": functools.partial,
    "numpy._core.multiarray.scalar": np._core.multiarray.scalar,  # type: ignore[attr-defined]
    "numpy.core.multiarray.scalar": np._core.multiarray.scalar,  # type: ignore[attr-defined]
    "numpy.dtype": np.dtype,
    "pathlib.PosixPath": pathlib.PurePath,  # a path of another system cannot be made here
    "pathlib.WindowsPath": pathlib.PurePath,
    "types.SimpleNamespace": SimpleNamespace,
}
# numpy.dtype makes one of these, which the unpickler looks up by class.
_NUMBERS = [type(np.dtype(code)) for code in "?bBhHiIlLqQefdFD"]
_FUNCTION_HOMES = ("torch.nn.functional", "torch._C._nn", "timm.layers.activations")
_FUNCTIONS = {
    *("celu", "elu", "gelu", "hard_mish", "hard_sigmoid", "hard_swish", "hardsigmoid", "hardswish", "hardtanh"),
    *("leaky_relu", "log_sigmoid", "mish", "prelu", "quick_gelu", "relu", "relu6", "selu", "sigmoid", "silu"),
    *("softplus", "softsign", "swish", "tanh", "tanhshrink"),
}
_LISTED = 20  # names in one message
OTHERWISE = (
    "You can also save its state_dict and name the network with --arch, or, if you trust whoever made the file with "
    "your computer, unpickle it without any check: --allow-pickle"
)


class Trust:
    """Whom a file may take classes from. A script is executed when the first name of it is wanted, and listed then.

    trust  packages, modules and paths of scripts, as `LoadOptions` holds them; LoadError for a script that is not there
    """

    def __init__(self, trust: Sequence[str] = ()) -> None:
        self.packages = [one for one in trust if not is_script(one)]
        self.scripts = [Path(one) for one in trust if is_script(one)]
        self.executed: dict[Path, ModuleType] = {}
        for script in self.scripts:
            check_exists(script)

    def covers(self, module: str) -> bool:
        """Whether classes that this module defines may be used."""
        places = _KNOWN_PACKAGES.get(module.partition(".")[0], self.packages)
        own = [one.__name__ for one in self.executed.values()]
        return module in own or any(module == place or module.startswith(f"{place}.") for place in places)

    def scripts_named(self, home: str) -> Iterator[ModuleType]:
        """Scripts that `home` can mean, executed: a class of a program was saved as one of `__main__`."""
        for path in self.scripts:
            if home in ("__main__", path.stem):
                if path not in self.executed:
                    self.executed[path] = run_script(path)
                yield self.executed[path]

    def notes(self) -> tuple[str, ...]:
        """What was executed, for the report."""
        return tuple(f"the file {path} was executed, as --trust asks" for path in self.executed)


def allowed_globals(names: Iterable[str], trust: Trust, file: str) -> SafeGlobals:
    """Turn the names a file asks for into (object, name) pairs for `torch.serialization.safe_globals`.

    names  "package.module.Class", as `torch.serialization.get_unsafe_globals_in_checkpoint` lists them
    file   what to call the file in messages

    Modules are imported only below trusted packages. Raises UntrustedError listing the names that are not allowed;
    LoadError when a trusted package or script lacks one of them or fails.
    """
    with searching(Path.cwd()):
        found = {name: _resolve(name, trust, file) for name in sorted(names)}
    refused = [name for name, value in found.items() if value is None]
    if refused:
        raise UntrustedError(_refusal(refused, trust, file))
    numbers = [(kind, f"numpy.dtypes.{kind.__name__}") for kind in _NUMBERS if "numpy.dtype" in found]
    return [*((value, name) for name, value in found.items()), *numbers]


def _resolve(name: str, trust: Trust, file: str) -> Any:
    """What a name stands for; None when it is not allowed."""
    if name in PLAIN:
        return PLAIN[name]
    home, _, short = name.rpartition(".")
    if home in _FUNCTION_HOMES and short in _FUNCTIONS:
        return _look_up(home, short, file)
    if not is_dotted(name):
        return None
    for script in trust.scripts_named(home):
        if hasattr(script, short):
            return _allowed(getattr(script, short), trust)
    return _allowed(_look_up(home, short, file), trust) if trust.covers(home) else None


def _allowed(value: Any, trust: Trust) -> Any:
    return value if _is_harmless(value) and trust.covers(value.__module__) else None


def _look_up(home: str, short: str, file: str) -> Any:
    package = home.partition(".")[0]
    try:
        {"torchvision": import_torchvision, "timm": import_timm}.get(package, lambda: None)()
        return getattr(importlib.import_module(home), short)
    except Exception as error:  # whatever a user's own package does when it is imported
        raise LoadError(f"{file} needs {home}.{short}, {_what_happened(error, home)}") from error


def _what_happened(error: Exception, home: str) -> str:
    """The rest of a sentence about a class that could not be looked up in the module `home`."""
    package = home.partition(".")[0]
    if isinstance(error, FxpruneError):
        return f"but {error}"
    if isinstance(error, AttributeError) and home in sys.modules:  # else its own code has raised it
        return f"which the installed {package} does not have"
    failed = f"but importing {home} failed: {described(error)}"
    if isinstance(error, ModuleNotFoundError) and f"{home}.".startswith(f"{error.name}."):
        return f"{failed}; a file of your own is named by its path: --trust path/to/{package}.py"
    return failed


def _is_harmless(value: Any) -> bool:
    if not inspect.isclass(value) or any(f"{base.__module__}.{base.__qualname__}" in _NEVER for base in value.__mro__):
        return False
    record = is_dataclass(value) and not hasattr(value, "__post_init__")
    named_tuple = issubclass(value, tuple) and hasattr(value, "_fields")
    return issubclass(value, nn.Module | Enum) or record or named_tuple


def _refusal(names: Sequence[str], trust: Trust, file: str) -> str:
    """Why nothing was loaded and what the user can do, by kind of name."""
    shown = [name if is_dotted(name) else repr(name) for name in names]  # a name may hold control characters
    listed = ", ".join(shown[:_LISTED]) + (f" and {len(shown) - _LISTED} more" if len(shown) > _LISTED else "")
    return (
        f"{file} was not loaded: it asks for {listed}. Trusted unasked are only layers, enumerations, plain records "
        f"and activation functions of torch, torchvision, timm and the zoo. {'. '.join(_ways_out(names, trust))}"
    )


def _ways_out(names: Sequence[str], trust: Trust) -> Iterator[str]:
    roots = {name.partition(".")[0] for name in names if is_dotted(name) and not trust.covers(name)}
    packages = roots - {"__main__", *_KNOWN_PACKAGES} - sys.stdlib_module_names
    if packages:
        yield f"To trust the layers of {', '.join(sorted(packages))} too, name it: --trust {min(packages)}"
    if "__main__" in roots and not trust.executed:
        yield "Classes of __main__ come from the script that was run: name it, --trust path/to/train.py"
    elif "__main__" in roots:
        yield f"{', '.join(map(str, trust.executed))} does not define all of them as a module or a plain record"
    yield OTHERWISE
