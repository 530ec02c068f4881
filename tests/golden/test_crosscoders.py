"""V-L1, V-FEB, V-MASK: crosscoders of two models, one hookpoint, width 1, worked by hand."""

import pytest
from strategies import f64, grads, put
from torch import nn

from crosscode.activations import ReLU, SeparateBudgets, TopK
from crosscode.batch import Batch
from crosscode.losses import SummedSquaredError
from crosscode.models import (
    DenseEncoder,
    MaskedDecoder,
    MaskedEncoder,
    SharedDecoder,
    SiteMask,
    SparseCoder,
    Trace,
    acausal_crosscoder,
)
from crosscode.penalties import L1OfNorms

exactly = pytest.approx


def v_l1() -> SparseCoder:
    coder = acausal_crosscoder(n_models=2, n_hookpoints=1, d_model=1, n_latents=2, activation=ReLU())
    return put(
        coder,
        {
            "encoder.W_enc_XiDiL": [1, 0.5, 0.5, -1],
            "encoder.b_enc_L": [-0.5, 0.25],
            "decoder.W_dec_LXoDo": [0.375, 0.5, 0.75, -1],
            "decoder.b_dec_XoDo": [0.25, 0.5],
        },
    )


X_L1 = Batch.autoencode(f64([3, 1]).reshape(1, 2, 1, 1))


@pytest.mark.parametrize(
    ("norm", "a", "penalty", "loss", "dz", "dW_dec", "dW_enc"),
    [
        (
            "l1_of_l2",
            [0.875, 1.75],
            3.9375,
            3.16015625,
            [-0.109375, -1.21875],
            [-4.875, 3, -1.21875, 0],
            [-0.328125, -3.65625, -0.109375, -1.21875],
        ),
        (
            "l2",
            [0.625, 1.25],
            2.8125,
            2.59765625,
            [-0.234375, -1.46875],
            [-5.475, 2.7, -1.36875, 0.075],
            [-0.703125, -4.40625, -0.234375, -1.46875],
        ),
    ],
)
def test_l1_crosscoder_values_and_gradients(norm, a, penalty, loss, dz, dW_dec, dW_enc) -> None:
    """V-L1, for both ways of combining decoder norms."""
    coder = v_l1()
    trace = Trace.of(coder, X_L1)
    assert trace.pre_BL.tolist() == [[3, 0.75]]
    assert trace.recon_BXoDo.flatten().tolist() == [1.9375, 1.25]
    l1 = L1OfNorms(norm)(trace)
    total = SummedSquaredError()(trace) + 0.5 * l1
    total.backward()
    assert SummedSquaredError()(trace).item() == 1.19140625
    assert l1.item() == exactly(penalty, abs=1e-12)
    assert total.item() == exactly(loss, abs=1e-12)
    assert grads(coder, "encoder.b_enc_L") == exactly(dz, abs=1e-12)
    assert grads(coder, "encoder.W_enc_XiDiL") == exactly(dW_enc, abs=1e-12)
    assert grads(coder, "decoder.W_dec_LXoDo") == exactly(dW_dec, abs=1e-12)
    assert grads(coder, "decoder.b_dec_XoDo") == exactly([-2.125, 0.5], abs=1e-12)


def v_feb() -> SparseCoder:
    coder = SparseCoder(DenseEncoder((2,), 1, 2), ReLU(), SharedDecoder(2, 1, (2,), 1))
    return put(
        coder,
        {"encoder.b_enc_L": [2, 1], "decoder.W_shared_LsPD": [0.5], "decoder.W_exclusive_LfMPD": [1, 0.25]},
    )


@pytest.mark.parametrize(
    ("norm", "shared_penalty", "loss", "dw", "df"),
    [
        ("single_model", 1, 1.75, -2.875, [-0.71875, -1.25]),
        ("l1_of_l2", 2, 1.8125, -2.75, [-0.6875, -1.25]),
    ],
)
def test_february_diffing_values_and_gradients(norm, shared_penalty, loss, dw, df) -> None:
    """V-FEB, for both readings of the shared latents' norm."""
    coder = v_feb()
    trace = Trace.of(coder, Batch.autoencode(f64([[[3], [1]]])))
    shared = L1OfNorms(norm, slice(0, 1))(trace)
    exclusive = L1OfNorms("l1_of_l2", slice(1, None))(trace)
    total = SummedSquaredError()(trace) + 0.0625 * shared + 0.5 * exclusive
    total.backward()
    assert trace.error_BXoDo.flatten().tolist() == [1, -0.25]
    assert (shared.item(), total.item()) == (shared_penalty, loss)
    assert grads(coder, "decoder.W_shared_LsPD") == [dw]
    assert grads(coder, "decoder.W_exclusive_LfMPD") == [-1.5, 1]
    assert grads(coder, "encoder.b_enc_L") == df


def test_shared_and_exclusive_budgets_are_spent_apart() -> None:
    """V-FEB: scores [5, 4 | 1, 2] keep one of each half with separate budgets, both shared ones with a joint one."""
    z_BL = f64([[5, 4, 1, 2]])
    assert SeparateBudgets(TopK(1), TopK(1), 2)(z_BL).dense().tolist() == [[5, 0, 0, 2]]
    assert TopK(2)(z_BL).dense().tolist() == [[5, 4, 0, 0]]


def test_a_tied_gradient_counts_once_in_the_clip_norm() -> None:
    """V-FEB: per-model gradients 3 and 1 make a tied gradient of norm 4; copied halves would make 5.657."""
    coder = put(
        SparseCoder(DenseEncoder((2,), 1, 1, bias=False), ReLU(), SharedDecoder(1, 1, (2,), 1, bias=False)),
        {"encoder.W_enc_XiDiL": [1, 0]},
    )
    trace = Trace.of(coder, Batch.autoencode(f64([[[1], [0]]])))
    (trace.recon_BXoDo * f64([[[3], [1]]])).sum().backward()
    norm = nn.utils.get_total_norm([p.grad for p in coder.decoder.parameters() if p.grad is not None])
    assert norm.item() == 4


def test_masked_latents_read_and_write_their_own_model_only() -> None:
    """V-MASK: a dedicated-feature crosscoder with one latent of A, one of B and one shared."""
    mask = SiteMask([(1, [0]), (1, [1]), (1, [0, 1])])
    coder = put(
        SparseCoder(MaskedEncoder((2,), 1, mask), ReLU(), MaskedDecoder(mask, (2,), 1)),
        {
            **dict(zip([f"encoder.W_enc_XgDiLg.{g}" for g in range(3)], ([1], [1], [1, -0.5]))),
            **dict(zip([f"decoder.W_dec_LgXgDo.{g}" for g in range(3)], ([1], [1], [0.5, 1]))),
        },
    )
    trace = Trace.of(coder, Batch.autoencode(f64([[[2], [3]]])))
    assert trace.pre_BL.tolist() == [[2, 3, 0.5]]
    assert trace.recon_BXoDo.flatten().tolist() == [2.25, 3.5]
    assert trace.decoder_norms_LXo.tolist() == [[1, 0], [0, 1], [0.5, 1]]
    (SummedSquaredError()(trace) + L1OfNorms()(trace)).backward()
    for group in (*coder.encoder.W_enc_XgDiLg, *coder.decoder.W_dec_LgXgDo):
        assert (group.grad != 0).all()
