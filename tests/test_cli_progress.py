"""Progress on stderr, and what happens when a run is asked to end."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import run

from fxprune.cli_progress import shown_phases, time_line
from fxprune.phases import phase


@pytest.mark.parametrize(("wanted", "terminal"), [(True, True), (True, False), (False, True)])
def test_progress_is_for_terminals_only(wanted: bool, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: terminal  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    with shown_phases(wanted) as clock:
        with phase("first phase"):
            pass
        with phase("second phase"):
            pass
    text = stream.getvalue()
    assert list(clock.seconds()) == ["first phase", "second phase"]
    if wanted and terminal:
        assert "first phase" in text and re.search(r"second phase.* \d\.\d s", text)
    else:
        assert text == ""


def test_time_line_names_what_took_time() -> None:
    assert time_line({"start": 1.26, "plan": 0.01, "export": 2.0}) == "3.3 s: start 1.3, export 2.0"
    assert time_line({"plan": 0.01}) == "0.0 s"


@pytest.mark.usefixtures("quick_onnx")
def test_summary_ends_with_the_seconds_of_the_phases(workplace: Path) -> None:
    result = run("compile", "zoo:resnet8", "--sparsity", "0.9", columns=200)
    assert re.match(r"time +\d+\.\d s(: .*\w \d+\.\d)?$", result.stdout.splitlines()[-1])
    assert run("compile", "zoo:resnet8", "--sparsity", "0.9", "--quiet", "--force").output == ""


# --- in a terminal ----------------------------------------------------------------------------------------------------


def terminal_run(line: str, moment: bytes, act: Callable[[int, int], object]) -> tuple[int, str]:
    """(exit status, all that was shown) of a command in a terminal of its own; `act(its process, the terminal)` is
    called once when `moment` is on the screen.
    """
    child, screen = pty.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job ignores it, and so would the command
        os.execv(sys.executable, [sys.executable, "-m", "fxprune", *line.split()])
    shown, acted, end = b"", False, time.monotonic() + 600
    while time.monotonic() < end:
        if not select.select([screen], [], [], 0.1)[0]:
            continue
        try:
            read = os.read(screen, 1 << 16)
        except OSError:  # what Linux says when the other side is gone
            break
        shown += read
        if moment in shown and not acted:
            acted = True
            act(child, screen)
        if not read:
            break
    else:
        os.kill(child, signal.SIGKILL)
    os.close(screen)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown.decode()


def press_control_c(_process: int, screen: int) -> None:
    os.write(screen, b"\x03")


def terminate(process: int, _screen: int) -> None:
    os.kill(process, signal.SIGTERM)


@pytest.mark.parametrize(
    ("act", "moment", "status", "word"),
    [(press_control_c, b"export", 130, "interrupted"), (terminate, b"load", 143, "terminated")],
)
def test_asked_to_end(
    act: Callable[[int, int], object], moment: bytes, status: int, word: str, workplace: Path
) -> None:
    ended, shown = terminal_run("compile zoo:resnet8 --sparsity 0.9", moment, act)
    assert ended == status, shown[-200:]
    end = shown[-200:]  # pytest would print all the screens otherwise
    assert end.rstrip().endswith(word) and end.count(word) == 1
    assert not re.search("Traceback|rror", end)
    assert shown.index("start") < shown.index("load")
    assert list(workplace.iterdir()) == []


def test_terminal_gets_progress_then_the_table(workplace: Path) -> None:
    ended, shown = terminal_run("compile zoo:resnet8 --sparsity 0.9 --dry-run", b"\0", press_control_c)
    assert ended == 0
    places = [shown.index(name) for name in ("start", "load", "capture", "analyse", "mask", "shrink", "parameters")]
    assert places == sorted(places)
    assert "dry run" in shown and list(workplace.iterdir()) == []


def test_an_interrupt_that_a_destructor_swallowed_is_heeded_at_the_next_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    with shown_phases(False), phase("begun before"):
        monkeypatch.setattr("fxprune.cli_signals._received", [signal.SIGINT])
        with pytest.raises(KeyboardInterrupt), phase("next"):
            pytest.fail("the run went on")
        monkeypatch.setattr("fxprune.cli_signals._received", [])
    with pytest.raises(KeyboardInterrupt), shown_phases(False), phase("last"):
        monkeypatch.setattr("fxprune.cli_signals._received", [signal.SIGINT])
