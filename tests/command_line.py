"""What tests of the command line share: running a command, and one line on stderr where it is refused."""

from __future__ import annotations

from typer.testing import CliRunner, Result

from fxprune.cli import app


def run(*args: str, columns: int = 80) -> Result:
    """Measuring takes seconds and has tests of its own."""
    quick = ("--no-measure",) if args[:1] == ("compile",) else ()
    return CliRunner(env={"COLUMNS": str(columns)}).invoke(app, [*args[:1], *quick, *args[1:]], prog_name="fxprune")


def refused(result: Result, *words: str, status: int = 2) -> None:
    """One line on stderr with these words in it, nothing on stdout."""
    assert result.exit_code == status, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1 and result.stderr.endswith("\n"), result.stderr
    assert result.stderr.startswith("error: ")
    for word in words:
        assert word in result.stderr, result.stderr
