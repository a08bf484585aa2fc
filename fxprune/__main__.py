"""Entry point of the `fxprune` command and of `python -m fxprune`."""

from __future__ import annotations

import os
import sys

from fxprune.cli_signals import asked_to_end, watch_signals


def main() -> None:
    """Run the command line. Being asked to end is one line and a status wherever it strikes, imports included."""
    watch_signals()
    try:
        from fxprune.cli import main as run

        run()
    except BaseException as end:
        asked = asked_to_end()
        if asked is None or (isinstance(end, SystemExit) and not end.code):
            raise
        word, status = asked
        print(word, file=sys.stderr, flush=True)
        os._exit(status)  # a library that was stopped in the middle of its import may not end well


if __name__ == "__main__":
    main()
