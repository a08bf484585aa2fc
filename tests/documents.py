"""Runs what README.md and docs/*.md show, as a reader would who follows a page from top to bottom.

The convention, page by page, in an empty directory:

```python   runs, all blocks of a page in order in one namespace, which is `__main__`
```bash     runs line by line: `fxprune ...`, `python ...`, `cat ...` and `ls ...`; `tools/...` lines are exempt by name
            (TOOLS below), because CI runs them
```text     a sketch or an output, see below
```yaml, ```json   must parse

A comment on the line above a block changes what happens to it:

<!-- file: NAME -->        the block is written to NAME in the directory instead
<!-- output -->            a text block that must equal what the block before it printed; `...` stands for anything
<!-- fails -->             every line of a bash block must end with a status other than 0, and without a traceback
<!-- not run: REASON -->   the block is left out; no more than NOT_RUN of them are allowed over all pages
"""

from __future__ import annotations

import contextlib
import doctest
import io
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import yaml

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TOOLS = ("tools/demo", "tools/test", "tools/check")
COMMANDS = ("fxprune", "python", "cat", "ls")
NOT_RUN = 4
_FENCE = re.compile(r"^ {0,3}```(?P<language>\S*)\s*$")
_MARK = re.compile(r"^<!-- (?P<word>file|output|fails|not run)(: (?P<value>.+?))? -->$")
_FITS = {"file": ("python", "text", "yaml", "json"), "output": ("text",), "fails": ("bash",)}


class DocumentError(AssertionError):
    """A block does not do what its page says; names page and line."""


@dataclass(frozen=True)
class Block:
    """One fenced block. `line` is that of its first line in the page, counted from 1."""

    page: str
    line: int
    language: str
    text: str
    mark: str = ""
    value: str = ""

    def refuse(self, reason: str) -> DocumentError:
        return DocumentError(f"{self.page}:{self.line}: {reason}")


def blocks(page: str, text: str) -> list[Block]:
    """All fenced blocks of a page in order. Raises DocumentError for a language or a comment that means nothing."""
    return [_checked(block) for block in _blocks(page, text.splitlines())]


def _blocks(page: str, lines: list[str]) -> Iterator[Block]:
    position = 0
    while position < len(lines):
        fence = _FENCE.match(lines[position])
        if fence is None:
            position += 1
            continue
        end = next((n for n in range(position + 1, len(lines)) if lines[n].strip() == "```"), len(lines))
        mark = _MARK.match(lines[position - 1]) if position else None
        word, value = (mark["word"], mark["value"] or "") if mark else ("", "")
        inside = "".join(line + "\n" for line in lines[position + 1 : end])
        yield Block(page, position + 2, fence["language"], inside, word, value)
        position = end + 1


def _checked(block: Block) -> Block:
    if block.language not in ("python", "bash", "text", "yaml", "json"):
        raise block.refuse(f"a block in {block.language or 'no language'!r}: write python, bash, text, yaml or json")
    if block.language not in _FITS.get(block.mark, (block.language,)):
        raise block.refuse(f"the comment {block.mark!r} means nothing above a {block.language} block")
    if block.mark in ("file", "not run") and not block.value:
        raise block.refuse(f"the comment {block.mark!r} needs a value")
    return block


def run_page(page: str, text: str, folder: Path) -> None:
    """Run all blocks of a page in `folder`, which must be empty and the working directory. Raises DocumentError."""
    names = ModuleType("__main__")
    sys.modules["__main__"] = names  # so that classes of the page can be pickled, as in a script
    printed: str | None = None
    for block in blocks(page, text):
        if block.mark == "not run":
            printed = None
        elif block.mark == "file":
            (folder / block.value).write_text(block.text, "utf-8")
        elif block.mark == "output":
            _compare(block, printed)
        elif block.language == "python":
            printed = _run_python(block, names)
        elif block.language == "bash":
            printed = _run_bash(block, folder)
        else:
            _parse(block)


def _run_python(block: Block, names: ModuleType) -> str:
    """What the block prints. Line numbers in tracebacks are those of the page."""
    printed = io.StringIO()
    place = ROOT / block.page
    try:
        code = compile("\n" * (block.line - 1) + block.text, str(place), "exec")
        with contextlib.redirect_stdout(printed):
            exec(code, vars(names))
    except Exception as error:
        raise block.refuse(f"does not run\n{''.join(traceback.format_exception(error))}") from None
    return printed.getvalue()


def _run_bash(block: Block, folder: Path) -> str:
    lines = block.text.replace("\\\n", " ").splitlines()
    return "".join(_run_line(block, line, folder) for line in lines if line.split("#")[0].strip())


def _run_line(block: Block, line: str, folder: Path) -> str:
    """What the line prints, stdout first. Commands are those of the Python that runs the tests."""
    command = line.split()[0]
    if command in TOOLS:
        if not os.access(ROOT / command, os.X_OK):
            raise block.refuse(f"{command} cannot be run")
        return ""
    if command not in COMMANDS:
        raise block.refuse(f"{command!r} is none of {', '.join((*COMMANDS, *TOOLS))}")
    functions = f'fxprune() {{ "{sys.executable}" -m fxprune "$@"; }}; python() {{ "{sys.executable}" "$@"; }}; '
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", functions + line],
        cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    if (done.returncode == 0) == (block.mark == "fails") or "Traceback (most recent" in done.stderr:
        raise block.refuse(f"status {done.returncode} of: {line}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def _compare(block: Block, printed: str | None) -> None:
    if printed is None:
        raise block.refuse("shows the output of a block that was not run")
    checker = doctest.OutputChecker()
    expected, found = (_without_trailing_blanks(text) for text in (block.text, printed))
    if not checker.check_output(expected, found, doctest.ELLIPSIS):
        difference = checker.output_difference(doctest.Example("", expected), found, doctest.REPORT_UDIFF)
        raise block.refuse(f"is not what was printed\n{difference}")


def _without_trailing_blanks(text: str) -> str:
    return "".join(line.rstrip() + "\n" for line in text.strip("\n").splitlines())


def _parse(block: Block) -> None:
    try:
        if block.language == "json":
            json.loads(block.text)
        elif block.language == "yaml":
            yaml.safe_load(block.text)
    except (ValueError, yaml.YAMLError) as error:
        raise block.refuse(f"is no {block.language}: {error}") from None
