"""Where the entries of a sparse matrix stand."""

from functools import cached_property

import attrs
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


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

    @classmethod
    def from_counts(cls, indices_N: Int[Tensor, " N"], counts_B: Int[Tensor, " B"], n_columns: int) -> "Pattern":
        """From the columns of the entries and the number of entries in each row."""
        return cls(indices_N, F.pad(counts_B.cumsum(0), (1, 0)), n_columns)

    @classmethod
    def from_flat(cls, where_N: Int[Tensor, " N"], n_rows: int, n_columns: int) -> "Pattern":
        """From ascending places in the matrix laid out row after row."""
        rows_N = torch.div(where_N, n_columns, rounding_mode="floor")
        return cls.from_counts(where_N - rows_N * n_columns, torch.bincount(rows_N, minlength=n_rows), n_columns)

    def __len__(self) -> int:
        return len(self.indices_N)

    @property
    def n_rows(self) -> int:
        """How many rows there are, with or without entries (`B`)."""
        return len(self.offsets_B1) - 1

    @cached_property
    def rows_N(self) -> Int[Tensor, " N"]:
        """The row of each entry."""
        rows_B = torch.arange(self.n_rows, device=self.indices_N.device)
        return torch.repeat_interleave(rows_B, self.offsets_B1.diff(), output_size=len(self))

    @cached_property
    def flat_N(self) -> Int[Tensor, " N"]:
        """The place of each entry in the matrix laid out row after row."""
        return self.rows_N * self.n_columns + self.indices_N

    @cached_property
    def by_column(self) -> tuple[Int[Tensor, " N"], Int[Tensor, " L1"]]:
        """The entries in the order of their columns, and where each column's start: the transposed pattern.

        The order within a column is that of the rows, so that sums are taken in the same order, always.
        """
        counts_L = torch.bincount(self.indices_N, minlength=self.n_columns)
        return self.indices_N.int().argsort(stable=True), F.pad(counts_L.cumsum(0), (1, 0))

    def of(self, matrix_BL: Float[Tensor, "B L"]) -> Float[Tensor, " N"]:
        """A matrix's values at the entries."""
        return matrix_BL.take(self.flat_N)

    def columns(self, of: slice) -> tuple[Int[Tensor, " n"], "Pattern"]:
        """The entries in a contiguous range of columns: which they are, and their pattern, columns counted from 0."""
        start, stop, _ = of.indices(self.n_columns)
        own_n = ((self.indices_N >= start) & (self.indices_N < stop)).nonzero()[:, 0]
        counts_B = torch.bincount(self.rows_N[own_n], minlength=self.n_rows)
        return own_n, Pattern.from_counts(self.indices_N[own_n] - start, counts_B, max(0, stop - start))
