"""Inference thresholds from data."""

from collections.abc import Iterable

import torch

from crosscode.batch import Batch
from crosscode.initialization.data import first_tokens
from crosscode.models import SparseCoder
from crosscode.module import in_eval_mode


@torch.no_grad()
def calibrate(coder: SparseCoder, data: Iterable[Batch], n_tokens: int = 30_000) -> SparseCoder:
    """Set inference thresholds by L0 matching: the `k * N`-th largest score over N tokens, so that the mean L0 is k.

    Does nothing to a coder whose activation needs no threshold.

    Args:
        coder: the coder, changed in place and returned.
        data: raw activations, best held out from training.
        n_tokens: how many tokens to use.
    """
    if not coder.activation.needs_calibration:
        return coder
    with in_eval_mode(coder):
        coder.activation.begin_calibration(n_tokens)
        for batch in first_tokens(data, n_tokens):
            coder.encode(batch.inputs_BXiDi.to(coder.device))
        coder.activation.end_calibration()
    return coder
