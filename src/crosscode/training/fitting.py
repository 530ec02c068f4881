"""Whether what a checkpoint holds can be a trainer's, found before any of it is taken over."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from crosscode.training.optimizers import states_in
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


def why_not_of(parts: Mapping[str, Any], trainer: Trainer) -> str | None:
    """Why these parts cannot be the trainer's; None if they can.

    Args:
        parts: as `Trainer.state_dict` gives them, of unknown origin.
        trainer: configured as the one that was saved.
    """
    held = trainer.state_dict()
    tensors = [(f"model.{name}", value, parts["model"].get(name)) for name, value in held["model"].items()]
    tensors += [(name, held[name], parts[name]) for name in ("tokens_since_fired_L", "rng")]
    tensors += [(name, value, parts["modules"].get(name)) for name, value in held["modules"].items()]
    for name, mine, given in tensors:
        if given is None or (given.shape, given.dtype) != (mine.shape, mine.dtype):
            return f"{name} is {'missing' if given is None else f'{given.dtype} {tuple(given.shape)}'}"
    if foreign := parts["model"].keys() - held["model"].keys():
        return f"it holds {min(foreign)!r}, which is no part of the model"
    if foreign := parts["modules"].keys() - held["modules"].keys():
        return f"it holds {min(foreign)!r}, which is no part of the trainer"
    for name in PROGRESS:
        value: Any = parts["progress"][name]
        in_range = isinstance(value, dict) or (isinstance(value, int | float) and 0 <= value < LARGEST)
        if type(value) is not KINDS[name] or not in_range:
            return f"{name} is {value!r}"
    return _why_not_optimizers(parts["optimizer"], held["optimizer"]) or _why_not_rng(parts["rng"])


def _why_not_optimizers(given: Any, held: Any) -> str | None:
    """Of an optimizer, or of those that a composite holds: moments of any shape, whose files have their checksum."""
    try:
        states = list(zip(states_in(given), states_in(held), strict=True))
    except ValueError:
        return "it is of another number of optimizers"
    return next((wrong for each, mine in states if (wrong := _why_not_optimizer(each, mine)) is not None), None)


def _why_not_optimizer(given: Mapping[str, Any], held: Mapping[str, Any]) -> str | None:
    groups, mine = given["param_groups"], held["param_groups"]
    if not isinstance(groups, list) or len(groups) != len(mine) or not all(map(_alike, groups, mine)):
        return "the optimizer's groups are not those of the trainer's optimizer"
    n_parameters = sum(len(group["params"]) for group in mine)
    for i, values in given["state"].items():
        if type(i) is int and not 0 <= i < n_parameters:
            return f"the optimizer knows {n_parameters} parameters, not a number {i}"
        if not isinstance(values, Mapping):
            return f"the optimizer's state of parameter {i} is {values!r}"
    return None


def _alike(given: Any, held: Mapping[str, Any]) -> bool:
    """A group of the same parameters and kinds of values; others may have come with the steps, for None too."""
    return isinstance(given, Mapping) and all(
        name in given
        and (given[name] == value if name == "params" else value is None or _kind(given[name]) == _kind(value))
        for name, value in held.items()
    )


def _kind(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_kind(item) for item in value]
    if isinstance(value, Tensor) and value.ndim == 0:
        return "number"
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def _why_not_rng(rng: Tensor) -> str | None:
    try:
        torch.Generator().set_state(rng)
    except RuntimeError:
        return "rng is no state of a random generator"
    return None
