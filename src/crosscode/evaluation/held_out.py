"""Figures on held-out tokens."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from crosscode.batch import Batch
from crosscode.initialization.data import first_tokens
from crosscode.metrics import Metric, measure
from crosscode.models import SparseCoder, Trace


@torch.no_grad()
def evaluate(
    coder: SparseCoder, data: Iterable[Batch], metrics: Sequence[Metric], n_tokens: int = 50_000
) -> dict[str, float | Tensor]:
    """Measure a coder in eval mode, so that a token's latents never depend on its batch neighbours.

    Args:
        coder: the coder; its mode is put back afterwards.
        data: raw activations that training has not seen.
        metrics: what to measure; sums run over all tokens before they are divided.
        n_tokens: how many tokens to use.
    """
    was_training = coder.training
    coder.eval()
    traces = (Trace.of(coder, batch.to(coder.device)) for batch in first_tokens(data, n_tokens))
    results = measure(metrics, traces)
    coder.train(was_training)
    return results
