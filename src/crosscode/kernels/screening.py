"""The `k` largest of a product's rows without the product: bfloat16 says which may be, float32 decides. It is exact.

The product in bfloat16 takes less than half the time on CPUs that have an instruction for it. How far it can be off is
bounded, row by row; whatever could still be among the k largest, in the worst case, is computed again in float32.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscode.kernels.pattern import Pattern
from crosscode.kernels.selection import top_k_of_short_rows
from crosscode.kernels.sparse import sample_products

LEAST_ROWS, LEAST_WEIGHTS = 512, 1 << 21  # B and I x L from which it is faster
ROUNDING = 2.0**-8  # of bfloat16, relative, at most
MOST_CANDIDATES = 6  # times k on average, beyond which the whole product in float32 is faster
LEAST_LIMIT = 1e-30  # far from where products underflow


def screening_is_faster(x_BI: Float[Tensor, "B I"], W_IL: Float[Tensor, "I L"], k: int) -> bool:
    """Whether screening is faster here than the product: at this size, on this processor."""
    if x_BI.device.type != "cpu" or x_BI.dtype != torch.float32 or W_IL.dtype != torch.float32:
        return False
    large = len(x_BI) >= LEAST_ROWS and W_IL.numel() >= LEAST_WEIGHTS and _group_size(W_IL.shape[1], k) > 1
    return large and not torch.is_autocast_enabled("cpu") and bool(torch.cpu._is_avx512_bf16_supported())


def _group_size(n_columns: int, k: int) -> int:
    return next((size for size in (16, 8) if n_columns % size == 0 and n_columns // size >= 8 * k), 1)


@torch.no_grad()
def top_k_of_product(
    x_BI: Float[Tensor, "B I"],
    W_IL: Float[Tensor, "I L"],
    b_L: Float[Tensor, " L"] | None,
    k: int,
    weights_L: Float[Tensor, " L"] | None,
) -> tuple[Pattern, Float[Tensor, " N"]] | None:
    """The `k` largest scores `(x W + b) * weights` of every row, all positive, and `x W + b` there.

    None if the bound is too wide to tell them apart, or fewer than k may be positive.
    """
    weights_L = W_IL.new_ones(W_IL.shape[1]) if weights_L is None else weights_L
    b_L = torch.zeros_like(weights_L) if b_L is None else b_L
    W_LI = W_IL.t().contiguous()
    approximate_BL, error_B = _approximate_scores(x_BI, W_IL * weights_L, b_L * weights_L)
    candidates = _candidates(approximate_BL, error_B, k)
    if candidates is None:
        return None
    del approximate_BL
    b_N, weights_N = (per_L.index_select(0, candidates.indices_N) for per_L in (b_L, weights_L))
    pre_N = sample_products(x_BI, W_LI, candidates) + b_N
    best_Bk = _top_k_of_entries(pre_N * weights_N, candidates, k)
    counts_B = torch.full_like(best_Bk[:, 0], k)
    best_N = best_Bk.flatten()
    pattern = Pattern.from_counts(candidates.indices_N.index_select(0, best_N), counts_B, candidates.n_columns)
    return pattern, pre_N.index_select(0, best_N)


def _approximate_scores(
    x_BI: Float[Tensor, "B I"], W_IL: Float[Tensor, "I L"], offsets_L: Float[Tensor, " L"]
) -> tuple[Float[Tensor, "B L"], Float[Tensor, " B"]]:
    """Scores from a product in bfloat16, offsets included, and by how much one of each row may be off before rounding.

    What rounding takes from `x` and `W` is known: a sum is off by at most `|lost of x| |W| + |rounded x| |lost of W|`
    (Cauchy-Schwarz). Offsets are two terms, what rounding takes from the first being the second. Sums are in float32,
    here and where float32 decides.
    """
    n_in, n_columns = W_IL.shape
    left = torch.ones(len(x_BI), n_in + 2, dtype=torch.bfloat16)
    left[:, :n_in] = x_BI
    right = torch.empty(n_in + 2, n_columns, dtype=torch.bfloat16)
    right[:n_in] = W_IL
    right[n_in] = offsets_L
    right[n_in + 1] = offsets_L - right[n_in].float()
    size_B, lost_B = (torch.linalg.vector_norm(each, dim=1) for each in (x_BI, x_BI - left[:, :n_in]))
    size, lost = (torch.linalg.vector_norm(each, dim=0).max() for each in (W_IL, W_IL - right[:n_in]))
    summing = (n_in + 2) * torch.finfo(torch.float32).eps
    error_B = 1.01 * (lost_B * size + (size_B + lost_B) * lost) + size_B * size * summing
    return left @ right, error_B + offsets_L.abs().max() * (2 * ROUNDING**2 + summing)


def _candidates(approximate_BL: Float[Tensor, "B L"], error_B: Float[Tensor, " B"], k: int) -> Pattern | None:
    """Whatever may be among the k largest of its row.

    k scores are at least `t`, the k-th largest of the maxima of groups. So the true k-th largest is at least `t` less
    one error, and what is as large as that is approximated by no less than `t` less two errors. Positive bfloat16
    numbers have the order of the whole numbers that their bits are, and negative ones are below: numpy compares those.
    """
    n_columns = approximate_BL.shape[1]
    bits_BL = approximate_BL.view(torch.int16)
    maxima_BG = bits_BL.unflatten(-1, (_group_size(n_columns, k), -1)).amax(1)
    kth = np.partition(maxima_BG.numpy(), maxima_BG.shape[1] - k)[:, maxima_BG.shape[1] - k].copy()
    limit_B = torch.from_numpy(kth).view(torch.bfloat16).float() * (1 - 2 * ROUNDING) - 2 * error_B
    if not (limit_B > LEAST_LIMIT).all():
        return None
    limit = (limit_B.view(torch.int32) >> 16).short().numpy()  # rounded down to bfloat16
    where_N = torch.from_numpy(np.flatnonzero(bits_BL.numpy() >= limit[:, None]))
    if len(where_N) > MOST_CANDIDATES * k * len(error_B):
        return None
    return Pattern.from_flat(where_N, *approximate_BL.shape)


def _top_k_of_entries(scores_N: Float[Tensor, " N"], pattern: Pattern, k: int) -> Int[Tensor, "B k"]:
    """Which entries are the k largest of each row, in their order; every row has as many."""
    counts_B = pattern.offsets_B1.diff()
    width = int(counts_B.max())
    shift_B = torch.arange(len(counts_B)) * width - pattern.offsets_B1[:-1]
    padded_BW = scores_N.new_full((len(counts_B), width), -torch.inf)
    padded_BW.view(-1)[torch.arange(len(pattern)) + shift_B.index_select(0, pattern.rows_N)] = scores_N
    within_Bk = top_k_of_short_rows(padded_BW, k)
    return torch.from_numpy(np.sort((within_Bk + pattern.offsets_B1[:-1, None]).numpy()))
