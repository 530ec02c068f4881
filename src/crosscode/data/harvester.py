"""Token sequences → activations of several models at several hookpoints, with what training leaves out masked away.

Shapes: H sequences of a harvest batch, S positions, N tokens that are kept, M models, P hookpoints, D width.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice

import attrs
import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from crosscode.data.cache import ActivationCache
from crosscode.data.language_model import LanguageModel, check_ids, check_tokenizer, one_at_a_time, vocab_size_of
from crosscode.data.token_sequences import PADDING, TokenSequence
from crosscode.errors import BadInput
from crosscode.phases import phase

EXPECTED = 4  # harvest batches whose shards the disk may fetch while an earlier one is used


@attrs.frozen(eq=False)
class Harvest:
    """The kept tokens of a harvest batch, in the order of the text.

    Attributes:
        acts_NMPD: raw activations; where models or hookpoints differ in width the narrow ones are zero-padded.
        tokens_N: token ids.
        positions_N: place in the sequence, from 0.
        documents_N: index of the document in the source; negative for tokens that were added.
        sequences_N: index of the sequence in the unshuffled stream.
    """

    acts_NMPD: Float[Tensor, "N M P D"]
    tokens_N: Int[Tensor, " N"]
    positions_N: Int[Tensor, " N"]
    documents_N: Int[Tensor, " N"]
    sequences_N: Int[Tensor, " N"]

    def __len__(self) -> int:
        return self.acts_NMPD.shape[0]


def _tuple_of_models(models: "LanguageModel | Sequence[LanguageModel]") -> tuple[LanguageModel, ...]:
    return tuple(models) if isinstance(models, Sequence) else (models,)


def _tuple_of_names(hookpoints: str | Sequence[str]) -> tuple[str, ...]:
    return (hookpoints,) if isinstance(hookpoints, str) else tuple(hookpoints)


@attrs.frozen(eq=False, slots=False)
class Harvester:
    """Several models, several hookpoints: one forward pass per model and harvest batch.

    Args:
        models: one model or several that share the vocabulary, each on a device and in a dtype of its own; activations
            are gathered on the first one's device.
        hookpoints: where activations are taken, the same in every model.
        sequences_at_once: H, the sequences of one forward pass. The last batch of a stream may have fewer.
        drop_special: leave special tokens (BOS, EOS, padding, chat markers) out.
        drop_first: leave the first positions of every sequence out: position 0 is an attention sink whose norm is
            often 100 times the median.
        max_norm_multiple: leave a token out if, in any model at any hookpoint, its norm is more than this many times
            the median over the harvest batch's kept tokens; None keeps all.
        cache: where activations are kept between runs.

    Raises:
        BadInput: no or equal models or hookpoints, an unknown hookpoint, models with different vocabularies (the
            differing tokens are named), an embedding too small for its tokenizer.
    """

    models: tuple[LanguageModel, ...] = attrs.field(converter=_tuple_of_models)
    hookpoints: tuple[str, ...] = attrs.field(converter=_tuple_of_names)
    sequences_at_once: int = attrs.field(default=8, kw_only=True)
    drop_special: bool = attrs.field(default=True, kw_only=True)
    drop_first: int = attrs.field(default=1, kw_only=True)
    max_norm_multiple: float | None = attrs.field(default=None, kw_only=True)
    cache: ActivationCache | None = attrs.field(default=None, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if not self.models or not self.hookpoints:
            raise BadInput(f"{'hookpoints' if self.models else 'models'} is empty: at least one is needed.")
        for name in self.hookpoints:
            if self.hookpoints.count(name) > 1:
                raise BadInput(f"hookpoints has {name!r} twice.")
        for i, model in enumerate(self.models):
            if any(model is other for other in self.models[:i]):
                raise BadInput(f"models has {model.name!r} twice.")
        if self.sequences_at_once < 1 or self.drop_first < 0:
            raise BadInput(
                f"sequences_at_once={self.sequences_at_once} must be at least 1 and drop_first={self.drop_first} "
                "at least 0."
            )
        if self.max_norm_multiple is not None and not self.max_norm_multiple > 1:
            raise BadInput(f"max_norm_multiple={self.max_norm_multiple} must be greater than 1, or None.")
        for other in self.models[1:]:
            check_vocabularies(self.models[0], other)
        for model in self.models:
            check_tokenizer(model)
        _ = self.widths_MP  # an unknown hookpoint fails here, before any weight is read

    @cached_property
    def widths_MP(self) -> tuple[tuple[int, ...], ...]:
        """Coordinates of each model at each hookpoint; D is the largest."""
        return tuple(tuple(model.width(hookpoint) for hookpoint in self.hookpoints) for model in self.models)

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that are special to any of the models: a chat model ends its turns with another token than its base."""
        return frozenset().union(*(model.special_ids for model in self.models))

    def over(self, sequences: Iterable[TokenSequence]) -> Iterator[Harvest]:
        """The harvests of a stream of sequences, `sequences_at_once` at a time."""
        stream = iter(sequences)
        if self.cache is None:
            while some := list(islice(stream, self.sequences_at_once)):
                yield self.harvest(some)
            return
        coming: deque[list[TokenSequence]] = deque()
        while some := list(islice(stream, self.sequences_at_once)):
            for model in self.models:
                self.cache.expect(model, self.hookpoints, torch.stack([sequence.tokens_S for sequence in some]))
            coming.append(some)
            if len(coming) > EXPECTED:
                yield self.harvest(coming.popleft())
        yield from map(self.harvest, coming)

    @torch.no_grad()
    def harvest(self, sequences: Sequence[TokenSequence]) -> Harvest:
        """Activations of some sequences of equal length, masked."""
        tokens_HS = torch.stack([sequence.tokens_S for sequence in sequences])
        documents_HS = torch.stack([sequence.documents_S for sequence in sequences])
        H, S = tokens_HS.shape
        acts_HSMPD = self.activations(tokens_HS)
        kept_HS = self._kept(acts_HSMPD, tokens_HS, documents_HS)
        kept_N = kept_HS.flatten().nonzero().squeeze(1).to(acts_HSMPD.device)
        return Harvest(
            acts_NMPD=acts_HSMPD.flatten(0, 1).index_select(0, kept_N),
            tokens_N=tokens_HS[kept_HS],
            positions_N=repeat(torch.arange(S), "S -> H S", H=H)[kept_HS],
            documents_N=documents_HS[kept_HS],
            sequences_N=repeat(torch.tensor([s.index for s in sequences]), "H -> H S", S=S)[kept_HS],
        )

    @torch.no_grad()
    def activations(self, tokens_HS: Int[Tensor, "H S"]) -> Float[Tensor, "H S M P D"]:
        """Every activation, nothing masked; D is the widest, narrower ones are zero-padded.

        Raises:
            BadInput: a token id that one of the models has no row for.
        """
        for model in self.models:
            check_ids(model.name, vocab_size_of(model), tokens_HS)
        acts_M = [self._activations_of(model, tokens_HS) for model in self.models]
        if len(acts_M) == 1:
            return acts_M[0].unsqueeze(2)
        if len({(acts.device, acts.dtype, acts.shape) for acts in acts_M}) == 1:
            return torch.stack(acts_M, dim=2)
        dtype = acts_M[0].dtype
        for acts_HSPD in acts_M[1:]:
            dtype = torch.promote_types(dtype, acts_HSPD.dtype)
        widest = max(acts_HSPD.shape[-1] for acts_HSPD in acts_M)
        acts_HSMPD = torch.zeros(
            *tokens_HS.shape, len(self.models), len(self.hookpoints), widest, dtype=dtype, device=acts_M[0].device
        )
        for m, acts_HSPD in enumerate(acts_M):
            acts_HSMPD[:, :, m, :, : acts_HSPD.shape[-1]] = acts_HSPD.to(acts_HSMPD.device)
        return acts_HSMPD

    def _activations_of(self, model: LanguageModel, tokens_HS: Int[Tensor, "H S"]) -> Float[Tensor, "H S P D"]:
        if self.cache is None:
            with phase("harvest"), one_at_a_time:
                return model.harvest(tokens_HS, self.hookpoints)
        return self.cache.get(model, self.hookpoints, tokens_HS)

    def _kept(
        self,
        acts_HSMPD: Float[Tensor, "H S M P D"],
        tokens_HS: Int[Tensor, "H S"],
        documents_HS: Int[Tensor, "H S"],
    ) -> Bool[Tensor, "H S"]:
        """Which tokens training sees: a function of this harvest batch alone."""
        kept_HS = documents_HS != PADDING
        kept_HS[:, : self.drop_first] = False
        if self.drop_special and self.special_ids:
            kept_HS &= ~torch.isin(tokens_HS, torch.tensor(sorted(self.special_ids)))
        if self.max_norm_multiple is not None and kept_HS.any():
            norms_HSX = rearrange(acts_HSMPD.float().norm(dim=-1), "H S M P -> H S (M P)").cpu()
            median_X = norms_HSX[kept_HS].median(dim=0).values
            kept_HS &= (norms_HSX <= self.max_norm_multiple * median_X).all(dim=-1)
        return kept_HS


def check_vocabularies(one: LanguageModel, other: LanguageModel) -> None:
    """Raises `BadInput` that says how two vocabularies differ: the same ids are fed to both models."""
    if dict(one.vocabulary) != dict(other.vocabulary):
        raise BadInput(
            f"models {one.name!r} and {other.name!r} have different vocabularies: "
            f"{_difference(one.vocabulary, other.vocabulary)}."
        )


def _difference(one: Mapping[str, int], other: Mapping[str, int]) -> str:
    moved = sorted((token for token in one if token in other and one[token] != other[token]), key=one.__getitem__)
    first = sorted((token for token in one if token not in other), key=one.__getitem__)
    second = sorted((token for token in other if token not in one), key=other.__getitem__)
    parts = [f"{len(one)} and {len(other)} tokens"]
    if moved:
        shown = ", ".join(f"{token!r} ({one[token]} and {other[token]})" for token in moved[:3])
        parts.append(f"{len(moved)} have other ids, as {shown}")
    for which, tokens in (("first", first), ("second", second)):
        if tokens:
            parts.append(f"{len(tokens)} are only in the {which}, as {', '.join(map(repr, tokens[:3]))}")
    return "; ".join(parts)
