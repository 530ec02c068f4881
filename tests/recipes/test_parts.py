"""What fails in one part of an evaluation costs that part, told in one line: the rest and the summary are there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import crosscode
import crosscode.evaluation.full
import crosscode.run.beside_null
import crosscode.run.recipe
from crosscode.errors import CrosscodeWarning
from crosscode.evaluation import Evaluation, full_evaluation
from crosscode.evaluation.activity import Activity
from crosscode.evaluation.latent_scaling import ScalingSums
from crosscode.metrics import FVU
from crosscode.report import print_evaluation, write_report
from crosscode.run import RunOptions
from crosscode.run.recipe import held_out_of
from crosscode.run_folder import OPTIONS

COMPARED = ("relative_norm/", "delta_norm/", "decoder_cosine/median")
SCALED = ("exclusive/", "decoder_cosine/median")
DIFFING = {"n_models": 2, "n_shared": 8, "k_shared": 3, "k_exclusive": 3}


def broken(*arguments: Any, **options: Any) -> Any:
    """Stands for anything that may go wrong in a library or a model."""
    raise RuntimeError("boom\nand a page of text")


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Callable[[], Evaluation], Path, Evaluation]:
    """How a trained coder is evaluated, its run's folder, and what is measured when nothing fails."""
    from small_runs import SMALL, factory, options

    run = tmp_path_factory.mktemp("parts") / "run"
    given = {k: v for k, v in DIFFING.items() if k != "n_models"}
    models = [folder / "base", folder / "tuned"]
    arguments = {**SMALL, "models": models, "dataset": folder / "text.txt", "output": run, "num_steps": 2, **given}
    crosscode.run.main(factory("feb_diffing_topk"), options(**arguments))
    coder = crosscode.load(run / "coder")
    data = held_out_of(coder, RunOptions.read(run / OPTIONS))

    def evaluate() -> Evaluation:
        return full_evaluation(coder, data, 200, splice_tokens=60, ablations=("zero",))

    return evaluate, run, evaluate()


@pytest.mark.parametrize(
    ("owner", "name", "part", "lost"),
    [
        (crosscode.evaluation.full, "splice", "splicing against zero-ablation", ("splice/",)),
        (crosscode.evaluation.full, "_exclusive", "counting exclusive latents", ("exclusive/",)),
        (crosscode.evaluation.full, "_decoders", "comparing decoder norms", COMPARED),
        (crosscode.evaluation.full, "ScalingSums", "latent scaling", SCALED),
        (ScalingSums, "add", "latent scaling", SCALED),
        (ScalingSums, "scaling", "latent scaling", SCALED),
        (FVU, "start", "FVU", ("fvu/", "explained_variance/")),
        (crosscode.evaluation.full, "worth_looking_at", "choosing latents to look at", ()),
        (crosscode.evaluation.full, "find_examples", "finding examples", ()),
        (crosscode.evaluation.full, "attribute_logits", "logit attribution", ()),
        (crosscode.evaluation.full, "texts_of", "reading tokens as texts", ()),
    ],
)  # fmt: skip
def test_a_failure_costs_its_own_part(
    whole: tuple[Callable[[], Evaluation], Path, Evaluation],
    owner: Any,
    name: str,
    part: str,
    lost: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One warning with part and cause; the other figures as before; files, report and table without it."""
    evaluate, run, undisturbed = whole
    monkeypatch.setattr(owner, name, broken)
    with pytest.warns(CrosscodeWarning) as told:
        found = evaluate()
    monkeypatch.undo()
    said = [str(each.message) for each in told if each.category is CrosscodeWarning]
    assert said == [f"{part} failed (RuntimeError: boom); everything else goes on without it."]
    assert found.absent[part] == "RuntimeError: boom"
    kept = {key: value for key, value in undisturbed.metrics.items() if not key.startswith(lost)}
    assert found.metrics == pytest.approx(kept, nan_ok=True)
    assert lost == () or len(kept) < len(undisturbed.metrics)
    assert (found.scaling is None) == (part == "latent scaling")
    assert (found.examples is None) == (part in ("finding examples", "choosing latents to look at"))
    assert (found.logits is None) == (found.examples is None or part == "logit attribution")
    found.save(run)
    read = Evaluation.load(run)
    assert read.absent == found.absent
    assert read.metrics == pytest.approx(found.metrics, nan_ok=True)
    page = write_report(run).read_text()
    assert f"{part}: RuntimeError: boom" in page
    print_evaluation(read, "title")
    assert ("latent scaling confirms" in capsys.readouterr().out) == ("exclusive/" not in lost)


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, MemoryError, SystemExit])
def test_what_is_of_the_whole_process_ends_it(whole, stopped: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C, SIGTERM and a machine without memory are no failure of a part."""

    def stop(*arguments: Any, **options: Any) -> None:
        raise stopped

    monkeypatch.setattr(crosscode.evaluation.full, "splice", stop)
    with pytest.raises(stopped):
        whole[0]()


@pytest.mark.parametrize(
    ("owner", "name", "said"),
    [
        (crosscode.run.recipe, "full_evaluation", "the evaluation failed (RuntimeError: boom)"),
        (Activity, "add", "the evaluation failed (RuntimeError: boom)"),
        (Evaluation, "save", "saving the evaluation failed (RuntimeError: boom)"),
        (crosscode.run.recipe, "print_evaluation", "showing the evaluation failed (RuntimeError: boom)"),
        (crosscode.run.recipe, "write_report", "no report was made (RuntimeError: boom"),
        (crosscode.run.recipe, "figures_of", "showing the report in wandb failed (RuntimeError: boom)"),
    ],
)
def test_a_run_is_complete_all_the_same(
    run_small, tmp_path: Path, owner: Any, name: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Summary and coder are there, the command ends as ever; an earlier run's evaluation is not taken for its own."""
    stale = tmp_path / "run" / "evaluation" / "metrics.json"
    stale.parent.mkdir(parents=True)
    stale.write_text("of an earlier run")
    monkeypatch.setattr(owner, name, broken)
    with pytest.warns(CrosscodeWarning) as told:
        summary = run_small("sae_topk", num_steps=1, report=True, quiet=False)
    assert any(str(each.message).startswith(said) for each in told)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert summary["step"] == 1
    assert crosscode.load(tmp_path / "run" / "coder").n_latents == 32
    measured = name not in ("full_evaluation", "add", "save")
    assert ("fvu/pooled" in summary) == (measured or name == "save")
    assert stale.exists() == measured
    assert bool(summary.get("absent")) != measured


def test_a_run_beside_a_null_is_complete_without_being_judged(
    run_small, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes after both runs is a part as well."""
    monkeypatch.setattr(crosscode.run.beside_null, "judge_by_null", broken)
    with pytest.warns(CrosscodeWarning, match=r"^comparing with the null failed \(RuntimeError: boom\)"):
        summary = run_small("feb_diffing_topk", **DIFFING, num_steps=1, null=folder / "tuned")
    assert summary["absent"] == {"comparing with the null": "RuntimeError: boom"}
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert "fvu/pooled" in summary
