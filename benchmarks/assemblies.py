"""Each scheme twice: our assembly, as the recipes make it, and a dense reference.

The dense reference does what every other library does: autograd through dense products, `torch.topk`, `scatter`, Adam.
It starts from the very weights of ours, so both have the same FVU and L0, and differ in speed alone.
"""

from typing import Any

import torch
from schemes import LR, Contestant, Size, activations, fvu, kill_a_tenth
from torch import Tensor, nn

from crosscode import Batch, SparseCoder, Trainer, Weighted
from crosscode.activations import BatchTopK, JumpReLU, PerSite, ReLU, TopK
from crosscode.initialization import AnthropicTranspose, CLTUniform
from crosscode.losses import SummedSquaredError
from crosscode.models import SharedDecoder, acausal_crosscoder, compound_cross_layer_transcoder, sae
from crosscode.penalties import AuxK, ExpectedL0, L1OfNorms, PreActivation, TanhSparsity
from crosscode.training.trainer import Precision

FIRING = 0.02  # of JumpReLU latents; as many again lie silent in the January window
DENSE, SPARSE = 0.35, 0.035  # of ReLU latents
TANH_C, L1, TANH, PRE_ACT, L0, AUX = 4.0, 1e-3, 1e-3, 3e-6, 1e-3, 1 / 32


# --- ours


def trainer_of(scheme: str, size: Size, precision: Precision = "fp32") -> tuple[Trainer, list[Batch]]:
    """A trainer of a scheme, and its batches; the last is for measuring quality."""
    family, _, kind = scheme.partition(" ")
    jumprelu = JumpReLU(size.L, bandwidth=2.0 if "January" in kind else 0.1, ste_to_input="January" in kind)
    activation = _activation(kind, jumprelu, size, sites=size.sites if family == "clt" else 1)
    if family == "sae":
        coder = sae(size.D, size.L, activation)
    elif family == "clt":
        coder = compound_cross_layer_transcoder(size.D, size.sites, size.L, activation)
    else:
        coder = acausal_crosscoder(
            n_models=size.sites, n_hookpoints=1, d_model=size.D, n_latents=size.L, activation=activation
        )
        if family == "diffing":
            shared = SharedDecoder(size.L, size.L // 8, (size.sites, 1), size.D)
            coder = SparseCoder(coder.encoder, activation, shared)
    shape = (size.B, *coder.encoder.in_dims, size.D)
    data = [Batch.autoencode(acts.reshape(shape)) for acts in activations(size)]
    (CLTUniform() if family == "clt" else AnthropicTranspose(1.0))(coder, data)
    set_density(coder, jumprelu, data[0].inputs_BXiDi, kind)
    fit_directions(coder, data[0].inputs_BXiDi)
    penalties: dict[str, Any] = {}
    if "AuxK" in kind:
        penalties["aux_k"] = Weighted(AuxK(size.D // 2, dead_after_tokens=1), AUX)
    elif kind.startswith("ReLU"):
        penalties["l1"] = Weighted(L1OfNorms(), L1)
    elif "January" in kind:
        penalties["tanh"] = Weighted(TanhSparsity(TANH_C), TANH)
        penalties["pre_act"] = Weighted(PreActivation(jumprelu), PRE_ACT)
    elif kind.startswith("JumpReLU"):
        penalties["l0"] = Weighted(ExpectedL0(jumprelu), L0)
    optimizer = torch.optim.Adam(coder.parameters(), fused=True)
    trainer = Trainer(
        model=coder, data=data, loss=SummedSquaredError(), penalties=penalties, optimizer=optimizer, lr=LR,
        num_steps=10**6, precision=precision,
    )  # fmt: skip
    return trainer, data


def _activation(kind: str, jumprelu: JumpReLU, size: Size, sites: int) -> Any:
    if kind.startswith("ReLU"):
        return ReLU()
    if kind.startswith("JumpReLU"):
        return jumprelu
    make = BatchTopK if kind.startswith("BatchTopK") else TopK
    return make(size.k) if sites == 1 else PerSite([make(size.k) for _ in range(sites)])


@torch.no_grad()
def set_density(coder: SparseCoder, jumprelu: JumpReLU, acts: Tensor, kind: str) -> None:
    """Shift encoder biases (for the January window scale columns too) until the stated share of latents fires."""
    if not kind.startswith(("ReLU", "JumpReLU")):
        return
    z_BL = coder.encoder.linear(acts[:512])  # a few tokens, so that peak memory is that of training
    sorted_BL = z_BL.sort(dim=0, descending=True).values
    at = lambda rate: sorted_BL[round(rate * len(z_BL))]
    b_enc_L: Any = coder.encoder.b_enc_L
    if kind.startswith("ReLU"):
        b_enc_L.copy_(-at(SPARSE if "sparse" in kind else DENSE))
        return
    scale_L = torch.ones_like(z_BL[0])
    if "January" in kind:  # the lower edge of the window lies half a bandwidth below the threshold
        scale_L = jumprelu.bandwidth / 2 / (at(FIRING) - at(2 * FIRING))
        coder.encoder.assign_(coder.encoder.weights() * scale_L)
    b_enc_L.copy_(jumprelu.threshold_L - at(FIRING) * scale_L)


@torch.no_grad()
def fit_directions(coder: SparseCoder, acts: Tensor) -> None:
    """Scale the decoder as a whole to where it reconstructs best."""
    recon = coder(acts)
    coder.decoder.assign_(coder.decoder.dense() * ((acts * recon).sum() / recon.square().sum()))


def ours(scheme: str, size: Size, precision: Precision = "fp32") -> Contestant:
    """Our step through `Trainer.step`, validation, clipping, dead-latent tracking and all; and its quality."""
    trainer, data = trainer_of(scheme, size, precision)

    def step(i: int) -> object:
        if "AuxK" in scheme:
            kill_a_tenth(trainer.state.tokens_since_fired_L)
        return trainer.step([data[i % size.batches]])

    def quality() -> dict[str, float]:
        acts, model = data[-1].inputs_BXiDi, trainer.model
        with torch.no_grad():
            latents = model.train().encode(acts)
            return {"fvu": fvu(model.decode(latents), acts), "l0": float(latents.l0_B().float().mean())}

    return step, quality


# --- the dense reference


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: float, to_input: bool) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.bandwidth, ctx.to_input = bandwidth, to_input
        return z * (z > theta)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, theta = ctx.saved_tensors
        window = grads[0] * ((z - theta).abs() < ctx.bandwidth / 2) * (theta / ctx.bandwidth)
        g = grads[0] * (z > theta)
        return g + window if ctx.to_input else g, -window.sum(0), None, None


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(z, theta)
        ctx.bandwidth = bandwidth
        return (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        z, theta = ctx.saved_tensors
        return None, -(grads[0] * ((z - theta).abs() < ctx.bandwidth / 2) / ctx.bandwidth).sum(0), None


class DenseReference(nn.Module):
    """A scheme in plain dense PyTorch, from the weights of our coder."""

    def __init__(self, scheme: str, size: Size, coder: SparseCoder) -> None:
        super().__init__()
        self.family, _, self.kind = scheme.partition(" ")
        self.size = size
        copied = lambda tensor: nn.Parameter(tensor.detach().clone())
        encoder, decoder = coder.encoder, coder.decoder
        weights = [encoder.W_enc_PDiLp[p] for p in range(size.sites)] if self.family == "clt" else [
            encoder.weights().reshape(-1, size.L)
        ]  # fmt: skip
        self.W_enc = nn.ParameterList(map(copied, weights))
        self.b_enc = copied(encoder.b_enc_L)
        if self.family == "clt":
            self.W_dec = nn.ParameterList(copied(W.flatten(1)) for W in decoder.W_dec_LpPD)
        elif self.family == "diffing":
            parts = decoder.W_shared_LsPD.flatten(1), decoder.W_exclusive_LfMPD.flatten(1)
            self.W_dec = nn.ParameterList(map(copied, parts))
        else:
            self.W_dec = nn.ParameterList([copied(decoder.dense().flatten(1))])
        self.b_dec = copied(decoder.b_dec_XoDo.flatten())
        if self.kind.startswith("JumpReLU"):
            self.log_theta = copied(coder.activation.stored_threshold_L)
            self.bandwidth = coder.activation.bandwidth

    def directions(self) -> Tensor:
        """`W_dec`, (L, sites x D); shared latents write the same to every site."""
        if self.family == "diffing":
            return torch.cat([self.W_dec[0].repeat(1, self.size.sites), self.W_dec[1]])
        return self.W_dec[0]

    def norms(self) -> list[Tensor]:
        """The sum over sites of the norms of each latent's directions, for each encoder."""
        matrices = self.W_dec if self.family == "clt" else [self.directions()]
        return [W.unflatten(1, (-1, self.size.D)).norm(dim=-1).sum(-1) for W in matrices]

    def select(self, z: Tensor, norms: Tensor) -> Tensor:
        """The latents of one encoder."""
        if self.kind.startswith("ReLU"):
            return z.relu()
        if self.kind.startswith("JumpReLU"):
            return _Jump.apply(z, self.log_theta.exp(), self.bandwidth, "January" in self.kind)  # type: ignore
        f = z.relu()
        scores = f.detach() * norms.detach()
        if self.kind.startswith("TopK"):
            at = scores.topk(self.size.k, dim=-1, sorted=False).indices
            return torch.zeros_like(f).scatter(-1, at, f.gather(-1, at))
        at = scores.flatten().topk(self.size.k * len(z), sorted=False).indices
        return torch.zeros_like(f).flatten().scatter(0, at, f.flatten().gather(0, at)).view_as(f)

    def forward(self, acts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstructions, latents and the loss of activations (B, sites, D)."""
        B, D, norms = len(acts), self.size.D, self.norms()
        if self.family == "clt":
            biases = self.b_enc.split(self.size.L)
            fs, recon = [], self.b_dec.view(-1, D).expand(B, -1, -1)
            for p, W_enc in enumerate(self.W_enc):
                fs.append(self.select(acts[:, p] @ W_enc + biases[p], norms[p]))
                written = (fs[-1] @ self.W_dec[p]).view(B, -1, D)
                recon = recon + nn.functional.pad(written, (0, 0, p, 0))
            return recon, torch.cat(fs, -1), (acts - recon).square().sum() / B
        z = acts.flatten(1) @ self.W_enc[0] + self.b_enc
        f = self.select(z, norms[0])
        recon = (f @ self.directions() + self.b_dec).view_as(acts)
        error = acts - recon
        return recon, f, error.square().sum() / B + self.penalty(z, f, norms[0], error.detach().flatten(1))

    def penalty(self, z: Tensor, f: Tensor, norms: Tensor, error: Tensor) -> Tensor | float:
        """The weighted penalty of the scheme."""
        if self.kind.startswith("ReLU"):
            return L1 * (f * norms).sum() / len(f)
        if "January" in self.kind:
            silent = ((self.log_theta.exp() - z).relu() * norms).sum()
            return (TANH * torch.tanh(TANH_C * f * norms).sum() + PRE_ACT * silent) / len(f)
        if self.kind.startswith("JumpReLU"):
            return L0 * _Heaviside.apply(z, self.log_theta.exp(), self.bandwidth).sum() / len(f)  # type: ignore
        if "AuxK" not in self.kind:
            return 0.0
        living = torch.ones(self.size.L, dtype=torch.bool)
        living[::10] = False
        scores = (z.relu() * norms).detach().masked_fill(living, -torch.inf)
        at = scores.topk(self.size.D // 2, dim=-1, sorted=False).indices
        aux = torch.zeros_like(z).scatter(-1, at, z.relu().gather(-1, at))
        missed = (aux @ self.directions() - error).square().sum()
        return AUX * missed / (error - error.mean(0)).square().sum()


def dense_reference(scheme: str, size: Size, fused: bool = True) -> Contestant:
    """The step of the dense reference, clipped as ours is, with fused Adam or the loop that is torch's default."""
    trainer, data = trainer_of(scheme, size)
    model = DenseReference(scheme, size, trainer.model)
    batches = [batch.inputs_BXiDi.reshape(len(batch), size.sites, size.D) for batch in data]
    del trainer
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=fused, foreach=None if fused else False)
    silent_L = torch.zeros(len(model.b_enc), dtype=torch.long)

    def step(i: int) -> object:
        _, f, loss = model(batches[i % size.batches])
        silent_L.add_(len(f))
        silent_L[(f > 0).any(0)] = 0
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    def quality() -> dict[str, float]:
        with torch.no_grad():
            recon, f, _ = model(batches[-1])
        return {"fvu": fvu(recon, batches[-1]), "l0": float((f > 0).sum(-1).float().mean())}

    return step, quality
