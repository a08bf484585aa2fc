"""reinit: every weight is drawn afresh; masks stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fxprune.channels.leaves import understood
from fxprune.drawing import default_bias, fan_in, generator, kaiming_normal
from fxprune.facts import Ranking, Repairs, Shrunk, WeightMasks
from fxprune.program import Program, first_names
from fxprune.wording import counted


@dataclass(frozen=True)
class Reinit:
    """Before: Shrunk, WeightMasks. After: the same graph with fresh numbers (Reconvene: rectifier and post-processor).

    Convolution and linear weights: Kaiming normal, fan-in of the new shape, the mask not considered; their biases:
    PyTorch's default. Normalisation: scale 1, shift 0, statistics 0 and 1 - unless the network is untrained, when
    they are at their initial values already (some start at 0 on purpose). The bias of a group's only channel starts
    at 1: near 0, a ReLU behind it would silence the network for every second image. All other parameters keep their
    sliced values.

    seed   of the draw; another stream than the one that drew the weights used for ranking
    """

    seed: int = 0
    name: ClassVar[str] = "reinit"
    requires: ClassVar[tuple[type, ...]] = (Shrunk, WeightMasks, Ranking, Repairs)

    def run(self, program: Program) -> Program:
        fresh = self._weights(program)
        if program.fact(Ranking).trained:
            fresh.update(_normalisations(program))
        lifted = [name for name in program.fact(Shrunk).single if program.tensors[name].shape == (1,)]
        fresh.update({name: torch.ones_like(program.tensors[name], requires_grad=False) for name in lifted})
        repairs = replace(program.fact(Repairs), lifted=tuple(lifted))
        first = first_names(program)
        tied = {name: fresh[known] for name, known in first.items() if known in fresh}
        drawn = program.with_tensors({**fresh, **tied}).with_facts(repairs)
        return replace(drawn, notes=(*program.notes, *_drawn_for_good(drawn, fresh)))

    def _weights(self, program: Program) -> dict[str, Tensor]:
        """Fresh weights, and biases of the modules that own them, by first name."""
        fresh: dict[str, Tensor] = {}
        for name in weights_of(program):
            tensor = program.tensors[name]
            source = generator(self.seed, "reinit", name)
            fresh[name] = kaiming_normal(tensor.shape, source, tensor.dtype)
            bias = _bias_beside(program, name)
            if bias is not None:
                shape = program.tensors[bias].shape
                fresh[bias] = default_bias(shape, fan_in(tensor.shape), source, tensor.dtype)
        return fresh


def _drawn_for_good(program: Program, fresh: Mapping[str, Tensor]) -> tuple[str, ...]:
    """A note on layers that training leaves alone, as those of a frozen backbone, and that are random now."""
    names = [name for name, one in program.module.named_parameters() if name in fresh and not one.requires_grad]
    if not names:
        return ()
    return (
        f"{counted(len(names), 'parameter')} without requires_grad drawn anew, and training will leave them so: "
        f"{', '.join(names[:5])} (keep_weights keeps them, requires_grad_() trains them)",
    )


def weights_of(program: Program) -> list[str]:
    """Weights of every convolution and linear module, depthwise included, and every masked weight.

    Parametrised layers stay as they are.
    """
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    owners = ((path, one) for path, one in program.module.named_modules() if isinstance(one, kinds) and understood(one))
    modules = [f"{path}.weight".lstrip(".") for path, _ in owners]
    shrunk = program.fact(Shrunk)
    return list(dict.fromkeys([*modules, *program.fact(WeightMasks).masks, *sorted(shrunk.dense)]))


def _bias_beside(program: Program, weight: str) -> str | None:
    stem, _, leaf = weight.rpartition(".")
    bias = f"{stem}.{leaf.replace('weight', 'bias')}" if leaf.endswith("weight") else ""
    tensor = program.tensors.get(bias)
    return bias if tensor is not None and tensor.ndim == 1 else None


def _normalisations(program: Program) -> dict[str, Tensor]:
    fresh: dict[str, Tensor] = {}
    for path, module in program.module.named_modules():
        if isinstance(module, _NormBase | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
            for leaf, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
                if getattr(module, leaf, None) is not None:
                    tensor = program.tensors[f"{path}.{leaf}"]
                    fresh[f"{path}.{leaf}"] = torch.full_like(tensor, value, requires_grad=False)
            if getattr(module, "num_batches_tracked", None) is not None:
                fresh[f"{path}.num_batches_tracked"] = torch.zeros((), dtype=torch.int64)
    return fresh
