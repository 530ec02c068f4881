"""Where text comes from: the embedded text, local files, the Hugging Face hub, or a Python iterable.

A source is a stream of documents, each a text or a list of token ids, that can be opened at any place it has told.
What a row holds that is neither comes as `Unusable`, so that whoever reads can name it, or leave it out and read on.
"""

import ast
import functools
import hashlib
import itertools
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, cast, runtime_checkable

import attrs

from crosscode.errors import DAMAGE, BadInput, CrosscodeError, close_match, first_line
from crosscode.protocols import Structural

TRIES = 5  # in a row, without a document between them
WAIT = 1.0  # seconds before the first new try; doubles with each
# What a program of the user's raises by mistake, and will raise again.
MISTAKES = (CrosscodeError, TypeError, AttributeError, NameError, LookupError, AssertionError)

Place = Mapping[str, Any]
"""Where a stream stands, as plain data; empty at its beginning."""

log = logging.getLogger(__name__)


@attrs.frozen
class Unusable:
    """A row that is no document, and why; the line names the row between its two halves."""

    after: str
    before: str = ""

    def at(self, where: str) -> str:
        """The whole line, for the row that `where` names."""
        return f"{self.before}{where}{self.after}"


@runtime_checkable
class Documents(Protocol, metaclass=Structural):
    """A stream of documents that says where it stands."""

    def __iter__(self) -> Iterator[Any]: ...
    def __next__(self) -> Any: ...

    def place(self) -> dict[str, Any]:
        """Where the next document begins."""
        ...

    def where(self) -> str:
        """Which row the last document was, for messages: lines count from 1, rows and documents from 0."""
        ...


@attrs.frozen
class HubText:
    """A data set on the Hugging Face hub, streamed in its own order; no split is its `train`."""

    name: str
    config: str | None
    split: str | None
    revision: str | None


def open_hub(hub: HubText, column: str, place: Place, document: int) -> Documents:
    """The documents of a hub data set, streamed; a stream that breaks is opened again where it broke.

    Raises:
        BadInput: there is no such data set, configuration, split or column.
        CrosscodeError: after `TRIES` tries in a row without a document.
    """
    import datasets

    opened = False

    def open_at(place: Place) -> Documents:
        nonlocal opened
        try:
            rows = datasets.load_dataset(
                hub.name, hub.config, split=hub.split or "train", revision=hub.revision, streaming=True
            )
        except Exception as error:  # `datasets` raises a dozen unrelated types for an unknown name, config or split
            if opened:
                raise
            _refuse(hub, error)
        opened = True
        return _Streamed(rows, column, f"dataset {hub.name!r}", place)

    # Network errors come as OSError, requests', httpx' and fsspec's own types.
    passing = lambda error: not isinstance(error, CrosscodeError)
    return Retrying(open_at, place, f"dataset {hub.name!r}", passing, document)


def _refuse(hub: HubText, error: Exception) -> NoReturn:
    """Say why the hub did not give a data set; if a configuration or a split is the reason, which there are."""
    listed = re.search(r"(configs?|Available|splits)\W*: (\[[^\]]*\])", str(error), flags=re.IGNORECASE)
    try:
        known = [str(name) for name in ast.literal_eval(listed[2])] if listed else []
    except (ValueError, SyntaxError):
        known = []
    what = f"dataset {hub.name!r}"
    if known and "config" in str(error).lower():
        no_config(hub.config, known, what)
    if known and "split" in str(error).lower():
        _no_split(hub.split, known, what)
    parts = {"config": hub.config, "split": hub.split or "train", "revision": hub.revision}
    given = ", ".join(f"{name} {value!r}" for name, value in parts.items() if value is not None)
    raise BadInput(f"{what} ({given}) is no local file, and the hub did not give it: {first_line(error)}") from error


def no_config(config: str | None, known: Iterable[str], what: str) -> NoReturn:
    """Refuse a configuration that is not there, or not said."""
    if config is None:
        raise BadInput(f"{what} has several configurations: name one with --dataset-config.{close_match('', known)}")
    raise BadInput(f"dataset_config={config!r} is not a configuration of {what}.{close_match(config, known)}")


def chosen_split(split: str | None, known: Sequence[str], what: str) -> str:
    """The split that is asked for; `train`, or the only one, where none is."""
    if split is None:
        split = known[0] if len(known) == 1 else "train"
        if split in known:
            return split
        _no_split(None, known, what)
    if split not in known:
        _no_split(split, known, what)
    return split


def _no_split(split: str | None, known: Iterable[str], what: str) -> NoReturn:
    if split is None:
        raise BadInput(f"{what} has no split 'train': name one with --dataset-split.{close_match('', known)}")
    raise BadInput(f"dataset_split={split!r} is not a split of {what}.{close_match(split, known)}")


@functools.lru_cache(maxsize=1024)
def tell_once(line: str) -> None:
    """Log a warning; the same text is read for several purposes, and is told of once."""
    log.warning(line)


def without_parts(what: str, config: str | None, split: str | None, revision: str | None) -> None:
    """Refuse a configuration, split or revision of what has none."""
    for name, value in {"config": config, "split": split, "revision": revision}.items():
        if value is not None:
            raise BadInput(f"dataset_{name}={value!r}: {what} has no {name}s; leave --dataset-{name} out.")


def rows_of(
    source: Any, column: str, what: str, config: str | None, split: str | None, revision: str | None
) -> Iterable[Any]:
    """What was handed in, as something that gives documents or rows whenever it is iterated.

    Raises:
        BadInput: iterated it gives no rows; a column that is no text; a part of what has none.
    """
    if isinstance(source, Mapping) and source and all(hasattr(rows, "column_names") for rows in source.values()):
        without_parts(what, config, None, revision)
        rows: Iterable[Any] = narrowed(source[chosen_split(split, list(source), what)], column, what)
        return rows
    without_parts(what, config, split, revision)
    if isinstance(source, Mapping) and any(value is not None for value in source.values()):
        raise BadInput(f"{what} is a mapping, whose keys would be read: hand over its texts, or a list of rows.")
    if any(hasattr(source, name) for name in ("itertuples", "iter_rows", "to_batches")):  # pandas, polars, pyarrow
        raise BadInput(f"{what} is a table, whose columns would be read: hand over the column of the text as a list.")
    if isinstance(source, bytes | bytearray) or not (hasattr(source, "__iter__") or hasattr(source, "__getitem__")):
        raise BadInput(f"{what} is no iterable of texts: name a file or data set, or hand over a list.")
    if isinstance(source, Iterator):
        raise BadInput(
            f"{what} is an iterator, which can be read only once: hand in a list, or an object whose __iter__ starts "
            "anew."
        )
    rows = narrowed(source, column, what)
    return rows


def narrowed(rows: Any, column: str, what: str) -> Any:
    """Rows of `datasets` with the one column that is read: others may hold images, which would be decoded."""
    features = getattr(rows, "features", None)
    if features is None or not hasattr(rows, "select_columns"):
        return rows
    check_column(column, features.arrow_schema, what)
    return rows.select_columns([column])


def open_rows(rows: Callable[[], Iterable[Any]], column: str, what: str, place: Place, document: int) -> Documents:
    """The documents of an iterable, which is told by their number alone."""
    return Retrying(
        lambda place: Counted(rows(), column, what, place),
        place,
        what,
        lambda error: not isinstance(error, MISTAKES),
        document,
    )


@attrs.define(eq=False)
class Retrying(Iterator[Any]):
    """A stream that is opened again where it broke, after pauses that double.

    Args:
        open_at: opens it at a place.
        start: where to begin.
        what: the source, for messages.
        passing: whether an error may be gone at the next try.
        document: the number of the first document, for messages.
    """

    open_at: Callable[[Place], Documents]
    start: Place
    what: str
    passing: Callable[[Exception], bool]
    document: int = 0
    _documents: Documents | None = attrs.field(default=None, init=False)
    _known: Place = attrs.field(default=attrs.Factory(lambda self: self.start, takes_self=True), init=False)
    _since: int = attrs.field(default=0, init=False)  # documents read since the last place that is known

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
                why = first_line(error)
                if failures >= TRIES:
                    raise CrosscodeError(
                        f"{self.what} broke at document {self.document}, {TRIES} times in a row: {why}"
                    ) from error
                log.warning("%s broke at document %d (%s); trying again", self.what, self.document, why)
                time.sleep(WAIT * 2 ** (failures - 1))
                self._documents = None
            else:
                self._since += 1
                self.document += 1
                return document
        raise AssertionError("unreachable")

    def place(self) -> dict[str, Any]:
        """Where the next document begins; what was read before is never read again."""
        if self._documents is not None:
            self._known, self._since = self._documents.place(), 0
        return dict(self._known)

    def where(self) -> str:
        return self.what if self._documents is None else self._documents.where()


class Counted(Iterator[Any]):
    """An iterable from its n-th row on; what comes before is not read where it need not be."""

    def __init__(self, rows: Iterable[Any], column: str, what: str, place: Place) -> None:
        self._column, self._what = column, what
        self._row = whole(place, "row")
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
        row = next(self._rows)
        self._row += 1
        return cell(row, self._column) if isinstance(row, Mapping) else as_document(row)

    def place(self) -> dict[str, Any]:
        return {"row": self._row}

    def where(self) -> str:
        return f"{self._what}, document {self._row - 1}"


class _Streamed(Iterator[Any]):
    """A streamed data set, in its own order, which it can resume by itself."""

    def __init__(self, rows: Any, column: str, what: str, place: Place) -> None:
        self._data, self._column, self._what = narrowed(rows, column, what), column, what
        self._row = whole(place, "row")
        if place:
            if not isinstance(place.get("hub"), Mapping):
                raise BadInput(f"place {dict(place)!r} is not a place in {what}.")
            self._data.load_state_dict(place["hub"])
        self._rows: Iterator[Any] = iter(self._data)

    def __next__(self) -> Any:
        row = next(self._rows)
        self._row += 1
        return cell(row, self._column)

    def place(self) -> dict[str, Any]:
        return {"hub": self._data.state_dict(), "row": self._row}

    def where(self) -> str:
        return f"{self._what}, row {self._row - 1}"


def whole(place: Place, name: str) -> int:
    """A number of a place, 0 where it has none.

    Raises:
        BadInput: it is something else.
    """
    value = place.get(name, 0)
    if type(value) is not int or not 0 <= value < 2**63:
        raise BadInput(f"place {dict(place)!r} is not a place in a text: {name} must be a whole number, at least 0.")
    return value


LONGEST_TEXT = 1 << 26
"""Bytes of a row, or characters of its text: beyond, a file has no rows, and tokenising takes all memory there is."""
TOO_LONG = Unusable(f" is longer than {LONGEST_TEXT >> 20} MiB: a text is read whole, so divide it into documents")


def cell(row: Any, column: str) -> "str | list[int] | Unusable":
    """The document in a column of a row."""
    if not isinstance(row, Mapping):
        return Unusable(f": each row must be an object with a key {column!r}, not {type(row).__name__}")
    if column not in row:
        return Unusable(f".{columns(column, row)}", before=f"text_column {column!r} is not in ")
    document = as_document(row[column])
    if not isinstance(document, Unusable):
        return document
    others = [name for name in row if name != column and not isinstance(as_document(row[name]), Unusable)]
    of_others = f"; of its columns, {', '.join(map(repr, others))} could be read" if others else ""
    return attrs.evolve(document, after=f"{document.after} (column {column!r}{of_others})")


def as_document(value: Any) -> "str | list[int] | Unusable":
    """A text or a list of token ids, of any kind of string, list, array or tensor; an absent one is an empty text.

    Half of a surrogate pair, which is no character and which no tokenizer takes, becomes U+FFFD.
    """
    if not isinstance(value, str) and hasattr(value, "tolist"):  # tensors and arrays
        value = value.tolist()
    if value is None:
        return ""
    if isinstance(value, str):
        if len(value) > LONGEST_TEXT:
            return TOO_LONG
        text = str(value)
        return text if text.isascii() else _whole_characters(text)
    if isinstance(value, list | tuple):
        ids = list(value)
        if all(type(id_) is int for id_ in ids):
            return ids
        ids = [id_.tolist() if hasattr(id_, "tolist") else id_ for id_ in ids]
        wrong = [id_ for id_ in ids if type(id_) is not int]
        if not wrong:
            return ids
        held = f"a list with {_shown(wrong[0])}"
    else:
        held = _shown(value)
    return Unusable(f" is neither a text nor a list of token ids but {held}")


def _whole_characters(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _shown(value: Any) -> str:
    """What a value is, by its type and its beginning."""
    if value is None:
        return "null"
    kind = {"dict": "object", "bool": "true or false"}.get(type(value).__name__, type(value).__name__)
    return f"{kind} {str(value)[:40]!r}"


def check_column(column: str, schema: Any, what: str) -> None:
    """Whether a column of an Arrow schema can hold documents.

    Raises:
        BadInput: it is not there, or is of another type; the line says of which, and which columns could be read.
    """
    if column not in schema.names:
        raise BadInput(f"text_column {column!r} is not in {what}.{columns(column, schema.names)}")
    field = schema.field(column)
    if not _holds_documents(field.type):
        others = [repr(name) for name in schema.names if _holds_documents(schema.field(name).type)]
        raise BadInput(
            f"text_column {column!r} of {what} is neither text nor lists of token ids but of type "
            f"{_called(schema, column)}. Columns that could be read: {', '.join(others) or 'none'}."
        )


def _holds_documents(kind: Any) -> bool:
    from pyarrow import types

    def text(kind: Any) -> bool:
        return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))

    if types.is_dictionary(kind):
        return text(kind.value_type)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return bool(types.is_integer(kind.value_type))
    return text(kind) or bool(types.is_null(kind))


def _called(schema: Any, column: str) -> str:
    """The type of a column, as `datasets` calls it if it wrote the schema: an image is a struct of bytes to Arrow."""
    kind = str(schema.field(column).type)
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][column]["_type"]
    except DAMAGE:
        return kind
    return kind if feature in ("Value", "List", "LargeList", "Sequence") else f"{feature} ({kind})"


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
    names = list(map(str, names))
    close = close_match(column, names)
    return (close if close.startswith(" Did") else "") + f" Columns: {', '.join(map(repr, names))}."
