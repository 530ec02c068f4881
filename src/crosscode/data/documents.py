"""Where text comes from: the embedded text, local files, the Hugging Face hub, or a Python iterable.

A source is a stream of documents, each a text or a list of token ids, that can be opened at any place it has told.
"""

import bisect
import errno
import gzip
import hashlib
import itertools
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO, cast, runtime_checkable

import attrs

from crosscode.errors import BadInput, CrosscodeError, close_match, first_line

SUFFIXES = (".parquet", ".jsonl", ".json", ".txt")
TRIES = 5  # in a row, without a document between them
WAIT = 1.0  # seconds before the first new try; doubles with each
# Of a disk or a network file system that may be well again; a file that is missing will not come.
PASSING = {errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENETDOWN, errno.EHOSTDOWN}
# What a program of the user's raises by mistake, and will raise again.
MISTAKES = (CrosscodeError, TypeError, AttributeError, NameError, LookupError, AssertionError)

Place = Mapping[str, Any]
"""Where a stream stands, as plain data; empty at its beginning."""

log = logging.getLogger(__name__)


@runtime_checkable
class Documents(Protocol):
    """A stream of documents that says where it stands."""

    def __iter__(self) -> Iterator[Any]: ...
    def __next__(self) -> Any: ...

    def place(self) -> dict[str, Any]:
        """Where the next document begins."""
        ...


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


def open_files(files: Sequence[Path], column: str, place: Place) -> Documents:
    """Every document of the files, unchecked, one file after the other."""

    def passing(error: Exception) -> bool:
        return isinstance(error, OSError) and error.errno in PASSING

    what = f"dataset {str(files[0])!r}" if len(files) == 1 else f"dataset of {len(files)} files"
    return Retrying(lambda place: _Files(files, column, place), place, what, passing)


def open_hub(hub: HubText, column: str, place: Place) -> Documents:
    """The documents of a hub data set, streamed; a stream that breaks is opened again where it broke.

    Raises:
        BadInput: there is no such data set.
        CrosscodeError: after `TRIES` tries in a row without a document.
    """
    import datasets

    opened = False

    def open_at(place: Place) -> Documents:
        nonlocal opened
        try:
            rows = datasets.load_dataset(hub.name, hub.config, split=hub.split, revision=hub.revision, streaming=True)
        except Exception as error:  # `datasets` raises a dozen unrelated types for an unknown name, config or split
            if opened:
                raise
            raise BadInput(
                f"dataset {hub.name!r} (config {hub.config!r}, split {hub.split!r}) is no local file, "
                f"and the hub did not give it: {first_line(error)}"
            ) from error
        opened = True
        return _Streamed(rows, column, f"dataset {hub.name!r}", place)

    # Network errors come as OSError, requests', httpx' and fsspec's own types.
    return Retrying(open_at, place, f"dataset {hub.name!r}", lambda error: not isinstance(error, CrosscodeError))


def open_rows(rows: Callable[[], Iterable[Any]], what: str, place: Place) -> Documents:
    """The documents of an iterable, which is told by their number alone."""
    return Retrying(lambda place: _Counted(rows(), place), place, what, lambda error: not isinstance(error, MISTAKES))


@attrs.define(eq=False)
class Retrying(Iterator[Any]):
    """A stream that is opened again where it broke, after pauses that double.

    Args:
        open_at: opens it at a place.
        start: where to begin.
        what: the source, for messages.
        passing: whether an error may be gone at the next try.
    """

    open_at: Callable[[Place], Documents]
    start: Place
    what: str
    passing: Callable[[Exception], bool]
    _documents: Documents | None = attrs.field(default=None, init=False)
    _known: Place = attrs.field(default=attrs.Factory(lambda self: self.start, takes_self=True), init=False)
    _since: int = attrs.field(default=0, init=False)  # documents read since the last place that is known
    _read: int = attrs.field(default=0, init=False)

    def __next__(self) -> Any:
        for failures in itertools.count(1):
            try:
                if self._documents is None:
                    self._documents = self.open_at(self._known)
                    for _ in itertools.islice(self._documents, self._since):
                        pass
                document = next(self._documents)
            except StopIteration:
                raise
            except Exception as error:
                if not self.passing(error):
                    raise
                where = f"broke at document {self._read}" + (" of what was left" if self.start else "")
                if failures >= TRIES:
                    raise CrosscodeError(f"{self.what} {where}, {TRIES} times in a row: {first_line(error)}") from error
                log.warning("%s %s (%s); trying again", self.what, where, first_line(error))
                time.sleep(WAIT * 2 ** (failures - 1))
                self._documents = None
            else:
                self._since += 1
                self._read += 1
                return document
        raise AssertionError("unreachable")

    def place(self) -> dict[str, Any]:
        """Where the next document begins; what was read before is never read again."""
        if self._documents is not None:
            self._known, self._since = self._documents.place(), 0
        return dict(self._known)


class _Counted(Iterator[Any]):
    """An iterable from its n-th row on; what comes before is not read where it need not be."""

    def __init__(self, rows: Iterable[Any], place: Place) -> None:
        self._row: int = place.get("row", 0)
        skip = getattr(rows, "skip", None)  # of `datasets`
        if self._row == 0:
            self._rows = iter(rows)
        elif skip is not None:
            self._rows = iter(skip(self._row))
        elif isinstance(rows, Sequence):
            self._rows = (rows[i] for i in range(self._row, len(rows)))
        else:
            self._rows = itertools.islice(rows, self._row, None)

    def __next__(self) -> Any:
        document = next(self._rows)
        self._row += 1
        return document

    def place(self) -> dict[str, Any]:
        return {"row": self._row}


class _Streamed(Iterator[Any]):
    """A streamed data set, in its own order, which it can resume by itself."""

    def __init__(self, rows: Any, column: str, what: str, place: Place) -> None:
        self._data, self._column, self._what = rows, column, what
        if place:
            rows.load_state_dict(place["hub"])
        self._rows: Iterator[Any] = iter(rows)

    def __next__(self) -> Any:
        return cell(next(self._rows), self._column, self._what)

    def place(self) -> dict[str, Any]:
        return {"hub": self._data.state_dict()}


class _Files(Iterator[Any]):
    """Local files, one after the other."""

    def __init__(self, files: Sequence[Path], column: str, place: Place) -> None:
        self._files, self._column = files, column
        self._number: int = place.get("file", 0)
        self._start = {name: value for name, value in place.items() if name != "file"}
        self._opened: Documents | None = None

    def __next__(self) -> Any:
        while self._number < len(self._files):
            file = self._files[self._number]
            try:
                if self._opened is None:
                    self._opened = READERS[kind_of(file)](file, self._column, self._start)
                return next(self._opened)
            except StopIteration:
                self._number, self._start, self._opened = self._number + 1, {}, None
            except CrosscodeError:
                raise
            except (OSError, ValueError, EOFError) as error:  # JSON, UTF-8, gzip and Arrow errors are all among these
                if isinstance(error, OSError) and error.errno in PASSING:
                    raise
                raise BadInput(f"dataset file {str(file)!r} could not be read: {first_line(error)}") from error
        raise StopIteration

    def place(self) -> dict[str, Any]:
        return {"file": self._number, **(self._start if self._opened is None else self._opened.place())}


class _Lines(Iterator[str]):
    """A text file by lines; `place()` is where the next one begins."""

    def __init__(self, file: Path, place: Place) -> None:
        opened = gzip.open if file.suffix == ".gz" else open
        self._text: TextIO = opened(file, "rt", encoding="utf-8")
        self.number: int = place.get("line", 0)
        if place.get("offset", 0):
            self._text.seek(place["offset"])

    def __next__(self) -> str:
        line = self._text.readline()  # `next` would not let the file tell where it is
        if not line:
            raise StopIteration
        self.number += 1
        return line

    def place(self) -> dict[str, Any]:
        return {"offset": self._text.tell(), "line": self.number}


@attrs.frozen(eq=False)
class _Reader(Iterator[Any]):
    """Documents made of something that knows its place."""

    documents: Iterator[Any]
    place: Callable[[], dict[str, Any]]

    def __next__(self) -> Any:
        return next(self.documents)


def _paragraphs(file: Path, column: str, place: Place) -> Documents:
    lines = _Lines(file, place)
    groups = itertools.groupby(lines, key=lambda line: bool(line.strip()))
    # A paragraph ends at the blank line behind it, which is all that is read ahead.
    return _Reader(("".join(paragraph).strip("\n") for filled, paragraph in groups if filled), lines.place)


def _jsonl(file: Path, column: str, place: Place) -> Documents:
    lines = _Lines(file, place)

    def rows() -> Iterator[Any]:
        for line in lines:
            if line.strip():
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise BadInput(f"dataset file {str(file)!r}, line {lines.number} is not JSON: {error}") from error
                yield cell(row, column, f"{str(file)!r}, line {lines.number}")

    return _Reader(rows(), lines.place)


def _json(file: Path, column: str, place: Place) -> Documents:
    rows = json.loads("".join(_Lines(file, {})))
    if not isinstance(rows, list):
        raise BadInput(f"dataset file {str(file)!r} must hold a list of objects, not {type(rows).__name__}.")
    counted = _Counted(rows, place)
    return _Reader((cell(row, column, repr(str(file))) for row in counted), counted.place)


def _parquet(file: Path, column: str, place: Place) -> Documents:
    import pyarrow.parquet

    row: int = place.get("row", 0)

    def values() -> Iterator[Any]:
        nonlocal row
        with pyarrow.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if column not in names:
                raise BadInput(f"text_column {column!r} is not in {str(file)!r}.{_columns(column, names)}")
            ends = list(itertools.accumulate(table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)))
            first = bisect.bisect_right(ends, row)  # the row group that holds it: what comes before is not read
            left_out = row - (ends[first - 1] if first else 0)
            groups = list(range(first, len(ends)))
            for rows in table.iter_batches(row_groups=groups, columns=[column], batch_size=1024) if groups else ():
                for value in rows.column(0).to_pylist()[left_out:]:
                    row += 1
                    yield "" if value is None else value
                left_out = max(0, left_out - len(rows))

    return _Reader(values(), lambda: {"row": row})


READERS: Mapping[str, Callable[[Path, str, Place], Documents]] = {
    ".parquet": _parquet,
    ".jsonl": _jsonl,
    ".json": _json,
    ".txt": _paragraphs,
}


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
