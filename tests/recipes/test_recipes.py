"""Every recipe, run small from its command line: it learns, and leaves behind what it promises."""

import inspect
import json
import math
from itertools import islice
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from small_runs import RECIPES, factory, options

import crosscode
from crosscode.data import embedded
from crosscode.run import RunOptions, main
from crosscode.training import Trainer, load_checkpoint, save_checkpoint

TOPK = {"lr": 1e-2}
STYLES = ("topk", "batch_topk", "groupmax")
ONE_HOOKPOINT = {"hookpoints": ["blocks.2.hook_resid_post"]}
THREE_HOOKPOINTS = {"hookpoints": [f"blocks.{i}.hook_resid_post" for i in (1, 2, 3)]}

CROSSCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "l1": ("l1_crosscoder", {"l1": 0.01, "lr": 2e-2}),
    "jan": ("jan_update_jumprelu", {"sparsity": 0.1, "lr": 1e-2}),
    **{style: ("topk_crosscoder", {"style": style, "k": 6, **TOPK}) for style in STYLES},
    "tied": ("topk_crosscoder", {"tied": True, "k": 6, **TOPK}),
    "matryoshka": ("matryoshka_batch_topk", {"prefixes": (4, 16, 32), "k": 6, **TOPK}),
    "jumprelu_l0": ("jumprelu_l0", {"target_l0": 6, **TOPK}),
}
CAUSAL = ("weak", "strict", "acausal")
TWO_MODELS: dict[str, dict[str, Any]] = {
    "dedicated_crosscoder": {"n_dedicated": 4, "k": 6, **TOPK},
    "delta_crosscoder": {"n_shared": 24, "k_shared": 4, "k_delta": 2, **TOPK},
}
DIFFING: dict[str, tuple[str, dict[str, Any]]] = {
    "feb_l1": ("feb_diffing_l1", {"n_shared": 8, "l1": 0.01, "lr": 2e-2}),
    "feb_jumprelu": ("feb_diffing_jumprelu", {"n_shared": 8, "sparsity": 0.1, "lr": 1e-2}),
    **{
        f"feb_{style}_{pricing}": (
            "feb_diffing_topk",
            {"style": style, "pricing": pricing, "n_shared": 8, "k_shared": 3, "k_exclusive": 3, **TOPK},
        )
        for style in STYLES
        for pricing in ("budgets", "price", "none")
    },
}
TRANSCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    **{f"clt_l1_{skip}": ("clt_l1", {"l1": 0.01, "skip": skip, "lr": 1e-2}) for skip in (True, False)},
    **{
        f"clt_{style}_{skip}": ("clt_topk", {"style": style, "skip": skip, "k": 6, **TOPK})
        for style in STYLES
        for skip in (True, False)
    },
    **{
        f"compound_{activation}_{skip}": (
            "compound_clt",
            {"activation": activation, "skip": skip, "k": 2, "sparsity": 0.1, "lr": 1e-2},
        )
        for activation in ("jumprelu", "batch_topk")
        for skip in (True, False)
    },
    "compound_low_rank": ("compound_clt", {"rank": 2, "activation": "batch_topk", "skip": False, "k": 2, **TOPK}),
    **{f"transcoder_{skip}": ("skip_transcoder", {"skip": skip, "k": 6, **TOPK}) for skip in (True, False)},
}


def rows(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def check(directory: Path, summary: dict[str, Any], recipe: str) -> None:
    """What every run leaves behind, and that it learnt something."""
    curves = rows(directory)
    assert [row["step"] for row in curves] == [1, 10, 20, 30, 40]
    losses = [row["train/reconstruction"] for row in curves]
    assert all(math.isfinite(row["train/loss"]) for row in curves)
    assert losses[-1] < 0.9 * losses[0]
    assert summary == json.loads((directory / "summary.json").read_text())
    assert summary["recipe"] == recipe
    assert (summary["step"], summary["tokens"]) == (40, 40 * 128)
    assert summary["fvu/pooled"] < 1
    configuration = json.loads((directory / "configuration.json").read_text())
    assert configuration["num_steps"] == 40
    for name in configuration["penalties"]:
        assert f"train/penalty/{name}" in curves[0]
        assert f"train/lambda/{name}" in curves[0]
    assert {"train/loss", "train/lr", "train/tokens", "train/l0/mean", "train/dead"} <= curves[0].keys()
    checkpoints = sorted(child.name for child in (directory / "checkpoints").iterdir())
    assert checkpoints == ["step_000000020", "step_000000040"]
    coder = crosscode.load(directory / "coder")
    last = crosscode.load(directory / "checkpoints" / "step_000000040")
    x_BXiDi = torch.randn(20, *coder.encoder.in_dims, coder.encoder.d_in)
    assert torch.equal(coder(x_BXiDi), last(x_BXiDi))


@pytest.mark.parametrize("name", CROSSCODERS)
def test_a_crosscoder_learns(name: str, run_small, tmp_path: Path) -> None:
    """One model, three hookpoints: each has its own FVU under its own name."""
    recipe, arguments = CROSSCODERS[name]
    summary = run_small(recipe, **THREE_HOOKPOINTS, **arguments)
    check(tmp_path / "run", summary, recipe)
    for layer in (1, 2, 3):
        assert f"fvu/base/blocks.{layer}.hook_resid_post" in summary
        assert f"train/fvu/base/blocks.{layer}.hook_resid_post" in rows(tmp_path / "run")[0]
    assert crosscode.load(tmp_path / "run" / "coder").encoder.in_dims == (1, 3)


@pytest.mark.parametrize("name", CROSSCODERS)
def test_a_crosscoder_of_one_site_is_an_sae(name: str, run_small, tmp_path: Path) -> None:
    """One model and one hookpoint leave no crosscoding dimension."""
    recipe, arguments = CROSSCODERS[name]
    summary = run_small(recipe, **ONE_HOOKPOINT, **arguments)
    check(tmp_path / "run", summary, recipe)
    coder = crosscode.load(tmp_path / "run" / "coder")
    assert coder.encoder.in_dims == coder.decoder.out_dims == ()
    assert "train/fvu/base/blocks.2.hook_resid_post" in rows(tmp_path / "run")[0]


@pytest.mark.parametrize("name", DIFFING)
def test_a_diffing_crosscoder_learns(name: str, run_small, tmp_path: Path) -> None:
    """Two models: both are reconstructed, shared latents are tied, and L0 is told apart."""
    recipe, arguments = DIFFING[name]
    summary = run_small(recipe, n_models=2, **arguments)
    check(tmp_path / "run", summary, recipe)
    for model in ("base", "tuned"):
        assert f"train/fvu/{model}/blocks.2.hook_resid_post" in rows(tmp_path / "run")[0]
    assert summary["l0/shared"] + summary["l0/exclusive"] == pytest.approx(summary["l0/mean"])
    W_dec_LMPD = crosscode.load(tmp_path / "run" / "coder").decoder.dense()
    assert torch.equal(W_dec_LMPD[:8, 0], W_dec_LMPD[:8, 1])
    assert not torch.equal(W_dec_LMPD[8:, 0], W_dec_LMPD[8:, 1])


@pytest.mark.parametrize("name", TRANSCODERS)
def test_a_transcoder_learns(name: str, run_small, tmp_path: Path) -> None:
    """What is written is named in the curves, and a skip is there exactly when asked for."""
    recipe, arguments = TRANSCODERS[name]
    summary = run_small(recipe, **arguments)
    check(tmp_path / "run", summary, recipe)
    coder = crosscode.load(tmp_path / "run" / "coder")
    assert (coder.skip is not None) == arguments["skip"]
    written = {"clt_l1": (1, 2, 3), "clt_topk": (1, 2, 3), "compound_clt": (0, 1, 2, 3), "skip_transcoder": (2,)}
    layers = written[recipe]
    assert coder.decoder.out_dims == (() if recipe == "skip_transcoder" else (len(layers),))
    for layer in layers:
        assert f"train/fvu/base/blocks.{layer}.hook_mlp_out" in rows(tmp_path / "run")[0]


@pytest.mark.parametrize("style", CAUSAL)
def test_a_causal_crosscoder_learns(style: str, run_small, tmp_path: Path) -> None:
    """What a latent reads and writes is as the style has it, in what is stored; L0 is told layer by layer."""
    summary = run_small("causal_crosscoder", style=style, n_latents=16, k=2, **TOPK)
    check(tmp_path / "run", summary, "causal_crosscoder")
    coder = crosscode.load(tmp_path / "run" / "coder")
    reads_LP, writes_LP = coder.encoder.reads_LXi()[:, 0], coder.decoder.writes_LXo()[:, 0]
    layer_L = torch.arange(coder.n_latents) // 16
    if style == "acausal":
        assert coder.n_latents == 3 * 16
        assert (reads_LP & writes_LP).all()
        return
    assert torch.equal(reads_LP, layer_L[:, None] == torch.arange(3))
    later = 1 if style == "strict" else 0
    assert torch.equal(writes_LP, layer_L[:, None] + later <= torch.arange(3))
    assert torch.equal(writes_LP, (coder.decoder.dense()[:, 0] != 0).any(-1))
    stored = sum(W.numel() for W in (*coder.encoder.W_enc_XgDiLg, *coder.decoder.W_dec_LgXgDo))
    assert stored == 16 * int(reads_LP.sum() + writes_LP.sum())
    layers = [summary[f"l0/site_{p}"] for p in range(3 - later)]
    assert layers == pytest.approx([2] * (3 - later), rel=0.1)


@pytest.mark.parametrize("recipe", TWO_MODELS)
def test_what_two_models_do_not_share_is_so_by_construction(recipe: str, run_small, tmp_path: Path) -> None:
    """Dedicated latents touch one model; a Delta-Crosscoder's encoder reads the mean of both."""
    summary = run_small(recipe, n_models=2, **TWO_MODELS[recipe])
    check(tmp_path / "run", summary, recipe)
    coder = crosscode.load(tmp_path / "run" / "coder")
    if recipe == "delta_crosscoder":
        W_enc_MPDL = coder.encoder.weights()
        assert torch.equal(W_enc_MPDL[0], W_enc_MPDL[1])
        assert "train/penalty/delta" in rows(tmp_path / "run")[0]
        return
    own_LM = torch.tensor([[True, False]] * 4 + [[False, True]] * 4 + [[True, True]] * 24)
    assert torch.equal(coder.encoder.reads_LXi()[..., 0], own_LM)
    assert torch.equal((coder.decoder.dense() != 0).any(-1)[..., 0], own_LM)


@pytest.mark.parametrize("target", [2, 8])
def test_an_l0_is_held(target: int, run_small, tmp_path: Path) -> None:
    """From a start of 3 latents a token, fewer or more as is asked; thresholds have ten times the others' rate."""
    summary = run_small("jumprelu_l0", **ONE_HOOKPOINT, target_l0=target, num_steps=80)
    assert summary["l0/mean"] == pytest.approx(target, abs=1.5)
    configuration = json.loads((tmp_path / "run" / "configuration.json").read_text())
    assert configuration["optimizer"]["lr_multipliers"] == [1.0, 10.0]


GOES_ON: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: CROSSCODERS[name] for name in ("tied", "matryoshka", "jumprelu_l0")},
    "gated_sae": ("gated_sae", TOPK),
    **{f"causal_{style}": ("causal_crosscoder", {"style": style, "k": 2, **TOPK}) for style in ("weak", "strict")},
    **{recipe: (recipe, given) for recipe, given in TWO_MODELS.items()},
    "difference_sae": ("difference_sae", {"k": 6, **TOPK}),
    "compound_low_rank": ("compound_clt", {"rank": 2, "activation": "batch_topk", "k": 2, **TOPK}),
}


def small_trainer(recipe: str, folder: Path, **given: Any) -> Trainer:
    """A recipe's own trainer, of its usual models and hookpoints, on a little text."""
    usual: RunOptions = inspect.signature(factory(recipe)).parameters["run"].default
    models = tuple(str(folder / name) for name in ("base", "tuned"))[: len(usual.models)]
    small = {"sequence_length": 32, "batch_size": 128, "shuffle_buffer": 1024, "init_tokens": 500, "models": models}
    run = attrs.evolve(usual, dataset=str(folder / "text.txt"), **small)
    return factory(recipe)(run, n_latents=32, num_steps=12, **given)


def stepped(trainer: Trainer, n: int) -> torch.Tensor:
    """All weights of a trainer's coder after so many further steps."""
    for _, batch in zip(range(n), trainer.batches()):
        trainer.step([batch])
    return torch.cat([tensor.double().flatten() for tensor in trainer.model.state_dict().values()])


@pytest.mark.parametrize("name", GOES_ON)
def test_a_variant_goes_on_bit_for_bit(name: str, folder: Path, tmp_path: Path) -> None:
    """What each scheme has of its own (masks, ties, gates, groups of rates, differences) is in a checkpoint."""
    recipe, given = GOES_ON[name]
    one = small_trainer(recipe, folder, **given)
    one.initialize()
    stepped(one, 6)
    checkpoint = save_checkpoint(one, tmp_path)
    whole = stepped(one, 6)
    other = small_trainer(recipe, folder, **given)
    load_checkpoint(other, checkpoint)
    assert torch.equal(stepped(other, 6), whole)


def test_a_difference_sae_is_trained_on_differences(folder: Path) -> None:
    """The second model's activations minus the first's, under a name that says so; it reconstructs them."""
    trainer = small_trainer("difference_sae", folder, k=6, lr=1e-2)
    difference, both = (next(iter(data)).inputs_BXiDi for data in (trainer.data, trainer.data.loader))
    assert torch.equal(difference, both[:, 1, 0] - both[:, 0, 0])
    assert trainer.data.model_names == ("tuned - base",)
    coder = trainer.train()
    error = (coder(difference) - difference).square().sum()
    assert error < 0.8 * (difference - difference.mean(0)).square().sum()


def test_the_topk_sae_learns(run_small, tmp_path: Path, capsys) -> None:
    """k latents a token, every decoder vector of norm 1; nothing is shown of a quiet run."""
    summary = run_small("sae_topk", k=6, **TOPK)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "%|" not in shown.err
    check(tmp_path / "run", summary, "sae_topk")
    coder = crosscode.load(tmp_path / "run" / "coder")
    torch.testing.assert_close(coder.decoder.norms_LXo(), torch.ones(32))
    assert summary["l0/mean"] <= 6


def test_the_end_to_end_sae_learns_by_what_the_model_predicts(run_small, folder: Path, tmp_path: Path) -> None:
    """KL falls, and a coder that another recipe saved is fine-tuned from where it ended."""
    end_to_end = {"k": 6, "lr": 1e-2, "batch_size": 128}
    summary = run_small("end_to_end", **end_to_end)
    losses = [row["train/reconstruction"] for row in rows(tmp_path / "run")]
    assert losses[-1] < losses[0]
    assert summary["l0/mean"] <= 6
    first = tmp_path / "run" / "coder"
    tuned = run_small("end_to_end", **end_to_end, start_from=first, num_steps=20, output=tmp_path / "tuned")
    again = [row["train/reconstruction"] for row in rows(tmp_path / "tuned")]
    assert again[0] < losses[0] / 2
    assert tuned["step"] == 20
    with pytest.raises(SystemExit):
        run_small("end_to_end", **{**end_to_end, "n_latents": 16}, start_from=first, output=tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_gated_sae_learns(run_small, tmp_path: Path) -> None:
    """Gates are trained beside magnitudes, which have a scale and a bias of their own; decoder vectors have norm 1."""
    summary = run_small("gated_sae", sparsity=0.1, **TOPK)
    check(tmp_path / "run", summary, "gated_sae")
    coder = crosscode.load(tmp_path / "run" / "coder")
    torch.testing.assert_close(coder.decoder.norms_LXo(), torch.ones(32))
    for parameter in coder.activation.parameters():
        assert (parameter != 0).all()


def test_the_optimizer_is_as_asked(run_small, tmp_path: Path) -> None:
    """Warm-up, decay, Adam's betas and the clipped norm are options of every recipe."""
    given = {"lr": 1e-2, "lr_warmup": 0.5, "lr_decay": 0.25, "betas": (0.5, 0.75), "clip_norm": 0.125}
    run_small("l1_crosscoder", **ONE_HOOKPOINT, **given)
    rates = {row["step"]: row["train/lr"] for row in rows(tmp_path / "run")}
    assert rates == pytest.approx({1: 1e-2 / 20, 10: 1e-2 / 2, 20: 1e-2, 30: 1e-2, 40: 1e-2 / 10})
    configuration = json.loads((tmp_path / "run" / "configuration.json").read_text())
    assert configuration["optimizer"]["betas"] == [0.5, 0.75]
    assert configuration["gradients"] == [{"type": "ClipNorm", "max_norm": 0.125}]


@pytest.mark.parametrize("name", ["clt_l1_True", "clt_topk_True"])
def test_a_skip_joins_the_layer_that_is_read_to_its_own_output(name: str, run_small, tmp_path: Path) -> None:
    """Wherever that output stands among those written; no other site gets anything of it."""
    recipe, given = TRANSCODERS[name]
    writes = ["blocks.1.hook_resid_mid", "blocks.2.hook_mlp_out", "blocks.3.hook_mlp_out"]
    with pytest.raises(SystemExit):  # before the layer that is read
        run_small(recipe, **given, reads=["blocks.2.mlp.hook_in"], writes=writes)
    writes = ["blocks.2.hook_mlp_out", "blocks.3.hook_mlp_out"]
    run_small(recipe, **given, reads=["blocks.2.mlp.hook_in"], writes=writes)
    skip = crosscode.load(tmp_path / "run" / "coder").skip
    x_BD = torch.randn(5, 16)
    skipped_BPD = skip(x_BD)
    assert skipped_BPD.shape == (5, 2, 16)
    assert skipped_BPD[:, 0].abs().max() > 0
    assert skipped_BPD[:, 1].abs().max() == 0


def test_which_tokens_and_how_often_are_options(run_small, tmp_path: Path) -> None:
    """Training ends with the data when it is read once; first positions and tokens of large norm are left out."""
    all_of_it = {**ONE_HOOKPOINT, "num_steps": 1000, "epochs": 1, "checkpoint_every": 1000, "batch_size": 64}
    steps = {
        name: run_small("l1_crosscoder", **all_of_it, output=tmp_path / name, **given)["step"]
        for name, given in {"once": {}, "fewer": {"drop_first": 8}, "mild": {"max_norm_multiple": 1.05}}.items()
    }
    assert 20 < steps["once"] < 200
    assert steps["fewer"] / steps["once"] == pytest.approx(24 / 31, abs=0.03)
    assert steps["mild"] < 0.9 * steps["once"]


@pytest.mark.parametrize("recipe", sorted(file.stem for file in RECIPES.glob("*.py")))
def test_defaults_are_of_the_embedded_models(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every recipe as it stands finds its models, hookpoints and text in what is shipped."""
    assert main(factory(recipe), ["--dry-run"]) == {}
    assert "peak" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["l1", "jan", "batch_topk"])
def test_models_of_different_width_train_together(name: str, run_small, folder: Path, tmp_path: Path) -> None:
    """16 beside 32 at two hookpoints: padded, and what is padded is never written."""
    recipe, arguments = CROSSCODERS[name]
    hookpoints = [f"blocks.{i}.hook_resid_post" for i in (1, 2)]
    summary = run_small(recipe, **arguments, models=[folder / "base", folder / "wide"], hookpoints=hookpoints)
    check(tmp_path / "run", summary, recipe)
    assert len([key for key in summary if key.startswith(("fvu/base/", "fvu/wide/"))]) == 4
    W_dec_LMPD = crosscode.load(tmp_path / "run" / "coder").decoder.dense()
    assert W_dec_LMPD.shape == (32, 2, 2, 32)
    assert W_dec_LMPD[:, 0, :, 16:].abs().max() == 0
    assert W_dec_LMPD[:, 0, :, :16].abs().max() > 0


def test_one_model_at_two_revisions_has_two_names(run_small, folder: Path, tmp_path: Path) -> None:
    """Models whose names end alike are told apart by their number, so that no figure is lost."""
    twin = tmp_path / "base"
    twin.symlink_to(folder / "tuned")
    summary = run_small("l1_crosscoder", **ONE_HOOKPOINT, models=[folder / "base", twin], num_steps=2)
    names = [key for key in summary if key.startswith("fvu/base")]
    assert sorted(names) == ["fvu/base.0/blocks.2.hook_resid_post", "fvu/base.1/blocks.2.hook_resid_post"]


def test_a_second_run_needs_no_language_model(run_small, folder: Path, tmp_path: Path, monkeypatch) -> None:
    """With `--cache` the same text is harvested once, and the coder is the same."""
    from crosscode.data.transformer_lens_model import TransformerLensModel

    given = {"k": 6, "cache": tmp_path / "cache", "num_steps": 10}
    first = run_small("sae_topk", **given)

    def forbidden(*args: Any) -> None:
        raise AssertionError("harvested again")

    monkeypatch.setattr(TransformerLensModel, "harvest", forbidden)
    assert run_small("sae_topk", **given) == first


def test_the_main_job_runs_on_what_is_shipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No models, data or login given: the embedded pair, some of its own text, wandb offline, a bar and a table."""
    documents = embedded.documents
    monkeypatch.setattr(embedded, "documents", lambda split: islice(documents(split), 200))
    arguments = {"n_latents": 128, "n_shared": 32, "num_steps": 60, "batch_size": 256, "shuffle_buffer": 4096}
    arguments |= {"eval_tokens": 2000, "lr": 3e-3, "output": tmp_path / "run"}
    summary = main(factory("feb_diffing_jumprelu"), options(**arguments))
    assert summary["fvu/pooled"] < 0.9
    assert {f"fvu/embedded:{model}/blocks.2.hook_resid_post" for model in ("base", "tuned")} <= summary.keys()
    shown = capsys.readouterr()
    assert "60/60" in shown.err
    for part in ("FVU", "L0", "dead latents", "elative decoder norm", "crosscode.load("):
        assert part in shown.out
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert shown.out.splitlines()[-1] == f"The report: {tmp_path / 'run' / 'report.html'}"
    assert (tmp_path / "run" / "report.html").is_file()
    (shown_there,) = (tmp_path / "run" / "wandb").glob("offline-run-*/files/media/html/report_*.html")
    assert shown_there.read_bytes() == (tmp_path / "run" / "report.html").read_bytes()
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*/files/media/plotly/report/latent_scaling_*.json"))
