"""What a small run needs: random language models and a text file on disk, and recipes called as a user calls them."""

import importlib.util
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

RECIPES = Path(__file__).parents[1] / "recipes"
WORDS = [f"w{i}" for i in range(61)]
VOCABULARY = {"<bos>": 0, "<eos>": 1, "<unk>": 2} | {word: i + 3 for i, word in enumerate(WORDS)}


def save_model(folder: Path, seed: int, width: int = 16, vocabulary: Mapping[str, int] = VOCABULARY) -> str:
    """A random Llama of four layers with a tokenizer of one token a word, as `save_pretrained` writes it."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(dict(vocabulary), unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    return str(folder)


def save_text(file: Path, n_documents: int = 200) -> str:
    """Paragraphs of random words, a few thousand tokens in all."""
    rng = random.Random(0)
    file.write_text("\n\n".join(" ".join(rng.choices(WORDS, k=rng.randint(10, 50))) for _ in range(n_documents)))
    return str(file)


def factory(recipe: str) -> Callable[..., Any]:
    """A recipe's factory, from its file."""
    spec = importlib.util.spec_from_file_location(recipe, RECIPES / f"{recipe}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, recipe)


def options(**values: Any) -> list[str]:
    """Command-line options: `n_latents=32` is `--n-latents 32`, True and False are flags."""
    arguments = []
    for name, value in values.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{option}" if value else f"--no-{option}")
        else:
            several = value if isinstance(value, list | tuple) else [value]
            arguments += [f"--{option}", *map(str, several)]
    return arguments


SMALL: Mapping[str, Any] = {
    "sequence_length": 32,
    "batch_size": 128,
    "shuffle_buffer": 1024,
    "n_latents": 32,
    "num_steps": 40,
    "log_every": 10,
    "checkpoint_every": 20,
    "eval_tokens": 500,
    "wandb_mode": "disabled",
    "report": False,
    "quiet": True,
}
