"""One run of a recipe: train, save, measure on held-out tokens, and say what came out."""

import shutil
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import attrs

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
from crosscode.data import Dataloader
from crosscode.data.dataloader import tokens_read
from crosscode.errors import CrosscodeError, warn
from crosscode.evaluation import Parts, full_evaluation, measures, remove_evaluation, remove_exclusivity
from crosscode.files import write_json
from crosscode.metrics import Dead
from crosscode.models import SparseCoder
from crosscode.penalties import AuxK
from crosscode.report import figures_of, print_evaluation, write_report
from crosscode.run.options import RunOptions
from crosscode.run.resuming import made_and_locked, take_up
from crosscode.run_folder import (
    CHECKPOINTS,
    CODER,
    CONFIGURATION,
    CURVES,
    NULL,
    OPTIONS,
    RECIPE,
    REPORT,
    SUMMARY,
    save_silence,
    write_provenance,
    writing,
)
from crosscode.saving import save
from crosscode.training import Trainer, delete_checkpoints, describe


def dataloader_of(trainer: Trainer, run: RunOptions) -> Dataloader:
    """What a run harvests: the recipe's data, or, of data of the recipe's own, what the options stand for."""
    return trainer.data if isinstance(trainer.data, Dataloader) else run.dataloader()


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
    wandb = wandb_of(run, name)
    sinks: list[Sink] = [JSONLines(directory / CURVES), wandb]
    dead_after = dead_after_tokens_of(trainer, run)
    metrics = [*measures(trainer.model, dataloader_of(trainer, run)), Dead(dead_after)]
    log = Log(sinks, every=run.log_every, metrics=metrics, samples_every=10 * run.log_every)
    bar = () if run.quiet else (ProgressBar(),)
    trainer = attrs.evolve(
        trainer,
        callbacks=(*trainer.callbacks, log, checkpoints, *bar, *(() if profile is None else (profile,))),
        held_out=held_out_of(trainer.model, run) if trainer.held_out is None else trainer.held_out,
    )
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
            reported = run.report and make_report(directory, wandb)
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


def wandb_of(run: RunOptions, name: str) -> WeightsAndBiases:
    return WeightsAndBiases(run.wandb_mode, run.wandb_project, name, run.directory(name), hold=True)


def make_report(directory: Path, wandb: WeightsAndBiases) -> bool:
    """The page, and its figures for wandb; a run is complete without them. Whether there is a page."""
    try:
        page = write_report(directory)
    except Exception as error:
        warn(f"no report was made ({type(error).__name__}: {error}); the run is complete.")
        return False
    Parts().run("showing the report in wandb", lambda: wandb.show(page, figures_of(directory)))
    return True
