"""Which latents may read from and write to which sites."""

from collections.abc import Sequence

import attrs
import torch
from jaxtyping import Float
from torch import Tensor

from crosscode.errors import BadInput
from crosscode.shapes import Dims


def _groups(groups: Sequence[tuple[int, Sequence[int]]]) -> tuple[tuple[int, tuple[int, ...]], ...]:
    return tuple((int(n), tuple(map(int, sites))) for n, sites in groups)


@attrs.frozen
class SiteMask:
    """Groups of latents, laid end to end, each confined to some sites.

    Dedicated-feature crosscoders confine groups to one model; weakly causal crosscoders let a latent that reads at
    layer i write to layers >= i.

    Args:
        groups: for each group, how many latents it has and which sites (row-major numbers) it may touch.
    """

    groups: Sequence[tuple[int, Sequence[int]]] = attrs.field(converter=_groups)

    def allowed_LX(self, n_latents: int, dims: Dims) -> Float[Tensor, "L *X"]:
        """1 where a latent may touch a site, 0 elsewhere."""
        n_sites = torch.Size(dims).numel()
        if sum(n for n, _ in self.groups) != n_latents:
            raise BadInput(f"SiteMask.groups hold {sum(n for n, _ in self.groups)} latents, not n_latents={n_latents}.")
        rows = []
        for n, sites in self.groups:
            if any(not 0 <= site < n_sites for site in sites):
                raise BadInput(
                    f"SiteMask.groups names sites {sites}, but there are only {n_sites} (0 to {n_sites - 1})."
                )
            row_X = torch.zeros(n_sites, device="cpu")
            row_X[list(sites)] = 1.0
            rows.append(row_X.expand(n, n_sites))
        return torch.cat(rows).reshape(n_latents, *dims)
