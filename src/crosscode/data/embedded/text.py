"""Plain text that every user already has: docstrings of the standard library and of our dependencies.

The files are parsed with `ast`, never imported, and nothing of them is stored: the text is a function of
the installed versions alone.
"""

import ast
import functools
import gc
import hashlib
import importlib.util
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from crosscode.errors import BadInput, close_match

Split = Literal["train", "held_out"]
SPLITS = ("train", "held_out")

# All of them come with crosscode: torch brings networkx, datasets brings pandas. Their docstrings are long
# and quick to parse; torch and sympy have as many, in files that take three times as long.
PACKAGES = ("numpy", "pandas", "matplotlib", "networkx")
SKIPPED_FOLDERS = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idlelib",
    "turtledemo",
    "lib2to3",
    "testing",
}

HELD_OUT_PERCENT = 7
SHORTEST, LONGEST = 200, 600  # characters of a document; the longest is about 170 tokens


def stable_hash(text: str) -> int:
    """64 bits of SHA-256: the same on every machine and in every process, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def check_split(split: str) -> None:
    if split not in SPLITS:
        raise BadInput(f"split={split!r} is not a split of the embedded text.{close_match(split, SPLITS)}")


def passages(split: Split) -> Iterator[str]:
    """Passages of prose of 200 to 600 characters, each once, in a fixed order that mixes the packages.

    Files are parsed as the stream reaches them, and once per process. A passage is held out when a stable
    hash of its text says so (7 %), whatever else is installed.
    """
    check_split(split)
    seen = set()
    for file in files():
        for passage in passages_of(file):
            key = stable_hash(passage)
            if key not in seen and (key % 100 < HELD_OUT_PERCENT) == (split == "held_out"):
                seen.add(key)
                yield passage


@functools.cache
def files() -> tuple[Path, ...]:
    """Source files of the standard library and of `PACKAGES`, ordered by a hash of their names."""
    roots = {"stdlib": Path(sysconfig.get_paths()["stdlib"])}
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)  # finds a top-level package without importing it
        if spec is not None and spec.origin is not None:
            roots[package] = Path(spec.origin).parent
    named = [
        (stable_hash(f"{name}/{file.relative_to(root).as_posix()}"), file)
        for name, root in roots.items()
        for file in root.rglob("*.py")
        if not SKIPPED_FOLDERS.intersection(file.relative_to(root).parts)
    ]
    return tuple(file for _, file in sorted(named))


@functools.cache
def passages_of(file: Path) -> tuple[str, ...]:
    """The passages of one file's docstrings; none where the file cannot be read or parsed."""
    source = file.read_bytes()
    if b'"""' not in source:
        return ()
    collecting = gc.isenabled()
    gc.disable()  # a tree of a million nodes is no garbage: a third of the time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the code of others
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ()
    finally:
        if collecting:
            gc.enable()
    return tuple(passage for docstring in docstrings(tree) for passage in split_into_passages(docstring))


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Docstrings of the module, its classes and their functions; bodies of functions are not searched."""
    waiting: list[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef] = [tree]
    while waiting:
        node = waiting.pop()
        docstring = ast.get_docstring(node)
        if docstring:
            yield docstring
        if isinstance(node, ast.Module | ast.ClassDef):
            waiting.extend(
                child for child in node.body if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            )


def split_into_passages(docstring: str) -> Iterator[str]:
    """Paragraphs of prose, lines unwrapped, joined until a passage is long enough."""
    passage = ""
    docstring = re.sub(r"^.*\n[-=~^*]{3,}$", "", docstring, flags=re.MULTILINE)  # underlined headings
    for paragraph in re.split(r"\n\s*\n", docstring):
        paragraph = " ".join(paragraph.split())
        if not is_prose(paragraph):
            continue
        if passage and len(passage) + 2 + len(paragraph) > LONGEST:
            if len(passage) >= SHORTEST:
                yield passage
            passage = ""
        passage = f"{passage}\n\n{paragraph}" if passage else paragraph
        if len(passage) > LONGEST:  # one long paragraph: keep its first sentences
            passage = passage[: passage.rfind(". ", 0, LONGEST) + 1]
    if len(passage) >= SHORTEST:
        yield passage


def is_prose(paragraph: str) -> bool:
    """Sentences, not doctests, tables or argument lists."""
    letters = sum(character.isalpha() or character == " " for character in paragraph)
    return (
        len(paragraph) >= 40
        and ">>>" not in paragraph
        and paragraph.isascii()
        and paragraph.endswith(".")
        and letters >= 0.9 * len(paragraph)
    )
