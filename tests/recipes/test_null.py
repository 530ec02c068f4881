"""`--null`: the recipe again on a null pair, and which latents that makes exclusive."""

import json
import shutil
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file
from small_runs import SMALL, factory, options, save_model

import crosscode
from crosscode.commands import main as evaluate_command
from crosscode.evaluation import Evaluation
from crosscode.report import read_run
from crosscode.report.page import left_out
from crosscode.run import RunOptions, main
from crosscode.run.resuming import how_to_resume

DIFFING = {"n_shared": 8, "k_shared": 3, "k_exclusive": 3, "lr": 1e-2, "init_tokens": 512, "splice_tokens": 64}


def control(folder: Path) -> Path:
    """`base` a little further on: its weights, disturbed."""
    import transformers

    if not (folder / "control").exists():
        save_model(folder / "control", seed=0)
        model = transformers.LlamaForCausalLM.from_pretrained(folder / "control")
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for weight in model.parameters():
                weight += 0.05 * weight.std() * torch.randn(weight.shape, generator=generator)
        model.save_pretrained(folder / "control")
    return folder / "control"


@pytest.fixture(scope="module")
def ended(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run with a null, in wandb and with a report, which no test changes; and its summary."""
    run = tmp_path_factory.mktemp("ended") / "run"
    given = {**SMALL, **DIFFING, "models": [folder / "base", folder / "tuned"], "dataset": folder / "text.txt"}
    given |= {"null": control(folder), "max_norm_multiple": 1.3, "wandb_mode": "offline", "report": True, "output": run}
    return run, main(factory("feb_diffing_topk"), options(**given))


def test_the_null_is_a_run_of_its_own_and_sets_the_cut_offs(ended, tmp_path: Path, capsys) -> None:
    """Same recipe, same budget, another second model; masks and rates agree with the numbers."""
    there, summary = ended
    run, null = tmp_path / "run", tmp_path / "run" / "null"
    shutil.copytree(there, run)
    assert summary == json.loads((run / "summary.json").read_text())
    of_null = json.loads((null / "summary.json").read_text())
    assert (of_null["step"], of_null["tokens"]) == (summary["step"], summary["tokens"])
    assert any(key.startswith("fvu/control/") for key in of_null)
    of_null_run = RunOptions.read(null / "options.json")
    assert [Path(model).name for model in of_null_run.models] == ["base", "control"]
    assert of_null_run.null is None
    one, other = (crosscode.load(where / "coder").decoder.dense() for where in (run, null))
    assert one.shape == other.shape
    assert not torch.equal(one, other)
    found = json.loads((run / "evaluation" / "exclusivity.json").read_text())
    masks = load_file(run / "evaluation" / "exclusivity.safetensors")
    for side in (0, 1):
        assert int(masks[f"exclusive_to_{side}_L"].sum()) == found["pair"][f"towards_{side}"]["n_specific"]
        assert not masks[f"beyond_{side}_L"][:8].any()  # shared
        assert not (masks[f"exclusive_to_{side}_L"] & ~masks[f"beyond_{side}_L"]).any()
    low, high = found["cut_offs"]["relative_norm"]
    assert 0 < low <= high < 1
    assert 0 <= found["false_positive_rate"]["with_scaling"] <= found["false_positive_rate"]["norms"] <= 0.1
    called = sum(found["null"][f"towards_{side}"]["n_specific"] for side in (0, 1))
    assert (summary["null/false_positives"], summary["null/latents"]) == (called, found["n_eligible"]["null"])
    assert summary == json.loads((run / "summary.json").read_text())
    tokens_of_pair, tokens_of_null = (Evaluation.load(where).tokens for where in (run, null))
    assert found["tokens"] == {"pair": attrs.asdict(tokens_of_pair), "null": attrs.asdict(tokens_of_null)}
    evaluate_command(["evaluate", str(run), "--splice-tokens", "0"])
    shown = capsys.readouterr().out
    assert f"The same is said of {called} of the null's" in shown
    assert f"Held-out text of the pair, {tokens_of_pair}" in shown
    assert f"Held-out text of the null, {tokens_of_null}" in shown
    table = left_out(read_run(run))
    assert [row[0] for row in table.rows] == ["training", "held-out", "null, training", "null, held-out"]
    assert int(table.rows[2][5 + 1].replace(",", "")) == of_null["training_tokens/outliers"] > 0
    assert int(table.rows[3][5 + 1].replace(",", "")) == of_null["tokens/outliers"]


def test_wandb_has_the_null_too(ended) -> None:
    """The pair's own wandb run is taken up again and shows the page and figures in which the null stands."""
    run, _ = ended
    folders = sorted((run / "wandb").glob("offline-run-*"))
    assert len({each.name.rsplit("-", 1)[1] for each in folders}) == 1
    (before,), (after,) = (each.glob("files/media/plotly/report/relative_norm_*.json") for each in folders)
    assert "null control" not in before.read_text()
    assert "null control" in after.read_text()
    (page,) = folders[-1].glob("files/media/html/report_*.html")
    assert page.read_bytes() == (run / "report.html").read_bytes()


def test_a_new_run_keeps_no_null_of_the_one_it_replaces(ended, run_small, folder: Path, tmp_path: Path, capsys) -> None:
    """Another seed, with a null or without: nothing of the old null is used."""
    given: dict[str, Any] = {"n_models": 2, **DIFFING, "null": control(folder), "num_steps": 8}
    shutil.copytree(ended[0], tmp_path / "run")
    null = tmp_path / "run" / "null"
    old = (null / "coder" / "model.safetensors").read_bytes()
    run_small("feb_diffing_topk", **given, seed=1)
    assert (null / "coder" / "model.safetensors").read_bytes() != old
    run_small("feb_diffing_topk", n_models=2, **DIFFING, num_steps=8, seed=2)
    assert not null.exists()
    evaluate_command(["evaluate", str(tmp_path / "run"), "--splice-tokens", "0"])
    assert "The null's" not in capsys.readouterr().out


def test_a_null_run_goes_on_where_it_was_cut_short(ended, run_small, folder: Path, tmp_path: Path) -> None:
    """With --resume, of a whole run and half a null one; without it, half a null run is not overwritten."""
    given: dict[str, Any] = {"n_models": 2, **DIFFING, "null": control(folder), "max_norm_multiple": 1.3}
    shutil.copytree(ended[0], tmp_path / "run")
    null = tmp_path / "run" / "null"
    whole = load_file(null / "coder" / "model.safetensors")
    (null / "summary.json").unlink()
    assert "Go on from step 40 of the null run with: " in how_to_resume(tmp_path / "run", [])
    with pytest.raises(SystemExit):
        run_small("feb_diffing_topk", **given)
    run_small("feb_diffing_topk", **given, resume=True)
    for name, tensor in load_file(null / "coder" / "model.safetensors").items():
        torch.testing.assert_close(tensor, whole[name])


@pytest.mark.parametrize(
    ("recipe", "given", "reason"),
    [
        ("feb_diffing_l1", {"null": "embedded:contrl", "n_shared": 8}, "Did you mean 'control'"),
        ("feb_diffing_l1", {"null": "base", "n_shared": 8}, "is the first model itself"),
        ("feb_diffing_l1", {"null": "tuned/../base", "n_shared": 8}, "is the first model itself"),
        ("sae_topk", {"null": "tuned", "n_models": 1}, "models="),
    ],
)
def test_what_is_no_null_is_told_before_training(
    recipe: str, given: dict[str, Any], reason: str, run_small, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that is none, the first model itself, a recipe of one model."""
    null = given["null"] if ":" in given["null"] else folder / given["null"]
    with pytest.raises(SystemExit) as stopped:
        run_small(recipe, **{"n_models": 2, **given, "null": null})
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert reason in line
