"""Errors on the command line: one line each, and an exit status that says whose turn it is."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, ParamSpec

import typer
from typer.core import TyperGroup

from fxprune.cli_signals import asked_to_end
from fxprune.cli_values import whole_words
from fxprune.errors import FxpruneError, described

P = ParamSpec("P")
ASKED_WRONGLY, UNEXPECTED, INTERRUPTED = 2, 1, 130
_UsageError: Any = typer.BadParameter.__mro__[1]  # click's, or that of typer's own copy of click


class Commands(TyperGroup):
    """All commands. What typer tells about a line that it cannot read in a box of several lines is one line here."""

    def main(self, *args: Any, **settings: Any) -> Any:
        settings["standalone_mode"] = False
        bash_asks = os.environ.get("_FXPRUNE_COMPLETE") == "complete_bash"
        try:
            with whole_words(os.environ) if bash_asks else contextlib.nullcontext():
                status = super().main(*args, **settings)
        except typer.Abort:
            status = INTERRUPTED
        except Exception as error:
            line, status = describe(error)
            if line:
                print(line, file=sys.stderr)
        sys.exit(status or 0)


def one_line_errors(command: Callable[P, None]) -> Callable[P, None]:
    """Turn whatever a command raises into one line on stderr and an exit status.

    The command's keyword argument `traceback` says whether the traceback comes before that line.
    """

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort, BrokenPipeError):  # typer's own; a reader that has seen enough is no error
            raise
        except (Exception, KeyboardInterrupt) as error:
            if kwargs.get("traceback"):
                traceback.print_exc()
            line, status = describe(error)
            if line:
                print(line, file=sys.stderr)
            raise typer.Exit(status) from None

    return run


def describe(error: BaseException) -> tuple[str, int]:
    """(line for the user, exit status). The line is empty where there is nothing to add."""
    if asked_to_end():
        return "", INTERRUPTED  # the entry point has the last word
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, _UsageError):
        return _misread(error), ASKED_WRONGLY
    if isinstance(error, FxpruneError):
        return f"error: {printable(str(error))}", ASKED_WRONGLY
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"error: {printable(f'{where}{error.strerror or error}')}", ASKED_WRONGLY
    what = printable(described(error))
    return f"error: not foreseen: {what}. Run again with --traceback to see where it comes from", UNEXPECTED


def _misread(error: Any) -> str:
    """What the parser says, and where it is written how the command is used."""
    told = printable(error.format_message()).rstrip(".").replace("Value error, ", "")
    if not told:  # no command at all: typer has printed the help
        return ""
    where = error.ctx.command_path if error.ctx else "fxprune"
    return f"error: {told[0].lower()}{told[1:]}{' See' if told.endswith('?') else '; see'} {where} --help"


def printable(text: str) -> str:
    """One line without control characters: file names and messages may hold any."""
    line = " ".join(text.split())
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in line)
