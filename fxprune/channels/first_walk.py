"""The first walk over a captured network shows that it runs, and is the analysis at the same time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from fxprune.channels.engine import Analysis, analyse
from fxprune.phases import phase
from fxprune.program import Program


def first_walk(approximate: str) -> Callable[[Program], Program]:
    """A trial for `capture`: the same program with its Analysis. Raises WalkError."""

    def walk(program: Program) -> Program:
        with phase("analyse"):
            return program.with_facts(analyse(program, approximate=approximate))

    return walk


def take_analysis(program: Program, approximate: str) -> tuple[Program, Analysis]:
    """The program without the Analysis that its first walk left, and that one; a new one where there is none."""
    known = program.facts.get(Analysis)
    rest = replace(program, facts={kind: fact for kind, fact in program.facts.items() if kind is not Analysis})
    if isinstance(known, Analysis) and known.approximate == approximate:
        return rest, known
    return rest, analyse(program, approximate=approximate)
