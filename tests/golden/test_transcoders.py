"""V-CLT, V-FOLD, V-CCLT: cross-layer transcoders with and without scales, and the compound one."""

import pytest
from strategies import f64, grads, put

from crosscode.activations import JumpReLU, PerSite, ReLU, TopK
from crosscode.batch import Batch
from crosscode.losses import SummedSquaredError
from crosscode.models import (
    SparseCoder,
    Trace,
    combined_norm_L,
    compound_cross_layer_transcoder,
    cross_layer_transcoder,
)
from crosscode.penalties import L1OfNorms, TanhSparsity

exactly = pytest.approx


def v_clt(activation) -> SparseCoder:
    return put(
        cross_layer_transcoder(1, 2, 2, activation, skip=True, skip_targets=(0, 1)),
        {
            "encoder.W_enc_XiDiL": [1, -0.5],
            "encoder.b_enc_L": [0, 2],
            "decoder.W_dec_LXoDo": [0.5, 1, -1, 0.25],
            "decoder.b_dec_XoDo": [0, 0.5],
            "skip.W_skip_XiDiXoDo": [1, -0.5],
        },
    )


def test_cross_layer_transcoder_values_and_gradients() -> None:
    """V-CLT: one source, two targets, a skip to both."""
    coder = v_clt(ReLU())
    trace = Trace.of(coder, Batch(f64([[2]]), f64([[[3], [1]]])))
    assert trace.pre_BL.tolist() == [[2, 1]]
    assert trace.recon_BXoDo.flatten().tolist() == [2, 1.75]
    reconstruction, l1 = SummedSquaredError()(trace), L1OfNorms()(trace)
    loss = reconstruction + 0.25 * l1
    loss.backward()
    assert (reconstruction.item(), l1.item(), loss.item()) == (1.5625, 4.25, 2.625)
    assert grads(coder, "encoder.b_enc_L") == [0.875, 2.6875]
    assert grads(coder, "encoder.W_enc_XiDiL") == [1.75, 5.375]
    assert grads(coder, "decoder.W_dec_LXoDo") == [-3.5, 3.5, -2.25, 1.75]
    assert grads(coder, "decoder.b_dec_XoDo") == [-2, 1.5]
    assert grads(coder, "skip.W_skip_XiDiXoDo") == [-4, 3]


def test_folding_bakes_both_scales_and_the_skip_in() -> None:
    """V-FOLD: raw input 1 gives [0.5, 3.5]; without folding the skip it would give [1, 5]."""
    coder = v_clt(TopK(2, weighted=False))  # an unweighted ranking is folded without canonicalising
    coder.scale_in_Xi.fill_(2)
    coder.scale_out_Xo.copy_(f64(4, 0.5))
    folded, x_BD = coder.folded(), f64([[1]])
    assert folded.encoder.W_enc_XiDiL.flatten().tolist() == [2, -1]
    assert folded.decoder.W_dec_LXoDo.flatten().tolist() == [0.125, 2, -0.25, 0.5]
    assert folded.decoder.b_dec_XoDo.flatten().tolist() == [0, 1]
    assert folded.skip.W_skip_XiDiXoDo.flatten().tolist() == [0.5, -2]
    assert folded.encode(x_BD).dense().tolist() == [[2, 1]]
    assert folded(x_BD).flatten().tolist() == [0.5, 3.5]
    assert coder(x_BD).flatten().tolist() == [0.5, 3.5]
    folded.skip.assign_(coder.skip.weights())
    assert folded(x_BD).flatten().tolist() == [1, 5]


def test_folding_a_canonical_coder_multiplies_latents_by_their_norm() -> None:
    """V-FOLD with ReLU: latents [2, 1] come back times [1.5, 1.25], the raw output is the same."""
    coder = v_clt(ReLU())
    coder.scale_in_Xi.fill_(2)
    coder.scale_out_Xo.copy_(f64(4, 0.5))
    folded, x_BD = coder.folded(), f64([[1]])
    assert coder.canonical_factor_L().tolist() == [1.5, 1.25]
    assert folded.encode(x_BD).dense().tolist() == [[3, 1.25]]
    assert folded(x_BD).flatten().tolist() == exactly([0.5, 3.5], abs=1e-12)


def test_compound_cross_layer_transcoder_values_and_gradients() -> None:
    """V-CCLT: two layers, one latent each, the lower one writing to both."""
    activation = PerSite([JumpReLU(1, 0.03, ste_to_input=False), JumpReLU(1, 0.03, ste_to_input=False)])
    coder = put(
        compound_cross_layer_transcoder(1, 2, 1, activation),
        {
            "encoder.W_enc_XgDiLg.0": [2],
            "encoder.W_enc_XgDiLg.1": [0.5],
            "decoder.W_dec_LgXgDo.0": [0.375, 0.5],
            "decoder.W_dec_LgXgDo.1": [-1],
        },
    )
    trace = Trace.of(coder, Batch(f64([[[1], [2]]]), f64([[[1], [0.5]]])))
    assert trace.latents_BL.tolist() == [[2, 1]]
    assert trace.recon_BXoDo.flatten().tolist() == [0.75, 0]
    assert combined_norm_L(trace.decoder_norms_LXo, "l2").tolist() == [0.625, 1]
    reconstruction, tanh = SummedSquaredError()(trace), TanhSparsity(1.0, norm="l2")(trace)
    loss = reconstruction + 0.5 * tanh
    loss.backward()
    assert reconstruction.item() == 0.3125
    assert tanh.item() == exactly(1.6098777959132777, abs=1e-12)
    assert loss.item() == exactly(1.1174388979566388, abs=1e-12)
    assert grads(coder, "encoder.b_enc_L") == exactly([-0.5998703543186148, 1.2099871708070131], abs=1e-12)
    dW_dec = grads(coder, "decoder.W_dec_LgXgDo.0") + grads(coder, "decoder.W_dec_LgXgDo.1")
    assert dW_dec == exactly([-0.8317510802917404, -1.775668107055654, -1.2099871708070131], abs=1e-12)
