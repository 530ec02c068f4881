"""Local files as streams of documents: .parquet, .jsonl, .json and .txt, the last three also gzipped."""

import bisect
import errno
import gzip
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import attrs

from crosscode.data.documents import Counted, Documents, Place, Retrying, cell, columns
from crosscode.errors import BadInput, CrosscodeError, close_match, first_line

SUFFIXES = (".parquet", ".jsonl", ".json", ".txt")
# Of a disk or a network file system that may be well again; a file that is missing will not come.
PASSING = {errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENETDOWN, errno.EHOSTDOWN}


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
    counted = Counted(rows, place)
    return _Reader((cell(row, column, repr(str(file))) for row in counted), counted.place)


def _parquet(file: Path, column: str, place: Place) -> Documents:
    import pyarrow.parquet

    row: int = place.get("row", 0)

    def values() -> Iterator[Any]:
        nonlocal row
        with pyarrow.parquet.ParquetFile(file) as table:
            names = table.schema_arrow.names
            if column not in names:
                raise BadInput(f"text_column {column!r} is not in {str(file)!r}.{columns(column, names)}")
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


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f" Nor does its folder {str(path.parent)!r}."
    close = close_match(path.name, [file.name for file in path.parent.iterdir()])
    return close if close.startswith(" Did") else ""
