"""Where text comes from: the embedded text, local files, the Hugging Face hub, or a Python iterable.

A source is a stream of documents, each a text or a list of token ids, that can be opened at any place it has told.
"""

import hashlib
import itertools
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import attrs

from crosscode.errors import BadInput, CrosscodeError, close_match, first_line
from crosscode.protocols import Structural

TRIES = 5  # in a row, without a document between them
WAIT = 1.0  # seconds before the first new try; doubles with each
# What a program of the user's raises by mistake, and will raise again.
MISTAKES = (CrosscodeError, TypeError, AttributeError, NameError, LookupError, AssertionError)

Place = Mapping[str, Any]
"""Where a stream stands, as plain data; empty at its beginning."""

log = logging.getLogger(__name__)


@runtime_checkable
class Documents(Protocol, metaclass=Structural):
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
    return Retrying(lambda place: Counted(rows(), place), place, what, lambda error: not isinstance(error, MISTAKES))


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


class Counted(Iterator[Any]):
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


def cell(row: Any, column: str, where: str) -> Any:
    """The text (or list of ids) of a row, unchecked; an absent text is an empty one."""
    if not isinstance(row, Mapping):
        raise BadInput(f"{where}: each row must be an object with a key {column!r}, not {type(row).__name__}.")
    if column not in row:
        raise BadInput(f"text_column {column!r} is not in {where}.{columns(column, row)}")
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


def columns(column: str, names: Iterable[str]) -> str:
    """The columns there are, and the one that was probably meant, for an error."""
    names = list(names)
    close = close_match(column, names)
    return (close if close.startswith(" Did") else "") + f" Columns: {', '.join(map(repr, names))}."
