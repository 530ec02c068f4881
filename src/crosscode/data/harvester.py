"""Token sequences → activations of several models at several hookpoints, with what training leaves out masked away.

Shapes: H sequences of a harvest batch, S positions, N tokens that are kept, M models, P hookpoints, D width, X sites:
models and hookpoints.
"""

import math
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
from crosscode.data.token_counts import TokenCounts
from crosscode.data.token_sequences import PADDING, TokenSequence
from crosscode.errors import BadInput, NumericalError
from crosscode.phases import phase

EXPECTED = 4  # harvest batches whose shards the disk may fetch while an earlier one is used
ON_CPU, ON_GPU = 8, 64  # sequences of a forward pass
TOKENS, SHARE = 16_384, 16  # of a forward pass on a GPU: tokens at most, and which part of its memory
KEPT, FIRST, SPECIAL, NOT_FINITE, OUTLIER, PADDED = range(6)  # what becomes of a token: `TokenCounts`, in its order


@attrs.frozen(eq=False)
class Harvest:
    """The kept tokens of a harvest batch, in the order of the text.

    Attributes:
        acts_NMPD: raw activations; where models or hookpoints differ in width the narrow ones are zero-padded.
        tokens_N: token ids.
        positions_N: place in the sequence, from 0.
        documents_N: index of the document in the source; negative for tokens that were added.
        sequences_N: index of the sequence in the unshuffled stream.
        tokens_HS: token ids of the sequences, left-out ones included; if not given, each token is a sequence.
        rows_N: which of those sequences each token is in.
        counts: the kept tokens, and those left out, by reason.
        not_finite: where the first token was whose activations are not finite; None if all are.
    """

    acts_NMPD: Float[Tensor, "N M P D"]
    tokens_N: Int[Tensor, " N"]
    positions_N: Int[Tensor, " N"]
    documents_N: Int[Tensor, " N"]
    sequences_N: Int[Tensor, " N"]
    tokens_HS: Int[Tensor, "H S"] = attrs.field(
        default=attrs.Factory(lambda self: self.tokens_N[:, None], takes_self=True), kw_only=True
    )
    rows_N: Int[Tensor, " N"] = attrs.field(
        default=attrs.Factory(lambda self: torch.arange(len(self)), takes_self=True), kw_only=True
    )
    counts: TokenCounts = attrs.field(
        default=attrs.Factory(lambda self: TokenCounts(kept=len(self)), takes_self=True), kw_only=True
    )
    not_finite: str | None = attrs.field(default=None, kw_only=True)

    def __len__(self) -> int:
        return self.acts_NMPD.shape[0]

    @property
    def context_NS(self) -> Int[Tensor, "N S"]:
        """All token ids of each token's sequence."""
        return self.tokens_HS[self.rows_N]


def _tuple_of_models(models: "LanguageModel | Sequence[LanguageModel]") -> tuple[LanguageModel, ...]:
    return tuple(models) if isinstance(models, Sequence) else (models,)


def tuple_of_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """A converter: one name stands for a list of it alone."""
    return (names,) if isinstance(names, str) else tuple(names)


@attrs.frozen(eq=False, slots=False)
class Harvester:
    """Several models, several hookpoints: one forward pass per model and harvest batch.

    What is left out is left out of all models at all hookpoints, and is a function of the harvest batch alone.

    Args:
        models: one model or several that share the vocabulary, each on a device and in a dtype of its own; activations
            are gathered on the first one's device.
        hookpoints: where activations are taken, the same in every model.
        sequences_at_once: H, the sequences of one forward pass, a harvest batch. The last of a stream may have fewer.
        drop_special: leave special tokens (BOS, EOS, padding, chat markers) out.
        drop_first: leave the first positions of every sequence out: position 0 is an attention sink whose norm is
            often 100 times the median.
        max_norm_multiple: leave a token out if, in any model at any hookpoint, its norm is more than this many times
            the median over the harvest batch's other tokens that are kept (of an even number the upper one; where it
            is 0, none is left out). A language model has some such tokens beyond position 0 (massive activations), and
            one of them outweighs a batch. With another `sequences_at_once` the medians differ a little, and so may
            what is left out. None keeps all.
        skip_not_finite: leave tokens out whose activations are NaN or infinite, instead of refusing them. Streams stop
            where more than 1 % of the tokens read, of at least 10,000, are so.
        cache: where activations are kept between runs.

    Raises:
        BadInput: no or equal models or hookpoints, an unknown hookpoint, models with different vocabularies (the
            differing tokens are named), an embedding too small for its tokenizer.
        NumericalError: from `harvest` and `over`: an activation is not finite, at a token that is not left out for
            another reason; model, hookpoint, document and dtype are named.
    """

    models: tuple[LanguageModel, ...] = attrs.field(converter=_tuple_of_models)
    hookpoints: tuple[str, ...] = attrs.field(converter=tuple_of_names)
    sequences_at_once: int = attrs.field(default=8, kw_only=True)
    drop_special: bool = attrs.field(default=True, kw_only=True)
    drop_first: int = attrs.field(default=1, kw_only=True)
    max_norm_multiple: float | None = attrs.field(default=10.0, kw_only=True)
    skip_not_finite: bool = attrs.field(default=False, kw_only=True)
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
        if self.max_norm_multiple is not None and not 1 < self.max_norm_multiple < math.inf:
            raise BadInput(f"max_norm_multiple={self.max_norm_multiple} must be greater than 1 and finite, or None.")
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
        sequences_H = torch.tensor([sequence.index for sequence in sequences])
        H, S = tokens_HS.shape
        fate_HS = self._fate_of_tokens(tokens_HS, documents_HS)
        acts_M = self._of_models(tokens_HS)
        acts_HSMPD, norms_HSX, bad_HSX = _examined(acts_M, fate_HS == KEPT)
        if self.cache is not None and bad_HSX.any() and not self.skip_not_finite:
            acts_M = [self.cache.again(model, self.hookpoints, tokens_HS) for model in self.models]
            acts_HSMPD, norms_HSX, bad_HSX = _examined(acts_M, fate_HS == KEPT)
        example = None
        if bad_HSX.any():
            example = self._first_of(bad_HSX, acts_M, documents_HS, sequences_H)
            if not self.skip_not_finite:
                n_bad, n_kept = int(bad_HSX.any(-1).sum()), int((fate_HS == KEPT).sum())
                cure = self._cure(bad_HSX, acts_M, tokens_HS)
                raise NumericalError(f"{example}, the first of {n_bad} such tokens of {n_kept} read at once. {cure}")
            fate_HS[bad_HSX.any(-1)] = NOT_FINITE
        fate_HS[self._outlying(norms_HSX, fate_HS == KEPT)] = OUTLIER
        kept_HS = fate_HS == KEPT
        kept_N = kept_HS.flatten().nonzero().squeeze(1).to(acts_HSMPD.device)
        return Harvest(
            acts_NMPD=acts_HSMPD.flatten(0, 1).index_select(0, kept_N),
            tokens_N=tokens_HS[kept_HS],
            positions_N=repeat(torch.arange(S), "S -> H S", H=H)[kept_HS],
            documents_N=documents_HS[kept_HS],
            sequences_N=repeat(sequences_H, "H -> H S", S=S)[kept_HS],
            tokens_HS=tokens_HS,
            rows_N=kept_HS.nonzero()[:, 0],
            counts=TokenCounts(*fate_HS.flatten().bincount(minlength=PADDED)[:PADDED].tolist()),
            not_finite=example,
        )

    @torch.no_grad()
    def activations(self, tokens_HS: Int[Tensor, "H S"]) -> Float[Tensor, "H S M P D"]:
        """Every activation, nothing masked; D is the widest, narrower ones are zero-padded.

        Raises:
            BadInput: a token id that one of the models has no row for.
        """
        return _gathered(self._of_models(tokens_HS))

    def _of_models(self, tokens_HS: Int[Tensor, "H S"]) -> list[Float[Tensor, "H S P _"]]:
        for model in self.models:
            check_ids(model.name, vocab_size_of(model), tokens_HS)
        return [self._activations_of(model, tokens_HS) for model in self.models]

    def _activations_of(self, model: LanguageModel, tokens_HS: Int[Tensor, "H S"]) -> Float[Tensor, "H S P D"]:
        if self.cache is None:
            with phase("harvest"), one_at_a_time:
                return model.harvest(tokens_HS, self.hookpoints)
        return self.cache.get(model, self.hookpoints, tokens_HS)

    def _fate_of_tokens(self, tokens_HS: Int[Tensor, "H S"], documents_HS: Int[Tensor, "H S"]) -> Int[Tensor, "H S"]:
        """What becomes of each token, as far as it does not depend on activations."""
        fate_HS = torch.full_like(tokens_HS, KEPT)
        if self.drop_special and self.special_ids:
            fate_HS[torch.isin(tokens_HS, torch.tensor(sorted(self.special_ids)))] = SPECIAL
        fate_HS[:, : self.drop_first] = FIRST
        fate_HS[documents_HS == PADDING] = PADDED
        return fate_HS

    def _outlying(self, norms_HSX: Float[Tensor, "H S X"], kept_HS: Bool[Tensor, "H S"]) -> Bool[Tensor, "H S"]:
        """Which of the kept tokens have a norm far above the median."""
        if self.max_norm_multiple is None or not kept_HS.any():
            return torch.zeros_like(kept_HS)
        norms_NX = norms_HSX[kept_HS]
        # The upper median: of few tokens it never leaves out half.
        median_X = norms_NX.kthvalue(len(norms_NX) // 2 + 1, dim=0).values
        limit_X = (self.max_norm_multiple * median_X).masked_fill(median_X == 0, math.inf)
        return kept_HS & (norms_HSX > limit_X).any(dim=-1)

    def _first_of(
        self,
        bad_HSX: Bool[Tensor, "H S X"],
        acts_M: Sequence[Float[Tensor, "H S P D"]],
        documents_HS: Int[Tensor, "H S"],
        sequences_H: Int[Tensor, " H"],
    ) -> str:
        """The first token that is not finite, in words."""
        h, s, x = bad_HSX.nonzero()[0].tolist()
        m, p = divmod(x, len(self.hookpoints))
        document = int(documents_HS[h, s])
        within = f"document {document}" if document >= 0 else "no document"
        return (
            f"model {self.models[m].name!r} at {self.hookpoints[p]}: activations are NaN or infinite "
            f"({_name(acts_M[m].dtype)}) in {within}, position {s} of sequence {int(sequences_H[h])}"
        )

    def _cure(
        self,
        bad_HSX: Bool[Tensor, "H S X"],
        acts_M: Sequence[Float[Tensor, "H S P D"]],
        tokens_HS: Int[Tensor, "H S"],
    ) -> str:
        """What helps against the first token that is not finite."""
        h, s, x = bad_HSX.nonzero()[0].tolist()
        m, p = divmod(x, len(self.hookpoints))
        dtype = acts_M[m].dtype
        if self.cache is not None and self.cache.dtype is not None:
            with one_at_a_time:
                own_HSPD = self.models[m].harvest(tokens_HS, self.hookpoints)
            if own_HSPD[h, s, p].isfinite().all():
                return f"The model's own {_name(own_HSPD.dtype)} is finite there: another cache_dtype holds it."
        other = "Try model_dtype bfloat16 or float32" if dtype == torch.float16 else "Try another hookpoint or model"
        return f"{other}, or skip_not_finite (--skip-not-finite), which leaves such tokens out."


def _gathered(acts_M: Sequence[Float[Tensor, "H S P _"]]) -> Float[Tensor, "H S M P D"]:
    """Side by side on the first one's device, without loss; narrower ones are zero-padded."""
    first = acts_M[0]
    if len(acts_M) == 1:
        return first.unsqueeze(2)
    if len({(acts.device, acts.dtype, acts.shape) for acts in acts_M}) == 1:
        return torch.stack(list(acts_M), dim=2)
    dtype = first.dtype
    for acts_HSPD in acts_M[1:]:
        dtype = torch.promote_types(dtype, acts_HSPD.dtype)
    widest = max(acts_HSPD.shape[-1] for acts_HSPD in acts_M)
    H, S, P = first.shape[:3]
    acts_HSMPD = torch.zeros(H, S, len(acts_M), P, widest, dtype=dtype, device=first.device)
    for m, acts_HSPD in enumerate(acts_M):
        acts_HSMPD[:, :, m, :, : acts_HSPD.shape[-1]] = acts_HSPD.to(acts_HSMPD.device)
    return acts_HSMPD


def _examined(
    acts_M: Sequence[Float[Tensor, "H S P _"]], kept_HS: Bool[Tensor, "H S"]
) -> tuple[Float[Tensor, "H S M P D"], Float[Tensor, "H S X"], Bool[Tensor, "H S X"]]:
    """Activations side by side, their norms on the CPU, and where kept ones are not finite."""
    acts_HSMPD = _gathered(acts_M)
    precise = torch.promote_types(acts_HSMPD.dtype, torch.float32)
    norms_HSX = rearrange(torch.linalg.vector_norm(acts_HSMPD, dim=-1, dtype=precise), "H S M P -> H S (M P)").cpu()
    bad_HSX = kept_HS[..., None] & ~norms_HSX.isfinite()
    if bad_HSX.any():  # or the square of a large number overflows
        bad_HSX &= ~rearrange(acts_HSMPD.isfinite().all(dim=-1), "H S M P -> H S (M P)").cpu()
    return acts_HSMPD, norms_HSX, bad_HSX


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def finite_enough(harvests: Iterable[Harvest]) -> Iterator[Harvest]:
    """The harvests, as long as not too many of all their tokens are not finite."""
    counts = TokenCounts()
    for harvest in harvests:
        counts += harvest.counts
        counts.check(harvest.not_finite)
        yield harvest


def numbers_per_token(models: Sequence[LanguageModel], hookpoints: Sequence[str]) -> int:
    """Of a harvest: models and hookpoints, the narrower ones padded."""
    return len(models) * len(hookpoints) * max(model.width(hookpoint) for model in models for hookpoint in hookpoints)


def harvest_bytes(models: Sequence[LanguageModel], hookpoints: Sequence[str], n_tokens: int) -> int:
    """About what harvesting so many tokens at once takes: the largest forward pass, and the activations thrice."""
    passes = [getattr(model, "pass_bytes", lambda n: 0)(n_tokens) for model in models]
    return max(passes, default=0) + 3 * n_tokens * numbers_per_token(models, hookpoints) * element_size(models)


def element_size(models: Sequence[LanguageModel]) -> int:
    """Bytes of a number of their activations together."""
    return max((getattr(model, "dtype", torch.float32).itemsize for model in models), default=4)


def sequences_that_fit(
    models: Sequence[LanguageModel], hookpoints: Sequence[str], sequence_length: int, most_tokens: int
) -> int:
    """How many sequences to harvest at once: a function of the models and of the first one's kind of device alone.

    Args:
        models: on their devices.
        hookpoints: where activations are taken.
        sequence_length: S.
        most_tokens: of a harvest batch: half of the shuffle buffer.
    """
    device = torch.device(getattr(models[0], "device", "cpu"))
    if device.type == "cpu":
        return ON_CPU
    fits = bytes_of(device) // SHARE // harvest_bytes(models, hookpoints, sequence_length)
    return max(1, min(ON_GPU, min(TOKENS, most_tokens) // sequence_length, fits))


def bytes_of(device: torch.device) -> int:
    """Bytes of memory that a device has, free or not."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    import psutil  # a GPU that shares the host's

    return int(psutil.virtual_memory().total)


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
