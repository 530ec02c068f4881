"""Text in its own order, with its activations and what training keeps of it.

Shapes: H sequences, S positions, N tokens that training keeps, M models, P hookpoints, D width.
"""

from collections.abc import Iterator
from itertools import islice

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscode.data import Dataloader, Harvest, TokenSequence
from crosscode.data.token_counts import TokenCounts
from crosscode.data.token_sequences import PADDING

AT_ONCE = 2048  # tokens: measuring takes far more memory than harvesting, which a GPU does of many sequences at once


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


def read_text(data: Dataloader, n_tokens: int) -> Iterator[Text]:
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
