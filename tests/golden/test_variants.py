"""V-MAT, V-DELTA, `tanh_freq`: the smaller schemes."""

import pytest
import torch
from strategies import f64, grads, put

from crosscode.activations import ReLU
from crosscode.batch import Batch
from crosscode.losses import MatryoshkaSquaredError, SummedSquaredError
from crosscode.models import DenseDecoder, DenseEncoder, SparseCoder, Trace, sae
from crosscode.penalties import DeltaReconstruction, DifferenceWeighting, TanhFrequency
from crosscode.training import Weighted

exactly = pytest.approx


@pytest.mark.parametrize(("reduction", "loss", "factor"), [("sum", 1.25, 1), ("mean", 0.625, 0.5)])
def test_matryoshka_prefixes_reconstruct_on_their_own(reduction, loss, factor) -> None:
    """V-MAT: prefixes of 1 and 2 latents leave errors 1 and 0.5."""
    coder = put(sae(1, 2, ReLU()), {"encoder.b_enc_L": [2, 1], "decoder.W_dec_LXoDo": [1, 0.5]})
    trace = Trace.of(coder, Batch.autoencode(f64([[3]])))
    value = MatryoshkaSquaredError((1, 2), reduction)(trace)
    value.backward()
    assert value.item() == loss
    assert grads(coder, "decoder.W_dec_LXoDo") == [-6 * factor, -1 * factor]


def two_models(f: list[float], W_dec: list[float], n_latents: int = 1) -> SparseCoder:
    coder = SparseCoder(DenseEncoder((2,), 1, n_latents), ReLU(), DenseDecoder(n_latents, (2,), 1))
    return put(coder, {"encoder.b_enc_L": f, "decoder.W_dec_LXoDo": W_dec})


def test_delta_latents_reconstruct_the_difference() -> None:
    """V-DELTA: a difference of 2 is written as 1.5."""
    coder = two_models([1], [-0.25, 1.25])
    trace = Trace.of(coder, Batch.autoencode(f64([[[1], [3]]])))
    loss = 0.5 * DeltaReconstruction(slice(0, 1))(trace)
    loss.backward()
    assert loss.item() == 0.125
    assert grads(coder, "decoder.W_dec_LXoDo") == [0.5, -0.5]
    assert grads(coder, "encoder.b_enc_L") == [-0.75]


def test_difference_weighting_turns_the_loss_into_the_differences() -> None:
    """V-DELTA: with weight 1 beside the squared error, ||e_1 - e_0||^2 = 9.25 = 5 + 1.25 + 3."""
    coder = SparseCoder(DenseEncoder((2,), 2, 1), ReLU(), DenseDecoder(1, (2,), 2)).double()
    trace = Trace.of(coder, Batch.autoencode(f64([[[0.5, -1], [1, 2]]])))
    assert trace.error_BXoDo.tolist() == [[[0.5, -1], [1, 2]]]
    assert SummedSquaredError()(trace).item() == 6.25
    assert DifferenceWeighting()(trace).item() == 3
    full = Weighted(DifferenceWeighting(), 1.0)
    assert (SummedSquaredError()(trace) + full.weight(0) * full.penalty(trace)).item() == 9.25


def test_frequent_latents_pay_more() -> None:
    """`tanh_freq` of V-MET: one latent that fires on every token at c f a = 4."""
    coder = put(sae(1, 2, ReLU()), {"encoder.b_enc_L": [0, 1], "decoder.W_dec_LXoDo": [1, 1]})
    trace = Trace.of(coder, Batch.autoencode(torch.zeros(2, 1, dtype=torch.float64)))
    assert trace.latents_BL.tolist() == [[0, 1], [0, 1]]
    # 1 + 1/s is 3 and p_L enters squared: two values of s tell p_L and its square apart, [0, .9993] alone fits.
    p, p_squared = (TanhFrequency(4.0, s)(trace).item() for s in (1e12, 1e-12))
    assert p == exactly(0.999329299739067, abs=1e-9)
    assert p_squared * 1e-12 == exactly(0.999329299739067**2, abs=1e-9)
    assert TanhFrequency(4.0, 0.5)(trace).item() == exactly(2.9966473983730153, abs=1e-12)
