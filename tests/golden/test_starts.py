"""Starts: what each strategy makes of one coder by default, in numbers; that it does what it declares, and no more."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from crosscode.activations import JumpReLU
from crosscode.batch import Batch
from crosscode.initialization import (
    AnthropicTranspose,
    CLTUniform,
    DecoderBias,
    IdenticalLatents,
    JanUpdate,
    JumpReLUWithoutBias,
    NormalizeActivations,
    OrthogonalSkip,
    SameAcrossSites,
    ZeroDecoderSkip,
)
from crosscode.models import DenseDecoder, DenseEncoder, LinearSkip, SparseCoder

STRATEGIES: dict[str, Callable[[JumpReLU], Any]] = {
    "NormalizeActivations": lambda jumprelu: NormalizeActivations(),
    "DecoderBias": lambda jumprelu: DecoderBias(),
    "AnthropicTranspose": lambda jumprelu: AnthropicTranspose(),
    "SameAcrossSites": lambda jumprelu: SameAcrossSites(),
    "CLTUniform": lambda jumprelu: CLTUniform(),
    "JanUpdate": JanUpdate,
    "JumpReLUWithoutBias": JumpReLUWithoutBias,
    "ZeroDecoderSkip": lambda jumprelu: ZeroDecoderSkip(),
    "OrthogonalSkip": lambda jumprelu: OrthogonalSkip(),
}
# Two numbers of the encoder, one of the decoder at each site, the skip's first, two of b_enc, one of b_dec at each
# site, a threshold, the scales of inputs and of targets: those of the first version that could be resumed.
NUMBERS = {
    "NormalizeActivations": [0, 0, 0, 0, 0, 0, 0, 0, 0, 1.105, 0.7245, 0.2428, 0.9183, 0.9573],
    "DecoderBias": [0, 0, 0, 0, 0, 0, 0, 1.0118, 1.0125, 1.105, 1, 1, 1, 1],
    "AnthropicTranspose": [-0.0691, -0.0707, -0.0691, -0.0368, 0, 0, 0, 0, 0, 1.105, 1, 1, 1, 1],
    "SameAcrossSites": [0.574, -0.1093, 0.574, 0.574, 0, 0, 0, 0, 0, 1.105, 1, 1, 1, 1],
    "CLTUniform": [-0.0037, -0.1926, -0.0658, -0.3787, 0, 0, 0, 0, 0, 1.105, 1, 1, 1, 1],
    "JanUpdate": [-0.0046, 0.3285, -0.0031, -0.3004, 0, -0.1306, 0.2271, 0, 0, 1.105, 1, 1, 1, 1],
    "JumpReLUWithoutBias": [-0.0046, 0.3285, -0.0031, -0.3004, 0, 0, 0, 0, 0, 1.2356, 1, 1, 1, 1],
    "ZeroDecoderSkip": [-0.5597, -0.5729, 0, 0, 0, -0.2447, -0.5485, 1.0118, 1.0125, 1.105, 1, 1, 1, 1],
    "OrthogonalSkip": [-0.5597, -0.5729, 0, 0, 0.3731, -0.2447, -0.5485, 3.0299, 1.679, 1.105, 1, 1, 1, 1],
}
PARAMETERS = {
    "encoder": ("encoder.W_enc_XiDiL",),
    "decoder": ("decoder.W_dec_LXoDo",),
    "encoder bias": ("encoder.b_enc_L",),
    "decoder bias": ("decoder.b_dec_XoDo",),
    "skip": ("skip.W_skip_XiDiXoDo",),
    "thresholds": ("activation.stored_threshold_L",),
    "scales": ("scale_in_Xi", "scale_out_Xo", "shift_in_XiDi", "shift_out_XoDo"),
}


def a_coder(strategy: str) -> SparseCoder:
    return SparseCoder(
        DenseEncoder((2, 1), 3, 4, bias=strategy != "JumpReLUWithoutBias"),
        JumpReLU(4),
        DenseDecoder(4, (2, 1), 3),
        LinearSkip((2, 1), 3, (2, 1), 3),
    )


def batches() -> list[Batch]:
    """Waves: two sites of different size, targets of another shape."""
    grid = torch.arange(240, dtype=torch.float32)
    x_NMPD = ((grid * 0.37).sin() * 2 + 0.5).reshape(40, 2, 1, 3) * torch.tensor([1.0, 3.0]).reshape(2, 1, 1)
    y_NMPD = ((grid * 0.53).cos() + 1.0).reshape(40, 2, 1, 3)
    return [Batch(x_NMPD[:25], y_NMPD[:25]), Batch(x_NMPD[25:], y_NMPD[25:])]


def numbers_of(coder: SparseCoder) -> Tensor:
    bias_l = torch.zeros(2) if coder.encoder.b_enc_L is None else coder.encoder.b_enc_L[:2]
    assert coder.skip is not None
    parts = [
        *(coder.encoder.weights()[0, 0, :2, 0], coder.decoder.dense()[0, :, 0, 0]),
        *(coder.skip.weights()[0, 0, 0, 0, 0, 0], bias_l, coder.decoder.b_dec_XoDo[:, 0, 0]),
        *(coder.activation.threshold_L[0], coder.scale_in_Xi, coder.scale_out_Xo),
    ]
    return torch.cat([part.detach().flatten() for part in parts])


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_default_start_is_that_of_every_version(name: str) -> None:
    """Else a run is not that of the last version, though every promise of the strategy may hold."""
    coder = a_coder(name)
    STRATEGIES[name](coder.activation)(coder, batches())
    torch.testing.assert_close(numbers_of(coder), torch.tensor(NUMBERS[name]), rtol=0, atol=6e-5)


@pytest.mark.parametrize("name", [*STRATEGIES, "IdenticalLatents"])
def test_a_start_does_what_it_declares(name: str) -> None:
    """What it sets or clears does not depend on what was there; what it does not name stays; cleared is zero."""
    strategies = {**STRATEGIES, "IdenticalLatents": lambda jumprelu: IdenticalLatents(2)}
    coders, filled = [], []
    for seed in (1, 2):
        coder = a_coder(name)
        generator = torch.Generator().manual_seed(seed)
        named = dict(coder.state_dict())
        strategy = strategies[name](coder.activation)
        effect = strategy.effect
        for thing, parameters in PARAMETERS.items():
            own = thing in (effect.reads - effect.sets - effect.clears)  # as in both, or the outcome may differ
            for parameter in parameters:
                if parameter in named:
                    drawn = torch.rand(named[parameter].shape, generator=generator) + 0.5
                    named[parameter].copy_(torch.full_like(drawn, 0.7) if own else drawn)
        filled.append({key: value.clone() for key, value in named.items()})
        strategy(coder, batches())
        coders.append(named)
    for thing, parameters in PARAMETERS.items():
        for parameter in filter(filled[0].__contains__, parameters):
            one, other = (coder[parameter] for coder in coders)
            if thing in effect.sets | effect.clears:
                assert torch.equal(one, other), f"{parameter} depends on what was there"
                assert not torch.equal(one, filled[0][parameter]), f"{parameter} is not set"
            elif thing not in effect.amends:
                assert torch.equal(one, filled[0][parameter]), f"{parameter} is not its own"
            if thing in effect.clears:
                assert not one.any()
