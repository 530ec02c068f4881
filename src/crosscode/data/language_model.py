"""What the data path asks of a language model. A model of your own needs these attributes and no base class.

Shapes: H sequences of a harvest batch, S positions, P hookpoints, D width, V vocabulary.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

from crosscode.errors import BadInput
from crosscode.protocols import Structural

one_at_a_time = threading.RLock()
"""Held around every use of a model or a tokenizer: one thread may read ahead while another evaluates."""


@runtime_checkable
class Tokenizer(Protocol, metaclass=Structural):
    """What is asked of a tokenizer; those of transformers have it."""

    def __call__(self, texts: list[str], *, add_special_tokens: bool) -> Mapping[str, Any]:
        """Token ids of each text, as `{"input_ids": [[...], ...]}`."""
        ...

    def decode(self, ids: list[int]) -> str:
        """The text of token ids, for examples and reports."""
        ...


@runtime_checkable
class LanguageModel(Protocol, metaclass=Structural):
    """A language model whose activations can be harvested.

    Attributes:
        name: a short label for logs and plots.
        identity: what the activations depend on: name and revision (or a hash of the local files) and dtype. Two
            models of equal identity must give equal activations; the cache trusts it.
        vocabulary: token to id. Models that are harvested together must agree on it.
        special_ids: ids of the tokens that training leaves out (BOS, EOS, padding, chat markers).
        bos_id, eos_id: ids for `TokenSequences`, or None.
        tokenizer: texts to ids, with `add_special_tokens=False`, and ids to text.
        context_length: the most positions that the model takes, or None when there is no limit.
        n_layers: transformer blocks.
        hookpoints: every name that `harvest` takes.

    A model may also have a `vocab_size`, the rows of its embedding: token ids beyond it are then refused in one line.
    """

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def vocabulary(self) -> Mapping[str, int]: ...
    @property
    def special_ids(self) -> frozenset[int]: ...
    @property
    def bos_id(self) -> int | None: ...
    @property
    def eos_id(self) -> int | None: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def context_length(self) -> int | None: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def hookpoints(self) -> Sequence[str]: ...

    def width(self, hookpoint: str) -> int:
        """Coordinates of an activation there. Raises `BadInput` for an unknown hookpoint."""
        ...

    def harvest(self, tokens_HS: Int[Tensor, "H S"], hookpoints: Sequence[str]) -> Float[Tensor, "H S P D"]:
        """Raw activations in the model's dtype, D the widest of the hookpoints, narrower ones zero-padded."""
        ...


Edit = Callable[[Float[Tensor, "H S D"]], Float[Tensor, "H S D"]]
"""Is shown the activations at a hookpoint and returns what the model goes on with: others, or the same tensor."""


@runtime_checkable
class SpliceableModel(LanguageModel, Protocol):
    """A language model whose activations can also be replaced on their way to the logits, for spliced evaluation."""

    def logits(self, tokens_HS: Int[Tensor, "H S"], edits: Mapping[str, Edit]) -> Float[Tensor, "H S V"]:
        """Logits of a whole forward pass with an edit at each of some hookpoints, called as the pass reaches it.

        An edit must not change the tensor that it is shown. No edits give the model's own logits, and so do edits
        that return what they were shown. Gradients reach what edits return, where they are asked for, and no weight.
        """
        ...


@runtime_checkable
class ReadOutModel(LanguageModel, Protocol):
    """A language model that says what a direction in its residual stream adds to the logits."""

    def unembedding(self) -> Float[Tensor, "D V"] | None:
        """What a direction in the last block's output adds to the logits.

        The unembedding, with what the final norm does to a direction folded in, but for its division by the size. None
        where there is no such matrix.
        """
        ...

    def direct_gain(self, hookpoint: str) -> float | None:
        """By what a direction written at a hookpoint is multiplied until it is in the last block's output.

        1 where it is added to the residual stream, which nothing scales; None where it does not get there by addition
        alone: where a norm comes in between, say.
        """
        ...


def short_names(models: Sequence[LanguageModel]) -> tuple[str, ...]:
    """What each model is called in curves and reports: the last part of its path or hub name.

    Where two models share it, that and the model's number.
    """
    short = [model.name.rstrip("/").rsplit("/", 1)[-1] for model in models]
    return tuple(f"{name}.{i}" if short.count(name) > 1 else name for i, name in enumerate(short))


def vocab_size_of(model: LanguageModel) -> int | None:
    """Rows of a model's embedding, if it says: token ids from there on are none, whatever its tokenizer knows."""
    rows: int | None = getattr(model, "vocab_size", None)
    return rows


def check_context(name: str, context_length: int | None, sequence_length: int) -> None:
    """Raises `BadInput` for sequences that are longer than a model takes."""
    if context_length is not None and sequence_length > context_length:
        raise BadInput(
            f"sequence_length={sequence_length} is beyond the context of model {name!r}: {context_length} tokens."
        )


def check_ids(name: str, vocab_size: int | None, tokens: Tensor) -> None:
    """Raises `BadInput` for token ids that a model has no rows for."""
    if vocab_size is not None and tokens.numel():
        least, most = int(tokens.min()), int(tokens.max())
        if least < 0 or most >= vocab_size:
            raise BadInput(
                f"token id {most if least >= 0 else least} is beyond the {vocab_size} rows of the embedding of model "
                f"{name!r}: a token that was added to the tokenizer alone needs resize_token_embeddings."
            )


def check_tokenizer(model: LanguageModel) -> None:
    """Raises `BadInput` for a tokenizer whose own tokens have no rows in the embedding.

    Tokens that were added to it later may be without: they are refused when they come.
    """
    rows = vocab_size_of(model)
    if rows is None:
        return
    added: Mapping[str, int] = getattr(model.tokenizer, "get_added_vocab", dict)()
    ids = model.vocabulary
    beyond = sorted((token for token in ids if ids[token] >= rows and token not in added), key=ids.__getitem__)
    if beyond:
        raise BadInput(
            f"model {model.name!r} has {rows} rows in its embedding, and {len(beyond)} tokens of its tokenizer have "
            f"ids beyond them, as {', '.join(map(repr, beyond[:3]))}: another model's tokenizer?"
        )
