"""What every coder should compute, written down a second time: dense, plain, float64, differentiated by autograd.

Nothing here calls the package's arithmetic. Shapes are flat: `I` is `Xi x Di`, `X` the sites written, `L` the latents.
"""

import itertools
from collections.abc import Callable

import attrs
import torch
from strategies import MASK, N_SHARED, N_SITES, L
from torch import Tensor

from crosscode.batch import Batch
from crosscode.models import SparseCoder

PRICE, BANDWIDTH = 0.25, {"jumprelu": 1.5, "jumprelu_gdm": 1.0, "per_site_jumprelu": 1.5, "per_site_mixed": 2.0}


@attrs.define
class Reference:
    """A forward pass; `leaves` are the parameters under the coder's own names, and the raw inputs."""

    leaves: dict[str, Tensor]
    y_BXD: Tensor
    x_BI: Tensor
    z_BL: Tensor
    f_BL: Tensor
    threshold_L: Tensor | None
    W_dec_LXD: Tensor
    skip_BXD: Tensor
    b_dec_XD: Tensor | None
    activation: str

    @property
    def norms_LX(self) -> Tensor:
        return safe_norm(self.W_dec_LXD)

    def decode(self, f_BL: Tensor) -> Tensor:
        return torch.einsum("bl,lxd->bxd", f_BL, self.W_dec_LXD)

    def recon(self, f_BL: Tensor | None = None) -> Tensor:
        yhat_BXD = self.decode(self.f_BL if f_BL is None else f_BL) + self.skip_BXD
        return yhat_BXD if self.b_dec_XD is None else yhat_BXD + self.b_dec_XD

    @property
    def error_BXD(self) -> Tensor:
        return self.y_BXD - self.recon()

    def step(self) -> Tensor:
        """`1[z > theta]` as a surrogate whose autograd is the rectangle estimator."""
        assert self.threshold_L is not None
        window_BL, ste = window(self.z_BL, self.threshold_L, self.activation)
        slope_BL = window_BL / BANDWIDTH[self.activation]
        hard_BL = (self.z_BL > self.threshold_L).double()
        return hard_BL + slope_BL * (ste * moved(self.z_BL) - moved(self.threshold_L))


def safe_norm(W: Tensor) -> Tensor:
    """Norms over the last axis, with gradient 0 at 0."""
    square = W.square().sum(-1)
    return torch.where(square > 0, square.where(square > 0, torch.ones_like(square)).sqrt(), 0.0)


def moved(t: Tensor) -> Tensor:
    """Zero, with the gradient of `t`."""
    return t - t.detach()


def combine(norms_LX: Tensor, norm: str) -> Tensor:
    if norm == "l1_of_l2":
        return norms_LX.sum(-1)
    if norm == "l2":
        return safe_norm(norms_LX)
    return torch.ones_like(norms_LX[:, 0])


def window(z_BL: Tensor, threshold_L: Tensor, activation: str) -> tuple[Tensor, float]:
    eps = BANDWIDTH[activation]
    return ((z_BL - threshold_L).abs() < eps / 2).double().detach(), float(activation != "jumprelu_gdm")


def jump(z_BL: Tensor, threshold_L: Tensor, activation: str) -> Tensor:
    window_BL, ste = window(z_BL, threshold_L, activation)
    slope_BL = window_BL * (threshold_L / BANDWIDTH[activation]).detach()
    return z_BL * (z_BL > threshold_L) + slope_BL * (ste * moved(z_BL) - moved(threshold_L))


def top(z_BL: Tensor, a_L: Tensor, k: int) -> Tensor:
    """The k best of each row: every entry counts how many of its row beat it."""
    v_BL = (z_BL.relu() * a_L).detach()
    beaten_by_BL = (v_BL[:, None, :] > v_BL[:, :, None]).sum(-1)
    return z_BL * ((beaten_by_BL < k) & (v_BL > 0))


def batch_top(z_BL: Tensor, a_L: Tensor, k: int) -> Tensor:
    """The k B best of the batch, as one row."""
    flat = top(z_BL.reshape(1, -1), a_L.expand(z_BL.shape).reshape(1, -1), k * len(z_BL))
    return flat.reshape(z_BL.shape)


def group_max(z_BL: Tensor, a_L: Tensor, k: int) -> Tensor:
    edges = [i * L // k for i in range(k + 1)]
    return by_parts(z_BL, a_L, [(slice(s, e), top, 1) for s, e in itertools.pairwise(edges)])


def by_parts(z_BL: Tensor, a_L: Tensor, parts: list[tuple[slice, Callable[..., Tensor], int]]) -> Tensor:
    return torch.cat([keep(z_BL[:, at], a_L[at], k) for at, keep, k in parts], dim=-1)


PRICED_L = torch.where(torch.arange(L) < N_SHARED, 1 / PRICE, 1.0).double()
SHARED, EXCLUSIVE = slice(0, N_SHARED), slice(N_SHARED, None)
SITES = [slice(p * L // N_SITES, (p + 1) * L // N_SITES) for p in range(N_SITES)]

SELECT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "topk": lambda z, n: top(z, combine(n, "l1_of_l2"), 3),
    "topk_l2": lambda z, n: top(z, combine(n, "l2"), 3),
    "topk_unweighted": lambda z, n: top(z, combine(n, "none"), 3),
    "batch_topk": lambda z, n: batch_top(z, combine(n, "l1_of_l2"), 3),
    "groupmax": lambda z, n: group_max(z, combine(n, "l1_of_l2"), 5),
    "budgets_topk": lambda z, n: by_parts(z, combine(n, "l1_of_l2"), [(SHARED, top, 2), (EXCLUSIVE, top, 1)]),
    "budgets_batch_topk": lambda z, n: by_parts(
        z, combine(n, "l1_of_l2"), [(SHARED, batch_top, 2), (EXCLUSIVE, batch_top, 1)]
    ),
    "priced_topk": lambda z, n: top(z, combine(n, "l1_of_l2") * PRICED_L, 3),
    "priced_batch_topk": lambda z, n: batch_top(z, combine(n, "l1_of_l2") * PRICED_L, 3),
    "per_site_batch_topk": lambda z, n: by_parts(
        z, combine(n, "l1_of_l2"), [(at, batch_top, k) for at, k in zip(SITES, (1, 2, 1))]
    ),
}


def dense_encoder(p: dict[str, Tensor], shape: str) -> Tensor:
    """`W_enc` as `I x L`."""
    if shape == "compound":
        return torch.block_diag(*[p[f"encoder.W_enc_XgDiLg.{g}"][0] for g in range(N_SITES)])
    if shape == "masked":
        columns = []
        for g, (n, sites) in enumerate(MASK.groups):
            W_XgDiLg = p[f"encoder.W_enc_XgDiLg.{g}"]
            own = dict(zip(sites, W_XgDiLg))
            columns.append(torch.cat([own.get(x, W_XgDiLg.new_zeros(3, n)) for x in range(4)]))
        return torch.cat(columns, dim=1)
    W_XiDiL = p["encoder.W_enc_XiDiL"]
    return W_XiDiL.reshape(-1, L)


def dense_decoder(p: dict[str, Tensor], shape: str) -> Tensor:
    """`W_dec` as `L x X x D`."""
    if shape == "compound":
        sources = [p[f"decoder.W_dec_LgXgDo.{i}"] for i in range(N_SITES)]
        return torch.cat([torch.cat([W.new_zeros(len(W), i, W.shape[-1]), W], dim=1) for i, W in enumerate(sources)])
    if shape == "masked":
        rows = []
        for g, (n, sites) in enumerate(MASK.groups):
            W_LgXgDo = p[f"decoder.W_dec_LgXgDo.{g}"]
            own = dict(zip(sites, W_LgXgDo.unbind(1)))
            rows.append(torch.stack([own.get(x, W_LgXgDo.new_zeros(n, 3)) for x in range(4)], dim=1))
        return torch.cat(rows)
    if shape == "shared":
        shared_LsPD = p["decoder.W_shared_LsPD"]
        both_LsMPD = torch.stack([shared_LsPD, shared_LsPD], dim=1)
        return torch.cat([both_LsMPD, p["decoder.W_exclusive_LfMPD"]]).flatten(1, -2)
    W_LXoDo = p["decoder.W_dec_LXoDo"]
    return W_LXoDo.reshape(L, -1, W_LXoDo.shape[-1])


def skip_mask(shape: str) -> Tensor:
    """Which input site (row) feeds which output site (column)."""
    return torch.eye(N_SITES) if shape == "compound" else torch.tensor([[1.0, 0.0, 1.0]])


def reference(coder: SparseCoder, batch: Batch, shape: str, activation: str) -> Reference:
    """A training-mode forward pass of the coder on raw activations."""
    p = {name: value.detach().clone().requires_grad_() for name, value in coder.named_parameters()}
    raw_BXiDi = batch.inputs_BXiDi.detach().clone().requires_grad_()
    raw_BXoDo = raw_BXiDi if batch.targets_BXoDo is batch.inputs_BXiDi else batch.targets_BXoDo
    x_BXiDi = (raw_BXiDi - coder.shift_in_XiDi) * coder.scale_in_Xi[..., None]
    y_BXoDo = (raw_BXoDo - coder.shift_out_XoDo) * coder.scale_out_Xo[..., None]
    if shape == "ragged":  # the second site's last two coordinates are padding
        real_XD = torch.ones_like(x_BXiDi[0])
        real_XD[1, :, 3:] = 0
        x_BXiDi, y_BXoDo = x_BXiDi * real_XD, y_BXoDo * real_XD
    n_tokens, d_in, d_out = len(x_BXiDi), x_BXiDi.shape[-1], y_BXoDo.shape[-1]
    x_BI, y_BXD = x_BXiDi.reshape(n_tokens, -1), y_BXoDo.reshape(n_tokens, -1, d_out)
    z_BL = x_BI @ dense_encoder(p, shape)
    if "encoder.b_enc_L" in p:
        z_BL = z_BL + p["encoder.b_enc_L"]
    W_dec_LXD = dense_decoder(p, shape)

    threshold_L = None
    stored = [value for name, value in p.items() if name.endswith("stored_threshold_L")]
    if stored:
        threshold_L = torch.cat(stored)
        threshold_L = threshold_L.clamp_min(0) if activation == "jumprelu_gdm" else threshold_L.exp()
    if activation == "relu":
        f_BL = z_BL.clamp_min(0)
    elif activation == "per_site_mixed":
        first, second, third = (z_BL[:, at] for at in SITES)
        kept = top(second, torch.ones(L // N_SITES), 1)
        f_BL = torch.cat([first.clamp_min(0), kept, jump(third, threshold_L, activation)], dim=-1)
    elif threshold_L is not None:
        f_BL = jump(z_BL, threshold_L, activation)
    else:
        f_BL = SELECT[activation](z_BL, safe_norm(W_dec_LXD).detach())

    skip_BXD = torch.zeros_like(y_BXD)
    if coder.skip is not None:
        W_IDXD = p["skip.W_skip_XiDiXoDo"].reshape(-1, d_in, y_BXD.shape[1], d_out)
        x_BID = x_BI.reshape(n_tokens, -1, d_in)
        skip_BXD = torch.einsum("bid,idxe,ix->bxe", x_BID, W_IDXD, skip_mask(shape).double())
    b_dec_XD = p["decoder.b_dec_XoDo"].reshape(-1, d_out) if "decoder.b_dec_XoDo" in p else None
    leaves = {**p, "inputs": raw_BXiDi}
    return Reference(leaves, y_BXD, x_BI, z_BL, f_BL, threshold_L, W_dec_LXD, skip_BXD, b_dec_XD, activation)
