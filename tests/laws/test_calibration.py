"""Inference thresholds are matched to the trained number of latents per token."""

import pytest
import torch
from strategies import ACTIVATIONS, N_SHARED, random_batch, random_coder

from crosscode.activations import BatchTopK
from crosscode.batch import Batch
from crosscode.models import SparseCoder
from crosscode.training import calibrate


def parts(batch: Batch, *sizes: int) -> list[Batch]:
    return [Batch(*pair) for pair in zip(batch.inputs_BXiDi.split(list(sizes)), batch.targets_BXoDo.split(list(sizes)))]


def calibrated(activation: str, *sizes: int) -> tuple[SparseCoder, Batch]:
    coder = random_coder("compound", activation, seed=2)  # more are positive everywhere than are kept
    batch = random_batch(coder, sum(sizes))
    return calibrate(coder, parts(batch, *sizes)).eval(), batch


def thresholds(coder: SparseCoder) -> list[float]:
    return [part.threshold.item() for part in coder.activation.modules() if isinstance(part, BatchTopK)]


@pytest.mark.parametrize(
    ("activation", "ranges"),
    [
        ("batch_topk", [(slice(None), 3)]),
        ("priced_batch_topk", [(slice(None), 3)]),
        ("budgets_batch_topk", [(slice(0, N_SHARED), 2), (slice(N_SHARED, None), 1)]),
        ("per_site_batch_topk", [(slice(0, 4), 1), (slice(4, 8), 2), (slice(8, 12), 1)]),
    ],
)
def test_the_mean_number_of_latents_is_k(activation: str, ranges: list[tuple[slice, int]]) -> None:
    """On the calibration data, within the one score that the threshold itself is; each budget on its own."""
    coder, batch = calibrated(activation, 64, 200, 36)
    fired_BL = coder.encode(batch.inputs_BXiDi).dense() > 0
    for latents, k in ranges:
        assert abs(fired_BL[:, latents].sum().item() - 300 * k) <= 1


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if "batch_topk" in name])
def test_how_the_data_is_cut_does_not_matter(activation: str) -> None:
    """One batch or many, the threshold is the same number."""
    whole, _ = calibrated(activation, 300)
    cut, _ = calibrated(activation, 5, 100, 1, 150, 44)
    assert thresholds(whole) == pytest.approx(thresholds(cut), rel=1e-12)


@pytest.mark.parametrize("size", [100, 10, 1])
def test_the_largest_scores_may_all_be_of_one_token(size: int) -> None:
    """The k N-th largest over all tokens, however the batches are cut: a token of many latents takes many places."""
    activation = BatchTopK(1, weighted=False)
    activation.eval().begin_calibration(100)
    scores_BL = torch.zeros(100, 100, dtype=torch.float64)
    scores_BL[0] = torch.linspace(11, 10, 100)
    scores_BL[1:, 0] = torch.linspace(2, 1, 99)
    for part in scores_BL.split(size):
        activation.select(part)
    activation.end_calibration()
    assert activation.threshold.item() == scores_BL.flatten().sort(descending=True).values[99].item() == 10


def test_fewer_positive_scores_than_places_keep_all() -> None:
    """A threshold of 0 lets every positive latent fire."""
    coder = random_coder("sae", "batch_topk")
    with torch.no_grad():
        coder.encoder.b_enc_L.fill_(-1000)
        coder.encoder.b_enc_L[3] = 1000
    batch = random_batch(coder, 20)
    calibrate(coder, [batch]).eval()
    assert coder.activation.threshold.item() == 0
    assert coder.encode(batch.inputs_BXiDi).count_L().nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("training", [True, False])
def test_calibrating_leaves_the_mode_and_the_weights_alone(training: bool) -> None:
    """Only thresholds change."""
    coder = random_coder("compound", "batch_topk").train(training)
    before = {name: value.clone() for name, value in coder.state_dict().items()}
    calibrate(coder, [random_batch(coder, 30)])
    assert coder.training is training
    changed = {name for name, value in coder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"activation.threshold"}


def test_coders_without_a_threshold_need_no_data() -> None:
    """ReLU, JumpReLU, TopK and GroupMax are what they are."""
    coder = random_coder("compound", "topk")
    assert calibrate(coder, []) is coder


def test_the_running_threshold_ends_near_the_calibrated_one() -> None:
    """Following the smallest kept scores of many batches leads to about where L0 matching does."""
    coder = random_coder("compound", "batch_topk").train()
    batch_topk = coder.activation
    assert isinstance(batch_topk, BatchTopK)
    batch = random_batch(coder, 3000)
    for step, part in enumerate(parts(batch, *[100] * 30)):
        batch_topk.at_step(step, 30)
        coder.encode(part.inputs_BXiDi)
    running = batch_topk.threshold.item()
    calibrate(coder, [batch])
    assert running == pytest.approx(batch_topk.threshold.item(), rel=0.1)
