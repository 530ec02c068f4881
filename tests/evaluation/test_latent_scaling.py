"""Latent scaling against an explicit least-squares fit, and what it says about latents whose story is known."""

from collections.abc import Sequence
from math import cos, radians, sin

import pytest
import torch
from strategies import in_eval_mode, random_batch, random_coder
from torch import Tensor

from crosscode.activations import BatchTopK, ReLU, TopK
from crosscode.batch import Batch
from crosscode.errors import BadInput
from crosscode.evaluation import LatentScaling, latent_scaling
from crosscode.initialization import AnthropicTranspose
from crosscode.models import SparseCoder, Trace, acausal_crosscoder, sae
from crosscode.training import calibrate

BETAS = ("beta_error_own_L", "beta_error_other_L", "beta_recon_own_L", "beta_recon_other_L")


def best_scale(f_N: Tensor, d_O: Tensor, target_NO: Tensor) -> float:
    """`argmin_beta sum_n ||t_n - beta f_n d||^2`, by `lstsq` on the whole problem; NaN where nothing is fitted."""
    explained = (f_N[:, None] * d_O).flatten()[:, None]
    if not explained.any():
        return float("nan")
    return float(torch.linalg.lstsq(explained, target_NO.flatten()[:, None]).solution)


def directly(coder: SparseCoder, batch: Batch, own: int, other: int) -> dict[str, list[float]]:
    """Every beta, one latent and one fit at a time, from a dense forward pass."""
    trace = Trace.of(coder, batch)
    f_NL, W_LMO = trace.latents.dense(), coder.decoder.dense().flatten(2)
    a_NMO, recon_NMO = trace.targets_BXoDo.flatten(2), trace.recon_BXoDo.flatten(2)
    found: dict[str, list[float]] = {name: [] for name in BETAS}
    for f_N, W_MO in zip(f_NL.T, W_LMO):
        for who, m in (("own", own), ("other", other)):
            without_NO = recon_NMO[:, m] - f_N[:, None] * W_MO[m]
            found[f"beta_error_{who}_L"].append(best_scale(f_N, W_MO[own], a_NMO[:, m] - without_NO))
            found[f"beta_recon_{who}_L"].append(best_scale(f_N, W_MO[own], recon_NMO[:, m]))
    return found


@pytest.mark.parametrize(
    ("shape", "activation"),
    [
        ("crosscoder", "topk"),
        ("crosscoder", "jumprelu"),
        ("crosscoder", "relu"),
        ("shared", "batch_topk"),
        ("shared", "jumprelu"),
        ("masked", "topk_unweighted"),
        ("no_bias", "groupmax"),
    ],
)
@torch.no_grad()
def test_every_beta_is_the_least_squares_fit(shape: str, activation: str) -> None:
    """Both targets, both models, both directions, sparse and dense codes, two hookpoints laid end to end."""
    coder = random_coder(shape, activation)
    batch = random_batch(coder, 40)
    in_eval_mode(coder, batch.inputs_BXiDi)
    for own, scaling in enumerate(latent_scaling(coder, [batch])):
        assert (scaling.own, scaling.other) == (own, 1 - own)
        for name, wanted in directly(coder, batch, own, 1 - own).items():
            assert getattr(scaling, name).tolist() == pytest.approx(wanted, rel=1e-9, abs=1e-9, nan_ok=True), name
        assert torch.equal(scaling.count_L, coder.encode(batch.inputs_BXiDi).count_L())


def three_models(dtype: torch.dtype) -> tuple[SparseCoder, Batch]:
    """A calibrated crosscoder of three models and two hookpoints, left in training mode."""
    generator = torch.Generator().manual_seed(0)
    coder = acausal_crosscoder(n_models=3, n_hookpoints=2, d_model=4, n_latents=16, activation=BatchTopK(3))
    AnthropicTranspose(1.0)(coder, [])
    coder = coder.to(dtype)
    x_NMPD = torch.randn(60, 3, 2, 4, generator=generator).to(dtype)
    x_NMPD[0] = 0  # a token that nothing fires on
    batch = Batch.autoencode(x_NMPD)
    calibrate(coder, [batch])
    return coder.train(), batch


def assert_same(one: LatentScaling, other: LatentScaling, rel: float) -> None:
    for name in (*BETAS, "relative_norm_L", "count_L"):
        assert getattr(one, name).tolist() == pytest.approx(getattr(other, name).tolist(), rel=rel, abs=rel), name


def test_batches_do_not_matter() -> None:
    """Sums run over all tokens; in eval mode a token's latents are its own, and the mode is put back."""
    coder, batch = three_models(torch.float64)
    whole = latent_scaling(coder, [batch], models=(2, 0))
    parts = [Batch.autoencode(part) for part in batch.inputs_BXiDi.split([1, 2, 7, 50])]
    for one, other in zip(latent_scaling(coder, parts, models=(2, 0)), whole):
        assert_same(one, other, 1e-9)
    assert coder.training


@torch.no_grad()
def test_a_pair_of_three_models_is_those_two() -> None:
    """By number and in the order given."""
    coder, batch = three_models(torch.float64)
    two, nought = latent_scaling(coder, [batch], models=(2, 0))
    assert (two.own, two.other, nought.own, nought.other) == (2, 0, 0, 2)
    for scaling in (two, nought):
        for name, wanted in directly(coder.eval(), batch, scaling.own, scaling.other).items():
            assert getattr(scaling, name).tolist() == pytest.approx(wanted, rel=1e-9, nan_ok=True)
    norms_LM = coder.decoder.norms_LXo().sum(-1)
    assert two.relative_norm_L.tolist() == pytest.approx((norms_LM[:, 2] / (norms_LM[:, 2] + norms_LM[:, 0])).tolist())


def test_a_float32_coder_gives_the_float64_figures_to_its_precision() -> None:
    """Products in the coder's own precision, sums in float64."""
    exact, rounded = (
        latent_scaling(coder, [batch], models=(0, 1))
        for coder, batch in (three_models(torch.float64), three_models(torch.float32))
    )
    for one, other in zip(rounded, exact):
        assert one.beta_error_own_L.dtype == torch.float64
        assert_same(one, other, 1e-4)


@torch.no_grad()
def test_the_decoder_bias_can_be_left_out_of_reconstructions() -> None:
    """Fits of the reconstruction less `b_dec` are those of a coder without; error fits have never depended on it."""
    coder = random_coder("crosscoder", "topk").eval()
    batch = random_batch(coder, 30)
    with_bias, less_bias = (latent_scaling(coder, [batch], subtract_bias=b)[0] for b in (False, True))
    assert torch.equal(with_bias.beta_error_other_L.nan_to_num(), less_bias.beta_error_other_L.nan_to_num())
    coder.decoder.b_dec_XoDo.zero_()
    without = latent_scaling(coder, [batch])[0]
    for name in ("beta_recon_own_L", "beta_recon_other_L"):
        assert getattr(less_bias, name).tolist() == pytest.approx(getattr(without, name).tolist(), nan_ok=True)
        assert getattr(less_bias, name).tolist() != pytest.approx(getattr(with_bias, name).tolist(), nan_ok=True)


# What is planted: features with orthogonal directions in a chat model and a base model of width 6.
SPECIFIC, SHRUNK, DECOUPLED, SHARED, SILENT, BASE_TWIN = range(6)


def planted(angle: float) -> tuple[SparseCoder, Batch]:
    """A crosscoder (base, chat) whose latents' stories are known, and activations.

    Feature 0 is chat's alone. Feature 1 is in both, but its latent writes to chat only (complete shrinkage). Feature
    2 is in both, in base turned by an angle towards an empty direction, and each model has a latent of its own for
    it (decoupling). Feature 3 is shared as it should be. One latent never fires.
    """
    generator = torch.Generator().manual_seed(0)
    eye_DD = torch.eye(6)
    turned = cos(radians(angle)) * eye_DD[2] + sin(radians(angle)) * eye_DD[5]
    chat_FD, base_FD = eye_DD[:4], torch.stack([torch.zeros(6), eye_DD[1], turned, eye_DD[3]])
    f_NF = torch.rand(2000, 4, generator=generator) * (torch.rand(2000, 4, generator=generator) < 0.3)
    x_NMD = torch.stack([f_NF @ base_FD, f_NF @ chat_FD], dim=1) + 0.01 * torch.randn(2000, 2, 6, generator=generator)
    coder = acausal_crosscoder(n_models=2, n_hookpoints=1, d_model=6, n_latents=6, activation=ReLU())
    W_enc_MDL, W_dec_LMD = torch.zeros(2, 6, 6), torch.zeros(6, 2, 6)
    for latent, feature in ((SPECIFIC, 0), (SHRUNK, 1), (DECOUPLED, 2), (SHARED, 3)):
        W_enc_MDL[1, :, latent] = W_dec_LMD[latent, 1] = chat_FD[feature]
    W_enc_MDL[0, :, BASE_TWIN] = W_dec_LMD[BASE_TWIN, 0] = turned
    W_dec_LMD[SHARED, 0] = base_FD[3]
    W_dec_LMD[SILENT, 1] = eye_DD[5]
    coder.encoder.assign_(W_enc_MDL[:, None])
    coder.decoder.assign_(W_dec_LMD[:, :, None])
    with torch.no_grad():
        coder.encoder.b_enc_L.fill_(-0.05)
        coder.encoder.b_enc_L[SILENT] = -100
    return coder, Batch.autoencode(x_NMD[:, :, None])


def test_planted_stories_are_told_apart() -> None:
    """A one-sided latent is specific; a shrunk one shows by `nu_error` alone, a decoupled one by `nu_recon` alone."""
    coder, batch = planted(angle=30.0)
    base, chat = latent_scaling(coder, [batch])
    assert chat.specific_L().tolist() == [True, False, False, False, False, False]
    assert chat.nu_error_L[SPECIFIC].abs() < 0.1
    assert chat.nu_recon_L[SPECIFIC].abs() < 0.1
    assert chat.nu_error_L[SHRUNK] > 0.9
    assert chat.nu_recon_L[SHRUNK].abs() < 0.1
    assert chat.nu_error_L[DECOUPLED].abs() < 0.2
    assert chat.nu_recon_L[DECOUPLED] == pytest.approx(3**0.5 / 2, abs=0.1)  # the cosine of 30 degrees
    assert chat.nu_error_L[SHARED] == pytest.approx(1, abs=0.1)
    assert chat.nu_recon_L[SHARED] == pytest.approx(1, abs=0.1)
    for name in BETAS:
        assert getattr(chat, name)[SILENT].isnan()
        assert getattr(base, name)[SPECIFIC].isnan(), "it has no direction in base"
    assert chat.verdicts() == chat.verdicts(torch.tensor([True, True, True, False, True, False]))
    counts = chat.verdicts()
    assert (counts.n_candidates, counts.n_specific, counts.n_undefined) == (4, 1, 1)
    assert (counts.n_complete_shrinkage, counts.n_latent_decoupling) == (1, 1)
    assert base.verdicts().n_latent_decoupling == 1
    assert base.verdicts().n_candidates == 1


def test_a_duplicate_turned_far_away_is_no_duplicate() -> None:
    """At a right angle the two latents have nothing in common: both are specific to their models."""
    coder, batch = planted(angle=90.0)
    base, chat = latent_scaling(coder, [batch])
    assert chat.specific_L().tolist() == [True, False, True, False, False, False]
    assert base.specific_L().tolist() == [False] * 5 + [True]


def scaling_of(nu_error: Sequence[float], nu_recon: Sequence[float], rho: Sequence[float]) -> LatentScaling:
    ones_L = torch.ones(len(rho), dtype=torch.float64)
    as_is = [torch.tensor(numbers, dtype=torch.float64) for numbers in (nu_error, nu_recon, rho)]
    return LatentScaling(1, 0, ones_L, as_is[0], ones_L, as_is[1], as_is[2], torch.ones(len(rho), dtype=torch.int64))


def test_cut_offs_can_be_changed_afterwards() -> None:
    """Counts are a function of what was measured; a ratio at its cut-off is not below it."""
    nan = float("nan")
    scaling = scaling_of([0.1, 0.2, 0.25, 0.9, nan, 0.1], [0.1, 0.4, 0.5, 0.9, nan, 0.4], [1, 1, 0.95, 0.9, 1, 0.5])
    default, plots = scaling.verdicts(), scaling.verdicts(nu_error=0.3, nu_recon=0.3)
    assert (default.n_candidates, default.n_specific, default.n_undefined) == (5, 1, 1)
    assert (default.n_complete_shrinkage, default.n_latent_decoupling) == (3, 2)
    assert (plots.n_specific, plots.n_complete_shrinkage, plots.n_latent_decoupling) == (1, 1, 3)
    assert scaling.verdicts(0.96).n_candidates == 3
    assert scaling.verdicts(torch.ones(6, dtype=torch.bool)).n_specific == 2
    with pytest.raises(BadInput, match="candidates has 2 entries for 6 latents"):
        scaling.verdicts(torch.ones(2, dtype=torch.bool))


def test_what_cannot_be_compared_is_refused() -> None:
    """One model, three models without a choice, a model with itself, a model that is not there, unequal widths."""
    three, batch = three_models(torch.float32)
    ragged = random_coder("ragged", "topk")
    plain = sae(4, 8, TopK(2))
    for coder, options, message in [
        (three, {}, "models must name two of the 3"),
        (plain, {}, "models must name two of the 1"),
        (three, {"models": (1, 1)}, r"models=\(1, 1\) must be two different numbers from 0 to 2"),
        (three, {"models": (0, 3)}, r"models=\(0, 3\) must be two different numbers from 0 to 2"),
        (ragged, {}, r"have widths \[5\] and \[3\]"),
        (three, {"n_tokens": 0}, "n_tokens=0 is too small"),
    ]:
        with pytest.raises(BadInput, match=message):
            latent_scaling(coder, [batch], **options)
