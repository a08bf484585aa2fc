"""The process in which damaged files are read: what it does is watched, and its memory has a limit."""

from __future__ import annotations

import dis
import faulthandler
import os
import resource
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType
from typing import Any

ROOM = 3 * 2**30  # bytes of address space beyond what the process has when it begins
GROWTH = 1 * 2**30  # bytes of memory that reading a file of less than 1 MB may take
_FORBIDDEN = (
    "os.system",
    "os.exec",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.spawn",
    "os.kill",
    "subprocess.Popen",
)
_FORBIDDEN += ("pty.spawn", "socket.connect", "socket.bind", "shutil.rmtree", "ctypes.dlopen", "urllib.Request")
_UNLESS_OURS = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.truncate")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Forbidden(BaseException):
    """A damaged file made the program do this; raised in its place."""


class Watch:
    """An audit hook: notes what no file may cause, and stops it. Only between `on` and `off`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen, self.busy, self.active = str(folder), [], False, False
        self.trusted = tuple({sys.prefix, sys.base_prefix, str(Path(__file__).resolve().parent.parent), "<frozen "})
        self.seen: list[str]
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active or self.busy:
            return
        self.busy = True
        try:
            what = self.objection(event, arguments)
        finally:
            self.busy = False
        if what is not None:
            self.seen.append(what)
            raise Forbidden(what)

    def objection(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event.startswith(_FORBIDDEN):
            return f"{event}{arguments!r}"[:200]
        if event == "pickle.find_class":
            return f"unpickled {'.'.join(map(str, arguments))} with Python's pickle"
        if event in _UNLESS_OURS and not str(arguments[0]).startswith(self.folder):
            return f"{event} {arguments[0]}"
        if event == "open" and self._writes(*arguments):
            return f"opened {arguments[0]} for writing"
        if event == "exec" and not arguments[0].co_filename.startswith(self.trusted) and not harmless(arguments[0]):
            return f"executed {arguments[0].co_filename}: {arguments[0].co_names} {arguments[0].co_consts}"[:300]
        return None

    def _writes(self, path: object, mode: object, flags: object) -> bool:
        writing = bool(set(str(mode or "")) & set("wax+")) or (isinstance(flags, int) and bool(flags & _WRITING))
        return (
            writing and isinstance(path, str | bytes) and not os.fsdecode(path).startswith((self.folder, "/dev/null"))
        )

    @contextmanager
    def on(self) -> Iterator[None]:
        self.seen.clear()
        self.active = True
        try:
            yield
        finally:
            self.active = False


_SUSPECT = {
    "eval",
    "exec",
    "open",
    "compile",
    "__import__",
    "system",
    "Popen",
    "import_module",
    "globals",
    "vars",
    "input",
}


def harmless(code: CodeType) -> bool:
    """Whether code that the program makes as it runs (fx graphs, dataclasses) imports nothing and calls nothing known
    to do harm.
    """
    if any(one.opname.startswith("IMPORT_") for one in dis.get_instructions(code)) or _SUSPECT & set(code.co_names):
        return False
    return all(harmless(inner) for inner in code.co_consts if isinstance(inner, CodeType))


def serve(connection: Connection, folder: Path, warm: list[Path]) -> None:
    """Read the files that come through the connection, each with a fault to plant or None and the seconds that the
    other side will wait; answer (outcome, message, megabytes).

    Where a file takes nearly as long as that, `<process id>.txt` says what goes on.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(folder)
    sys.dont_write_bytecode = True
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process lives)
    from fuzz_targets import planted, read_file

    for path in warm:  # whatever is imported late is imported now
        outcome = read_quietly(path, read_file)
        if outcome[0] != "accepted":
            connection.send(outcome)
            return
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + ROOM, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch = Watch(folder)
    connection.send(("ready", "", 0))
    with (folder / f"{os.getpid()}.txt").open("w") as where:
        for path, fault, patience in iter(connection.recv, None):
            faulthandler.dump_traceback_later(0.8 * patience, file=where)
            with planted(fault):
                answer = read_watched(path, read_file, watch)
            faulthandler.cancel_dump_traceback_later()
            connection.send(answer)


def read_watched(path: Path, read_file: Callable[[Path], str], watch: Watch) -> tuple[str, str, int]:
    """(outcome, message, megabytes): "accepted" and "refused" are as they should be, "fault" is not."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _peak()
    with watch.on():
        outcome, message = read_quietly(path, read_file)
    grown = _peak() - before
    if watch.seen:
        outcome, message = "fault", f"not allowed: {watch.seen[0]}"
    elif grown > GROWTH:
        outcome, message = "fault", f"took {grown / 2**20:.0f} MiB"
    return outcome, message, grown // 2**20


def read_quietly(path: Path, read_file: Callable[[Path], str]) -> tuple[str, str]:
    """(outcome, message) whatever happens."""
    from fxprune.errors import FxpruneError

    try:
        return "accepted", read_file(path)
    except FxpruneError as error:
        message = str(error)
        if "\n" in message or not message or _out_of_memory(error):
            return "fault", f"{type(error).__name__}: {message[:300]!r} (because of {error.__cause__!r})"[:800]
        return "refused", message
    except BaseException as error:
        return "fault", "".join(traceback.format_exception(error))[-1500:]


def _out_of_memory(error: BaseException) -> bool:
    """Whether this or what led to it is a refused allocation. What led to it may lead back."""
    found: list[BaseException] = [error]
    for one in found:
        found += [other for other in (one.__cause__, one.__context__) if other is not None and other not in found]
    return any(isinstance(one, MemoryError) or "allocate memory" in str(one) for one in found)


def _peak() -> int:
    """Largest resident memory so far, in bytes."""
    status = Path("/proc/self/status").read_text().split()
    return int(status[status.index("VmHWM:") + 1]) * 1024


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
