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

from crosscode.data import documents
from crosscode.data.documents import HubText
from crosscode.data.language_model import LanguageModel
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
        source: `"embedded"` (the text that ships with the package), a local `.parquet`, `.jsonl`, `.json` or `.txt`
            file (also gzipped) or a folder of them, the name of a data set on the Hugging Face hub (streamed), or any
            Python iterable of strings, of lists of token ids or of rows (a `datasets.Dataset`) that can be iterated
            again. A `.txt` file holds one document a paragraph (blank lines between).
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
        hub_config, hub_split, hub_revision: which part of a hub data set.

    Raises:
        BadInput: source not found, unknown column (the known ones are listed), no document, BOS or EOS asked of a
            model without one, ids outside the vocabulary, `sequence_length` beyond the model's context.
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
    hub_config: str | None = attrs.field(default=None, kw_only=True)
    hub_split: str = attrs.field(default="train", kw_only=True)
    hub_revision: str | None = attrs.field(default=None, kw_only=True)

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
        context = self.model.context_length
        if context is not None and self.sequence_length > context:
            raise BadInput(
                f"sequence_length={self.sequence_length} is beyond the context of model {self.model.name!r}: "
                f"{context} tokens."
            )
        for name, id_ in {"bos": self.model.bos_id, "eos": self.model.eos_id}.items():
            wanted = self.separator == name or (name == "bos" and self.prepend_bos)
            if wanted and id_ is None:
                option = f"separator={name!r}" if self.separator == name else "prepend_bos=True"
                raise BadInput(f"{option}: model {self.model.name!r} has no {name.upper()} token.")
        if isinstance(self.source, Iterator):
            raise BadInput(
                "dataset is an iterator, which can be read only once: hand in a list, or an object whose __iter__ "
                "starts anew."
            )
        _ = self._text  # a file that is not there is found now

    def __iter__(self) -> Iterator[TokenSequence]:
        return self.iter_from(0)

    def iter_from(self, start: int, epoch: int = 0) -> Iterator[TokenSequence]:
        """The sequences of an epoch from the `start`-th on; each epoch has an order of its own.

        What comes before is tokenised and thrown away: packing cannot know where a sequence begins without it.
        """
        if self.seed is None:
            return itertools.islice(self.in_order(), start, None)
        block, within = divmod(start, self.shuffle_sequences)
        stream = itertools.islice(self.in_order(), block * self.shuffle_sequences, None)
        shuffled = shuffled_in_blocks(stream, self.shuffle_sequences, self.seed, "sequences", epoch, first_block=block)
        return itertools.islice(shuffled, within, None)

    def in_order(self) -> Iterator[TokenSequence]:
        """The sequences in the order of the text, for evaluation and reports."""
        S = self.sequence_length
        tokens: list[int] = []
        owners: list[int] = []
        index = 0
        for document, ids in self._tokenised():
            for piece, owner in self._pieces(document, ids):
                position = 0
                while position < len(piece):
                    # A sequence begins with one BOS, not two: the text's own, a separator, or one that is added.
                    if not tokens and self.prepend_bos and piece[position] != self._bos:
                        tokens, owners = [self._bos], [ADDED]
                    some = piece[position : position + S - len(tokens)]
                    tokens += some
                    owners += [owner] * len(some)
                    position += len(some)
                    if len(tokens) == S:
                        yield _sequence(index, tokens, owners)
                        tokens, owners, index = [], [], index + 1
        if tokens and self.short == "pad":
            n_missing = S - len(tokens)
            yield _sequence(index, tokens + [self._filler] * n_missing, owners + [PADDING] * n_missing)

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
        source = documents.fingerprint(self._documents() if self._text == "embedded" else self._text)
        canonical = json.dumps(policy | {"source": source, "vocabulary": vocabulary}, sort_keys=True, default=str)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @cached_property
    def _text(self) -> Any:
        """Files, a hub data set, `"embedded"`, or the iterable that was handed in."""
        if not isinstance(self.source, str | Path):
            return self.source
        if self.source == "embedded":
            return "embedded"
        if isinstance(self.source, Path) or documents.looks_local(self.source):
            return documents.files_of(Path(self.source).expanduser())
        return HubText(self.source, self.hub_config, self.hub_split, self.hub_revision)

    def _documents(self) -> Iterator[tuple[int, Any]]:
        """(index in the source, document) of this split; what a document is has not been checked yet."""
        if self._text == "embedded":
            from crosscode.data import embedded

            parts = ("train", "held_out") if self.split == "all" else (self.split,)
            yield from enumerate(itertools.chain.from_iterable(embedded.documents(part) for part in parts))
            return
        if isinstance(self._text, HubText):
            stream = documents.read_hub(self._text, self.text_column)
        elif isinstance(self.source, str | Path):
            stream = documents.read_files(self._text, self.text_column)
        else:
            stream = iter(self._text)
        for index, document in enumerate(stream):
            if isinstance(document, Mapping):  # rows of a `datasets.Dataset` that was handed in
                document = documents.cell(document, self.text_column, f"dataset {_label(self.source)}")
            held_out = index % self.held_out_every == self.held_out_every - 1
            if self.split == "all" or held_out == (self.split == "held_out"):
                yield index, document

    def _pieces(self, document: int, ids: Sequence[int]) -> Iterator[tuple[Sequence[int], int]]:
        """A document with its separator, unless it brings its own."""
        if self.separator == "bos" and ids[0] != self._bos:
            yield [self._bos], ADDED
        yield ids, document
        if self.separator == "eos" and ids[-1] != self._eos:
            yield [self._eos], ADDED

    def _tokenised(self) -> Iterator[tuple[int, Sequence[int]]]:
        """(document index, its ids) of every document that is not empty."""
        stream = self._documents()
        empty = True
        while some := list(itertools.islice(stream, DOCUMENTS_AT_ONCE)):
            texts = [document for _, document in some if isinstance(document, str) and document]
            tokenised = iter(self.model.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
            for index, document in some:
                ids = next(tokenised) if isinstance(document, str) and document else self._checked(index, document)
                if len(ids):
                    empty = False
                    yield index, ids
        if empty:
            raise BadInput(f"dataset {_label(self.source)} has no document in its split {self.split!r}.")

    def _checked(self, index: int, document: Any) -> Sequence[int]:
        """Token ids that were handed in; an empty document has none."""
        if hasattr(document, "tolist"):  # tensors and arrays
            document = document.tolist()
        if document is None or document in ("", [], ()):
            return ()
        if not isinstance(document, list | tuple) or not all(type(id_) is int for id_ in document):
            raise BadInput(
                f"dataset {_label(self.source)}, document {index} is neither a text nor a list of token ids "
                f"(column {self.text_column!r}): {str(document)[:40]!r}"
            )
        ids: Sequence[int] = document
        least, most = min(ids), max(ids)
        if least < 0 or most > self._largest_id:
            raise BadInput(
                f"dataset {_label(self.source)}, document {index} has token ids from {least} to {most}; "
                f"the vocabulary of {self.model.name!r} ends at {self._largest_id}."
            )
        return ids

    @cached_property
    def _largest_id(self) -> int:
        return max(self.model.vocabulary.values())

    # Where a policy needs BOS or EOS the model has one: checked when the policy was chosen.
    @property
    def _bos(self) -> int:
        return cast(int, self.model.bos_id)

    @property
    def _eos(self) -> int:
        return cast(int, self.model.eos_id)

    @property
    def _filler(self) -> int:
        return next((id_ for id_ in (self.model.eos_id, self.model.bos_id) if id_ is not None), 0)


def _sequence(index: int, tokens: list[int], owners: list[int]) -> TokenSequence:
    return TokenSequence(index, torch.tensor(tokens, dtype=torch.long), torch.tensor(owners, dtype=torch.long))


def _label(source: Any) -> str:
    return repr(str(source)) if isinstance(source, str | Path) else f"<{type(source).__name__}>"
