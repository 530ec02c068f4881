"""The recipes' defaults are what their sweeps chose, or the table says why not."""

import re
from pathlib import Path

import pytest

SWEEPS = Path(__file__).parents[2] / "benchmarks" / "sweeps"


@pytest.mark.parametrize("name", sorted(file.stem for file in SWEEPS.glob("*.md")))
def test_defaults_are_those_of_the_table(name: str) -> None:
    """The cell marked as the default is the recipe's, and it is the chosen one where no reason is given."""
    import sweep

    text = (SWEEPS / f"{name}.md").read_text()
    head, _, *lines = [
        [cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    ]
    grid = sweep.GRIDS[name]
    assert {axis: head[i] for i, axis in enumerate(grid)} == {axis: axis for axis in grid}
    (default,) = [dict(zip(head, line)) for line in lines if line[-1] == "*"]
    (chosen,) = [dict(zip(head, line)) for line in lines if line[-2] == "*"]
    for axis in grid:
        if axis != "activation":
            assert float(default[axis]) == sweep.default_of(sweep.RECIPES.get(name, name), axis), axis
    reason = re.search("^Why the default is not the chosen cell: (.+)$", text, re.MULTILINE)
    assert (default == chosen) == (reason is None)
    assert reason is None or reason[1] == sweep.KEPT[name]


def test_every_recipe_has_a_table() -> None:
    """No default comes from nowhere, but for those that are named as not yet swept; they have a grid."""
    import sweep

    recipes = {file.stem for file in (SWEEPS.parents[1] / "recipes").glob("*.py")}
    swept = {file.stem for file in SWEEPS.glob("*.md")}
    assert recipes - swept == set(sweep.NOT_SWEPT) <= sweep.GRIDS.keys()
