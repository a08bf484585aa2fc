"""--config FILE: options of a command read from YAML, under the names they have on the command line.

model: net.pt
sparsity: 0.98
ignore: [stem*]
no_proof: true
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import typer

from fxprune.errors import OptionError

_LEFT_OUT = {"config", "help"}
_AMOUNTS = ("target_params", "target_macs", "target_size")  # texts, as 10MiB, which may be plain numbers too


def from_file(context: typer.Context, path: Path | None) -> Path | None:
    """What the file says takes the place of the defaults, so that options on the command line win over it."""
    if path is not None and not context.resilient_parsing:
        values = read_config(path, types_of(context.command))
        destinations = {option_name(one): one.name for one in context.command.params}
        context.default_map = {str(destinations[name]): value for name, value in values.items()}
    return path


def names_from_file(context: typer.Context) -> set[str]:
    """Parameters of the command that have their value from the file."""
    sources = {str(one.name): context.get_parameter_source(str(one.name)) for one in context.command.params}
    return {name for name, source in sources.items() if source is not None and source.name == "DEFAULT_MAP"}


def option_name(parameter: Any) -> str:
    """`keep_rate` for the option --keep-rate, `model` for the argument MODEL."""
    if parameter.param_type_name == "argument":
        return str(parameter.name)
    return str(max(parameter.opts, key=len).lstrip("-").replace("-", "_"))


def types_of(command: Any) -> dict[str, Any]:
    """Option -> the type its value has, as the function behind the command declares it."""
    callback: Callable[..., None] = inspect.unwrap(command.callback)
    declared = get_type_hints(callback)
    return {
        option_name(one): declared[one.name]
        for one in command.params
        if option_name(one) not in _LEFT_OUT and one.name in declared
    }


def read_config(path: Path, types: Mapping[str, Any]) -> dict[str, Any]:
    """The options that a file sets. Raises OptionError naming the file and what is wrong in it, or OSError."""
    return _checked(path, _renamed(path, parsed(path), types), types)


def parsed(path: Path) -> dict[Any, Any]:
    """The mapping that a YAML file holds. Raises OptionError naming the file and the line, or OSError."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except UnicodeDecodeError:
        raise OptionError(f"{path} is not a text file") from None
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise OptionError(f"{path}{line}: {error.problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise OptionError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(content, dict | None):
        raise OptionError(f"{path} holds no options: write one `name: value` on each line")
    return content or {}


def _renamed(path: Path, content: Mapping[Any, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """Names with - for _ are the same; one value will do where several could be given."""
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in types:
            near = difflib.get_close_matches(name, types, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(types)}"
            raise OptionError(f"{path}: there is no option {str(key)!r}; {hint}")
        if name in values:
            raise OptionError(f"{path}: {name} is given twice")
        if value is not None:
            values[name] = [value] if _takes_several(types[name]) and not isinstance(value, list) else value
    return values


def _checked(path: Path, values: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """Strictly: the text "0.9" is no number."""
    from pydantic import TypeAdapter, ValidationError

    checked = dict(values)
    for name, value in values.items():
        kind = str if Path in get_args(types[name]) else types[name]
        if name in _AMOUNTS and isinstance(value, int | float) and not isinstance(value, bool):
            checked[name] = value = str(value)
        try:
            TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            told = error.errors()[0]["msg"].removeprefix("Input ")
            raise OptionError(f"{path}: {name} {told}, not {value!r}") from None
    return checked


def _takes_several(kind: Any) -> bool:
    return any(get_origin(one) is list for one in get_args(kind))
