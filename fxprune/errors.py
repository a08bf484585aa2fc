"""Every error a user can meet, in one hierarchy. Imports nothing, so that any layer may raise them.

A message names what was wrong, where it was, and what to do about it. The command line prints it as one line
and leaves with status 2; the library raises it.
"""


class FxpruneError(Exception):
    """Base of all errors that fxprune raises on purpose."""


class OptionError(FxpruneError):
    """An argument has a value that makes no sense (a sparsity of 1.5, both sparsity and keep_rate, ...)."""


class LoadError(FxpruneError):
    """A model file or a model spec cannot be turned into an nn.Module."""


class UntrustedError(LoadError):
    """A model file asks for code that has not been allowed to run."""


class CaptureError(FxpruneError):
    """An nn.Module cannot be turned into a graph, or its inputs do not fit."""


class NothingPrunableError(FxpruneError):
    """No channel of the network can be removed; the message lists what blocks it."""


class PassError(FxpruneError):
    """A pass was asked to run without what it requires, or left the program in a state that is not allowed."""


class RewriteError(FxpruneError):
    """Channels were planned away but the graph could not be rewritten to match. `place` is (mode, node) where known."""

    def __init__(self, message: str, place: tuple[str, str] | None = None) -> None:
        super().__init__(message)
        self.place = place


class ProofError(FxpruneError):
    """The rewritten network does not compute what the dense one computes with the removed channels zeroed."""


class ExportError(FxpruneError):
    """The pruned network cannot be written in the requested format, or the written file disagrees with torch."""


class MeasureError(FxpruneError):
    """A network cannot be measured: its file, its inputs, or its run in a process of its own."""


class TrainingError(FxpruneError):
    """A network cannot be trained: what it returns is no row of scores, or the loss is not finite any more."""


def first_line(error: BaseException, longest: int = 300) -> str:
    """The first line of an exception's message, cut to so many characters; what follows is rarely for users."""
    line = (str(error).strip().splitlines() or [""])[0]
    return line if len(line) <= longest else f"{line[: longest - 4]} ..."


def described(error: BaseException) -> str:
    """The kind of an exception and what it says, in one line: some are called no more than `error` in their module."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"{name}: {line}" if (line := first_line(error)) else name
