"""How well activations are reconstructed."""

import attrs
import torch
from einops import rearrange
from torch import Tensor

from crosscode.metrics.base import SiteNames, site_labels
from crosscode.models import Trace


def _by_site(values_BXoDo: Tensor) -> Tensor:
    return rearrange(values_BXoDo.detach().double(), "B ... D -> B (...) D")


@attrs.frozen
class FVU:
    """Fraction of variance unexplained, `sum (y - yhat)^2 / sum (y - mean y)^2`, per site and pooled.

    Sums run over all tokens seen and are divided once: a mean of batch ratios would be biased. The pooled figure
    adds up sites in scaled space; a site's own figure is the same in either space.

    Args:
        sites: names along each crosscoding dimension; indices if not given.
    """

    sites: SiteNames | None = None

    def start(self) -> "_FVUSums":
        return _FVUSums(self.sites)


@attrs.define
class _FVUSums:
    sites: SiteNames | None
    n: int = 0
    labels: list[str] = attrs.field(factory=list)
    error_X: Tensor = attrs.field(factory=lambda: torch.zeros(()))
    sum_XD: Tensor = attrs.field(factory=lambda: torch.zeros(()))
    square_XD: Tensor = attrs.field(factory=lambda: torch.zeros(()))
    origin_XD: Tensor | None = None

    def add(self, trace: Trace) -> None:
        self.labels = site_labels(trace.model.decoder.out_dims, self.sites)
        y_BXD = _by_site(trace.targets_BXoDo)
        if self.origin_XD is None:
            self.origin_XD = y_BXD.mean(0)  # sums about a nearby point do not cancel
        y_BXD = y_BXD - self.origin_XD
        self.n += len(y_BXD)
        self.error_X = self.error_X + _by_site(trace.error_BXoDo).square().sum((0, 2)).cpu()
        self.sum_XD = self.sum_XD + y_BXD.sum(0).cpu()
        self.square_XD = self.square_XD + y_BXD.square().sum(0).cpu()

    def result(self) -> dict[str, float]:
        variance_X = (self.square_XD - self.sum_XD.square() / max(1, self.n)).sum(-1)
        by_site = {
            f"fvu/{label}" if label else "fvu": float(e / v)
            for label, e, v in zip(self.labels, self.error_X, variance_X)
        }
        return {**by_site, "fvu/pooled": float(self.error_X.sum() / variance_X.sum())}


@attrs.frozen
class ReconstructionBias:
    """`sum <y, yhat> / sum ||yhat||^2` per site: above 1 the reconstructions are shrunk (Gated SAEs, 2024).

    Args:
        sites: names along each crosscoding dimension; indices if not given.
    """

    sites: SiteNames | None = None

    def start(self) -> "_BiasSums":
        return _BiasSums(self.sites)


@attrs.define
class _BiasSums:
    sites: SiteNames | None
    labels: list[str] = attrs.field(factory=list)
    dot_X: Tensor = attrs.field(factory=lambda: torch.zeros(()))
    square_X: Tensor = attrs.field(factory=lambda: torch.zeros(()))

    def add(self, trace: Trace) -> None:
        self.labels = site_labels(trace.model.decoder.out_dims, self.sites)
        y_BXD, recon_BXD = _by_site(trace.targets_BXoDo), _by_site(trace.recon_BXoDo)
        self.dot_X = self.dot_X + (y_BXD * recon_BXD).sum((0, 2)).cpu()
        self.square_X = self.square_X + recon_BXD.square().sum((0, 2)).cpu()

    def result(self) -> dict[str, float]:
        return {
            f"reconstruction_bias/{label}".rstrip("/"): float(d / s)
            for label, d, s in zip(self.labels, self.dot_X, self.square_X)
        }
