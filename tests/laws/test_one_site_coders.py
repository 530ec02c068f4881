"""A SAE, a one-site crosscoder and a one-target cross-layer transcoder are one thing, bit for bit."""

from collections.abc import Callable

import pytest
import torch
from strategies import ACTIVATIONS, L, jumprelu_of

from crosscode.activations import Activation
from crosscode.batch import Batch
from crosscode.losses import SummedSquaredError
from crosscode.models import SparseCoder, Trace, acausal_crosscoder, cross_layer_transcoder, sae
from crosscode.penalties import AuxK, L1OfNorms, PreActivation, TanhSparsity

D = 5
ONE_SITE: dict[str, Callable[[Activation], SparseCoder]] = {
    "sae": lambda activation: sae(D, L, activation),
    "crosscoder": lambda activation: acausal_crosscoder(
        n_models=1, n_hookpoints=1, d_model=D, n_latents=L, activation=activation
    ),
    "clt": lambda activation: cross_layer_transcoder(D, 1, L, activation),
}


def loss_and_gradients(kind: str, activation: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """Loss, codes and gradients, flat, of one kind of coder with the same weights and data as the others."""
    generator = torch.Generator().manual_seed(0)
    coder = ONE_SITE[kind](ACTIVATIONS[activation]()).to(dtype)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(0.5 * torch.randn(parameter.numel(), generator=generator).reshape(parameter.shape))
    x_BD = torch.randn(9, D, generator=generator).to(dtype)
    inputs = x_BD.reshape(9, *coder.encoder.in_dims, D)
    targets = x_BD.reshape(9, *coder.decoder.out_dims, D)
    silent_L = torch.arange(L)
    trace = Trace.of(coder, Batch(inputs, targets), silent_L)
    loss = SummedSquaredError()(trace) + 0.3 * L1OfNorms()(trace) + 0.2 * TanhSparsity()(trace)
    loss = loss + AuxK(2, dead_after_tokens=8)(trace) / 32
    jumprelu = jumprelu_of(coder)
    if jumprelu is not None:
        loss = loss + 0.1 * PreActivation(jumprelu)(trace)
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in coder.parameters()]
    return [loss.detach(), trace.latents_BL.detach(), *gradients]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["crosscoder", "clt"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_losses_and_gradients_are_bit_equal(kind: str, activation: str, dtype: torch.dtype) -> None:
    """Same weights, same data: same bits."""
    for one, other in zip(loss_and_gradients("sae", activation, dtype), loss_and_gradients(kind, activation, dtype)):
        assert torch.equal(one, other)
