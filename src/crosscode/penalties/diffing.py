"""Experimental terms of two-model diffing: they look at the difference of two models' activations."""

import attrs
from jaxtyping import Float
from torch import Tensor

from crosscode.checks import contiguous, latents_of_coder
from crosscode.errors import BadInput
from crosscode.models import SparseCoder, Trace
from crosscode.shapes import real_coordinates


def _check_two_models(coder: SparseCoder, who: str) -> None:
    if coder.decoder.out_dims[:1] != (2,):
        raise BadInput(f"{who} needs two models as the first crosscoding dimension, got {coder.decoder.out_dims}.")


@attrs.frozen
class DeltaReconstruction:
    """The delta latents alone should reconstruct `x_1 - x_0` (Delta-Crosscoder, 2026): mean squared error.

    The mean is over tokens and real coordinates, without the padding of narrower sites.

    Args:
        latents: the range of delta latents.
    """

    latents: slice

    def __attrs_post_init__(self) -> None:
        contiguous("DeltaReconstruction.latents", self.latents)

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder of other than two models, or without such latents."""
        _check_two_models(coder, "DeltaReconstruction")
        latents_of_coder("DeltaReconstruction.latents", self.latents, coder.n_latents)

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        self.check_coder(trace.model)
        decoder = trace.model.decoder
        W_LMO = decoder.dense()[self.latents].flatten(2)
        delta_BO = trace.latents.slice(self.latents) @ (W_LMO[:, 1] - W_LMO[:, 0])
        target_BMO = trace.targets_BXoDo.flatten(2)
        n_real = int(real_coordinates(decoder.out_dims, decoder.d_out, decoder.widths_Xo).any(0).sum())
        return (delta_BO - (target_BMO[:, 1] - target_BMO[:, 0])).square().sum() / (len(trace) * n_real)


@attrs.frozen
class DifferenceWeighting:
    """`-2 e_1 . e_0`: beside the summed squared error it makes the loss, at weight 1, `||e_1 - e_0||^2`."""

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder of other than two models."""
        _check_two_models(coder, "DifferenceWeighting")

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        self.check_coder(trace.model)
        error_BMO = trace.error_BXoDo.flatten(2)
        return -2 * (error_BMO[:, 0] * error_BMO[:, 1]).sum() / len(trace)
