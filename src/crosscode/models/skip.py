"""The linear skip of skip transcoders."""

from collections.abc import Sequence

import attrs
import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor, nn

from crosscode.checks import count
from crosscode.errors import BadInput
from crosscode.module import evolve, module
from crosscode.one_definition import OneDefinition, form_of
from crosscode.shapes import Dims, checked_dims, n_sites


@module
class LinearSkip(OneDefinition, nn.Module):
    """`x_BXiDi W_skip_XiDiXoDo`, no penalty, starting at zero (Gemma Scope 2; skip transcoders).

    Args:
        in_dims: input crosscoding dimensions `Xi`.
        d_in: width read (`Di`).
        out_dims: output crosscoding dimensions `Xo`.
        d_out: width written (`Do`).
        pairs: which input site (row-major number) feeds which output site; None for all pairs. A CLT skips from a
            layer's MLP input to the same layer's output only.
    """

    in_dims: Dims
    d_in: int
    out_dims: Dims
    d_out: int
    pairs: Sequence[tuple[int, int]] | None = attrs.field(
        default=None, converter=lambda pairs: None if pairs is None else tuple((int(i), int(o)) for i, o in pairs)
    )

    def __attrs_post_init__(self) -> None:
        self.in_dims = checked_dims("LinearSkip.in_dims", self.in_dims)
        self.out_dims = checked_dims("LinearSkip.out_dims", self.out_dims)
        count("LinearSkip.d_in", self.d_in)
        count("LinearSkip.d_out", self.d_out)
        self.W_skip_XiDiXoDo = nn.Parameter(torch.zeros(*self.in_dims, self.d_in, *self.out_dims, self.d_out))
        self.allowed_XiDiXoDo: Tensor | None
        allowed = None
        if self.pairs is not None:
            n_in, n_out = n_sites(self.in_dims), n_sites(self.out_dims)
            allowed_IO = torch.zeros(n_in, n_out, dtype=torch.bool)
            for i, o in self.pairs:
                if not (0 <= i < n_in and 0 <= o < n_out):
                    raise BadInput(f"LinearSkip.pairs has ({i}, {o}), but there are {n_in} inputs and {n_out} outputs.")
                allowed_IO[i, o] = True
            allowed = allowed_IO.reshape(*self.in_dims, 1, *self.out_dims, 1)
        self.register_buffer("allowed_XiDiXoDo", allowed, persistent=False)

    def weights(self) -> Float[Tensor, "..."]:
        """The weights, forbidden pairs zero."""
        return self.W_skip_XiDiXoDo if self.allowed_XiDiXoDo is None else self.W_skip_XiDiXoDo * self.allowed_XiDiXoDo

    @form_of("weights")
    def forward(self, x_BXiDi: Float[Tensor, "B *Xi Di"]) -> Float[Tensor, "B *Xo Do"]:
        x_BI = rearrange(x_BXiDi, "B ... -> B (...)")
        skip_BO = x_BI @ self.weights().reshape(x_BI.shape[-1], -1)
        return skip_BO.reshape(len(x_BI), *self.out_dims, self.d_out)

    @torch.no_grad()
    def assign_(self, W_skip_XiDiXoDo: Float[Tensor, "..."]) -> None:
        """Set the weights, forbidden pairs to zero."""
        self.W_skip_XiDiXoDo.copy_(W_skip_XiDiXoDo)
        self.W_skip_XiDiXoDo.copy_(self.weights())

    @torch.no_grad()
    def folded(self, scale_in_Xi: Float[Tensor, "*Xi"], scale_out_Xo: Float[Tensor, "*Xo"]) -> "LinearSkip":
        """The skip from raw to raw activations: `W_skip * s_in / s_out`."""
        raw = evolve(self).to(self.W_skip_XiDiXoDo)
        W_IDOD = self.weights().reshape(n_sites(self.in_dims), self.d_in, n_sites(self.out_dims), self.d_out)
        factor_IO = scale_in_Xi.reshape(-1, 1) / scale_out_Xo.reshape(1, -1)
        raw.W_skip_XiDiXoDo.copy_(
            einsum(W_IDOD, factor_IO, "I Di O Do, I O -> I Di O Do").reshape(self.W_skip_XiDiXoDo.shape)
        )
        return raw
