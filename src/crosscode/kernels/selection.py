"""Exact selection: which entries of a matrix of scores are kept. Only positive scores are ever kept."""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscode.kernels.pattern import Pattern, places_where

SAMPLE_STRIDE = 61  # every 61st score tells where the threshold of a whole batch lies


def keep_positive(scores_BK: Float[Tensor, "B K"], indices_BK: Int[Tensor, "B K"], n_columns: int) -> Pattern:
    """The candidates with a positive score."""
    indices_BK, order_BK = indices_BK.sort(dim=-1)
    positive_BK = scores_BK > 0
    if positive_BK.all():
        counts_B = torch.full_like(indices_BK[:, 0], indices_BK.shape[1])
        return Pattern.from_counts(indices_BK.flatten(), counts_B, n_columns)
    kept_BK = positive_BK.gather(-1, order_BK)
    return Pattern.from_counts(indices_BK[kept_BK], kept_BK.sum(-1), n_columns)


def top_k(scores_BL: Float[Tensor, "B L"], k: int) -> tuple[Float[Tensor, "B k"], Int[Tensor, "B k"]]:
    """`scores.topk(k)` of every row, unordered: on CPU twice as fast, by way of the maxima of groups.

    The groups whose maxima are the k largest hold the k largest scores, so only they are searched.
    """
    n_columns = scores_BL.shape[-1]
    size = next((size for size in (8, 4) if n_columns % size == 0 and n_columns // size >= 8 * k), 1)
    if size == 1 or scores_BL.device.type != "cpu":
        return tuple(scores_BL.topk(k, dim=-1, sorted=False))  # type: ignore[return-value]
    n_groups = n_columns // size
    _, groups_Bk = top_k(scores_BL.unflatten(-1, (size, n_groups)).amax(1), k)
    members_BK = (groups_Bk[..., None] + torch.arange(0, n_columns, n_groups)).flatten(1)
    best = scores_BL.gather(-1, members_BK).topk(k, dim=-1, sorted=False)
    return best.values, members_BK.gather(-1, best.indices)


def top_k_of_rows(scores_BL: Float[Tensor, "B L"], k: int) -> Pattern:
    """The `k` largest positive scores of every row."""
    n_columns = scores_BL.shape[-1]
    return keep_positive(*top_k(scores_BL, min(k, n_columns)), n_columns)


def top_k_of_batch(scores_BL: Float[Tensor, "B L"], k: int) -> tuple[Pattern, Float[Tensor, ""] | None]:
    """The `k` largest positive scores of the whole batch, and the smallest of them (None if none is positive)."""
    flat = scores_BL.reshape(-1)
    where_N = _above_a_threshold(flat, k)
    scores_N = flat.index_select(0, where_N)
    if len(where_N) == 0:
        return Pattern.from_flat(where_N, *scores_BL.shape), None
    smallest = scores_N.topk(min(k, len(where_N)), sorted=False).values.min()
    kept_N = places_where(scores_N >= smallest)
    if len(kept_N) > k:  # of those that tie for the last places, the first come first
        ties_n = places_where(scores_N.index_select(0, kept_N) == smallest)
        stays_N = torch.ones_like(kept_N, dtype=torch.bool).index_fill_(0, ties_n[k - len(kept_N) :], False)
        kept_N = kept_N.index_select(0, places_where(stays_N))
    return Pattern.from_flat(where_N.index_select(0, kept_N), *scores_BL.shape), smallest


def _above_a_threshold(flat: Float[Tensor, " N"], k: int) -> Int[Tensor, " n"]:
    """Where the `k` largest positive scores are, and a few others: all that lie above a threshold set by a sample."""
    sample = flat[::SAMPLE_STRIDE]
    expected = k / SAMPLE_STRIDE
    n_above = math.ceil(expected + 4 * math.sqrt(expected) + 8)
    while n_above < len(sample):
        threshold = sample.topk(n_above, sorted=False).values.min()
        if threshold <= 0:
            break
        where_n = places_where(above(flat, threshold))
        if len(where_n) >= k:
            return where_n
        n_above *= 2  # the sample was not like the rest
    return places_where(above(flat, 0.0))


def max_of_groups(scores_BL: Float[Tensor, "B L"], n_groups: int) -> Pattern:
    """The largest positive score of each contiguous group; group i is `[floor(iL/k), floor((i+1)L/k))`."""
    n_columns = scores_BL.shape[-1]
    bounds = torch.arange(n_groups + 1, device=scores_BL.device) * n_columns // n_groups
    if n_columns % n_groups == 0:
        scores_BG, within_BG = scores_BL.unflatten(-1, (n_groups, -1)).max(-1)
    else:
        widest = int(-(-n_columns // n_groups))
        members_GW = bounds[:-1, None] + torch.arange(widest, device=scores_BL.device)
        outside_GW = members_GW >= bounds[1:, None]
        grouped_BGW = scores_BL[:, members_GW.clamp_max(n_columns - 1)].masked_fill(outside_GW, -torch.inf)
        scores_BG, within_BG = grouped_BGW.max(-1)
    return keep_positive(scores_BG, within_BG + bounds[:-1], n_columns)


def entries_where(mask_BL: Bool[Tensor, "B L"]) -> Pattern:
    """Where a mask is true."""
    return Pattern.from_flat(places_where(mask_BL), *mask_BL.shape)


def above(scores: Float[Tensor, "*B L"], threshold: Float[Tensor, "*#L"] | float) -> Bool[Tensor, "*B L"]:
    """`scores > threshold`, in half the time on CPU."""
    if scores.device.type != "cpu" or scores.dtype not in (torch.float32, torch.float64):
        return scores > threshold
    limit = torch.as_tensor(threshold).detach()
    limit = limit.to(scores.dtype) if limit.ndim == 0 else limit  # as torch compares with a single number
    return torch.from_numpy(np.greater(scores.detach().numpy(), limit.numpy()))
