"""Faults of an earlier implementation, in activations: the right value beside the wrong one."""

import itertools
import math

import pytest
import torch
from strategies import f64, put, random_batch, random_coder

from crosscode.activations import BatchTopK, GroupMax, JumpReLU, PerSite, Priced, ReLU, SeparateBudgets, TopK
from crosscode.errors import BadInput, CrosscodeError
from crosscode.kernels.selection import top_k_of_batch, top_k_of_rows
from crosscode.models import DenseDecoder, DenseEncoder, SparseCoder

exactly = pytest.approx


def test_top_k_keeps_nothing_negative() -> None:
    """Fault 3: without a ReLU first, a row with fewer than k positives keeps its least negative ones."""
    z_BL = f64([[3, -1, -2, -5]])
    faulty = torch.zeros_like(z_BL).scatter(-1, z_BL.topk(2).indices, z_BL.topk(2).values)
    assert faulty.tolist() == [[3, -1, 0, 0]]
    for activation in (TopK(2), BatchTopK(2), GroupMax(2)):
        assert activation(z_BL).dense().tolist() == [[3, 0, 0, 0]]


@pytest.mark.parametrize(("n_latents", "k"), [(7, 3), (12, 5), (10, 10), (9, 1)])
def test_groups_need_not_divide_the_latents(n_latents: int, k: int) -> None:
    """Fault 5: every latent is in exactly one group, whose bounds are `floor(i L / k)`."""
    for latent in range(n_latents):
        z_BL = torch.zeros(1, n_latents)
        z_BL[0, latent] = 1
        assert GroupMax(k)(z_BL).dense().tolist() == z_BL.tolist()
    f_BL = GroupMax(k)(torch.rand(50, n_latents) + 0.1).dense()
    assert (f_BL > 0).sum(-1).tolist() == [k] * 50
    bounds = [i * n_latents // k for i in range(k + 1)]
    for start, stop in itertools.pairwise(bounds):
        assert ((f_BL[:, start:stop] > 0).sum(-1) == 1).all()


def test_louder_neighbours_do_not_silence_a_row() -> None:
    """Fault 6: with threshold 0.75 the row [1, 0.5] keeps its first latent, alone and next to [9, 8]."""
    batch_topk = BatchTopK(1)
    batch_topk.threshold.fill_(0.75)
    batch_topk.eval()
    alone, beside = f64([[1, 0.5]]), f64([[1, 0.5], [9, 8]])
    faulty, _ = top_k_of_batch(beside, 2)
    assert faulty.indices_N.tolist() == [0, 1]  # both slots would go to the second row
    assert batch_topk(alone).dense().tolist() == [[1, 0]]
    assert batch_topk(beside).dense().tolist() == [[1, 0], [9, 8]]


def test_an_uncalibrated_threshold_is_an_error_not_a_guess() -> None:
    """Fault 6: eval mode before any training has no threshold to use."""
    with pytest.raises(CrosscodeError, match="threshold"):
        BatchTopK(1).eval()(f64([[1, 0.5]]))


def test_the_log_thresholds_gradient_has_its_chain_factor() -> None:
    """Fault 9: theta = 0.5, eps = 2 gives -0.125 for log theta; without the factor theta it would be -0.25."""
    jumprelu = JumpReLU(1, 0.5, 2.0).double()
    jumprelu(f64([[0.75]])).dense().sum().backward()
    assert jumprelu.stored_threshold_L.grad.item() == exactly(-0.125, abs=1e-8)
    assert jumprelu.stored_threshold_L.grad.item() != exactly(-0.25, abs=1e-8)


def test_the_estimator_reaches_the_input_only_if_asked() -> None:
    """Fault 23: with `ste_to_input` a silent latent inside the window gets a gradient, without it none."""
    for ste_to_input, dz in ((True, 0.25), (False, 0)):
        z_BL = f64([[0.25]]).requires_grad_()
        JumpReLU(1, 0.5, 2.0, ste_to_input)(z_BL).dense().sum().backward()
        assert z_BL.grad.item() == exactly(dz, abs=1e-7)


def test_thresholds_are_given_in_natural_units() -> None:
    """Fault 28: the initial threshold is the number given, not its exponential."""
    assert JumpReLU(1, 0.1).threshold_L.item() == exactly(0.1, rel=1e-6)
    assert JumpReLU(1, 0.1).threshold_L.item() != exactly(math.exp(0.1), rel=1e-2)
    assert JumpReLU(1).threshold_L.item() != exactly(math.e, rel=1e-2)
    for parametrisation in ("log", "raw"):
        jumprelu = JumpReLU(2, parametrisation=parametrisation)
        jumprelu.set_threshold_(torch.tensor([0.2, 3.0]))
        torch.testing.assert_close(jumprelu.threshold_L.detach(), torch.tensor([0.2, 3.0]))


def test_sites_do_not_share_one_activation() -> None:
    """Fault 32: the same object for two layers would share their thresholds."""
    shared = JumpReLU(2)
    with pytest.raises(BadInput, match="twice"):
        PerSite([shared, shared])


def test_selection_sees_decoder_norms() -> None:
    """Fault 58: a latent cannot win by trading a small decoder for a large activation."""
    coder = put(
        SparseCoder(DenseEncoder((), 2, 2, bias=False), TopK(1), DenseDecoder(2, (), 1)),
        {"encoder.W_enc_XiDiL": [1, 0, 0, 1], "decoder.W_dec_LXoDo": [0.125, 1]},
    )
    z_BL = f64([[4, 1]])
    assert top_k_of_rows(z_BL, 1).indices_N.tolist() == [0]
    assert coder.encode(z_BL).dense().tolist() == [[0, 1]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_thresholds_survive_half_precision(dtype: torch.dtype) -> None:
    """An Adam step of 7e-5 on a bfloat16 threshold near 1 rounds away; an inference threshold rounds too."""
    jumprelu = JumpReLU(1).to(dtype)
    assert jumprelu.stored_threshold_L.dtype == torch.float32
    batch_topk = BatchTopK(1)
    batch_topk.threshold.fill_(1 / 3)
    assert torch.tensor(1 / 3).to(dtype).double().item() != 1 / 3
    for converted in (batch_topk.to(dtype), batch_topk.float(), batch_topk.half()):
        assert converted.threshold.dtype == torch.float64
        assert converted.threshold.item() == 1 / 3


@pytest.mark.parametrize("parametrisation", ["log", "raw"])
def test_rescaling_keeps_the_precision_of_thresholds(parametrisation: str) -> None:
    """Of float64 they stay float64; of float32 float32."""
    a_L = f64([1 / 3, 3.0])
    jumprelu = JumpReLU(2, 0.7, parametrisation=parametrisation).double()
    jumprelu.set_threshold_(f64([0.1, 0.7]))
    for activation in (jumprelu, PerSite([jumprelu, JumpReLU(2).double()])):
        scaled = activation.rescaled(a_L.repeat(len(activation.threshold_L) // 2))
        assert scaled.threshold_L.dtype == torch.float64
        torch.testing.assert_close(scaled.threshold_L[:2], f64([0.1 / 3, 2.1]), rtol=1e-15, atol=0)
    assert JumpReLU(2).rescaled(a_L.float()).threshold_L.dtype == torch.float32


def test_parts_of_an_activation_are_its_modules() -> None:
    """What they learn is trained, saved and moved with it."""
    named = {
        PerSite([JumpReLU(2), JumpReLU(2)]): {f"activations.{i}.stored_threshold_L" for i in (0, 1)},
        PerSite([BatchTopK(1), BatchTopK(1)]): {f"activations.{i}.threshold" for i in (0, 1)},
        SeparateBudgets(JumpReLU(1), JumpReLU(3), 1): {"shared.stored_threshold_L", "exclusive.stored_threshold_L"},
        Priced(BatchTopK(1), 1, 0.5): {"activation.threshold"},
    }
    for activation, names in named.items():
        assert activation.state_dict().keys() == names
        assert not any(part.training for part in activation.eval().modules())


def test_parts_are_rescaled_by_their_own_latents() -> None:
    """The first `n_shared` factors are the shared part's, the others the exclusive part's."""
    budgets = SeparateBudgets(JumpReLU(1, 1.0), JumpReLU(3, 2.0), 1).rescaled(torch.tensor([2.0, 3.0, 4.0, 5.0]))
    torch.testing.assert_close(budgets.shared.threshold_L, torch.tensor([2.0]))
    torch.testing.assert_close(budgets.exclusive.threshold_L, torch.tensor([6.0, 8.0, 10.0]))
    sites = PerSite([JumpReLU(2, 1.0), JumpReLU(2, 2.0)]).rescaled(torch.tensor([2.0, 3.0, 4.0, 5.0]))
    torch.testing.assert_close(sites.threshold_L, torch.tensor([2.0, 3.0, 8.0, 10.0]))


def test_folding_and_copying_do_not_round_the_inference_threshold() -> None:
    """A float32 coder's running threshold is float64, and stays so in its export and its copy."""
    import copy

    coder = random_coder("crosscoder", "batch_topk").float()
    coder.activation.threshold.fill_(1 / 3)
    assert coder.folded().activation.threshold.item() == 1 / 3
    assert copy.deepcopy(coder).activation.threshold.item() == 1 / 3


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk", "batch_topk", "per_site_mixed"])
@pytest.mark.parametrize("shape", ["crosscoder", "shared", "compound"])
def test_a_half_precision_coder_runs_forward_and_backward(shape: str, activation: str) -> None:
    """bfloat16 parameters give bfloat16 latents and outputs near those of float32, and gradients for all."""
    coder = random_coder(shape, activation).float()
    batch = random_batch(coder)
    wanted = coder(batch.inputs_BXiDi)
    half = coder.bfloat16()
    out = half(batch.inputs_BXiDi.bfloat16())
    assert out.dtype == torch.bfloat16
    out.float().square().mean().backward()
    named = {name: p for name, p in half.named_parameters() if "skip" not in name}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in named.values())
    if activation in ("relu", "jumprelu"):
        torch.testing.assert_close(out.float(), wanted, rtol=0.1, atol=0.5)


def test_parts_that_rank_differently_are_refused_at_once() -> None:
    """A weighted and an unweighted part have no common canonical form; the coder says so when it is built."""
    mixed = PerSite([TopK(1), TopK(1, weighted=False)])
    with pytest.raises(BadInput, match="rank alike"):
        SparseCoder(DenseEncoder((2,), 3, 4), mixed, DenseDecoder(4, (2,), 3))


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: TopK(0), "TopK.k=0"),
        (lambda: BatchTopK(0), "BatchTopK.k=0"),
        (lambda: GroupMax(0), "GroupMax.k=0"),
        (lambda: JumpReLU(4, threshold=0.0), "JumpReLU.threshold=0.0"),
        (lambda: JumpReLU(4, bandwidth=-1.0), "JumpReLU.bandwidth=-1.0"),
        (lambda: Priced(TopK(1), 2, 0.0), "Priced.price=0.0"),
        (lambda: SparseCoder(DenseEncoder((), 2, 4), TopK(5), DenseDecoder(4, (), 2)), "TopK.k=5"),
        (lambda: SparseCoder(DenseEncoder((), 2, 4), JumpReLU(5), DenseDecoder(4, (), 2)), "JumpReLU.n_latents=5"),
        (
            lambda: SparseCoder(DenseEncoder((), 2, 4), SeparateBudgets(TopK(1), TopK(3), 2), DenseDecoder(4, (), 2)),
            "TopK.k=3",
        ),
        (
            lambda: SparseCoder(DenseEncoder((), 2, 4), PerSite([ReLU(), ReLU(), ReLU()]), DenseDecoder(4, (), 2)),
            "n_latents=4",
        ),
    ],
)
def test_what_cannot_work_is_refused_when_built(build, match: str) -> None:
    """One line that names the argument and its value."""
    with pytest.raises(BadInput, match=match) as refused:
        build()
    assert "\n" not in str(refused.value)
