"""A folder that appears whole or not at all, whatever ends the process that writes it.

Everything goes into a box beside the target, `.NAME.XXXX.part`, and one rename moves it to its place. Where a folder
stands there already, Linux exchanges the two in one step, so that a reader sees the old one or the new one; elsewhere
two renames leave a moment without either. A box whose writer was killed is removed by the next writer: each one holds a
lock on its box, and the kernel takes the lock away with the process.
"""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: boxes of killed runs stay until somebody removes them
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".part"
_HERE = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE


@contextmanager
def new_folder(folder: Path, check: Callable[[], None]) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when all went well, and vanishes otherwise.

    folder  absolute; what stands there is replaced whole
    check   called again before that, since writing takes a while; raises whatever speaks against it

    Raises OSError.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    with ExitStack() as locks:
        box = _own_box(folder, locks)
        try:
            draft = box / "new"
            draft.mkdir()
            yield draft
            _flush(draft)
            check()
            _swap(draft, folder, box / "old")
            flush_entry(folder.parent)
        finally:
            shutil.rmtree(box, ignore_errors=True)


def _own_box(folder: Path, locks: ExitStack) -> Path:
    """A new box with our lock on it. One that a sweep took for abandoned before it had its lock is given up."""
    while True:
        box = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=_SUFFIX, dir=folder.parent))
        with suppress(FileNotFoundError):
            if locks.enter_context(locked(box)) is not False and box.exists():
                return box


@contextmanager
def locked(folder: Path) -> Iterator[bool | None]:
    """Whether the folder's lock is ours meanwhile; None where there are no locks."""
    if fcntl is None:
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        yield _taken(descriptor)
    finally:
        os.close(descriptor)


def _taken(descriptor: int) -> bool | None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # some file systems have none
        return None
    return True


def _sweep(folder: Path) -> None:
    """Remove boxes whose writers are gone."""
    for name in glob.glob(f".{glob.escape(folder.name)}.*{_SUFFIX}", root_dir=folder.parent):
        box = folder.parent / name
        with suppress(OSError), locked(box) as abandoned:
            if abandoned:
                _bring_back(box / "old", folder)
                shutil.rmtree(box, ignore_errors=True)


def _swap(draft: Path, folder: Path, old: Path) -> None:
    """`draft` moves to `folder`; what was there comes back when that is interrupted."""
    if not os.path.lexists(folder):
        os.rename(draft, folder)
    elif not _exchanged(draft, folder):
        try:
            os.rename(folder, old)
            os.rename(draft, folder)
        except BaseException:
            _bring_back(old, folder)
            raise


def _bring_back(old: Path, folder: Path) -> None:
    if old.exists() and not folder.exists():
        os.rename(old, folder)


def _exchanged(one: Path, other: Path) -> bool:
    """Whether both have changed places, in one step. Not everywhere can that be done."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0)


def _flush(folder: Path) -> None:
    """Have the files on the disk before they get their names: a crash of the machine is no excuse either."""
    for entry in (*folder.iterdir(), folder):
        flush_entry(entry)


def flush_entry(path: Path) -> None:
    """Have one file or folder on the disk. Raises OSError."""
    with suppress(PermissionError):  # Windows opens no folders
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
