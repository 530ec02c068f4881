"""Whether what a checkpoint holds can be a trainer's, found before any of it is taken over."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from crosscode.training.trainer import PROGRESS, Trainer

KINDS: Mapping[str, type] = {
    "step": int,
    "tokens": int,
    "density": float,
    "sparse": bool,
    "cursor": dict,
    "stopped": bool,
}
LARGEST = 2**63


def misfit(parts: Mapping[str, Any], trainer: Trainer) -> str | None:
    """Why these parts cannot be the trainer's; None if they can.

    Args:
        parts: as `Trainer.state_dict` gives them, of unknown origin.
        trainer: configured as the one that was saved.
    """
    held = trainer.state_dict()
    tensors = [(f"model.{name}", value, parts["model"].get(name)) for name, value in held["model"].items()]
    tensors += [(name, held[name], parts[name]) for name in ("tokens_since_fired_L", "rng")]
    for name, mine, given in tensors:
        if given is None or (given.shape, given.dtype) != (mine.shape, mine.dtype):
            return f"{name} is {'missing' if given is None else f'{given.dtype} {tuple(given.shape)}'}"
    if foreign := parts["model"].keys() - held["model"].keys():
        return f"it holds {min(foreign)!r}, which is no part of the model"
    for name in PROGRESS:
        value: Any = parts["progress"][name]
        in_range = isinstance(value, dict) or (isinstance(value, int | float) and 0 <= value < LARGEST)
        if type(value) is not KINDS[name] or not in_range:
            return f"{name} is {value!r}"
    return _optimizer_misfit(parts["optimizer"], trainer) or _rng_misfit(parts["rng"])


def _optimizer_misfit(given: Mapping[str, Any], trainer: Trainer) -> str | None:
    held = trainer.optimizer.state_dict()["param_groups"]
    groups = given["param_groups"]
    if not isinstance(groups, list) or [_kinds(group) for group in groups] != [_kinds(group) for group in held]:
        return "the optimizer's groups are not those of the trainer's optimizer"
    parameters = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
    for i, values in given["state"].items():
        if not 0 <= i < len(parameters):
            return f"the optimizer knows {len(parameters)} parameters, not a number {i}"
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape not in ((), parameters[i].shape):
                return f"the optimizer's {name!r} of parameter {i} has shape {tuple(value.shape)}"
    return None


def _kinds(group: Any) -> Any:
    """What a group's values are, and which parameters it holds."""
    if not isinstance(group, dict):
        return None
    configured = {name: value for name, value in group.items() if name != "lr_multiplier"}
    return {name: value if name == "params" else _kind(value) for name, value in configured.items()}


def _kind(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_kind(item) for item in value]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def _rng_misfit(rng: Tensor) -> str | None:
    try:
        torch.Generator().set_state(rng)
    except RuntimeError:
        return "rng is no state of a random generator"
    return None
