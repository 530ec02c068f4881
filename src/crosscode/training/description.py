"""A run in words: the recipe *is* the configuration, and this writes it down.

Models and text are told by what they hold and not by where they are, so that a run may go on in another place.
"""

import ast
import functools
import hashlib
import inspect
import os
import platform
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from types import CellType, FunctionType, MethodType
from typing import Any

import attrs
import numpy as np
import torch
from torch import nn

from crosscode.batch import Batch
from crosscode.data import ActivationCache, TokenSequences, documents
from crosscode.data.embedded.text import PACKAGES
from crosscode.errors import warn
from crosscode.module import fields_of

# Where a run goes on may differ from where it began; and what was read so far had no bad row, or they were left out.
MAY_DIFFER = ("ahead", "device", "called", "skip_bad_rows")
SAMPLED = 1 << 24  # bytes of a data set that are hashed; of a larger one, pieces from its beginning to its end
PIECES = 16
OF_TORCH = frozenset(vars(nn.Module()))  # what every module holds
SAMPLED_NUMBERS, SAMPLED_BATCHES = 4096, 64  # of a tensor; of a list of batches


def describe(part: object) -> Any:
    """What a part is made of, as nested dicts of plain data; two runs are alike iff their descriptions are equal.

    A part may say itself what it is with a `describe()` method. Other parts are walked: attrs classes by the fields of
    their repr, other objects by their attributes (of private ones numbers, texts and tensors), functions by their
    source and by what they close over, partials by their arguments. Tensors, arrays, batches and files are told by
    their sizes and a hash of a bounded sample, so that a change outside of the sample may go unseen. What cannot be
    told from another of its type is warned of, once.

    Args:
        part: a `Trainer`, whose callbacks and state are no part of what it is, or any part of one.
    """
    return _Walk().of(part)


def options_of(group: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a parameter group that are not its optimizer's; the rate is the trainer's."""
    return {name: group[name] for name in defaults if name != "lr" and name in group and group[name] != defaults[name]}


class _Walk:
    """A description in the making; it knows what it is within, so that a circle ends."""

    def __init__(self) -> None:
        self.within: list[int] = []

    def of(self, part: object) -> Any:
        if part is None or isinstance(part, bool | int | float | str):
            return part
        if id(part) in self.within:
            return {"type": type(part).__name__, "place": "further up"}
        self.within.append(id(part))
        try:
            return self._of(part)
        finally:
            self.within.pop()

    def _of(self, part: object) -> Any:
        if callable(own := getattr(part, "describe", None)) and not isinstance(part, type):
            said = own()
            if isinstance(said, Mapping):  # a table of pandas' has a `describe` too
                return {"type": type(part).__name__, **said}
        if callable(getattr(part, "harvest", None)) and hasattr(part, "identity"):  # a `LanguageModel`
            model: Any = part
            return {"type": type(part).__name__, "called": model.name, "identity": model.identity}
        if isinstance(part, ActivationCache):  # with one or without: only what it rounds to makes a difference
            return self.of(part.dtype)
        if isinstance(part, TokenSequences):
            return {**self._fields(part, skip=("source",)), "source": _describe_text(part)}
        if isinstance(part, Mapping):
            return {str(key): self.of(value) for key, value in part.items()}
        if isinstance(part, set | frozenset):
            return sorted((self.of(item) for item in part), key=str)
        if isinstance(part, list | tuple) and part and all(isinstance(item, Batch) for item in part):
            return _describe_batches(part)
        if isinstance(part, list | tuple | nn.ModuleList):
            return [self.of(item) for item in part]
        if isinstance(part, torch.optim.Optimizer):
            options = {name: value for name, value in part.defaults.items() if name != "lr"}
            multipliers = [group.get("lr_multiplier", 1.0) for group in part.param_groups]
            if any(each != 1 for each in multipliers):
                options["lr_multipliers"] = multipliers
            groups = [options_of(group, part.defaults) for group in part.param_groups]
            if any(groups):
                options["groups"] = groups
            return {"type": type(part).__name__, **{name: self.of(value) for name, value in options.items()}}
        plain = _plain(part)
        return self._of_object(part) if plain is None else plain

    def _of_object(self, part: object) -> Any:
        if attrs.has(type(part)):
            return self._fields(part)
        if isinstance(part, functools.partial):
            return {"type": "partial", "of": self.of(part.func), "with": self.of([*part.args, part.keywords])}
        if isinstance(part, MethodType):
            return {"type": "method", "name": part.__func__.__qualname__, "of": self.of(part.__self__)}
        if isinstance(part, FunctionType):
            return self._function(part)
        if (name := getattr(part, "__qualname__", None)) is not None:  # a class, or a function in C
            return name
        held = _attributes(part)
        if held is None:
            _warn_of(type(part).__name__)
        held = {**(held or {}), **_closed_over(type(part))}
        return {"type": type(part).__name__, **{name: self.of(value) for name, value in held.items()}}

    def _fields(self, part: object, skip: tuple[str, ...] = ()) -> dict[str, Any]:
        fields = [f.name for f in fields_of(part) if f.init and f.name not in skip and f.repr]
        return {"type": type(part).__name__, **{name.lstrip("_"): self.of(getattr(part, name)) for name in fields}}

    def _function(self, function: FunctionType) -> Any:
        """Its name, what it closes over and its defaults; of one that is not crosscode's, also a hash of its source."""
        inside: dict[Any, Any] = dict(zip(function.__code__.co_freevars, map(_in_cell, function.__closure__ or ())))
        inside |= dict(enumerate(function.__defaults__ or ()))
        inside |= function.__kwdefaults__ or {}
        ours = (function.__module__ or "").split(".")[0] == "crosscode"
        source = None if ours else _source_of(function)
        held = {str(name): self.of(value) for name, value in inside.items()}
        told = {"function": function.__qualname__, **({"source": source} if source else {}), **held}
        return told if len(told) > 1 else function.__qualname__


def _plain(part: object) -> Any:
    """What has a value of its own, in JSON's types; None for anything else."""
    if isinstance(part, slice):
        return f"{part.start or 0}:{'' if part.stop is None else part.stop}"
    if isinstance(part, torch.Tensor):
        return f"{part.dtype} {tuple(part.shape)}, sha256 {_hash_of([part])}".removeprefix("torch.")
    if isinstance(part, np.ndarray):
        sample = part.reshape(-1)[:: max(1, part.size // SAMPLED_NUMBERS)] if part.size else part
        return f"{part.dtype} {part.shape}, sha256 {hashlib.sha256(np.ascontiguousarray(sample).tobytes()).hexdigest()}"
    if isinstance(part, np.generic):
        return part.item()
    if isinstance(part, torch.dtype | torch.device):
        return str(part).removeprefix("torch.")
    if isinstance(part, torch.Generator):
        return f"generator, seed {part.initial_seed()}"
    if isinstance(part, bytes | bytearray):
        return f"{len(part)} bytes, sha256 {hashlib.sha256(part).hexdigest()}"
    if isinstance(part, Path):
        return _describe_path(part)
    if isinstance(part, Enum | complex | date):
        return str(part)
    return None


def _attributes(part: object) -> dict[str, Any] | None:
    """An object's attributes, without a module's tensors that change and its mode; None if it has none to be told by.

    Of private ones, numbers, texts and tensors: others are caches and handles.
    """
    slots = [name for cls in type(part).__mro__ for name in getattr(cls, "__slots__", ()) if isinstance(name, str)]
    if not hasattr(part, "__dict__") and not slots:
        return None
    held = {name: getattr(part, name) for name in slots if hasattr(part, name)} | getattr(part, "__dict__", {})
    if isinstance(part, nn.Module):
        frozen = {name: value for name, value in part.named_parameters(recurse=False) if not value.requires_grad}
        held = {**held, **dict(part.named_children()), **frozen, **dict(part.named_buffers(recurse=False))}
        held = {name: value for name, value in held.items() if name != "training" and name not in OF_TORCH}
    simple = (bool, int, float, str, torch.Tensor, np.ndarray, Path)
    told = {
        name: value for name, value in sorted(held.items()) if not name.startswith("_") or isinstance(value, simple)
    }
    return told if told or not held else None


def _closed_over(cls: type) -> dict[str, Any]:
    """What the methods of a class that was made within a function close over."""
    methods = [method for method in vars(cls).values() if isinstance(method, FunctionType)]
    cells = {name: cell for m in methods for name, cell in zip(m.__code__.co_freevars, m.__closure__ or ())}
    return {name: _in_cell(cell) for name, cell in cells.items() if name != "__class__"}


def _in_cell(cell: CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _source_of(function: FunctionType) -> str | None:
    """A hash of what a function does: of its source without comments, or of its code where there is none."""
    try:
        text = ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(function))))
    except (OSError, TypeError, SyntaxError, ValueError):  # made at a prompt; a lambda within a longer expression
        code = function.__code__
        numbers = [value for value in code.co_consts if isinstance(value, int | float)]
        text = repr((numbers, code.co_names, code.co_code.hex()))
    return f"sha256 {hashlib.sha256(text.encode()).hexdigest()}"


def _describe_batches(batches: Sequence[Any]) -> dict[str, Any]:
    """How many batches and tokens, of which sizes, and a hash of a sample of what they hold."""
    tensors = [[batch.inputs_BXiDi, batch.targets_BXoDo, *batch.extra.values()] for batch in batches]
    first, *_ = batches
    every = max(1, len(batches) // SAMPLED_BATCHES)
    return {
        "type": "batches",
        "n": len(batches),
        "tokens": sum(map(len, batches)),
        "inputs": list(first.inputs_BXiDi.shape[1:]),
        "targets": list(first.targets_BXoDo.shape[1:]),
        "extra": sorted(first.extra),
        "sha256": _hash_of([tensor for some in tensors[::every] for tensor in some]),
    }


def _hash_of(tensors: Iterable[torch.Tensor]) -> str:
    """A hash of evenly spaced numbers of some tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        if tensor.device.type == "meta":
            continue
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // SAMPLED_NUMBERS)].cpu()
        digest.update(sample.contiguous().view(torch.uint8).numpy().tobytes() if len(sample) else b"")
    return digest.hexdigest()


def _describe_path(path: Path) -> Any:
    """Files by their size and content, a folder by those within; what is not there by its name."""
    if path.is_file():
        return _describe_file(path, SAMPLED)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return {str(file.relative_to(path)): _describe_file(file, SAMPLED // len(files)) for file in files}
    return str(path)


@functools.cache
def _warn_of(kind: str) -> None:
    warn(
        f"a {kind} cannot be told from another {kind}, so that a resume with another would go unseen: give what holds "
        "it a describe() that says what it is, as a dictionary."
    )


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
    same = old == new or (old != old and new != new)  # NaN is what it is
    return [] if same else [f"{path.lstrip('.')}: {_short(old)} -> {_short(new)}"]


def paths(description: Any, path: str = "") -> set[str]:
    """Every field that `differences` could name, and what it is below of: `init`, `init.0`, `init.0.norm`."""
    items: Iterable[tuple[Any, Any]] = description.items() if isinstance(description, dict) else ()
    items = enumerate(description) if isinstance(description, list) else items
    here = {path} if path else set[str]()
    return here.union(*(paths(value, f"{path}.{key}".lstrip(".")) for key, value in items))


def _short(value: Any) -> str:
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", str(value))
