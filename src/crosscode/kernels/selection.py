"""Exact selection: which entries of a matrix of scores are kept. Only positive scores are ever kept."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscode.kernels.pattern import Pattern, places_where, values_at

ROWS_AT_ONCE = 1 << 20  # scores of as many entries stay in cache
SHORT_ROWS = 2048  # up to here numpy finds the k-th largest faster than torch
SAMPLE_STRIDE = 61  # every 61st score tells where the threshold of a whole batch lies


def keep_positive(scores_BK: Float[Tensor, "B K"], indices_BK: Int[Tensor, "B K"], n_columns: int) -> Pattern:
    """The candidates with a positive score."""
    positive_BK = scores_BK > 0
    if positive_BK.all():
        counts_B = torch.full_like(indices_BK[:, 0], indices_BK.shape[1])
        return Pattern.from_counts(_sorted(indices_BK).flatten(), counts_B, n_columns)
    indices_BK, order_BK = indices_BK.sort(dim=-1)
    kept_BK = positive_BK.gather(-1, order_BK)
    return Pattern.from_counts(indices_BK[kept_BK], kept_BK.sum(-1), n_columns)


def _sorted(rows: Int[Tensor, "B K"]) -> Int[Tensor, "B K"]:
    return torch.from_numpy(np.sort(rows.numpy())) if rows.device.type == "cpu" else rows.sort(dim=-1).values


def top_k(scores_BL: Float[Tensor, "B L"], k: int) -> Int[Tensor, "B k"]:
    """Which are the `k` largest of every row, in any order: on CPU by way of the maxima of groups.

    The groups whose maxima are the k largest hold the k largest scores, so only they are searched.
    """
    n_columns = scores_BL.shape[-1]
    if scores_BL.device.type != "cpu" or scores_BL.dtype not in (torch.float32, torch.float64):
        return scores_BL.topk(k, dim=-1, sorted=False).indices
    size = next((size for size in (8, 4) if n_columns % size == 0 and n_columns // size >= 8 * k), 1)
    if size == 1:
        return top_k_of_short_rows(scores_BL, k)
    n_groups = n_columns // size
    groups_Bk = top_k(scores_BL.unflatten(-1, (size, n_groups)).amax(1), k)
    members_BK = (groups_Bk[..., None] + torch.arange(0, n_columns, n_groups, device=groups_Bk.device)).flatten(1)
    return members_BK.gather(-1, top_k_of_short_rows(scores_BL.gather(-1, members_BK), k))


def top_k_of_short_rows(scores_BL: Float[Tensor, "B L"], k: int) -> Int[Tensor, "B k"]:
    """By numpy, which finds the k-th largest of short rows in a fifth of torch's time."""
    n_rows, n_columns = scores_BL.shape
    if n_columns <= SHORT_ROWS:
        least_B1 = torch.from_numpy(np.partition(scores_BL.numpy(), n_columns - k)[:, n_columns - k, None].copy())
        mask_BL = scores_BL >= least_B1
        where_N = places_where(mask_BL)
        if len(where_N) == n_rows * k:
            return (where_N % n_columns).view(n_rows, k)
        # Of those that tie for the last places of a row, the first come first.
        surplus_B1 = mask_BL.sum(-1, keepdim=True) - k
        if (surplus_B1 >= 0).all():
            tie_BL = scores_BL == least_B1
            ties_from_here_BL = tie_BL.sum(-1, keepdim=True) - tie_BL.cumsum(-1) + 1
            mask_BL &= ~(tie_BL & (ties_from_here_BL <= surplus_B1))
            return (places_where(mask_BL) % n_columns).view(n_rows, k)
    return scores_BL.topk(k, dim=-1, sorted=False).indices  # long rows, or a NaN among the scores


@torch.no_grad()
def top_k_of_rows(pre_BL: Float[Tensor, "B L"], k: int, weights_L: Float[Tensor, " L"] | None = None) -> Pattern:
    """The `k` largest positive scores `pre * weights` of every row."""
    k = min(k, pre_BL.shape[-1])
    rows_at_once = max(1, ROWS_AT_ONCE // pre_BL.shape[-1]) if pre_BL.device.type == "cpu" else len(pre_BL)
    pieces = pre_BL.split(rows_at_once)
    indices_Bk = torch.cat([top_k(some if weights_L is None else some * weights_L, k) for some in pieces])
    scores_Bk = pre_BL.gather(-1, indices_Bk)
    return keep_positive(
        scores_Bk if weights_L is None else scores_Bk * weights_L[indices_Bk], indices_Bk, pre_BL.shape[-1]
    )


@torch.no_grad()
def top_k_of_batch(
    pre_BL: Float[Tensor, "B L"], k: int, weights_L: Float[Tensor, " L"] | None = None
) -> tuple[Pattern, Float[Tensor, ""] | None]:
    """The `k` largest positive scores `pre * weights` of the whole batch, and the smallest of them (None without any).

    All that lie above a threshold, set by a sample, are found by comparing `pre` with `threshold / weights`; scores are
    computed for these alone, and the best of them are the best of all if the k-th lies above the threshold.
    """
    for threshold in _falling_thresholds(pre_BL, k, weights_L):
        where_N, scores_N = _scores_above(threshold, pre_BL, weights_L)
        smallest = scores_N.topk(k, sorted=False).values.min() if len(scores_N) >= k else None
        if smallest is not None and smallest > threshold:
            break
    else:  # there are fewer
        where_N, scores_N = _scores_above(0.0, pre_BL, weights_L)
        positive_N = scores_N[scores_N > 0]
        if len(positive_N) == 0:
            return Pattern.from_flat(where_N[:0], *pre_BL.shape), None
        smallest = positive_N.topk(min(k, len(positive_N)), sorted=False).values.min()
    kept_N = places_where(scores_N >= smallest)
    if len(kept_N) > k:  # of those that tie for the last places, the first come first
        ties_n = places_where(scores_N.index_select(0, kept_N) == smallest)
        stays_N = torch.ones_like(kept_N, dtype=torch.bool).index_fill_(0, ties_n[k - len(kept_N) :], False)
        kept_N = kept_N.index_select(0, places_where(stays_N))
    return Pattern.from_flat(where_N.index_select(0, kept_N), *pre_BL.shape), smallest


def _scores_above(
    threshold: Float[Tensor, ""] | float, pre_BL: Float[Tensor, "B L"], weights_L: Float[Tensor, " L"] | None
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"]]:
    """All scores above a threshold, and perhaps others: where they are, and what."""
    where_N = places_where(above(pre_BL, _limits(threshold, weights_L)))
    pre_N = values_at(pre_BL, where_N)
    return where_N, pre_N if weights_L is None else pre_N * weights_L.index_select(0, where_N % len(weights_L))


def _falling_thresholds(
    pre_BL: Float[Tensor, "B L"], k: int, weights_L: Float[Tensor, " L"] | None
) -> Iterator[Float[Tensor, ""]]:
    """Positive scores that `k` others probably exceed, but not many more."""
    places = torch.arange(0, pre_BL.numel(), SAMPLE_STRIDE, device=pre_BL.device)
    sample = values_at(pre_BL, places)
    if weights_L is not None:
        sample = sample * weights_L.index_select(0, places % len(weights_L))
    expected = k / SAMPLE_STRIDE
    n_above = math.ceil(expected + 4 * math.sqrt(expected) + 8)
    while n_above < len(sample):
        threshold = sample.topk(n_above, sorted=False).values.min()
        if threshold <= 0:
            break
        yield threshold
        n_above *= 2  # the sample was not like the rest


def _limits(threshold: Tensor | float, weights_L: Tensor | None) -> Tensor | float:
    """What a value exceeds if its score exceeds the threshold; rounding may let others pass, but stops none."""
    if weights_L is None or isinstance(threshold, float):
        return threshold
    return threshold / weights_L * (1 - 4 * torch.finfo(weights_L.dtype).eps)


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
    limit = torch.as_tensor(threshold, device=scores.device).detach()
    if limit.ndim == 0:  # as torch compares with a single number
        limit = limit.to(scores.dtype)
    return torch.from_numpy(np.greater(scores.detach().numpy(), limit.numpy()))
