"""Errors on the command line: one line each, and an exit status that says whose turn it is."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec

import typer

from fxprune.errors import FxpruneError

P = ParamSpec("P")
ASKED_WRONGLY, UNEXPECTED, INTERRUPTED = 2, 1, 130


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
            print(line, file=sys.stderr)
            raise typer.Exit(status) from None

    return run


def describe(error: BaseException) -> tuple[str, int]:
    """(line for the user, exit status)."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, FxpruneError):
        return f"error: {printable(str(error))}", ASKED_WRONGLY
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"error: {printable(f'{where}{error.strerror or error}')}", ASKED_WRONGLY
    what = printable(f"{type(error).__name__}: {error}")
    return f"error: not foreseen: {what}. Run again with --traceback to see where it comes from", UNEXPECTED


def printable(text: str) -> str:
    """One line without control characters: file names and messages may hold any."""
    line = " ".join(text.split())
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in line)
