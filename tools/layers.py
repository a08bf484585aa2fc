"""Check that imports point one way: errors <- program <- channels and the other core <- passes <- pipeline <- cli.

`python tools/layers.py [checkout]` prints `file:line: what is wrong` for every import that goes against the layers and
exits with 1 when there is one. Imports inside functions and under TYPE_CHECKING count like any other.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

CORE, PASSES = 2, 3
# A module may import what stands lower. "" is the package itself, `__init__.py`; names not listed are CORE.
RANKS = {
    "errors": 0,
    "copying": 0,
    "program": 1,
    "passes": PASSES,
    "options": 4,
    "methods": 4,
    "fitting": 4,
    "pass_lists": 4,
    "pipeline": 4,
    "learner": 5,
    "planning": 5,
    "soft_pruning": 5,
    "huggingface": 6,
    "lightning": 6,
    "training": 6,
    "comparison": 5,
    "comparison_plot": 5,
    "": 6,
    "cli": 8,
    "__main__": 9,
}
CLI_PARTS = 7  # every cli_*
FOLDERS = ("fxprune", "passes", "tests", "tools")


def problems(root: Path) -> Iterator[str]:
    """`file:line: message` for each import under `root`, a checkout, that is not allowed."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            if not path.is_relative_to(root / "fxprune" / "passes"):  # the link; passes/ itself is visited
                yield from problems_in(path, root)


def problems_in(path: Path, root: Path) -> Iterator[str]:
    """The same for one file."""
    where = path.relative_to(root)
    module = ("fxprune", *where.parts) if where.parts[0] == "passes" else where.parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))):
        for target in targets_of(node, module[:-1], root):
            message = complaint([part.removesuffix(".py") for part in module], target.split("."))
            if message:
                yield f"{where}:{getattr(node, 'lineno', 0)}: {message}"


def targets_of(node: ast.AST, package: tuple[str, ...], root: Path) -> Iterator[str]:
    """Dotted names of the modules that an import statement loads; nothing for other nodes."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    if not isinstance(node, ast.ImportFrom):
        return
    base = [*package[: len(package) - node.level + 1]] if node.level else []
    base += node.module.split(".") if node.module else []
    for alias in node.names:
        yield ".".join([*base, alias.name] if is_module([*base, alias.name], root) else base)


def is_module(parts: list[str], root: Path) -> bool:
    """True for a submodule, False for a name defined in a module (`from fxprune import compile`)."""
    path = root.joinpath(*(parts[1:] if parts[:2] == ["fxprune", "passes"] else parts))
    return path.is_dir() or path.with_suffix(".py").is_file()


def complaint(module: list[str], target: list[str]) -> str | None:
    """Why `module` may not import `target`, both split at the dots; None when it may."""
    if target[0] == "passes":
        return "imports the bare name `passes`: write fxprune.passes"
    if target[0] != "fxprune" or module[0] != "fxprune":
        return None
    here, there, name = layer_of(module), layer_of(target), ".".join(target)
    if there == "passes" and here not in ("passes", "options", "pass_lists", "pipeline"):
        return f"imports {name}: only options, pass_lists and pipeline may import passes"
    if here == there == "passes" and module[2] != "__init__":  # that one may list what is in the folder
        return f"imports {name}: passes import core, never each other"
    if rank_of(there) <= rank_of(here):
        return None
    return f"imports {name}: {here} stands below {there or 'the package itself'}"


def rank_of(layer: str) -> int:
    """How high a layer stands."""
    return CLI_PARTS if layer.startswith("cli_") else RANKS.get(layer, CORE)


def layer_of(module: list[str]) -> str:
    """First name below fxprune: `errors`, `channels`, ...; "" for the package itself."""
    return module[1] if len(module) > 1 and module[1] != "__init__" else ""


def main() -> int:
    """Print every problem of the checkout named on the command line, or of this one. Exit status: 1 if there is any."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent
    if not (root / "fxprune").is_dir():
        raise SystemExit(f"{root} is no checkout: it holds no fxprune/")
    found = list(problems(root))
    print("\n".join(found) if found else "layers: every import points the right way")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
