"""How often latents fire."""

import attrs
import torch
from torch import Tensor

from crosscode.checks import at_least, at_most, count
from crosscode.errors import BadInput
from crosscode.models import Trace


@attrs.frozen
class L0:
    """How many latents fire on a token: mean and the 5th, 50th and 95th percentiles.

    Args:
        n_shared: where given, shared latents (the first ones) and exclusive ones are counted apart as well.
        per_site: where latents lie end to end by site (compound CLTs), how many sites; each is counted as well.
    """

    n_shared: int | None = None
    per_site: int | None = None

    def __attrs_post_init__(self) -> None:
        if self.n_shared is not None:
            count("L0.n_shared", self.n_shared, least=0)
        if self.per_site is not None:
            count("L0.per_site", self.per_site)

    def start(self) -> "_L0Counts":
        return _L0Counts(self)


@attrs.define
class _L0Counts:
    asked: L0
    tokens_of_l0: Tensor = attrs.field(factory=lambda: torch.zeros(0, dtype=torch.int64))  # how many have 0, 1, 2, …
    n_tokens: int = 0
    parts: dict[str, float] = attrs.field(factory=dict)

    def _ranges(self, n_latents: int) -> dict[str, slice]:
        ranges = {}
        if self.asked.n_shared is not None:
            at_most("L0.n_shared", self.asked.n_shared, n_latents, "n_latents")
            ranges["l0/shared"] = slice(0, self.asked.n_shared)
            ranges["l0/exclusive"] = slice(self.asked.n_shared, n_latents)
        if self.asked.per_site is not None:
            if n_latents % self.asked.per_site:
                raise BadInput(f"L0.per_site={self.asked.per_site} does not divide n_latents={n_latents}.")
            size = n_latents // self.asked.per_site
            ranges |= {f"l0/site_{p}": slice(p * size, (p + 1) * size) for p in range(self.asked.per_site)}
        return ranges

    def add(self, trace: Trace) -> None:
        more = torch.bincount(trace.latents.l0_B().cpu(), minlength=len(self.tokens_of_l0))
        more[: len(self.tokens_of_l0)] += self.tokens_of_l0
        self.tokens_of_l0 = more
        self.n_tokens += len(trace)
        ranges = self._ranges(trace.latents.n_latents)
        if ranges:
            count_L = trace.latents.count_L()
            for name, latents in ranges.items():
                self.parts[name] = self.parts.get(name, 0.0) + float(count_L[latents].sum())

    def _percentile(self, p: int) -> float:
        """Between the two nearest tokens, as `torch.quantile` has it, which takes no more than 2^24 of them."""
        place = p / 100 * (self.n_tokens - 1)
        below = int(place)
        at_most = self.tokens_of_l0.cumsum(0)
        low, high = (int(torch.searchsorted(at_most, rank, right=True)) for rank in (below, below + (place > below)))
        return low + (high - low) * (place - below)

    def result(self) -> dict[str, float]:
        sum_of_l0 = (self.tokens_of_l0 * torch.arange(len(self.tokens_of_l0))).sum()
        return {
            "l0/mean": float(sum_of_l0.double() / self.n_tokens),
            **{f"l0/p{p}": self._percentile(p) for p in (5, 50, 95)},
            **{name: total / self.n_tokens for name, total in self.parts.items()},
        }


@attrs.frozen
class Dead:
    """The share of latents that have been silent for at least `after_tokens` tokens (training's own counters).

    Args:
        after_tokens: tokens of silence that make a latent dead.
    """

    after_tokens: int = 10_000_000

    def __attrs_post_init__(self) -> None:
        at_least("Dead.after_tokens", self.after_tokens, 1)

    def start(self) -> "_DeadShare":
        return _DeadShare(self.after_tokens)


@attrs.define
class _DeadShare:
    after_tokens: int
    share: float = float("nan")

    def add(self, trace: Trace) -> None:
        self.share = float((trace.tokens_since_fired_L >= self.after_tokens).double().mean())

    def result(self) -> dict[str, float]:
        return {"dead": self.share}


@attrs.frozen
class Density:
    """Each latent's firing frequency: the share that never fired, the share above 10 %, and log10 frequencies."""

    def start(self) -> "_DensityCounts":
        return _DensityCounts()


@attrs.define
class _DensityCounts:
    count_L: Tensor | None = None
    n: int = 0

    def add(self, trace: Trace) -> None:
        count_L = trace.latents.count_L().cpu()
        self.count_L = count_L if self.count_L is None else self.count_L + count_L
        self.n += len(trace)

    def result(self) -> dict[str, float | Tensor]:
        assert self.count_L is not None, "nothing was added"
        density_L = self.count_L.double() / self.n
        return {
            "density/never": float((density_L == 0).double().mean()),
            "density/above_10_percent": float((density_L > 0.1).double().mean()),
            "density/log10": density_L[density_L > 0].log10(),
        }
