"""`python -m crosscode`: what is done with the folder of a run needs nothing but the folder."""

import os
from pathlib import Path

import pytest

from crosscode.cli import main
from crosscode.run import OPTIONS, RunOptions


def test_options_come_back_from_the_folder(tmp_path: Path) -> None:
    """All of them, paths included."""
    run = RunOptions(models=("embedded:base", "embedded:tuned"), output=tmp_path / "run", cache=tmp_path, seed=3)
    run.write(tmp_path / OPTIONS)
    assert RunOptions.read(tmp_path / OPTIONS) == run


def test_local_models_and_text_are_found_from_anywhere(folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Relative paths are kept as absolute ones; names of other kinds are kept as they are."""
    monkeypatch.chdir(folder)
    run = RunOptions(models=("base", "embedded:base", "smollm2"), dataset="./text.txt")
    run.write(tmp_path / OPTIONS)
    monkeypatch.chdir(os.sep)
    read = RunOptions.read(tmp_path / OPTIONS)
    assert read.models == (str(folder / "base"), "embedded:base", "smollm2")
    assert read.dataset == str(folder / "text.txt")


@pytest.mark.parametrize("recipe", ["sae_topk", "compound_clt", "skip_transcoder"])
def test_a_run_is_evaluated_from_its_folder(recipe: str, run_small, tmp_path: Path, capsys) -> None:
    """The held-out figures of the run itself come out again, whatever the shape of what the coder reads."""
    summary = run_small(recipe, num_steps=2)
    main(["evaluate", str(tmp_path / "run"), "--n-tokens", "500"])
    assert f"fvu/pooled  {summary['fvu/pooled']:.4g}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "name a command: evaluate"),
        ("evalute nowhere", "unknown command 'evalute'. Did you mean 'evaluate'?"),
        ("evaluate", "PATH"),
        ("evaluate nowhere", "nowhere"),
        ("evaluate nowhere --n-tokens some", "--n-tokens='some' must be a whole number."),
        ("evaluate nowhere --n-token 3", "unknown option '--n-token'. Did you mean '--n-tokens'?"),
        ("report nowhere", "'nowhere' is no folder of a run"),
    ],
)
def test_a_command_that_cannot_be_is_one_line(arguments: str, said: str, capsys) -> None:
    """The line says what is wrong and what is allowed; exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
