"""Code of the user's own that a network needs: training scripts, and modules beside the working directory.

It runs only when the user has named it, with --trust or --arch.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from fxprune.errors import LoadError, described


def run_script(path: str | Path) -> ModuleType:
    """The file as a module, executed as `import` does it and not as a program: `__name__` is not "__main__" in it.

    A file that has been run before in this process is not run again. What it prints goes to stderr, and its arguments
    are empty. Raises LoadError when there is no such file, or it fails.
    """
    file = Path(path)
    check_exists(file)
    known = sys.modules.get(file.stem)
    if known is not None and _is_from(known, file):
        return known
    with _as_its_own_program(file):
        return _execute(_module_name(file), file)


def check_exists(file: Path) -> None:
    """Raise LoadError unless there is such a file."""
    if not file.is_file():
        raise LoadError(f"{file} does not exist: --trust and --arch take the path of the script that defines the class")


def _is_from(module: ModuleType, file: Path) -> bool:
    home = getattr(module, "__file__", None)
    return isinstance(home, str) and Path(home).resolve() == file.resolve()


def _module_name(file: Path) -> str:
    """Its own name, so that classes know where they come from, unless something else is imported by that name."""
    if not file.stem.isidentifier() or file.stem in sys.modules:
        return f"fxprune_script_{file.stem}"
    try:
        found = importlib.util.find_spec(file.stem)
    except (ImportError, ValueError):
        found = None
    taken = found is not None and (found.origin is None or Path(found.origin).resolve() != file.resolve())
    return f"fxprune_script_{file.stem}" if taken else file.stem


def _execute(name: str, file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and others look their module up while it runs
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        raise LoadError(_what_happened(file, error)) from error
    return module


def _what_happened(file: Path, error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"{file} was executed and ended the program: put what it does under if __name__ == '__main__'"
    return f"{file} was executed and failed: {described(error)}"


@contextlib.contextmanager
def _as_its_own_program(file: Path) -> Iterator[None]:
    """Modules beside the file can be imported, its command line is empty, and stdout stays free for the report."""
    arguments = sys.argv
    sys.argv = [str(file)]
    try:
        with searching(file.resolve().parent, first=True), contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.argv = arguments


@contextlib.contextmanager
def searching(folder: Path, *, first: bool = False) -> Iterator[None]:
    """Modules in `folder` can be imported meanwhile; unless `first`, those of installed packages go before them."""
    place = str(folder)
    sys.path.insert(0 if first else len(sys.path), place)
    try:
        yield
    finally:
        ours = [position for position, one in enumerate(sys.path) if one == place]
        if ours:  # whatever ran inside may have put the path in order itself
            del sys.path[ours[0 if first else -1]]
