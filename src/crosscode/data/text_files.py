"""Local files as streams of documents: .parquet, .arrow, .jsonl, .json and .txt, the last three also in .gz or .zst.

No file is held in memory. A place is an offset in the uncompressed file or the number of a row: parquet and arrow are
read from its row group or batch on, an uncompressed file from its byte on, and a compressed one is decompressed from
the start, for neither format can be entered elsewhere.
"""

import bisect
import errno
import functools
import gzip
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from crosscode.data.documents import (
    LONGEST_TEXT,
    TOO_LONG,
    Documents,
    Place,
    Retrying,
    Unusable,
    as_document,
    cell,
    check_column,
    whole,
)
from crosscode.data.text_folders import kind_of
from crosscode.errors import DAMAGE, BadInput, CrosscodeError, first_line

# Of a disk or a network file system that may be well again; a file that is missing will not come.
PASSING = {errno.EIO, errno.EAGAIN, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENETDOWN, errno.EHOSTDOWN}
BROKEN = (OSError, EOFError, MemoryError, zlib.error, *DAMAGE)  # what reading a damaged file may raise
CHUNK = 1 << 16  # bytes read at once
ROWS_AT_ONCE = 1024


def open_files(files: Sequence[Path], column: str, place: Place, document: int) -> Documents:
    """Every document of the files, one file after the other; a file that is away for a moment is opened again."""
    what = f"dataset {str(files[0])!r}" if len(files) == 1 else f"dataset of {len(files)} files"
    return Retrying(lambda place: _Files(files, column, place), place, what, _is_passing, document)


@functools.lru_cache(maxsize=64)
def check_files(files: tuple[Path, ...], column: str, skip_bad_rows: bool) -> None:
    """Whether every file can be read and has the column, as far as its schema or its first row says.

    Raises:
        BadInput: naming the first that cannot.
    """
    for file in files:
        head = _Files([file], column, {}, head=True)
        try:
            first = next(head, None)
        except OSError as error:
            if not _is_passing(error):
                raise
            continue
        if isinstance(first, Unusable) and first.before and not skip_bad_rows:
            raise BadInput(first.at(head.where()))


def _is_passing(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in PASSING


class _Files(Iterator[Any]):
    """Local files, one after the other; with `head`, only what their first bytes say."""

    def __init__(self, files: Sequence[Path], column: str, place: Place, head: bool = False) -> None:
        self._files, self._column = files, column
        self._readers = HEADS if head else READERS
        self._number = whole(place, "file")
        if self._number > len(files):
            raise BadInput(f"place {dict(place)!r} is in file {self._number}, but there are {len(files)}.")
        self._start: Place = {name: value for name, value in place.items() if name != "file"}
        self._opened: Documents | None = None

    def __next__(self) -> Any:
        while self._number < len(self._files):
            file = self._files[self._number]
            try:
                if self._opened is None:
                    self._opened = self._readers[kind_of(file)](file, self._column, self._start)
                return next(self._opened)
            except StopIteration:
                self._number, self._start, self._opened = self._number + 1, {}, None
            except CrosscodeError:
                raise
            except BROKEN as error:
                if isinstance(error, OSError) and error.errno in PASSING:
                    raise
                after = "" if self._opened is None else f" after {self._opened.where()}"
                raise BadInput(f"dataset file {str(file)!r} could not be read{after}: {first_line(error)}") from error
        raise StopIteration

    def place(self) -> dict[str, Any]:
        return {"file": self._number, **(self._start if self._opened is None else self._opened.place())}

    def where(self) -> str:
        """Asked of the last document, whose file is still open."""
        file = f"dataset file {str(self._files[self._number])!r}"
        return file if self._opened is None else f"{file}, {self._opened.where()}"


def _open_bytes(file: Path, offset: int) -> Any:
    """A file's uncompressed bytes from an offset on, opened for reading."""
    opened: Any
    if file.suffix.lower() == ".gz":
        opened = gzip.GzipFile(file)
    elif file.suffix.lower() == ".zst":
        import pyarrow

        opened = io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.PythonFile(file.open("rb")), "zstd"), CHUNK)
    else:
        opened = file.open("rb")
        if offset <= os.fstat(opened.fileno()).st_size:
            opened.seek(offset)
            return opened
    left = offset
    while left and (some := opened.read(min(left, CHUNK))):
        left -= len(some)
    if left:
        raise BadInput(f"dataset file {str(file)!r} ends before byte {offset}, where reading is to go on: it was cut.")
    return opened


def _begin(file: Path) -> int:
    """Where the text of a file begins: behind a UTF-8 byte order mark.

    Raises:
        BadInput: the file is in UTF-16 or UTF-32.
    """
    with _open_bytes(file, 0) as opened:
        head = opened.read(4)
    if head.startswith(b"\xef\xbb\xbf"):
        return 3
    every_other_is_nul = [byte == 0 for byte in head] in ([True, False] * 2, [False, True] * 2)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or every_other_is_nul:
        raise BadInput(
            f"dataset file {str(file)!r} could not be read: it is in UTF-16 or UTF-32, not in UTF-8; "
            "`iconv -f UTF-16 -t UTF-8` converts it."
        )
    return 0


class _Lines(Iterator["bytes | Unusable"]):
    """A file by lines, undecoded; `place()` is where the next one begins."""

    def __init__(self, file: Path, place: Place) -> None:
        self.offset, self.number = whole(place, "offset"), whole(place, "line")
        if not self.number:
            self.offset = _begin(file)
        self._file = _open_bytes(file, max(0, self.offset - 1))
        before = self._file.read(1) if self.offset else b"\n"
        if self.number and before != b"\n" and (not before or self._file.read(1)):
            raise BadInput(f"dataset file {str(file)!r} has no line that begins at byte {self.offset}: it was changed.")

    def __next__(self) -> "bytes | Unusable":
        line: bytes = self._file.readline(LONGEST_TEXT + 1)
        if not line:
            raise StopIteration
        self.number += 1
        self.offset += len(line)
        if len(line) <= LONGEST_TEXT:
            return line
        while not line.endswith(b"\n") and (line := self._file.readline(CHUNK)):
            self.offset += len(line)
        return TOO_LONG

    def place(self) -> dict[str, Any]:
        return {"offset": self.offset, "line": self.number}

    def where(self) -> str:
        return f"line {self.number}"


def _decoded(content: bytes, offset: int) -> "str | Unusable":
    """UTF-8 as a text; `offset` is where it stands in the file."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte {offset + error.start} of the file is 0x{content[error.start]:02x}"
        return Unusable(f" is not in UTF-8: {byte}, {error.reason}")


def _row(content: "bytes | Unusable", end: int, column: str) -> Any:
    """The document in a row of JSON, which ends at a byte of the file."""
    text = content if isinstance(content, Unusable) else _decoded(content, end - len(content))
    if isinstance(text, Unusable):
        return text
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        cut = "" if text.endswith("\n") or error.pos < len(text) - 1 else ", the end of the file"
        return Unusable(f" is not JSON: {error.msg} at character {error.pos}{cut}")
    except (ValueError, RecursionError) as error:  # a number of a thousand digits, a thousand brackets
        return Unusable(f" cannot be JSON: {first_line(error)}")
    return cell(row, column)


@attrs.frozen(eq=False)
class _Reader(Iterator[Any]):
    """Documents made of something that knows its place."""

    documents: Iterator[Any]
    place: Callable[[], dict[str, Any]]
    where: Callable[[], str]

    def __next__(self) -> Any:
        return next(self.documents)


class _Paragraphs(Iterator[Any]):
    """The documents of a plain text, with blank lines between them."""

    def __init__(self, file: Path, column: str, place: Place) -> None:
        self._lines, self._first = _Lines(file, place), 0

    def __next__(self) -> Any:
        lines: list[str] = []
        size, wrong = 0, None
        for content in self._lines:
            line = _decoded(content, self._lines.offset - len(content)) if isinstance(content, bytes) else content
            if isinstance(line, str) and not line.strip():
                if size:  # the blank line behind a paragraph is all that is read ahead
                    break
                continue
            if not size:
                self._first = self._lines.number
            size += len(content) if isinstance(content, bytes) else LONGEST_TEXT + 1
            if isinstance(line, Unusable):
                wrong = wrong or attrs.evolve(line, after=f"{line.after} (line {self._lines.number})")
            elif size > LONGEST_TEXT:
                wrong, lines = wrong or TOO_LONG, []
            else:
                lines.append(line.removesuffix("\r\n") + "\n" if line.endswith("\r\n") else line)
        if not size:
            raise StopIteration
        return wrong if wrong is not None else as_document("".join(lines).strip("\n"))

    def place(self) -> dict[str, Any]:
        return self._lines.place()

    def where(self) -> str:
        return f"paragraph from line {self._first} on"


def _jsonl(file: Path, column: str, place: Place) -> Documents:
    lines = _Lines(file, place)
    filled = (line for line in lines if isinstance(line, Unusable) or line.strip())
    return _Reader((_row(line, lines.offset, column) for line in filled), lines.place, lines.where)


def _json(file: Path, column: str, place: Place) -> Documents:
    """A list of objects, or an object a line, as C4 and Dolma have it."""
    if "row" in place:
        elements = _Elements(file, place)
    elif "line" in place:
        return _jsonl(file, column, place)
    else:
        begin = _begin(file)
        with _open_bytes(file, begin) as opened:
            while (first := opened.read(1)).isspace():
                begin += 1
        if first not in (b"[", b"{", b""):
            raise BadInput(
                f"dataset file {str(file)!r} could not be read: it begins with {first!r}, and so is neither a list of "
                "objects nor an object a line."
            )
        if first != b"[":
            return _jsonl(file, column, place)
        elements = _Elements(file, {"offset": begin + 1})
    return _Reader((_row(element, elements.end, column) for element in elements), elements.place, elements.where)


class _Elements(Iterator["bytes | Unusable"]):
    """The elements of a JSON list, neither decoded nor parsed; `place()` is where the next one begins.

    Only strings and brackets are followed: an element that is no JSON ends with the comma behind it all the same.
    """

    def __init__(self, file: Path, place: Place) -> None:
        self._name, self._row = str(file), whole(place, "row")
        self._base = whole(place, "offset")  # of the chunk in the file
        self._file = _open_bytes(file, self._base)
        self._chunk, self._at = b"", 0
        self.end = self._base  # of the last element

    def __next__(self) -> "bytes | Unusable":
        element, size, depth, quoted, escaped = bytearray(), 0, 0, False, False
        while True:
            if self._at == len(self._chunk):
                self._base += len(self._chunk)
                self._chunk, self._at = self._file.read(CHUNK), 0
                if not self._chunk:
                    raise BadInput(f"dataset file {self._name!r} ends within its list, after row {self._row - 1}: cut?")
            if escaped:
                found, end = None, self._at + 1
            else:
                found = (IN_A_STRING if quoted else OUTSIDE).search(self._chunk, self._at)
                end = len(self._chunk) if found is None else found.start()
            size += end - self._at
            if size <= LONGEST_TEXT:
                element += self._chunk[self._at : end]
            self._at, escaped = end, False
            if found is None:
                continue
            mark = found[0]
            if depth == 0 and not quoted and mark in b",]":
                break
            if mark == b'"':
                quoted = not quoted
            elif mark == b"\\":
                escaped = True
            elif mark in b"{[":
                depth += 1
            elif mark in b"}]":
                depth = max(0, depth - 1)
            size += 1
            if size <= LONGEST_TEXT:
                element += mark
            self._at += 1
        self.end = self._base + self._at
        if mark == b"]" and not element.strip():  # the list's end, which stays where it is
            self._check_end()
            raise StopIteration
        if mark == b",":
            self._at += 1
        self._row += 1
        return TOO_LONG if size > LONGEST_TEXT else bytes(element)

    def _check_end(self) -> None:
        rest = self._chunk[self._at + 1 :]
        while not rest.strip() and rest:
            rest = self._file.read(CHUNK)
        if rest.strip():
            raise BadInput(f"dataset file {self._name!r} goes on behind its list, at byte {self.end + 1}: make it one.")

    def place(self) -> dict[str, Any]:
        return {"offset": self._base + self._at, "row": self._row}

    def where(self) -> str:
        return f"row {self._row - 1}"


IN_A_STRING, OUTSIDE = re.compile(rb'["\\]'), re.compile(rb'["{}\[\],]')


def _from_arrow(arrays: Iterable[Any], n_rows: int | None, file: Path, start: int) -> Documents:
    """The documents in arrays of one column, the first of which begins with row `start`."""
    row = start
    if n_rows is not None and start > n_rows:
        raise BadInput(
            f"dataset file {str(file)!r} ends after {n_rows} rows; reading is to go on with row {start}: it was cut."
        )

    def documents() -> Iterator[Any]:
        nonlocal row
        for array in arrays:
            for begin in range(0, len(array), ROWS_AT_ONCE):
                for document in _values(array.slice(begin, ROWS_AT_ONCE)):
                    row += 1
                    yield document

    return _Reader(documents(), lambda: {"row": row}, lambda: f"row {row - 1}")


def _values(array: Any) -> Iterator[Any]:
    """The documents of an Arrow array; where one is damaged or not in UTF-8, only that one is lost."""
    try:
        array.validate(full=True)
        values = array.to_pylist()
    except DAMAGE:
        values = None
    if values is not None:
        yield from map(as_document, values)
        return
    for i in range(len(array)):
        try:
            array.slice(i, 1).validate(full=True)
            document = as_document(array[i].as_py())
        except DAMAGE as error:
            document = Unusable(f" cannot be decoded: {first_line(error)}")
        yield document


def _parquet(file: Path, column: str, place: Place) -> Documents:
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetFile(file)
    check_column(column, table.schema_arrow, f"dataset file {str(file)!r}")
    start = whole(place, "row")
    ends = list(itertools.accumulate(table.metadata.row_group(g).num_rows for g in range(table.num_row_groups)))
    first = bisect.bisect_right(ends, start)  # the row group that holds it: what comes before is not read
    left_out = start - (ends[first - 1] if first else 0)
    groups = list(range(first, len(ends)))

    def arrays() -> Iterator[Any]:
        left = left_out
        with table:
            if not groups:
                return
            for rows in table.iter_batches(row_groups=groups, columns=[column], batch_size=ROWS_AT_ONCE):
                yield rows.column(0).slice(min(left, len(rows)))
                left = max(0, left - len(rows))

    return _from_arrow(arrays(), ends[-1] if ends else 0, file, start)


def _arrow(file: Path, column: str, place: Place) -> Documents:
    """A stream, as `save_to_disk` writes it, or a file with batches at known places, as Feather is."""
    import pyarrow

    mapped = pyarrow.memory_map(str(file))  # the batches before a place are passed over without being read
    if mapped.read(6) == b"ARROW1":
        reader = pyarrow.ipc.open_file(mapped)
        batches: Iterable[Any] = map(reader.get_batch, range(reader.num_record_batches))
    else:
        mapped.seek(0)
        reader = batches = pyarrow.ipc.open_stream(mapped)
    check_column(column, reader.schema, f"dataset file {str(file)!r}")
    start = whole(place, "row")

    def arrays() -> Iterator[Any]:
        left = start
        for rows in batches:
            if left < len(rows):
                yield rows.column(column).slice(left)
            left = max(0, left - len(rows))
        if left:
            raise BadInput(
                f"dataset file {str(file)!r} ends after {start - left} rows; reading is to go on with row {start}: "
                "it was cut."
            )

    return _from_arrow(arrays(), None, file, start)


READERS: Mapping[str, Callable[[Path, str, Place], Documents]] = {
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".jsonl": _jsonl,
    ".json": _json,
    ".txt": _Paragraphs,
}


def _schema_alone(reader: Callable[[Path, str, Place], Documents]) -> Callable[[Path, str, Place], Documents]:
    """Opened, and not read."""

    def head(file: Path, column: str, place: Place) -> Documents:
        opened = reader(file, column, place)
        return _Reader(iter(()), opened.place, opened.where)

    return head


HEADS = {**READERS, **{kind: _schema_alone(READERS[kind]) for kind in (".parquet", ".arrow")}}
