"""Faults of an earlier implementation, in initialization: the right value beside the wrong one."""

import math

import pytest
import torch
from strategies import L, random_batch

from crosscode.activations import JumpReLU, ReLU, TopK
from crosscode.batch import Batch
from crosscode.errors import BadInput
from crosscode.initialization import (
    AnthropicTranspose,
    CLTUniform,
    IdenticalLatents,
    JanUpdate,
    NormalizeActivations,
    OrthogonalSkip,
    SameAcrossSites,
    ZeroDecoderSkip,
    jumprelu,
)
from crosscode.initialization.data import scaled_inputs, scaled_targets
from crosscode.initialization.jumprelu import quantile_L
from crosscode.models import (
    DenseDecoder,
    DenseEncoder,
    SharedDecoder,
    SparseCoder,
    acausal_crosscoder,
    cross_layer_transcoder,
    sae,
)


def test_the_january_updates_shared_latents_are_as_large_as_the_others() -> None:
    """`U(+-1/sqrt(n))`: tying draws that differ between models would shrink them by sqrt(M)."""
    jumprelu = JumpReLU(4000)
    coder = SparseCoder(DenseEncoder((2, 1), 8, 4000), jumprelu, SharedDecoder(4000, 2000, (2, 1), 8))
    JanUpdate(jumprelu, firing_rate=0.3)(coder, batches(coder))
    for half in (coder.decoder.W_shared_LsPD, coder.decoder.W_exclusive_LfMPD):
        assert half.std().item() == pytest.approx(1 / math.sqrt(16) / math.sqrt(3), rel=0.01)
        assert 0.249 < half.abs().max().item() <= 0.25


def test_padding_does_not_count_as_width() -> None:
    """`n` of the January update and `P D` of the CLT's start are of real coordinates: 10, not 16."""
    jumprelu = JumpReLU(4000)
    coder = acausal_crosscoder(
        n_models=2, n_hookpoints=1, d_model=8, n_latents=4000, activation=jumprelu, widths_X=(8, 2)
    )
    for start in (JanUpdate(jumprelu, firing_rate=0.3), CLTUniform()):
        start(coder, batches(coder))
        assert coder.decoder.dense().abs().max().item() == pytest.approx(1 / math.sqrt(10), rel=0.01)


def batches(coder: SparseCoder, n: int = 3) -> list[Batch]:
    return [random_batch(coder, 40, seed) for seed in range(n)]


@pytest.mark.parametrize("start", [AnthropicTranspose(0.1), SameAcrossSites(0.1)])
def test_norms_are_those_of_one_latents_vectors(start) -> None:
    """Fault 16: normalised over the latents instead, a vector of D = 64 among L = 1024 would have norm 0.025."""
    coder = acausal_crosscoder(n_models=2, n_hookpoints=1, d_model=64, n_latents=1024, activation=ReLU())
    start(coder, batches(coder, 1))
    assert 0.1 * math.sqrt(64 / 1024) == pytest.approx(0.025)
    torch.testing.assert_close(coder.decoder.norms_LXo(), torch.full((1024, 2, 1), 0.1))
    torch.testing.assert_close(coder.encoder.weights().norm(dim=-2), torch.full((2, 1, 1024), 0.1))


@pytest.mark.parametrize("start", [ZeroDecoderSkip(norm=2.0), OrthogonalSkip(norm=2.0)])
def test_a_transcoder_starts_at_the_mean(start) -> None:
    """Fault 17: nothing is left uninitialised: the first prediction is the mean target for the mean input."""
    coder = cross_layer_transcoder(4, 3, L, TopK(2, weighted=False), skip=True, skip_targets=(0, 2))
    data = batches(coder)
    NormalizeActivations()(coder, data)
    start(coder, data)
    assert (coder.decoder.dense() == 0).all()
    torch.testing.assert_close(coder.encoder.weights().norm(dim=0), torch.full((L,), 2.0))
    x_BD = torch.cat([batch.inputs_BXiDi for batch in data])
    y_BPD = torch.cat([batch.targets_BXoDo for batch in data])
    torch.testing.assert_close(coder(x_BD.mean(0, keepdim=True))[0], y_BPD.mean(0))
    assert (coder.skip.weights()[:, 1] == 0).all()


def test_a_zero_decoder_and_a_weighted_ranking_are_refused() -> None:
    """Every weighted score would be 0, so nothing would ever fire."""
    coder = cross_layer_transcoder(4, 3, L, TopK(2))
    with pytest.raises(BadInput, match="weighted=False"):
        ZeroDecoderSkip()(coder, batches(coder))


@pytest.mark.parametrize("shared", [False, True])
def test_the_encoder_is_the_transpose_of_the_tied_decoder(shared: bool) -> None:
    """Fault 13: tying after the encoder was derived would leave `W_enc != W_dec^T` for the shared latents."""
    decoder = SharedDecoder(L, 5, (2, 1), 4) if shared else DenseDecoder(L, (2, 1), 4)
    coder = SparseCoder(DenseEncoder((2, 1), 4, L), ReLU(), decoder)
    AnthropicTranspose(1.0)(coder, [])
    if not shared:
        IdenticalLatents(5)(coder, [])
    W_dec_LMPD = coder.decoder.dense()
    assert torch.equal(W_dec_LMPD[:5, 0], W_dec_LMPD[:5, 1])
    assert not torch.equal(W_dec_LMPD[5:, 0], W_dec_LMPD[5:, 1])
    assert torch.equal(coder.encoder.weights().movedim(-1, 0), W_dec_LMPD)
    torch.testing.assert_close(coder.decoder.norms_LXo(), torch.ones(L, 2, 1))


def test_the_january_decoder_is_uniform_in_one_over_root_n() -> None:
    """Fault 27: 1/n, an erratum's mistake, would start with a decoder that writes almost nothing."""
    jumprelu = JumpReLU(2048)
    coder = sae(64, 2048, jumprelu)
    JanUpdate(jumprelu)(coder, batches(coder))
    W_LD = coder.decoder.dense()
    assert W_LD.abs().max().item() == pytest.approx(1 / math.sqrt(64), rel=1e-3)
    assert W_LD.abs().max().item() > 1 / 64
    torch.testing.assert_close(coder.encoder.weights(), W_LD.t() * 64 / 2048)
    product_DD = coder.encoder.weights() @ W_LD  # the unthresholded map is about a third of the identity
    assert product_DD.diagonal().mean().item() == pytest.approx(1 / 3, rel=0.05)


def test_calibration_goes_by_chunks_of_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fault 29: tokens x latents is never held at once; chunks of any size give the same quantiles."""
    coder = sae(4, L, JumpReLU(L)).double()
    AnthropicTranspose(1.0)(coder, [])
    data = batches(coder)
    whole_L = quantile_L(coder, data, 0.3, 120)
    widest: list[int] = []
    linear = coder.encoder.linear

    def watched(x_BXiDi, latents_l=None):
        u_Nl = linear(x_BXiDi, latents_l)
        widest.append(u_Nl.shape[1])
        return u_Nl

    monkeypatch.setattr(coder.encoder, "linear", watched)
    monkeypatch.setattr(jumprelu, "MOST_QUANTILE_ELEMENTS", 120 * 4 * 5)
    torch.testing.assert_close(quantile_L(coder, data, 0.3, 120), whole_L)
    assert widest == [5, 5, 2]


@pytest.mark.parametrize("scaled", [scaled_inputs, scaled_targets])
def test_calibration_measures_on_the_coders_device(scaled) -> None:
    """Fault 29: the data is moved, batch by batch; on `meta`, left where it was it could not be scaled at all."""
    data = batches(sae(4, L, ReLU()))
    x_ND = scaled(sae(4, L, ReLU()).to("meta"), data, 100)
    assert x_ND.device.type == "meta"
    assert x_ND.shape == (120, 4)


@pytest.mark.parametrize(
    "start", [AnthropicTranspose(1.0), SameAcrossSites(), CLTUniform(), IdenticalLatents(3), NormalizeActivations()]
)
def test_starts_draw_from_their_own_seed(start) -> None:
    """The same seed gives the same coder; the global random state neither matters nor changes."""
    weights = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        coder = acausal_crosscoder(n_models=2, n_hookpoints=1, d_model=4, n_latents=L, activation=ReLU())
        start(coder, batches(coder))
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(torch.cat([p.detach().flatten() for p in coder.parameters()]))
    assert torch.equal(*weights)


def test_other_seeds_draw_other_directions() -> None:
    """Two seeds, two coders."""
    coders = [sae(4, L, ReLU()) for _ in range(2)]
    for seed, coder in enumerate(coders):
        AnthropicTranspose(seed=seed)(coder, [])
    assert not torch.equal(coders[0].decoder.dense(), coders[1].decoder.dense())
