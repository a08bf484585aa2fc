"""report.html says what report.json says, loads nothing, and takes no name for markup."""

from __future__ import annotations

import copy
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from command_line import run

from fxprune.emit.page import report_page


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("page") / "out"
    result = run(
        "compile", "zoo:resnet20", "--sparsity", "0.95", "-o", str(folder), "--emit", "weights", "--no-measure"
    )
    assert result.exit_code == 0
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    assert (folder / "report.html").read_text("utf-8") == report_page(found)
    return found


class Read(HTMLParser):
    """Rows of all tables as tuples of texts, and every tag and attribute that was met."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[tuple[str, ...]] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self._cells: list[str] = []
        self._inside = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag == "tr":
            self._cells = []
            self.rows.append(())
        if tag in ("td", "th"):
            self._cells.append("")
            self._inside = True
            self.rows[-1] = (*self.rows[-1], "")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self._cells[-1] += data
            self.rows[-1] = tuple(cell.strip() for cell in self._cells)


def test_page_has_the_numbers_of_the_report(document: dict[str, Any]) -> None:
    rows = Read(report_page(document)).rows
    before, after = document["before"]["parameters"], document["after"]["parameters"]
    assert ("parameters", f"{before:,}", f"{after:,}", f"{before / after:.2f}x") in rows
    shown = [row for row in rows if row[-1] in ("shrunk", "masked", "dense")]
    wanted = [(one["weight"].removesuffix(".weight"), one["before"], one["after"]) for one in document["layers"]]
    assert [(name, int(was), int(now)) for name, was, now, *_ in shown] == wanted
    assert any(row[0] == "frozen" and row[1].startswith(document["groups"][0]["frozen"] or "") for row in rows)
    assert ("seed", "0") in rows and any(row[0] == "proof" and "float64" in row[1] for row in rows)


def test_page_shows_what_was_measured(document: dict[str, Any]) -> None:
    measured = {
        "sides": ["dense", "pruned"],
        "machine": {"processor": "a processor", "versions": {"torch": "2"}},
        "threads": 1,
        "files": {"model.onnx": {"dense": 4000, "pruned": 1000}},
        "latency": {"torch": {"dense": {"median": 0.02}, "pruned": {"median": 0.01}, "ratio": {"median": 1.9}}},
        "peak_memory": {"torch": {"dense": 3 << 20, "pruned": 1 << 20, "method": "rss"}},
        "notes": ["a note of the measuring"],
    }
    rows = Read(report_page({**document, "measured": measured})).rows
    assert ("bytes of model.onnx", "4,000", "1,000", "4.00x") in rows
    assert ("median latency, torch", "20.00 ms", "10.00 ms", "1.90x") in rows
    assert ("peak memory, torch", "3.0 MiB", "1.0 MiB", "3.00x") in rows
    assert ("note", "a note of the measuring") in rows


def test_page_takes_no_name_for_markup(document: dict[str, Any]) -> None:
    plain = Read(report_page(document))
    hostile = copy.deepcopy(document)
    evil = "<script src=//x.example>alert(1)</script><img onerror=alert(1)>"
    hostile["model"] = hostile["layers"][0]["weight"] = evil
    hostile["groups"][0]["members"], hostile["groups"][0]["frozen"] = [evil], evil
    hostile["notes"] = [evil]
    found = Read(report_page(hostile))
    assert (found.tags, found.attributes) == (plain.tags, plain.attributes)
    assert not {"script", "img", "link", "iframe"} & found.tags and not {"src", "href"} & found.attributes


def test_folder_of_a_network_without_layers_to_show() -> None:
    """A report with nothing in its lists makes a page too."""
    cost = {"parameters": 0, "nonzeros": 0, "macs": 0, "bytes": 0}
    empty: dict[str, Any] = {"before": cost, "after": cost, "asked": {}, "seconds": {}, "files": {}, "refused": {}}
    empty |= {name: [] for name in ("layers", "groups", "notes", "densified", "lifted")} | {"repaired_rows": {}}
    empty |= dict.fromkeys(("average_sparsity", "achieved_sparsity", "proof_error"))
    assert ("parameters", "0", "0", "") in Read(report_page(empty)).rows


def test_template_is_installed_with_the_package() -> None:
    listed = Path(__file__).parents[1].joinpath("pyproject.toml").read_text()
    assert '"emit/report.html.j2"' in listed
