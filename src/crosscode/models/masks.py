"""Which latents may read from and write to which sites."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import attrs
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from crosscode.checks import count
from crosscode.errors import BadInput
from crosscode.shapes import Dims, n_sites


def _groups(groups: Sequence[tuple[int, Sequence[int]]]) -> tuple[tuple[int, tuple[int, ...]], ...]:
    try:
        made = tuple((n, tuple(sorted(set(map(int, sites))))) for n, sites in groups)
    except (TypeError, ValueError):
        made = ()
    if not made:
        raise BadInput(
            f"SiteMask.groups={groups!r} must be a list of groups, each how many latents and which sites, such as "
            "[(64, (0,)), (64, (0, 1))]."
        )
    return made


@attrs.frozen
class SiteMask:
    """Groups of latents, laid end to end, each confined to some sites.

    A `MaskedEncoder` confines what latents read, a `MaskedDecoder` what they write. Dedicated-feature crosscoders
    confine groups to one model; in causal crosscoders and compound CLTs a latent that reads layer i writes from it on.

    Args:
        groups: for each group, how many latents it has and which sites (row-major numbers) it may touch.
    """

    groups: Sequence[tuple[int, Sequence[int]]] = attrs.field(converter=_groups)

    def __attrs_post_init__(self) -> None:
        for g, (n, sites) in enumerate(self.groups):
            count(f"SiteMask.groups[{g}]: its latents", n)
            if not sites:
                raise BadInput(f"SiteMask.groups[{g}] of {n} latents touches no site: name at least one.")

    @property
    def n_latents(self) -> int:
        """How many latents all groups have (`L`)."""
        return sum(n for n, _ in self.groups)

    def latents(self) -> list[slice]:
        """Each group's range of latents."""
        return [slice(start, stop) for start, stop in pairwise(accumulate((n for n, _ in self.groups), initial=0))]

    def check(self, dims: Dims) -> None:
        """Raise `BadInput` for sites that crosscoding dimensions do not have."""
        for _, sites in self.groups:
            if not 0 <= sites[0] <= sites[-1] < n_sites(dims):
                most = n_sites(dims)
                raise BadInput(f"SiteMask.groups names sites {sites}, but there are only {most} (0 to {most - 1}).")

    def allowed_LX(self, dims: Dims) -> Bool[Tensor, "L *X"]:
        """Where a latent may touch a site."""
        self.check(dims)
        allowed_LX = torch.zeros(self.n_latents, n_sites(dims), dtype=torch.bool, device="cpu")
        for latents, (_, sites) in zip(self.latents(), self.groups):
            allowed_LX[latents, list(sites)] = True
        return allowed_LX.reshape(self.n_latents, *dims)


def _runs(sites: Sequence[int]) -> list[tuple[int, int]]:
    """Ascending sites as runs of neighbours: where each begins, and how many it has."""
    starts = [i for i, site in enumerate(sites) if i == 0 or site != sites[i - 1] + 1]
    return [(sites[i], j - i) for i, j in pairwise([*starts, len(sites)])]


def at_sites(of_all: Float[Tensor, "n X ..."], sites: Sequence[int]) -> Float[Tensor, "n Xg ..."]:
    """What belongs to some sites (a view where they are neighbours)."""
    runs = [of_all.narrow(1, start, n) for start, n in _runs(sites)]
    return runs[0] if len(runs) == 1 else torch.cat(runs, dim=1)


def among_sites(of_some: Float[Tensor, "n Xg ..."], sites: Sequence[int], n_all: int) -> Float[Tensor, "n X ..."]:
    """What belongs to some sites in its place among all, where there is 0."""
    n, _, *rest = of_some.shape
    pieces, stop, taken = [], 0, 0
    for start, size in _runs(sites):
        pieces += [of_some.new_zeros(n, start - stop, *rest), of_some.narrow(1, taken, size)]
        stop, taken = start + size, taken + size
    pieces.append(of_some.new_zeros(n, n_all - stop, *rest))
    present = [piece for piece in pieces if piece.shape[1]]
    return present[0] if len(present) == 1 else torch.cat(present, dim=1)
