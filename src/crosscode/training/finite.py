"""Numbers that are none: found at the cost of a sum, then named."""

import math
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from crosscode.batch import Batch
from crosscode.errors import CrosscodeError
from crosscode.latents import total


class NumericalError(CrosscodeError):
    """An activation, loss, penalty, gradient or weight became NaN or infinite; nothing was stepped or saved."""


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Whether every number is finite; waits for the device once."""
    # A sum is finite unless a summand is not, or it overflows: then, hardly ever, every number is looked at.
    tensors = [tensor for tensor in tensors if tensor.is_floating_point()]
    sums = [total(tensor.detach()) for tensor in tensors]
    if not sums or bool(torch.stack([each.double() for each in sums]).isfinite().all()):
        return True
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """The names of tensors that hold NaN or infinity."""
    return [name for name, tensor in named if tensor.is_floating_point() and not tensor.isfinite().all()]


def check_batch(step: int, batch: Batch, data: object) -> None:
    """Raises `NumericalError` that names the site whose activations are not finite."""
    transcodes = batch.targets_BXoDo is not batch.inputs_BXiDi
    sides = {"inputs": batch.inputs_BXiDi} | ({"targets": batch.targets_BXoDo} if transcodes else {})
    if all_finite(sides.values()):
        return
    for what, x_BXD in sides.items():
        finite_BX = x_BXD.isfinite().all(dim=-1).reshape(len(batch), -1)
        for i, site in enumerate(product(*map(range, x_BXD.shape[1:-1]))):
            n_bad = int((~finite_BX[:, i]).sum())
            if n_bad:
                known = _site(data, "writes" if what == "targets" else "reads", i)
                where = f" at {known or f'site {site}'}" if known or site else ""
                raise NumericalError(
                    f"step {step}: the data's {what}{where} are not finite in {n_bad} of {len(batch)} tokens; "
                    "no step was taken."
                )


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


def check_rate(step: int, name: str, value: Any) -> float:
    """A schedule's value, or `NumericalError` that names the schedule whose value is no finite number."""
    if not hasattr(value, "__float__") or not math.isfinite(value):
        raise NumericalError(f"step {step}: {name} is {value!r}, which is no finite number; no step was taken.")
    return float(value)


def check_weights(step: int, model: nn.Module, when: str = "no step was taken") -> None:
    """Raises `NumericalError` that names the parameters and buffers that are not finite."""
    if not all_finite(model.state_dict().values()):
        culprits = not_finite(model.state_dict().items())
        raise NumericalError(f"step {step}: {', '.join(culprits)} is not finite; {when}.")


def _site(data: Any, side: str, index: int) -> str | None:
    """Model and hookpoint of a site, where the data knows them."""
    names, hookpoints = (getattr(data, name, None) for name in ("model_names", "hookpoints"))
    if names is None or hookpoints is None:
        return None
    hookpoints = getattr(data, side, None) or hookpoints
    sites = list(product(names, (hookpoints,) if isinstance(hookpoints, str) else hookpoints))
    return " ".join(sites[index]) if index < len(sites) else None
