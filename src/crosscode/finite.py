"""Whether numbers are numbers: found at the cost of a sum, then named."""

from collections.abc import Iterable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from crosscode.batch import Batch
from crosscode.latents import total


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


def fault_of(batch: Batch, data: object) -> str | None:
    """The first site whose activations are not finite, by the data's names if it has some; None if all are."""
    transcodes = batch.targets_BXoDo is not batch.inputs_BXiDi
    sides = {"inputs": batch.inputs_BXiDi} | ({"targets": batch.targets_BXoDo} if transcodes else {})
    if all_finite(sides.values()):
        return None
    for what, x_BXD in sides.items():
        finite_BX = x_BXD.isfinite().all(dim=-1).reshape(len(batch), -1)
        for i, site in enumerate(product(*map(range, x_BXD.shape[1:-1]))):
            n_bad = int((~finite_BX[:, i]).sum())
            if n_bad:
                known = _site(data, "writes" if what == "targets" else "reads", i)
                where = f" at {known or f'site {site}'}" if known or site else ""
                dtype = str(x_BXD.dtype).removeprefix("torch.")
                return f"the data's {what}{where} are not finite in {n_bad} of {len(batch)} tokens ({dtype})"
    return None


def _site(data: Any, side: str, index: int) -> str | None:
    """Model and hookpoint of a site, where the data knows them."""
    names, hookpoints = (getattr(data, name, None) for name in ("model_names", "hookpoints"))
    if names is None or hookpoints is None:
        return None
    hookpoints = getattr(data, side, None) or hookpoints
    sites = list(product(names, (hookpoints,) if isinstance(hookpoints, str) else hookpoints))
    return " ".join(sites[index]) if index < len(sites) else None
