"""Reconstruction losses: each a function of the `Trace`, each a mean over tokens unless its name says otherwise.

Weights of penalties do not transfer between reductions: a weight tuned for `SummedSquaredError` is about
`|Xo| * D` times one tuned for a mean.

Where a loss takes `token_weights`, it names a tensor of the batch's `extra`: a weight for each token. The loss is then
the mean of weight times the token's own, so that weights of mean 1 leave its size alone.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import attrs
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from crosscode.checks import ascending, one_of, positive, prefixes_of_coder
from crosscode.errors import BadInput
from crosscode.losses.spliced import SplicedKL
from crosscode.models import SparseCoder, Trace
from crosscode.shapes import n_sites, real_coordinates

LossFn = Callable[[Trace], Float[Tensor, ""]]

__all__ = [
    "FixedNMSE",
    "FractionOfVarianceUnexplained",
    "LossFn",
    "MatryoshkaSquaredError",
    "MeanNorm",
    "SplicedKL",
    "SummedSquaredError",
]


def mean_over_tokens(trace: Trace, per_token_B: Float[Tensor, " B"], token_weights: str | None) -> Float[Tensor, ""]:
    """The mean of what each token gives, weighted by what the batch carries under a name, if one is given.

    Raises:
        BadInput: the batch carries no such tensor, or it has not one number for each token.
    """
    if token_weights is not None:
        weights_B = trace.batch.extra[token_weights]
        if weights_B.ndim != 1:
            raise BadInput(
                f"token_weights={token_weights!r}: the batch carries a tensor of shape {tuple(weights_B.shape)}, not "
                "one number for each token."
            )
        per_token_B = per_token_B * weights_B
    return per_token_B.sum() / len(trace)


@attrs.frozen
class SummedSquaredError:
    """`(1/B) sum_{B,Xo,Do} (y - yhat)^2`: summed over sites and coordinates (Sparse Crosscoders, Oct 2024).

    Args:
        site_weights: a weight per site in row-major order, for sites of unequal width (`mean width / width` gives
            all the same influence); None for 1.
        token_weights: the name of each token's weight in the batch's `extra`; None for 1.
    """

    site_weights: Sequence[float] | None = None
    token_weights: str | None = None

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder of another number of sites."""
        dims = coder.decoder.out_dims
        if self.site_weights is not None and len(self.site_weights) != n_sites(dims):
            raise BadInput(f"site_weights={self.site_weights} must hold one weight per site of {dims}.")

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        squared_BXoDo = trace.error_BXoDo.square()
        if self.site_weights is not None:
            self.check_coder(trace.model)
            weights_X = squared_BXoDo.new_tensor(self.site_weights)
            squared_BXoDo = rearrange(squared_BXoDo, "B ... D -> B (...) D") * weights_X[:, None]
        if self.token_weights is None:
            return squared_BXoDo.sum() / len(trace)
        return mean_over_tokens(trace, squared_BXoDo.flatten(1).sum(1), self.token_weights)


@attrs.frozen
class MeanNorm:
    """Mean over tokens and sites of the unsquared L2 norm of the error (Minder et al. 2025, their code).

    Args:
        token_weights: the name of each token's weight in the batch's `extra`; None for 1.
    """

    token_weights: str | None = None

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        norm_BXo: Tensor = torch.linalg.vector_norm(trace.error_BXoDo, dim=-1)
        return mean_over_tokens(trace, norm_BXo.reshape(len(trace), -1).mean(1), self.token_weights)


@attrs.frozen
class FractionOfVarianceUnexplained:
    """`sum e^2 / sum (y - batch mean)^2` over the whole batch (sparsify); under accumulation, over each micro-batch."""

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        y_BXoDo = trace.targets_BXoDo.to(trace.error_BXoDo.dtype)
        return trace.error_BXoDo.square().sum() / (y_BXoDo - y_BXoDo.mean(0)).square().sum()


@attrs.frozen
class FixedNMSE:
    """`mean (y - yhat)^2 / variance`, the variance measured once on a sample of data (Gao et al. 2024).

    Args:
        variance: mean squared deviation of scaled targets from their mean, over coordinates.
    """

    variance: float

    def __attrs_post_init__(self) -> None:
        positive("FixedNMSE.variance", self.variance)

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        decoder = trace.model.decoder
        n_real = real_coordinates(decoder.out_dims, decoder.d_out, decoder.widths_Xo).sum().item()
        return trace.error_BXoDo.square().sum() / (len(trace) * n_real * self.variance)


@attrs.frozen
class MatryoshkaSquaredError:
    """Summed squared error of nested prefixes of the latents, every prefix with the decoder bias and skip.

    Args:
        prefixes: how many latents each prefix has, ascending; the last is usually all of them.
        reduction: `sum` (SAELens) or `mean` (dictionary_learning) over prefixes.
    """

    prefixes: Sequence[int]
    reduction: Literal["sum", "mean"] = "sum"

    def __attrs_post_init__(self) -> None:
        one_of("MatryoshkaSquaredError.reduction", self.reduction, Literal["sum", "mean"])
        ascending("MatryoshkaSquaredError.prefixes", self.prefixes)

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder of fewer latents."""
        prefixes_of_coder("MatryoshkaSquaredError.prefixes", self.prefixes, coder.n_latents)

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        model, latents = trace.model, trace.latents
        self.check_coder(model)
        total = trace.error_BXoDo.new_zeros(())
        for n in self.prefixes:
            recon_BXoDo = model.reconstruct(latents.prefix(n), trace.inputs_BXiDi)
            error_BXoDo = (trace.targets_BXoDo - recon_BXoDo).to(total.dtype)
            total = total + error_BXoDo.square().sum() / len(trace)
        return total / len(self.prefixes) if self.reduction == "mean" else total
