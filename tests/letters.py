"""A user's file: a language model of letters, a text, and what is neither; tests read it as text or import it."""

from typing import Any, ClassVar

import torch


class Tokenizer:
    """A letter a token."""

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, Any]:
        return {"input_ids": [[ord(letter) - 97 for letter in text if letter.isalpha()] for text in texts]}

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(97 + i) for i in ids)


class Letters:
    """A language model of one layer: an embedding, drawn from a seed."""

    vocabulary: ClassVar[dict[str, int]] = {chr(97 + i): i for i in range(26)}
    special_ids: frozenset[int] = frozenset()
    bos_id = eos_id = context_length = None
    n_layers = 1
    hookpoints = ("embedding",)
    tokenizer = Tokenizer()

    def __init__(self, seed: int = 0, name: str = "letters") -> None:
        self.name, self.identity = name, f"letters {seed}"
        self.n_harvests = 0
        self.W_VD = torch.randn(26, 8, generator=torch.Generator().manual_seed(seed))

    def width(self, hookpoint: str) -> int:
        return 8

    def harvest(self, tokens_HS: torch.Tensor, hookpoints: Any) -> torch.Tensor:
        self.n_harvests += 1
        return self.W_VD[tokens_HS][:, :, None].cumsum(1)


calls: list[str] = []


def make() -> Letters:
    calls.append("make")
    return Letters()


def text() -> list[str]:
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]
    return [" ".join(words[(i * j) % 10] for j in range(40)) for i in range(200)]


def broken() -> Letters:
    raise OSError("no weights here")


number = 3


class Mute(Letters):
    tokenizer = None  # type: ignore[assignment]


class NoWidth(Letters):
    width = None  # type: ignore[assignment]
