"""Activations of two models, and of a null, made from known sparse features; and how well a coder finds these.

Shapes: B tokens, N features, M models, D width, L latents, O = M x D.
"""

from enum import IntEnum

import attrs
import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor


class Kind(IntEnum):
    """What becomes of a feature of model 0 in model 1."""

    SHARED = 0  # the same direction, up to a drift
    ONLY_0 = 1  # gone
    ONLY_1 = 2  # new
    ROTATED = 3  # another direction, on the same tokens
    RESCALED = 4  # the same direction, between a third and three times as long


MODELS = ("0", "1", "control")
PAIR, NULL = (0, 1), (0, 2)


@attrs.frozen(kw_only=True)
class Sizes:
    """How many of what.

    Attributes:
        width: D of each model.
        counts: features of each `Kind`, in its order.
        l0: features active on a token, on average.
        zipf_offset: rates go as 1 / (rank + offset) (Zipf-Mandelbrot).
        n_correlated: pairs of which the second fires on half of the tokens that the first fires on.
        n_children: features that fire only where a more frequent one, their parent, does.
        norm_spread: standard deviation of the log of a feature's norm.
        drift: angle (radians) by which every kept direction turns between any two models.
        norm_drift: standard deviation of the log of the ratio of its norms.
        noise: standard deviation of each coordinate's noise, as a share of the signal's root mean square.
    """

    width: int = 80
    counts: tuple[int, int, int, int, int] = (120, 24, 24, 16, 16)
    l0: float = 8.0
    zipf_offset: float = 20.0
    n_correlated: int = 16
    n_children: int = 24
    norm_spread: float = 0.3
    drift: float = 0.15
    norm_drift: float = 0.2
    noise: float = 0.1

    @property
    def n_features(self) -> int:
        return sum(self.counts)


@attrs.frozen(eq=False, kw_only=True)
class World:
    """Known features of model 0, model 1 and the control, which is model 0 drifted.

    Attributes:
        kind_N: the `Kind` of each feature.
        rate_N: share of tokens that it is active on.
        partner_N: the feature that it is correlated with, -1 for none.
        parent_N: the feature without which it never fires, -1 for none.
        W_NMD: directions times norms; zero where a model does not have the feature.
        noise: standard deviation of each coordinate's noise.
    """

    kind_N: Int[Tensor, " N"]
    rate_N: Float[Tensor, " N"]
    partner_N: Int[Tensor, " N"]
    parent_N: Int[Tensor, " N"]
    W_NMD: Float[Tensor, "N M D"]
    noise: float

    def codes(self, n_tokens: int, seed: int) -> Float[Tensor, "B N"]:
        """How strongly each feature is active on each token: 0, or a positive number of mean 1."""
        generator = torch.Generator().manual_seed(seed)
        chance_BN = torch.rand(n_tokens, len(self.rate_N), generator=generator)
        on_BN = chance_BN < self.rate_N
        second = (self.partner_N >= 0).nonzero()[:, 0]
        first, p = self.partner_N[second], self.rate_N
        with_it = 0.5 * (p[second] / p[first]).clamp_max(1.0)
        without = (p[second] - with_it * p[first]) / (1 - p[first])
        on_BN[:, second] = chance_BN[:, second] < torch.where(on_BN[:, first], with_it, without)
        child = (self.parent_N >= 0).nonzero()[:, 0]
        parent = self.parent_N[child]
        on_BN[:, child] = on_BN[:, parent] & (chance_BN[:, child] < p[child] / p[parent])
        strength_BN = (1 + 0.3 * torch.randn(chance_BN.shape, generator=generator)).clamp_min(0.2)
        return on_BN * strength_BN

    def activations(self, codes_BN: Float[Tensor, "B N"], models: tuple[int, ...], seed: int) -> Float[Tensor, "B M D"]:
        """What the models make of it, with noise."""
        generator = torch.Generator().manual_seed(seed)
        acts_BMD = einsum(codes_BN, self.W_NMD[:, list(models)], "B N, N M D -> B M D")
        return acts_BMD + self.noise * torch.randn(acts_BMD.shape, generator=generator)

    def exclusive_N(self, model: int) -> Bool[Tensor, " N"]:
        """The features that model 0, or model 1, has alone in the pair."""
        return self.kind_N == (Kind.ONLY_0, Kind.ONLY_1)[model]


def make_world(sizes: Sizes, seed: int) -> World:
    """Draw a world: kinds, correlated pairs and hierarchies fall on features of any rate."""
    generator = torch.Generator().manual_seed(seed)
    n = sizes.n_features
    kind_N = torch.repeat_interleave(torch.arange(len(Kind)), torch.tensor(sizes.counts))
    kind_N = kind_N[torch.randperm(n, generator=generator)]
    rate_N = 1 / (1 + torch.arange(n) + sizes.zipf_offset)
    rate_N = (rate_N * sizes.l0 / rate_N.sum()).clamp_max(0.5)
    partner_N, parent_N = torch.full((n,), -1), torch.full((n,), -1)
    taken: set[int] = set()
    # Neighbours in rank make pairs; a child's parent is about four times as frequent.
    for i in torch.randperm(n - 1, generator=generator).tolist():
        if len(taken) < 2 * sizes.n_correlated:
            if not {i, i + 1} & taken:
                partner_N[i + 1] = i
                taken |= {i, i + 1}
        elif i not in taken and i // 4 not in taken and i // 4 != i and (parent_N >= 0).sum() < sizes.n_children:
            parent_N[i] = i // 4
            taken.add(i)
            taken.add(i // 4)
    W_NMD = _directions(sizes, kind_N, generator)
    signal = (rate_N[:, None] * 1.09 * W_NMD.square().mean(-1)).sum(0).mean().sqrt()
    return World(
        kind_N=kind_N, rate_N=rate_N, partner_N=partner_N, parent_N=parent_N, W_NMD=W_NMD,
        noise=sizes.noise * float(signal),
    )  # fmt: skip


def _directions(sizes: Sizes, kind_N: Int[Tensor, " N"], generator: torch.Generator) -> Float[Tensor, "N M D"]:
    """Each feature's direction in each model, times its norm."""
    randn = lambda *shape: torch.randn(*shape, generator=generator)
    unit = lambda x: x / x.norm(dim=-1, keepdim=True)
    n, d = len(kind_N), sizes.width
    first_ND = unit(randn(n, d))
    norm_N1 = (sizes.norm_spread * randn(n, 1)).exp()
    W_M = []
    for model in range(len(MODELS)):
        drifted_ND = unit(first_ND + (sizes.drift * unit(randn(n, d)) if model else 0))
        norm = norm_N1 * (sizes.norm_drift * randn(n, 1)).exp() if model else norm_N1
        W_ND = drifted_ND * norm
        if model == 1:
            rotated = (kind_N == Kind.ROTATED)[:, None]
            W_ND = torch.where(rotated, unit(randn(n, d)) * norm, W_ND)
            ratio_N1 = torch.exp((torch.rand(n, 1, generator=generator) * 0.7 + 0.4) * randn(n, 1).sign())
            W_ND = torch.where((kind_N == Kind.RESCALED)[:, None], W_ND * ratio_N1, W_ND)
        absent = kind_N == (Kind.ONLY_0 if model == 1 else Kind.ONLY_1)
        W_M.append(W_ND * ~absent[:, None])
    return torch.stack(W_M, 1)


# --- scores -------------------------------------------------------------------------------------------------


def cosines_NL(W_NMD: Float[Tensor, "N M D"], W_dec_LMD: Float[Tensor, "L M D"]) -> Float[Tensor, "N L"]:
    """Between features and latents, each with its vectors in all models laid end to end; 0 where one is zero."""
    W_NO, W_LO = (rearrange(W.double(), "N M D -> N (M D)") for W in (W_NMD, W_dec_LMD))
    unit = lambda x: x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return unit(W_NO) @ unit(W_LO).T


def firing_f1_NL(on_BN: Bool[Tensor, "B N"], fires_BL: Bool[Tensor, "B L"]) -> Float[Tensor, "N L"]:
    """F1 of each latent as a detector of each feature; 0 where neither is ever on."""
    both_NL = on_BN.float().T @ fires_BL.float()
    total_NL = on_BN.float().sum(0)[:, None] + fires_BL.float().sum(0)
    return (2 * both_NL / total_NL.clamp_min(1)).double()


def matched(score_NL: Float[Tensor, "N L"]) -> Float[Tensor, " N"]:
    """Each feature's score under the assignment of latents to features, one to one, of the greatest sum (Hungarian)."""
    rows, columns = linear_sum_assignment(score_NL.numpy(), maximize=True)
    score_N = torch.zeros(len(score_NL), dtype=score_NL.dtype)
    score_N[torch.from_numpy(rows)] = score_NL[rows, columns]
    return score_N


def precision_and_recall(
    called_L: Bool[Tensor, " L"], feature_L: Int[Tensor, " L"], exclusive_N: Bool[Tensor, " N"]
) -> tuple[int, int, int, int]:
    """Right calls, calls, exclusive features that some call found, exclusive features.

    Args:
        called_L: latents called exclusive.
        feature_L: the feature each latent stands for; -1 for none.
        exclusive_N: which features are.
    """
    right_L = called_L & (feature_L >= 0) & exclusive_N[feature_L.clamp_min(0)]
    return int(right_L.sum()), int(called_L.sum()), len(feature_L[right_L].unique()), int(exclusive_N.sum())
