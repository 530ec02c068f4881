"""How many tokens of a text training keeps, and why the others are left out."""

import attrs

from crosscode.errors import NumericalError

MOST_NOT_FINITE = 0.01  # part of the tokens read
COUNTED_FROM = 10_000  # tokens read: among fewer, one bad sequence would be too many


@attrs.frozen
class TokenCounts:
    """Tokens of a text, padding aside. One that is left out counts once, under the first reason in this order.

    Attributes:
        kept: what training sees.
        first_positions: at the first positions of their sequences (`drop_first`).
        special: BOS, EOS, chat markers and the like (`drop_special`).
        not_finite: their activations are NaN or infinite (`skip_not_finite`).
        outliers: their norms are far above the median (`max_norm_multiple`).
    """

    kept: int = 0
    first_positions: int = 0
    special: int = 0
    not_finite: int = 0
    outliers: int = 0

    @property
    def read(self) -> int:
        """All tokens."""
        return sum(attrs.astuple(self))

    def __add__(self, other: "TokenCounts") -> "TokenCounts":
        return TokenCounts(*map(sum, zip(attrs.astuple(self), attrs.astuple(other))))

    def __str__(self) -> str:
        """`left out of 30,208 tokens: 118 first positions, 260 special, 4 outliers (0.013 %)`."""
        parts = [f"{self.first_positions:,} at first positions", f"{self.special:,} special"]
        if self.not_finite:
            parts.append(f"{self.not_finite:,} not finite ({self._percent(self.not_finite)})")
        parts.append(f"{self.outliers:,} outliers in norm ({self._percent(self.outliers)})")
        return f"left out of {self.read:,} tokens: {', '.join(parts)}"

    def _percent(self, n: int) -> str:
        return f"{100 * n / max(1, self.read):.2g} %"

    def check(self, example: str | None) -> None:
        """Raises `NumericalError` where more than 1 % of at least 10,000 tokens read are not finite.

        Args:
            example: where one of the last was.
        """
        if self.read >= COUNTED_FROM and self.not_finite > MOST_NOT_FINITE * self.read:
            raise NumericalError(
                f"{self.not_finite:,} of {self.read:,} tokens read are not finite, more than the 1 % that "
                f"skip_not_finite leaves out; {example or 'none of the last'}. Try model_dtype float32, bfloat16 "
                "instead of float16, or another hookpoint."
            )
