"""A run in words: the recipe *is* the configuration, and this writes it down."""

from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import nn

from crosscode.training.trainer import Trainer

NOT_CONFIGURATION = ("callbacks", "state")
MAY_DIFFER = ("cache", "device")  # where a run goes on may differ from where it began


def describe(part: object) -> Any:
    """What a part is made of, as nested dicts of plain data; two runs are alike iff their descriptions are equal.

    A part may say itself what it is with a `describe()` method; other parts are walked by their attrs fields.

    Args:
        part: a `Trainer`, or any part of one.
    """
    if part is None or isinstance(part, bool | int | float | str):
        return part
    if isinstance(part, Trainer):
        return _fields(part, skip=NOT_CONFIGURATION)
    if callable(own := getattr(part, "describe", None)) and not isinstance(part, type):
        fields: Any = own()
        return {"type": type(part).__name__, **fields}
    if isinstance(part, Mapping):
        return {str(key): describe(value) for key, value in part.items()}
    if isinstance(part, list | tuple | nn.ModuleList):
        return [describe(item) for item in part]
    if isinstance(part, slice):
        return f"{part.start or 0}:{'' if part.stop is None else part.stop}"
    if isinstance(part, torch.Tensor):
        return f"{part.dtype} {tuple(part.shape)}".removeprefix("torch.")
    if isinstance(part, torch.dtype | torch.device):
        return str(part).removeprefix("torch.")
    if isinstance(part, torch.optim.Optimizer):
        defaults = {name: value for name, value in part.defaults.items() if name != "lr"}
        return {"type": type(part).__name__, **{name: describe(value) for name, value in defaults.items()}}
    if attrs.has(type(part)):
        return _fields(part)
    name = getattr(part, "__qualname__", None)
    return name if name is not None else {"type": type(part).__name__}


def _fields(part: object, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    fields = [f.name for f in attrs.fields(type(part)) if f.init and f.name not in skip and f.repr]
    return {"type": type(part).__name__, **{name.lstrip("_"): describe(getattr(part, name)) for name in fields}}


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two descriptions differ, one line a field: `init.0.norm: 0.1 -> 1.0`; devices and caches may."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted((old.keys() | new.keys()) - set(MAY_DIFFER))
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{path}.{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for i, (a, b) in enumerate(zip(old, new)) for line in differences(a, b, f"{path}.{i}")]
    return [] if old == new else [f"{path.lstrip('.')}: {old} -> {new}"]
