"""The legend: what each letter of a shape suffix means.

A tensor's name ends in its shape, one PascalCase letter an axis: `W_enc_XiDiL` has the input
crosscoding dimensions, the input width and the latents; a lower-case letter makes an axis more specific.

| letter | axis |
|---|---|
| `B` | batch: tokens |
| `M` | models |
| `P` | hookpoints |
| `X` | any number of crosscoding dimensions: `()`, `(P,)`, `(M,)`, `(M, P)`; `Xi` read, `Xo` written, `Xg` a group's |
| `L` | latents; `Ls` shared, `Lf` exclusive, `Lp` of one site, `Lg` of one group |
| `D` | width of the residual stream (`d_model`); `Di` read, `Do` written |
| `N` | tokens of a harvest, or the non-zero entries of a sparse batch of codes |
| `H` | sequences harvested at once |
| `S` | positions in a sequence |

A group is one of a `SiteMask`. Flattened axes are single letters too: `I` is `Xi x Di`, `O` is `Xo x Do`.
"""

from collections.abc import Sequence
from math import prod

from jaxtyping import Bool
from torch import Tensor, arange, tensor

from crosscode.errors import BadInput

Dims = tuple[int, ...]


def n_sites(dims: Dims) -> int:
    """`|X|`: how many crosscoding sites there are; one if there are no crosscoding dimensions."""
    return prod(dims)


def checked_dims(name: str, dims: object, n: int | None = None) -> Dims:
    """Crosscoding dimensions as a tuple of whole numbers of at least 1, or a line that names the argument.

    Args:
        name: of the argument.
        dims: what was given.
        n: how many there must be; None for any number.
    """
    if isinstance(dims, str) or not isinstance(dims, Sequence) or not all(type(size) is int for size in dims):
        raise BadInput(f"{name}={dims!r} must be a tuple of whole numbers, such as (), (4,) or (2, 4).")
    if min(dims, default=1) < 1:
        raise BadInput(f"{name}: crosscoding dimensions {tuple(dims)} must all be at least 1.")
    if n is not None and len(dims) != n:
        raise BadInput(f"{name}={tuple(dims)} must have {n} crosscoding dimension{'s' * (n != 1)}, not {len(dims)}.")
    return tuple(dims)


def check_widths(name: str, dims: Dims, width: int, widths_X: Sequence[int] | None) -> None:
    """One real width a site, each between 1 and the padded one, or a line that names the argument."""
    if widths_X is None:
        return
    if len(widths_X) != n_sites(dims):
        raise BadInput(f"{name}={widths_X} holds {len(widths_X)} widths for the {n_sites(dims)} sites of {dims}.")
    if not all(1 <= real <= width for real in widths_X):
        raise BadInput(f"{name}={widths_X} must lie between 1 and the padded width {width}.")


def real_coordinates(dims: Dims, width: int, widths_X: Dims | None) -> Bool[Tensor, "*X D"]:
    """Which coordinates are real where sites of different width are padded to the widest.

    Args:
        dims: the crosscoding dimensions `X`.
        width: the padded width `D`.
        widths_X: the real width of each site in row-major order; None if all are `D` wide.

    Raises:
        BadInput: the widths are not one a site, between 1 and `D`.
    """
    check_widths("widths", dims, width, widths_X)
    widths = tensor(widths_X if widths_X is not None else (width,) * n_sites(dims), device="cpu")
    return (arange(width, device="cpu") < widths[:, None]).reshape(*dims, width)
