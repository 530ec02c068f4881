"""What is printed at the end of a run: figures by site, the latents at either end, lines that can be read."""

import json
from pathlib import Path

import pytest

import crosscode
import crosscode.run
from crosscode.evaluation import Evaluation
from crosscode.report.terminal import concordance

DIFFING = {"n_shared": 8, "k_shared": 3, "k_exclusive": 3, "lr": 1e-2}


def test_the_summary_is_short_and_ends_with_the_report(run_small, tmp_path: Path, capsys) -> None:
    """A row a site with FVU and what splicing recovers, L0, dead latents, the most one-sided living latents."""
    run_small("feb_diffing_topk", n_models=2, **DIFFING, num_steps=4, quiet=False, report=True)
    shown = capsys.readouterr().out
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

    monkeypatch.setattr(crosscode.run, "write_report", broken)
    with pytest.warns(UserWarning, match=r"no report was made \(OSError: no space left\)"):
        summary = run_small("sae_topk", num_steps=2, report=True)
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert crosscode.load(tmp_path / "run" / "coder").n_latents == 32
