"""The faults suite in short: about ten kills, and one of each other fault, in real recipes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faults.suite import FAULTS


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each fault; a process of its own, so that children are forked from one without test machinery."""
    written = tmp_path_factory.mktemp("faults") / "rows.json"
    script = Path(__file__).with_name("suite.py")
    done = subprocess.run(
        [sys.executable, str(script), "--seed", "1", "--short", "--json", str(written)], capture_output=True, text=True
    )
    assert written.exists(), done.stderr
    return {row["fault"]: row for row in json.loads(written.read_text())}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_ends_as_if_the_fault_had_not_been(fault: str, rows: dict[str, dict[str, Any]]) -> None:
    """Bit for bit: weights, moments, state, every row of the curves, held-out figures."""
    called, _, times = FAULTS[fault]
    row = rows[called]
    assert row["wrong"] == []
    assert row["injected"] >= times
    assert row["runs"] == row["identical"] > 0
    assert row["rows_lost"] == 0
