"""A coder whose latents cannot fire, or do not, would train to the end without a word: it is told."""

import torch
from jaxtyping import Float
from torch import Tensor

from crosscode.errors import BadInput, warn
from crosscode.models import SparseCoder, Trace
from crosscode.module import in_eval_mode
from crosscode.training.state import TrainState

N_PROBES = 4


@torch.no_grad()
def check_can_fire(coder: SparseCoder) -> None:
    """Whether pre-activations depend on what is read; warns where those of some latents do not.

    Raises:
        BadInput: none does: such an encoder gets no gradient through latents that do not fire.
    """
    generator = torch.Generator().manual_seed(0)
    x_BXiDi = torch.randn(N_PROBES, *coder.encoder.in_dims, coder.encoder.d_in, generator=generator)
    x_BXiDi = x_BXiDi.to(coder.scale_in_Xi)
    if coder.padding_in_XiDi is not None:
        x_BXiDi = x_BXiDi.masked_fill(coder.padding_in_XiDi, 0.0)
    with in_eval_mode(coder):
        z_BL: Float[Tensor, "B L"] = coder.encoder(x_BXiDi)
    n_deaf = int((z_BL == z_BL[:1]).all(dim=0).sum())
    if n_deaf == coder.n_latents:
        raise BadInput(
            f"init: the {type(coder.encoder).__name__} gives the same pre-activations whatever it reads, so nothing "
            "would ever be learnt: give the Trainer a start, such as init=[AnthropicTranspose()]."
        )
    if n_deaf:
        warn(
            f"{n_deaf} of {coder.n_latents} latents read nothing at the start: their encoder weights are zero, and may "
            "stay so."
        )


def check_sign(trace: Trace) -> None:
    """Raises `BadInput` for latents below 0, which would count as silent everywhere."""
    values = trace.latents.values
    if values.numel() and (least := float(values.detach().min())) < 0:
        raise BadInput(
            f"what {type(trace.model.activation).__name__}.forward returns has latents below 0, the least {least:.3g}: "
            "a latent fires where it is greater than 0, so none may be negative."
        )


def tell_of_silence(state: TrainState, n_tokens: int) -> None:
    """Warn once no latent has fired for `n_tokens`, and not again before some have; waits for the device."""
    silent = int(state.tokens_since_fired_L.min())
    if n_tokens <= silent < 2 * n_tokens:
        warn(
            f"step {state.step}: no latent has fired on the last {silent:,} tokens. A penalty that is too high, a "
            "threshold that is too large or a learning rate that is too high silences a coder; it rarely recovers."
        )
