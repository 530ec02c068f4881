"""Checks shared by the parts: each raises `BadInput` in one line."""

import math
from collections.abc import Collection, Sequence
from typing import Any, get_args

import torch
from typing_extensions import is_protocol

from crosscode.errors import BadInput, close_match, first_line
from crosscode.protocols import missing
from crosscode.shapes import checked_dims


def number(name: str, value: float | int) -> None:
    """Something that is a number, or a line that says which argument was not."""
    if not hasattr(value, "__float__"):
        raise BadInput(f"{name}={value!r} must be a number.")


def at_least(name: str, value: float | int, least: float | int) -> None:
    """`value >= least`, or a line that says which argument was too small."""
    number(name, value)
    if not value >= least:
        raise BadInput(f"{name}={value} is too small: it must be at least {least}.")


def at_most(name: str, value: float | int, most: float | int, what: str) -> None:
    """`value <= most`, or a line that says which argument was too large; `what` names the bound."""
    if not value <= most:
        raise BadInput(f"{name}={value} is too large: it must be at most {what}={most}.")


def positive(name: str, value: float | int) -> None:
    """`value > 0` and finite, or a line that says which argument was not."""
    number(name, value)
    if not 0 < value < math.inf:
        raise BadInput(f"{name}={value} must be greater than 0{' and finite' if value == math.inf else ''}.")


def share(name: str, value: float | int) -> None:
    """A part of a whole, 0 to 1, or a line that says which argument was not."""
    number(name, value)
    if not 0 <= value <= 1:
        raise BadInput(f"{name}={value} must lie between 0 and 1: it is a part of the whole.")


def count(name: str, value: int, least: int = 1) -> None:
    """A whole number of at least `least`, or a line that says which argument was not."""
    if not hasattr(value, "__index__"):
        raise BadInput(f"{name}={value!r} must be a whole number.")
    at_least(name, value, least)


def one_of(name: str, value: object, choices: Any) -> None:
    """One of a `Literal`'s values, or of a collection of names, or a line that lists them with the close match."""
    allowed: Collection[str] = get_args(choices) or choices
    if value not in allowed:
        close = close_match(str(value), allowed)
        shown = ", ".join(map(repr, allowed))
        raise BadInput(f"{name}={value!r} must be one of {shown}.{close if close.startswith(' Did') else ''}")


def instance(name: str, value: object, kind: Any, what: str) -> None:
    """An object of a class, or of a protocol, or a line that says what was given; `what` names the kind.

    Of a protocol the line also names the members that are missing.
    """
    if isinstance(value, type):
        raise BadInput(f"{name}={value.__name__} is a class: hand over an object of it, such as {value.__name__}(…).")
    if not isinstance(value, kind):
        lacking = f": it has no {', '.join(missing(value, kind))}" if is_protocol(kind) else ""
        raise BadInput(f"{name} must be {what}, got {shown(value)}{lacking}.")


def functions(name: str, values: object) -> None:
    """A list or tuple of functions or of objects that are called, or a line that says which entry is none."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise BadInput(f"{name} must be a list or a tuple, got {shown(values)}.")
    for i, value in enumerate(values):
        function(f"{name}[{i}]", value)


def function(name: str, value: object) -> None:
    """Something that can be called and is no class, or a line that says what it was."""
    instance(name, value, object, "")
    if not callable(value):
        raise BadInput(f"{name} must be a function, or an object that is called like one, got {shown(value)}.")


def shown(value: object) -> str:
    """A value as messages quote it; a long one by its kind."""
    text = repr(value)
    return f"a {type(value).__name__}" if len(text) > 60 or "\n" in text else text


CALLED_OTHERWISE = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "hip": "cuda", "metal": "mps", "intel": "xpu"}


def usable_device(device: str | torch.device) -> torch.device:
    """The device of that name, or a line that says why this torch cannot compute on it, and what it can."""
    why: str | None
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        why = _no_device(str(device))
    else:
        why = _unusable(found)
        if why is None:
            return torch.device("cpu") if found.type == "cpu" else found
    raise BadInput(f"device {str(device)!r} is not available here: {why}. Usable: {', '.join(_usable())}.")


def _no_device(name: str) -> str:
    """Why a name is none of a device."""
    kind, colon, number = name.partition(":")
    known = ("cpu", "cuda", "mps", "xpu")
    meant = CALLED_OTHERWISE.get(kind.lower(), kind.lower())
    if kind in known and colon:
        return f"{number!r} is no number; a device is called {kind}, or {kind}:0 by its place"
    close = f" Did you mean {meant + colon + number!r}?" if meant in known else close_match(kind.lower(), known, most=1)
    return f"torch has no device of that name.{close.removesuffix('.')}"


def _usable() -> list[str]:
    """What this torch can compute on here."""
    return ["cpu", *(f"{kind}:{i}" for kind in ("cuda", "xpu") for i in range(getattr(torch, kind).device_count()))]


def _unusable(device: torch.device) -> str | None:
    """Why nothing can be computed on a device; None if it can."""
    kind, place = device.type, device.index or 0
    build = f"this torch ({torch.__version__})"
    if kind == "meta":
        return "it holds no values"
    if kind == "cpu":
        return "there is one cpu, whatever its cores" if place else None
    if kind == "cuda" and not torch.backends.cuda.is_built():
        return f"{build} was built without CUDA; https://pytorch.org/get-started tells how to install one with it"
    if kind == "mps" and not torch.backends.mps.is_built():
        return f"{build} was built without MPS, which is for Macs with Apple's chips"
    if kind in ("cuda", "xpu"):
        maker = "NVIDIA or AMD" if kind == "cuda" else "Intel"
        n = getattr(torch, kind).device_count()
        if n == 0:
            return f"{build} finds no {maker} GPU; look at the driver, and at CUDA_VISIBLE_DEVICES"
        if place >= n:
            return f"there {'is' if n == 1 else 'are'} {n}, counted from {kind}:0"
    try:  # sums are kept in float64, which not every device has; a kernel shows whether the build is for this one
        (torch.zeros(1, dtype=torch.float64, device=device) + 1).item()
    except (RuntimeError, AssertionError, TypeError, ImportError) as error:
        what = "it has no float64, in which sums are kept" if isinstance(error, TypeError) else first_line(error)[:200]
        return what.removesuffix(".")
    return None


def usable_dtype(name: str, value: object, dtype: torch.dtype, device: torch.device) -> None:
    """A device that multiplies matrices of a dtype, or a line that says which option asked for what it lacks."""
    if device.type == "meta":
        return
    try:
        one = torch.ones(2, 2, dtype=dtype, device=device)
        torch.softmax(one @ one, -1).sum().item()
    except (RuntimeError, TypeError) as error:
        raise BadInput(
            f"{name}={value!r} cannot be computed on device {str(device)!r}: {first_line(error)[:200]}. Take float32."
        ) from error


def latents_of_coder(name: str, latents: slice, n_latents: int) -> None:
    """A range of a coder's latents, or a line that says that it is of a larger coder: Python would cut it short."""
    for bound in (latents.start, latents.stop):
        if bound is not None and not -n_latents <= bound <= n_latents:
            raise BadInput(f"{name}={latents!r} is no range of the coder's n_latents={n_latents}.")


def contiguous(name: str, latents: slice) -> None:
    """A slice without a step, or a line that says which argument was not."""
    if not isinstance(latents, slice) or latents.step not in (None, 1):
        raise BadInput(f"{name}={latents!r} must be a contiguous slice, such as slice(0, 10).")


def ascending(name: str, sizes: object) -> None:
    """Nested prefixes, each longer than the one before, or a line that names the argument."""
    prefixes = checked_dims(name, sizes)
    if not prefixes or list(prefixes) != sorted(set(prefixes)):
        raise BadInput(f"{name}={sizes!r} must be ascending numbers of latents.")


def prefixes_of_coder(name: str, prefixes: Sequence[int], n_latents: int) -> None:
    """Prefixes of a coder's latents, or a line that says that it has fewer."""
    if max(prefixes) > n_latents:
        raise BadInput(f"{name}={prefixes} exceed n_latents={n_latents}.")
