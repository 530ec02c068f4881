"""V-JR, V-JAN, V-RESC: JumpReLU's estimators, the January 2025 loss, and rescaling to unit decoder norm."""

import math

import pytest
from strategies import f64, grads, put

from crosscode.activations import JumpReLU
from crosscode.activations.jumprelu import step
from crosscode.batch import Batch
from crosscode.losses import SummedSquaredError
from crosscode.models import SparseCoder, Trace, sae, transcoder
from crosscode.penalties import ExpectedL0, L0Quadratic, L0QuadraticRelative, PreActivation, TanhSparsity

exactly = pytest.approx


def half_threshold(parametrisation: str, ste_to_input: bool) -> JumpReLU:
    jumprelu = JumpReLU(2, 0.5, 2.0, ste_to_input, parametrisation).double()
    jumprelu.set_threshold_(f64(0.5, 0.5))  # in float64: no float32 rounding of log 0.5
    return jumprelu


@pytest.mark.parametrize(("ste_to_input", "dz"), [(False, [1, 0]), (True, [1.25, 0.25])])
@pytest.mark.parametrize(("parametrisation", "dthreshold"), [("raw", -0.25), ("log", -0.125)])
def test_jumprelu_estimators(parametrisation, dthreshold, ste_to_input, dz) -> None:
    """V-JR: the threshold's gradient has the chain factor of its parametrisation; the input's is optional."""
    jumprelu = half_threshold(parametrisation, ste_to_input)
    z_BL = f64([[0.75, 0.25]]).requires_grad_()
    latents = jumprelu(z_BL)
    latents.dense().sum().backward()
    assert latents.dense().tolist() == [[0.75, 0]]
    assert z_BL.grad.flatten().tolist() == exactly(dz, abs=1e-12)
    assert jumprelu.stored_threshold_L.grad.tolist() == exactly([dthreshold] * 2, abs=1e-12)


@pytest.mark.parametrize(("ste_to_input", "dz"), [(False, None), (True, [0.5, 0.5])])
def test_step_estimator(ste_to_input, dz) -> None:
    """V-JR: the step counts 1 and pulls each threshold with -1/eps."""
    z_BL, threshold_L = f64([[0.75, 0.25]]).requires_grad_(), f64(0.5, 0.5).requires_grad_()
    l0 = step(z_BL, threshold_L, 2.0, ste_to_input).sum()
    l0.backward()
    assert l0.item() == 1
    assert threshold_L.grad.tolist() == [-0.5, -0.5]
    assert (None if z_BL.grad is None else z_BL.grad.flatten().tolist()) == dz


def v_jan(parametrisation: str, ste_to_input: bool) -> tuple[SparseCoder, JumpReLU, Trace]:
    jumprelu = half_threshold(parametrisation, ste_to_input)
    coder = put(sae(1, 2, jumprelu), {"encoder.W_enc_XiDiL": [0.75, 0.25], "decoder.W_dec_LXoDo": [1, 2]})
    return coder, jumprelu, Trace.of(coder, Batch.autoencode(f64([[1]])))


def test_l0_penalties() -> None:
    """V-JR: the relative quadratic with target 2, and Gemma Scope 2's with L0 = 3 and target 2."""
    _, jumprelu, trace = v_jan("raw", False)
    assert ExpectedL0(jumprelu)(trace).item() == 1
    quadratic = L0QuadraticRelative(jumprelu, 2)(trace)
    quadratic.backward()
    assert quadratic.item() == 0.25
    assert jumprelu.stored_threshold_L.grad.tolist() == [0.25, 0.25]

    three = JumpReLU(3, 0.5).double()
    coder = put(sae(1, 3, three), {"encoder.W_enc_XiDiL": [1, 2, 3]})
    trace = Trace.of(coder, Batch.autoencode(f64([[1]])))
    assert 0.5 * L0Quadratic(three, 2)(trace).item() == 0.5


@pytest.mark.parametrize(
    ("ste_to_input", "dz"),
    [(False, [-0.4605358513382393, -0.5]), (True, [-0.5756698141727992, 1.25])],
)
@pytest.mark.parametrize(
    ("parametrisation", "dthreshold"),
    [("raw", [0.11513396283455983, -1.25]), ("log", [0.057566981417279915, -0.625])],
)
def test_january_loss_values_and_gradients(parametrisation, dthreshold, ste_to_input, dz) -> None:
    """V-JAN: reconstruction, tanh and pre-activation terms together, the estimator off and on."""
    coder, jumprelu, trace = v_jan(parametrisation, ste_to_input)
    reconstruction, tanh = SummedSquaredError()(trace), TanhSparsity(4.0)(trace)
    pre_act = PreActivation(jumprelu)(trace)
    loss = reconstruction + tanh + 0.25 * pre_act
    loss.backward()
    assert reconstruction.item() == exactly(0.0625, abs=1e-12)
    assert tanh.item() == exactly(0.9950547536867305, abs=1e-12)
    assert pre_act.item() == exactly(0.5, abs=1e-12)
    assert loss.item() == exactly(1.1825547536867305, abs=1e-12)
    assert grads(coder, "encoder.b_enc_L") == exactly(dz, abs=1e-12)
    assert grads(coder, "encoder.W_enc_XiDiL") == exactly(dz, abs=1e-12)
    assert jumprelu.stored_threshold_L.grad.tolist() == exactly(dthreshold, abs=1e-12)
    assert grads(coder, "decoder.W_dec_LXoDo") == exactly([-0.3454018885036795, 0.0625], abs=1e-12)


def test_rescaling_to_unit_decoder_norm_keeps_the_function() -> None:
    """V-RESC: weights, biases and thresholds all scale by the decoder norm."""
    jumprelu = JumpReLU(2, 1.0, parametrisation="raw")
    coder = put(
        transcoder(1, 2, jumprelu),
        {
            "encoder.W_enc_XiDiL": [2, -1],
            "encoder.b_enc_L": [0.5, 1],
            "activation.stored_threshold_L": [0.5, 0.25],
            "decoder.W_dec_LXoDo": [4, 0.5],
        },
    )
    x_BD = f64([[1]])
    assert coder.encode(x_BD).dense().tolist() == [[2.5, 0]]
    assert coder(x_BD).item() == 10
    unit = coder.folded()
    assert unit.encoder.W_enc_XiDiL.tolist() == [[8, -0.5]]
    assert unit.encoder.b_enc_L.tolist() == [2, 0.5]
    assert unit.decoder.W_dec_LXoDo.flatten().tolist() == [1, 1]
    assert unit.activation.threshold_L.tolist() == [2, 0.125]
    assert unit.encode(x_BD).dense().tolist() == [[10, 0]]
    assert unit(x_BD).item() == 10


def test_rescaling_without_the_threshold_would_change_what_fires() -> None:
    """V-RESC's negative control: z = 0.3 is silent below 0.5, but 0.6 fires above an unscaled 0.5."""
    jumprelu = JumpReLU(1, 0.5).double()
    z_BL, a_L = f64([[0.3]]), f64([2.0])
    assert jumprelu(z_BL).dense().item() == 0
    assert jumprelu.rescaled(a_L)(z_BL * a_L).dense().item() == 0
    assert jumprelu(z_BL * a_L).dense().item() == 0.6


def test_the_default_threshold_is_e_to_a_tenth() -> None:
    """The January update's initial threshold, in natural units, is 1.105 and not e or 0.1."""
    assert JumpReLU(1).threshold_L.item() == exactly(math.exp(0.1), abs=2e-4)
