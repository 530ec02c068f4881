"""How often latents fire."""

from collections.abc import Mapping

import attrs
import torch
from jaxtyping import Bool
from torch import Tensor

from crosscode.checks import at_least, instance
from crosscode.errors import BadInput
from crosscode.models import Trace


@attrs.frozen(eq=False)
class L0:
    """How many latents fire on a token: mean and the 5th, 50th and 95th percentiles.

    Args:
        groups: latents that are counted apart as well: a mask for each name, as in `{"shared": shared_L}`.
    """

    groups: Mapping[str, Bool[Tensor, " L"]] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        for name, mask_L in self.groups.items():
            instance(f"L0.groups[{name!r}]", mask_L, Tensor, "a mask of the latents")

    def start(self) -> "_L0Counts":
        return _L0Counts(self.groups)


@attrs.define(eq=False)
class _L0Counts:
    groups: Mapping[str, Bool[Tensor, " L"]]
    tokens_of_l0: Tensor = attrs.field(factory=lambda: torch.zeros(0, dtype=torch.int64))  # how many have 0, 1, 2, …
    n_tokens: int = 0
    fired_in_groups: dict[str, int] = attrs.field(factory=dict)

    def add(self, trace: Trace) -> None:
        more = torch.bincount(trace.latents.l0_B().cpu(), minlength=len(self.tokens_of_l0))
        more[: len(self.tokens_of_l0)] += self.tokens_of_l0
        self.tokens_of_l0 = more
        self.n_tokens += len(trace)
        count_L = trace.latents.count_L() if self.groups else None
        for name, mask_L in self.groups.items():
            assert count_L is not None
            if mask_L.shape != count_L.shape or mask_L.dtype != torch.bool:
                given = f"{mask_L.dtype} of shape {tuple(mask_L.shape)}".removeprefix("torch.")
                raise BadInput(
                    f"L0.groups[{name!r}] is {given}: it must be a mask of n_latents={len(count_L)} latents."
                )
            fired = int(count_L[mask_L.to(count_L.device)].sum())
            self.fired_in_groups[name] = self.fired_in_groups.get(name, 0) + fired

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
            **{f"l0/{name}": fired / self.n_tokens for name, fired in self.fired_in_groups.items()},
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
