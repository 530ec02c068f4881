"""Faults of an earlier implementation, in penalties and losses: the right value beside the wrong one."""

import pytest
import torch
from strategies import f64, grads, put, random_batch, random_coder

from crosscode.activations import JumpReLU, ReLU, TopK
from crosscode.batch import Batch
from crosscode.kernels.selection import entries_where
from crosscode.latents import Latents
from crosscode.losses import (
    FixedNMSE,
    FractionOfVarianceUnexplained,
    MatryoshkaSquaredError,
    MeanNorm,
    SummedSquaredError,
)
from crosscode.models import DenseDecoder, DenseEncoder, SharedDecoder, SparseCoder, Trace, sae
from crosscode.penalties import AuxK, L1OfNorms, PreActivation

exactly = pytest.approx


@pytest.mark.parametrize("shared", [False, True])
def test_the_pre_activation_loss_sees_pre_activations(shared: bool) -> None:
    """Faults 2 and 8: theta = 0.5, z = -2, a = 1 give 2.5 with dz = -1; on the latents it would be 0.5 with dz = 0."""
    jumprelu = JumpReLU(1, 0.5, parametrisation="raw")
    decoder = SharedDecoder(1, 1, (1,), 1) if shared else DenseDecoder(1, (1,), 1)
    weights = "decoder.W_shared_LsPD" if shared else "decoder.W_dec_LXoDo"
    coder = put(SparseCoder(DenseEncoder((1,), 1, 1), jumprelu, decoder), {"encoder.b_enc_L": [-2], weights: [1]})
    trace = Trace.of(coder, Batch.autoencode(f64([[[1]]])))
    faulty = (jumprelu.threshold_L - trace.latents_BL).relu().sum()
    assert faulty.item() == 0.5
    loss = PreActivation(jumprelu)(trace)
    loss.backward()
    assert loss.item() == 2.5
    assert grads(coder, "encoder.b_enc_L") == [-1]
    assert grads(coder, "activation.stored_threshold_L") == [1]


def one_dead_latent(b_dec: float, z_dead: float, target: float) -> tuple[SparseCoder, Trace]:
    """Two tokens; latent 0 is live and silent here, latent 1 is dead with pre-activations 0 and `z_dead`."""
    coder = SparseCoder(DenseEncoder((), 1, 2), TopK(1), DenseDecoder(2, (), 1))
    coder = put(
        coder, {"encoder.W_enc_XiDiL": [0, z_dead], "decoder.W_dec_LXoDo": [1, 1], "decoder.b_dec_XoDo": [b_dec]}
    )
    x_BD = f64([[0], [1]])
    targets = f64([[b_dec], [b_dec + target]])
    nothing = Latents.from_entries(x_BD.new_empty(0), entries_where(torch.zeros(2, 2, dtype=torch.bool)))
    return coder, Trace(coder, x_BD, targets, nothing, torch.tensor([0, 10]))


def test_the_decoder_bias_is_no_part_of_what_aux_k_reconstructs() -> None:
    """Fault 10: with b_dec = 10 a perfect reconstruction of the error costs 0; decoded with the bias, 100 and more."""
    _, trace = one_dead_latent(b_dec=10, z_dead=2, target=2)
    assert trace.error_BXoDo.flatten().tolist() == [0, 2]
    variance = 2 * 1 / 2
    with_bias = ((f64(0, 2) + 10 - f64(0, 2)).square().sum() / 2 / variance).item()
    assert with_bias == 100
    assert AuxK(1, dead_after_tokens=5)(trace).item() == 0


def test_aux_k_does_not_move_what_it_corrects() -> None:
    """Fault 20: the error is detached, so the bias and the live latents get no gradient from the auxiliary loss."""
    coder, trace = one_dead_latent(b_dec=10, z_dead=1, target=2)
    loss = AuxK(1, dead_after_tokens=5)(trace)
    loss.backward()
    assert loss.item() == 0.5  # (1 - 2)^2 / 2 over a variance of 1
    assert coder.decoder.b_dec_XoDo.grad is None
    assert grads(coder, "decoder.W_dec_LXoDo") == [0, -1]
    attached = (trace.error_BXoDo - trace.error_BXoDo.detach() + 1).square().sum()
    assert torch.autograd.grad(attached, coder.decoder.b_dec_XoDo)[0].abs().sum() > 0


def test_silent_dead_latents_lose_to_nothing() -> None:
    """Fault 21: dead pre-activations [-2, -1] revive nothing; live latents' zeros must not win their places either."""
    coder = put(sae(1, 3, TopK(1)), {"encoder.b_enc_L": [5, -2, -1], "decoder.W_dec_LXoDo": [1, 1, 1]})
    trace = Trace.of(coder, Batch.autoencode(f64([[4], [8]])), torch.tensor([0, 10, 10]))
    assert trace.latents_BL.tolist() == [[5, 0, 0], [5, 0, 0]]
    assert trace.error_BXoDo.flatten().tolist() == [-1, 3]
    dead_L = torch.tensor([0, 1, 1])
    faulty_winner = (trace.pre_BL * dead_L).argmax(-1)  # a live latent, at 0
    assert faulty_winner.tolist() == [0, 0]
    loss = AuxK(1, dead_after_tokens=5)(trace)
    loss.backward()
    assert loss.item() == exactly((1 + 9) / 2 / 4)  # nothing is reconstructed: E e^2 / Var e
    assert grads(coder, "encoder.b_enc_L") == [0, 0, 0]


def test_aux_k_finds_a_dead_latent_beside_louder_live_ones() -> None:
    """Fault 21: with k = 1 the one place goes to the dead latent, however strong the live ones are."""
    coder = put(sae(1, 2, TopK(1)), {"encoder.b_enc_L": [5, 1], "decoder.W_dec_LXoDo": [1, 1]})
    trace = Trace.of(coder, Batch.autoencode(f64([[6], [8]])), torch.tensor([0, 10]))
    assert AuxK(1, dead_after_tokens=5)(trace).item() == ((1 - 1) ** 2 + (1 - 3) ** 2) / 2


def test_aux_k_is_relative_to_the_errors_variance() -> None:
    """Fault 22: the plain squared error would be 0.5 times the variance 9/4 here."""
    _, trace = one_dead_latent(b_dec=0, z_dead=1.5, target=3)
    plain = ((1.5 - 3) ** 2) / 2
    variance = (1.5**2 + 1.5**2) / 2
    assert AuxK(1, dead_after_tokens=5)(trace).item() == plain / variance
    assert plain / variance != plain


def test_aux_k_of_a_single_token_is_zero_and_so_are_its_gradients() -> None:
    """One token has no variance: 0/0 must not become NaN in the gradients."""
    coder = put(sae(1, 2, TopK(1)), {"encoder.b_enc_L": [5, 1], "decoder.W_dec_LXoDo": [1, 1]})
    trace = Trace.of(coder, Batch.autoencode(f64([[6]])), torch.tensor([0, 10]))
    loss = AuxK(1, dead_after_tokens=5)(trace)
    assert loss.item() == 0
    loss.backward()
    for parameter in coder.parameters():
        assert parameter.grad is None or (parameter.grad == 0).all()


def test_aux_k_uses_half_the_width_of_a_site_unless_told_otherwise() -> None:
    """Gao et al. 2024; of one site, also in a crosscoder."""
    coder = random_coder("crosscoder", "topk")
    half = coder.decoder.d_out // 2
    trace = Trace.of(coder, random_batch(coder), torch.full((coder.n_latents,), 10))
    assert 0 < half < coder.n_latents
    assert AuxK(dead_after_tokens=5)(trace).item() == AuxK(half, dead_after_tokens=5)(trace).item()
    assert AuxK(dead_after_tokens=5)(trace).item() != AuxK(half + 1, dead_after_tokens=5)(trace).item()


def test_nothing_dead_costs_nothing() -> None:
    """Without dead latents the auxiliary loss is 0, and can still be added to what is differentiated."""
    coder = random_coder("crosscoder", "topk")
    trace = Trace.of(coder, random_batch(coder))
    loss = AuxK(2)(trace)
    assert loss.item() == 0
    (SummedSquaredError()(trace) + loss).backward()


def test_the_shared_penalty_is_one_models_norm() -> None:
    """Fault 25: for shared latents the sum over models would be M times the formula's single norm."""
    coder = SparseCoder(DenseEncoder((3, 2), 1, 1), ReLU(), SharedDecoder(1, 1, (3, 2), 1))
    coder = put(coder, {"encoder.b_enc_L": [2], "decoder.W_shared_LsPD": [3, 4]})
    trace = Trace.of(coder, Batch.autoencode(torch.zeros(1, 3, 2, 1, dtype=torch.float64)))
    assert L1OfNorms("single_model")(trace).item() == 2 * (3 + 4)
    assert L1OfNorms("l1_of_l2")(trace).item() == 3 * 2 * (3 + 4)


def test_decoding_modifies_nothing_in_place() -> None:
    """Fault 11: what goes into a coder comes out unchanged, and views of it stay valid."""
    coder = random_coder("clt", "topk")
    batch = random_batch(coder)
    before = [batch.inputs_BXiDi.clone(), batch.targets_BXoDo.clone()]
    latents = coder.encode(batch.inputs_BXiDi)
    values = latents.values.clone()
    linear = coder.decoder.linear(latents)
    kept = linear.clone()
    coder.decoder(latents)
    coder(batch.inputs_BXiDi)
    assert torch.equal(latents.values, values)
    assert torch.equal(linear, kept)
    assert torch.equal(batch.inputs_BXiDi, before[0])
    assert torch.equal(batch.targets_BXoDo, before[1])


@pytest.mark.parametrize(
    "loss",
    [
        SummedSquaredError(),
        SummedSquaredError([2.0]),
        MeanNorm(),
        FractionOfVarianceUnexplained(),
        FixedNMSE(0.5),
        MatryoshkaSquaredError((4, 12)),
    ],
    ids=lambda loss: type(loss).__name__,
)
def test_losses_of_half_precision_are_those_of_the_same_numbers(loss) -> None:
    """Targets far from 0 whose deviations bfloat16 would not resolve: everything but the codes is at least float32."""
    generator = torch.Generator().manual_seed(0)
    x_BD = (16 + torch.randint(0, 2, (64, 6), generator=generator) / 8).bfloat16()
    values = []
    for dtype in (torch.bfloat16, torch.float64):
        coder = sae(6, 12, ReLU()).to(dtype)
        with torch.no_grad():
            coder.decoder.W_dec_LXoDo.zero_()  # reconstructions are 0, in any precision
        values.append(loss(Trace.of(coder, Batch.autoencode(x_BD.to(dtype)))).item())
    assert values[0] == exactly(values[1], rel=1e-5)


@pytest.mark.parametrize("loss", [SummedSquaredError(), MatryoshkaSquaredError((4, 12))])
def test_losses_add_up_in_float32_at_least(loss) -> None:
    """In bfloat16 a sum over thousands of coordinates would stop growing."""
    coder = sae(512, 12, ReLU()).bfloat16()
    x_BD = torch.ones(64, 512, dtype=torch.bfloat16)
    value = loss(Trace.of(coder, Batch.autoencode(x_BD)))
    assert value.dtype == torch.float32
    assert value.item() == 512 * (1 if isinstance(loss, SummedSquaredError) else 2)
