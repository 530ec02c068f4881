"""Numbers that are none stop training before a step is taken, and are named."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from crosscode.batch import Batch
from crosscode.errors import NumericalError
from crosscode.finite import all_finite, fault_of, not_finite


def check_batch(step: int, batch: Batch, data: object) -> None:
    """Raises `NumericalError` that names the site whose activations are not finite."""
    if (fault := fault_of(batch, data)) is not None:
        raise NumericalError(f"step {step}: {fault}; no step was taken.")


def check_terms(step: int, loss: Tensor, terms: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raises `NumericalError` that names the parameters, or else the terms, that are not finite."""
    if not all_finite([loss, *terms.values()]):
        check_weights(step, model)
        culprits = not_finite(terms.items()) or ["the weighted sum"]
        raise NumericalError(f"step {step}: {', '.join(culprits)} is not finite; no step was taken.")


def check_gradients(step: int, total_norm: Tensor, model: nn.Module) -> None:
    """Raises `NumericalError` that names the parameters whose gradients are not finite."""
    if not torch.isfinite(total_norm):
        culprits = not_finite((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
        raise NumericalError(f"step {step}: the gradient of {', '.join(culprits) or 'the coder'} is not finite.")


def scheduled(step: int, name: str, value: Any) -> float:
    """A schedule's value, or `NumericalError` that names the schedule whose value is no finite number."""
    if not hasattr(value, "__float__") or not math.isfinite(value):
        raise NumericalError(f"step {step}: {name} is {value!r}, which is no finite number; no step was taken.")
    return float(value)


def check_weights(step: int, model: nn.Module, when: str = "no step was taken") -> None:
    """Raises `NumericalError` that names the parameters and buffers that are not finite."""
    if not all_finite(model.state_dict().values()):
        culprits = not_finite(model.state_dict().items())
        raise NumericalError(f"step {step}: {', '.join(culprits)} is not finite; {when}.")
