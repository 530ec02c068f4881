"""Text in its own order, with its activations and what training keeps of it.

Shapes: H sequences harvested at once, S positions, N tokens that training keeps, M models, P hookpoints, D width.
"""

from collections.abc import Iterator
from itertools import islice

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscode.data import Dataloader
from crosscode.data.token_sequences import PADDING


@attrs.frozen(eq=False)
class Text:
    """Some sequences and their clean activations.

    Attributes:
        tokens_HS: token ids.
        written_HS: where there is text, not padding.
        kept_HS: tokens that training keeps.
        acts_NMPD: the kept tokens' activations at all harvested hookpoints, row by row.
    """

    tokens_HS: Int[Tensor, "H S"]
    written_HS: Bool[Tensor, "H S"]
    kept_HS: Bool[Tensor, "H S"]
    acts_NMPD: Float[Tensor, "N M P D"]


def read_text(data: Dataloader, n_tokens: int) -> Iterator[Text]:
    """The first tokens of the text, before masking, rounded up to whole sequences, `sequences_at_once` at a time."""
    n_sequences = -(-n_tokens // data.sequences.sequence_length)
    stream = islice(data.sequences.in_order(), n_sequences)
    while some := list(islice(stream, data.harvester.sequences_at_once)):
        harvest = data.harvester.harvest(some)
        documents_HS = torch.stack([sequence.documents_S for sequence in some])
        kept_HS = torch.zeros(documents_HS.shape, dtype=torch.bool)
        rows_N = torch.searchsorted(torch.tensor([sequence.index for sequence in some]), harvest.sequences_N)
        kept_HS[rows_N, harvest.positions_N] = True
        yield Text(
            tokens_HS=torch.stack([sequence.tokens_S for sequence in some]),
            written_HS=documents_HS != PADDING,
            kept_HS=kept_HS,
            acts_NMPD=harvest.acts_NMPD,
        )
