"""Exact selection, against plain Python."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from crosscode.kernels import selection
from crosscode.kernels.pattern import Pattern
from crosscode.kernels.selection import entries_where, max_of_groups, top_k_of_batch, top_k_of_rows

rows = st.integers(1, 5).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(-3, 9).map(float), min_size=width, max_size=width), min_size=1, max_size=4
    )
)
few = settings(max_examples=60, deadline=None, derandomize=True)


def kept_values(scores_BL: Tensor, pattern: Pattern) -> list[list[float]]:
    """The scores kept in each row, after checking that columns ascend and no entry comes twice."""
    found = []
    assert pattern.offsets_B1[0] == 0
    assert pattern.offsets_B1[-1] == len(pattern)
    for row, (start, stop) in enumerate(itertools.pairwise(pattern.offsets_B1)):
        columns = pattern.indices_N[start:stop].tolist()
        assert columns == sorted(set(columns))
        found.append(sorted(scores_BL[row, columns].tolist(), reverse=True))
    return found


@few
@given(rows, st.integers(1, 6))
def test_rows_keep_their_k_best_positive_scores(scores: list[list[float]], k: int) -> None:
    """Ties may fall either way; the kept scores are the same."""
    scores_BL = torch.tensor(scores)
    wanted = [sorted((s for s in row if s > 0), reverse=True)[:k] for row in scores]
    assert kept_values(scores_BL, top_k_of_rows(scores_BL, k)) == wanted


@few
@given(rows, st.integers(1, 12))
def test_batches_keep_their_k_best_positive_scores(scores: list[list[float]], k: int) -> None:
    """Over all rows together, with the smallest of them; None when nothing is positive."""
    scores_BL = torch.tensor(scores)
    wanted = sorted((s for row in scores for s in row if s > 0), reverse=True)[:k]
    pattern, smallest = top_k_of_batch(scores_BL, k)
    kept = [s for row in kept_values(scores_BL, pattern) for s in row]
    assert sorted(kept, reverse=True) == wanted
    assert (None if smallest is None else smallest.item()) == (wanted[-1] if wanted else None)


@few
@given(rows, st.integers(1, 5))
def test_groups_keep_their_positive_maximum(scores: list[list[float]], k: int) -> None:
    """Groups lie at `floor(i L / k)`."""
    scores_BL = torch.tensor(scores)
    width = scores_BL.shape[1]
    k = min(k, width)
    wanted = []
    for row in scores:
        maxima = [max(row[i * width // k : (i + 1) * width // k]) for i in range(k)]
        wanted.append(sorted((m for m in maxima if m > 0), reverse=True))
    assert kept_values(scores_BL, max_of_groups(scores_BL, k)) == wanted


@few
@given(rows)
def test_a_masks_entries_are_all_found(scores: list[list[float]]) -> None:
    """Row by row, columns ascending."""
    scores_BL = torch.tensor(scores)
    wanted = [sorted((s for s in row if s > 0), reverse=True) for row in scores]
    assert kept_values(scores_BL, entries_where(scores_BL > 0)) == wanted


def test_what_is_selected_needs_no_detaching() -> None:
    """Scores with a graph are selected as those without, and leave none behind."""
    scores_BL = torch.tensor([[3.0, -1.0, 2.0], [1.0, 5.0, 4.0]], requires_grad=True)
    weights_L = torch.ones(3, requires_grad=True)
    batch_pattern, smallest = top_k_of_batch(scores_BL, 3, weights_L)
    assert kept_values(scores_BL.detach(), top_k_of_rows(scores_BL, 2, weights_L)) == [[3, 2], [5, 4]]
    assert kept_values(scores_BL.detach(), batch_pattern) == [[3], [5, 4]]
    assert smallest is not None
    assert not smallest.requires_grad


def test_offsets_are_running_sums() -> None:
    """Rows without entries are empty ranges."""
    assert Pattern.from_counts(torch.arange(5), torch.tensor([2, 0, 3]), 5).offsets_B1.tolist() == [0, 2, 2, 5]


@few
@given(st.integers(0, 10_000), st.sampled_from([1, 3, 5]), st.sampled_from([0, 3, 9]))
def test_wide_rows_are_searched_by_their_groups(seed: int, k: int, n_values: int) -> None:
    """Several levels of groups, with and without ties, keep the same scores as sorting does."""
    generator = torch.Generator().manual_seed(seed)
    scores_BL = torch.randn(4, 1024, generator=generator)
    if n_values:
        scores_BL = torch.randint(-2, n_values, (4, 1024), generator=generator).float()
    wanted_Bk = scores_BL.sort(-1, descending=True).values[:, :k]
    assert kept_values(scores_BL, top_k_of_rows(scores_BL, k)) == [
        [s for s in row if s > 0] for row in wanted_Bk.tolist()
    ]


@few
@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 40, 3000, 9000]),
    st.sampled_from(["normal", "ties", "clustered", "few"]),
)
def test_large_batches_are_searched_above_a_sampled_threshold(seed: int, k: int, kind: str) -> None:
    """Whatever the sample says of the rest: scores alike, one row that has them all, or too few positive ones."""
    generator = torch.Generator().manual_seed(seed)
    scores_BL = torch.randn(8, 1024, generator=generator)
    if kind == "ties":
        scores_BL = scores_BL.round()
    elif kind == "clustered":
        scores_BL[1:] -= 10
    elif kind == "few":
        scores_BL -= 3
    wanted = [s for s in scores_BL.flatten().sort(descending=True).values[:k].tolist() if s > 0]
    pattern, smallest = top_k_of_batch(scores_BL, k)
    kept = sorted((s for row in kept_values(scores_BL, pattern) for s in row), reverse=True)
    assert kept == wanted
    assert (None if smallest is None else smallest.item()) == (wanted[-1] if wanted else None)


@few
@given(
    st.integers(0, 10_000),
    st.sampled_from([1, 40, 3000]),
    st.sampled_from(["normal", "ties", "a few large", "a few zero", "all alike"]),
)
def test_weights_change_the_order_and_nothing_else(seed: int, k: int, kind: str) -> None:
    """Scores `pre * weights` rank as if they had been computed first, by row and by batch."""
    generator = torch.Generator().manual_seed(seed)
    pre_BL = torch.randn(8, 1024, generator=generator)
    weights_L = torch.rand(1024, generator=generator) + 0.5
    if kind == "ties":
        pre_BL, weights_L = pre_BL.round(), weights_L.round()
    elif kind == "a few large":
        weights_L[::300] *= 1e4
    elif kind == "a few zero":
        weights_L[::3] = 0
    elif kind == "all alike":
        pre_BL = torch.ones_like(pre_BL)
        weights_L = torch.nextafter(torch.ones(1024), torch.tensor(2.0)) if seed % 2 else torch.full((1024,), 0.1)
    scores_BL = pre_BL * weights_L
    pattern, smallest = top_k_of_batch(pre_BL, k, weights_L)
    wanted = [s for s in scores_BL.flatten().sort(descending=True).values[:k].tolist() if s > 0]
    kept = sorted((s for row in kept_values(scores_BL, pattern) for s in row), reverse=True)
    assert kept == wanted
    assert smallest is not None
    assert smallest.item() == wanted[-1]
    by_row = kept_values(scores_BL, top_k_of_rows(pre_BL, min(k, 60), weights_L))
    assert by_row == [[s for s in sorted(row, reverse=True)[: min(k, 60)] if s > 0] for row in scores_BL.tolist()]


def test_long_batches_are_searched_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """A last piece that is shorter included."""
    scores_BL = torch.randn(11, 64, generator=torch.Generator().manual_seed(0))
    whole = top_k_of_rows(scores_BL, 5)
    monkeypatch.setattr(selection, "ROWS_AT_ONCE", 3 * 64)
    pieces = top_k_of_rows(scores_BL, 5)
    assert torch.equal(pieces.indices_N, whole.indices_N)
    assert torch.equal(pieces.offsets_B1, whole.offsets_B1)


def test_patterns_side_by_side_are_one() -> None:
    """Their entries are those of the masks side by side, and the parts are found again without a search."""
    generator = torch.Generator().manual_seed(0)
    masks = [torch.rand(6, width, generator=generator) < 0.4 for width in (3, 1, 5)]
    masks[0][2] = False
    parts = [entries_where(mask) for mask in masks]
    together = Pattern.side_by_side(parts)
    wanted = entries_where(torch.cat(masks, dim=1))
    for pattern in (together, wanted):
        assert torch.equal(pattern.indices_N, wanted.indices_N)
        assert torch.equal(pattern.offsets_B1, wanted.offsets_B1)
        assert torch.equal(pattern.flat_N, wanted.flat_N)
    own_n, own = together.columns(slice(3, 4))
    assert own is parts[1]
    assert torch.equal(own_n, wanted.columns(slice(3, 4))[0])
