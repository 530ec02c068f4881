"""What bfloat16 costs in quality: a run ends where the float32 run ends. Its speed: `benchmarks/precision.py`."""

from collections.abc import Callable

import pytest
import torch

from crosscode import Batch, Trainer, Weighted
from crosscode.activations import Activation, JumpReLU, ReLU, TopK
from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.models import sae
from crosscode.penalties import ExpectedL0, L1OfNorms
from crosscode.training.trainer import Precision

D, L, N_STEPS = 32, 128, 250


def final_fvu(make: Callable[[], Activation], precision: Precision) -> float:
    """FVU on fresh activations after a run on sparse combinations of 64 features."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(64, D, generator=generator)
    codes = torch.rand(33 * 256, 64, generator=generator)
    codes *= torch.rand(codes.shape, generator=generator) < 0.05
    *data, fresh = (codes @ features).split(256)
    batches = [Batch.autoencode(x_BD) for x_BD in data]
    coder = sae(D, L, activation := make())
    l0_or_l1 = ExpectedL0(activation) if isinstance(activation, JumpReLU) else L1OfNorms()
    trainer = Trainer(
        model=coder,
        data=batches,
        init=[AnthropicTranspose(0.1)],
        loss=SummedSquaredError(),
        penalties={} if isinstance(activation, TopK) else {"sparsity": Weighted(l0_or_l1, 3e-2)},
        optimizer=torch.optim.Adam(coder.parameters(), fused=True),
        lr=lambda step: 3e-3 * min(1.0, 4 * (1 - step / N_STEPS)),
        num_steps=N_STEPS,
        precision=precision,
    )
    trainer.train()
    with torch.no_grad():
        error = coder(fresh) - fresh
    return float(error.square().sum() / (fresh - fresh.mean(0)).square().sum())


@pytest.mark.parametrize(
    "make", [ReLU, lambda: TopK(6), lambda: JumpReLU(L, threshold=0.1, bandwidth=0.1)], ids=["relu", "topk", "jumprelu"]
)
def test_a_bfloat16_run_ends_within_two_percent_of_float32(make: Callable[[], Activation]) -> None:
    """Of its FVU, from the same weights on the same batches."""
    fp32, bf16 = final_fvu(make, "fp32"), final_fvu(make, "bf16")
    assert fp32 < 0.2, "the run has learned something"
    assert bf16 == pytest.approx(fp32, rel=0.02)
