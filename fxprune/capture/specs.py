"""Specs: networks named by a short text, `zoo:vgg16`, `torchvision:resnet50` or `timm:ghostnet_100?num_classes=10`."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from fxprune import zoo
from fxprune.capture.loaded import Loaded
from fxprune.capture.options import LoadOptions
from fxprune.capture.zoo_imports import import_timm, import_torchvision
from fxprune.errors import FxpruneError, LoadError, described

Options = dict[str, Any]
_LISTED = {"zoo": "fxprune zoo", "torchvision": "torchvision.models.list_models()", "timm": "timm.list_models()"}
_WORDS: dict[str, Any] = {"true": True, "false": False, "none": None}
# Options that fetch trained weights or read a file: a spec means fresh weights and no network access.
_FETCHING = ("cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay")


def build_spec(spec: str, seed: int = 0, *, shapes_only: bool = False) -> Loaded:
    """Build the network a spec names, `source:name[?key=value&...]`, with fresh weights.

    The sources are zoo, torchvision and timm; keys are options of their constructors (`num_classes` everywhere).
    seed         in [0, 2**32); the same spec, seed and versions give the same weights. torch's global generator is
                 restored.
    shapes_only  what the network holds goes to the meta device as it is made: no number is drawn or kept

    Raises LoadError for unknown sources and names (with the nearest ones), for options the network does not take, and
    when torchvision or timm is not installed; OptionError for a seed outside its range.
    """
    source, name, options = _parse(spec)
    with _on_meta() if shapes_only else nullcontext():
        module = built(spec, seed, lambda: _SOURCES[source](name, options, seed))
    module = module.to("meta") if shapes_only else module  # the zoo fills what it has made without numbers
    hint = zoo.entry(name).input_shape if source == "zoo" else None
    return Loaded(module, origin=spec, name=name, input_hint=hint, fresh=True)


def is_spec(text: str) -> bool:
    """Whether a text begins with one of the sources, as in `zoo:vgg16`."""
    return text.partition(":")[0] in _SOURCES and ":" in text


@contextmanager
def _on_meta() -> Iterator[None]:
    """Parameters and buffers lose their numbers when a module takes them, before they are drawn: memory that nobody has
    written to costs nothing. torch.device("meta") would take the tensors that constructors compute widths with, too.
    """

    def parameter(_owner: nn.Module, _name: str, one: nn.Parameter | None) -> nn.Parameter | None:
        return None if one is None else nn.Parameter(one.to("meta"), requires_grad=one.requires_grad)

    def buffer(_owner: nn.Module, _name: str, one: Tensor | None) -> Tensor | None:
        return None if one is None else one.to("meta")

    hooks = [
        register_module_parameter_registration_hook(parameter),  # type: ignore[arg-type]
        register_module_buffer_registration_hook(buffer),  # type: ignore[arg-type]
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def built(spec: str, seed: int, make: Callable[[], nn.Module]) -> nn.Module:
    """What `make` returns when it draws from a generator seeded with `seed`. Raises LoadError."""
    LoadOptions(seed=seed)  # checks it
    try:
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs as well
            return make()
    except FxpruneError:
        raise
    except Exception as error:  # constructors complain about options in every possible way
        raise LoadError(f"{spec} cannot be built: {described(error)}") from error


def _parse(spec: str) -> tuple[str, str, Options]:
    source, colon, rest = spec.partition(":")
    if not colon or source not in _SOURCES:
        known = " or ".join(f"{one}:NAME" for one in _SOURCES)
        raise LoadError(f"{spec!r} is no spec of a network: write {known}")
    name, _, query = rest.partition("?")
    options = parse_options(query, spec)
    for key in options:
        if key in _FETCHING or key.startswith("weights"):
            raise LoadError(f"{spec!r}: {key} is no option here, a spec is built with fresh weights")
    return source, name, options


def parse_options(query: str, spec: str) -> Options:
    """What stands behind the question mark, `key=value&key=value`, numbers and true, false, none as such."""
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise LoadError(f"the options in {spec!r} are not of the form key=value&key=value") from error
    return {key: _value(text) for key, text in pairs}


def _value(text: str) -> Any:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _build_zoo(name: str, options: Options, seed: int) -> nn.Module:
    _check_known("zoo", name, name in zoo.names(), zoo.names)
    if "seed" in options:
        raise LoadError("seed is no option of a spec: it is given beside it")
    return zoo.build(name, seed=seed, **options)


def _build_torchvision(name: str, options: Options, _seed: int) -> nn.Module:
    models = import_torchvision().models
    known = models.list_models()
    _check_known("torchvision", name, name in known, lambda: known)
    module: nn.Module = models.get_model(name, **{**_defaults(name, models.get_model_builder(name)), **options})
    return module


def _defaults(name: str, builder: Callable[..., nn.Module]) -> Options:
    defaults: Options = {"weights": None}
    if "weights_backbone" in inspect.signature(builder).parameters:
        defaults["weights_backbone"] = None  # detection and segmentation would download a trained backbone
    if name.endswith(("googlenet", "inception_v3")):
        defaults["init_weights"] = True  # what they do anyway, after a warning that this default will change
    return defaults


def _build_timm(name: str, options: Options, _seed: int) -> nn.Module:
    timm = import_timm()
    _check_known("timm", name, timm.is_model(name), timm.list_models)
    module: nn.Module = timm.create_model(name, pretrained=False, **options)
    return module


def _check_known(source: str, name: str, known: bool, names: Callable[[], Iterable[str]]) -> None:
    if known:
        return
    near = difflib.get_close_matches(name.lower(), list(names()), n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"{_LISTED[source]} lists them"
    raise LoadError(f"{source} has no network {name!r}; {hint}")


_SOURCES: Mapping[str, Callable[[str, Options, int], nn.Module]] = {
    "zoo": _build_zoo,
    "torchvision": _build_torchvision,
    "timm": _build_timm,
}
