"""The law of the library: sparse codes and sparse gradients equal dense float64 autograd, whatever the parts.

Every activation x every shape of encoder and decoder x every loss and penalty; values, and every parameter's gradient.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from strategies import ACTIVATIONS, PRODUCT, L, random_batch, random_coder
from torch import Tensor

from crosscode.losses import (
    FixedNMSE,
    FractionOfVarianceUnexplained,
    MatryoshkaSquaredError,
    MeanNorm,
    SummedSquaredError,
)
from crosscode.models import SparseCoder, Trace
from crosscode.penalties import (
    AuxK,
    DeltaReconstruction,
    DifferenceWeighting,
    ExpectedL0,
    L0Quadratic,
    L0QuadraticRelative,
    L1OfNorms,
    PreActivation,
    TanhFrequency,
    TanhSparsity,
)

sys.path.insert(0, str(Path(__file__).parent))
from reference import Reference, combine, reference, safe_norm

Term = Callable[[Trace], Tensor]
Formula = Callable[[Reference], Tensor]

SILENT_L = torch.zeros(L, dtype=torch.int64)
DEAD = [1, 4, 5, 9]
SILENT_L[DEAD] = 100


def aux_k(ref: Reference, k: int, norm: str) -> Tensor:
    e_BXD = ref.error_BXD.detach()
    r_BL = ref.z_BL.relu()
    v_BL = (r_BL * combine(ref.norms_LX, norm)).detach()
    live = [latent for latent in range(L) if latent not in DEAD]
    v_BL[:, live] = -1
    beaten_by_BL = (v_BL[:, None, :] > v_BL[:, :, None]).sum(-1)
    ehat_BXD = ref.decode(r_BL * ((beaten_by_BL < k) & (v_BL > 0)))
    return (ehat_BXD - e_BXD).square().sum() / (e_BXD - e_BXD.mean(0)).square().sum()


def tanh_frequency(ref: Reference, c: float, s: float, latents: slice = slice(None)) -> Tensor:
    p_L = torch.tanh(c * ref.f_BL * combine(ref.norms_LX, "l1_of_l2")).mean(0)[latents]
    return (p_L + p_L.square() / s).sum()


def fvu(ref: Reference) -> Tensor:
    return ref.error_BXD.square().sum() / (ref.y_BXD - ref.y_BXD.mean(0)).square().sum()


def matryoshka(ref: Reference, prefixes: tuple[int, ...]) -> Tensor:
    total = torch.zeros(())
    for n in prefixes:
        kept_L = (torch.arange(L) < n).double()
        total = total + (ref.y_BXD - ref.recon(ref.f_BL * kept_L)).square().sum() / len(ref.y_BXD)
    return total


def per_token(value: Callable[[Reference], Tensor]) -> Formula:
    return lambda ref: value(ref).sum() / len(ref.y_BXD)


def two_models(ref: Reference) -> tuple[Tensor, Tensor, Tensor]:
    """Decoders, targets and errors with the two models apart and the rest flat."""
    n_tokens = len(ref.y_BXD)
    return (
        ref.W_dec_LXD.reshape(L, 2, -1),
        ref.y_BXD.reshape(n_tokens, 2, -1),
        ref.error_BXD.reshape(n_tokens, 2, -1),
    )


def delta(ref: Reference, latents: slice, n_real: int) -> Tensor:
    W_LMO, y_BMO, _ = two_models(ref)
    written_BO = ref.f_BL[:, latents] @ (W_LMO[latents, 1] - W_LMO[latents, 0])
    return (written_BO - (y_BMO[:, 1] - y_BMO[:, 0])).square().sum() / (len(ref.y_BXD) * n_real)


def difference(ref: Reference) -> Tensor:
    _, _, e_BMO = two_models(ref)
    return -2 * (e_BMO[:, 1] * e_BMO[:, 0]).sum() / len(ref.y_BXD)


def terms(coder: SparseCoder, activation: str) -> dict[str, tuple[Term, Formula]]:
    """Every loss and penalty that applies to the coder, each beside its formula."""
    n_sites = coder.decoder.norms_LXo()[0].numel()
    n_real = n_sites * coder.decoder.d_out
    if coder.decoder.widths_Xo is not None:
        n_real = sum(coder.decoder.widths_Xo)
    weights = [0.5 + site for site in range(n_sites)]
    found: dict[str, tuple[Term, Formula]] = {
        "sum_sq": (SummedSquaredError(), per_token(lambda r: r.error_BXD.square())),
        "weighted sum_sq": (
            SummedSquaredError(weights),
            per_token(lambda r: torch.tensor(weights)[:, None] * r.error_BXD.square()),
        ),
        "mean_norm": (MeanNorm(), lambda r: safe_norm(r.error_BXD).mean()),
        "fvu": (FractionOfVarianceUnexplained(), fvu),
        "fixed_nmse": (FixedNMSE(0.7), lambda r: r.error_BXD.square().sum() / (len(r.y_BXD) * n_real) / 0.7),
        "matryoshka": (MatryoshkaSquaredError((3, 7, L)), lambda r: matryoshka(r, (3, 7, L))),
        "l1": (L1OfNorms(), per_token(lambda r: r.f_BL * combine(r.norms_LX, "l1_of_l2"))),
        "l1 of l2 on some": (
            L1OfNorms("l2", slice(2, 8)),
            per_token(lambda r: (r.f_BL * combine(r.norms_LX, "l2"))[:, 2:8]),
        ),
        "l1 unweighted": (L1OfNorms("none"), per_token(lambda r: r.f_BL)),
        "tanh": (
            TanhSparsity(2.0, latents=slice(4, None)),
            per_token(lambda r: torch.tanh(2 * r.f_BL * combine(r.norms_LX, "l1_of_l2"))[:, 4:]),
        ),
        "tanh_freq": (TanhFrequency(1.5, 0.2), lambda r: tanh_frequency(r, 1.5, 0.2)),
        "tanh_freq of some": (
            TanhFrequency(1.5, 0.2, latents=slice(4, None)),
            lambda r: tanh_frequency(r, 1.5, 0.2, slice(4, None)),
        ),
        "aux_k": (AuxK(2, dead_after_tokens=50), lambda r: aux_k(r, 2, "l1_of_l2")),
        "aux_k unweighted": (AuxK(9, 50, norm="none"), lambda r: aux_k(r, 9, "none")),
    }
    if coder.decoder.out_dims[:1] == (2,):
        n_of_wider = max(n_real // 2, *(coder.decoder.widths_Xo or (0,)))
        found["delta"] = (DeltaReconstruction(slice(2, 9)), lambda r: delta(r, slice(2, 9), n_of_wider))
        found["difference"] = (DifferenceWeighting(), difference)
        found["single_model"] = (
            L1OfNorms("single_model"),
            per_token(lambda r: r.f_BL * combine(r.norms_LX, "l1_of_l2") / 2),
        )
        found["tanh of one model"] = (
            TanhSparsity(2.0, "single_model", slice(0, 5)),
            per_token(lambda r: torch.tanh(2 * r.f_BL * combine(r.norms_LX, "l1_of_l2") / 2)[:, :5]),
        )
    if activation in ("jumprelu", "jumprelu_gdm", "per_site_jumprelu"):
        found["pre_act"] = (
            PreActivation(coder.activation, "l2"),
            per_token(lambda r: (r.threshold_L - r.z_BL).relu() * combine(r.norms_LX, "l2")),
        )
        found["pre_act of the dead"] = (
            PreActivation(coder.activation, dead_after_tokens=50),
            per_token(lambda r: ((r.threshold_L - r.z_BL).relu() * combine(r.norms_LX, "l1_of_l2"))[:, DEAD]),
        )
        found["l0"] = (ExpectedL0(coder.activation), per_token(lambda r: r.step()))
        found["l0_quad"] = (
            L0Quadratic(coder.activation, 3.0),
            lambda r: 2 / 3 * (r.step().sum() / len(r.y_BXD) - 3).square(),
        )
        found["l0_quad_rel"] = (
            L0QuadraticRelative(coder.activation, 3.0),
            lambda r: (r.step().sum() / len(r.y_BXD) / 3 - 1).square(),
        )
    return found


FORMS = [
    (shape, activation, sparse)
    for shape, activation in PRODUCT
    for sparse in ((False, True) if ACTIVATIONS[activation]().codes == "either" else (False,))
]


@pytest.mark.parametrize(("shape", "activation", "sparse"), FORMS)
def test_values_and_gradients_equal_the_dense_reference(shape: str, activation: str, sparse: bool) -> None:
    """Latents, reconstructions, each term, and each term's gradient for every parameter and the raw inputs."""
    coder = random_coder(shape, activation)
    batch = random_batch(coder)
    batch.inputs_BXiDi.requires_grad_()
    leaves = {**dict(coder.named_parameters()), "inputs": batch.inputs_BXiDi}
    ref = reference(coder, batch, shape, activation)
    trace = Trace.of(coder, batch, SILENT_L, sparse)
    assert trace.latents.is_sparse == (sparse or coder.activation.codes == "sparse")
    close(trace.latents_BL, ref.f_BL, "latents")
    close(trace.pre_BL, ref.z_BL, "pre-activations")
    close(trace.recon_BXoDo.reshape(ref.y_BXD.shape), ref.recon(), "reconstructions")
    for name, (term, formula) in terms(coder, activation).items():
        value, wanted = term(trace), formula(ref)
        close(value, wanted, name)
        for parameter, got, should in zip(leaves, gradients(value, leaves), gradients(wanted, ref.leaves)):
            close(got, should, f"d {name} / d {parameter}")


def gradients(value: Tensor, leaves: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, list(leaves.values()), retain_graph=True, materialize_grads=True)


def close(got: Tensor, wanted: Tensor, what: str) -> None:
    assert torch.allclose(got, wanted, rtol=1e-10, atol=1e-10), f"{what}: off by {(got - wanted).abs().max():.3g}"
