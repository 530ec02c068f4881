"""A recipe beside its null: the same run without the difference, which says how often a call is wrong."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from crosscode.errors import BadInput
from crosscode.evaluation import (
    Evaluation,
    Exclusivity,
    Parts,
    compared,
    exclusivity,
    is_evaluated,
    names_of,
    remove_exclusivity,
)
from crosscode.files import write_json
from crosscode.report import print_exclusivity
from crosscode.run.options import RunOptions
from crosscode.run.recipe import make_report, run_recipe, trainer_of, wandb_of
from crosscode.run.resuming import check_null, refuse_cut_short
from crosscode.run_folder import NULL, REPORT, SUMMARY
from crosscode.training import Trainer


def run_beside_null(factory: Callable[..., Trainer], run: RunOptions, scheme: Mapping[str, Any]) -> dict[str, Any]:
    """Run a recipe, run it again with the null in the second model's place, and say which latents are exclusive.

    The null's run is complete in `null/`; what follows from both is in `evaluation/exclusivity.json` and, latent by
    latent, `.safetensors`.

    Returns:
        The recipe's own summary, with what was called in the pair and in the null.
    """
    name = factory.__name__
    null_run = run.beside_null(name)
    trainer, null_trainer = (
        trainer_of(factory, each, scheme) for each in (run, null_run)
    )  # bad input is told before training
    names = names_of(trainer.model, trainer.data)
    if not names.compares_models:
        raise BadInput(f"null={run.null!r}: {name} does not write two models side by side.")
    if null_run.resume:
        check_null(null_trainer, null_run.directory(name))
    else:
        refuse_cut_short(null_run.directory(name), name)
    summary = run_recipe(trainer, run, name)
    torch.manual_seed(run.seed)
    run_recipe(null_trainer, null_run, name)
    directory = run.directory(name)
    parts = Parts()
    found = parts.run("comparing with the null", partial(judge_by_null, directory))
    if parts.absent:
        summary["absent"] = {**summary.get("absent", {}), **parts.absent}
        write_json(directory / SUMMARY, summary)
    if found is not None:
        summary |= {"null/false_positives": found.null.n_exclusive, "null/latents": found.n_null}
        summary |= {"null/false_positive_rate": found.false_positive_rate, "null/exclusive": found.pair.n_exclusive}
        write_json(directory / SUMMARY, summary)
    reported = False
    if run.report:
        wandb = wandb_of(run, name)
        try:
            wandb.open(trainer)  # the run that training ended
            reported = make_report(directory, wandb)
        finally:
            wandb.finish()
    if found is not None and not run.quiet:
        parts.run("showing the null", partial(print_exclusivity, found, names.models), passing_on=(OSError,))
        if reported:
            print(f"The report: {directory / REPORT}")
    return summary


def judge_by_null(directory: Path, nu_error: float = 0.2, nu_recon: float = 0.5) -> Exclusivity | None:
    """Say which latents of an evaluated run are exclusive, if its folder holds a null run, and write it down.

    Args:
        directory: the run's folder; without an evaluated null run in it, what was said before is removed.
        nu_error, nu_recon: see `LatentScaling.specific_L`.
    """
    pair = compared(Evaluation.load(directory))
    null = compared(Evaluation.load(directory / NULL)) if is_evaluated(directory / NULL) else None
    if pair is None or null is None:
        remove_exclusivity(directory)
        return None
    found = exclusivity(pair, null, nu_error=nu_error, nu_recon=nu_recon)
    found.save(directory)
    return found
