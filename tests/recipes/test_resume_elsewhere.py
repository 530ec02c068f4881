"""`--resume` where it cannot go on: one line that names the recipe, the folder or the null that it should be."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import save_model

DIFFING = {"n_models": 2, "n_shared": 8, "num_steps": 2, "checkpoint_every": 1}


@pytest.fixture
def refused(run_small, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line that a call is refused with."""

    def call(recipe: str, **given: Any) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            run_small(recipe, **given)
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return call


def test_another_recipe_is_named(run_small, refused, tmp_path: Path) -> None:
    """Not by the dozen fields in which the two differ; whether the run was cut short or complete."""
    run_small("feb_diffing_l1", **DIFFING)
    line = refused("feb_diffing_topk", **DIFFING, resume=True)
    assert "was made by the recipe feb_diffing_l1, not by feb_diffing_topk" in line
    assert "configuration" not in line
    (tmp_path / "run" / "summary.json").unlink()
    line = refused("feb_diffing_topk", **DIFFING, k_shared=3, k_exclusive=3)
    assert "holds a run of feb_diffing_l1 that was cut short: feb_diffing_l1 with --resume goes on" in line
    assert "holds a run that was cut short: --resume goes on" in refused("feb_diffing_l1", **DIFFING)
    configuration = json.loads((tmp_path / "run" / "configuration.json").read_text())
    (tmp_path / "run" / "configuration.json").write_text(json.dumps({**configuration, "recipe": "under_another_name"}))
    assert "If it was renamed: --resume-changed recipe" in refused("feb_diffing_l1", **DIFFING, resume=True)
    run_small("feb_diffing_l1", **DIFFING, resume=True, resume_changed="recipe")
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    run_small("feb_diffing_l1", **DIFFING, resume=True, output=tmp_path / "copy")


def test_another_folder_is_named(run_small, refused, folder: Path, tmp_path: Path) -> None:
    """A part of a run's folder, a model, a mistyped name, a folder that has lost its checkpoints."""
    run_small("feb_diffing_l1", **DIFFING)
    run = tmp_path / "run"

    def line(output: Path) -> str:
        return refused("feb_diffing_l1", **DIFFING, resume=True, output=output)

    for part in ("coder", "evaluation", "checkpoints", "checkpoints/step_000000002"):
        assert f"is '{part}' of the run in '{run}': give --output {run}." in line(run / part)
    assert "is no folder of a run: it holds" in line(folder / "base")
    assert "config.json" in line(folder / "base")
    assert "does not exist. Did you mean 'run'?" in line(tmp_path / "runn")
    (tmp_path / "empty").mkdir()
    assert "is no folder of a run: it holds nothing" in line(tmp_path / "empty")
    shutil.rmtree(run / "checkpoints")
    assert "holds a run without its checkpoints" in line(run)


def test_the_null_goes_on_with_its_pair(run_small, refused, folder: Path, tmp_path: Path) -> None:
    """Not alone, not with another null; and a pair whose null has not begun is not trained again."""
    for name, seed in (("null_one", 7), ("null_two", 8)):
        save_model(tmp_path / name, seed=seed)
    given = {**DIFFING, "null": tmp_path / "null_one"}
    run_small("feb_diffing_l1", **given)
    run = tmp_path / "run"
    alone = refused("feb_diffing_l1", **DIFFING, resume=True, output=run / "null")
    assert f"is the null run of the run in '{run}': give --output {run}." in alone
    line = refused("feb_diffing_l1", **{**given, "null": tmp_path / "null_two"}, resume=True)
    assert f"is of the null {tmp_path / 'null_one'}, not of {tmp_path / 'null_two'}" in line
    shutil.rmtree(run / "null")  # as a kill between the pair's end and the null's beginning leaves it
    assert "holds a run that was cut short: --resume goes on" in refused("feb_diffing_l1", **given)
