"""A sweep: each member is what it would be alone, from one harvest, and is found with its figures in one folder."""

import shutil
import sys
from pathlib import Path
from typing import Any

import letters
import pyarrow.parquet
import pytest
from small_runs import RECIPES, SMALL, factory, options

import crosscode.run
from crosscode.commands import main
from crosscode.errors import BadInput
from crosscode.files import read_json
from crosscode.report import pareto
from crosscode.run import RunOptions, Sweep
from crosscode.run.recipe import run_recipe
from crosscode.run.resuming import how_to_resume
from crosscode.run_folder import is_complete
from crosscode.training.memory import Estimate, Part, together

RECIPE = str(RECIPES / "sae_topk.py")
GIVEN = {**SMALL, "hookpoints": ["embedding"], "num_steps": 4, "splice_tokens": 0, "checkpoint_every": 2}
IN_PYTHON = {name: value for name, value in GIVEN.items() if name not in ("n_latents", "num_steps")}
FOLDERS = {f"k={k},n_latents={n}" for k in (2, 4) for n in (16, 24)}


def weights(folder: Path) -> bytes:
    return (folder / "coder" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, letters.Letters, list[dict[str, Any]]]:
    """A sweep of four members over a model that counts its forward passes: its folder, the model, the rows."""
    folder, model = tmp_path_factory.mktemp("swept") / "sweep", letters.Letters()
    run = RunOptions(**IN_PYTHON, models=[model], dataset=letters.text(), output=folder)
    rows = Sweep(factory("sae_topk"), run, {"k": [2, 4], "n_latents": [16, 24]}, {"num_steps": 4}).train()
    return folder, model, rows


def test_each_member_is_what_it_would_be_alone(swept, tmp_path: Path) -> None:
    """Bit for bit, in a folder as complete; and all of them together asked the models for no more than one does."""
    folder, model, _ = swept
    assert {each.name for each in folder.iterdir() if each.is_dir()} == FOLDERS
    alone = letters.Letters()
    run = RunOptions(**IN_PYTHON, models=[alone], dataset=letters.text(), output=tmp_path / "alone")
    summary = run_recipe(factory("sae_topk")(run, k=4, n_latents=16, num_steps=4), run, "sae_topk")
    member = folder / "k=4,n_latents=16"
    assert weights(member) == weights(tmp_path / "alone")
    assert read_json(member / "summary.json") == summary
    assert model.n_harvests <= alone.n_harvests
    assert all(is_complete(folder / name) for name in FOLDERS)
    assert {each.name for each in member.iterdir()} == {each.name for each in (tmp_path / "alone").iterdir()}


def test_table_and_figure_hold_every_member(swept) -> None:
    """A row each, with its values and the figures of its summary; nothing else is left in the folder."""
    folder, _, rows = swept
    table = pyarrow.parquet.read_table(folder / "sweep.parquet").to_pylist()
    assert [(row["k"], row["n_latents"]) for row in table] == [(2, 16), (2, 24), (4, 16), (4, 24)]
    for row, returned in zip(table, rows, strict=True):
        summary = read_json(folder / row["member"] / "summary.json")
        assert row["fvu/pooled"] == summary["fvu/pooled"] == returned["fvu/pooled"]
        assert row["l0/mean"] == summary["l0/mean"]
    page = (folder / "pareto.html").read_text()
    assert all(name.replace("=", "=") in page for name in FOLDERS)
    assert {each.name for each in folder.iterdir()} == {*FOLDERS, "sweep.parquet", "pareto.html"}


def test_a_sweep_that_was_cut_short_goes_on(swept, tmp_path: Path, monkeypatch) -> None:
    """From the newest step that all members have; they end with the weights of a sweep that was not cut."""
    folder, _, _ = swept
    monkeypatch.chdir(Path(letters.__file__).parent)
    cut = tmp_path / "cut"
    names = {"models": ["letters.py:make"], "dataset": "letters.py:text", "output": cut}
    given = {name: value for name, value in GIVEN.items() if name != "n_latents"}
    words = ["sweep", RECIPE, *options(**given, **names, k=[2, 4], n_latents=[16, 24])]
    shutil.copytree(folder, cut)
    for name in FOLDERS:  # one member was a save ahead of the others
        (cut / name / "summary.json").unlink()
        if name != "k=2,n_latents=24":
            shutil.rmtree(cut / name / "checkpoints" / "step_000000004")
        shutil.rmtree(cut / name / "coder")
    with pytest.raises(SystemExit):
        main(words)  # what was cut short is not replaced
    main([*words, "--resume"])
    assert {name: weights(cut / name) for name in FOLDERS} == {name: weights(folder / name) for name in FOLDERS}
    assert {read_json(cut / name / "provenance.json")["from_step"] for name in FOLDERS} == {2}
    monkeypatch.setattr(sys, "argv", [str(Path(crosscode.run.__file__).with_name("__main__.py"))])
    said = how_to_resume(cut / "k=2,n_latents=16", ["sweep", RECIPE, "--k", "2", "4"])
    assert said.endswith(f" -m crosscode sweep {RECIPE} --k 2 4 --resume")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "sweep: name a recipe first"),
        (["--k", "2", "4"], "sweep: name a recipe first"),
        (["nowhere.py", "--k", "2", "4"], "recipe='nowhere.py:nowhere': there is no file"),
        ([RECIPE], "grid is empty: give an argument of the recipe several values, as in --k 16 32 64."),
        ([RECIPE, "--k", "2", "four"], "--k='four' must be a whole number."),
        ([RECIPE, "--k", "2", "4000"], "k=4000 is too large"),
        ([RECIPE, "--kk", "2", "4"], "unknown option '--kk'. Did you mean '--k'"),
        ([RECIPE, "--k", "2", "2"], "grid: k=[2, 2] must be a list of different values."),
        ([RECIPE, "--num-steps", "2", "4"], "num_steps takes one value in a sweep: its members share text"),
        ([RECIPE, "--batch-size", "64", "128"], "batch_size takes one value in a sweep"),
        ([RECIPE, "--k", "2", "4", "--profile"], "profile is of a single run, not of a sweep."),
    ],
)
def test_what_cannot_be_swept_is_one_line(words: list[str], said: str, capsys) -> None:
    """Before anything is read."""
    with pytest.raises(SystemExit) as stopped:
        main(["sweep", *words])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}")


def test_a_grid_from_python_is_checked() -> None:
    """Names and values; rates and the like of the run may differ, its data may not."""
    run = RunOptions()
    recipe = factory("sae_topk")
    for grid, said in (
        ({"kk": [2]}, "has no argument 'kk'. Did you mean 'k'"),
        ({"models": [("a",), ("b",)]}, "models takes one value"),
        ({"k": "24"}, "must be a list"),
        ({"k": []}, "must be a list"),
    ):
        with pytest.raises(BadInput, match=said):
            Sweep(recipe, run, grid)
    sweep = Sweep(recipe, run, {"betas": [(0.9, 0.999), (0.0, 0.999)], "lr": [1e-3]})
    assert [each.name for each in sweep.directories] == ["betas=_0.9__0.999_,lr=0.001", "betas=_0.0__0.999_,lr=0.001"]
    assert sweep.directory == Path("runs/sae_topk_sweep")


def test_members_that_are_beaten_are_hollow() -> None:
    """Filled and joined are those than which no other is lower in both; a line for each other value."""
    points = {(2, "a"): (2.0, 0.5), (4, "a"): (4.0, 0.3), (2, "b"): (2.5, 0.6), (4, "b"): (4.0, 0.2)}
    rows = [{"k": k, "style": s, "l0/mean": x, "fvu/pooled": y} for (k, s), (x, y) in points.items()]
    front, *lines = pareto([*rows, {"k": 8, "style": "a"}], ["k", "style"]).data  # one was not measured
    assert list(zip(front.x, front.y)) == [(2.0, 0.5), (4.0, 0.2)]
    assert [line.name for line in lines] == ["style=a", "style=b"]
    assert [list(line.marker.symbol) for line in lines] == [["circle", "circle-open"], ["circle-open", "circle"]]
    assert [list(line.text) for line in lines] == [["2", "4"], ["2", "4"]]


def test_what_members_share_is_counted_once() -> None:
    """Weights of each, the largest of everything else."""
    device = Any
    of_each = [
        Estimate((Part("coder", n, "always", "", each=True), Part("buffer", 7 * n, "in a step", "")), device)
        for n in (1, 2, 3)
    ]
    assert [part.bytes for part in together(of_each).parts] == [6, 21]
    assert together(of_each).peak == 27
