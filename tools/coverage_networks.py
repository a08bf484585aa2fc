"""Which networks the coverage sweep runs: all of torchvision's, and a systematic choice of timm's convolutional ones.

timm: an architecture counts as convolutional from ten convolutions on. Of each module of timm.models the three smallest
are taken, and the smallest of each family (the first word of the name without trailing digits); of modules whose
networks have fewer convolutions (patch embeddings of transformers), the smallest one. Sizes are counted on the meta
device.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.capture.zoo_imports import import_timm, import_torchvision

SMALLEST_OF_MODULE, MANY = 3, 10


@dataclass(frozen=True)
class Network:
    """One network of the sweep. `pure` says that nearly all its weight layers are convolutions."""

    spec: str
    module: str
    parameters: int
    pure: bool


class NoDraws(TorchDispatchMode):
    """Zeros in place of random initial numbers, whose drawing takes most of a large network's construction."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name in ("aten::normal_", "aten::uniform_", "aten::erfinv_"):
            return args[0].zero_()
        return func(*args, **(kwargs or {}))


def networks(cache: Path) -> list[Network]:
    """All of them, torchvision first, then timm by size. Counting takes minutes, so it is kept in `cache`."""
    version = f"torchvision {import_torchvision().__version__}, timm {import_timm().__version__}"
    if cache.is_file():
        known = json.loads(cache.read_text("utf-8"))
        if known["version"] == version:
            return [Network(**one) for one in known["networks"]]
    found = [*_torchvision(), *_chosen(_timm())]
    cache.parent.mkdir(parents=True, exist_ok=True)
    content = {"version": version, "networks": [asdict(one) for one in found]}
    cache.write_text(json.dumps(content, indent=1), "utf-8")
    return found


def _torchvision() -> list[Network]:
    models: Any = import_torchvision().models
    names = [name for name in models.list_models() if not name.startswith("quantized_")]
    kinds = {
        "classifier": [name for name in names if hasattr(models, name)],
        "segmentation": [name for name in names if hasattr(models.segmentation, name)],
    }
    found = []
    for kind, chosen in kinds.items():
        for name in chosen:
            options = {"weights": None} | ({"weights_backbone": None} if kind == "segmentation" else {})
            if name in ("googlenet", "inception_v3"):
                options["init_weights"] = False
            with NoDraws():  # type: ignore[no-untyped-call]  # RegNets compute their widths with tensors
                model = models.get_model(name, **options)
            found.append(_network(f"torchvision:{name}", kind, model)[0])
    return found


def _timm() -> list[tuple[Network, int]]:
    timm: Any = import_timm()
    found = []
    for module in sorted(timm.models.list_modules()):
        for name in timm.models.list_models(module=module):
            with torch.device("meta"):
                model = timm.create_model(name, pretrained=False)
            found.append(_network(f"timm:{name}", module, model))
    return found


def _network(spec: str, module: str, model: nn.Module) -> tuple[Network, int]:
    """The network, and how many convolutions it has."""
    convs = [part for part in model.modules() if isinstance(part, nn.modules.conv._ConvNd)]
    others = [part for part in model.modules() if isinstance(part, nn.Linear | nn.LayerNorm | nn.MultiheadAttention)]
    pure = len(convs) >= MANY and len(others) <= len(convs) // 8
    pure |= spec.startswith("torchvision:") and len(others) <= len(convs)
    return Network(spec, module, sum(one.numel() for one in model.parameters()), pure), len(convs)


def _chosen(counted: list[tuple[Network, int]]) -> list[Network]:
    counted = sorted((pair for pair in counted if pair[1]), key=lambda pair: (pair[0].parameters, pair[0].spec))
    modules: dict[str, list[Network]] = defaultdict(list)
    families: dict[tuple[str, str], Network] = {}
    few: dict[str, Network] = {}
    for network, convs in counted:
        if convs < MANY:
            few.setdefault(network.module, network)
            continue
        modules[network.module].append(network)
        families.setdefault((network.module, _family(network.spec)), network)
    taken = [one for members in modules.values() for one in members[:SMALLEST_OF_MODULE]]
    taken += [*families.values(), *(one for module, one in few.items() if module not in modules)]
    return sorted(dict.fromkeys(taken), key=lambda one: (one.parameters, one.spec))


def _family(spec: str) -> str:
    return re.sub(r"\d+$", "", spec.partition(":")[2].split("_")[0])
