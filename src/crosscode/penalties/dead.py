"""Losses that keep latents alive, or bring dead ones back."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Protocol, runtime_checkable

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscode.activations import Thresholded
from crosscode.checks import ascending, at_least, count, instance, one_of, prefixes_of_coder
from crosscode.kernels.pattern import Pattern
from crosscode.kernels.selection import top_k_of_rows
from crosscode.kernels.sparse import gather
from crosscode.latents import Latents, total
from crosscode.models import DecoderNorm, SparseCoder, Trace, combined_norm_L
from crosscode.penalties.sparsity import thresholds_of_coder
from crosscode.protocols import Structural


@runtime_checkable
class CountsDead(Protocol, metaclass=Structural):
    """A penalty that says after how many silent tokens a latent is dead: figures count by it too; None says nothing."""

    @property
    def dead_after_tokens(self) -> int | None: ...


@attrs.frozen
class PreActivation:
    """`sum_L ReLU(theta_L - z_L) a_L` on every latent that does not fire on a token (January 2025 update).

    `z` is the pre-activation: taken after the JumpReLU its gradient to a silent latent would be zero.

    Args:
        jumprelu: the coder's own activation, whose thresholds are pulled down as well.
        norm: how decoder norms over sites combine.
        dead_after_tokens: restrict the loss to latents silent for that many tokens; None for all latents.
    """

    jumprelu: Thresholded
    norm: DecoderNorm = "l1_of_l2"
    dead_after_tokens: int | None = None

    def __attrs_post_init__(self) -> None:
        instance("PreActivation.jumprelu", self.jumprelu, Thresholded, "a JumpReLU, or a PerSite of them")
        one_of("PreActivation.norm", self.norm, DecoderNorm)
        if self.dead_after_tokens is not None:
            at_least("PreActivation.dead_after_tokens", self.dead_after_tokens, 1)

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder that has other thresholds."""
        thresholds_of_coder("PreActivation", self.jumprelu, coder)

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        a_L = combined_norm_L(trace.decoder_norms_LXo, self.norm)
        if self.dead_after_tokens is not None:
            a_L = a_L * (trace.tokens_since_fired_L >= self.dead_after_tokens)
        theta_L, latents = self.jumprelu.threshold_L, trace.latents
        if latents.pattern is None or latents.pre is None or not trace.model.encoder.is_affine:
            return total((theta_L - trace.pre_BL).relu().sum(0) * a_L) / len(trace)
        # relu(t) = t + relu(-t): a term of the mean input alone, and one that only firing latents have.
        mean_z_L = trace.model.encoder(trace.inputs_BXiDi.mean(0, keepdim=True))[0]
        above_N = (latents.pre - gather(theta_L, latents.pattern)).relu() * gather(a_L, latents.pattern)
        return total((theta_L - mean_z_L) * a_L) + total(above_N) / len(trace)


@attrs.frozen
class AuxK:
    """Reconstruct the error with the `k` highest-scoring dead latents (Gao et al. 2024, appendix A.2).

    `(1/B) sum (ehat - e)^2 / (1/B) sum (e - mean e)^2`, the error `e` detached, `ehat` without bias or skip: only the
    dead latents' own encoder columns, biases and directions get a gradient. The usual weight is 1/32. A batch-level
    term: under gradient accumulation it is taken per micro-batch.

    Args:
        k: how many dead latents reconstruct a token's error; half the width of a site if not given.
        dead_after_tokens: a latent silent for at least that many tokens is dead.
        norm: how decoder norms over sites combine when dead latents are ranked; `none` for an unweighted ranking.
        prefixes: of a Matryoshka coder, how many latents each prefix has, ascending. Dead latents that a prefix adds
            reconstruct the error of that prefix, and the terms of all prefixes are summed (SAELens).
    """

    k: int | None = None
    dead_after_tokens: int = 10_000_000
    norm: DecoderNorm = "l1_of_l2"
    prefixes: Sequence[int] | None = None

    def __attrs_post_init__(self) -> None:
        if self.k is not None:
            count("AuxK.k", self.k)
        one_of("AuxK.norm", self.norm, DecoderNorm)
        at_least("AuxK.dead_after_tokens", self.dead_after_tokens, 1)
        if self.prefixes is not None:
            ascending("AuxK.prefixes", self.prefixes)

    def check_coder(self, coder: SparseCoder) -> None:
        """Raise `BadInput` for a coder of fewer latents than the prefixes have."""
        if self.prefixes is not None:
            prefixes_of_coder("AuxK.prefixes", self.prefixes, coder.n_latents)

    def __call__(self, trace: Trace) -> Float[Tensor, ""]:
        error_BXoDo = trace.error_BXoDo.detach()
        dead_l = (trace.tokens_since_fired_L >= self.dead_after_tokens).nonzero()[:, 0]
        if self.prefixes is None:
            return self._term(trace, error_BXoDo, dead_l)
        terms = error_BXoDo.new_zeros(())
        for start, stop in pairwise((0, *self.prefixes)):
            added_l = dead_l[(dead_l >= start) & (dead_l < stop)]
            if len(added_l):
                with torch.no_grad():
                    recon_BXoDo = trace.model.reconstruct(trace.latents.prefix(stop), trace.inputs_BXiDi)
                terms = terms + self._term(trace, (trace.targets_BXoDo - recon_BXoDo).to(terms.dtype), added_l)
        return terms

    def _term(
        self, trace: Trace, error_BXoDo: Float[Tensor, "B *Xo Do"], dead_l: Int[Tensor, " l"]
    ) -> Float[Tensor, ""]:
        """The share of an error's variance that dead latents leave."""
        if len(dead_l) == 0:
            return error_BXoDo.new_zeros(())
        encoder, decoder = trace.model.encoder, trace.model.decoder
        z_Bl = encoder.of_latents(trace.inputs_BXiDi, dead_l)
        norms_l = combined_norm_L(trace.decoder_norms_LXo.detach(), self.norm)[dead_l]
        k = max(1, decoder.d_out // 2) if self.k is None else self.k
        kept = top_k_of_rows(z_Bl.detach(), k, norms_l)
        among_all = Pattern(dead_l[kept.indices_N], kept.offsets_B1, trace.model.n_latents)
        ehat_BXoDo = decoder.linear(Latents.from_entries(kept.of(z_Bl), among_all))
        numerator = (ehat_BXoDo - error_BXoDo).square().sum() / len(trace)
        variance = (error_BXoDo - error_BXoDo.mean(0)).square().sum() / len(trace)
        # Divided by 0 the value could be mended, its gradients could not; divided by infinity both are 0.
        ratio = numerator / torch.where(variance > 0, variance, torch.inf)
        return torch.nan_to_num(ratio, nan=0.0, posinf=0.0, neginf=0.0)
