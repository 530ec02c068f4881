"""`python -m crosscode`: what is done with the folder of a run needs nothing but the folder."""

import os
import resource
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import crosscode.commands
from crosscode.commands import main
from crosscode.errors import CrosscodeWarning
from crosscode.evaluation import Evaluation, eligible_L
from crosscode.run import RunOptions
from crosscode.run_folder import OPTIONS


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
    first = Evaluation.load(tmp_path / "run")
    assert first.finite().items() <= summary.items()
    main(["evaluate", str(tmp_path / "run"), "--n-tokens", "500"])
    again = Evaluation.load(tmp_path / "run")
    assert again.source == first.source
    assert again.finite() == pytest.approx(first.finite(), nan_ok=True)
    assert again.latents.keys() == first.latents.keys()
    for name, tensor in again.latents.items():
        torch.testing.assert_close(tensor, first.latents[name], equal_nan=True)
    shown = capsys.readouterr()
    assert f"{summary['fvu/pooled']:.4f}" in shown.out
    assert shown.err.startswith("run: loading ")


def test_evaluation_options_are_heeded(run_small, tmp_path: Path, capsys) -> None:
    """Cut-offs, ablations, examples and numbers of tokens; without splicing no model is run on."""
    run_small("feb_diffing_l1", n_models=2, n_shared=8, num_steps=2)
    given = "--n-tokens 100 --splice-tokens 0 --relative-norm 0.5 --nu-error 1 --nu-recon 1 --example-latents 0 --quiet"
    capsys.readouterr()
    main(["evaluate", str(tmp_path / "run"), *given.split()])
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "loading" not in shown.err
    found = Evaluation.load(tmp_path / "run")
    assert found.source["cut_offs"] == {"relative_norm": 0.5, "nu_error": 1.0, "nu_recon": 1.0}
    assert 100 <= found.source["tokens"] < 128  # four sequences of 32, without what training leaves out
    assert not any(name.startswith("splice/") for name in found.metrics)
    assert (found.examples, found.logits) == (None, None)
    n_eligible = int(eligible_L(found.latents).sum())
    assert 0 < n_eligible < int((found.latents["count_L"] > 0).sum()), "shared latents are no candidates"
    assert found.metrics["exclusive/base/candidates"] + found.metrics["exclusive/tuned/candidates"] >= n_eligible
    with pytest.raises(SystemExit):
        main(["evaluate", str(tmp_path / "run"), "--device", "gpu"])
    assert capsys.readouterr().err.startswith("error: device 'gpu' is not available here: ")
    main(["evaluate", str(tmp_path / "run"), "--splice-tokens", "100", "--ablations", "mean", "--quiet"])
    found = Evaluation.load(tmp_path / "run")
    assert {name.split("/")[1] for name in found.metrics if name.endswith("/ce_recovered")} == {"mean"}
    assert found.examples is not None


def test_a_report_is_written_from_the_folder(run_small, tmp_path: Path, capsys) -> None:
    """Anywhere; of a run that has no evaluation it says what to do."""
    run_small("sae_topk", num_steps=2)
    main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "elsewhere" / "page.html")])
    assert capsys.readouterr().out.strip() == str(tmp_path / "elsewhere" / "page.html")
    assert (tmp_path / "elsewhere" / "page.html").read_text().startswith("<!doctype html>")
    shutil.rmtree(tmp_path / "run" / "evaluation")
    with pytest.raises(SystemExit):
        main(["report", str(tmp_path / "run")])
    assert f"python -m crosscode evaluate {tmp_path / 'run'}" in capsys.readouterr().err


def test_what_was_there_survives_a_full_disk(run_small, tmp_path: Path, capsys) -> None:
    """An evaluation and a report that find no room leave those of before as they were, and are told in one line."""
    run_small("feb_diffing_topk", n_models=2, n_shared=8, k_shared=3, k_exclusive=3, num_steps=2, report=True)
    run = tmp_path / "run"
    before = {file: file.read_bytes() for file in (*(run / "evaluation").iterdir(), run / "report.html")}
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    for command in (["evaluate", str(run), "--splice-tokens", "0", "--n-tokens", "500"], ["report", str(run)]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, usual[1]))
        try:
            with pytest.raises(SystemExit) as stopped:
                main(command)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        assert stopped.value.code == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert "could not be written to" in line
        assert "What was there before still is" in line
    assert {file: file.read_bytes() for file in before} == before
    assert not [file for file in run.iterdir() if file.name.startswith(".")]


def test_other_text_than_was_trained_on_is_told(run_small, folder: Path, tmp_path: Path, capsys) -> None:
    """One warning that names it; the figures are of what is there."""
    text = shutil.copy(folder / "text.txt", tmp_path / "own.txt")
    run_small("sae_topk", num_steps=2, dataset=text)
    command = ["evaluate", str(tmp_path / "run"), "--splice-tokens", "0", "--n-tokens", "100", "--quiet"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", CrosscodeWarning)
        main(command)
    with Path(text).open("a") as opened:
        opened.write("w1 w2 w3\n\n" * 40)
    with pytest.warns(CrosscodeWarning, match=r"run was trained on other models or text \(text.*own\.txt.*bytes"):
        main(command)


def test_a_command_that_is_interrupted_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Ctrl-C: no traceback, exit code 130."""

    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(crosscode.commands, "write_report", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["report", str(tmp_path)])
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "stopped.\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "name a command: evaluate"),
        ("evalute nowhere", "unknown command 'evalute'. Did you mean 'evaluate'?"),
        ("evaluate", "PATH"),
        ("evaluate nowhere", "nowhere"),
        ("evaluate nowhere --n-tokens some", "--n-tokens='some' must be a whole number."),
        ("evaluate nowhere --n-token 3", "unknown option '--n-token'. Did you mean '--n-tokens'"),
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
