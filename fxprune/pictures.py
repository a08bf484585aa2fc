"""Files of pictures that a command is asked for: what can be written, and the same bytes for the same picture."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fxprune.errors import OptionError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STAMPS = {
    ".svg": "Date",
    ".png": "Software",
    ".pdf": "CreationDate",
}  # what differs from one day or version to another


def check_picture(option: str, path: Path) -> None:
    """Raise OptionError for a picture that cannot be written, before there is anything to draw. `option` is what asked
    for it, as --plot.
    """
    if path.suffix.lower() not in _STAMPS:
        raise OptionError(f"{option} {path.name!r} has no known ending: choose from {', '.join(_STAMPS)}")
    if not path.absolute().parent.is_dir():
        raise OptionError(f"{option} cannot be written: there is no folder {path.parent}")
    if path.is_dir():
        raise OptionError(f"{option} cannot be written: {path} is a folder")
    try:
        with quiet_matplotlib():
            import matplotlib  # noqa: F401
    except ImportError as error:
        raise OptionError(f"{option} needs matplotlib: pip install 'fxprune[report]'") from error


def save_picture(figure: Figure, path: Path) -> None:
    """Write it in the format of the path's ending: one that fails while it is drawn leaves no file. Raises OSError."""
    ending = path.suffix.lower()
    stream = io.BytesIO()
    figure.savefig(stream, format=ending[1:], dpi=110, metadata={_STAMPS[ending]: None})
    path.write_bytes(stream.getvalue())


@contextmanager
def quiet_matplotlib() -> Iterator[None]:
    """matplotlib says nothing on stderr below an error: the first run of a machine builds a cache of fonts, and a home
    that cannot be written to gets a temporary one. Neither changes the picture.
    """
    log = logging.getLogger("matplotlib")
    before = log.level
    log.setLevel(max(before, logging.ERROR))
    try:
        yield
    finally:
        log.setLevel(before)
