"""initialise: untrained weights are drawn anew (Kaiming, fan-in) before they are ranked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor
from torch.nn.modules.batchnorm import _NormBase

from fxprune.drawing import DrawnTensors
from fxprune.errors import OptionError
from fxprune.facts import Prunable, Ranking
from fxprune.program import Program, first_names

MODES = ("auto", "kaiming", "keep")
_HEAVY_TAILS = 0.5  # excess kurtosis: 0 for a normal draw, -1.2 for a uniform one, well above for most trained layers


@dataclass(frozen=True)
class Initialise:
    """Before: Prunable. After: Ranking; weights drawn where the mode asks for it.

    mode   "kaiming" draws every masked weight from N(0, 2/fan_in); "keep" ranks the given ones; "auto" draws unless
           they look trained
    seed   of the draw; `reinit` uses another stream
    """

    mode: str = "auto"
    seed: int = 0
    name: ClassVar[str] = "initialise"
    requires: ClassVar[tuple[type, ...]] = (Prunable,)

    def run(self, program: Program) -> Program:
        if self.mode not in MODES:
            raise OptionError(f"unknown init {self.mode!r}: choose {', '.join(MODES)}")
        names = list(program.fact(Prunable).kinds)
        trained = looks_trained(program, names)
        drawn = self.mode == "kaiming" or (self.mode == "auto" and not trained)
        facts = {**program.facts, Ranking: Ranking(trained, drawn)}
        if drawn:
            tensors = DrawnTensors(program.tensors, frozenset(names), self.seed, first_names(program))
            return replace(program, tensors=tensors, facts=facts)
        return replace(program, facts=facts)


def looks_trained(program: Program, names: list[str]) -> bool:
    """Batch statistics that have moved, or, in a network without any, weights with heavier tails than any usual
    draw.
    """
    statistics = _running_statistics(program)
    if statistics:
        return any(bool((mean != 0).any()) or bool((var != 1).any()) for mean, var in statistics)
    large = [program.tensors[name] for name in names if program.tensors[name].numel() >= 1000]
    tails = sorted(_excess_kurtosis(weight.detach()) for weight in large)
    return bool(tails) and tails[len(tails) // 2] > _HEAVY_TAILS


def _running_statistics(program: Program) -> list[tuple[Tensor, Tensor]]:
    found = []
    for path, module in program.module.named_modules():
        tracked = isinstance(module, _NormBase) and module.running_mean is not None
        if tracked:
            found.append((program.tensors[f"{path}.running_mean"], program.tensors[f"{path}.running_var"]))
    return found


def _excess_kurtosis(weight: Tensor) -> float:
    sample = weight.reshape(-1)[:100_000].double()
    centred = sample - sample.mean()
    variance = centred.square().mean()
    return float(centred.pow(4).mean() / variance.square() - 3) if variance > 0 else -3.0
