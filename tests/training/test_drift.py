"""Long runs stay sound, in every scheme: `benchmarks/drift.py` says what that means and finds nothing amiss."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SHORT = (
    "l1 batch_topk jan_jumprelu feb_l1 feb_jumprelu feb_batch_topk clt_l1 clt_topk compound_jumprelu "
    "compound_batch_topk sae_topk skip_transcoder causal_weak dedicated matryoshka gated jumprelu_l0"
)
DRIFT = Path(__file__).parents[2] / "benchmarks" / "drift.py"


def rows_of(tmp_path: Path, *options: str) -> list[dict[str, Any]]:
    """The command's rows; in a process of its own, whose steps are not slowed by shape checks."""
    file = tmp_path / "rows.json"
    ran = subprocess.run([sys.executable, DRIFT, "--json", file, *options], capture_output=True, text=True, check=False)
    rows = json.loads(file.read_text()) if file.exists() else []
    assert ran.returncode == 0, f"{ran.stdout}{ran.stderr}"
    return rows


def check(rows: list[dict[str, Any]], n_steps: int) -> None:
    """Every recipe is there, ran to its end, learnt, and shows no fault."""
    assert {row["steps"] for row in rows} == {n_steps}
    assert {row["scheme"]: row["faults"] for row in rows if row["faults"]} == {}
    assert all(row["fvu"] < 0.6 for row in rows)
    recipes = {file.stem for file in (DRIFT.parents[1] / "recipes").glob("*.py")}
    source = DRIFT.read_text()
    assert all(f'"{recipe}"' in source for recipe in recipes), "a recipe is not among the schemes"


def test_250_steps_of_every_recipe_are_sound(tmp_path: Path) -> None:
    """The short version: what would go wrong early, once for each recipe."""
    check(rows_of(tmp_path, "--steps", "250", "--schemes", *SHORT.split()), 250)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_20000_steps_of_every_scheme_are_sound(tmp_path: Path) -> None:
    """The long version, a quarter of an hour."""
    check(rows_of(tmp_path), 20_000)
