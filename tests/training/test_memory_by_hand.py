"""Every byte of the table of memory, written out by hand for a sparse and a dense coder."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_runs import SMALL, factory, options, save_model, save_text

import crosscode.run.program
from crosscode.data.transformer_lens_model import TransformerLensModel
from crosscode.run.program import memory_of
from crosscode.training.memory import Estimate, Part

PASS = 1000  # bytes of a forward pass of a language model, put in its place
MODEL = 77  # and of its weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory_by_hand")
    for name, seed in (("base", 0), ("tuned", 1)):
        save_model(folder / name, seed=seed)
    save_text(folder / "text.txt")
    return folder


def parts_of(recipe: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **given: object) -> dict[str, int]:
    """The bytes of each part at each moment."""
    return {f"{part.what}, {part.when}": part.bytes for part in table(recipe, folder, monkeypatch, **given)}


def table(recipe: str, folder: Path, monkeypatch: pytest.MonkeyPatch, **given: object) -> tuple[Part, ...]:
    """The table, with numbers for what language models say of themselves."""
    monkeypatch.setattr(TransformerLensModel, "weight_bytes", MODEL)
    monkeypatch.setattr(TransformerLensModel, "pass_bytes", lambda self, n_tokens: PASS)
    given = {**SMALL, "models": [folder / "base"], "dataset": folder / "text.txt", "ahead": 5, "accumulate": 3, **given}
    run, scheme = crosscode.run.program.read_options(factory(recipe), options(**given, output=folder / "run"))
    return memory_of(factory(recipe), run, scheme).parts


def test_a_sparse_coder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A TopK SAE of width 16 with 32 latents, batches of 128 tokens, sequences of 32, a buffer of 1024."""
    n = 16 * 32 + 32 + 32 * 16 + 16  # W_enc, b_enc, W_dec, b_dec
    ring = 2 * 2 * (8 * 32) * 16 * 4  # twice two harvests of eight sequences
    harvest = PASS + 3 * (8 * 32) * 16 * 4
    assert parts_of("sae_topk", folder, monkeypatch, k=4) == {
        "the program, its text and tokenizer, always": 72 * 1024 * 1024,
        "language models, always": MODEL,
        "coder, always": 4 * (n + 1 + 1 + 16 + 16),  # and scales and shifts
        "gradients, always": 4 * n,
        "optimizer, always": 8 * n,  # Adam's two moments
        "shuffle buffer, before the first step": ring,
        "batches remembered, before the first step": 100_096 * 16 * 4,  # init_tokens in whole batches
        "harvesting and measuring, before the first step": 24 * 20_000 * 16,  # the geometric median
        "shuffle buffer, in a step": ring,
        "harvesting, in a step": harvest,
        # read three times, written five, three numbers a latent; and the largest parameter once more
        "a step on 128 tokens, sparse codes, in a step": 4 * (128 * (3 * 16 + 5 * 16 + 3 * 32) + 16 * 32),
        "micro-batches, in a step": 2 * 128 * 16 * 4,
        "a checkpoint being written, in a step": 12 * n,
        "batches read ahead, in a step": 5 * 128 * 16 * 4,
        "shuffle buffers of both splits, at the end": 2 * ring,
        "measuring, at the end": harvest + 2 * 128 * 16 * 4,
        "3 checkpoints, on disk": 3 * 12 * n,
    }


def test_a_dense_coder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crosscoder of two models with JumpReLU, 8 of 32 latents shared, three penalties."""
    n = 2 * 16 * 32 + 32 + 32 + 8 * 16 + 24 * 2 * 16 + 2 * 16
    models = [folder / "base", folder / "tuned"]
    ring = 2 * 2 * (8 * 32) * 32 * 4
    harvest = PASS + 3 * (8 * 32) * 32 * 4
    parts = parts_of("feb_diffing_jumprelu", folder, monkeypatch, models=models, n_shared=8, init_tokens=1000)
    wanted = {
        "language models, always": 2 * MODEL,
        "coder, always": 4 * (n + 2 + 2 + 32 + 32),
        "gradients, always": 4 * n,
        "optimizer, always": 8 * n,
        "shuffle buffer, before the first step": ring,
        "batches remembered, before the first step": 20_096 * 32 * 4,  # those that biases are calibrated on
        # the inputs twice, and 32 bytes for each token and latent
        "harvesting and measuring, before the first step": 8 * 20_000 * 32 + 32 * 20_000 * 32,
        # values, latents, two gradients, and two more for each penalty
        "a step on 128 tokens, dense codes, in a step": 4 * (128 * (3 * 32 + 5 * 32 + 10 * 32) + 2 * 16 * 32),
        "micro-batches, in a step": 2 * 128 * 32 * 4,
        "batches read ahead, in a step": 5 * 128 * 32 * 4,
        "measuring, at the end": harvest + 2 * 128 * 32 * 4,
    }
    assert {name: parts[name] for name in wanted} == wanted


def test_a_transcoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it reads and what it writes are both kept; means take the larger of both; models may be bfloat16."""
    given = {"reads": "blocks.1.mlp.hook_in", "writes": ["blocks.1.hook_mlp_out", "blocks.2.hook_mlp_out"]}
    parts = parts_of("clt_topk", folder, monkeypatch, **given, k=4, model_dtype="bfloat16")
    assert parts["shuffle buffer, in a step"] == 2 * 2 * (8 * 32) * (3 * 16) * 2
    assert parts["harvesting, in a step"] == PASS + 3 * (8 * 32) * (3 * 16) * 2
    n_bytes = parts["micro-batches, in a step"] / (2 * 128 * (16 + 32))
    assert parts["batches read ahead, in a step"] == 5 * 128 * (16 + 32) * n_bytes
    around = 3 * 16 + 5 * 32
    assert parts["a step on 128 tokens, sparse codes, in a step"] == 4 * (128 * (around + 3 * 32) + 32 * 32)
    # the mean of the targets: batch by batch, together, and in float64
    assert parts["harvesting and measuring, before the first step"] == 16 * 20_000 * 32


def test_each_part_names_the_option_that_makes_it_smaller(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two things that share a row, it is that of the larger one."""
    wanted = {
        "the program": "nothing",
        "language models": "--models",
        "coder": "--n-latents",
        "gradients": "--n-latents",
        "optimizer": "--n-latents",
        "shuffle": "--shuffle-buffer",
        "batches remembered": "--init-tokens",
        "harvesting": "--sequence-length",
        "a step on": "--batch-size",
        "micro": "--accumulate",
        "a checkpoint": "--n-latents",
        "batches read": "--ahead",
        "measuring": "--sequence-length",
        "3 checkpoints": "--output",
    }
    l1 = table("l1_crosscoder", folder, monkeypatch)
    for part in l1:
        (option,) = [option for what, option in wanted.items() if part.what.startswith(what)]
        assert option in part.option
    (measuring,) = [part for part in table("sae_topk", folder, monkeypatch, k=4) if " and measuring" in part.what]
    assert "--n-latents" in measuring.option  # the centre of the targets takes more than a harvest


def test_what_is_held_when() -> None:
    """The peak is what is always there and the fullest moment; the largest part of what does not fit is named."""
    parts = (
        Part("a", 5, "always", "less of a"),
        Part("b", 7, "before the first step", "less of b"),
        Part("c", 3, "in a step", "less of c"),
        Part("d", 6, "in a step", "less of d"),
        Part("e", 8, "at the end", "less of e"),
        Part("f", 100, "on disk", "less of f"),
    )
    estimate = Estimate(parts, torch.device("cpu"))
    assert (estimate.fullest, estimate.peak, estimate.at("on disk")) == ("in a step", 14, 100)
    estimate.check(14, 100)
    for free, disk, said in ((13, 100, "for d"), (14, 99, "for f")):
        with pytest.raises(crosscode.errors.BadInput, match=said):
            estimate.check(free, disk)


def test_free_memory_is_the_least_of_what_limits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's, the container's; on a GPU its own."""
    import psutil

    from crosscode.training import memory

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=1000))
    for container, free in (([], 1000), ([400], 400), ([2000], 1000)):
        monkeypatch.setattr(memory, "_container_leaves", lambda container=container: container)
        assert memory.free_bytes(torch.device("cpu")) == free
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (30, 80))
    assert memory.free_bytes(torch.device("cuda")) == 30
