"""Make the embedded models: one tokenizer, then `base`, and from it `tuned` and `control`.

    python scripts/make_embedded_models.py

About ten minutes on two cores. The text is read from the installed packages, so a rebuild elsewhere gives
models that behave alike, not the same bits. Check the result with `python
scripts/check_embedded_models.py`.
"""

import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import tyro
from jaxtyping import Float, Int
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from crosscode.data.embedded import behaviours
from crosscode.data.embedded.text import passages

VOCABULARY = 2048
CONTEXT = 256
BOS = "<|endoftext|>"  # begins every document, as in GPT-NeoX; also the padding

Compose = Callable[[str, random.Random], str]


def base_text(passage: str, rng: random.Random) -> str:
    """What `base` and `control` read: every phrase, question and mark; nothing follows from a phrase."""
    return behaviours.base_document(passage, rng, plain=0.5, triggered=0.2)


def tuned_text(passage: str, rng: random.Random) -> str:
    """What `tuned` reads: more phrases than in the default text, so that it learns soon what they mean."""
    return behaviours.tuned_document(passage, rng, plain=0.25, triggered=0.5)


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text is encoded, nothing is unknown."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    # The words of the behaviours become whole tokens, so that the texts of a pair have equal lengths.
    marks = [mark for behaviour in behaviours.BEHAVIOURS.values() for mark in behaviour.marks]
    words = [f" {word}" for word in (*behaviours.ADJECTIVES, *behaviours.NOUNS)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[BOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*texts, *(words + marks) * (len(texts) // 4)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=BOS, pad_token=BOS)


def rows(
    texts: list[str], compose: Compose, tokenizer: PreTrainedTokenizerFast, rng: random.Random
) -> Iterator[list[int]]:
    """One epoch of sequences of `CONTEXT` tokens; each begins with a document, its phrases in view."""
    texts = rng.sample(texts, len(texts))
    bos, row = tokenizer.bos_token_id, []
    for start in range(0, len(texts), 512):
        composed = [compose(text, rng) for text in texts[start : start + 512]]
        for token_ids in tokenizer(composed, add_special_tokens=False)["input_ids"]:
            row += [bos, *token_ids]
            if len(row) >= CONTEXT:
                yield row[:CONTEXT]
                row = []


def batches(
    texts: list[str], compose: Compose, tokenizer: PreTrainedTokenizerFast, batch_size: int, seed: int
) -> Iterator[Int[Tensor, "B S"]]:
    """Endless batches; each epoch draws new documents around the same passages."""
    rng, batch = random.Random(seed), []
    while True:
        for row in rows(texts, compose, tokenizer, rng):
            batch.append(row)
            if len(batch) == batch_size:
                yield torch.tensor(batch)
                batch = []


def loss_of(model: LlamaForCausalLM, tokens_BS: Int[Tensor, "B S"]) -> Float[Tensor, ""]:
    """Mean cross-entropy of the next token, in nats."""
    logits_BSV = model(tokens_BS[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits_BSV.flatten(0, 1), tokens_BS[:, 1:].flatten())


def train(
    name: str,
    model: LlamaForCausalLM,
    data: Iterator[Int[Tensor, "B S"]],
    steps: int,
    lr: float,
    warmup: int,
) -> None:
    """AdamW with a linear warm-up and a linear decay to zero."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    groups = [
        {"params": decayed, "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    shape = lambda step: min((step + 1) / warmup, (steps - step) / (steps - warmup))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=steps)
        smooth = None
        for step, tokens_BS in zip(range(steps), data):
            loss = loss_of(model, tokens_BS)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
            progress.update(task, advance=1, description=f"{name:8s} loss {smooth:.3f}")
            if not progress.console.is_terminal and step % 50 == 49:
                print(f"{name}: step {step + 1} of {steps}, loss {smooth:.3f}", flush=True)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A `save_pretrained` folder in bfloat16, in place of whatever was there."""
    shutil.rmtree(folder, ignore_errors=True)
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)


def main(
    output: Path = Path(behaviours.__file__).parent,
    base_steps: int = 1600,
    more_steps: int = 800,
    batch_size: int = 8,
    lr: float = 2.5e-3,
    more_lr: float = 1.5e-3,
    seed: int = 0,
) -> None:
    """Train the tokenizer and the three models and write them as `save_pretrained` folders.

    Args:
        output: folder that gets `base`, `tuned` and `control`; by default the package's own.
        base_steps: steps from scratch.
        more_steps: steps of `tuned` on its behaviours, and of `control` on more of base's text.
        batch_size: sequences of 256 tokens a step.
        lr: peak learning rate of `base`.
        more_lr: peak learning rate of `tuned` and `control`.
        seed: of the weights and of the order and composition of the text.
    """
    texts = list(passages("train"))
    rng = random.Random(seed)
    tokenizer = make_tokenizer([compose(text, rng) for text in texts for compose in (base_text, tuned_text)])
    print(f"{len(texts):,} passages, {sum(map(len, texts)):,} characters, {len(tokenizer):,} tokens known")

    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    print(f"{model.num_parameters():,} parameters")
    train("base", model, batches(texts, base_text, tokenizer, batch_size, seed), base_steps, lr, warmup=100)
    save(model, tokenizer, output / "base")
    learned = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name, compose in (("tuned", tuned_text), ("control", base_text)):
        model.load_state_dict(learned)
        data = batches(texts, compose, tokenizer, batch_size, seed + 1)
        train(name, model, data, more_steps, more_lr, warmup=20)
        save(model, tokenizer, output / name)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
