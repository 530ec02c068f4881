"""Forty steps are twenty steps, a power cut, and `--resume` in a new process: bit for bit, from text to weights."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_runs import SMALL, options, save_model, save_text

import crosscode

RUNS: dict[str, dict[str, Any]] = {
    "feb_diffing_topk": {"style": "batch_topk", "n_shared": 8, "k_shared": 3, "k_exclusive": 3, "dead_after": 0.05},
    "feb_diffing_jumprelu": {"n_shared": 8, "sparsity": 0.1, "accumulate": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    save_model(folder / "base", seed=0)
    save_model(folder / "tuned", seed=1)
    save_text(folder / "text.txt")
    return folder


def start(folder: Path, recipe: str, output: Path, die_at: int = 0, **given: Any) -> subprocess.Popen[bytes]:
    """The recipe in a new process; `wait()` gives its exit code."""
    arguments = {
        **SMALL,
        "models": [folder / "base", folder / "tuned"],
        "dataset": folder / "text.txt",
        "output": output,
        **RUNS[recipe],
        **given,
    }
    script = Path(__file__).with_name("interrupted.py")
    command = [sys.executable, str(script), recipe, str(die_at), *options(**arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def fingerprint(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("recipe", RUNS)
def test_a_run_cut_short_ends_as_if_it_had_not_been(recipe: str, folder: Path, tmp_path: Path) -> None:
    """Final weights, last checkpoint, figures and curves of the resumed run equal those of the whole one."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    uninterrupted = start(folder, recipe, whole)
    assert start(folder, recipe, cut, die_at=20).wait() == 9
    assert not (cut / "coder").exists()
    assert [child.name for child in (cut / "checkpoints").iterdir()] == ["step_000000020"]
    assert start(folder, recipe, cut, resume=True).wait() == 0
    assert uninterrupted.wait() == 0
    assert fingerprint(cut / "coder") == fingerprint(whole / "coder")
    last = Path("checkpoints/step_000000040")
    for file in ("optimizer.safetensors", "state.safetensors", "state.json"):
        assert (cut / last / file).read_bytes() == (whole / last / file).read_bytes()
    assert (cut / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert json.loads((cut / "summary.json").read_text()) == json.loads((whole / "summary.json").read_text())
    assert crosscode.load(cut / "coder").encoder.n_latents == SMALL["n_latents"]
