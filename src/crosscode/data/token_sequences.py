"""Text → packed sequences of token ids, in an order that is a function of a seed.

Documents are laid end to end and cut every `sequence_length` tokens, so no token is padding and none is lost but those
of the last, short sequence. Attention crosses the documents of a sequence: that is a choice (it wastes nothing, and
it is how most language models were trained); the separator tells the model where a document ends.
"""

import hashlib
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import attrs
import torch
from jaxtyping import Int
from torch import Tensor

from crosscode.data import documents, text_files, text_folders
from crosscode.data.documents import HubText, Place, Unusable
from crosscode.data.language_model import LanguageModel, check_context, check_ids, one_at_a_time, vocab_size_of
from crosscode.data.shuffle import shuffled_in_blocks
from crosscode.errors import BadInput, close_match

Split = Literal["train", "held_out", "all"]
Separator = Literal["eos", "bos", "none"]

DOCUMENTS_AT_ONCE = 64  # tokenised in one call
ADDED, PADDING = -1, -2  # documents_S of tokens that belong to no document


@attrs.frozen(eq=False)
class TokenSequence:
    """One sequence of a packed stream.

    Attributes:
        index: its place in the stream before shuffling.
        tokens_S: token ids.
        documents_S: for each token the index of its document in the source, -1 for a BOS, EOS or separator that was
            added, -2 for padding.
    """

    index: int
    tokens_S: Int[Tensor, " S"]
    documents_S: Int[Tensor, " S"]


def _separator(self: "TokenSequences") -> Separator:
    if self.model.eos_id is not None:
        return "eos"
    return "none" if self.model.bos_id is None else "bos"


@attrs.frozen(eq=False, slots=False)
class TokenSequences:
    """Text as packed token sequences; every iteration starts anew, with the same sequences in the same order.

    Args:
        source: `"embedded"` (the text that ships with the package), a local `.parquet`, `.arrow`, `.jsonl`, `.json` or
            `.txt` file (the last three also in `.gz` or `.zst`), a pattern or a folder of them (see
            `text_folders.files_of`), the name of a data set on the Hugging Face hub (streamed), or any Python iterable
            of strings, of lists of token ids or of rows (a `datasets.Dataset`) that can be iterated again. A `.txt`
            file holds one document a paragraph (blank lines between), a `.json` file an object a line or a list of
            objects. Half of a surrogate pair in a text is read as U+FFFD.
        model: whose tokenizer is used; with several models, any one of them, for they share the vocabulary.
        sequence_length: tokens of a sequence, S.
        text_column: column or key of the text (or of lists of token ids) in data sets, `.parquet` and `.json(l)`.
        split: `train` leaves every `held_out_every`-th document out, `held_out` has only those, `all` has everything.
            The embedded text is split by its own rule.
        held_out_every: see `split`.
        prepend_bos: begin each sequence with BOS; by default when the model has one.
        separator: token after each document (`eos`), before each document (`bos`), or `none`; by default `eos` if the
            model has one, else `bos`, else `none`.
        short: what becomes of the last sequence when the text runs out: `drop` it, or `pad` it with tokens that no
            activation is taken from.
        seed: of the order of sequences; None keeps the order of the text.
        shuffle_sequences: sequences of one block of the shuffle; one block is held in memory.
        dataset_config, dataset_split, dataset_revision: which part of a hub data set, or of one in a folder; no split
            is `train`, or the only one there is.
        skip_bad_rows: leave out what cannot be read as a document, and count it, where it is otherwise refused.

    Raises:
        BadInput: source, configuration, split or column not found (the known ones are listed), no document, a row that
            is none, BOS or EOS asked of a model without one, `sequence_length` beyond the model's context.
    """

    source: str | Path | Iterable[Any] = attrs.field(repr=lambda source: _label(source))
    model: LanguageModel
    sequence_length: int = attrs.field(default=128, kw_only=True)
    text_column: str = attrs.field(default="text", kw_only=True)
    split: Split = attrs.field(default="train", kw_only=True)
    held_out_every: int = attrs.field(default=20, kw_only=True)
    prepend_bos: bool = attrs.field(
        default=attrs.Factory(lambda self: self.model.bos_id is not None, takes_self=True), kw_only=True
    )
    separator: Separator = attrs.field(default=attrs.Factory(_separator, takes_self=True), kw_only=True)
    short: Literal["drop", "pad"] = attrs.field(default="drop", kw_only=True)
    seed: int | None = attrs.field(default=0, kw_only=True)
    shuffle_sequences: int = attrs.field(default=2048, kw_only=True)
    dataset_config: str | None = attrs.field(default=None, kw_only=True)
    dataset_split: str | None = attrs.field(default=None, kw_only=True)
    dataset_revision: str | None = attrs.field(default=None, kw_only=True)
    skip_bad_rows: bool = attrs.field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        choices = {"split": ("train", "held_out", "all"), "separator": ("eos", "bos", "none"), "short": ("drop", "pad")}
        for name, allowed in choices.items():
            if (value := getattr(self, name)) not in allowed:
                raise BadInput(
                    f"{name} {value!r} is not one of {', '.join(allowed)}.{close_match(str(value), allowed)}"
                )
        for name, least in {"sequence_length": 2, "held_out_every": 2, "shuffle_sequences": 1}.items():
            if getattr(self, name) < least:
                raise BadInput(f"{name}={getattr(self, name)} must be at least {least}.")
        check_context(self.model.name, self.model.context_length, self.sequence_length)
        for name, id_ in {"bos": self.model.bos_id, "eos": self.model.eos_id}.items():
            wanted = self.separator == name or (name == "bos" and self.prepend_bos)
            if wanted and id_ is None:
                option = f"separator={name!r}" if self.separator == name else "prepend_bos=True"
                raise BadInput(f"{option}: model {self.model.name!r} has no {name.upper()} token.")
            if wanted and id_ is not None:
                check_ids(self.model.name, vocab_size_of(self.model), torch.tensor([id_]))
        if isinstance(self.source, str) and not self.source:
            raise BadInput("dataset='' is empty: name 'embedded', a file, a folder or a data set of the hub.")
        if self.files is not None:
            text_files.check_files(self.files, self.text_column, self.skip_bad_rows)

    def __iter__(self) -> "OrderedSequences":
        return self.iter_from(0)

    def iter_from(self, start: int, epoch: int = 0, place: Place | None = None) -> "OrderedSequences":
        """The sequences of an epoch from the `start`-th on; each epoch has an order of its own.

        Args:
            start: how many sequences are left out.
            epoch: which order.
            place: from `place_of` of an earlier iterator; without it, what comes before is tokenised and thrown away,
                for packing cannot know where a sequence begins.

        Raises:
            BadInput: the place is none, or lies behind `start`.
        """
        return OrderedSequences(self, start, epoch, place)

    def in_order(self, place: Place | None = None) -> "PackedSequences":
        """The sequences in the order of the text, for evaluation and reports."""
        return PackedSequences(self, place)

    @cached_property
    def identity(self) -> str:
        """A hash of the text and of every policy: equal identities give equal sequences in equal order."""
        policy = {
            field.name: getattr(self, field.name)
            for field in attrs.fields(type(self))
            if field.name not in {"source", "model"}
        }
        vocabulary = hashlib.sha256(repr(sorted(self.model.vocabulary.items())).encode()).hexdigest()
        # The embedded text is that of the installed packages: other versions, other text.
        source = documents.fingerprint(self.open({}) if self._is_embedded else self._text)
        canonical = json.dumps(policy | {"source": source, "vocabulary": vocabulary}, sort_keys=True, default=str)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def _text(self) -> Any:
        """Files, a hub data set, `"embedded"`, or rows that were handed in."""
        parts = self.dataset_config, self.dataset_split, self.dataset_revision
        if not isinstance(self.source, str | Path):
            return documents.rows_of(self.source, self.text_column, f"dataset {_label(self.source)}", *parts)
        if self._is_embedded:
            documents.without_parts("dataset 'embedded'", *parts)
            return "embedded"
        if isinstance(self.source, Path) or text_folders.looks_local(self.source):
            return text_folders.files_of(Path(self.source).expanduser(), *parts)
        return HubText(self.source, *parts)

    @cached_property
    def _is_embedded(self) -> bool:
        return isinstance(self.source, str) and self.source == "embedded"

    @property
    def files(self) -> tuple[Path, ...] | None:
        """The local files that are read, in order; None of any other source."""
        text = self._text
        return text if isinstance(self.source, str | Path) and isinstance(text, tuple) else None

    def open(self, place: Place, document: int = 0) -> documents.Documents:
        """The documents of the source, of every split, from a place on, which is where document `document` begins."""
        if self._is_embedded:
            from crosscode.data import embedded

            parts: tuple[Any, ...] = ("train", "held_out") if self.split == "all" else (self.split,)
            rows: Any = lambda: itertools.chain.from_iterable(map(embedded.documents, parts))
            return documents.open_rows(rows, self.text_column, "the embedded text", place, document)
        if isinstance(self._text, HubText):
            return documents.open_hub(self._text, self.text_column, place, document)
        if self.files is not None:
            return text_files.open_files(self.files, self.text_column, place, document)
        rows = lambda: self._text
        return documents.open_rows(rows, self.text_column, f"dataset {_label(self.source)}", place, document)

    def in_split(self, index: int) -> bool:
        """Whether a document is in this split, by its index in the source."""
        if self.split == "all" or self._is_embedded:
            return True
        held_out = index % self.held_out_every == self.held_out_every - 1
        return held_out == (self.split == "held_out")

    def pieces(self, some: Sequence[tuple[int, str | list[int]]]) -> list[tuple[Sequence[int], int]]:
        """Documents, tokenised, each with its separator unless it brings its own; and whose the tokens are.

        Args:
            some: indices of documents in the source, and the documents.
        """
        texts = [document for _, document in some if isinstance(document, str) and document]
        with one_at_a_time:
            tokenised = iter(self.model.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
        pieces: list[tuple[Sequence[int], int]] = []
        for index, document in some:
            ids: Sequence[int] = next(tokenised) if isinstance(document, str) and document else list(document)  # type: ignore[arg-type]
            if not len(ids):
                continue
            if self.separator == "bos" and ids[0] != self.bos:
                pieces.append(([self.bos], ADDED))
            pieces.append((ids, index))
            if self.separator == "eos" and ids[-1] != self._eos:
                pieces.append(([self._eos], ADDED))
        return pieces

    def checked(self, document: str | list[int] | Unusable) -> str | list[int] | Unusable:
        """The same document, unless it has token ids that the vocabulary has not."""
        if not isinstance(document, list) or not document:
            return document
        least, most = min(document), max(document)
        if least < 0 or most > self._largest_id:
            name, end = self.model.name, self._largest_id
            return Unusable(f" has token ids from {least} to {most}; the vocabulary of {name!r} ends at {end}")
        return document

    @cached_property
    def _largest_id(self) -> int:
        rows = vocab_size_of(self.model)
        return max(self.model.vocabulary.values()) if rows is None else rows - 1

    # Where a policy needs BOS or EOS the model has one: checked when the policy was chosen.
    @property
    def bos(self) -> int:
        return cast(int, self.model.bos_id)

    @property
    def _eos(self) -> int:
        return cast(int, self.model.eos_id)

    @property
    def filler(self) -> int:
        return next((id_ for id_ in (self.model.eos_id, self.model.bos_id) if id_ is not None), 0)


class PackedSequences(Iterator[TokenSequence]):
    """Sequences in the order of the text, from a place on; `place()` is where the next one begins.

    A place is a few integers: the next sequence's number; the document that some read together begin with, and where
    the source has it; how many of their pieces are used up, and tokens of the one after those; and how many bad rows
    were left out before that document.
    """

    def __init__(self, text: TokenSequences, place: Place | None) -> None:
        names = ("sequence", "document", "pieces", "tokens", "bad_rows")
        start: Place = {**dict.fromkeys(names, 0), "source": {}} if place is None else place
        integers = [start.get(name, 0 if name == "bad_rows" else None) for name in names]
        source = start.get("source")
        if not (isinstance(source, Mapping) and all(type(value) is int and value >= 0 for value in integers)):
            raise BadInput(f"place {dict(start)!r} is not a place in a text: {', '.join(names)}, all >= 0, and source.")
        self._text, self._any_text = text, place is not None
        self._sequence, self._document, skipped, self._tokens, self.bad_rows = cast(list[int], integers)
        self._source = text.open(source, self._document)
        self._read()
        self._used = skipped

    def __next__(self) -> TokenSequence:
        text, S = self._text, self._text.sequence_length
        tokens: list[int] = []
        owners: list[int] = []
        while len(tokens) < S and self._turn_to_a_piece():
            piece, owner = self._pieces[self._used]
            # A sequence begins with one BOS, not two: the text's own, a separator, or one that is added.
            if not tokens and text.prepend_bos and piece[self._tokens] != text.bos:
                tokens, owners = [text.bos], [ADDED]
            some = piece[self._tokens : self._tokens + S - len(tokens)]
            tokens += some
            owners += [owner] * len(some)
            self._tokens += len(some)
        n_missing = S - len(tokens)
        if not tokens or (n_missing and text.short == "drop"):
            raise StopIteration
        self._sequence += 1
        return TokenSequence(
            self._sequence - 1,
            torch.tensor(tokens + [text.filler] * n_missing, dtype=torch.long),
            torch.tensor(owners + [PADDING] * n_missing, dtype=torch.long),
        )

    def place(self) -> dict[str, Any]:
        return {"sequence": self._sequence, **self._from, "pieces": self._used, "tokens": self._tokens}

    def _turn_to_a_piece(self) -> bool:
        """Whether a token is left; it is then in the current piece."""
        while self._pieces:
            if self._used >= len(self._pieces):
                self._read()
            elif self._tokens >= len(self._pieces[self._used][0]):
                self._used, self._tokens = self._used + 1, 0
            else:
                return True
        return False

    def _read(self) -> None:
        """Tokenise the next few documents; no pieces are the end of the text."""
        self._pieces: list[tuple[Sequence[int], int]] = []
        self._used = 0
        while not self._pieces:
            self._from = {
                "document": self._document, "source": self._source.place(), "bad_rows": self.bad_rows
            }  # fmt: skip
            some: list[tuple[int, str | list[int]]] = []
            for row in self._source:
                document = self._text.checked(row)
                if isinstance(document, Unusable):
                    self._meet(document)
                elif self._text.in_split(self._document):
                    some.append((self._document, document))
                self._document += 1
                if len(some) == DOCUMENTS_AT_ONCE:
                    break
            if not some:
                break
            self._pieces = self._text.pieces(some)
        if self._pieces:
            self._any_text = True
        elif not self._any_text:
            bad = f": all its {self.bad_rows} rows are bad" if self.bad_rows else ""
            raise BadInput(
                f"dataset {_label(self._text.source)} has no document in its split {self._text.split!r}{bad}."
            )

    def _meet(self, bad: Unusable) -> None:
        """Count a row that is no document, or refuse it, even where it is of another split: that will be read too."""
        line = bad.at(self._source.where())
        if not self._text.skip_bad_rows:
            cure = "" if bad.before else ". Mend it, or leave such rows out with --skip-bad-rows."
            raise BadInput(f"{line}{cure}")
        if self._text.in_split(self._document):
            self.bad_rows += 1
            if self.bad_rows == 1:
                documents.tell_once(f"bad rows are left out, the first: {line}")


class OrderedSequences(Iterator[TokenSequence]):
    """Sequences of an epoch in their random order, block by block; remembers where the last blocks begin."""

    def __init__(self, text: TokenSequences, start: int, epoch: int, place: Place | None) -> None:
        self._text, self._epoch = text, epoch
        self._size = text.shuffle_sequences
        self._packed = text.in_order(place)
        self._block, within = divmod(self._packed.place()["sequence"], self._size)
        if within or self._block * self._size > start:
            raise BadInput(f"place {dict(place or {})!r} is not where a block of {self._size} sequences begins.")
        if place is None and self._block < start // self._size:
            for _ in itertools.islice(self._packed, (start // self._size - self._block) * self._size):
                pass
            self._block = start // self._size
        self._places: dict[int, dict[str, Any]] = {}
        self._sequences = itertools.islice(self._in_blocks(), start - self._block * self._size, None)

    def __next__(self) -> TokenSequence:
        return next(self._sequences)

    @property
    def bad_rows(self) -> int:
        """How many rows of this split were left out of what has been read."""
        return self._packed.bad_rows

    def place_of(self, n: int) -> dict[str, Any]:
        """From where to read again so that the n-th sequence comes; n never falls, and was reached."""
        needed = max((block for block in self._places if block <= n // self._size), default=self._block)
        self._places = {block: place for block, place in self._places.items() if block >= needed}
        return self._places[needed]

    def _in_blocks(self) -> Iterator[TokenSequence]:
        block, seed = self._block, self._text.seed
        while True:
            self._places[block] = self._packed.place()
            members: Iterable[TokenSequence] = list(itertools.islice(self._packed, self._size))
            if not members:
                return
            if seed is not None:
                members = shuffled_in_blocks(members, self._size, seed, "sequences", self._epoch, first_block=block)
            yield from members
            block += 1


def _label(source: Any) -> str:
    return repr(str(source)) if isinstance(source, str | Path) else f"<{type(source).__name__}>"
