"""What the data path asks of a language model. A model of your own needs these attributes and no base class.

Shapes: H sequences of a harvest batch, S positions, P hookpoints, D width, V vocabulary.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor

one_at_a_time = threading.RLock()
"""Held around every use of a model or a tokenizer: one thread may read ahead while another evaluates."""


@runtime_checkable
class LanguageModel(Protocol):
    """A language model whose activations can be harvested.

    Attributes:
        name: a short label for logs and plots.
        identity: what the activations depend on: name and revision (or a hash of the local files) and dtype. Two
            models of equal identity must give equal activations; the cache trusts it.
        vocabulary: token to id. Models that are harvested together must agree on it.
        special_ids: ids of the tokens that training leaves out (BOS, EOS, padding, chat markers).
        bos_id, eos_id: ids for `TokenSequences`, or None.
        tokenizer: called with a list of texts and `add_special_tokens=False`; returns `{"input_ids": [[...], ...]}`.
        context_length: the most positions that the model takes, or None when there is no limit.
        n_layers: transformer blocks.
        hookpoints: every name that `harvest` takes.
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
    def tokenizer(self) -> Any: ...
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
        that return what they were shown.
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
