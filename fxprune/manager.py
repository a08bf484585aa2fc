"""PassManager: run each pass, verify what it left, tell the observers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

from torch import fx

from fxprune.drawing import DrawnTensors
from fxprune.errors import FxpruneError, PassError, described, first_line
from fxprune.facts import WeightMasks
from fxprune.phases import measured, phase
from fxprune.program import Program, named_tensors


class Pass(Protocol):
    """One step: a frozen dataclass whose fields are its options. `requires` lists the facts it reads."""

    name: ClassVar[str]
    requires: ClassVar[tuple[type, ...]]

    def run(self, program: Program) -> Program: ...


Observer = Callable[[str, Program, float], None]  # pass name, program after it, seconds it took


class FirstProgram:
    """An observer that keeps the network as it was captured; `program` is None before any pass has run."""

    program: Program | None = None

    def __call__(self, _name: str, program: Program, _seconds: float) -> None:
        self.program = self.program or replace(program, facts={})


@dataclass
class PassManager:
    """Runs passes in order. `seconds` collects how long each took, and each phase inside one apart from it.

    done   names of the passes that have run, over all calls of `run`
    """

    passes: Sequence[Pass]
    observers: Sequence[Observer] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    _sound: dict[str, Wiring] = field(default_factory=dict)

    def run(self, program: Program) -> Program:
        """The program after all passes. Raises PassError naming the pass and the ones before it."""
        for step in self.passes:
            with measured() as clock, phase(step.name):
                program = self._run_one(step, program)
            for name, seconds in clock.seconds().items():
                self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            self.done.append(step.name)
            for observer in self.observers:
                observer(step.name, program, self.seconds[step.name])
        return program

    def _run_one(self, step: Pass, program: Program) -> Program:
        where = f"pass '{step.name}' (after {', '.join(self.done) or 'capture'})"
        missing = [fact.__name__ for fact in step.requires if fact not in program.facts]
        if missing:
            raise PassError(f"{where} needs {', '.join(missing)}, which no earlier pass has stated")
        try:
            result = step.run(program)
        except FxpruneError:
            raise
        except Exception as error:
            raise PassError(f"{where} failed: {described(error)}") from error
        found = {mode: wiring(graph) for mode, graph in result.graphs()}
        fault = inconsistency(result, [mode for mode, one in found.items() if one == self._sound.get(mode)])
        if fault:
            raise PassError(f"{where} left the program inconsistent: {fault}")
        self._sound = found
        return result


Wiring = list[tuple[Any, ...]]


def wiring(graph: fx.Graph) -> Wiring:
    """Every node of a graph, in order, with what it does. Equal as long as nobody has changed the graph."""
    return [(node, node.op, node.target, node.args, node.kwargs) for node in graph.nodes]


def inconsistency(program: Program, sound: Sequence[str] = ()) -> str:
    """What does not fit together in a program; empty when all does. Costs no run of the network.

    sound   modes whose graph has been looked at already: most passes hand on the one they were given
    """
    skeleton = named_tensors(program.module)
    held = program.tensors.base if isinstance(program.tensors, DrawnTensors) else program.tensors  # nothing is drawn
    for name, empty in skeleton.items():
        if name not in held:
            return f"{name} has no numbers"
        if held[name].shape != empty.shape:
            return f"{name} has shape {tuple(held[name].shape)}, its module says {tuple(empty.shape)}"
        if not empty.is_meta:
            return f"{name} holds numbers inside the graph module"
    known = program.facts.get(WeightMasks)
    for name, mask in known.masks.items() if known else ():
        if name not in skeleton or mask.shape != skeleton[name].shape:
            return f"the mask of {name} does not fit its weight"
    for mode, graph in program.graphs():
        if mode in sound:
            continue
        try:
            graph.lint()
        except RuntimeError as error:
            return f"the {mode} graph: {first_line(error)}"
    return ""
