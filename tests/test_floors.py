"""Nobody imports upstairs: the floors of the house, read off the source files."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import crosscode

PACKAGE = Path(crosscode.__file__).parent
FLOORS = [
    (
        *("errors", "checks", "module", "shapes", "batch", "kernels", "latents", "schedulers", "phases"),
        *("command_line", "files", "run_folder", "one_definition", "protocols", "finite", "order", "named"),
    ),
    ("activations",),
    ("models", "data"),
    ("saving",),
    ("losses", "penalties", "initialization", "metrics"),
    ("training", "testing"),
    ("callbacks", "evaluation", "interop"),
    ("report",),
    ("run",),
    ("commands", "notebook"),
    ("__main__",),
    ("__init__",),
]
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}
IN_ONE_PLACE = {
    "wandb": "callbacks/log.py",
    "transformer_lens": "data/bridge.py",
    "datasets": "data/documents.py",
    "plotly": "report/figures.py",
}
LAZY = {*IN_ONE_PLACE, "transformers"}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(file: Path) -> str:
    """The folder, or the file at the root, that a file belongs to."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of everything imported anywhere in a file, inside functions as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def our_parts(file: Path) -> set[str]:
    """The other parts of the package that a file imports."""
    names = [name.split(".") for name in imported(ast.parse(file.read_text())) if name.split(".")[0] == "crosscode"]
    parts = {path[1] if len(path) > 1 and path[1] in FLOOR else "__init__" for path in names}
    return parts - {part_of(file)}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_file_imports_from_its_own_floor_or_above(file: Path) -> None:
    """Within a folder anything goes; the files of the ground floor may use each other."""
    part = part_of(file)
    assert part in FLOOR, f"{part} has no floor yet: give it one in FLOORS"
    for other in our_parts(file):
        below = FLOOR[other] < FLOOR[part] or FLOOR[other] == FLOOR[part] == 0
        assert below, f"{part} (floor {FLOOR[part]}) imports {other} (floor {FLOOR[other]})"


def test_the_ground_floor_has_no_circles() -> None:
    """Its files build on one another in one order."""
    ground = [file for file in FILES if FLOOR[part_of(file)] == 0]
    graph: dict[str, set[str]] = {}
    for file in ground:
        graph.setdefault(part_of(file), set()).update(our_parts(file))
    assert set(TopologicalSorter(graph).static_order()) == {part_of(file) for file in ground}


@pytest.mark.parametrize("library", IN_ONE_PLACE)
def test_a_heavy_library_is_imported_in_one_place(library: str) -> None:
    """Where it can be replaced, or be missing, without anyone else noticing."""
    places = {
        str(file.relative_to(PACKAGE))
        for file in FILES
        if any(name.split(".")[0] == library for name in imported(ast.parse(file.read_text())))
    }
    assert places <= {IN_ONE_PLACE[library]}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_inside_functions(file: Path) -> None:
    """Importing a module of ours costs none of them."""
    tree = ast.parse(file.read_text())
    lazily = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in lazily:
            eager = {name.split(".")[0] for name in imported(node)}
            assert not eager & LAZY, f"line {node.lineno} imports {eager & LAZY} when the module is imported"


def test_shape_checks_are_switched_off_nowhere() -> None:
    """`from __future__ import annotations` would turn every annotation into a string that nobody checks."""
    for file in FILES:
        assert not any(name.startswith("__future__") for name in imported(ast.parse(file.read_text()))), file
