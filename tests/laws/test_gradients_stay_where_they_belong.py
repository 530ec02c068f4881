"""Gradients that must be zero, and gradients that must add up."""

import pytest
import torch
from strategies import ACTIVATIONS, MASK_LX, N_SHARED, SHAPES, L, random_batch, random_coder

from crosscode.losses import SummedSquaredError
from crosscode.models import DenseDecoder, SparseCoder, Trace
from crosscode.penalties import AuxK, L1OfNorms, TanhSparsity

DEAD = [1, 4, 5, 9]
LIVE = [latent for latent in range(L) if latent not in DEAD]
SILENT_L = torch.zeros(L, dtype=torch.int64)
SILENT_L[DEAD] = 100


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_masked_weights_do_not_exist(activation: str) -> None:
    """Between a latent and a site that it may not touch nothing is stored, stepped or set; what is stored learns."""
    coder = random_coder("masked", activation)
    trace = Trace.of(coder, random_batch(coder), SILENT_L)
    (SummedSquaredError()(trace) + L1OfNorms()(trace) + AuxK(3, 50)(trace)).backward()
    forbidden_LX = MASK_LX == 0
    stored = sum(W.numel() for W in coder.encoder.W_enc_XgDiLg)
    assert stored == sum(W.numel() for W in coder.decoder.W_dec_LgXgDo) == 3 * int(MASK_LX.sum())
    assert all((W.grad != 0).any() for W in (*coder.encoder.W_enc_XgDiLg, *coder.decoder.W_dec_LgXgDo))
    with torch.no_grad():
        coder.encoder.assign_(torch.ones(2, 2, 3, L))
        coder.decoder.assign_(torch.ones(L, 2, 2, 3))
    read_LXD = coder.encoder.weights().reshape(4, 3, L).permute(2, 0, 1)
    for W_LXD in (read_LXD, coder.decoder.dense().reshape(L, 4, 3)):
        assert (W_LXD[forbidden_LX] == 0).all()
        assert (W_LXD[~forbidden_LX] == 1).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_aux_k_trains_dead_latents_only(shape: str, activation: str) -> None:
    """No gradient on a live latent's encoder, bias or directions, nor on thresholds, decoder bias or skip."""
    coder = random_coder(shape, activation)
    AuxK(3, dead_after_tokens=50)(Trace.of(coder, random_batch(coder), SILENT_L)).backward()
    for name, parameter in coder.named_parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if name in ("decoder.b_dec_XoDo", "skip.W_skip_XiDiXoDo") or "threshold" in name:
            assert (gradient == 0).all(), name
    if coder.encoder.b_enc_L is not None:
        assert (coder.encoder.b_enc_L.grad[LIVE] == 0).all()
        assert (coder.encoder.b_enc_L.grad[DEAD] != 0).any()
    with torch.no_grad():  # a step along the gradient moves no live latent
        W_enc, W_dec = coder.encoder.weights().clone(), coder.decoder.dense().clone()
        for parameter in coder.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad)
        assert torch.equal(coder.encoder.weights()[..., LIVE], W_enc[..., LIVE])
        assert torch.equal(coder.decoder.dense()[LIVE], W_dec[LIVE])
        assert not torch.equal(coder.decoder.dense()[DEAD], W_dec[DEAD])


PENALTIES = {
    "l1": L1OfNorms(),
    "l2": L1OfNorms("l2"),
    "tanh": TanhSparsity(),
    "tanh of one model": TanhSparsity(norm="single_model", latents=slice(0, N_SHARED)),
    "aux_k": AuxK(3, dead_after_tokens=50),
}


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_tied_gradient_is_the_sum_of_the_untied_ones(activation: str, penalty: str) -> None:
    """The shared half of a diffing decoder against a dense decoder with equal halves."""
    tied = random_coder("shared", activation)
    untied = SparseCoder(tied.encoder, tied.activation, DenseDecoder(L, (2, 2), 3)).double()
    untied.load_state_dict({k: v for k, v in tied.state_dict().items() if "decoder" not in k}, strict=False)
    untied.decoder.assign_(tied.decoder.dense())
    with torch.no_grad():
        untied.decoder.b_dec_XoDo.copy_(tied.decoder.b_dec_XoDo)
    batch = random_batch(tied)
    for coder in (tied, untied):
        trace = Trace.of(coder, batch, SILENT_L)
        (SummedSquaredError()(trace) + 0.3 * PENALTIES[penalty](trace)).backward()
    untied_LMPD = untied.decoder.W_dec_LXoDo.grad
    torch.testing.assert_close(tied.decoder.W_shared_LsPD.grad, untied_LMPD[:N_SHARED].sum(1))
    torch.testing.assert_close(tied.decoder.W_exclusive_LfMPD.grad, untied_LMPD[N_SHARED:])
