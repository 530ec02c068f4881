"""V-SCHED: learning rate factors, penalty weights and annealed k."""

import pytest

from crosscode.activations import BatchTopK, GroupMax, TopK
from crosscode.schedulers import ExponentialRamp, LinearRamp, WarmupStableDecay


def test_learning_rate_warms_up_and_decays() -> None:
    """T = 10, two steps of warm-up, four of decay."""
    lr = WarmupStableDecay(1.0, num_steps=10, warmup_steps=2, decay_steps=4)
    assert [lr(t) for t in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_penalty_weights_ramp_from_zero() -> None:
    """T_s = 4."""
    assert [LinearRamp(1.0, 4)(t) for t in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]


def test_k_is_annealed() -> None:
    """From 10 to 2 over 4 steps: linearly, and by halves and thirds."""
    for activation in (TopK, BatchTopK, GroupMax):
        assert [activation(LinearRamp(2, 4, start=10)).k_at(t) for t in range(6)] == [10, 8, 6, 4, 2, 2]
        assert [activation(ExponentialRamp(2, 4, start=32)).k_at(t) for t in range(6)] == [32, 16, 8, 4, 2, 2]
        assert activation(7).k_at(3) == 7


@pytest.mark.parametrize("step", [0, 100])
def test_factors_that_are_switched_off_are_one(step: int) -> None:
    """0 steps of warm-up and decay leave the value alone."""
    assert WarmupStableDecay(3.0, num_steps=200)(step) == 3.0
