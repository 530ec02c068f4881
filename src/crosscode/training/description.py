"""A run in words: the recipe *is* the configuration, and this writes it down.

Models and text are told by what they hold and not by where they are, so that a run may go on in another place.
"""

import functools
import hashlib
import os
import platform
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import nn

from crosscode.data import ActivationCache, TokenSequences, documents
from crosscode.data.embedded.text import PACKAGES
from crosscode.module import fields_of
from crosscode.training.trainer import Trainer

NOT_CONFIGURATION = ("callbacks", "state")
# Where a run goes on may differ from where it began; and what was read so far had no bad row, or they were left out.
MAY_DIFFER = ("ahead", "device", "called", "skip_bad_rows")
SAMPLED = 1 << 24  # bytes of a data set that are hashed; of a larger one, pieces from its beginning to its end
PIECES = 16


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
    if callable(getattr(part, "harvest", None)) and hasattr(part, "identity"):  # a `LanguageModel`
        model: Any = part
        return {"type": type(part).__name__, "called": model.name, "identity": model.identity}
    if isinstance(part, ActivationCache):  # with one or without: only what it rounds to makes a difference
        return describe(part.dtype)
    if isinstance(part, TokenSequences):
        return {**_fields(part, skip=("source",)), "source": _describe_text(part)}
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
        multipliers = [group.get("lr_multiplier", 1.0) for group in part.param_groups]
        if any(each != 1 for each in multipliers):
            defaults["lr_multipliers"] = multipliers
        return {"type": type(part).__name__, **{name: describe(value) for name, value in defaults.items()}}
    if attrs.has(type(part)):
        return _fields(part)
    name = getattr(part, "__qualname__", None)
    return name if name is not None else {"type": type(part).__name__}


def _fields(part: object, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    fields = [f.name for f in fields_of(part) if f.init and f.name not in skip and f.repr]
    return {"type": type(part).__name__, **{name.lstrip("_"): describe(getattr(part, name)) for name in fields}}


def _describe_text(text: TokenSequences) -> Any:
    """A hub data set by its name; anything else by its content.

    Of local files, whatever their place, it is the size and a hash of a bounded sample: a change that keeps the size
    of more than `SAMPLED` bytes of text may go unseen. The embedded text is a function of the packages it is read from.
    """
    if not isinstance(text.source, str | Path):
        return documents.fingerprint(text.source)
    if text.source == "embedded":
        return {"embedded": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}}
    files = text.files
    if files is None:
        return str(text.source)
    root = Path(os.path.commonpath([file.parent for file in files]))
    return {str(file.relative_to(root)): _describe_file(file, SAMPLED // len(files)) for file in files}


def _describe_file(file: Path, n_bytes: int) -> str:
    stat = file.stat()
    return f"{stat.st_size} bytes, sha256 {_sampled(file, stat.st_size, stat.st_mtime_ns, n_bytes)}"


@functools.lru_cache(maxsize=4096)
def _sampled(file: Path, size: int, modified: int, n_bytes: int) -> str:
    """A hash of at most `n_bytes` bytes of a file, in evenly spaced pieces; remembered until the file changes."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        if size <= n_bytes:
            digest.update(opened.read())
        else:
            piece = max(1, n_bytes // PIECES)
            for i in range(PIECES):
                opened.seek(i * (size - piece) // (PIECES - 1))
                digest.update(opened.read(piece))
    return digest.hexdigest()


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Where two descriptions differ, one line a field: `init.0.norm: 0.1 -> 1.0`; devices may.

    What a model is called may differ too: it is told by its identity.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted((old.keys() | new.keys()) - set(MAY_DIFFER))
        return [line for key in keys for line in differences(old.get(key), new.get(key), f"{path}.{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [line for i, (a, b) in enumerate(zip(old, new)) for line in differences(a, b, f"{path}.{i}")]
    return [] if old == new else [f"{path.lstrip('.')}: {_short(old)} -> {_short(new)}"]


def paths(description: Any, path: str = "") -> set[str]:
    """Every field that `differences` could name, and what it is below of: `init`, `init.0`, `init.0.norm`."""
    items: Iterable[tuple[Any, Any]] = description.items() if isinstance(description, dict) else ()
    items = enumerate(description) if isinstance(description, list) else items
    here = {path} if path else set[str]()
    return here.union(*(paths(value, f"{path}.{key}".lstrip(".")) for key, value in items))


def _short(value: Any) -> str:
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", str(value))
