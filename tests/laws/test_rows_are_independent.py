"""In eval mode a token's latents depend on that token only."""

import pytest
import torch
from strategies import PRODUCT, in_eval_mode, random_batch, random_coder

from crosscode.activations import BatchTopK
from crosscode.models import Trace


@pytest.mark.parametrize(("shape", "activation"), PRODUCT)
def test_neither_order_nor_neighbours_matter(shape: str, activation: str) -> None:
    """Permuting rows permutes latents and reconstructions; a row alone, or beside louder ones, is encoded alike."""
    coder = random_coder(shape, activation)
    x_BXiDi = random_batch(coder, 7).inputs_BXiDi
    in_eval_mode(coder, x_BXiDi)
    f_BL, yhat = coder.encode(x_BXiDi).dense(), coder(x_BXiDi)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    torch.testing.assert_close(coder.encode(x_BXiDi[order]).dense(), f_BL[order])
    torch.testing.assert_close(coder(x_BXiDi[order]), yhat[order])
    for row in (0, 4):
        torch.testing.assert_close(coder.encode(x_BXiDi[row : row + 1]).dense(), f_BL[row : row + 1])
    louder = torch.cat([x_BXiDi[:2], 50 * x_BXiDi[2:]])
    torch.testing.assert_close(coder.encode(louder).dense()[:2], f_BL[:2])


@pytest.mark.parametrize("activation", ["batch_topk", "budgets_batch_topk", "priced_batch_topk", "per_site_batch_topk"])
def test_evaluating_changes_no_threshold(activation: str) -> None:
    """Training follows the threshold; evaluating and folding leave it."""
    coder = random_coder("compound", activation)
    batch = random_batch(coder)
    in_eval_mode(coder, batch.inputs_BXiDi)
    thresholds = [part.threshold.item() for part in coder.activation.modules() if isinstance(part, BatchTopK)]
    Trace.of(coder, batch)
    folded = coder.folded()
    for one in (coder, folded):
        now = [part.threshold.item() for part in one.activation.modules() if isinstance(part, BatchTopK)]
        assert now == thresholds
