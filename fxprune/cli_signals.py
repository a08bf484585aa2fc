"""Ctrl-C and kill: a run that is asked to end tidies up and leaves with the status shells expect. Imports little."""

from __future__ import annotations

import signal
from types import FrameType

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "terminated"}
_received: list[signal.Signals] = []


def watch_signals() -> None:
    """From now on these signals raise KeyboardInterrupt, unless the process was started to ignore them."""
    for number in _WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)


def asked_to_end() -> tuple[str, int] | None:
    """(word for the user, exit status) once a signal has come. Imports may have turned the KeyboardInterrupt that it
    raised into any other error.
    """
    return (_WORDS[_received[0]], 128 + _received[0]) if _received else None


def heed() -> None:
    """Raise KeyboardInterrupt, again if need be, once a signal has come."""
    if _received:
        raise KeyboardInterrupt


def _raise(number: int, _frame: FrameType | None) -> None:
    _received.append(signal.Signals(number))
    raise KeyboardInterrupt
