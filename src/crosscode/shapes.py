"""The legend: what each letter of a shape suffix means.

A tensor's name ends in its shape, one PascalCase letter an axis: `W_enc_XiDiL` has the input
crosscoding dimensions, the input width and the latents; a lower-case letter makes an axis more specific.

| letter | axis |
|---|---|
| `B` | batch: tokens |
| `M` | models |
| `P` | hookpoints |
| `X` | any number of crosscoding dimensions: `()`, `(P,)`, `(M,)`, `(M, P)`; `Xi` read, `Xo` written |
| `L` | latents; `Ls` shared, `Lf` exclusive, `Lp` of one site |
| `D` | width of the residual stream (`d_model`); `Di` read, `Do` written |
| `N` | tokens of a harvest, or the non-zero entries of a sparse batch of codes |
| `H` | sequences harvested at once |
| `S` | positions in a sequence |

Flattened axes are single letters too: `I` is `Xi x Di`, `O` is `Xo x Do`.
"""

from math import prod

from jaxtyping import Bool
from torch import Tensor, arange, tensor

Dims = tuple[int, ...]


def n_sites(dims: Dims) -> int:
    """`|X|`: how many crosscoding sites there are; one if there are no crosscoding dimensions."""
    return prod(dims)


def real_coordinates(dims: Dims, width: int, widths_X: Dims | None) -> Bool[Tensor, "*X D"]:
    """Which coordinates are real where sites of different width are padded to the widest.

    Args:
        dims: the crosscoding dimensions `X`.
        width: the padded width `D`.
        widths_X: the real width of each site in row-major order; None if all are `D` wide.
    """
    widths = tensor(widths_X if widths_X is not None else (width,) * n_sites(dims), device="cpu")
    return (arange(width, device="cpu") < widths[:, None]).reshape(*dims, width)
