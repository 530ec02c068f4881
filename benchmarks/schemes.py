"""The schemes that are timed, their sizes, and the activations that all contestants see; no library is imported."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

LR = 1e-4
Contestant = tuple[Callable[[int], object], Callable[[], dict[str, float]]]  # a step, and quality on fresh activations

SCHEMES = [
    *(f"sae {kind}" for kind in ("TopK", "TopK + AuxK", "BatchTopK", "BatchTopK + AuxK")),
    *(f"sae {kind}" for kind in ("ReLU dense", "ReLU sparse", "JumpReLU", "JumpReLU January")),
    *(f"crosscoder {kind}" for kind in ("TopK", "BatchTopK", "ReLU dense", "ReLU sparse", "JumpReLU")),
    "diffing JumpReLU January",
    *(f"clt {kind}" for kind in ("TopK", "BatchTopK")),
]


@dataclass(frozen=True)
class Size:
    """Tokens a batch, sites, width of a site, latents (a CLT: of each site), and latents a token."""

    B: int = 2048
    sites: int = 1
    D: int = 512
    L: int = 8192
    k: int = 32
    batches: int = 3

    def of(self, family: str) -> "Size":
        """The size at which a family is timed: two models, or four layers of half the width."""
        if family == "clt":
            return replace(self, sites=4, D=self.D // 2, L=self.L // 2)
        return replace(self, sites=1 if family == "sae" else 2)


SIZES = {"full": Size(), "quick": Size(512, 1, 128, 2048, 32, 8)}


def activations(size: Size) -> list[Tensor]:
    """Batches of sparse combinations of random features plus noise, (B, sites, D), mean norm sqrt(D); one to spare."""
    generator = torch.Generator().manual_seed(0)
    width, n_tokens = size.sites * size.D, (size.batches + 1) * size.B
    features = torch.randn(4 * size.D, width, generator=generator)
    active = torch.rand(n_tokens, 4 * size.D, generator=generator)
    active *= torch.rand(n_tokens, 4 * size.D, generator=generator) < 0.01
    acts = (active @ features).add_(torch.randn(n_tokens, width, generator=generator), alpha=0.1)
    acts = acts.reshape(-1, size.sites, size.D)
    return list((acts * size.D**0.5 / acts.norm(dim=-1).mean()).split(size.B))


def kill_a_tenth(tokens_since_fired_L: Tensor) -> None:
    """A tenth of the latents counts as dead, whatever fires."""
    tokens_since_fired_L.zero_()
    tokens_since_fired_L[::10] = 100_000_000


@torch.no_grad()
def fvu(recon: Tensor, acts: Tensor) -> float:
    """Fraction of variance unexplained."""
    return float((recon - acts).square().sum() / (acts - acts.mean(0)).square().sum())
