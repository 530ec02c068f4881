"""A language model of a few lines, and tiny random Hugging Face models on disk: nothing here needs a network."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

VOCABULARY = {"<bos>": 0, "<eos>": 1, "<unk>": 2} | {f"w{i}": i + 3 for i in range(61)}


class Words:
    """A tokenizer: one token a word."""

    def __call__(self, texts: Sequence[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        assert not add_special_tokens
        return {"input_ids": [[VOCABULARY.get(word, 2) for word in text.split()] for text in texts]}


class FakeModel:
    """Activations that say which token they are of: coordinate 0 is the id, 1 the position, the rest the hookpoint.

    It inherits from nothing: being a `LanguageModel` takes the attributes alone.
    """

    def __init__(
        self,
        name: str = "fake",
        widths: dict[str, int] | None = None,
        dtype: torch.dtype = torch.float32,
        bos_id: int | None = 0,
        eos_id: int | None = 1,
        vocabulary: dict[str, int] = VOCABULARY,
        context_length: int | None = None,
    ) -> None:
        self.name, self.identity, self.dtype = name, f"{name}@1:{dtype}", dtype
        self.widths = widths or {"a": 3, "b": 3}
        self.bos_id, self.eos_id, self.vocabulary = bos_id, eos_id, vocabulary
        self.special_ids = frozenset({0, 1})
        self.tokenizer, self.context_length, self.n_layers = Words(), context_length, 2
        self.hookpoints = tuple(self.widths)
        self.harvested: list[Tensor] = []

    def width(self, hookpoint: str) -> int:
        from crosscode.errors import BadInput, close_match

        if hookpoint not in self.widths:
            raise BadInput(f"hookpoint {hookpoint!r} is unknown.{close_match(hookpoint, self.widths)}")
        return self.widths[hookpoint]

    def harvest(self, tokens_HS: Tensor, hookpoints: Sequence[str]) -> Tensor:
        self.harvested.append(tokens_HS.clone())
        H, S = tokens_HS.shape
        widest = max(map(self.width, hookpoints))
        acts_HSPD = torch.zeros(H, S, len(hookpoints), widest)
        for p, hookpoint in enumerate(hookpoints):
            acts_HSPD[:, :, p, : self.widths[hookpoint]] = 1 / 3 + self.hookpoints.index(hookpoint)
            acts_HSPD[:, :, p, 0] = tokens_HS
            acts_HSPD[:, :, p, 1] = torch.arange(S)
        return acts_HSPD.to(self.dtype)


@pytest.fixture(scope="session")
def fake_model() -> Callable[..., FakeModel]:
    """The class of fake models."""
    return FakeModel


@pytest.fixture(scope="session")
def documents() -> Callable[..., list[str]]:
    """Texts of random words: `documents(n, longest=…, seed=…)`."""

    def make(n: int, longest: int = 40, seed: int = 0) -> list[str]:
        g = torch.Generator().manual_seed(seed)

        def integer(low: int, high: int) -> int:
            return int(torch.randint(low, high, (), generator=g))

        return [" ".join(f"w{integer(0, 61)}" for _ in range(integer(1, longest))) for _ in range(n)]

    return make


def _save(folder: Path, architecture: str) -> Path:
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ids = {"bos_token_id": 0, "eos_token_id": 1}
    llama_like = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
    }
    sizes = {
        "Llama": llama_like | {"num_key_value_heads": 2},
        "GPTNeoX": llama_like,
        "GPT2": {"vocab_size": 64, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
    }[architecture]
    kind = "LMHeadModel" if architecture == "GPT2" else "ForCausalLM"
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**sizes, **ids)
    getattr(transformers, f"{architecture}{kind}")(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny random model: `saved_model("Llama")`, `"GPTNeoX"` or `"GPT2"`; made once, never changed."""
    folders: dict[str, Path] = {}

    def folder(architecture: str) -> Path:
        if architecture not in folders:
            folders[architecture] = _save(tmp_path_factory.mktemp(architecture), architecture)
        return folders[architecture]

    return folder
