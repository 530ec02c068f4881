"""A language model of a few numbers with the hookpoints of two blocks: what it computes can be followed by hand.

Shapes: H sequences, S positions, P hookpoints, D width, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from crosscode.data.language_model import Edit

WORDS = [f"w{i}" for i in range(20)]
D = 6
POINTS = ("mlp.hook_in", "hook_mlp_out", "hook_resid_post")


class TinyModel:
    """Each block adds `tanh(stream W)` to a stream that begins as running means of the tokens' vectors.

    It offers the residual stream and the MLPs' inputs and outputs of both blocks.
    """

    bos_id, eos_id, context_length, n_layers = 0, 1, None, 2
    vocabulary: Mapping[str, int] = {"<bos>": 0, "<eos>": 1} | {word: i + 2 for i, word in enumerate(WORDS)}
    special_ids = frozenset({0, 1})
    hookpoints = tuple(f"blocks.{i}.{point}" for i in range(2) for point in POINTS)

    def __init__(self, seed: int = 0) -> None:
        self.name, self.identity, self.tokenizer = f"tiny{seed}", f"tiny@{seed}", self
        self.words = {id_: word for word, id_ in self.vocabulary.items()}
        generator = torch.Generator().manual_seed(seed)
        sizes = ((22, D), (D, 22), (2, D, D))
        self.embed_VD, self.unembed_DV, self.W_iDD = (torch.randn(*size, generator=generator) for size in sizes)

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[self.vocabulary.get(word, 2) for word in text.split()] for text in texts]}

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[int(id_)] for id_ in ids)

    def width(self, hookpoint: str) -> int:
        return D

    def unembedding(self) -> Tensor:
        return self.unembed_DV

    def direct_gain(self, hookpoint: str) -> float:
        return 1.0

    def harvest(self, tokens_HS: Tensor, hookpoints: Sequence[str]) -> Tensor:
        passed: dict[str, Tensor] = {}

        def keep(name: str) -> Edit:
            def edit(acts_HSD: Tensor) -> Tensor:
                passed[name] = acts_HSD.clone()
                return acts_HSD

            return edit

        self.logits(tokens_HS, {name: keep(name) for name in hookpoints})
        return torch.stack([passed[name] for name in hookpoints], dim=2)

    def logits(self, tokens_HS: Tensor, edits: Mapping[str, Any]) -> Tensor:
        def at(name: str, acts_HSD: Tensor) -> Tensor:
            return edits[name](acts_HSD) if name in edits else acts_HSD

        length_S1 = 1 + torch.arange(tokens_HS.shape[1])[:, None]
        stream_HSD = self.embed_VD[tokens_HS].cumsum(1) / length_S1
        for i, W_DD in enumerate(self.W_iDD):
            read_HSD = at(f"blocks.{i}.mlp.hook_in", stream_HSD)
            stream_HSD = stream_HSD + at(f"blocks.{i}.hook_mlp_out", (read_HSD @ W_DD).tanh())
            stream_HSD = at(f"blocks.{i}.hook_resid_post", stream_HSD)
        return stream_HSD @ self.unembed_DV
