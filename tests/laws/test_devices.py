"""Nothing is made on a device of its own: every tensor made on the way lies where the coder and the batch lie.

No accelerator is needed to see it. While the default device is `meta`, a factory call that names no device gives a
tensor that no CPU tensor can be mixed with.
"""

import pytest
import torch
from strategies import CROSS, L, random_batch, random_coder

from crosscode.losses import (
    FixedNMSE,
    FractionOfVarianceUnexplained,
    MatryoshkaSquaredError,
    MeanNorm,
    SummedSquaredError,
)
from crosscode.models import Trace
from crosscode.penalties import (
    AuxK,
    DeltaReconstruction,
    DifferenceWeighting,
    ExpectedL0,
    L0QuadraticRelative,
    L1OfNorms,
    PreActivation,
    TanhFrequency,
    TanhSparsity,
)


@pytest.mark.parametrize(("shape", "activation"), CROSS)
def test_forward_and_backward_stay_on_the_coders_device(shape: str, activation: str) -> None:
    """Selection, codes, every loss and penalty, and their gradients (fault 4: GroupMax's bounds lay on the CPU)."""
    coder = random_coder(shape, activation)
    batch = random_batch(coder)
    silent_L = torch.arange(L)
    sites = coder.decoder.norms_LXo()[0].numel()
    terms = [
        SummedSquaredError(),
        SummedSquaredError([1.0] * sites),
        MeanNorm(),
        FractionOfVarianceUnexplained(),
        FixedNMSE(1.0),
        MatryoshkaSquaredError((2, 5)),
        L1OfNorms(latents=slice(3, None)),
        TanhSparsity(norm="l2"),
        TanhFrequency(latents=slice(2, None)),
        AuxK(2, dead_after_tokens=8),
    ]
    if coder.decoder.out_dims[:1] == (2,):
        terms += [DeltaReconstruction(slice(0, 4)), DifferenceWeighting()]
    if activation in ("jumprelu", "jumprelu_gdm", "per_site_jumprelu"):
        jumprelu = coder.activation
        terms += [PreActivation(jumprelu), ExpectedL0(jumprelu), L0QuadraticRelative(jumprelu, 3.0)]
    with torch.device("meta"):
        trace = Trace.of(coder, batch, silent_L)
        total = sum(term(trace) for term in terms)
        total.backward()
        counted = trace.latents.fired_L(), trace.latents.count_L(), trace.latents.l0_B()
        raw = coder(batch.inputs_BXiDi)
    for tensor in (total, raw, trace.latents_BL, *counted, *(p.grad for p in coder.parameters() if p.grad is not None)):
        assert tensor.device.type == "cpu"
