"""Figures on held-out tokens."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from crosscode.batch import Batch
from crosscode.initialization.data import first_tokens
from crosscode.metrics import Metric, measure
from crosscode.models import SparseCoder, Trace
from crosscode.module import in_eval_mode


@torch.no_grad()
def measure_coder(
    coder: SparseCoder, data: Iterable[Batch], metrics: Sequence[Metric], n_tokens: int = 50_000
) -> dict[str, float | Tensor]:
    """Measure a coder in eval mode, so that a token's latents never depend on its batch neighbours.

    Args:
        coder: the coder; its mode is put back afterwards.
        data: raw activations that training has not seen.
        metrics: what to measure; sums run over all tokens before they are divided.
        n_tokens: how many tokens to use.
    """
    with in_eval_mode(coder):
        return measure(metrics, (Trace.of(coder, batch.to(coder.device)) for batch in first_tokens(data, n_tokens)))
