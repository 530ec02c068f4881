"""TopK, BatchTopK and GroupMax: keep the highest-scoring latents. All three are trained the same way.

A latent's score is `z * a`, if positive, where `a` combines its decoder norms (`norm`), so that a latent cannot win by
trading a small decoder for a large activation; `weighted=False` ranks by `ReLU(z)` alone. The kept value is
`ReLU(z)` itself, non-positive values are never kept, and no gradient goes through the choice.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crosscode.activations.base import ScoreNorm, Selection, scores
from crosscode.checks import at_least, at_most, count, number, one_of
from crosscode.errors import BadInput, CrosscodeError, warn
from crosscode.kernels.pattern import Pattern
from crosscode.kernels.selection import above, entries_where, max_of_groups, top_k_of_batch, top_k_of_rows
from crosscode.module import evolve, module
from crosscode.schedulers import Scheduler


class _Ranking(Selection):
    """What all three have: `k`, which may change over a run, and scores that decoder norms may weigh.

    Where `k` is a schedule, `k_now` is a buffer: a checkpoint in the middle of a run selects as training did.
    """

    k: int | Scheduler
    weighted: bool
    norm: ScoreNorm

    def _begin(self) -> None:
        who = type(self).__name__
        if not callable(self.k):
            count(f"{who}.k", self.k)
        one_of(f"{who}.norm", self.norm, ScoreNorm)
        self._most: int | None = None
        self._k_now = self.k_at(0)
        if callable(self.k):
            self.annealed_k: Tensor
            self.register_buffer("annealed_k", torch.tensor(self._k_now))

    @property
    def k_now(self) -> int:
        """The `k` of the last step; of a constant one, `k`."""
        return self._k_now

    def k_at(self, step: int) -> int:
        """`max(1, round(k(step)))`, or `k` if it is constant."""
        if not callable(self.k):
            return self.k
        k = self.k(step)
        if not math.isfinite(k):
            raise BadInput(f"{type(self).__name__}.k at step {step}={k} must be a finite number.")
        return max(1, round(k))

    def at_step(self, step: int, num_steps: int) -> None:
        if not callable(self.k):
            return
        k = self.k_at(step)
        if step == 0 and k != self._k_now:
            warn(
                f"{type(self).__name__}.k is annealed anew, from {k}: this coder ended with {self._k_now}. To go on "
                f"with that, give it {type(self).__name__}({self._k_now})."
            )
        if self._most is not None:
            at_most(f"{type(self).__name__}.k at step {step}", k, self._most, "n_latents")
        self._keep(k)

    def _keep(self, k: int) -> None:
        self._k_now = k
        if callable(self.k):
            self.annealed_k.fill_(k)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if callable(self.k):
            self._k_now = int(self.annealed_k)

    @property
    def score_norm(self) -> ScoreNorm | None:
        return self.norm if self.weighted else None

    def check(self, n_latents: int) -> None:
        self._most = n_latents
        at_most(f"{type(self).__name__}.k", self._k_now, n_latents, "n_latents")


@module
class TopK(_Ranking):
    """The `k` highest-scoring latents of every token (Gao et al. 2024).

    Args:
        k: how many latents a token may have, a number or a function of the step; fewer fire where fewer are positive.
        weighted: rank by decoder-norm-weighted scores.
        norm: how a latent's decoder norms over sites combine into its weight.
    """

    k: int | Scheduler
    weighted: bool = True
    norm: ScoreNorm = "l1_of_l2"

    def __attrs_post_init__(self) -> None:
        self._begin()

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
        plain._keep(self.k_now)
        return plain


@module
class BatchTopK(_Ranking):
    """The `k * B` highest-scoring latents of a whole (micro-)batch (Bussmann et al. 2024).

    In eval mode a latent fires when its score exceeds one threshold, so that a token's latents never depend on its
    batch neighbours. While training the threshold is a running mean of each batch's smallest kept score; calibration
    replaces it by the `k * N`-th largest score over N tokens, so that the mean L0 is k.

    Args:
        k: how many latents a token has on average, a number or a function of the step.
        weighted: rank by decoder-norm-weighted scores.
        norm: how a latent's decoder norms over sites combine into its weight.
        ema_decay: decay of the running threshold, at most `1 - 10 / num_steps` in short runs.
        ema_start: step at which averaging begins, at most a tenth of the run; until then the latest minimum counts.
    """

    k: int | Scheduler
    weighted: bool = True
    norm: ScoreNorm = "l1_of_l2"
    ema_decay: float = 0.999
    ema_start: int = 1000
    needs_calibration = True

    def __attrs_post_init__(self) -> None:
        self._begin()
        number("BatchTopK.ema_decay", self.ema_decay)
        if not 0 <= self.ema_decay < 1:
            raise BadInput(f"BatchTopK.ema_decay={self.ema_decay} must be at least 0 and less than 1.")
        at_least("BatchTopK.ema_start", self.ema_start, 0)
        self.threshold: Tensor
        self.register_buffer("threshold", torch.tensor(-1.0, dtype=torch.float64))  # -1: not set yet
        self.decay_now = self.ema_decay
        self._largest: Tensor | None = None  # of the scores seen since calibration began
        self._n_wanted = self._n_calibrated = 0

    def at_step(self, step: int, num_steps: int) -> None:
        super().at_step(step, num_steps)
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
        most_kept = self.k_now * (self._n_wanted + len(scores_BL))
        self._n_calibrated += len(scores_BL)
        full = len(self._largest) >= most_kept
        above_all_left_out = scores_BL[scores_BL > (self._largest.min() if full else 0.0)]
        self._largest = torch.cat([self._largest.to(scores_BL), above_all_left_out])
        if len(self._largest) > most_kept:
            self._largest = self._largest.topk(most_kept, sorted=False).values

    def end_calibration(self) -> None:
        assert self._largest is not None, "begin_calibration comes first"
        place = self.k_now * self._n_calibrated
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
        plain._keep(self.k_now)
        plain.decay_now = self.decay_now
        return plain.train(self.training)


@module
class GroupMax(_Ranking):
    """The highest-scoring latent of each of `k` contiguous groups, if positive.

    Group i holds latents `floor(i L / k)` to `floor((i + 1) L / k) - 1`, so L need not be divisible by k.

    Args:
        k: how many groups, a number or a function of the step.
        weighted: rank by decoder-norm-weighted scores.
        norm: how a latent's decoder norms over sites combine into its weight.
    """

    k: int | Scheduler
    weighted: bool = True
    norm: ScoreNorm = "l1_of_l2"

    def __attrs_post_init__(self) -> None:
        self._begin()

    def select(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Pattern:
        return max_of_groups(scores(pre_BL, score_norms_L), self.k_now)

    @property
    def is_rescalable(self) -> bool:
        return self.weighted  # the order of an unweighted ranking would change

    def rescaled(self, a_L: Float[Tensor, " L"]) -> "GroupMax":
        plain = evolve(self, weighted=False)
        plain._keep(self.k_now)
        return plain
