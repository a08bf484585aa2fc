"""What `fxprune compile` was asked for: ways to say how much is removed, and what belongs to each of them."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from fxprune.amounts import amount
from fxprune.cli_config import parsed
from fxprune.errors import OptionError
from fxprune.idle import BELONG, DECIDES, without_effect

# Ways to say how much, and the library's word for what they set: a target moves what its method moves.
_WAYS = {
    "sparsity": "sparsity",
    "keep_rate": "keep_rate",
    "channel_sparsity": "keep_rate",
    "ratios": "keep_rate",
    "target_params": None,
    "target_macs": None,
    "target_size": None,
}


def refuse_idle(*cases: tuple[bool, str, str]) -> None:
    """Raise OptionError for the first of them that was given: (whether it was, the option, where it has no effect)."""
    for given, option, where in cases:
        if given:
            raise OptionError(f"{option} has no effect {where}: leave it out")


def check_belonging(asked: Mapping[str, Any]) -> None:
    """Raise OptionError unless one of the ways was given, and nothing that has no effect with it."""
    ways = [way for way in _WAYS if way in asked]
    if len(ways) != 1:
        raise OptionError(
            f"give --sparsity or --keep-rate or a target, and only one of them ({_told(ways)} given): --sparsity 0.98 "
            "does without 98 % of the weights, --keep-rate 0.5 keeps half of the channels everywhere, --target-size "
            "2MiB says how large the result may be"
        )
    word, settings = _word(ways[0], asked.get("method")), _settings(asked.get("method"))
    for option, value in settings.items():
        if asked.get(option, value) != value:
            raise OptionError(
                f"method {asked['method']} sets {option} to {value!r}: leave {_flag(option)} {asked[option]} out"
            )
    for other, names in BELONG.items():
        without = [name for name in names if name in asked]
        if other != word and without:
            raise OptionError(
                f"{_flag(without[0])} has no effect with {_flag(ways[0])}: leave it out, or give {_flag(other)} instead"
            )
    _check_idle({name: value for name, value in asked.items() if name not in settings}, word, settings)


def _settings(method: str | None) -> Mapping[str, Any]:
    from fxprune.methods import method_named

    return {} if method is None else method_named(method).settings


def _check_idle(asked: Mapping[str, Any], word: str, settings: Mapping[str, Any]) -> None:
    """Raise OptionError for an option that another one, given or set by the method, leaves without effect. The library
    lets it pass at its usual value: there nobody can tell who gave it.
    """
    from fxprune.options import Options

    decides = DECIDES[word]
    value = {decides: getattr(Options, decides), **asked, **settings}[decides]
    for option in without_effect(decides, value):
        if option in asked:
            raise OptionError(f"{_flag(option)} has no effect where {decides} is {value}: leave it out")


def _word(way: str, method: str | None) -> str:
    word = _WAYS[way]
    if word is not None:
        return word
    from fxprune.methods import method_named

    return "sparsity" if method is None else method_named(method).knob


def _told(ways: list[str]) -> str:
    if not ways:
        return "none was"
    return f"{' and '.join(map(_flag, ways))} were"


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def settled(asked: Mapping[str, Any], from_file: Container[str]) -> dict[str, Any]:
    """Without what a file says about one of the ways where the command line asks for another."""
    given = [way for way in _WAYS if way in asked and way not in from_file]
    if len(given) != 1:
        return dict(asked)
    other = [names for word, names in BELONG.items() if _WAYS[given[0]] not in (word, None)]
    overruled = {name for names in (tuple(set(_WAYS) - set(given)), *other) for name in names if name in from_file}
    return {name: value for name, value in asked.items() if name not in overruled}


def as_arguments(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `fxprune.compile`: files read, amounts as numbers. Raises OptionError."""
    found = {name: value for name, value in asked.items() if name != "ratios"}
    if "ratios" in asked:
        found["keep_rate"] = read_rates(asked["ratios"])
    for name in ("target_params", "target_macs", "target_size"):
        if name in asked:
            found[name] = _amount(name, asked[name])
    return found


def _amount(name: str, text: str) -> float:
    try:
        return amount(text, in_bytes=name == "target_size")
    except OptionError as error:
        raise OptionError(f"{_flag(name)} {error}") from None


def read_rates(path: Path) -> dict[str, float]:
    """Pattern of layers -> fraction of channels they keep, from YAML or JSON. Raises OptionError, or OSError."""
    rates = parsed(path)
    for pattern, rate in rates.items():
        if not isinstance(pattern, str) or isinstance(rate, bool) or not isinstance(rate, int | float):
            raise OptionError(f"{path}: a pattern of layers and a fraction are wanted, as layer3.*: 0.25, not {rate!r}")
    if not rates:
        raise OptionError(f"{path} names no layer: write lines as layer3.*: 0.25")
    return {pattern: float(rate) for pattern, rate in rates.items()}


def check_sources(asked: Mapping[str, Any], source: str | None, batch: int | None) -> None:
    """Raise OptionError for data that are missing, and for such as nothing looks at."""
    from fxprune.budget import one_budget
    from fxprune.pipeline import check_data
    from fxprune.pipeline import settled as settled_options

    rest = {name: value for name, value in asked.items() if not name.startswith("target_") and name != "method"}
    targets = (asked.get(f"target_{kind}") for kind in ("params", "macs", "size"))
    options, _ = settled_options(asked.get("method"), one_budget(*targets), **rest)
    check_data(options, source is not None)
    refuse_idle((batch is not None and source is None, "--data-batch", "without --data"))
