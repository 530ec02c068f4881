"""Latent scaling: is a latent that only one model writes really absent from the other (Minder et al., 2025)?

Shapes: B tokens, N entries of sparse codes, L latents, M models, P hookpoints, D width, O = P x D.
"""

from collections.abc import Iterable
from typing import Literal

import attrs
import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscode.batch import Batch
from crosscode.checks import at_least
from crosscode.errors import BadInput
from crosscode.initialization.data import first_tokens
from crosscode.kernels.sparse import sample_products, sum_columns
from crosscode.latents import Latents
from crosscode.metrics import relative_norm
from crosscode.models import SparseCoder, Trace
from crosscode.module import in_eval_mode

Target = Literal["error", "recon"]


@attrs.frozen
class Verdicts:
    """How many of the candidates are specific to their model, and why the others are not.

    A candidate is specific, or shrunk, or decoupled, or shrunk and decoupled, or undefined.

    Attributes:
        n_candidates: latents that look exclusive.
        n_specific: those with both ratios below their cut-offs.
        n_complete_shrinkage: those whose `nu_error` is not: the other model has it and the decoder was shrunk to 0.
        n_latent_decoupling: those whose `nu_recon` is not: other latents write it to the other model.
        n_undefined: those without a ratio: they never fired, or do not write to their own model.
    """

    n_candidates: int
    n_specific: int
    n_complete_shrinkage: int
    n_latent_decoupling: int
    n_undefined: int


@attrs.frozen(eq=False)
class LatentScaling:
    """Latent scaling of every latent along what it writes to one model, its own; in the coder's scaled space.

    `beta = sum_n f_n <d, t_n> / (||d||^2 sum_n f_n^2)` is the scale at which the latent's direction `d` in its own
    model fits a target `t` best. Betas and ratios are NaN for latents that never fired or have `d = 0`. With one
    hookpoint, ratios of raw space would be `scale_own / scale_other` times these.

    Attributes:
        own: number of the model whose direction is used.
        other: number of the model it is compared with.
        beta_error_own_L, beta_error_other_L: fits of `a - (ahat - f W_dec)`, what everything but this latent leaves
            unexplained of either model's activations (its contribution removed with that model's own decoder).
        beta_recon_own_L, beta_recon_other_L: fits of either model's reconstruction.
        relative_norm_L: the own model's share of the decoder norms (hookpoints added up).
        count_L: tokens that it fired on.
    """

    own: int
    other: int
    beta_error_own_L: Float[Tensor, " L"]
    beta_error_other_L: Float[Tensor, " L"]
    beta_recon_own_L: Float[Tensor, " L"]
    beta_recon_other_L: Float[Tensor, " L"]
    relative_norm_L: Float[Tensor, " L"]
    count_L: Int[Tensor, " L"]

    @property
    def nu_error_L(self) -> Float[Tensor, " L"]:
        """`beta_error_other / beta_error_own`: high where the other model has it and the coder does not write it."""
        return self.beta_error_other_L / self.beta_error_own_L

    @property
    def nu_recon_L(self) -> Float[Tensor, " L"]:
        """`beta_recon_other / beta_recon_own`: high where the coder writes it to the other model by other latents."""
        return self.beta_recon_other_L / self.beta_recon_own_L

    def specific_L(self, nu_error: float = 0.2, nu_recon: float = 0.5) -> Bool[Tensor, " L"]:
        """Which latents are specific to their own model: `nu_error_L < nu_error` and `nu_recon_L < nu_recon`.

        Args:
            nu_error: cut-off of `nu_error_L`; 0.2 in the paper, 0.3 in its authors' plots.
            nu_recon: cut-off of `nu_recon_L`; 0.5 in the paper, 0.3 in its authors' plots.
        """
        return (self.nu_error_L < nu_error) & (self.nu_recon_L < nu_recon)

    def verdicts(
        self, candidates: Bool[Tensor, " L"] | float = 0.9, *, nu_error: float = 0.2, nu_recon: float = 0.5
    ) -> Verdicts:
        """Counts among the latents that look exclusive to their own model.

        Args:
            candidates: which latents, or the relative norm from which on a latent is one.
            nu_error: see `specific_L`.
            nu_recon: see `specific_L`.
        """
        mask_L = self.relative_norm_L >= candidates if isinstance(candidates, int | float) else candidates.cpu()
        if mask_L.shape != self.count_L.shape:
            raise BadInput(f"candidates has {len(mask_L)} entries for {len(self.count_L)} latents.")
        said = {name: int((mask_L & said_L).sum()) for name, said_L in self.verdicts_L(nu_error, nu_recon).items()}
        return Verdicts(n_candidates=int(mask_L.sum()), **{f"n_{name}": n for name, n in said.items()})

    def verdicts_L(self, nu_error: float = 0.2, nu_recon: float = 0.5) -> dict[str, Bool[Tensor, " L"]]:
        """What makes each latent look exclusive: `specific` to its model, `complete_shrinkage`, `latent_decoupling`,
        both of these, or `undefined`.

        Args:
            nu_error: see `specific_L`.
            nu_recon: see `specific_L`.
        """
        undefined_L = self.nu_error_L.isnan() | self.nu_recon_L.isnan()
        return {
            "specific": ~undefined_L & self.specific_L(nu_error, nu_recon),
            "complete_shrinkage": ~undefined_L & (self.nu_error_L >= nu_error),
            "latent_decoupling": ~undefined_L & (self.nu_recon_L >= nu_recon),
            "undefined": undefined_L,
        }


@torch.no_grad()
def latent_scaling(
    coder: SparseCoder,
    data: Iterable[Batch],
    n_tokens: int = 50_000,
    *,
    models: tuple[int, int] | None = None,
    subtract_bias: bool = False,
) -> tuple[LatentScaling, LatentScaling]:
    """Latent scaling of every latent in both directions, in one pass over the data.

    Everything is in the coder's scaled space and in eval mode. The first crosscoding dimension is the models; the
    hookpoints of a model are laid end to end, so that a direction spans all of them. Sums are of float64; memory
    beyond the coder's is a batch's reconstructions, a dense decoder and 10 numbers a latent.

    Args:
        coder: a crosscoder of several models; its mode is put back afterwards.
        data: raw activations that training has not seen.
        n_tokens: how many tokens to use, in whole batches.
        models: numbers of the two models; may be left out if there are just two.
        subtract_bias: fit reconstructions less `b_dec`. (The error target never depends on `b_dec`.)

    Returns:
        What is specific to `models[0]`, then what is specific to `models[1]`: with base and chat, `[1]` has the
        ratios of Minder et al., beta of base over beta of chat along chat's direction.

    Raises:
        BadInput: the coder does not write to two models, or not with equal widths.

    Source: Minder et al., "Overcoming Sparsity Artifacts in Crosscoders to Interpret Chat-Tuning", 2025.
    """
    at_least("n_tokens", n_tokens, 1)
    pair = _pair(coder, models)
    sums = ScalingSums(coder, pair, subtract_bias)
    with in_eval_mode(coder):
        for batch in first_tokens(data, n_tokens):
            sums.add(Trace.of(coder, batch.to(coder.device)))
    return sums.scaling(0), sums.scaling(1)


def _pair(coder: SparseCoder, models: tuple[int, int] | None) -> tuple[int, int]:
    """The two models, checked."""
    dims, widths = coder.decoder.out_dims, coder.decoder.widths_Xo
    n_models = dims[0] if dims else 1
    if models is None:
        if n_models != 2:
            raise BadInput(f"models must name two of the {n_models} that the coder writes: {dims}.")
        models = (0, 1)
    if models[0] == models[1] or not all(0 <= m < n_models for m in models):
        raise BadInput(f"models={models} must be two different numbers from 0 to {n_models - 1}.")
    if widths is not None:
        one, other = (torch.tensor(widths).reshape(n_models, -1)[m].tolist() for m in models)
        if one != other:
            raise BadInput(f"models={models} have widths {one} and {other}: a direction of one is none of the other.")
    return models


def _precise(x: Tensor) -> Tensor:
    return x.detach().float() if x.element_size() < 4 else x.detach()


class ScalingSums:
    """Float64 sums over tokens; axes of two are the own model, then the model of the target."""

    def __init__(self, coder: SparseCoder, pair: tuple[int, int], subtract_bias: bool = False) -> None:
        self.pair, L = pair, coder.n_latents
        self.norms_LM = coder.decoder.norms_LXo()[:, list(pair)].cpu()
        self.W_MLO = rearrange(_precise(coder.decoder.dense())[:, list(pair)], "L M ... -> M L (...)").contiguous()
        self.bias_XoDo = coder.decoder.b_dec_XoDo if subtract_bias else None
        self.square_L = torch.zeros(L, dtype=torch.float64)
        self.count_L = torch.zeros(L, dtype=torch.int64)
        self.dot_MML: dict[Target, Tensor] = {
            "error": torch.zeros(2, 2, L, dtype=torch.float64),
            "recon": torch.zeros(2, 2, L, dtype=torch.float64),
        }

    def add(self, trace: Trace) -> None:
        latents = trace.latents.detach()
        recon_BXoDo = trace.recon_BXoDo if self.bias_XoDo is None else trace.recon_BXoDo - self.bias_XoDo
        targets: dict[Target, Tensor] = {"error": trace.error_BXoDo, "recon": recon_BXoDo}
        for name, target_BXoDo in targets.items():
            target_MBO = rearrange(_precise(target_BXoDo)[:, list(self.pair)], "B M ... -> M B (...)").contiguous()
            for own, W_LO in enumerate(self.W_MLO):
                for m, target_BO in enumerate(target_MBO):
                    self.dot_MML[name][own, m] += _weighted_dots_L(latents, target_BO, W_LO)
        self.square_L += _squares_L(latents)
        self.count_L += latents.count_L().cpu()

    def scaling(self, own: int) -> LatentScaling:
        """What was summed, for the latents of one of the two models."""
        other = 1 - own
        W_LO = self.W_MLO[own].double()
        scale_L = W_LO.square().sum(-1).cpu() * self.square_L

        def beta_error_L(m: int) -> Tensor:
            # The latent's own part of the target, f W_dec[m], enters by its weights alone.
            own_part_L = (W_LO * self.W_MLO[m].double()).sum(-1).cpu() * self.square_L
            return (self.dot_MML["error"][own, m] + own_part_L) / scale_L

        return LatentScaling(
            own=self.pair[own],
            other=self.pair[other],
            beta_error_own_L=beta_error_L(own),
            beta_error_other_L=beta_error_L(other),
            beta_recon_own_L=self.dot_MML["recon"][own, own] / scale_L,
            beta_recon_other_L=self.dot_MML["recon"][own, other] / scale_L,
            relative_norm_L=relative_norm(self.norms_LM, own, other),
            count_L=self.count_L,
        )


def _weighted_dots_L(
    latents: Latents, target_BO: Float[Tensor, "B O"], W_LO: Float[Tensor, "L O"]
) -> Float[Tensor, " L"]:
    """`sum_b f_bl <w_l, t_b>`: a product at each entry of sparse codes, one matrix product for dense ones."""
    values = _precise(latents.values)
    if latents.pattern is None:
        return (values * (target_BO @ W_LO.T)).sum(0, dtype=torch.float64).cpu()
    dots_N = sample_products(target_BO, W_LO, latents.pattern)
    return sum_columns(values.double() * dots_N, latents.pattern).cpu()


def _squares_L(latents: Latents) -> Float[Tensor, " L"]:
    """`sum_b f_bl^2`."""
    values = latents.values.double()
    if latents.pattern is None:
        return values.square().sum(0).cpu()
    return sum_columns(values.square(), latents.pattern).cpu()
