"""Everything that README.md and docs/*.md show works; the convention is at the top of documents.py."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from documents import NOT_RUN, PAGES, ROOT, TOOLS, DocumentError, blocks, run_page
from typer.main import get_command

from fxprune.channels.rules import table
from fxprune.cli import app

_LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)[^)]*\)")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory; what a page puts into the interpreter is taken out again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.setattr(table, "RULES", dict(table.RULES))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_page_runs(page: Path, folder: Path) -> None:
    run_page(str(page.relative_to(ROOT)), page.read_text("utf-8"), folder)


def test_few_blocks_are_left_out() -> None:
    found = [block for page in PAGES for block in blocks(page.name, page.read_text("utf-8"))]
    assert len([block for block in found if block.mark == "not run"]) <= NOT_RUN
    assert len([block for block in found if block.language == "python"]) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = _LINK.findall(page.read_text("utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


COUNTER = "<!-- file: count.py -->"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_within_sentences_exist(page: Path) -> None:
    """`fxprune COMMAND --option` and `--option` in running text and tables."""
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    commands = vars(get_command(app))["commands"]
    known = {
        name: {"--help", *(flag for one in command.params for flag in one.opts)} for name, command in commands.items()
    }
    known |= {flag: {flag} for flag in ("--help", "--version", "--install-completion")}
    anywhere = set.union(*known.values(), {"--update-golden"})
    spans = [span.split() for span in re.findall(r"`((?:fxprune |--)[^`]+)`", text)]
    wrong = [" ".join(words) for words in spans if words[0] == "fxprune" and words[1] not in known]
    for words in spans:
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        wrong += sorted(flags - known.get(words[1], set()) if words[0] == "fxprune" else flags - anywhere)
    assert wrong == []


def test_reasons_for_freezing_are_real() -> None:
    page = (ROOT / "docs" / "label-engine.md").read_text("utf-8")
    rows = re.findall(r"^\| .+? \| (`.*`) \|$", page.split("reason as it is printed")[1].split("\n\n")[0], re.MULTILINE)
    quoted = [reason for row in rows for reason in re.findall(r"`(.+?)`", row)]
    sources = "".join(path.read_text("utf-8") for path in (ROOT / "fxprune" / "channels").rglob("*.py"))
    parts = [part for reason in quoted for part in re.split(r" ?\.\.\.|LSTM|meets ", reason) if part]
    assert len(parts) >= 10
    assert [part for part in parts if part not in sources] == []


@pytest.mark.parametrize("tool", [*TOOLS, ".ci/run"])
def test_tools_can_be_run(tool: str) -> None:
    assert os.access(ROOT / tool, os.X_OK)


def test_readme_leads_to_every_page() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [page.name for page in PAGES[1:] if f"(docs/{page.name})" not in readme] == []


def page_of(*parts: str) -> str:
    return "# A page\n\n" + "\n\n".join(parts) + "\n"


def fenced(language: str, text: str, mark: str = "") -> str:
    return f"{mark}\n```{language}\n{text}\n```" if mark else f"```{language}\n{text}\n```"


def test_a_good_page(folder: Path) -> None:
    run_page(
        "page.md",
        page_of(
            fenced("python", "width = 3"),
            fenced("python", "import torch\nprint(torch.zeros(width).shape, 0.123)"),
            fenced("text", "torch.Size([3]) 0.1...", "<!-- output -->"),
            fenced(
                "python", "import sys\nprint(len(sys.argv))\nsys.exit(len(sys.argv) - 1)", "<!-- file: count.py -->"
            ),
            fenced("bash", "python count.py  # counts\nls | cat\ntools/demo"),
            fenced("text", "1\ncount.py", "<!-- output -->"),
            fenced("bash", "python count.py one", "<!-- fails -->"),
            fenced("bash", "rm -rf .", "<!-- not run: it would remove the page's directory -->"),
            fenced("yaml", "sparsity: 0.9"),
            fenced("json", '{"sparsity": 0.9}'),
            fenced("text", "a sketch"),
        ),
        folder,
    )


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (fenced("python", "x = 1\nassert x == 2"), r'(?s)page.md:4: does not run.*page.md", line 5'),
        (fenced("python", "fxprune.compile("), "was never closed"),
        (fenced("bash", "fxprune compile"), r"(?s)page.md:4: status 2 of.*missing argument"),
        (fenced("bash", "ls", "<!-- fails -->"), "page.md:5: status 0 of: ls"),
        (fenced("bash", "python -c 'raise ValueError'", "<!-- fails -->"), "status 1"),
        (fenced("bash", "fxprune zoo --no-such-option | cat"), "status 2"),
        (fenced("bash", "curl -O https://example.org"), "'curl' is none of fxprune, python"),
        (fenced("text", "4", "<!-- output -->"), "a block that was not run"),
        (fenced("python", "print(5)") + "\n\n" + fenced("text", "4", "<!-- output -->"), "(?s)is not what was.*4.*5"),
        (fenced("sh", "ls"), "a block in 'sh'"),
        (fenced("", "x = 1"), "a block in 'no language'"),
        (fenced("python", "1", "<!-- fails -->"), "'fails' means nothing above a python block"),
        (fenced("python", "1", "<!-- not run -->"), "'not run' needs a value"),
        (fenced("json", "{"), "is no json"),
        (fenced("yaml", "a: [1"), "is no yaml"),
    ],
)
def test_planted_faults_are_rejected(part: str, message: str, folder: Path) -> None:
    with pytest.raises(DocumentError, match=message):
        run_page("page.md", page_of(part), folder)
