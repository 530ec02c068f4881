"""Every field of every part refuses what it cannot be, by its own name."""

import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import attrs
import pytest

from crosscode.activations import JumpReLU, TopK
from crosscode.errors import BadInput

FOLDERS = ("activations", "penalties", "losses", "metrics", "schedulers", "callbacks", "evaluation")
JUMPRELU = JumpReLU(6)
NEEDED: dict[str, Callable[[], Any]] = {  # what cannot be left out, by the field's name
    "n_latents": lambda: 6,
    "k": lambda: 3,
    "jumprelu": lambda: JUMPRELU,
    "activation": lambda: TopK(3),
    "shared": lambda: TopK(2),
    "exclusive": lambda: TopK(1),
    "activations": lambda: [TopK(1), TopK(2)],
    "n_shared": lambda: 2,
    "price": lambda: 0.5,
    "target": lambda: 3.0,
    "variance": lambda: 1.0,
    "prefixes": lambda: (2, 6),
    "latents": lambda: slice(0, 3),
    "value": lambda: 1.0,
    "steps": lambda: 5,
    "num_steps": lambda: 10,
    "parts": lambda: (),
    "last": lambda: lambda step: 1.0,
    "directory": lambda: "x",
    "sinks": lambda: [],
}
NOT_POSITIVE, NEGATIVE, NOT_WHOLE = (0, -1.0, math.nan), (-1, math.nan), (0, -3)
WRONG: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("c", "s", "target", "price", "variance", "threshold", "bandwidth"), NOT_POSITIVE),
    **dict.fromkeys(("value", "final"), NEGATIVE),
    "ema_start": (-1,),
    **dict.fromkeys(("k", "n_latents", "dead_after_tokens", "after_tokens"), NOT_WHOLE),
    **dict.fromkeys(("every", "keep", "keep_every", "samples_every"), NOT_WHOLE),
    **dict.fromkeys(("n_shared", "model", "other", "steps", "num_steps", "warmup_steps", "decay_steps"), (-1,)),
    **dict.fromkeys(("norm", "parametrisation", "reduction"), ("nonsense", None)),
    **dict.fromkeys(("relative_norm", "nu_error", "nu_recon"), (-0.1, 1.1, math.nan)),
    "latents": (slice(0, 6, 2),),
    "ema_decay": (-0.1, 1.0, math.nan),
    "start": NEGATIVE,
    **dict.fromkeys(("jumprelu", "activation", "shared", "exclusive"), (None, JumpReLU)),
    "activations": ([], [TopK]),
    "prefixes": ((), (3, 2), (2, 2), (0, 2)),
}
EXEMPT = {
    ("SharedDecoder", "n_shared"),
    ("ProgressBar", "every"),  # of a bar that is drawn anyway
}


def cases() -> Iterator[tuple[type, str, Any]]:
    for folder in FOLDERS:
        module = importlib.import_module(f"crosscode.{folder}")
        for name in getattr(module, "__all__", vars(module)):
            part = getattr(module, name)
            if not (isinstance(part, type) and attrs.has(part) and part.__module__.startswith(f"crosscode.{folder}")):
                continue
            fields = {field.alias: field for field in attrs.fields(part) if field.init}
            needed = [alias for alias, field in fields.items() if field.default is attrs.NOTHING]
            if all(alias in NEEDED for alias in needed):
                for alias in fields:
                    for wrong in WRONG.get(alias, ()) if (name, alias) not in EXEMPT else ():
                        yield part, alias, wrong


@pytest.mark.parametrize(("part", "name", "wrong"), cases(), ids=lambda value: getattr(value, "__name__", None))
def test_what_an_argument_cannot_be_is_refused_by_name(part: type, name: str, wrong: Any) -> None:
    """In one line that holds the argument's name."""
    needed = {f.alias: NEEDED[f.alias]() for f in attrs.fields(part) if f.init and f.default is attrs.NOTHING}
    with pytest.raises(BadInput) as refused:
        part(**{**needed, name: wrong})
    said = str(refused.value)
    assert name in said or (name == "value" and "weight or rate" in said)
    assert "\n" not in said


@pytest.mark.parametrize("part", sorted({part for part, *_ in cases()}, key=lambda part: part.__name__))
def test_what_it_can_be_is_not(part: type) -> None:
    """The same part with what it needs."""
    part(**{f.alias: NEEDED[f.alias]() for f in attrs.fields(part) if f.init and f.default is attrs.NOTHING})
