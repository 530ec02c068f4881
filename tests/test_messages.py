"""Errors and warnings: one family, one line each, and all of them on the page that says what to do."""

import ast
import importlib
import inspect
import pkgutil
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

import crosscode
from crosscode.command_line import errors_in_one_line
from crosscode.errors import BadInput, CrosscodeError, CrosscodeWarning, warn

PACKAGE = Path(crosscode.__file__).parent
PAGE = PACKAGE.parents[1] / "docs" / "when_something_goes_wrong.md"
FILES = sorted(PACKAGE.rglob("*.py"))
GAP = "…"
TOLD_LATER = {"Unusable", "BadInput", "tell_once"}  # made in one place and raised in another
REASONS = {"DamagedShard", "NoReadOut"}  # stand in a warning
OTHERS = {  # raised on purpose, and no message to a user
    "AssertionError", "StopIteration", "SystemExit", "Interrupted", "_AllHarvested", "_HeadReached",
    "NotImplementedError", "OSError",
}  # fmt: skip


def ours() -> dict[str, type[CrosscodeError]]:
    """Every error class of the package."""
    found: dict[str, type[CrosscodeError]] = {}
    for module in pkgutil.walk_packages(crosscode.__path__, "crosscode."):
        if module.name.endswith("__main__"):
            continue
        try:
            members = vars(importlib.import_module(module.name))
        except ModuleNotFoundError as absent:  # Triton, where there is no GPU
            if str(absent.name).startswith("crosscode"):
                raise
            continue
        for name, value in members.items():
            if inspect.isclass(value) and issubclass(value, CrosscodeError):
                found[name] = value
    return found


def called(node: ast.expr) -> str:
    """The name of what is called."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def text_of(node: ast.expr) -> str:
    """A message as it is written, with a gap for each part that is filled in."""
    match node:
        case ast.Constant(value=str(text)):
            return re.sub(r"%[sdr]", GAP, text)
        case ast.JoinedStr(values=parts):
            return "".join(text_of(part) for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left) + text_of(right)
    return GAP


def messages() -> Iterator[tuple[str, str]]:
    """(file and line, message with gaps) of every error and warning of the package."""
    names = ours()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            call = node.exc if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) else node
            if not isinstance(call, ast.Call) or not call.args:
                continue
            raised = (isinstance(node, ast.Raise) and called(call.func) in names) or called(call.func) in TOLD_LATER
            logged = called(call.func) == "warning" and called(getattr(call.func, "value", call)) == "log"
            warned = logged or called(call.func) == "warn"
            if (raised and called(call.func) not in REASONS) or warned:
                text = re.sub(rf"{GAP}+", GAP, text_of(call.args[0]))
                yield f"{file.relative_to(PACKAGE)}:{node.lineno}", text


def entries() -> list[str]:
    """The messages on the page: the code at the beginning of each item of its lists."""
    return re.findall(r"^- `([^`]+)`:? ", PAGE.read_text(), flags=re.MULTILINE)


def told(message: str, entry: str) -> bool:
    """Whether an entry is about a message: its words in its order, whatever fills the gaps."""
    pattern = ".*".join(re.escape(part.strip()) for part in entry.split(GAP))
    return re.search(pattern, message) is not None


MESSAGES = [(place, text) for place, text in messages() if len(re.sub(r"\W", "", text)) >= 8]  # else it is passed on


def test_every_message_is_on_the_page() -> None:
    """Each error and warning of the package has an entry of `docs/when_something_goes_wrong.md`."""
    known = entries()
    missing = [f"- `{text}`: what to do   (raised in {place})" for place, text in MESSAGES if not any_of(known, text)]
    assert not missing, f"add to the fitting part of {PAGE.name}, each with its cure:\n" + "\n".join(missing)


def any_of(known: list[str], message: str) -> bool:
    return any(told(message, entry) for entry in known)


def test_nothing_else_is_on_the_page() -> None:
    """An entry that no message has any more is taken off; one that would stand for any message says nothing."""
    stale = [entry for entry in entries() if not any(told(text, entry) for _, text in MESSAGES)]
    assert not stale, f"take off {PAGE.name}, or correct: {stale}"
    vague = [entry for entry in entries() if len(re.sub(r"\W", "", entry)) < 4]
    assert not vague


def test_every_message_has_one_entry_that_is_its_own() -> None:
    """Entries are found by their first words: no two are the same."""
    assert len(entries()) == len(set(entries())) > 150


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_what_is_raised_is_of_the_family(file: Path) -> None:
    """Users catch `CrosscodeError`: nothing else that is raised on purpose reaches them."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            name = called(node.exc.func)
            assert name in ours() or name in OTHERS, f"line {node.lineno} raises {name}"


@pytest.mark.parametrize("name", sorted(ours()))
def test_an_error_is_one_line(name: str) -> None:
    """Whatever it quotes: no line breaks, no page of text; bad input is a ValueError too."""
    error = ours()[name]("first\nsecond " + "x" * 100_000 + " the end.")
    assert isinstance(error, CrosscodeError)
    assert "\n" not in str(error)
    assert len(str(error)) < 1100
    assert str(error).endswith("the end.")
    assert issubclass(BadInput, ValueError)


def test_a_warning_is_one_line() -> None:
    """Of its own category, which a user can turn off; a command shows it without its place in the source."""
    with pytest.warns(CrosscodeWarning, match="^first second$"):
        warn("first\nsecond")
    usual = warnings.formatwarning
    with errors_in_one_line():
        assert warnings.formatwarning("said", CrosscodeWarning, __file__, 1) == "warning: said\n"
        assert warnings.formatwarning("said", UserWarning, __file__, 1) == usual("said", UserWarning, __file__, 1)
    assert warnings.formatwarning is usual
