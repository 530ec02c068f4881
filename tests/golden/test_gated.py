"""Gated SAEs (Rajamanoharan et al. 2024), worked by hand, and the other small variants beside their definitions."""

import pytest
import torch
from strategies import L, f64, grads, put

from crosscode.activations import Gated, JumpReLU, ReLU
from crosscode.batch import Batch
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseDecoder, DenseEncoder, SparseCoder, Trace, sae
from crosscode.penalties import AuxK, FrequencyL0, GateReconstruction, GateSparsity
from crosscode.testing import check_part

exactly = pytest.approx


def gated_sae(n_latents: int, d: int = 1, **parameters: list[float]) -> SparseCoder:
    coder = SparseCoder(DenseEncoder((), d, n_latents, bias=False), Gated(n_latents), DenseDecoder(n_latents, (), d))
    return put(coder, {name.replace("__", "."): values for name, values in parameters.items()})


def test_a_gated_sae_by_hand() -> None:
    """x = 1, z = (2, -1): gates 1.5 and -0.5; e^r z + b = 2e^0 + 0.25; L1 1.5 a_0; what each term trains."""
    coder = gated_sae(
        2,
        encoder__W_enc_XiDiL=[2, -1],
        activation__b_gate_L=[-0.5, 0.5],
        activation__b_mag_L=[0.25, 4],
        decoder__W_dec_LXoDo=[0.5, 3],
        decoder__b_dec_XoDo=[0.125],
    )
    trace = Trace.of(coder, Batch.autoencode(f64([[1]])))
    assert trace.latents_BL.tolist() == [[2.25, 0]]  # the second's gate is closed, though its magnitude is 3
    reconstruction = SummedSquaredError()(trace)
    assert reconstruction.item() == (1 - 1.25) ** 2
    reconstruction.backward(retain_graph=True)
    assert grads(coder, "activation.b_mag_L") == [2 * 0.25 * 0.5, 0]
    assert grads(coder, "activation.r_mag_L") == [2 * 0.25 * 0.5 * 2, 0]
    gate = coder.activation.b_gate_L.grad
    assert gate is None or (gate == 0).all()  # no gradient goes through a gate
    coder.zero_grad()
    sparsity = GateSparsity(coder.activation)(trace)
    assert sparsity.item() == 1.5 * 0.5
    through_gate = GateReconstruction(coder.activation)(trace)
    assert through_gate.item() == (1 - (1.5 * 0.5 + 0.125)) ** 2
    through_gate.backward()
    assert grads(coder, "activation.b_gate_L") == [-2 * 0.125 * 0.5, 0]
    assert grads(coder, "encoder.W_enc_XiDiL") == [-2 * 0.125 * 0.5, 0]
    frozen = (coder.decoder.W_dec_LXoDo.grad, coder.decoder.b_dec_XoDo.grad)
    assert all(gradient is None or (gradient == 0).all() for gradient in frozen)


def test_a_gate_keeps_the_laws_of_an_activation() -> None:
    """Dense and sparse codes, rescaled ones, saved ones; its penalties of dense and of sparse codes."""
    check_part(Gated(L))
    torch.manual_seed(0)
    coder = gated_sae(L, 3)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    check_part(GateSparsity(coder.activation), coder=coder)
    check_part(GateReconstruction(coder.activation), coder=coder)


def test_a_folded_gated_sae_is_the_same_function() -> None:
    """Scales, shifts and decoder norms go into encoder, gates and magnitudes."""
    torch.manual_seed(0)
    coder = gated_sae(L, 3).eval()
    with torch.no_grad():
        for tensor in (*coder.parameters(), coder.shift_in_XiDi):
            tensor.copy_(0.5 * torch.randn_like(tensor))
        coder.shift_out_XoDo.copy_(coder.shift_in_XiDi)
        coder.scale_in_Xi.fill_(2.5)
        coder.scale_out_Xo.fill_(2.5)
    x_BD = torch.randn(50, 3, dtype=torch.float64)
    raw = coder.folded()
    torch.testing.assert_close(raw(x_BD), coder(x_BD))
    assert (coder.encode(x_BD).dense() > 0).any()
    torch.testing.assert_close(raw.encode(x_BD).dense(), coder.encode(x_BD).dense() * coder.canonical_factor_L())


def test_frequent_latents_pay_by_their_frequency() -> None:
    """Of two tokens one latent fires on both, one on one: 1 (1 + 1/s) + .5 (1 + .5/s)."""
    coder = SparseCoder(DenseEncoder((), 1, 2), JumpReLU(2, 0.5, bandwidth=1.0), DenseDecoder(2, (), 1))
    put(coder, {"encoder.W_enc_XiDiL": [0, 1], "encoder.b_enc_L": [2, 0]})
    trace = Trace.of(coder, Batch.autoencode(f64([[0], [0.75]])))
    assert FrequencyL0(coder.activation, 0.25)(trace).item() == 1 * (1 + 4) + 0.5 * (1 + 2)
    check_part(FrequencyL0(coder.activation), coder=coder)


def test_dead_latents_of_each_prefix_reconstruct_its_error() -> None:
    """Prefixes of 2 and 4 latents, one dead in each: the first sees what latent 0 leaves, the second what 0 and 2 do.

    Latents 0 and 2 fire with values 1; 1 and 3 are dead with pre-activations 1 and 2, by reach of a counter.
    """
    coder = put(
        sae(2, 4, ReLU()),
        {"encoder.b_enc_L": [1, 1, 1, 2], "decoder.W_dec_LXoDo": [1, 0, 0.5, 0, 0, 1, 0, 0.25]},
    )
    x_BD = f64([[3, 1], [2, 5]])
    trace = Trace.of(coder, Batch.autoencode(x_BD), torch.tensor([0, 9, 0, 9]))
    aux = AuxK(1, 9, norm="none", prefixes=(2, 4))(trace)
    first = x_BD - f64([1.5, 0])  # as long as they are counted, dead latents that do fire are in the reconstruction
    second = x_BD - f64([1.5, 1.5])

    def term(error, ehat):
        return (error - ehat).square().sum() / (error - error.mean(0)).square().sum()

    assert aux.item() == exactly((term(first, f64([0.5, 0])) + term(second, f64([0, 0.5]))).item(), abs=1e-12)
    aux.backward()
    assert [value != 0 for value in grads(coder, "encoder.b_enc_L")] == [False, True, False, True]
    all_at_once = AuxK(4, 9, norm="none", prefixes=(4,))(trace)
    assert all_at_once.item() == AuxK(4, 9, norm="none")(trace).item()
