"""What is measured on: text in its own order with its activations, where data have text and models, else batches.

Shapes: H sequences, S positions, N tokens that training keeps, M models, P hookpoints, D width.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscode.batch import Batch
from crosscode.data import Harvest, Harvester, TokenSequence, TokenSequences
from crosscode.data.token_counts import TokenCounts
from crosscode.data.token_sequences import PADDING
from crosscode.initialization.data import first_tokens
from crosscode.protocols import Structural

AT_ONCE = 2048  # tokens: measuring takes far more memory than harvesting, which a GPU does of many sequences at once


@runtime_checkable
class TextAndModels(Protocol, metaclass=Structural):
    """Batches that are made of text by language models, as `Dataloader` makes them.

    Attributes:
        sequences: the text.
        harvester: the models, and the hookpoints where activations are taken.
        model_names: what each model is called.
        hookpoints: all that are harvested.
        reads, writes: those that are read and written; None for all.
        in_dims, d_in: crosscoding dimensions and width of what is read.
        out_dims, d_out: of what is written.
    """

    @property
    def sequences(self) -> TokenSequences: ...
    @property
    def harvester(self) -> Harvester: ...
    @property
    def model_names(self) -> Sequence[str]: ...
    @property
    def hookpoints(self) -> Sequence[str]: ...
    @property
    def reads(self) -> str | Sequence[str] | None: ...
    @property
    def writes(self) -> str | Sequence[str] | None: ...
    @property
    def in_dims(self) -> tuple[int, ...]: ...
    @property
    def out_dims(self) -> tuple[int, ...]: ...
    @property
    def d_in(self) -> int: ...
    @property
    def d_out(self) -> int: ...

    def __iter__(self) -> Iterator[Batch]: ...

    def batch(self, acts_BMPD: Float[Tensor, "B M P D"]) -> Batch:
        """What is read and written of some tokens' activations at all harvested hookpoints."""
        ...


@runtime_checkable
class Tokenized(Protocol, metaclass=Structural):
    """Data that have the tokenizer of their token ids; see `LanguageModel.tokenizer`."""

    @property
    def tokenizer(self) -> Any: ...


def tokenizer_of(data: Iterable[Batch]) -> Any | None:
    """The tokenizer of a data set's token ids; None if it has none."""
    if isinstance(data, TextAndModels):
        return data.sequences.model.tokenizer
    return data.tokenizer if isinstance(data, Tokenized) else None


@attrs.frozen(eq=False)
class Text:
    """Some sequences and their clean activations.

    Attributes:
        tokens_HS: token ids.
        written_HS: where there is text, not padding.
        kept_HS: tokens that training keeps.
        acts_NMPD: the kept tokens' activations at all harvested hookpoints, row by row.
        counts: the tokens by what became of them; of a harvest batch that was cut, all with its first part.
    """

    tokens_HS: Int[Tensor, "H S"]
    written_HS: Bool[Tensor, "H S"]
    kept_HS: Bool[Tensor, "H S"]
    acts_NMPD: Float[Tensor, "N M P D"]
    counts: TokenCounts


def read_text(data: TextAndModels, n_tokens: int) -> Iterator[Text]:
    """The first tokens of the text, before masking, rounded up to whole sequences, some 2,048 tokens at a time.

    They are harvested `sequences_at_once` at a time, as in training, for what is left out follows from that.

    Raises:
        NumericalError: an activation is not finite; see `Harvester`.
    """
    n_sequences = -(-n_tokens // data.sequences.sequence_length)
    stream = islice(data.sequences.in_order(), n_sequences)
    counts = TokenCounts()
    while some := list(islice(stream, data.harvester.sequences_at_once)):
        harvest = data.harvester.harvest(some)
        counts += harvest.counts
        counts.check(harvest.not_finite)
        yield from _parts(some, harvest)


def read_batches(data: Iterable[Batch], n_tokens: int) -> Iterator[tuple[Batch, TokenCounts | None]]:
    """What is measured on, some tokens at a time, with the counts of the text that they are from.

    Of text the first tokens before masking, in whole sequences and in its order; of other data the first batches that
    hold so many tokens, all of which are measured on: nothing is known of what was left out.
    """
    if not isinstance(data, TextAndModels):
        yield from ((batch, None) for batch in first_tokens(data, n_tokens))
        return
    for text in read_text(data, n_tokens):
        yield data.batch(text.acts_NMPD), text.counts


def _parts(sequences: list[TokenSequence], harvest: Harvest) -> Iterator[Text]:
    tokens_HS = torch.stack([sequence.tokens_S for sequence in sequences])
    documents_HS = torch.stack([sequence.documents_S for sequence in sequences])
    kept_HS = torch.zeros(documents_HS.shape, dtype=torch.bool)
    rows_N = torch.searchsorted(torch.tensor([sequence.index for sequence in sequences]), harvest.sequences_N)
    kept_HS[rows_N, harvest.positions_N] = True
    at_once, first = max(1, AT_ONCE // tokens_HS.shape[1]), 0
    for h in range(0, len(sequences), at_once):
        part = slice(h, h + at_once)
        n_kept = int(kept_HS[part].sum())
        yield Text(
            tokens_HS=tokens_HS[part],
            written_HS=documents_HS[part] != PADDING,
            kept_HS=kept_HS[part],
            acts_NMPD=harvest.acts_NMPD[first : first + n_kept],
            counts=TokenCounts() if h else harvest.counts,
        )
        first += n_kept
