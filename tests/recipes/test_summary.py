"""What is printed at the end of a run: figures by site, the latents at either end, lines that can be read."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest
from small_runs import SMALL, factory, options

import crosscode
import crosscode.run.recipe
from crosscode.data.transformer_lens_model import TransformerLensModel
from crosscode.evaluation import Evaluation, token_counts
from crosscode.report.terminal import concordance

DIFFING = {"n_shared": 8, "k_shared": 3, "k_exclusive": 3, "lr": 1e-2}


def test_the_summary_is_short_and_ends_with_the_report(run_small, tmp_path: Path, capsys) -> None:
    """A row a site with FVU and what splicing recovers, L0, dead latents, the most one-sided living latents."""
    run_small("feb_diffing_topk", n_models=2, **DIFFING, num_steps=4, quiet=False, report=True)
    shown, bar = capsys.readouterr()
    assert "4/4" in bar
    evaluation = Evaluation.load(tmp_path / "run")
    for model in ("base", "tuned"):
        site = f"{model}/blocks.2.hook_resid_post"
        assert f"{evaluation.metrics[f'fvu/{site}']:.4f}" in shown
        assert f"{evaluation.metrics[f'splice/zero/{site}/ce_recovered']:.1%}" in shown
    assert f"L0 {evaluation.metrics['l0/mean']:.1f}" in shown
    assert f"dead latents {evaluation.metrics['dead']:.1%}" in shown
    listed = [int(line.split()[1]) for line in shown.splitlines() if line.startswith("  latent ")]
    assert len(listed) == 6
    assert (evaluation.latents["count_L"][listed] > 0).all()
    rho_L = evaluation.latents["relative_norm_L"][listed]
    assert (rho_L[:3].diff() <= 0).all()
    assert (rho_L[3:].diff() >= 0).all()
    assert "Relative decoder norms, in scaled space, of" in shown
    assert f"coder = crosscode.load({str(tmp_path / 'run' / 'coder')!r})" in shown
    assert len(shown.splitlines()) < 45
    assert shown.splitlines()[-1] == f"The report: {tmp_path / 'run' / 'report.html'}"
    assert crosscode.load(tmp_path / "run" / "coder").n_latents == 32


def test_what_was_left_out_is_told_and_a_resumed_run_tells_the_same(run_small, tmp_path: Path, capsys) -> None:
    """In the terminal, summary.json and the report: of the text read in training, and of the held-out text."""
    given: dict[str, Any] = {"max_norm_multiple": 1.2, "report": True, "quiet": False, "num_steps": 40}
    summary = run_small("sae_topk", **given)
    run = tmp_path / "run"
    training, held_out = token_counts(summary, "training_tokens"), token_counts(summary, "tokens")
    assert held_out == Evaluation.load(run).tokens
    shown = capsys.readouterr().out
    for whose, counts in (("Training", training), ("Held-out text", held_out)):
        assert counts.outliers > 0
        assert counts.first_positions == counts.read / 32
        assert f"{whose}, left out of {counts.read:,} tokens: " in shown
        assert f"{counts.special:,} special, {counts.outliers:,} outliers in norm (" in shown
    assert summary["tokens"] == 40 * 128
    assert training.kept - 1024 < summary["tokens"] <= training.kept  # half a block is read and not served yet
    page = (run / "report.html").read_text()
    assert f'<td>training</td><td class="n">{training.read:,}</td><td class="n">{training.kept:,}</td>' in page
    assert f"{held_out.outliers:,} of {held_out.read:,}, and 0 not finite" in page
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step_000000040")
    resumed = run_small("sae_topk", **given, resume=True)
    assert token_counts(resumed, "training_tokens") == training
    assert json.loads((run / "options.json").read_text())["sequences_at_once"] == 8


@pytest.mark.parametrize("value", ["None", "10"])
def test_massive_activations_are_kept_where_that_is_asked_for(value, folder, tmp_path, monkeypatch) -> None:
    """By default they are left out, as with 10; `None` keeps them. One token of each pass is 100 times too large."""
    harvest = TransformerLensModel.harvest

    def harvest_massive(self, tokens_HS, hookpoints):
        acts_HSPD = harvest(self, tokens_HS, hookpoints)
        acts_HSPD[0, 20] *= 100
        return acts_HSPD

    monkeypatch.setattr(TransformerLensModel, "harvest", harvest_massive)
    small = {**SMALL, "models": folder / "base", "dataset": folder / "text.txt", "num_steps": 1, "k": 4}
    found = {}
    for name, more in (("default", {}), ("given", {"max_norm_multiple": value})):
        summary = crosscode.run.main(factory("sae_topk"), options(**small, **more, output=tmp_path / name))
        found[name] = token_counts(summary, "tokens")
    default = found["default"]
    kept_all = attrs.evolve(default, outliers=0, kept=default.kept + default.outliers)
    assert default.outliers > 0
    assert found["given"] == (default if value == "10" else kept_all)


def test_another_number_of_sequences_at_once_is_another_configuration(run_small, tmp_path: Path, capsys) -> None:
    """Blocks of text follow from it; the number that a run began with is in its options, and goes on from there."""
    whole = run_small("sae_topk", sequences_at_once=4)
    run = tmp_path / "run"
    assert json.loads((run / "options.json").read_text())["sequences_at_once"] == 4
    assert json.loads((run / "configuration.json").read_text())["data"]["harvester"]["sequences_at_once"] == 4
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints" / "step_000000040")
    with pytest.raises(SystemExit):
        run_small("sae_topk", resume=True)
    assert "data.harvester.sequences_at_once: 4 -> 8" in capsys.readouterr().err
    again = run_small("sae_topk", sequences_at_once=4, resume=True)
    assert again == pytest.approx(whole)


def test_a_run_that_stops_at_nan_goes_on_without_it(run_small, tmp_path: Path, capsys, monkeypatch) -> None:
    """As the page of messages says: one line, and with the fields named the run skips what is not finite."""
    harvest = TransformerLensModel.harvest
    after = [10**6]

    def harvest_nan(self, tokens_HS, hookpoints):
        acts_HSPD = harvest(self, tokens_HS, hookpoints)
        after[0] -= 1
        acts_HSPD[0, 20] = math.nan if after[0] < 0 else acts_HSPD[0, 20]
        return acts_HSPD

    monkeypatch.setattr(TransformerLensModel, "harvest", harvest_nan)
    given = {"checkpoint_every": 5, "ahead": 0, "init_tokens": 256, "num_steps": 40}
    after[0] = 40
    with pytest.raises(SystemExit) as stopped:
        run_small("sae_topk", **given)
    assert stopped.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "at blocks.2.hook_resid_post: activations are NaN or infinite (float32) in document" in line
    assert "--resume" in line
    changed = ["data", "held_out"]
    summary = run_small("sae_topk", **given, skip_not_finite=True, resume=True, resume_changed=changed)
    assert summary["step"] == 40
    assert summary["training_tokens/not_finite"] > 0
    assert summary["tokens/not_finite"] > 0


@pytest.mark.parametrize(
    ("before", "token", "after", "said"),
    [
        ("", "The", " end", "⟦The⟧ end"),
        (" word" * 20, " cat", " sat\non " + "mats " * 20, "word ⟦cat⟧ sat↵on"),
        ("x", "\n", "y", "⟦↵⟧"),
        ("x", "  ", "y", "⟦  ⟧"),
    ],
)
def test_tokens_stand_below_one_another(before: str, token: str, after: str, said: str) -> None:
    """However long its context, an example is one line with the token in its column, blanks outside the brackets."""
    line = concordance(before, token, after)
    assert line.index("⟦") == 36
    assert len(line) < 80
    assert "\n" not in line
    assert said in line


def test_a_run_is_complete_without_its_report(run_small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong with the page is told, and takes nothing else with it."""

    def broken(folder: Path) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(crosscode.run.recipe, "write_report", broken)
    with pytest.warns(UserWarning, match=r"no report was made \(OSError: no space left\)"):
        summary = run_small("sae_topk", num_steps=2, report=True)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert crosscode.load(tmp_path / "run" / "coder").n_latents == 32
