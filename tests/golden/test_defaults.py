"""What papers and their code state is the default here; a run made with defaults is made alike in the next version."""

import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

FOLDERS = ("activations", "penalties", "losses", "metrics", "schedulers", "evaluation", "callbacks", "data")
ALL = slice(None)
RANKING = {"weighted": True, "norm": "l1_of_l2"}  # BatchTopK crosscoders, Minder et al. 2025
EMPTY = (None, (), {}, "")
DEFAULTS: dict[str, dict[str, Any]] = {
    # the January 2025 update: thresholds e^0.1, bandwidth 2, the estimator reaches all parameters, log thresholds
    "activations.JumpReLU": {"threshold": 1.105, "bandwidth": 2.0, "ste_to_input": True, "parametrisation": "log"},
    "activations.TopK": {**RANKING, "anneal_steps": 0},
    "activations.GroupMax": RANKING,
    # dictionary_learning: decay .999, from step 1000 on
    "activations.BatchTopK": {**RANKING, "anneal_steps": 0, "ema_decay": 0.999, "ema_start": 1000},
    "activations.step": {"ste_to_input": False},  # Rajamanoharan et al. 2024
    # Gao et al. 2024: dead after ten million tokens, k half the width
    "penalties.AuxK": {"dead_after_tokens": 10_000_000, "norm": "l1_of_l2"},
    "metrics.Dead": {"after_tokens": 10_000_000},
    "penalties.L1OfNorms": {"norm": "l1_of_l2", "latents": ALL},  # Sparse Crosscoders, Oct 2024
    "penalties.TanhSparsity": {"c": 4.0, "norm": "l1_of_l2", "latents": ALL},  # the January 2025 update
    "penalties.TanhFrequency": {"c": 4.0, "s": 0.1, "norm": "l1_of_l2", "latents": ALL},
    "penalties.PreActivation": {"norm": "l1_of_l2"},
    "losses.MatryoshkaSquaredError": {"reduction": "sum"},
    # the share of the second model, as base and tuned are given
    **{f"metrics.{name}": {"model": 1, "other": 0} for name in ("DecoderNormRatio", "DecoderCosine")},
    **{f"metrics.{name}": {"model": 1, "other": 0} for name in ("relative_norm", "delta_norm")},
    "schedulers.WarmupStableDecay": {"warmup_steps": 0, "decay_steps": 0},
    "schedulers.Cosine": {"final": 0.0},
    # Minder et al. 2025: nu_error .2, nu_recon .5, and the classical bin from .9 on
    "evaluation.CutOffs": {"relative_norm": 0.9, "nu_error": 0.2, "nu_recon": 0.5},
    "evaluation.exclusivity": {"percentile": 99.0, "nu_error": 0.2, "nu_recon": 0.5},
    "evaluation.LatentScaling.specific_L": {"nu_error": 0.2, "nu_recon": 0.5},
    "evaluation.LatentScaling.verdicts": {"candidates": 0.9, "nu_error": 0.2, "nu_recon": 0.5},
    "evaluation.LatentScaling.verdicts_L": {"nu_error": 0.2, "nu_recon": 0.5},
    "evaluation.latent_scaling": {"n_tokens": 50_000, "subtract_bias": False},
    "evaluation.splice": {"n_tokens": 50_000, "ablation": "zero"},
    "evaluation.evaluate": {"n_tokens": 50_000},
    "evaluation.attribute_logits": {"k": 8},
    "evaluation.find_examples": {
        "n_strongest": 6,
        "n_random": 2,
        "n_tokens": 50_000,
        "before": 16,
        "after": 8,
        "seed": 0,
    },
    "evaluation.full_evaluation": {
        "n_tokens": 30_000,
        "splice_tokens": 5_000,
        "ablations": ("zero", "mean"),
        "example_latents": 1_000,
    },
    "callbacks.Checkpoint": {"every": 1000, "keep": 2},
    "callbacks.Log": {"every": 50, "samples_every": 500},
    "callbacks.ProgressBar": {"every": 10, "seconds": 1.0},
    "callbacks.WeightsAndBiases": {"mode": "offline", "patience": 60.0, "hold": False},
    "callbacks.TimeSpent": {"before": 0.0, "after": 0.0},
    "data.Dataloader": {
        "batch_size": 2048,
        "shuffle_buffer": 65_536,
        "seed": 0,
        "squeeze": False,
        "dtype": torch.float32,
    },
    "data.Harvester": {"sequences_at_once": 8, "drop_special": True, "drop_first": 1},
    "data.TokenSequences": {
        "sequence_length": 128,
        "text_column": "text",
        "split": "train",
        "held_out_every": 20,
        "short": "drop",
        "seed": 0,
        "shuffle_sequences": 2048,
        "hub_split": "train",
    },
    "data.load_language_model": {"device": "cpu", "dtype": torch.float32},
}


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Arguments that have a default which is a value: neither empty nor an object of ours."""
    given = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.default is not p.empty}
    plain = (bool, int, float, str, tuple, slice, torch.dtype)
    return {name: value for name, value in given.items() if isinstance(value, plain) and value not in EMPTY}


def public() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public class, function and method of the folders, by name."""
    for folder in FOLDERS:
        module = importlib.import_module(f"crosscode.{folder}")
        for name in getattr(module, "__all__", vars(module)):
            found = getattr(module, name)
            if getattr(found, "__module__", "").startswith(f"crosscode.{folder}") and callable(found):
                yield f"{folder}.{name}", found
                for method, function in vars(found).items() if isinstance(found, type) else ():
                    if inspect.isfunction(function) and not method.startswith("_"):
                        yield f"{folder}.{name}.{method}", function


@pytest.mark.parametrize("name", sorted(DEFAULTS))
def test_defaults_are_those_that_are_stated(name: str) -> None:
    """Each number and choice; an argument that is new is written down here too."""
    found = dict(public())[name]
    ours = {argument: value for argument, value in defaults_of(found).items() if argument in DEFAULTS[name]}
    assert ours == DEFAULTS[name]


def test_no_default_is_left_unstated() -> None:
    """Of what this page lists folders of; the data's own are stated by hand."""
    for name, found in public():
        if not name.startswith(("data.", "callbacks.Console")) and "protocol" not in str(type(found)).lower():
            assert defaults_of(found).keys() == DEFAULTS.get(name, {}).keys(), name
