"""Activations made of activations: each part serves its own contiguous range of latents."""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosscode.activations.base import Activation, Codes, ScoreNorm, Selection
from crosscode.checks import at_least, at_most, count, instance, positive
from crosscode.errors import BadInput
from crosscode.kernels.pattern import Pattern
from crosscode.latents import Latents
from crosscode.module import module

EntryFn = Callable[[Tensor, Pattern], Tensor]


def ranges(sizes: Sequence[int]) -> list[slice]:
    """Contiguous ranges of the given sizes, laid end to end."""
    return [slice(start, stop) for start, stop in pairwise(accumulate(sizes, initial=0))]


def _of(score_norms_L: Tensor | None, latents: slice) -> Tensor | None:
    return None if score_norms_L is None else score_norms_L[latents]


class _Partition(Activation):
    """Activations side by side. A subclass says which `parts` there are and how many latents each has."""

    def parts(self) -> Sequence[Activation]:
        raise NotImplementedError

    def sizes(self, n_latents: int) -> list[int]:
        raise NotImplementedError

    @property
    def codes(self) -> Codes:
        forms: set[Codes] = {part.codes for part in self.parts()}
        return forms.pop() if len(forms) == 1 else "dense"

    @property
    def needs_calibration(self) -> bool:  # type: ignore[override]
        return any(part.needs_calibration for part in self.parts())

    @property
    def is_rescalable(self) -> bool:
        return all(part.is_rescalable for part in self.parts())

    @property
    def score_norm(self) -> ScoreNorm | None:
        norms: set[ScoreNorm | None] = {part.score_norm for part in self.parts()}
        if len(norms) > 1:
            raise BadInput(f"the parts of {type(self).__name__} must rank alike, got {sorted(map(str, norms))}.")
        return norms.pop()

    def check(self, n_latents: int) -> None:
        _ = self.score_norm  # refuses parts that rank differently
        for part, size in zip(self.parts(), self.sizes(n_latents)):
            part.check(size)

    def forward(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Latents:
        if self.codes == "sparse":
            pattern = self.select(pre_BL, score_norms_L)
            return self.latents_of(pattern.of(pre_BL), pattern)
        codes = [
            part(pre_BL[:, at], _of(score_norms_L, at))
            for part, at in zip(self.parts(), ranges(self.sizes(pre_BL.shape[-1])))
        ]
        return Latents.from_dense(torch.cat([latents.dense() for latents in codes], dim=-1), pre_BL)

    def select(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Pattern:
        places = zip(self.parts(), ranges(self.sizes(pre_BL.shape[-1])))
        return Pattern.side_by_side([part.select(pre_BL[:, at], _of(score_norms_L, at)) for part, at in places])

    def of_entries(self, pre_N: Float[Tensor, " N"], pattern: Pattern) -> Float[Tensor, " N"]:
        if all(type(part).of_entries is Selection.of_entries for part in self.parts()):
            return pre_N
        return self._part_by_part(pre_N, pattern, [part.of_entries for part in self.parts()])

    def _part_by_part(
        self, pre_N: Float[Tensor, " N"], pattern: Pattern, functions: Sequence[EntryFn]
    ) -> Float[Tensor, " N"]:
        """Each part's function of its own entries."""
        values_N = torch.zeros_like(pre_N)
        for function, at in zip(functions, ranges(self.sizes(pattern.n_columns))):
            own_n, own = pattern.columns(at)
            values_N = values_N.index_copy(0, own_n, function(pre_N.index_select(0, own_n), own))
        return values_N

    def at_step(self, step: int, num_steps: int) -> None:
        for part in self.parts():
            part.at_step(step, num_steps)

    def begin_calibration(self, n_tokens: int) -> None:
        for part in self.parts():
            part.begin_calibration(n_tokens)

    def end_calibration(self) -> None:
        for part in self.parts():
            part.end_calibration()


@module
class PerSite(_Partition):
    """One activation for each site's latents, which lie end to end: a compound CLT has one per layer.

    Args:
        activations: one a site, each with its own thresholds; never the same object twice.
    """

    activations: Sequence[Activation]

    def __attrs_post_init__(self) -> None:
        instance("PerSite.activations", self.activations, Sequence | nn.ModuleList, "a list of activations, one a site")
        at_least("PerSite.activations: their number", len(self.activations), 1)
        for i, part in enumerate(self.activations):
            instance(f"PerSite.activations[{i}]", part, Activation, "an Activation, such as JumpReLU(…)")
        if len({id(part) for part in self.activations}) < len(self.activations):
            raise BadInput("PerSite.activations holds one activation twice: sites would share its thresholds.")
        self.activations = nn.ModuleList(self.activations)  # type: ignore[assignment]

    def parts(self) -> Sequence[Activation]:
        return list(self.activations)

    def sizes(self, n_latents: int) -> list[int]:
        return [n_latents // len(self.activations)] * len(self.activations)

    def check(self, n_latents: int) -> None:
        if n_latents % len(self.activations):
            raise BadInput(f"n_latents={n_latents} must be a multiple of the {len(self.activations)} sites.")
        super().check(n_latents)

    @property
    def threshold_L(self) -> Float[Tensor, " L"]:
        """The thresholds of all sites' latents, where every site's activation has them (JumpReLU)."""
        return torch.cat([part.threshold_L for part in self._thresholded()])

    def step(self, pre: Float[Tensor, "*entries"], pattern: Pattern | None = None) -> Float[Tensor, "*entries"]:
        """`1[z > theta]` of all sites' latents, as a matrix or as entries: its sum is a differentiable L0."""
        if pattern is None:
            sites = zip(self._thresholded(), ranges(self.sizes(pre.shape[-1])))
            return torch.cat([part.step(pre[..., at]) for part, at in sites], dim=-1)
        return self._part_by_part(pre, pattern, [part.step for part in self._thresholded()])

    def _thresholded(self) -> Sequence[Any]:
        without = [type(part).__name__ for part in self.activations if not hasattr(part, "threshold_L")]
        if without:
            raise BadInput(f"PerSite has no thresholds at every site: {', '.join(without)} has none (JumpReLU has).")
        return self.parts()

    def rescaled(self, a_L: Float[Tensor, " L"]) -> "PerSite":
        at_sites = ranges(self.sizes(len(a_L)))
        return PerSite([part.rescaled(a_L[at]) for part, at in zip(self.activations, at_sites)])


@module
class SeparateBudgets(_Partition):
    """Shared and exclusive latents each compete among themselves: TopK-style model diffing with two budgets.

    The TopK-style counterpart of the lower price that shared latents pay in the February 2025 update, which has no
    penalty to lower here.

    Args:
        shared: activation of the first `n_shared` latents.
        exclusive: activation of the rest.
        n_shared: how many latents are shared (`Ls`).
    """

    shared: Activation
    exclusive: Activation
    n_shared: int

    def __attrs_post_init__(self) -> None:
        instance("SeparateBudgets.shared", self.shared, Activation, "an Activation, such as TopK(…)")
        instance("SeparateBudgets.exclusive", self.exclusive, Activation, "an Activation, such as TopK(…)")
        count("SeparateBudgets.n_shared", self.n_shared)
        if self.shared is self.exclusive:
            raise BadInput("SeparateBudgets.shared and exclusive are one activation: they would share its threshold.")

    def parts(self) -> Sequence[Activation]:
        return [self.shared, self.exclusive]

    def sizes(self, n_latents: int) -> list[int]:
        return [self.n_shared, n_latents - self.n_shared]

    def check(self, n_latents: int) -> None:
        at_most("SeparateBudgets.n_shared", self.n_shared, n_latents - 1, "n_latents - 1")
        super().check(n_latents)

    def rescaled(self, a_L: Float[Tensor, " L"]) -> "SeparateBudgets":
        shared, exclusive = self.shared.rescaled(a_L[: self.n_shared]), self.exclusive.rescaled(a_L[self.n_shared :])
        return SeparateBudgets(shared, exclusive, self.n_shared)


@module
class Priced(Selection):
    """Shared latents compete at a reduced price: a joint selection in which their scores are divided by `price`.

    A shared latent is kept iff its score exceeds `price` times the common threshold, which is exactly what the
    reduced penalty `lambda_s = price * lambda_f` of the February 2025 update does to a penalised coder.

    Args:
        activation: a TopK-style activation over all latents.
        n_shared: how many latents, the first ones, are shared.
        price: `lambda_s / lambda_f`, 0.1 to 0.2 in the February update.
    """

    activation: Activation
    n_shared: int
    price: float

    def __attrs_post_init__(self) -> None:
        instance("Priced.activation", self.activation, Activation, "an Activation, such as TopK(…)")
        positive("Priced.price", self.price)
        count("Priced.n_shared", self.n_shared, least=0)
        if self.activation.codes != "sparse":
            who = type(self.activation).__name__
            raise BadInput(f"Priced.activation is a {who}, which ranks no latents: a price needs a TopK-style one.")

    @property
    def needs_calibration(self) -> bool:  # type: ignore[override]
        return self.activation.needs_calibration

    @property
    def is_rescalable(self) -> bool:
        return self.activation.is_rescalable

    @property
    def score_norm(self) -> ScoreNorm | None:
        return self.activation.score_norm

    def check(self, n_latents: int) -> None:
        at_most("Priced.n_shared", self.n_shared, n_latents, "n_latents")
        self.activation.check(n_latents)

    def select(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Pattern:
        weights_L = pre_BL.new_ones(pre_BL.shape[-1]) if score_norms_L is None else score_norms_L.detach().clone()
        weights_L[: self.n_shared] /= self.price
        return self.activation.select(pre_BL, weights_L)

    def of_entries(self, pre_N: Float[Tensor, " N"], pattern: Pattern) -> Float[Tensor, " N"]:
        return self.activation.of_entries(pre_N, pattern)

    def at_step(self, step: int, num_steps: int) -> None:
        self.activation.at_step(step, num_steps)

    def begin_calibration(self, n_tokens: int) -> None:
        self.activation.begin_calibration(n_tokens)

    def end_calibration(self) -> None:
        self.activation.end_calibration()

    def rescaled(self, a_L: Float[Tensor, " L"]) -> "Priced":
        return Priced(self.activation.rescaled(a_L), self.n_shared, self.price)
