"""What is measured, assigned or exported carries no graph; what a builder promises is in the coder that it builds."""

import pytest
import torch
from strategies import CROSS, random_batch, random_coder

from crosscode.activations import ReLU
from crosscode.batch import Batch
from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.models import compound_cross_layer_transcoder, cross_layer_transcoder, sae, transcoder
from crosscode.training import Trainer, calibrate


@pytest.mark.parametrize(("shape", "activation"), CROSS)
def test_what_is_measured_or_exported_carries_no_graph(shape: str, activation: str) -> None:
    """Norms that scores are weighed by, factors, folded coders, calibrated thresholds; assigning leaves leaves."""
    coder = random_coder(shape, activation)
    norms_L = coder.score_norms_L()
    assert norms_L is None or not norms_L.requires_grad
    assert not coder.canonical_factor_L().requires_grad
    calibrate(coder, [random_batch(coder)], n_tokens=4)
    coder.decoder.assign_(coder.decoder.dense() * 1)
    coder.encoder.assign_(coder.encoder.weights() * 1)
    for each in (coder, coder.folded()):
        assert all(parameter.is_leaf and parameter.requires_grad for parameter in each.parameters())
        assert not any(buffer.requires_grad for buffer in each.buffers())


def test_between_steps_no_gradient_is_held() -> None:
    """They are freed, not zeroed."""
    coder = sae(4, 6, ReLU())
    data = [Batch.autoencode(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)))]
    held = []
    Trainer(
        model=coder,
        data=data,
        init=[AnthropicTranspose(1.0)],
        loss=SummedSquaredError(),
        optimizer=torch.optim.Adam(coder.parameters()),
        lr=1e-3,
        num_steps=2,
        callbacks=[lambda trainer, report: held.extend(p.grad for p in trainer.model.parameters())],
    ).train()
    assert held == [None] * 2 * len(list(coder.parameters()))


def test_a_skip_is_there_if_asked_for() -> None:
    """With the pairs of sites that it joins; by default there is none."""
    assert transcoder(4, 6, ReLU()).skip is None
    assert cross_layer_transcoder(4, 3, 6, ReLU()).skip is None
    assert compound_cross_layer_transcoder(4, 3, 2, ReLU()).skip is None
    one = transcoder(4, 6, ReLU(), skip=True, d_out=5).skip
    assert one is not None
    assert one.weights().shape == (4, 5)
    first = cross_layer_transcoder(4, 3, 6, ReLU(), skip=True).skip
    several = cross_layer_transcoder(4, 3, 6, ReLU(), skip=True, skip_targets=(0, 2)).skip
    own = compound_cross_layer_transcoder(4, 3, 2, ReLU(), skip=True, d_out=5).skip
    assert first is not None
    assert several is not None
    assert own is not None
    assert first.pairs == ((0, 0),)
    assert several.pairs == ((0, 0), (0, 2))
    assert own.pairs == ((0, 0), (1, 1), (2, 2))
    assert own.weights().shape == (3, 4, 3, 5)
