"""Exact selection: which entries of a matrix of scores are kept. Only positive scores are ever kept."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def offsets_of(counts_B: Int[Tensor, " B"]) -> Int[Tensor, " B1"]:
    """CSR row offsets from the number of entries in each row."""
    return torch.nn.functional.pad(counts_B.cumsum(0), (1, 0))


def keep_positive(
    scores_BK: Float[Tensor, "B K"], indices_BK: Int[Tensor, "B K"]
) -> tuple[Int[Tensor, " N"], Int[Tensor, " B1"]]:
    """Column indices (ascending in each row) and row offsets of the candidates with a positive score."""
    indices_BK, order_BK = indices_BK.sort(dim=-1)
    keep_BK = scores_BK.gather(-1, order_BK) > 0
    return indices_BK[keep_BK], offsets_of(keep_BK.sum(-1))


def top_k_of_rows(scores_BL: Float[Tensor, "B L"], k: int) -> tuple[Int[Tensor, " N"], Int[Tensor, " B1"]]:
    """The `k` largest positive scores of every row."""
    scores_BK, indices_BK = scores_BL.topk(min(k, scores_BL.shape[-1]), dim=-1, sorted=False)
    return keep_positive(scores_BK, indices_BK)


def top_k_of_batch(
    scores_BL: Float[Tensor, "B L"], k: int
) -> tuple[Int[Tensor, " N"], Int[Tensor, " B1"], Float[Tensor, ""] | None]:
    """The `k` largest positive scores of the whole batch, and the smallest of them (None if none is positive)."""
    n_rows, n_columns = scores_BL.shape
    flat = scores_BL.reshape(-1)
    kept, where = flat.topk(min(k, flat.numel()), sorted=False)
    positive = kept > 0
    where = where[positive].sort().values
    rows_N = where // n_columns
    offsets_B1 = offsets_of(torch.bincount(rows_N, minlength=n_rows))
    smallest = kept[positive].min() if len(where) else None
    return where % n_columns, offsets_B1, smallest


def max_of_groups(scores_BL: Float[Tensor, "B L"], n_groups: int) -> tuple[Int[Tensor, " N"], Int[Tensor, " B1"]]:
    """The largest positive score of each contiguous group; group i is `[floor(iL/k), floor((i+1)L/k))`."""
    n_columns = scores_BL.shape[-1]
    bounds = torch.arange(n_groups + 1, device=scores_BL.device) * n_columns // n_groups
    widest = int(-(-n_columns // n_groups))
    members_GW = bounds[:-1, None] + torch.arange(widest, device=scores_BL.device)
    outside_GW = members_GW >= bounds[1:, None]
    grouped_BGW = scores_BL[:, members_GW.clamp_max(n_columns - 1)].masked_fill(outside_GW, -torch.inf)
    scores_BG, within_BG = grouped_BGW.max(-1)
    return keep_positive(scores_BG, within_BG + bounds[:-1])


def entries_where(mask_BL: Bool[Tensor, "B L"]) -> tuple[Int[Tensor, " N"], Int[Tensor, " B1"]]:
    """Column indices and row offsets of a mask's true entries."""
    return mask_BL.nonzero()[:, 1], offsets_of(mask_BL.sum(-1))
