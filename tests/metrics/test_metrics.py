"""Sums first, divide once: many batches give what one big batch would."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import ACTIVATIONS, N_SITES, L, in_eval_mode, random_batch, random_coder

from crosscode.activations import JumpReLU, ReLU
from crosscode.batch import Batch
from crosscode.errors import BadInput
from crosscode.metrics import (
    FVU,
    L0,
    Dead,
    DecoderCosine,
    DecoderNormRatio,
    Density,
    ReconstructionBias,
    Thresholds,
    measure,
)
from crosscode.models import SparseCoder, Trace, sae

SHARED_L = torch.arange(L) < 5
SITES = {f"site_{p}": torch.arange(L) * N_SITES // L == p for p in range(N_SITES)}
GROUPS = {"shared": SHARED_L, "exclusive": ~SHARED_L, **SITES}
METRICS = [FVU(), ReconstructionBias(), L0(GROUPS), Density(), DecoderNormRatio(), DecoderCosine()]


def trained(shape: str = "crosscoder", activation: str = "jumprelu") -> tuple[SparseCoder, Batch]:
    coder = random_coder(shape, activation)
    batch = random_batch(coder, 60)
    return in_eval_mode(coder, batch.inputs_BXiDi), batch


def split(batch: Batch, *sizes: int) -> list[Batch]:
    inputs, targets = batch.inputs_BXiDi.split(list(sizes)), batch.targets_BXoDo.split(list(sizes))
    return [Batch(x, y) for x, y in zip(inputs, targets)]


@pytest.mark.parametrize("shape", ["crosscoder", "shared", "ragged", "clt", "compound", "sae"])
def test_parts_measure_what_the_whole_measures(shape: str) -> None:
    """Every metric, over parts of unequal size."""
    coder, batch = trained(shape)
    metrics = METRICS if coder.decoder.out_dims[:1] == (2,) else METRICS[:4]
    whole = measure(metrics, [Trace.of(coder, batch)])
    parts = measure(metrics, (Trace.of(coder, part) for part in split(batch, 7, 1, 40, 12)))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        torch.testing.assert_close(torch.as_tensor(parts[name]), torch.as_tensor(value), msg=name)


def test_fvu_is_the_same_in_raw_and_in_scaled_space() -> None:
    """Per site: variance and error scale alike. The pooled figure is that of scaled space."""
    coder, batch = trained()
    found = measure([FVU((("base", "tuned"), ("early", "late")))], [Trace.of(coder, batch)])
    y, error = batch.targets_BXoDo, batch.targets_BXoDo - coder(batch.inputs_BXiDi)
    raw_MP = error.square().sum((0, -1)) / (y - y.mean(0)).square().sum((0, -1))
    for m, model in enumerate(("base", "tuned")):
        for p, hookpoint in enumerate(("early", "late")):
            assert found[f"fvu/{model}/{hookpoint}"] == pytest.approx(raw_MP[m, p].item(), rel=1e-9)
    weights_MP = (y - y.mean(0)).square().sum((0, -1)) * coder.scale_out_Xo.square()
    pooled = ((raw_MP * weights_MP).sum() / weights_MP.sum()).item()
    assert found["fvu/pooled"] == pytest.approx(pooled, rel=1e-9)


def test_fvu_survives_a_large_mean() -> None:
    """A variance of 1 about a mean of a thousand does not cancel, in float32 as well."""
    coder, batch = trained("sae")
    far = Batch.autoencode(batch.inputs_BXiDi.float() + 1000)
    coder = coder.float()
    coder.scale_in_Xi.fill_(1)
    coder.scale_out_Xo.fill_(1)
    coder.shift_in_XiDi.fill_(1000)
    coder.shift_out_XoDo.fill_(1000)
    near = Batch.autoencode(far.inputs_BXiDi - 1000)
    coder_near = random_coder("sae", "jumprelu").float()
    no_shift = {"shift_in_XiDi": torch.zeros(4), "shift_out_XoDo": torch.zeros(4)}
    coder_near.load_state_dict({**coder.state_dict(), **no_shift})
    got = measure([FVU()], [Trace.of(coder, far)])["fvu"]
    assert got == pytest.approx(measure([FVU()], [Trace.of(coder_near, near)])["fvu"], rel=1e-3)


def test_a_perfect_reconstruction_has_fvu_zero_and_predicting_the_mean_one() -> None:
    """The two ends of the scale."""
    coder, batch = trained("sae", "relu")
    trace = Trace.of(coder, batch)
    targets = trace.recon_BXoDo.detach()
    perfect = Trace(coder, trace.inputs_BXiDi, targets, trace.latents, trace.tokens_since_fired_L)
    assert measure([FVU(), ReconstructionBias()], [perfect]) == pytest.approx(
        {"fvu": 0.0, "fvu/pooled": 0.0, "reconstruction_bias": 1.0}
    )
    with torch.no_grad():
        coder.decoder.W_dec_LXoDo.zero_()
        coder.decoder.b_dec_XoDo.copy_(coder.scale_targets(batch.targets_BXoDo).mean(0))
    assert measure([FVU()], [Trace.of(coder, batch)])["fvu"] == pytest.approx(1.0)


def test_a_shrunk_reconstruction_has_a_bias_above_one() -> None:
    """Reconstructions at half size: the best rescaling doubles them."""
    coder, batch = trained("sae", "relu")
    trace = Trace.of(coder, batch)
    targets = 2 * trace.recon_BXoDo.detach()
    shrunk = Trace(coder, trace.inputs_BXiDi, targets, trace.latents, trace.tokens_since_fired_L)
    assert measure([ReconstructionBias()], [shrunk])["reconstruction_bias"] == pytest.approx(2.0)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_l0_counts_latents_that_fire(activation: str) -> None:
    """Mean, percentiles and parts, against a count of the dense latents."""
    coder, batch = trained("compound", activation)
    trace = Trace.of(coder, batch)
    fired_BL = trace.latents_BL > 0
    found = measure([L0(GROUPS)], [trace])
    l0_B = fired_BL.sum(-1).double()
    assert found["l0/mean"] == pytest.approx(l0_B.mean().item())
    assert found["l0/p50"] == l0_B.quantile(0.5).item()
    assert found["l0/p5"] <= found["l0/p50"] <= found["l0/p95"]
    assert found["l0/shared"] == pytest.approx(fired_BL[:, :5].sum().item() / 60)
    assert found["l0/shared"] + found["l0/exclusive"] == pytest.approx(found["l0/mean"])
    assert sum(found[f"l0/site_{p}"] for p in range(N_SITES)) == pytest.approx(found["l0/mean"])


@settings(max_examples=50, deadline=None, derandomize=True)
@given(batches=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=1, max_size=4))
def test_l0_percentiles_are_those_of_all_tokens(batches: list[list[int]]) -> None:
    """From how many tokens have which L0, however batches are cut; `torch.quantile` wants all tokens at once."""
    coder = sae(10, 10, ReLU()).double()
    with torch.no_grad():
        coder.encoder.assign_(torch.eye(10, dtype=torch.float64))
        coder.encoder.b_enc_L.zero_()
    inputs = [(torch.arange(10) < torch.tensor(l0_B)[:, None]).double() for l0_B in batches]
    found = measure([L0()], [Trace.of(coder, Batch.autoencode(x_BD)) for x_BD in inputs])
    l0_N = torch.cat(inputs).sum(-1)
    for p in (5, 50, 95):
        assert found[f"l0/p{p}"] == pytest.approx(l0_N.quantile(p / 100).item())
    assert found["l0/mean"] == pytest.approx(l0_N.mean().item())


def test_density_is_the_share_of_tokens_a_latent_fires_on() -> None:
    """Those that never fire are counted, and left out of the logarithms."""
    coder, batch = trained("sae", "topk")
    with torch.no_grad():
        coder.encoder.b_enc_L[2] = -1000
        coder.encoder.b_enc_L[7] = 1000
    fired_BL = Trace.of(coder, batch).latents_BL > 0
    found = measure([Density()], [Trace.of(coder, part) for part in split(batch, 20, 40)])
    density_L = fired_BL.double().mean(0)
    assert density_L[7] == 1
    assert found["density/never"] == pytest.approx((density_L == 0).double().mean().item())
    assert found["density/never"] >= 1 / L
    assert found["density/above_10_percent"] == pytest.approx((density_L > 0.1).double().mean().item())
    torch.testing.assert_close(found["density/log10"], density_L[density_L > 0].log10())


def test_dead_is_read_off_the_training_counters() -> None:
    """The last trace's counters count."""
    coder, batch = trained("sae", "relu")
    silent_L = torch.arange(L)
    trace = Trace.of(coder, batch, silent_L)
    assert measure([Dead(after_tokens=9)], [trace])["dead"] == 3 / L
    with pytest.raises(BadInput, match="after_tokens=0"):
        Dead(after_tokens=0)


def test_cosines_of_tied_latents_are_one_and_of_zero_latents_undefined() -> None:
    """A latent that one model does not write is left out, not counted as 0."""
    coder, batch = trained("shared")
    with torch.no_grad():
        coder.decoder.W_exclusive_LfMPD[2, 1] = 0
    cosine = measure([DecoderCosine()], [Trace.of(coder, batch)])["decoder_cosine"]
    assert len(cosine) == L * 2 - 2
    torch.testing.assert_close(cosine[: 5 * 2], torch.ones(10).double())
    assert cosine.isfinite().all()
    assert (cosine.abs() <= 1 + 1e-12).all()


def test_relative_norms_are_counted_at_both_ends() -> None:
    """Latents that only one model writes have 0 or 1; equal norms have 0.5."""
    coder, batch = trained("shared")
    with torch.no_grad():
        coder.decoder.W_exclusive_LfMPD[0, 1] = 0
        coder.decoder.W_exclusive_LfMPD[1:3, 0] = 0
    found = measure([DecoderNormRatio()], [Trace.of(coder, batch)])
    rho_L = found["relative_norm"]
    torch.testing.assert_close(rho_L[:5], torch.full((5,), 0.5).double())
    assert rho_L[5:8].tolist() == [0, 1, 1]
    assert found["relative_norm/below_0.1"] >= 1 / L
    assert found["relative_norm/above_0.9"] >= 2 / L


def test_thresholds_are_in_natural_units() -> None:
    """Whatever their parametrisation."""
    coder, batch = trained("sae", "jumprelu")
    assert isinstance(coder.activation, JumpReLU)
    coder.activation.set_threshold_(torch.linspace(0.5, 1.6, L).double())
    found = measure([Thresholds(coder.activation)], [Trace.of(coder, batch)])
    torch.testing.assert_close(found["threshold"], torch.linspace(0.5, 1.6, L).double())
    assert found["threshold/mean"] == pytest.approx(1.05)
