"""TopK, BatchTopK and GroupMax: keep the highest-scoring latents. All three are trained the same way.

A latent's score is `z * a`, if positive, where `a` combines its decoder norms (`norm`), so that a latent cannot win by
trading a small decoder for a large activation; `weighted=False` ranks by `ReLU(z)` alone. The kept value is
`ReLU(z)` itself, non-positive values are never kept, and no gradient goes through the choice.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crosscode.activations.base import ScoreNorm, Selection, scores
from crosscode.checks import at_least, at_most, count, number, one_of
from crosscode.errors import BadInput, CrosscodeError
from crosscode.kernels.pattern import Pattern
from crosscode.kernels.selection import above, entries_where, max_of_groups, top_k_of_batch, top_k_of_rows
from crosscode.module import evolve, module


def annealed_k(k: int, k_start: int | None, anneal_steps: int, step: int) -> int:
    """`max(1, round(k_start - (k_start - k) * min(1, step / anneal_steps)))`; `k` if nothing is annealed."""
    if k_start is None or anneal_steps == 0:
        return k
    return max(1, round(k_start - (k_start - k) * min(1.0, step / anneal_steps)))


class _Ranking(Selection):
    """What all three have: `k`, and scores that decoder norms may weigh."""

    k: int
    weighted: bool
    norm: ScoreNorm

    def _check_arguments(self, k_start: int | None = None, anneal_steps: int = 0) -> None:
        who = type(self).__name__
        count(f"{who}.k", self.k)
        one_of(f"{who}.norm", self.norm, ScoreNorm)
        at_least(f"{who}.anneal_steps", anneal_steps, 0)
        if k_start is not None:
            count(f"{who}.k_start", k_start, least=self.k)

    @property
    def score_norm(self) -> ScoreNorm | None:
        return self.norm if self.weighted else None

    def check(self, n_latents: int) -> None:
        at_most(f"{type(self).__name__}.k", self.k, n_latents, "n_latents")


@module
class TopK(_Ranking):
    """The `k` highest-scoring latents of every token (Gao et al. 2024).

    Args:
        k: how many latents a token may have; fewer fire where fewer are positive.
        weighted: rank by decoder-norm-weighted scores.
        norm: how a latent's decoder norms over sites combine into its weight.
        k_start: where annealing of k begins; None for a constant k.
        anneal_steps: over how many steps k falls linearly from `k_start` to `k`.
    """

    k: int
    weighted: bool = True
    norm: ScoreNorm = "l1_of_l2"
    k_start: int | None = None
    anneal_steps: int = 0

    def __attrs_post_init__(self) -> None:
        self._check_arguments(self.k_start, self.anneal_steps)
        self.k_now = self.k

    def at_step(self, step: int, num_steps: int) -> None:
        self.k_now = annealed_k(self.k, self.k_start, self.anneal_steps, step)

    @property
    def kept_of_each_token(self) -> int | None:
        return self.k_now

    def select(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Pattern:
        return top_k_of_rows(pre_BL.detach(), self.k_now, score_norms_L)

    @property
    def is_rescalable(self) -> bool:
        return self.weighted  # the order of an unweighted ranking would change

    def rescaled(self, a_L: Float[Tensor, " L"]) -> "TopK":
        plain = evolve(self, weighted=False)
        plain.k_now = self.k_now
        return plain


@module
class BatchTopK(_Ranking):
    """The `k * B` highest-scoring latents of a whole (micro-)batch (Bussmann et al. 2024).

    In eval mode a latent fires when its score exceeds one threshold, so that a token's latents never depend on its
    batch neighbours. While training the threshold is a running mean of each batch's smallest kept score; calibration
    replaces it by the `k * N`-th largest score over N tokens, so that the mean L0 is k.

    Args:
        k: how many latents a token has on average.
        weighted: rank by decoder-norm-weighted scores.
        norm: how a latent's decoder norms over sites combine into its weight.
        k_start: where annealing of k begins; None for a constant k.
        anneal_steps: over how many steps k falls linearly from `k_start` to `k`.
        ema_decay: decay of the running threshold, at most `1 - 10 / num_steps` in short runs.
        ema_start: step at which averaging begins, at most a tenth of the run; until then the latest minimum counts.
    """

    k: int
    weighted: bool = True
    norm: ScoreNorm = "l1_of_l2"
    k_start: int | None = None
    anneal_steps: int = 0
    ema_decay: float = 0.999
    ema_start: int = 1000
    needs_calibration = True

    def __attrs_post_init__(self) -> None:
        self._check_arguments(self.k_start, self.anneal_steps)
        number("BatchTopK.ema_decay", self.ema_decay)
        if not 0 <= self.ema_decay < 1:
            raise BadInput(f"BatchTopK.ema_decay={self.ema_decay} must be at least 0 and less than 1.")
        at_least("BatchTopK.ema_start", self.ema_start, 0)
        self.threshold: Tensor
        self.register_buffer("threshold", torch.tensor(-1.0, dtype=torch.float64))  # -1: not set yet
        self.k_now, self.decay_now = self.k, self.ema_decay
        self._largest: Tensor | None = None  # of the scores seen since calibration began
        self._n_wanted = self._n_calibrated = 0

    def at_step(self, step: int, num_steps: int) -> None:
        self.k_now = annealed_k(self.k, self.k_start, self.anneal_steps, step)
        averaging = step >= min(self.ema_start, num_steps // 10)
        self.decay_now = min(self.ema_decay, max(0.0, 1 - 10 / max(1, num_steps))) if averaging else 0.0

    def select(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Pattern:
        if self._largest is not None:
            self._remember(scores(pre_BL, score_norms_L))
        if self.training:
            pattern, smallest = top_k_of_batch(pre_BL.detach(), self.k_now * len(pre_BL), score_norms_L)
            if smallest is not None:
                self._follow(smallest)
            return pattern
        if self._largest is None and self.threshold < 0:
            raise CrosscodeError(
                "BatchTopK has no inference threshold yet: train it, or call crosscode.training.calibrate(coder, data)."
            )
        return entries_where(above(scores(pre_BL, score_norms_L), self.threshold.clamp_min(0.0)))

    def _apply(self, fn: Any, recurse: bool = True) -> "BatchTopK":
        # In a lower precision the threshold would pass or fail other latents than those it was taken from.
        kept = self.threshold
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.threshold.dtype != kept.dtype:
            self.threshold = kept.to(self.threshold.device)
        return self

    @torch.no_grad()
    def _follow(self, smallest: Float[Tensor, ""]) -> None:
        smallest = smallest.double()
        mixed = self.decay_now * self.threshold + (1 - self.decay_now) * smallest
        self.threshold.copy_(torch.where(self.threshold < 0, smallest, mixed))

    def begin_calibration(self, n_tokens: int) -> None:
        self._largest, self._n_wanted, self._n_calibrated = torch.empty(0), n_tokens, 0

    def _remember(self, scores_BL: Float[Tensor, "B L"]) -> None:
        """The `k * N`-th largest of all is among as many of those so far; N passes `n_wanted` by less than a batch."""
        assert self._largest is not None
        most_kept = self.k * (self._n_wanted + len(scores_BL))
        self._n_calibrated += len(scores_BL)
        full = len(self._largest) >= most_kept
        above_all_left_out = scores_BL[scores_BL > (self._largest.min() if full else 0.0)]
        self._largest = torch.cat([self._largest.to(scores_BL), above_all_left_out])
        if len(self._largest) > most_kept:
            self._largest = self._largest.topk(most_kept, sorted=False).values

    def end_calibration(self) -> None:
        assert self._largest is not None, "begin_calibration comes first"
        place = self.k * self._n_calibrated
        enough = 0 < place <= len(self._largest)
        # Sorted, not kthvalue, whose time explodes on values that come in runs.
        self.threshold.fill_(float(self._largest.sort(descending=True).values[place - 1]) if enough else 0.0)
        self._largest = None

    @property
    def is_rescalable(self) -> bool:
        return self.weighted  # the order of an unweighted ranking would change

    def rescaled(self, a_L: Float[Tensor, " L"]) -> "BatchTopK":
        plain = evolve(self, weighted=False).to(self.threshold.device)
        plain.threshold.copy_(self.threshold)
        plain.k_now, plain.decay_now = self.k_now, self.decay_now
        return plain.train(self.training)


@module
class GroupMax(_Ranking):
    """The highest-scoring latent of each of `k` contiguous groups, if positive.

    Group i holds latents `floor(i L / k)` to `floor((i + 1) L / k) - 1`, so L need not be divisible by k.

    Args:
        k: how many groups.
        weighted: rank by decoder-norm-weighted scores.
        norm: how a latent's decoder norms over sites combine into its weight.
    """

    k: int
    weighted: bool = True
    norm: ScoreNorm = "l1_of_l2"

    def __attrs_post_init__(self) -> None:
        self._check_arguments()

    def select(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Pattern:
        return max_of_groups(scores(pre_BL, score_norms_L), self.k)

    @property
    def is_rescalable(self) -> bool:
        return self.weighted  # the order of an unweighted ranking would change

    def rescaled(self, a_L: Float[Tensor, " L"]) -> "GroupMax":
        return evolve(self, weighted=False)
