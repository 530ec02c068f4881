"""Defaults, as papers and the literature's code state them, or as runs of earlier versions had them: each is pinned."""

import importlib
import inspect
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import torch

from crosscode import callbacks, data, training
from crosscode.evaluation import CutOffs
from crosscode.training import ClipNorm

FOLDERS = (
    *("activations", "models", "penalties", "losses", "initialization", "metrics", "schedulers", "training"),
    *("data", "evaluation", "callbacks", "notebook"),
)
ALL = slice(None)
DEFAULTS: dict[str, dict[str, Any]] = {
    "activations.BatchTopK": {
        **{"weighted": True, "norm": "l1_of_l2"},
        **{"ema_decay": 0.999, "ema_start": 1000},
    },
    "activations.GroupMax": {"weighted": True, "norm": "l1_of_l2"},
    # January 2025 update, as ported: e^0.1, a window of 2, every parameter reached
    "activations.JumpReLU": {"threshold": 1.105, "bandwidth": 2.0, "ste_to_input": True, "parametrisation": "log"},
    "activations.TopK": {"weighted": True, "norm": "l1_of_l2"},
    "activations.step": {"ste_to_input": False},  # Rajamanoharan et al. 2024
    "models.DenseDecoder": {"bias": True, "widths_Xo": None},
    "models.DenseEncoder": {"bias": True, "widths_Xi": None},
    "models.LinearSkip": {"pairs": None},
    "models.LowRankMaskedDecoder": {"bias": True, "widths_Xo": None},
    "models.MaskedDecoder": {"bias": True, "widths_Xo": None},
    "models.MaskedEncoder": {"bias": True, "widths_Xi": None},
    "models.SharedDecoder": {"bias": True, "widths_Xo": None},
    "models.SharedEncoder": {"bias": True, "widths_Xi": None},
    "models.SparseCoder": {"skip": None},
    "models.SparseCoder.activate": {"sparse": False},
    "models.TiedEncoder": {"bias": True},
    "models.Trace": {"step": 0, "num_steps": 0},
    "models.Trace.of": {"tokens_since_fired_L": None, "sparse": False, "step": 0, "num_steps": 0},
    "models.acausal_crosscoder": {"widths_X": None},
    "models.compound_cross_layer_transcoder": {
        **{"skip": False, "d_out": None, "widths_Xi": None, "widths_Xo": None, "rank": None}
    },
    "models.cross_layer_transcoder": {"skip": False, "skip_targets": (0,), "widths_Xi": None, "widths_Xo": None},
    "models.transcoder": {"d_out": None, "skip": False, "widths_Xi": None, "widths_Xo": None},
    "penalties.LpOfNorms": {"keep_size": True, "norm": "l1_of_l2", "latents": ALL},
    "penalties.AuxK": {
        "k": None,
        "dead_after_tokens": 10_000_000,
        "norm": "l1_of_l2",
        "prefixes": None,
    },  # Gao et al. 2024
    "penalties.FrequencyL0": {"s": 0.1},
    "penalties.GateSparsity": {"norm": "l1_of_l2"},
    "penalties.L1OfNorms": {"norm": "l1_of_l2", "latents": ALL},  # Sparse Crosscoders, Oct 2024
    "penalties.PreActivation": {"norm": "l1_of_l2", "dead_after_tokens": None},
    "penalties.TanhFrequency": {"c": 4.0, "s": 0.1, "norm": "l1_of_l2", "latents": ALL},
    "penalties.TanhSparsity": {"c": 4.0, "norm": "l1_of_l2", "latents": ALL},  # January 2025 update, as ported
    "losses.MatryoshkaSquaredError": {"reduction": "sum"},
    "losses.MeanNorm": {"token_weights": None},
    "losses.SummedSquaredError": {"site_weights": None, "token_weights": None},
    "initialization.AnthropicTranspose": {"norm": 0.1, "seed": 0},  # April 2024 update and ports
    "initialization.CLTUniform": {"n_latents_per_site": None, "seed": 0},
    "initialization.DecoderBias": {"centre": "mean", "n_tokens": 20_000},
    "initialization.JanUpdate": {"firing_rate": None, "n_tokens": 20_000, "seed": 0},
    "initialization.JumpReLUWithoutBias": {"firing_rate": None, "n_tokens": 20_000, "seed": 0},
    "initialization.NormalizeActivations": {"n_tokens": 100_000, "kind": "mean_norm"},
    "initialization.OrthogonalSkip": {"gain": 1.0, "norm": 1.0, "n_tokens": 20_000, "seed": 0},
    "initialization.SameAcrossSites": {"norm": 1.0, "seed": 0},  # Minder et al. 2025, code
    "initialization.StartFrom": {"classes": ()},
    "initialization.ZeroDecoderSkip": {"norm": 1.0, "n_tokens": 20_000, "seed": 0},  # sparsify
    "metrics.Dead": {"after_tokens": 10_000_000},  # Gao et al. 2024
    "metrics.DecoderCosine": {"model": 1, "other": 0},
    "metrics.DecoderNormRatio": {"model": 1, "other": 0},
    "metrics.FVU": {"sites": None},
    "metrics.ReconstructionBias": {"sites": None},
    "metrics.delta_norm": {"model": 1, "other": 0},
    "metrics.relative_norm": {"model": 1, "other": 0},
    "schedulers.Cosine": {"final": 0.0},
    "schedulers.LinearRamp": {"start": 0.0},
    "schedulers.WarmupStableDecay": {"warmup_steps": 0, "decay_steps": 0},
    "training.ClipNorm": {"max_norm": 1.0},  # every public crosscoder trainer
    "training.TrainState": {"step": 0, "tokens": 0, "density": 1.0, "sparse": False, "stopped": False},
    "training.Trainer": {
        **{"init": (), "accumulate": 1, "gradients": (ClipNorm(1.0),), "constraints": (), "callbacks": ()},
        **{"interventions": (), "metrics": ()},
        **{"held_out": None, "precision": "fp32"},
    },
    "training.Trainer.initialize": {"data": None},
    "training.Trainer.finish": {"data": None},
    "training.calibrate": {"n_tokens": 30_000},
    "training.delete_checkpoints": {"keep": 0, "keep_every": None, "beyond": None},
    "training.differences": {"path": ""},
    "training.load_checkpoint": {"changed": ()},
    "training.save_checkpoint": {"keep": 2},
    "training.write_checkpoint": {"keep_every": None},
    "data.ActivationCache": {"max_bytes": None, "dtype": None},
    "data.Dataloader": {
        **{"batch_size": 2048, "shuffle_buffer": 65_536, "seed": 0, "squeeze": False, "dtype": torch.float32},
        **{"reads": None, "writes": None, "epochs": None, "ahead": None, "order": "shuffled", "carry": ()},
    },
    "data.Harvest": {"not_finite": None},
    "data.Harvester": {
        **{"sequences_at_once": 8, "drop_special": True, "drop_first": 1, "max_norm_multiple": 10.0},
        **{"skip_not_finite": False, "cache": None},
    },
    "data.TokenCounts": {"kept": 0, "first_positions": 0, "special": 0, "not_finite": 0, "outliers": 0},
    "data.TokenSequences": {
        **{"sequence_length": 128, "text_column": "text", "split": "train", "held_out_every": 20, "short": "drop"},
        **{"seed": 0, "shuffle_sequences": 2048, "skip_bad_rows": False},
        **{"dataset_config": None, "dataset_split": None, "dataset_revision": None},
    },
    "data.load_language_model": {"revision": None, "device": "cpu", "dtype": torch.float32},
    "evaluation.Compared": {"tokens": None},
    # Minder et al. 2025: nu_error .2, nu_recon .5, and the classical bin from .9 on
    "evaluation.CutOffs": {"relative_norm": 0.9, "nu_error": 0.2, "nu_recon": 0.5},
    "evaluation.Evaluation": {"scaling": None, "examples": None, "logits": None, "texts": {}, "absent": {}},
    "evaluation.Exclusivity": {"pair_tokens": None, "null_tokens": None},
    "evaluation.LatentScaling.specific_L": {"nu_error": 0.2, "nu_recon": 0.5},
    "evaluation.LatentScaling.verdicts": {"candidates": 0.9, "nu_error": 0.2, "nu_recon": 0.5},
    "evaluation.LatentScaling.verdicts_L": {"nu_error": 0.2, "nu_recon": 0.5},
    "evaluation.attribute_logits": {"k": 8},
    "evaluation.measure_coder": {"n_tokens": 50_000},
    "evaluation.exclusivity": {"percentile": 99.0, "nu_error": 0.2, "nu_recon": 0.5},
    "evaluation.find_examples": {
        **{"n_strongest": 6, "n_random": 2, "n_tokens": 50_000, "before": 16, "after": 8, "seed": 0},
    },
    "evaluation.full_evaluation": {
        **{"n_tokens": 30_000, "splice_tokens": 5_000, "ablations": ("zero", "mean"), "cut_offs": CutOffs()},
        **{"example_latents": 1_000, "dead_L": None},
    },
    "evaluation.latent_scaling": {"n_tokens": 50_000, "subtract_bias": False, "models": None},
    "evaluation.splice": {"n_tokens": 50_000, "ablation": "zero"},
    "notebook.Run": {"classes": (), "device": None},
    "notebook.Run.direction": {"model": None, "hookpoint": None},
    "notebook.Run.generate": {"model": None, "steer": {}, "ablate": (), "max_new_tokens": 20, "hookpoint": None},
    "notebook.Run.one_sided": {"most": 10},
    "notebook.open_run": {"classes": (), "device": None},
    "callbacks.Checkpoint": {"every": 1000, "keep": 2, "keep_every": None},
    "callbacks.Console": {
        "names": ("train/loss", "train/reconstruction", "train/l0/mean", "train/fvu/pooled", "train/dead"),
        "stream": None,
    },
    "callbacks.Log": {"every": 50, "metrics": (), "samples_every": 500},
    "callbacks.ProgressBar": {"every": 10, "seconds": 1.0},
    "callbacks.TimeSpent": {"before": 0.0, "after": 0.0, "traced": None},
    "callbacks.WeightsAndBiases": {
        **{
            "mode": "offline",
            "project": None,
            "name": None,
            "directory": None,
            "hold": False,
            "patience": 60.0,
            "group": None,
        },
    },
}


def defaults_of(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not each.empty}


def found() -> Iterator[tuple[str, dict[str, Any]]]:
    """What is exported, and the public methods of the coder, the trace and the trainer."""
    for folder in FOLDERS:
        for name, value in vars(importlib.import_module(f"crosscode.{folder}")).items():
            ours = getattr(value, "__module__", "").startswith(f"crosscode.{folder}")
            if name.startswith("_") or not ours:
                continue
            if isinstance(value, type) and attrs.has(value):
                fields = [field for field in attrs.fields(value) if field.init]
                none = (attrs.NOTHING,)
                yield (
                    f"{folder}.{name}",
                    {
                        field.name: field.default
                        for field in fields
                        if field.default not in none and not isinstance(field.default, attrs.Factory)
                    },
                )
                if name in ("SparseCoder", "Trace", "Trainer", "LatentScaling", "Run"):
                    for method, of in vars(value).items():
                        function = getattr(of, "__func__", of)
                        if inspect.isfunction(function) and not method.startswith("_"):
                            yield f"{folder}.{name}.{method}", defaults_of(function)
            elif inspect.isfunction(value):
                yield f"{folder}.{name}", defaults_of(value)


FOUND = {name: defaults for name, defaults in found() if defaults}


BY_POSITION = {  # of what has many options: what may be given without its name
    data.Harvester: ["models", "hookpoints"],
    data.Dataloader: ["sequences", "harvester", "batch_size"],
    data.TokenSequences: ["source", "model"],
    data.ActivationCache: ["directory", "max_bytes"],
    callbacks.Checkpoint: ["directory"],
    callbacks.Log: ["sinks"],
    training.Trainer: [],
}


@pytest.mark.parametrize("part", BY_POSITION, ids=lambda part: part.__name__)
def test_options_are_given_by_name(part: type) -> None:
    parameters = inspect.signature(part).parameters.values()
    assert [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD] == BY_POSITION[part]


def test_every_default_is_pinned() -> None:
    """A part that is added, or a new argument, brings its default with it."""
    assert FOUND.keys() == DEFAULTS.keys()


@pytest.mark.parametrize("name", DEFAULTS)
def test_a_default_is_what_it_was(name: str) -> None:
    assert FOUND.get(name) == DEFAULTS[name]
    for argument, value in DEFAULTS[name].items():
        assert type(FOUND[name][argument]) is type(value)
