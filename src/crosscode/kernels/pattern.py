"""Where the entries of a sparse matrix stand."""

from collections.abc import Sequence
from functools import cached_property

import attrs
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def places_where(mask: Bool[Tensor, "..."]) -> Int[Tensor, " N"]:
    """Where a mask is true, counted through the whole mask: on CPU by numpy, which takes a third of torch's time."""
    flat = mask.reshape(-1)
    return torch.from_numpy(np.flatnonzero(flat.numpy())) if flat.device.type == "cpu" else flat.nonzero()[:, 0]


def values_at(matrix_BL: Float[Tensor, "B L"], where_N: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """A matrix's values at places counted row after row; a part of a larger matrix is not copied for it."""
    (n_rows, n_columns), (row_stride, stride) = matrix_BL.shape, matrix_BL.stride()
    if matrix_BL.is_contiguous() or stride != 1 or matrix_BL.requires_grad:
        return matrix_BL.reshape(-1).index_select(0, where_N)
    rows_N = torch.div(where_N, n_columns, rounding_mode="floor")
    stretch = matrix_BL.as_strided((max(0, n_rows - 1) * row_stride + n_columns,), (1,))
    return stretch.index_select(0, torch.add(where_N, rows_N, alpha=row_stride - n_columns))


def _stable_order(columns_N: Int[Tensor, " N"], n_columns: int) -> Int[Tensor, " N"]:
    """What sorts the entries by column, those of a column staying in order."""
    if columns_N.device.type == "cpu" and n_columns < 1 << 15:  # numpy sorts 16-bit numbers by radix, however few
        return torch.from_numpy(np.argsort(columns_N.short().numpy(), kind="stable"))
    return columns_N.int().argsort(stable=True)


@attrs.frozen(eq=False, slots=False)
class Pattern:
    """Places of entries, row by row and ascending in each row (CSR); what follows from them is computed once.

    Attributes:
        indices_N: the column of each entry.
        offsets_B1: where each row's entries start, and where the last row's end.
        n_columns: how many columns there are, with or without entries (`L`).
    """

    indices_N: Int[Tensor, " N"]
    offsets_B1: Int[Tensor, " B1"]
    n_columns: int
    _known_columns: dict[tuple[int, int], tuple[Tensor, "Pattern"]] = attrs.field(factory=dict, init=False, repr=False)

    @classmethod
    def from_counts(cls, indices_N: Int[Tensor, " N"], counts_B: Int[Tensor, " B"], n_columns: int) -> "Pattern":
        """From the columns of the entries and the number of entries in each row."""
        return cls(indices_N, F.pad(counts_B.cumsum(0), (1, 0)), n_columns)

    @classmethod
    def from_flat(cls, where_N: Int[Tensor, " N"], n_rows: int, n_columns: int) -> "Pattern":
        """From ascending places in the matrix laid out row after row."""
        starts_B1 = torch.arange(n_rows + 1, device=where_N.device) * n_columns
        offsets_B1 = torch.searchsorted(where_N, starts_B1)
        rows_N = _rows(offsets_B1, len(where_N))
        pattern = cls(torch.sub(where_N, rows_N, alpha=n_columns), offsets_B1, n_columns)
        vars(pattern).update(rows_N=rows_N, flat_N=where_N)  # known already
        return pattern

    @classmethod
    def side_by_side(cls, parts: Sequence["Pattern"]) -> "Pattern":
        """Patterns of the same rows, the columns of each after those of the one before."""
        counts_BP = torch.stack([part.offsets_B1.diff() for part in parts], dim=1)
        starts_BP = (counts_BP.flatten().cumsum(0) - counts_BP.flatten()).view_as(counts_BP)
        n_columns = sum(part.n_columns for part in parts)
        n_entries = sum(map(len, parts))
        indices_N = parts[0].indices_N.new_empty(n_entries)
        pattern = cls(indices_N, F.pad(counts_BP.sum(1).cumsum(0), (1, 0)), n_columns)
        start = 0
        for part, starts_B in zip(parts, starts_BP.unbind(1)):
            moved_B = starts_B - part.offsets_B1[:-1]
            places_n = torch.arange(len(part), device=moved_B.device) + moved_B.index_select(0, part.rows_N)
            indices_N.index_copy_(0, places_n, part.indices_N + start)
            pattern._known_columns[start, start + part.n_columns] = places_n, part
            start += part.n_columns
        return pattern

    def __len__(self) -> int:
        return len(self.indices_N)

    @property
    def n_rows(self) -> int:
        """How many rows there are, with or without entries (`B`)."""
        return len(self.offsets_B1) - 1

    @cached_property
    def rows_N(self) -> Int[Tensor, " N"]:
        """The row of each entry."""
        return _rows(self.offsets_B1, len(self))

    @cached_property
    def flat_N(self) -> Int[Tensor, " N"]:
        """The place of each entry in the matrix laid out row after row."""
        return torch.add(self.indices_N, self.rows_N, alpha=self.n_columns)

    @cached_property
    def by_column(self) -> tuple[Int[Tensor, " N"], "Pattern"]:
        """The entries in the order of their columns, and the transposed pattern they make in that order.

        The order within a column is that of the rows, so that sums are taken in the same order, always.
        """
        order_N = _stable_order(self.indices_N, self.n_columns)
        counts_L = torch.bincount(self.indices_N, minlength=self.n_columns)
        return order_N, Pattern.from_counts(self.rows_N.index_select(0, order_N), counts_L, self.n_rows)

    def of(self, matrix_BL: Float[Tensor, "B L"]) -> Float[Tensor, " N"]:
        """A matrix's values at the entries."""
        return values_at(matrix_BL, self.flat_N)

    def columns(self, of: slice) -> tuple[Int[Tensor, " n"], "Pattern"]:
        """The entries in a contiguous range of columns: which they are, and their pattern, columns counted from 0."""
        start, stop, _ = of.indices(self.n_columns)
        if (start, stop) not in self._known_columns:
            own_n = places_where((self.indices_N >= start) & (self.indices_N < stop))
            counts_B = torch.bincount(self.rows_N.index_select(0, own_n), minlength=self.n_rows)
            own = Pattern.from_counts(self.indices_N.index_select(0, own_n) - start, counts_B, max(0, stop - start))
            self._known_columns[start, stop] = own_n, own
        return self._known_columns[start, stop]


def _rows(offsets_B1: Int[Tensor, " B1"], n_entries: int) -> Int[Tensor, " N"]:
    rows_B = torch.arange(len(offsets_B1) - 1, device=offsets_B1.device)
    return torch.repeat_interleave(rows_B, offsets_B1.diff(), output_size=n_entries)
