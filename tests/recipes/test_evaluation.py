"""The evaluation of whole runs: each figure is that of the function that computes it alone; files give it back."""

import json
import math
from pathlib import Path

import attrs
import pytest
import torch
from einops import einsum

import crosscode
from crosscode.data.language_model import ReadOutModel
from crosscode.errors import BadInput, CrosscodeError
from crosscode.evaluation import (
    CutOffs,
    Evaluation,
    attribute_logits,
    full_evaluation,
    latent_scaling,
    measure_coder,
    measures,
    splice,
)
from crosscode.evaluation.full import worth_looking_at
from crosscode.evaluation.logit_attribution import direct_sites
from crosscode.metrics import ReconstructionBias, delta_norm
from crosscode.run import RunOptions
from crosscode.run.recipe import held_out_of
from crosscode.run_folder import OPTIONS


def test_every_figure_is_that_of_its_own_function(run_small, tmp_path: Path) -> None:
    """Metrics, splices against both ablations, latent scaling with its counts, decoders in both conventions."""
    run_small("feb_diffing_l1", n_models=2, n_shared=8, num_steps=30, lr=2e-2, l1=0.01)
    coder = crosscode.load(tmp_path / "run" / "coder").train()
    data = held_out_of(coder, RunOptions.read(tmp_path / "run" / OPTIONS))
    at = CutOffs(relative_norm=0.5, nu_error=0.9, nu_recon=0.9)
    everything = 10_000  # tokens: more than there are, so that the order of the text does not matter
    found = full_evaluation(coder, data, everything, splice_tokens=200, cut_offs=at)
    assert coder.training, "the mode is put back"
    for name, value in measure_coder(coder, data, [*measures(coder, data), ReconstructionBias()], everything).items():
        if isinstance(value, float) and "reconstruction_bias" not in name and "relative_norm" not in name:
            assert found.metrics[name] == pytest.approx(value, rel=1e-5), name
    for site in ("base/blocks.2.hook_resid_post", "tuned/blocks.2.hook_resid_post"):
        assert found.metrics[f"explained_variance/{site}"] == pytest.approx(1 - found.metrics[f"fvu/{site}"])
        assert found.metrics[f"reconstruction_bias/{site}"] > 0
    for ablation in ("zero", "mean"):
        for of in splice(coder, data, 200, ablation=ablation):
            assert found.metrics[f"splice/{of.model}/ce_clean"] == pytest.approx(of.ce_clean)
            for place, figures in (*of.sites.items(), ("jointly", of.joint)):
                for name, value in attrs.asdict(figures).items():
                    got = found.metrics[f"splice/{ablation}/{of.model}/{place}/{name}"]
                    assert got == pytest.approx(value, nan_ok=True)
    n_candidates = 0
    for m, scaling in enumerate(latent_scaling(coder, data, everything)):
        for name in ("nu_error", "nu_recon"):
            wanted_L = getattr(scaling, f"{name}_L").float()
            torch.testing.assert_close(
                found.latents[f"{name}_LM"][:, m], wanted_L, rtol=1e-4, atol=1e-5, equal_nan=True
            )
        candidates_L = (scaling.relative_norm_L >= 0.5) & (scaling.count_L > 0) & ~coder.decoder.shared_L()
        verdicts = scaling.verdicts(candidates_L, nu_error=0.9, nu_recon=0.9)
        model = ("base", "tuned")[m]
        for name, value in attrs.asdict(verdicts).items():
            assert found.metrics[f"exclusive/{model}/{name.removeprefix('n_')}"] == value
        n_candidates += verdicts.n_candidates
    assert n_candidates > 0
    norms_LXo = coder.decoder.norms_LXo().detach()
    torch.testing.assert_close(found.latents["norms_LXo"], norms_LXo)
    torch.testing.assert_close(found.latents["delta_norm_L"].double(), delta_norm(norms_LXo), rtol=1e-6, atol=1e-6)
    eligible_L = (found.latents["count_L"] > 0) & ~found.latents["shared_L"]
    assert found.metrics["delta_norm/above_0.9"] == float((delta_norm(norms_LXo)[eligible_L] > 0.9).double().mean())
    # Examples are looked for where activations were counted: each latent's first one is its strongest.
    strongest_E = found.examples.strength_EK()[:, 0]
    torch.testing.assert_close(strongest_E, found.latents["max_L"][found.examples.latents_E], rtol=1e-5, atol=1e-6)
    assert found.examples.n_tokens == found.source["tokens"]
    W_LMPD = coder.decoder.dense().detach()
    cosine_L = torch.cosine_similarity(W_LMPD[:, 0, 0], W_LMPD[:, 1, 0], dim=-1)
    torch.testing.assert_close(found.latents["cosine_LP"][:, 0], cosine_L)
    assert found.latents["shared_L"].tolist() == [True] * 8 + [False] * 24


def test_files_give_an_evaluation_back(run_small, tmp_path: Path) -> None:
    """Undefined numbers are null in JSON; latent scaling, examples, logits and texts come back; damage is told."""
    run_small("feb_diffing_l1", n_models=2, n_shared=8, num_steps=2)
    run = tmp_path / "run"
    coder = crosscode.load(run / "coder")
    data = held_out_of(coder, RunOptions.read(run / OPTIONS))
    made = full_evaluation(coder, data, 200, splice_tokens=100, dead_L=torch.arange(32) < 3)
    made = attrs.evolve(made, metrics={**made.metrics, "undefined": math.nan})
    made.save(run)
    read = Evaluation.load(run)
    assert read.source == made.source
    assert read.metrics == pytest.approx(made.metrics, nan_ok=True)
    assert json.loads((run / "evaluation" / "metrics.json").read_text())["metrics"]["undefined"] is None
    assert read.metrics["dead"] == 3 / 32
    assert read.latents.keys() == made.latents.keys()
    assert read.scaling is not None
    assert made.scaling is not None
    for one, other in zip(read.scaling, made.scaling):
        torch.testing.assert_close(one.nu_error_L, other.nu_error_L, rtol=1e-4, atol=1e-5, equal_nan=True)
        torch.testing.assert_close(one.relative_norm_L.double(), other.relative_norm_L.double(), rtol=0, atol=1e-6)
    assert read.examples is not None
    assert made.examples is not None
    assert torch.equal(read.examples.tokens_EKW, made.examples.tokens_EKW)
    assert (read.examples.before, read.examples.n_tokens) == (made.examples.before, made.examples.n_tokens)
    assert read.logits is not None
    assert made.logits is not None
    assert torch.equal(read.logits.highest_EMK, made.logits.highest_EMK)
    assert read.logits.sites == ("blocks.2.hook_resid_post",)
    assert read.texts == made.texts
    (run / "evaluation" / "metrics.json").write_text("{")
    with pytest.raises(CrosscodeError, match="damaged"):
        Evaluation.load(run)
    (run / "evaluation" / "latents.safetensors").unlink()
    with pytest.raises(BadInput, match="python -m crosscode evaluate"):
        Evaluation.load(run)


def test_logits_are_those_of_raw_directions(run_small, tmp_path: Path) -> None:
    """Each model's own direction, at the latent's mean activation, through that model's own unembedding."""
    run_small("feb_diffing_l1", n_models=2, n_shared=8, num_steps=5)
    coder = crosscode.load(tmp_path / "run" / "coder")
    data = held_out_of(coder, RunOptions.read(tmp_path / "run" / OPTIONS))
    latents_E, mean_E = torch.tensor([3, 20]), torch.tensor([1.0, 2.5])
    found = attribute_logits(coder, data, latents_E, mean_E, k=4)
    assert found is not None
    raw_LMPD = coder.decoder.dense().detach() / coder.scale_out_Xo[..., None]
    for m, model in enumerate(data.harvester.models):
        assert isinstance(model, ReadOutModel)
        logits_EV = einsum(raw_LMPD[latents_E, m, 0] * mean_E[:, None], model.unembedding(), "E D, D V -> E V")
        logits_EV = logits_EV - logits_EV.mean(-1, keepdim=True)
        torch.testing.assert_close(found.rise_EMK[:, m], logits_EV.topk(4).values)
        torch.testing.assert_close(found.fall_EMK[:, m], logits_EV.topk(4, largest=False).values)
        torch.testing.assert_close(logits_EV.gather(1, found.highest_EMK[:, m]), found.rise_EMK[:, m])


def test_which_sites_are_on_the_direct_path() -> None:
    """The last place of the residual stream; without one, what is added to it; nothing else."""
    assert direct_sites(["blocks.1.hook_resid_pre", "blocks.2.hook_resid_post"]) == ("blocks.2.hook_resid_post",)
    assert direct_sites(["blocks.11.hook_resid_pre", "blocks.2.hook_resid_post"]) == ("blocks.11.hook_resid_pre",)
    assert direct_sites(["blocks.2.hook_resid_post", "blocks.2.hook_resid_mid"]) == ("blocks.2.hook_resid_post",)
    added = ("blocks.0.hook_mlp_out", "blocks.1.hook_attn_out")
    assert direct_sites(added) == added
    assert direct_sites(["blocks.1.mlp.hook_in", "blocks.0.attn.hook_z", "ln_final.hook_normalized"]) == ()


def test_examples_are_of_latents_worth_looking_at() -> None:
    """All that fired if they are few; else the most one-sided and some of every density, as many as asked for."""
    rho_L = torch.full((1000,), 0.5)
    rho_L[:30], rho_L[30:60] = 0.05, 0.95
    latents = {"count_L": torch.arange(1000), "relative_norm_L": rho_L}
    assert worth_looking_at(latents, 1000).tolist() == list(range(1, 1000))
    chosen = worth_looking_at(latents, 100)
    assert 98 <= len(chosen) <= 100
    assert int((chosen < 60).sum()) >= 50
    others = chosen[chosen >= 60]
    assert others.diff().max() < 100, "spread over densities"
    del latents["relative_norm_L"]
    assert worth_looking_at(latents, 100).diff().max() < 20
