"""Where latents fire: windows of held-out text with a latent's activation at every token.

Shapes: H sequences, S positions, B tokens of a batch, E latents looked at, N entries of their sparse activations,
K examples of each, W tokens of a window, C candidates.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import attrs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscode.batch import Batch
from crosscode.checks import count
from crosscode.errors import BadInput
from crosscode.evaluation.text import AT_ONCE, TextAndModels, read_text
from crosscode.initialization.data import first_tokens
from crosscode.models import SparseCoder
from crosscode.module import in_eval_mode


@attrs.frozen(eq=False)
class Examples:
    """Windows of text around tokens that some latents fire on.

    Attributes:
        latents_E: which latents.
        tokens_EKW: token ids; -1 where the text has ended, and all over where there is no such example.
        values_EKW: the latent's activation at each token, 0 at those that training leaves out.
        before: place in the window of the token that the example is about.
        n_strongest: the first so many examples are of the strongest activations, strongest first, one a sequence;
            the others are drawn at random among the sequences that the latent fires in, each at its strongest there,
            those left out that are among the strongest.
        n_tokens: how many tokens were searched.
    """

    latents_E: Int[Tensor, " E"]
    tokens_EKW: Int[Tensor, "E K W"]
    values_EKW: Float[Tensor, "E K W"]
    before: int
    n_strongest: int
    n_tokens: int

    def strength_EK(self) -> Float[Tensor, "E K"]:
        """The activation that each example is about; 0 where there is no example."""
        return self.values_EKW[..., self.before]


@torch.no_grad()
def find_examples(
    coder: SparseCoder,
    data: Iterable[Batch],
    latents: Sequence[int] | Int[Tensor, " E"],
    n_strongest: int = 6,
    n_random: int = 2,
    n_tokens: int = 50_000,
    before: int = 16,
    after: int = 8,
    seed: int = 0,
) -> Examples:
    """The strongest activations of some latents, and a few drawn at random, in context.

    Args:
        coder: a trained coder; its mode is put back afterwards.
        data: text and models, read in the order of the text; or batches whose `extra` has `tokens`, `sequences` and
            `positions`, in any order.
        latents: which latents.
        n_strongest: how many of the strongest.
        n_random: how many drawn at random, which say what the strongest do not.
        n_tokens: how many tokens to search: of text before masking, in whole sequences; else in whole batches.
        before, after: tokens shown on either side.
        seed: of the draw.

    Raises:
        BadInput: batches do not carry what puts their tokens in order.
    """
    count("n_strongest", n_strongest)
    count("n_random", n_random, least=0)
    latents_E = torch.as_tensor(latents, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    strongest, drawn = (_Best(len(latents_E), k, before + 1 + after) for k in (n_strongest, n_random))
    n_seen = 0
    with in_eval_mode(coder):
        for some in _coded(coder, data, n_tokens, latents_E):
            n_seen += some.n_tokens
            peak_HE, at_HE = some.values_HSE.max(dim=1)
            tokens_HEW, window_HEW = _windows(some, at_HE, before, after)
            luck_HE = torch.where(peak_HE > 0, 1 - torch.rand(peak_HE.shape, generator=generator), 0.0)
            strongest.merge(peak_HE, tokens_HEW, window_HEW)
            drawn.merge(luck_HE, tokens_HEW, window_HEW)
    drawn.leave_out(strongest)
    return Examples(
        latents_E=latents_E,
        tokens_EKW=torch.cat([strongest.tokens_EKW, drawn.tokens_EKW], dim=1),
        values_EKW=torch.cat([strongest.values_EKW, drawn.values_EKW], dim=1),
        before=before,
        n_strongest=n_strongest,
        n_tokens=n_seen,
    )


@attrs.frozen(eq=False)
class _Coded:
    """Some sequences, and activations of the latents looked at.

    Attributes:
        tokens_HS: token ids.
        written_HS: where there is text.
        values_HSE: activations; 0 at tokens that are left out.
        n_tokens: how many were not.
    """

    tokens_HS: Int[Tensor, "H S"]
    written_HS: Bool[Tensor, "H S"]
    values_HSE: Float[Tensor, "H S E"]
    n_tokens: int


def _coded(coder: SparseCoder, data: Iterable[Batch], n_tokens: int, latents_E: Int[Tensor, " E"]) -> Iterator[_Coded]:
    """The data sequence by sequence, coded."""
    if not isinstance(data, TextAndModels):
        yield from _put_in_order(coder, data, n_tokens, latents_E)
        return
    for text in read_text(data, n_tokens):
        values_HSE = torch.zeros(*text.kept_HS.shape, len(latents_E))
        if len(text.acts_NMPD):
            values_HSE[text.kept_HS] = _values_BE(coder, data.batch(text.acts_NMPD), latents_E)
        yield _Coded(text.tokens_HS, text.written_HS, values_HSE, len(text.acts_NMPD))


def _values_BE(coder: SparseCoder, batch: Batch, latents_E: Int[Tensor, " E"]) -> Float[Tensor, "B E"]:
    inputs_BXiDi = batch.inputs_BXiDi.to(coder.scale_in_Xi)
    return coder.encode(inputs_BXiDi).dense()[:, latents_E.to(coder.device)].float().cpu()


ORDER = ("tokens", "sequences", "positions")


def can_be_put_in_order(data: Iterable[Batch]) -> bool:
    """Whether examples can be found in data: they are text, or their first batch carries what orders its tokens."""
    return isinstance(data, TextAndModels) or all(
        name in batch.extra for batch in first_tokens(data, 1) for name in ORDER
    )


def _put_in_order(
    coder: SparseCoder, data: Iterable[Batch], n_tokens: int, latents_E: Int[Tensor, " E"]
) -> Iterator[_Coded]:
    """Tokens of batches in the order of their sequences; only activations that are not 0 are kept meanwhile."""
    known: dict[str, list[Tensor]] = {name: [] for name in ORDER}
    entries: list[tuple[Tensor, Tensor, Tensor]] = []
    n = 0
    for batch in first_tokens(data, n_tokens):
        for name, of_batches in known.items():
            if name not in batch.extra:
                raise BadInput(f"batches carry no {name!r}: examples need {', '.join(ORDER)} in their extra.")
            of_batches.append(batch.extra[name].cpu())
        values_BE = _values_BE(coder, batch, latents_E)
        b_N, e_N = values_BE.nonzero(as_tuple=True)
        entries.append((b_N + n, e_N, values_BE[b_N, e_N]))
        n += len(batch)
    tokens_B, sequences_B, positions_B = (torch.cat(of_batches) for of_batches in known.values())
    row_B = sequences_B.unique(return_inverse=True)[1]
    S = int(positions_B.max()) + 1
    b_N, e_N, values_N = (torch.cat(parts) for parts in zip(*entries))
    for first in range(0, int(row_B.max()) + 1, max(1, AT_ONCE // S)):
        last = first + max(1, AT_ONCE // S)
        here_B = (row_B >= first) & (row_B < last)
        rows_B, H = row_B - first, min(last, int(row_B.max()) + 1) - first
        tokens_HS = torch.full((H, S), -1)
        tokens_HS[rows_B[here_B], positions_B[here_B]] = tokens_B[here_B]
        values_HSE = torch.zeros(H, S, len(latents_E))
        here_N = here_B[b_N]
        at_N = b_N[here_N]
        values_HSE[rows_B[at_N], positions_B[at_N], e_N[here_N]] = values_N[here_N]
        yield _Coded(tokens_HS, tokens_HS >= 0, values_HSE, int(here_B.sum()))


def _windows(
    some: _Coded, at_HE: Int[Tensor, "H E"], before: int, after: int
) -> tuple[Int[Tensor, "H E W"], Float[Tensor, "H E W"]]:
    """Tokens and activations around one position for each sequence and latent."""
    H, S, E = some.values_HSE.shape
    place_HEW = at_HE[..., None] + torch.arange(-before, after + 1)
    inside_HEW = (place_HEW >= 0) & (place_HEW < S)
    place_HEW = place_HEW.clamp(0, S - 1)
    rows_H11, columns_E1 = torch.arange(H)[:, None, None], torch.arange(E)[:, None]
    inside_HEW &= some.written_HS[rows_H11, place_HEW]
    tokens_HEW = some.tokens_HS[rows_H11, place_HEW].masked_fill(~inside_HEW, -1)
    return tokens_HEW, some.values_HSE[rows_H11, place_HEW, columns_E1].masked_fill(~inside_HEW, 0.0)


class _Best:
    """The `K` candidates of highest rank for each latent; rank 0 is none at all."""

    def __init__(self, E: int, K: int, W: int) -> None:
        self.rank_EK = torch.zeros(E, K)
        self.tokens_EKW = torch.full((E, K, W), -1)
        self.values_EKW = torch.zeros(E, K, W)

    def merge(
        self, rank_HE: Float[Tensor, "H E"], tokens_HEW: Int[Tensor, "H E W"], values_HEW: Float[Tensor, "H E W"]
    ) -> None:
        rank_EC = torch.cat([self.rank_EK, rank_HE.T], dim=1)
        kept_EK = rank_EC.argsort(dim=1, descending=True, stable=True)[:, : self.rank_EK.shape[1]]
        rows_E1 = torch.arange(len(rank_EC))[:, None]
        self.rank_EK = rank_EC[rows_E1, kept_EK]
        none_EK1 = (self.rank_EK <= 0)[..., None]
        tokens_ECW = torch.cat([self.tokens_EKW, tokens_HEW.transpose(0, 1)], dim=1)
        values_ECW = torch.cat([self.values_EKW, values_HEW.transpose(0, 1)], dim=1)
        self.tokens_EKW = tokens_ECW[rows_E1, kept_EK].masked_fill(none_EK1, -1)
        self.values_EKW = values_ECW[rows_E1, kept_EK].masked_fill(none_EK1, 0.0)

    def leave_out(self, other: "_Best") -> None:
        """Drop what is among another's."""
        same_tokens_EKk = (self.tokens_EKW[:, :, None] == other.tokens_EKW[:, None]).all(-1)
        same_values_EKk = (self.values_EKW[:, :, None] == other.values_EKW[:, None]).all(-1)
        twice_EK1 = (same_tokens_EKk & same_values_EKk).any(-1)[..., None]
        self.tokens_EKW.masked_fill_(twice_EK1, -1)
        self.values_EKW.masked_fill_(twice_EK1, 0.0)


def texts_of(tokenizer: Any, ids: Sequence[int]) -> dict[int, str]:
    """What each token reads as inside a text, its leading blank included.

    A tokenizer drops the blank of a token that is decoded alone, so each is decoded behind another. Bytes that are no
    whole character by themselves come out as U+FFFD.
    """
    (letter_ids,) = tokenizer(["a"], add_special_tokens=False)["input_ids"]
    letter = tokenizer.decode(letter_ids)

    def text_of(id_: int) -> str:
        behind: str = tokenizer.decode([*letter_ids, id_])
        return behind.removeprefix(letter) if behind.startswith(letter) else str(tokenizer.decode([id_]))

    return {id_: text_of(id_) for id_ in ids}
