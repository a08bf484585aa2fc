"""What a pickled network may name: an allow-list by package and kind, never a deny-list.

A pickle calls what it names, with arguments it chooses. `torch.load(weights_only=True)` calls only what it has been
allowed to, so the question is what to allow. Here: nn.Module subclasses, enumerations and plain records that a trusted
package defines, and activation functions by name. No other function is allowed, not even from a trusted package.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import is_dataclass
from enum import Enum
from typing import Any

from torch import nn

from fxprune.capture.zoo_imports import first_line, import_timm, import_torchvision
from fxprune.errors import FxpruneError, LoadError, OptionError, UntrustedError

SafeGlobals = list[Callable[..., Any] | tuple[Callable[..., Any], str]]  # torch's type for the allow-list
# Where layers and networks live; the rest of these packages has no business in a saved network.
_KNOWN_PACKAGES = {
    "torch": ("torch.nn", "torch.ao.nn", "torch.ao.quantization.stubs"),
    "torchvision": ("torchvision.models", "torchvision.ops", "torchvision.transforms"),
    "timm": ("timm.layers", "timm.models"),
    "fxprune": ("fxprune.zoo",),
}
# Building one of these, or a subclass, runs code that is part of its data. By name: some need optional parts of torch.
_NEVER = {
    "torch.fx.graph_module.GraphModule",
    "torch.jit._script.ScriptModule",
    "torch.distributed.nn.api.remote_module._RemoteModule",
    "torch._dynamo.eval_frame.OptimizedModule",
}
# Plain data. A partial only stores its function, which has to be on this list as well.
_PLAIN: dict[str, Any] = {
    "builtins.frozenset": frozenset,
    "builtins.range": range,
    "builtins.slice": slice,
    "functools.partial": functools.partial,
}
_FUNCTION_HOMES = ("torch.nn.functional", "torch._C._nn", "timm.layers.activations")
_FUNCTIONS = {
    *("celu", "elu", "gelu", "hard_mish", "hard_sigmoid", "hard_swish", "hardsigmoid", "hardswish", "hardtanh"),
    *("leaky_relu", "log_sigmoid", "mish", "prelu", "quick_gelu", "relu", "relu6", "selu", "sigmoid", "silu"),
    *("softplus", "softsign", "swish", "tanh", "tanhshrink"),
}
_LISTED = 20  # names in one message


def allowed_globals(names: Iterable[str], trust: Sequence[str], file: str) -> SafeGlobals:
    """Turn the names a file asks for into (object, name) pairs for `torch.serialization.safe_globals`.

    names  "package.module.Class", as `torch.serialization.get_unsafe_globals_in_checkpoint` lists them
    trust  packages or modules whose classes may be used besides those of torch, torchvision, timm and the zoo
    file   what to call the file in messages

    Modules are imported only below trusted packages. Raises UntrustedError listing the names that are not allowed;
    LoadError when a trusted package lacks one of them; OptionError when `trust` holds what is no package name.
    """
    for package in trust:
        if not _is_dotted(package) or package == "__main__":
            raise OptionError(f"{package!r} cannot be trusted: give the name of a package or module")
    found = {name: _resolve(name, trust, file) for name in sorted(names)}
    refused = [name for name, value in found.items() if value is None]
    if refused:
        raise UntrustedError(_refusal(refused, trust, file))
    return [(value, name) for name, value in found.items()]


def _resolve(name: str, trust: Sequence[str], file: str) -> Any:
    """What a name stands for; None when it is not allowed."""
    if name in _PLAIN:
        return _PLAIN[name]
    home, _, short = name.rpartition(".")
    if home in _FUNCTION_HOMES and short in _FUNCTIONS:
        return _look_up(home, short, file)
    if not _is_dotted(name) or not _is_trusted(home, trust):
        return None
    value = _look_up(home, short, file)
    return value if _is_harmless(value) and _is_trusted(value.__module__, trust) else None


def _is_dotted(name: str) -> bool:
    return all(part.isidentifier() for part in name.split("."))


def _is_trusted(module: str, trust: Sequence[str]) -> bool:
    places = _KNOWN_PACKAGES.get(module.partition(".")[0], trust)
    return any(module == place or module.startswith(f"{place}.") for place in places)


def _look_up(home: str, short: str, file: str) -> Any:
    package = home.partition(".")[0]
    try:
        {"torchvision": import_torchvision, "timm": import_timm}.get(package, lambda: None)()
        return getattr(importlib.import_module(home), short)
    except FxpruneError as error:
        raise LoadError(f"{file} needs {home}.{short}, but {error}") from error
    except AttributeError as error:
        raise LoadError(f"{file} needs {home}.{short}, which the installed {package} does not have") from error
    except Exception as error:  # whatever a user's own package does when it is imported
        raise LoadError(f"{file} needs {home}.{short}, but importing {home} failed: {first_line(error)}") from error


def _is_harmless(value: Any) -> bool:
    if not inspect.isclass(value) or any(f"{base.__module__}.{base.__qualname__}" in _NEVER for base in value.__mro__):
        return False
    record = is_dataclass(value) and not hasattr(value, "__post_init__")
    named_tuple = issubclass(value, tuple) and hasattr(value, "_fields")
    return issubclass(value, nn.Module | Enum) or record or named_tuple


def _refusal(names: Sequence[str], trust: Sequence[str], file: str) -> str:
    """Why nothing was loaded and what the user can do, by kind of name."""
    shown = [name if _is_dotted(name) else repr(name) for name in names]  # a name may hold control characters
    listed = ", ".join(shown[:_LISTED]) + (f" and {len(shown) - _LISTED} more" if len(shown) > _LISTED else "")
    return (
        f"{file} was not loaded: it asks for {listed}. Trusted unasked are only layers, enumerations, plain records "
        f"and activation functions of torch, torchvision, timm and the zoo. {'. '.join(_ways_out(names, trust))}"
    )


def _ways_out(names: Sequence[str], trust: Sequence[str]) -> Iterator[str]:
    roots = {name.partition(".")[0] for name in names if _is_dotted(name) and not _is_trusted(name, trust)}
    packages = roots - {"__main__", *_KNOWN_PACKAGES} - sys.stdlib_module_names
    if packages:
        yield f"To trust the layers of {', '.join(sorted(packages))} too, name it: --trust, or trust=[...] in Python"
    if "__main__" in roots:
        yield "Classes of a training script (__main__) have to move into a module, and the network to be saved again"
    yield "You can also build the network in Python, load its state dict into it and hand the nn.Module to fxprune"
