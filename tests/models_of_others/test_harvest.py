"""Models of many architectures, from folders alone: their hookpoints are their hidden states, to the bit."""

import os
import socket
import subprocess
from collections.abc import Iterator

import pytest
import torch
from models_of_others.architectures import ARCHITECTURES, made
from torch import Tensor, nn

from crosscode.data import load_language_model
from crosscode.data.transformer_lens_model import TransformerLensModel

TOKENS_HS = torch.arange(3, 29).reshape(2, 13)
WITHOUT_BRIDGE = ["persimmon", "helium", "biogpt", "ctrl", "phimoe", "falcon_new", "minicpm3"]
PARALLEL = ["falcon_new"]
FROM_THE_FIRST_BLOCK_ON = ["mamba"]  # its hidden states begin with that block's output


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What was tried outside this process, which is nothing: child processes and connections fail, and are told."""
    tried: list[str] = []

    def refuse(*args: object, **kwargs: object) -> None:
        tried.append(repr(args[-1:]))
        raise OSError("not in this test")

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
    for name in ("system", "fork", "posix_spawn", "posix_spawnp", "execv", "execve"):
        monkeypatch.setattr(os, name, refuse)
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    yield tried
    assert tried == []


def load(folder: object) -> TransformerLensModel:
    model = load_language_model(str(folder))
    assert isinstance(model, TransformerLensModel)
    return model


def stream(n_layers: int) -> list[str]:
    """The hookpoints that every model has: two of every block."""
    return [f"blocks.{i}.hook_resid_{end}" for i in range(n_layers) for end in ("pre", "post")]


def blocks_of(model: nn.Module, n_layers: int) -> nn.ModuleList:
    """The language model's: the vision towers of the table have fewer."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == n_layers]
    return lists[0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_stream_is_the_hidden_states_and_splices_exactly(name: str, saved) -> None:
    """Before every block and after it; what is put there is what the next block reads; the same again changes nothing.

    The last hidden state is after the final norm; the last block's output is taken from the block itself.
    """
    last: list[Tensor] = []
    reference = type(made(name)).from_pretrained(saved(name)).eval()
    n = reference.config.get_text_config().num_hidden_layers
    blocks_of(reference, n)[-1].register_forward_hook(
        lambda block, args, output: last.append(output if isinstance(output, Tensor) else output[0])
    )
    with torch.no_grad():
        output = reference(TOKENS_HS, output_hidden_states=True, use_cache=False)
    states = output.hidden_states
    model = load(saved(name))
    assert model.n_layers == n
    names = stream(n)
    widths = [model.width(hookpoint) for hookpoint in names]
    assert not model.loaded
    assert widths == [states[0][0, 0].numel()] * (2 * n)

    acts_HSPD = model.harvest(TOKENS_HS, names)

    before_n, after_n = acts_HSPD[:, :, ::2].unbind(2), acts_HSPD[:, :, 1::2].unbind(2)
    if name in FROM_THE_FIRST_BLOCK_ON:
        states = (before_n[0], *states)
    for i in range(n):
        assert torch.equal(before_n[i], states[i])
        assert i == n - 1 or torch.equal(after_n[i], states[i + 1])
    assert torch.equal(after_n[-1], last[0])

    assert torch.equal(model.logits(TOKENS_HS, {}), output.logits)
    assert torch.equal(model.logits(TOKENS_HS, dict.fromkeys(names, Tensor.clone)), output.logits)
    for hookpoint in names:
        put = torch.randn(*TOKENS_HS.shape, widths[0], generator=torch.Generator().manual_seed(0))
        assert not torch.equal(model.logits(TOKENS_HS, {hookpoint: lambda acts, put=put: put}), output.logits)
    read: list[Tensor] = []
    edits = {
        "blocks.0.hook_resid_post": lambda acts: put,
        "blocks.1.hook_resid_pre": lambda acts: read.append(acts.clone()) or acts,
    }
    model.logits(TOKENS_HS, edits)
    assert torch.equal(read[0], put)
    assert "_bridge_widths" not in vars(model), "the stream takes no TransformerLens to know"


@pytest.mark.parametrize("name", WITHOUT_BRIDGE)
def test_what_is_added_to_the_stream_is_told_without_transformer_lens(name: str, saved) -> None:
    """Of architectures that it lacks: attention's output and the MLP's make the stream what it is after the block."""
    model = load(saved(name))
    hookpoints = model.hookpoints
    assert model.harvest(TOKENS_HS, hookpoints).shape[2] == len(hookpoints)
    assert set(stream(model.n_layers)) <= set(hookpoints)
    added = {"blocks.1.hook_attn_out", "blocks.1.hook_mlp_out"}
    if name == "minicpm3":  # outputs that are multiplied before the addition
        assert not added & set(hookpoints)
        return
    names = ["blocks.1.hook_resid_pre", *sorted(added), "blocks.1.hook_resid_post"]
    before, attention, mlp, after = model.harvest(TOKENS_HS, names).unbind(2)
    assert ("blocks.1.hook_resid_mid" in hookpoints) == (name not in PARALLEL)
    if name not in PARALLEL:
        (middle,) = model.harvest(TOKENS_HS, ["blocks.1.hook_resid_mid"]).unbind(2)
        assert torch.equal(middle, before + attention)
        assert torch.equal(after, middle + mlp)
    torch.testing.assert_close(after, before + attention + mlp)
    clean = model.logits(TOKENS_HS, {})
    assert torch.equal(model.logits(TOKENS_HS, dict.fromkeys(hookpoints, Tensor.clone)), clean)
    for hookpoint in hookpoints:
        assert not torch.equal(model.logits(TOKENS_HS, {hookpoint: torch.zeros_like}), clean), hookpoint
