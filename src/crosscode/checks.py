"""Checks shared by the parts: each raises `BadInput` in one line."""

from crosscode.errors import BadInput


def at_least(name: str, value: float | int, least: float | int) -> None:
    """`value >= least`, or a line that says which argument was too small."""
    if not value >= least:
        raise BadInput(f"{name}={value} is too small: it must be at least {least}.")


def at_most(name: str, value: float | int, most: float | int, what: str) -> None:
    """`value <= most`, or a line that says which argument was too large; `what` names the bound."""
    if not value <= most:
        raise BadInput(f"{name}={value} is too large: it must be at most {what}={most}.")


def positive(name: str, value: float | int) -> None:
    """`value > 0`, or a line that says which argument was not."""
    if not value > 0:
        raise BadInput(f"{name}={value} must be greater than 0.")
