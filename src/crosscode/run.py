"""Running a recipe: what happens around training.

    if __name__ == "__main__":
        main(l1_crosscoder)

makes every argument of the factory, and of `RunOptions`, an option of the command line.
"""

import inspect
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch

from crosscode.callbacks import (
    Checkpoint,
    JSONLines,
    Log,
    Profile,
    ProgressBar,
    Sink,
    TimeSpent,
    WeightsAndBiases,
    print_time,
)
from crosscode.command_line import errors_in_one_line, read_options
from crosscode.data import Dataloader
from crosscode.data.dataloader import tokens_read
from crosscode.errors import BadInput, CrosscodeError, warn
from crosscode.evaluation import (
    Evaluation,
    Exclusivity,
    Parts,
    compared,
    diffs_models,
    exclusivity,
    full_evaluation,
    is_evaluated,
    measures,
    remove_evaluation,
    remove_exclusivity,
)
from crosscode.metrics import Dead
from crosscode.models import SparseCoder
from crosscode.penalties import AuxK
from crosscode.report import figures_of, print_evaluation, print_exclusivity, write_report
from crosscode.run_files import (
    CHECKPOINTS,
    CODER,
    CONFIGURATION,
    CURVES,
    NULL,
    OPTIONS,
    REPORT,
    SUMMARY,
    save_silence,
    write_json,
    write_provenance,
)
from crosscode.run_folder import (
    RECIPE,
    check_null,
    check_output,
    check_resumed,
    made_and_locked,
    refuse_cut_short,
    saying_how_to_resume,
    take_up,
    writing,
)
from crosscode.run_options import MLP_INPUTS, MLP_OUTPUTS, RESIDUAL, RunOptions, check_project
from crosscode.saving import save
from crosscode.training import Trainer, delete_checkpoints, describe
from crosscode.training.memory import Estimate, estimate, free_bytes, free_disk

__all__ = ["MLP_INPUTS", "MLP_OUTPUTS", "RESIDUAL", "RunOptions", "main"]  # what a recipe needs


def print_loading(name: str, run: RunOptions) -> None:
    """Say once that models are loaded, which may take a while."""
    models = (*run.models, *([] if run.null is None else [run.null]))
    n_bytes = sum(getattr(model, "weight_bytes", 0) for model in run.language_models)
    print(f"{name}: loading {', '.join(models)} ({n_bytes / 1e9:.2g} GB of weights)", file=sys.stderr)


def dataloader_of(trainer: Trainer) -> Dataloader:
    """A recipe's own data: what `RunOptions.dataloader` made."""
    if not isinstance(trainer.data, Dataloader):
        raise BadInput(f"a recipe trains on a Dataloader, got {type(trainer.data).__name__}.")
    return trainer.data


def held_out_of(coder: SparseCoder, run: RunOptions) -> Dataloader:
    """Held-out batches of the shape that the coder reads and writes."""
    loader = run.dataloader("held_out")
    fits = (loader.in_dims, loader.out_dims) == (coder.encoder.in_dims, coder.decoder.out_dims)
    return loader if fits else run.dataloader("held_out", one_site=False)


def dead_after_tokens_of(trainer: Trainer, run: RunOptions) -> int:
    """The silence that makes a latent dead in every figure: that of the recipe's `AuxK`, if it has one."""
    for weighted in trainer.penalties.values():
        if isinstance(weighted.penalty, AuxK):
            return weighted.penalty.dead_after_tokens
    return run.dead_after_tokens(trainer.num_steps)


def run_beside_null(factory: Callable[..., Trainer], run: RunOptions, scheme: Mapping[str, Any]) -> dict[str, Any]:
    """Run a recipe, run it again with the null in the second model's place, and say which latents are exclusive.

    The null's run is complete in `null/`; what follows from both is in `evaluation/exclusivity.json` and, latent by
    latent, `.safetensors`.

    Returns:
        The recipe's own summary, with what was called in the pair and in the null.
    """
    name = factory.__name__
    null_run = run.beside_null(name)
    trainer, null_trainer = (factory(each, **scheme) for each in (run, null_run))  # bad input is told before training
    if not diffs_models(trainer.model):
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
        wandb = _wandb_of(run, name)
        try:
            wandb.open(trainer)  # the run that training ended
            reported = _report(directory, wandb)
        finally:
            wandb.finish()
    if found is not None and not run.quiet:
        names = held_out_of(trainer.model, run).model_names
        parts.run("showing the null", partial(print_exclusivity, found, names), passing_on=(OSError,))
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


def run_recipe(trainer: Trainer, run: RunOptions, name: str) -> dict[str, Any]:
    """Train, save, measure on held-out tokens, and say what came out.

    Returns:
        The summary, which is also written to `summary.json`.
    """
    started = datetime.now(UTC)
    directory = run.directory(name)
    profile = Profile(directory / "profile.json") if run.profile else None
    checkpoints = Checkpoint(
        directory / CHECKPOINTS,
        every=run.checkpoint_every,
        keep=run.checkpoint_keep,
        keep_every=run.checkpoint_keep_every,
    )
    wandb = _wandb_of(run, name)
    sinks: list[Sink] = [JSONLines(directory / CURVES), wandb]
    dead_after = dead_after_tokens_of(trainer, run)
    metrics = [*measures(trainer.model, dataloader_of(trainer)), Dead(dead_after)]
    trainer.callbacks = (
        *trainer.callbacks,
        Log(sinks, every=run.log_every, metrics=metrics, samples_every=10 * run.log_every),
        checkpoints,
        *([] if run.quiet else [ProgressBar()]),
        *([] if profile is None else [profile]),
    )
    trainer.held_out = held_out_of(trainer.model, run)
    with made_and_locked(directory, trainer):
        take_up(trainer, directory, name, run.resume, run.resume_changed)
        if not run.resume:
            delete_checkpoints(directory / CHECKPOINTS)  # of a complete run, which this one replaces …
            shutil.rmtree(directory / NULL, ignore_errors=True)  # … and of its null, which is not this one's
        (directory / SUMMARY).unlink(missing_ok=True)
        with writing(directory):
            run.write(directory / OPTIONS)
            write_json(directory / CONFIGURATION, {RECIPE: name, **describe(trainer)})
        first_step = trainer.state.step
        if not run.quiet:
            begin = f"measuring scales on {run.init_tokens:,} tokens first"
            doing = f"going on from step {first_step} of {trainer.num_steps:,}" if first_step else begin
            print(f"{name}: {doing}; files go to {directory}", file=sys.stderr)
        try:
            coder = trainer.train()
            with writing(directory):
                save(coder, directory / CODER)
                write_provenance(directory, run.device, started, datetime.now(UTC), first_step)
            summary = _measure(trainer, run, name, None if profile is None else profile.spent, dead_after)
            reported = run.report and _report(directory, wandb)
        finally:
            wandb.finish()
    if reported and not run.quiet:
        print(f"The report: {directory / REPORT}")
    if profile is not None and profile.spent is not None:
        print_time(profile.spent, profile.trace)
    if checkpoints.failed:
        raise CrosscodeError("the last checkpoint could not be saved; the coder itself was.")
    return summary


def _measure(trainer: Trainer, run: RunOptions, name: str, spent: TimeSpent | None, dead_after: int) -> dict[str, Any]:
    """The summary of a trained coder on held-out tokens, written down and printed."""
    directory, coder, held_out = run.directory(name), trainer.model, held_out_of(trainer.model, run)
    if not run.quiet:
        print(f"{name}: measuring on {run.eval_tokens:,} held-out tokens", file=sys.stderr)
    dead_L = (trainer.state.tokens_since_fired_L >= dead_after).cpu()
    read = tokens_read(trainer.state.cursor)
    parts = Parts()
    measured = partial(
        full_evaluation, coder, held_out, run.eval_tokens, splice_tokens=run.splice_tokens, dead_L=dead_L
    )
    evaluation = parts.run("the evaluation", measured)
    with writing(directory):
        save_silence(directory, trainer.state.tokens_since_fired_L, dead_L)
        remove_exclusivity(directory)  # what an earlier run in this folder was judged to be
        if evaluation is not None:
            parts.run("saving the evaluation", partial(evaluation.save, directory), passing_on=(OSError,))
        if parts.absent:
            remove_evaluation(directory)  # an earlier run's
        absent = {**parts.absent, **({} if evaluation is None else evaluation.absent)}
        summary = {
            "recipe": name,
            "step": trainer.state.step,
            "tokens": trainer.state.tokens,
            **{f"training_tokens/{name}": n for name, n in attrs.asdict(read).items()},
            **({"bad_rows": trainer.state.cursor.get("bad_rows", 0)} if run.skip_bad_rows else {}),
            **({} if evaluation is None else evaluation.finite()),
            **({"absent": absent} if absent else {}),
            **({} if spent is None else {"tokens_per_second": spent.tokens_per_second, "time": spent.shares}),
        }
        write_json(directory / SUMMARY, summary)
    if not run.quiet:
        if evaluation is not None:
            title = f"{name} after {trainer.state.tokens:,} tokens, on held-out text"
            shown = partial(print_evaluation, evaluation, title)
            parts.run("showing the evaluation", shown, passing_on=(OSError,))
        print(f"Training, {read}")
        if run.skip_bad_rows:
            print(f"Bad rows that were left out of the training text: {summary['bad_rows']:,}")
        print(f"\nThe coder is in {directory / CODER}; to load it:\n\n    import crosscode")
        print(f"    coder = crosscode.load({str(directory / CODER)!r})")
        print("    latents = coder.encode(activations)  # raw ones\n")
    return summary


def memory_of(factory: Callable[..., Trainer], run: RunOptions, scheme: Mapping[str, Any]) -> Estimate:
    """What a run would take of memory, from a coder without values; the data are found, and not yet read."""
    for model in run.language_models:
        for hookpoint in (*run.reads, *run.writes) or run.hookpoints:
            _ = model.width(hookpoint)  # found in the model as it is, not in one without values
    without_values = attrs.evolve(run, device="meta")
    for shared in ("language_models", "_dataloaders"):
        vars(without_values)[shared] = getattr(run, shared)
    try:
        with torch.device("meta"):
            trainer = factory(without_values, **scheme)
    except (NotImplementedError, RuntimeError):  # a recipe of one's own that looks at values
        trainer = factory(run, **scheme)
    return estimate(trainer, dataloader_of(trainer), torch.device(run.device))


def _wandb_of(run: RunOptions, name: str) -> WeightsAndBiases:
    return WeightsAndBiases(run.wandb_mode, run.wandb_project, name, run.directory(name), hold=True)


def _report(directory: Path, wandb: WeightsAndBiases) -> bool:
    """The page, and its figures for wandb; a run is complete without them. Whether there is a page."""
    try:
        page = write_report(directory)
    except Exception as error:
        warn(f"no report was made ({type(error).__name__}: {error}); the run is complete.")
        return False
    Parts().run("showing the report in wandb", lambda: wandb.show(page, figures_of(directory)))
    return True


def main(factory: Callable[..., Trainer], arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command line of a recipe: every argument of the factory and of its `RunOptions` is an option.

    Bad input ends the program with one line and exit code 2, and so does a run that takes more memory than is free;
    Ctrl-C ends it with 130, SIGTERM with 143.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    with errors_in_one_line():
        run, scheme = read_options(factory, arguments)
        run.check_like(inspect.signature(factory).parameters["run"].default)
        check_output(run.directory(factory.__name__))
        if run.resume:
            check_resumed(run.directory(factory.__name__), factory.__name__, run.resume_changed)
        check_project("WANDB_PROJECT", os.environ.get("WANDB_PROJECT") or None)
        memory = memory_of(factory, run, scheme)
        free = free_bytes(memory.device), free_disk(run.directory(factory.__name__))
        if run.dry_run:
            print(memory.table(*free))
            return {}
        memory.check(*free)
        if not run.quiet:
            print_loading(factory.__name__, run)
        torch.manual_seed(run.seed)
        with saying_how_to_resume(run.directory(factory.__name__), arguments):
            if run.null is not None:
                return run_beside_null(factory, run, scheme)
            return run_recipe(factory(run, **scheme), run, factory.__name__)
