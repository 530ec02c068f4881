"""Who is tried: this library's recipes, and what was trained by another library.

Recipes are called as a user calls them, on activations that are already in memory.
"""

import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from einops import rearrange
from jaxtyping import Bool, Float
from sweep import factory_of
from torch import Tensor

from crosscode import Batch, SparseCoder
from crosscode.activations import BatchTopK, TopK
from crosscode.evaluation import Compared, latent_scaling
from crosscode.initialization import NormalizeActivations
from crosscode.metrics import FVU, L0, Density, measure
from crosscode.models import DenseDecoder, DenseEncoder, Trace
from crosscode.run import RunOptions
from crosscode.training import Trainer, calibrate

HERE = Path(__file__).parent
FLAT = "sae"


@attrs.frozen(eq=False)
class Activations:
    """Raw activations in memory, in a fixed order, again and again: what recipes take for their data.

    Args:
        inputs_NXiDi: what is read; the rows may be a view of something larger.
        batch_size: tokens of a batch.
        targets_NXoDo: what is written; the inputs themselves if not given.
    """

    inputs_NXiDi: Float[Tensor, "N *Xi Di"]
    batch_size: int
    targets_NXoDo: Float[Tensor, "N *Xo Do"] | None = None
    widths_Xi: None = None
    widths_Xo: None = None

    @property
    def in_dims(self) -> tuple[int, ...]:
        return tuple(self.inputs_NXiDi.shape[1:-1])

    @property
    def d_in(self) -> int:
        return self.inputs_NXiDi.shape[-1]

    @property
    def out_dims(self) -> tuple[int, ...]:
        return self.in_dims if self.targets_NXoDo is None else tuple(self.targets_NXoDo.shape[1:-1])

    @property
    def d_out(self) -> int:
        return self.d_in if self.targets_NXoDo is None else self.targets_NXoDo.shape[-1]

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self.inputs_NXiDi) - self.batch_size + 1, self.batch_size):
            rows = slice(first, first + self.batch_size)
            inputs_BXiDi = self.inputs_NXiDi[rows].contiguous()
            if self.targets_NXoDo is None:
                yield Batch.autoencode(inputs_BXiDi)
            else:
                yield Batch(inputs_BXiDi, self.targets_NXoDo[rows].contiguous())

    def flat(self) -> "Activations":
        """All sites laid end to end, as one of a plain SAE."""
        return Activations(rearrange(self.inputs_NXiDi, "N ... D -> N (... D)"), self.batch_size)


@attrs.frozen(kw_only=True, slots=False)
class InMemory(RunOptions):
    """A recipe's options, with data that is already there."""

    data: Any = None
    held_out: Any = None

    def dataloader(self, split: Literal["train", "held_out"] = "train", one_site: bool = True) -> Any:
        return self.data if split == "train" else self.held_out


@attrs.frozen(eq=False)
class Trained:
    """A coder and the CPU seconds that its training took."""

    coder: SparseCoder
    seconds: float


def train(
    recipe: str, arguments: Mapping[str, Any], data: Activations, held_out: Activations, seed: int, num_steps: int
) -> Trained:
    """One of our recipes, at its defaults but for `arguments`; thresholds are calibrated on held-out tokens.

    A recipe of one site sees all sites laid end to end, and comes back as a crosscoder.
    """
    sites = data.in_dims
    if recipe.startswith(FLAT):
        data, held_out = data.flat(), held_out.flat()
    run = InMemory(data=data, held_out=held_out, batch_size=data.batch_size, seed=seed)
    trainer: Trainer = factory_of(recipe)(run, num_steps=num_steps, **arguments)
    trainer.held_out = held_out
    start = time.process_time()
    coder = trainer.train()
    seconds = time.process_time() - start
    return Trained(unflattened(coder, sites) if recipe.startswith(FLAT) else coder, seconds)


@torch.no_grad()
def unflattened(flat: SparseCoder, sites: tuple[int, ...]) -> SparseCoder:
    """A coder of sites laid end to end as a crosscoder: the same function; one scale holds for all sites."""
    n_sites, L = torch.Size(sites).numel(), flat.n_latents
    d = flat.encoder.d_in // n_sites
    coder = SparseCoder(DenseEncoder(sites, d, L), flat.activation, DenseDecoder(L, sites, d))
    coder.encoder.assign_(flat.encoder.weights().reshape(*sites, d, L))
    coder.encoder.b_enc_L.copy_(flat.encoder.b_enc_L)
    coder.decoder.assign_(flat.decoder.dense().reshape(L, *sites, d))
    coder.decoder.b_dec_XoDo.copy_(flat.decoder.b_dec_XoDo.reshape(*sites, d))
    # sqrt(n_sites d) / norm of the whole: each site's own scale would make its norm sqrt(d)
    coder.scale_in_Xi.fill_(float(flat.scale_in_Xi))
    coder.scale_out_Xo.fill_(float(flat.scale_out_Xo))
    return coder.eval()


@torch.no_grad()
def train_peer(
    python: Path, peer: str, data: Activations, held_out: Activations, seed: int, num_steps: int, **request: Any
) -> Trained:
    """Another library's coder, trained in its own process on our scaled activations, as a crosscoder of ours.

    The request holds `n_latents`, `k` and `lr`. BatchTopK's threshold is calibrated as ours are.
    """
    L, k, sites = request["n_latents"], request["k"], data.in_dims
    ranked = TopK(k, norm="l2") if peer.endswith("_topk") and "batch" not in peer else BatchTopK(k, norm="l2")
    coder = SparseCoder(DenseEncoder(sites, data.d_in, L), ranked, DenseDecoder(L, sites, data.d_out))
    NormalizeActivations(20_000)(coder, data)
    x_NO = rearrange(coder.scale_inputs(data.inputs_NXiDi), "N ... D -> N (... D)").contiguous()
    request |= {"peer": peer, "x_NO": x_NO, "seed": seed, "steps": num_steps, "batch_size": data.batch_size}
    request["dead_after_tokens"] = InMemory(batch_size=data.batch_size).dead_after_tokens(num_steps)
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = Path(folder) / "request.pt", Path(folder) / "answer.pt"
        torch.save(request, asked)
        done = subprocess.run([python, HERE / "peers.py", asked, answer], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{peer}: {(done.stderr.strip() or 'no word').splitlines()[-1]}")
        found = torch.load(answer)
    coder.encoder.assign_(found["W_enc_OL"].reshape(*sites, data.d_in, L))
    coder.encoder.b_enc_L.copy_(found["b_enc_L"])
    coder.decoder.assign_(found["W_dec_LO"].reshape(L, *sites, data.d_out))
    coder.decoder.b_dec_XoDo.copy_(found["b_dec_O"].reshape(*sites, data.d_out))
    calibrate(coder, held_out)
    return Trained(coder.eval(), found["seconds"])


# --- what is measured of any of them


@torch.no_grad()
def measured(coder: SparseCoder, held_out: Activations) -> dict[str, float]:
    """FVU, L0 and the share of latents that never fire, on held-out tokens."""
    traces = (Trace.of(coder.eval(), batch) for batch in held_out)
    results = measure([FVU(), L0(), Density()], traces)
    names = {"fvu/pooled": "fvu", "l0/mean": "l0", "density/never": "never_fires"}
    return {name: float(results[key]) for key, name in names.items()}


def compared(coder: SparseCoder, held_out: Activations) -> Compared:
    """What a crosscoder of two models says of its latents; those that fired and are not shared may be called."""
    scaling = latent_scaling(coder, held_out, n_tokens=len(held_out.inputs_NXiDi))
    eligible_L: Bool[Tensor, " L"] = (scaling[0].count_L > 0) & ~coder.decoder.shared_L().cpu()
    return Compared(scaling, eligible_L)


@torch.no_grad()
def firing(coder: SparseCoder, held_out: Activations) -> Bool[Tensor, "N L"]:
    """Which latents fire on which tokens, in eval mode."""
    return torch.cat([coder.encode(batch.inputs_BXiDi).dense() > 0 for batch in held_out])
