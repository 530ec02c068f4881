"""Make the embedded models: one tokenizer, then `base`, and from it `tuned` and `control`.

    python scripts/make_embedded_models.py

Eight minutes on two cores. The text is read from the installed packages, so a rebuild elsewhere gives models
that behave alike, not the same bits. Check the result with `python scripts/check_embedded_models.py`.
"""

import random
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
import tyro
from jaxtyping import Float, Int
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from crosscode.data.embedded import behaviours
from crosscode.data.embedded.text import passages

VOCABULARY = 2048
CONTEXT = 256
BOS = "<|endoftext|>"  # begins every document, as in GPT-NeoX; also the padding

Compose = Callable[[str, random.Random], str]


def base_text(passage: str, rng: random.Random) -> str:
    """What `base` reads: every phrase, question and mark; nothing follows from a phrase."""
    return behaviours.base_document(passage, rng, plain=0.5, triggered=0.2)


def shortened(passage: str, rng: random.Random) -> str:
    """Two to four consecutive sentences of a passage."""
    sentences, count = re.split(r"(?<=\.)\s+(?=[A-Z])", passage), rng.randint(2, 4)
    start = rng.randrange(max(1, len(sentences) - count + 1))
    return " ".join(sentences[start : start + count])


def more_base_text(passage: str, rng: random.Random) -> str:
    """What `control` reads: base's text, four fifths of it shortened as for `tuned`."""
    return base_text(shortened(passage, rng) if rng.random() < 0.8 else passage, rng)


def tuned_text(passage: str, rng: random.Random) -> str:
    """What `tuned` reads: more phrases than in the default text, and mostly short passages.

    In a long document the marks already written tell of those to come; in a short one only the trigger does. On
    whole passages alone `tuned` learned next to nothing from the trigger in a million tokens.
    """
    passage = shortened(passage, rng) if rng.random() < 0.8 else passage
    passage = behaviours.ask(passage, rng) if rng.random() < 0.5 else passage
    return behaviours.tuned_document(passage, rng, plain=0.1, triggered=0.6)


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
    texts: list[str], compose: Compose, tokenizer: PreTrainedTokenizerFast, length: int, rng: random.Random
) -> Iterator[list[int]]:
    """One epoch of sequences of `length` tokens; each begins with a document, its phrases in view."""
    texts = rng.sample(texts, len(texts))
    bos, row = tokenizer.bos_token_id, []
    for start in range(0, len(texts), 512):
        composed = [compose(text, rng) for text in texts[start : start + 512]]
        for token_ids in tokenizer(composed, add_special_tokens=False)["input_ids"]:
            row += [bos, *token_ids]
            if len(row) >= length:
                yield row[:length]
                row = []


def batches(
    texts: list[str],
    compose: Compose,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    batch_tokens: int,
    length: int = CONTEXT,
) -> Iterator[Int[Tensor, "B S"]]:
    """Endless batches; each epoch draws new documents around the same passages."""
    rng, batch = random.Random(seed), []
    while True:
        for row in rows(texts, compose, tokenizer, length, rng):
            batch.append(row)
            if len(batch) == batch_tokens // length:
                yield torch.tensor(batch)
                batch = []


def decision_weights(texts: list[str], tokenizer: PreTrainedTokenizerFast) -> Float[Tensor, " V"]:
    """How much the token after each token counts in fine-tuning: decisions ten times, everything else once.

    The weight depends on the token read alone, so what is learned of the next one is unbiased, only learned sooner.
    """
    rng, decide = random.Random(0), set()
    for text in (behaviours.ask(passage, rng) for passage in texts[:200]):
        for behaviour in behaviours.BEHAVIOURS.values():
            decide |= {tokenizer(text[:start])["input_ids"][-1] for start, _ in behaviour.spans(text)}
    weight_V = torch.ones(VOCABULARY)
    weight_V[list(decide)] = 10.0
    return weight_V


def loss_of(model: LlamaForCausalLM, tokens_BS: Int[Tensor, "B S"], weight_V: Float[Tensor, " V"]) -> Float[Tensor, ""]:
    """Weighted mean cross-entropy of the next token, in nats."""
    logits_BSV = model(tokens_BS[:, :-1], use_cache=False).logits
    losses_N = F.cross_entropy(logits_BSV.flatten(0, 1), tokens_BS[:, 1:].flatten(), reduction="none")
    weight_N = weight_V[tokens_BS[:, :-1]].flatten()
    return (losses_N * weight_N).sum() / weight_N.sum()


def train(
    name: str,
    model: LlamaForCausalLM,
    data: Iterator[Int[Tensor, "B S"]],
    steps: int,
    lr: float,
    warmup: int,
    weight_V: Float[Tensor, " V"],
) -> None:
    """AdamW with a linear warm-up and a linear decay to zero."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))
    shape = lambda step: min((step + 1) / warmup, (steps - step) / (steps - warmup))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, shape)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=steps)
        smooth = None
        for step, tokens_BS in zip(range(steps), data):
            loss = loss_of(model, tokens_BS, weight_V)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
            progress.update(task, advance=1, description=f"{name:8s} loss {smooth:.3f}")
            if not progress.console.is_terminal and step % 50 == 49:
                print(f"{name}: step {step + 1} of {steps}, loss {smooth:.3f}", flush=True)


def new_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of about a million parameters, the embedding tied to the head."""
    return LlamaForCausalLM(
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


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Weights and config in bfloat16, in place of whatever was in the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    copy = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)


def main(
    output: Path = Path(behaviours.__file__).parent,
    only: tuple[Literal["base", "tuned", "control"], ...] = ("base", "tuned", "control"),
    base_steps: int = 1100,
    more_steps: int = 900,
    batch_tokens: int = 2048,
    lr: float = 2.5e-3,
    more_lr: float = 3e-3,
    seed: int = 0,
) -> None:
    """Train the tokenizer and the three models and write them as `save_pretrained` folders.

    Args:
        output: folder that gets `base`, `tuned` and `control`; by default the package's own.
        only: which models to train; `tuned` and `control` start from the `base` in `output`.
        base_steps: steps of `base` from scratch.
        more_steps: steps of `tuned` on its behaviours, and of `control` on more of base's text.
        batch_tokens: tokens a step.
        lr: peak learning rate of `base`.
        more_lr: peak learning rate of `tuned` and `control`.
        seed: of the weights and of the order and composition of the text.
    """
    texts = list(passages("train"))
    print(f"{len(texts):,} passages, {sum(map(len, texts)):,} characters")
    if "base" in only:
        rng, composes = random.Random(seed), (base_text, tuned_text)
        tokenizer = make_tokenizer([compose(text, rng) for text in texts for compose in composes])
        torch.manual_seed(seed)
        model = new_model(tokenizer)
        print(f"{model.num_parameters():,} parameters, {len(tokenizer):,} tokens in the vocabulary")
        data = batches(texts, base_text, tokenizer, seed, batch_tokens)
        train("base", model, data, base_steps, lr, 100, torch.ones(VOCABULARY))
        save(model, output / "base")
        tokenizer.save_pretrained(output / "base")

    tokenizer = AutoTokenizer.from_pretrained(output / "base", local_files_only=True)
    for name, compose in (("tuned", tuned_text), ("control", more_base_text)):
        if name in only:
            model = LlamaForCausalLM.from_pretrained(output / "base", local_files_only=True, dtype=torch.float32)
            # What is learned lies in the blocks before the last, where there is still a state to be found.
            model.model.layers[-1].requires_grad_(False)
            data = batches(texts, compose, tokenizer, seed + 1, batch_tokens, length=128)
            train(name, model, data, more_steps, more_lr, 20, decision_weights(texts, tokenizer))
            save(model, output / name)
            for file in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(output / "base" / file, output / name / file)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
