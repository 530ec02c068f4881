"""What the weights alone say: decoder norm ratios, cosines, thresholds. Norms are those of scaled space."""

from collections.abc import Callable

import attrs
import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from crosscode.activations import Thresholded
from crosscode.checks import count, instance
from crosscode.errors import BadInput
from crosscode.models import Trace


def _model_norms_LM(norms_LXo: Float[Tensor, "L M *P"]) -> Float[Tensor, "L M"]:
    return rearrange(norms_LXo.detach().double(), "L M ... -> L M (...)").sum(-1)


def relative_norm(norms_LXo: Float[Tensor, "L M *P"], model: int = 1, other: int = 0) -> Float[Tensor, " L"]:
    """`rho = N_model / (N_other + N_model)`: 0 exclusive to the other model, 1 to this one, 0.5 if both are 0."""
    norms_LM = _model_norms_LM(norms_LXo)
    total_L = norms_LM[:, other] + norms_LM[:, model]
    return torch.where(total_L > 0, norms_LM[:, model] / total_L.clamp_min(1e-300), 0.5)


def delta_norm(norms_LXo: Float[Tensor, "L M *P"], model: int = 1, other: int = 0) -> Float[Tensor, " L"]:
    """`Delta = (1 + (N_model - N_other) / max(N_other, N_model)) / 2` (Minder et al. 2025); 0.5 if both are 0."""
    norms_LM = _model_norms_LM(norms_LXo)
    largest_L = torch.maximum(norms_LM[:, other], norms_LM[:, model])
    difference_L = norms_LM[:, model] - norms_LM[:, other]
    return 0.5 * (1 + torch.where(largest_L > 0, difference_L / largest_L.clamp_min(1e-300), 0.0))


@attrs.define
class _Last:
    """Keeps only the last trace's model: what depends on weights alone needs no sums."""

    compute: Callable[[Trace], dict[str, float | Tensor]]
    trace: Trace | None = None

    def add(self, trace: Trace) -> None:
        self.trace = trace

    def result(self) -> dict[str, float | Tensor]:
        assert self.trace is not None, "nothing was added"
        return self.compute(self.trace)


def _check_models(trace: Trace, metric: "DecoderNormRatio | DecoderCosine") -> None:
    """Both models must be there: a coder without crosscoding dimensions has none to compare."""
    dims, who = trace.model.decoder.out_dims, type(metric).__name__
    if not dims or max(metric.model, metric.other) >= dims[0]:
        asked = f"{who}(model={metric.model}, other={metric.other})"
        raise BadInput(f"{asked} compares models along the first crosscoding dimension, but the coder writes {dims}.")


@attrs.frozen
class DecoderNormRatio:
    """The relative decoder norm `rho` of two models and how many latents lie in the classical bins (<0.1, >0.9).

    Args:
        model: number of the model whose share it is.
        other: number of the model it is compared with.
    """

    model: int = 1
    other: int = 0

    def __attrs_post_init__(self) -> None:
        count("DecoderNormRatio.model", self.model, least=0)
        count("DecoderNormRatio.other", self.other, least=0)

    def start(self) -> _Last:
        return _Last(self._compute)

    def _compute(self, trace: Trace) -> dict[str, float | Tensor]:
        _check_models(trace, self)
        rho_L = relative_norm(trace.decoder_norms_LXo, self.model, self.other)
        return {
            "relative_norm": rho_L,
            "relative_norm/below_0.1": float((rho_L < 0.1).double().mean()),
            "relative_norm/above_0.9": float((rho_L > 0.9).double().mean()),
        }


@attrs.frozen
class DecoderCosine:
    """Cosine of each latent's directions in two models at each hookpoint; undefined where a norm is below 1e-8.

    Args:
        model: number of one model.
        other: number of the other.
    """

    model: int = 1
    other: int = 0

    def __attrs_post_init__(self) -> None:
        count("DecoderCosine.model", self.model, least=0)
        count("DecoderCosine.other", self.other, least=0)

    def start(self) -> _Last:
        return _Last(self._compute)

    def _compute(self, trace: Trace) -> dict[str, float | Tensor]:
        _check_models(trace, self)
        W_LMPD = rearrange(trace.model.decoder.dense().detach().double(), "L M ... D -> L M (...) D")
        a_LPD, b_LPD = W_LMPD[:, self.other], W_LMPD[:, self.model]
        norms_LP = a_LPD.norm(dim=-1) * b_LPD.norm(dim=-1)
        cosine_LP = (a_LPD * b_LPD).sum(-1) / norms_LP
        defined_LP = (a_LPD.norm(dim=-1) >= 1e-8) & (b_LPD.norm(dim=-1) >= 1e-8)
        return {"decoder_cosine": cosine_LP[defined_LP]}


@attrs.frozen
class Thresholds:
    """The thresholds of a JumpReLU, as a histogram, with their mean.

    Args:
        jumprelu: the coder's own activation.
    """

    jumprelu: Thresholded

    def __attrs_post_init__(self) -> None:
        instance("Thresholds.jumprelu", self.jumprelu, Thresholded, "a JumpReLU, or a PerSite of them")

    def start(self) -> _Last:
        return _Last(self._compute)

    def _compute(self, trace: Trace) -> dict[str, float | Tensor]:
        threshold_L = self.jumprelu.threshold_L.detach().double()
        return {"threshold": threshold_L, "threshold/mean": float(threshold_L.mean())}
