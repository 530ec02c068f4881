"""Screening in bfloat16 keeps exactly what float32 keeps.

Weights and inputs are short binary fractions, so that float32 sums them without rounding, in any order, while bfloat16
cannot tell many of them apart.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crosscode.activations import TopK
from crosscode.kernels import screening
from crosscode.kernels.screening import top_k_of_product
from crosscode.kernels.selection import top_k_of_rows
from crosscode.models import coder as coder_module
from crosscode.models import sae

B, D, L = 12, 32, 512
few = settings(max_examples=80, deadline=None, derandomize=True)


def problem(seed: int, kind: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`x`, `W`, `b` and weights whose scores are alike in ways that bfloat16 does not resolve."""
    generator = torch.Generator().manual_seed(seed)
    fractions = lambda *shape: torch.randint(-(1 << 12), 1 << 12, shape, generator=generator).float() / (1 << 12)
    x_BD = torch.randint(-3, 4, (B, D), generator=generator).float()
    W_DL, b_L = fractions(D, L), fractions(L)
    weights_L = 2.0 ** torch.randint(-1, 2, (L,), generator=generator).float()
    if kind == "near ties":  # groups of columns that differ in their last bits only
        W_DL = W_DL[:, :: L // 16].repeat_interleave(L // 16, dim=1)
        W_DL[0] += torch.randint(-4, 5, (L,), generator=generator) / (1 << 12)
        b_L, weights_L = b_L[:16].repeat_interleave(L // 16), torch.ones(L)
    elif kind == "ties":
        W_DL = W_DL[:, torch.randint(0, L // 4, (L,), generator=generator)]
        b_L, weights_L = torch.zeros(L), torch.ones(L)
    elif kind == "large offsets":
        b_L = b_L.sign() * 64 + b_L
    elif kind == "one heavy latent":
        W_DL[:, 7] *= 256
    return x_BD, W_DL, b_L, weights_L


@few
@given(
    st.integers(0, 100_000),
    st.sampled_from(["plain", "near ties", "ties", "large offsets", "one heavy latent"]),
    st.sampled_from([1, 3, 8]),
)
def test_screening_keeps_what_float32_keeps(seed: int, kind: str, k: int) -> None:
    """The same scores, latent by latent where they differ; or it says that it cannot tell."""
    x_BD, W_DL, b_L, weights_L = problem(seed, kind)
    z_BL = x_BD @ W_DL + b_L
    wanted = top_k_of_rows(z_BL, k, weights_L)
    found = top_k_of_product(x_BD, W_DL, b_L, k, weights_L)
    if found is None:
        return
    pattern, pre_N = found
    assert torch.equal(pattern.offsets_B1, wanted.offsets_B1)
    assert torch.equal(pre_N, pattern.of(z_BL))
    scores_BL = z_BL * weights_L
    for start, stop in pattern.offsets_B1.unfold(0, 2, 1).tolist():
        got, should = pattern.indices_N[start:stop], wanted.indices_N[start:stop]
        row = int(pattern.rows_N[start])
        assert got.tolist() == sorted(set(got.tolist()))
        assert torch.equal(scores_BL[row, got].sort().values, scores_BL[row, should].sort().values)
        least = scores_BL[row, should].min()
        assert set(got[scores_BL[row, got] > least].tolist()) == set(should[scores_BL[row, should] > least].tolist())


def test_it_can_tell_where_it_is_meant_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """On plain problems it finds the answer and does not give up; bfloat16 alone would keep others."""
    monkeypatch.setattr(screening, "MOST_CANDIDATES", L)
    wrong = 0
    for seed in range(10):
        x_BD, W_DL, b_L, weights_L = problem(seed, "plain")
        assert top_k_of_product(x_BD, W_DL, b_L, 3, weights_L) is not None
        x_BD, W_DL, b_L, weights_L = problem(seed, "near ties")
        rounded_BL = (x_BD.bfloat16() @ W_DL.bfloat16()).float() + b_L
        wanted = top_k_of_rows(x_BD @ W_DL + b_L, 3)
        wrong += not torch.equal(top_k_of_rows(rounded_BL, 3).indices_N, wanted.indices_N)
    assert wrong


def test_where_it_cannot_tell_it_says_so() -> None:
    """NaN, fewer positive scores than k, or an offset that drowns the rest."""
    x_BD, W_DL, b_L, weights_L = problem(0, "plain")
    assert top_k_of_product(x_BD, W_DL, b_L - 1e4, 3, weights_L) is None
    assert top_k_of_product(x_BD, W_DL, None, 3, None) is not None
    x_BD[3, 4] = torch.nan
    assert top_k_of_product(x_BD, W_DL, b_L, 3, weights_L) is None


def test_the_bound_holds_in_the_worst_case() -> None:
    """Every input and weight half way between two bfloat16 numbers, all rounded against the better latent."""
    down, up = 1 + 2**-8, 1 + 3 * 2**-8  # ties, to even: 1 and 1 + 2^-6
    halves_D = torch.arange(D) < D // 2
    x_BD = torch.where(halves_D, down, up).expand(B, D).contiguous()
    assert (x_BD.bfloat16().float() - x_BD).abs().min() == 2**-8
    W_DL, b_L = torch.zeros(D, L), torch.zeros(L)
    W_DL[:, 3] = torch.where(halves_D, down, -up)
    W_DL[:, 400] = -W_DL[:, 3]
    difference = float((x_BD[0] @ W_DL[:, [3, 400]]).diff())
    for base in (2.0, 8.0):
        b_L[3], b_L[400] = base + difference + 2**-6, base
        scores_BL = x_BD @ W_DL + b_L
        assert (scores_BL.argmax(-1) == 3).all()
        found = top_k_of_product(x_BD, W_DL, b_L, 1, None)
        assert found is not None
        assert found[0].indices_N.tolist() == [3] * B


def test_it_is_used_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a number of rows and of weights on, in float32 on a CPU that multiplies bfloat16, and nowhere else."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    rows, columns = screening.LEAST_ROWS, 8192
    inputs = screening.LEAST_WEIGHTS // columns
    x_BI, W_IL = torch.empty(rows, inputs), torch.empty(inputs, columns)
    assert screening.screening_is_faster(x_BI, W_IL, 32)
    assert screening.screening_is_faster(
        x_BI, W_IL, 128
    )  # groups of 8, of whose maxima there are 8 times as many as are kept
    refused = [
        (x_BI[1:], W_IL, 32),
        (x_BI[:, 1:], W_IL[1:], 32),
        (x_BI, W_IL, 129),
        (x_BI.double(), W_IL, 32),
        (x_BI, W_IL.bfloat16(), 32),
        (x_BI.to("meta"), W_IL.to("meta"), 32),
        (x_BI, torch.empty(inputs, columns + 1), 32),
    ]
    for arguments in refused:
        assert not screening.screening_is_faster(*arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not screening.screening_is_faster(x_BI, W_IL, 32)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert not screening.screening_is_faster(x_BI, W_IL, 32)


def test_a_coder_is_the_same_with_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents, reconstructions and gradients, with weights that float32 rounds."""
    generator = torch.Generator().manual_seed(0)
    found = []
    x_BD = torch.randn(64, D, generator=generator)
    W_LD = torch.randn(L, D, generator=generator)
    for screened in (False, True):
        monkeypatch.setattr(coder_module, "screening_is_faster", lambda *_, screened=screened: screened)
        coder = sae(D, L, TopK(4))
        coder.decoder.assign_(W_LD)
        coder.encoder.assign_(W_LD.t())
        latents = coder.encode(x_BD)
        (coder.decode(latents) - x_BD).square().sum().backward()
        found.append((latents.dense(), *(parameter.grad for parameter in coder.parameters())))
    for without, with_it in zip(*found):
        torch.testing.assert_close(with_it, without, rtol=1e-4, atol=1e-3)
    assert torch.equal(found[0][0] > 0, found[1][0] > 0)
