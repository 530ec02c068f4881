"""Where latents fire: windows of held-out text with a latent's activation at every token.

Shapes: H sequences, S positions, E latents looked at, K examples of each, W tokens of a window, C candidates.
"""

from collections.abc import Sequence
from typing import Any

import attrs
import torch
from jaxtyping import Float, Int
from torch import Tensor

from crosscode.checks import count
from crosscode.data import Dataloader
from crosscode.evaluation.text import Text, read_text
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
    data: Dataloader,
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
        data: text and models; read in the order of the text.
        latents: which latents.
        n_strongest: how many of the strongest.
        n_random: how many drawn at random, which say what the strongest do not.
        n_tokens: how many tokens to search, before masking, in whole sequences.
        before, after: tokens shown on either side.
        seed: of the draw.
    """
    count("n_strongest", n_strongest)
    count("n_random", n_random, least=0)
    latents_E = torch.as_tensor(latents, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    strongest, drawn = (_Best(len(latents_E), k, before + 1 + after) for k in (n_strongest, n_random))
    n_seen = 0
    with in_eval_mode(coder):
        for text in read_text(data, n_tokens):
            n_seen += len(text.acts_NMPD)
            values_HSE = _values(coder, data, text, latents_E)
            peak_HE, at_HE = values_HSE.max(dim=1)
            tokens_HEW, window_HEW = _windows(text, values_HSE, at_HE, before, after)
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


def _values(coder: SparseCoder, data: Dataloader, text: Text, latents_E: Int[Tensor, " E"]) -> Float[Tensor, "H S E"]:
    """Activations where the text was written; 0 at tokens that are left out."""
    values_HSE = torch.zeros(*text.kept_HS.shape, len(latents_E))
    if len(text.acts_NMPD):
        inputs_NXiDi = data.batch(text.acts_NMPD).inputs_BXiDi.to(coder.scale_in_Xi)
        values_HSE[text.kept_HS] = coder.encode(inputs_NXiDi).dense()[:, latents_E.to(coder.device)].float().cpu()
    return values_HSE


def _windows(
    text: Text, values_HSE: Float[Tensor, "H S E"], at_HE: Int[Tensor, "H E"], before: int, after: int
) -> tuple[Int[Tensor, "H E W"], Float[Tensor, "H E W"]]:
    """Tokens and activations around one position for each sequence and latent."""
    H, S, E = values_HSE.shape
    place_HEW = at_HE[..., None] + torch.arange(-before, after + 1)
    inside_HEW = (place_HEW >= 0) & (place_HEW < S)
    place_HEW = place_HEW.clamp(0, S - 1)
    rows_H11, columns_E1 = torch.arange(H)[:, None, None], torch.arange(E)[:, None]
    inside_HEW &= text.written_HS[rows_H11, place_HEW]
    tokens_HEW = text.tokens_HS[rows_H11, place_HEW].masked_fill(~inside_HEW, -1)
    return tokens_HEW, values_HSE[rows_H11, place_HEW, columns_E1].masked_fill(~inside_HEW, 0.0)


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
