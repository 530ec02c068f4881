"""Where text comes from: the embedded text, local files, the Hugging Face hub, or a Python iterable.

A source becomes a function that opens a fresh stream of documents, each a text or a list of token ids.
"""

import gzip
import hashlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, cast

import attrs

from crosscode.errors import BadInput, CrosscodeError, close_match, first_line

SUFFIXES = (".parquet", ".jsonl", ".json", ".txt")
HUB_TRIES = 5  # in a row, without a document between them
HUB_WAIT = 1.0  # seconds before the first new try; doubles with each

log = logging.getLogger(__name__)


@attrs.frozen
class HubText:
    """A data set on the Hugging Face hub, streamed in its own order."""

    name: str
    config: str | None
    split: str
    revision: str | None


def files_of(path: Path) -> tuple[Path, ...]:
    """The text files that a path stands for, sorted; folders are searched to any depth."""
    if path.is_dir():
        files = tuple(sorted(file for file in path.rglob("*") if file.is_file() and kind_of(file) in SUFFIXES))
        if not files:
            raise BadInput(f"dataset folder {str(path)!r} holds no {', '.join(SUFFIXES)} file.")
        return files
    if not path.is_file():
        raise BadInput(f"dataset file {str(path)!r} does not exist.{_neighbours(path)}")
    if kind_of(path) not in SUFFIXES:
        raise BadInput(f"dataset file {str(path)!r}: the suffix must be one of {', '.join(SUFFIXES)} (or that + .gz).")
    return (path,)


def kind_of(file: Path) -> str:
    """`.jsonl` for `a.jsonl` and for `a.jsonl.gz`."""
    return Path(file.stem).suffix if file.suffix == ".gz" else file.suffix


def looks_local(source: str) -> bool:
    """Whether a name is meant as a path: it exists, begins like one, or ends in a suffix that we read."""
    path = Path(source).expanduser()
    return path.exists() or source.startswith((".", "/", "~")) or kind_of(path) in SUFFIXES


def read_files(files: Sequence[Path], column: str) -> Iterator[Any]:
    """Every document of the files, unchecked, one file after the other."""
    readers = {".parquet": _parquet, ".jsonl": _jsonl, ".json": _json, ".txt": _paragraphs}
    for file in files:
        try:
            yield from readers[kind_of(file)](file, column)
        except CrosscodeError:
            raise
        except (OSError, ValueError, EOFError) as error:  # JSON, UTF-8, gzip and Arrow errors are all among these
            raise BadInput(f"dataset file {str(file)!r} could not be read: {first_line(error)}") from error


def read_hub(hub: HubText, column: str) -> Iterator[Any]:
    """The documents of a hub data set, streamed; a stream that breaks is opened again where it broke.

    Raises:
        CrosscodeError: after `HUB_TRIES` tries in a row without a document.
    """
    import datasets

    def open_at(n: int) -> Iterator[Any]:
        rows = datasets.load_dataset(hub.name, hub.config, split=hub.split, revision=hub.revision, streaming=True)
        return iter(rows.skip(n) if n else rows)

    try:
        rows = open_at(0)
    except Exception as error:  # `datasets` raises a dozen unrelated types for an unknown name, config or split
        reason = first_line(error)
        raise BadInput(
            f"dataset {hub.name!r} (config {hub.config!r}, split {hub.split!r}) is no local file, "
            f"and the hub did not give it: {reason}"
        ) from error
    for row in retrying(open_at, rows, f"dataset {hub.name!r}"):
        yield cell(row, column, f"dataset {hub.name!r}")


def retrying(
    open_at: Callable[[int], Iterator[Any]], rows: Iterator[Any], what: str, wait: float = HUB_WAIT
) -> Iterator[Any]:
    """The rows, opened again at the row where a stream broke, with pauses that double."""
    n, failures = 0, 0
    while True:
        try:
            for row in rows:
                yield row
                n, failures = n + 1, 0
            return
        except Exception as error:  # network errors come as OSError, requests', httpx' and fsspec's own types
            failures += 1
            if failures >= HUB_TRIES:
                raise CrosscodeError(f"{what} broke at document {n}, {HUB_TRIES} times in a row: {error}") from error
            log.warning("%s broke at document %d (%s); trying again", what, n, error)
            time.sleep(wait * 2 ** (failures - 1))
            rows = _reopen(open_at, n)


def _reopen(open_at: Callable[[int], Iterator[Any]], n: int) -> Iterator[Any]:
    # A generator, so that an error of opening is raised where the rows are read, inside the try.
    yield from open_at(n)


def cell(row: Any, column: str, where: str) -> Any:
    """The text (or list of ids) of a row, unchecked; an absent text is an empty one."""
    if not isinstance(row, Mapping):
        raise BadInput(f"{where}: each row must be an object with a key {column!r}, not {type(row).__name__}.")
    if column not in row:
        raise BadInput(f"text_column {column!r} is not in {where}.{_columns(column, row)}")
    return "" if row[column] is None else row[column]


def fingerprint(source: tuple[Path, ...] | HubText | Iterable[Any]) -> dict[str, Any]:
    """What identifies a source: contents of files, name and revision on the hub, or the first documents."""
    if isinstance(source, HubText):
        return attrs.asdict(source)
    if isinstance(source, tuple) and source and isinstance(source[0], Path):
        return {"files": [hash_file(cast(Path, file)) for file in source]}
    first = hashlib.sha256(repr(list(itertools.islice(source, 1000))).encode())
    return {"first_documents": first.hexdigest()}


def hash_file(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _open(file: Path) -> TextIOWrapper:
    if file.suffix == ".gz":
        return TextIOWrapper(gzip.open(file), encoding="utf-8")
    return file.open(encoding="utf-8")


def _paragraphs(file: Path, column: str) -> Iterator[str]:
    with _open(file) as lines:
        for filled, paragraph in itertools.groupby(lines, key=lambda line: bool(line.strip())):
            if filled:
                yield "".join(paragraph).strip("\n")


def _jsonl(file: Path, column: str) -> Iterator[Any]:
    with _open(file) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise BadInput(f"dataset file {str(file)!r}, line {number} is not JSON: {error}") from error
                yield cell(row, column, f"{str(file)!r}, line {number}")


def _json(file: Path, column: str) -> Iterator[Any]:
    with _open(file) as opened:
        rows = json.load(opened)
    if not isinstance(rows, list):
        raise BadInput(f"dataset file {str(file)!r} must hold a list of objects, not {type(rows).__name__}.")
    for row in rows:
        yield cell(row, column, repr(str(file)))


def _parquet(file: Path, column: str) -> Iterator[Any]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as table:
        names = table.schema_arrow.names
        if column not in names:
            raise BadInput(f"text_column {column!r} is not in {str(file)!r}.{_columns(column, names)}")
        for rows in table.iter_batches(columns=[column], batch_size=1024):
            for value in rows.column(0).to_pylist():
                yield "" if value is None else value


def _columns(column: str, names: Iterable[str]) -> str:
    """The columns there are, and the one that was probably meant."""
    names = list(names)
    close = close_match(column, names)
    return (close if close.startswith(" Did") else "") + f" Columns: {', '.join(map(repr, names))}."


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f" Nor does its folder {str(path.parent)!r}."
    close = close_match(path.name, [file.name for file in path.parent.iterdir()])
    return close if close.startswith(" Did") else ""
