"""V-SCALE, V-CAL: what is measured on data before training."""

import pytest
import torch
from strategies import f64, put

from crosscode.activations import JumpReLU
from crosscode.batch import Batch
from crosscode.initialization import JanUpdate, NormalizeActivations
from crosscode.initialization.jumprelu import quantile_L
from crosscode.models import SparseCoder, sae

exactly = pytest.approx


def test_activations_are_scaled_to_a_mean_norm_of_sqrt_d() -> None:
    """V-SCALE: norms 3 and 5 at width 4 give a scale of sqrt(4) / 4."""
    coder = sae(4, 2, JumpReLU(2)).double()
    NormalizeActivations()(coder, [Batch.autoencode(f64([[3, 0, 0, 0]])), Batch.autoencode(f64([[0, 3, 4, 0]]))])
    assert coder.scale_in_Xi.item() == 0.5
    assert coder.scale_out_Xo.item() == 0.5


def test_batches_of_unequal_size_count_by_their_tokens() -> None:
    """Three tokens of norm 3 and one of norm 7 have mean norm 4, though the batches' means average to 5."""
    coder = sae(1, 2, JumpReLU(2)).double()
    NormalizeActivations()(coder, [Batch.autoencode(f64([[3], [-3], [3]])), Batch.autoencode(f64([[7]]))])
    assert coder.scale_in_Xi.item() == 0.25


def v_cal() -> tuple[SparseCoder, list[Batch]]:
    coder = put(sae(2, 2, JumpReLU(2, 2.0)), {"encoder.W_enc_XiDiL": [1, 0, 0, 1]})
    return coder, [Batch.autoencode(f64([[0, 4], [1, 5]])), Batch.autoencode(f64([[2, 6], [3, 7]]))]


def test_biases_make_every_latent_fire_on_the_asked_fraction() -> None:
    """V-CAL: quantiles 2.25 and 6.25 by linear interpolation; biases -0.25 and -4.25 against a threshold of 2."""
    coder, data = v_cal()
    q_L = quantile_L(coder, data, 0.25, 4)
    assert q_L.tolist() == [2.25, 6.25]
    with torch.no_grad():
        coder.encoder.b_enc_L.copy_(2.0 - q_L)
    assert coder.encoder.b_enc_L.tolist() == [-0.25, -4.25]
    fired = sum(coder.encode(batch.inputs_BXiDi).count_L() for batch in data)
    assert fired.tolist() == [1, 1]


@pytest.mark.parametrize("firing_rate", [0.1, 0.25, 0.5])
def test_the_january_start_fires_as_asked(firing_rate: float) -> None:
    """`JanUpdate` ends with every latent firing on round(r N) calibration tokens, within one, at any threshold."""
    jumprelu = JumpReLU(16)
    coder = sae(8, 16, jumprelu).double()
    jumprelu.set_threshold_(torch.linspace(0.1, 3, 16).double())
    x_ND = torch.randn(400, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = [Batch.autoencode(part) for part in x_ND.split(90)]
    JanUpdate(jumprelu, firing_rate, n_tokens=400)(coder, data)
    count_L = coder.encode(x_ND).count_L()
    assert ((count_L - round(firing_rate * 400)).abs() <= 1).all()
