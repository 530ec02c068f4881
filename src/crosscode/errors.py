"""Bad input gets one clear line: which argument, what it was, what is allowed, the close match."""

import difflib
import warnings
from collections.abc import Iterable

DAMAGE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)
"""What working with the content of a damaged file may raise; brackets without end: a `RecursionError`, of the last."""
LONGEST = 1000  # characters of an error's text; what is quoted may be of any length


class CrosscodeError(Exception):
    """Every error that crosscode raises on purpose; its text is one line meant for the user."""

    def __init__(self, text: str) -> None:
        line = " ".join(text.splitlines())
        super().__init__(line if len(line) <= LONGEST else f"{line[: LONGEST * 3 // 4]} … {line[-LONGEST // 5 :]}")


class BadInput(CrosscodeError, ValueError):
    """An argument that cannot work, found before any expensive work starts."""


class NumericalError(CrosscodeError):
    """An activation, loss, penalty, gradient or weight is NaN or infinite; nothing was stepped or saved."""


class CrosscodeWarning(UserWarning):
    """Every warning of crosscode: something was lost or will differ, and the run goes on; one line."""


def warn(text: str) -> None:
    """Warn whoever called the caller."""
    warnings.warn(CrosscodeWarning(" ".join(text.splitlines())), stacklevel=3)


def close_match(name: str, allowed: Iterable[str], most: int = 3) -> str:
    """ " Did you mean …?" for a mistyped name, or what is allowed when nothing is close."""
    allowed = sorted(set(allowed))
    matches = difflib.get_close_matches(name, allowed, n=most, cutoff=0.5)
    if matches:
        return f" Did you mean {', '.join(map(repr, matches))}?"
    shown = ", ".join(map(repr, allowed[:12]))
    return f" Known: {shown}{' …' if len(allowed) > 12 else ''}."


def first_line(error: BaseException) -> str:
    """What an error says, or else its kind, without the page that may follow."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
