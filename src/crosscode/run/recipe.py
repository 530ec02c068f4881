"""One run of a recipe: train, save, measure on held-out tokens, and say what came out."""

import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import attrs

from crosscode.batch import Batch
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
from crosscode.errors import BadInput, CrosscodeError, warn
from crosscode.evaluation import Parts, full_evaluation, measures, remove_evaluation, remove_exclusivity
from crosscode.files import write_json
from crosscode.initialization import StartFrom
from crosscode.metrics import Dead
from crosscode.models import SparseCoder
from crosscode.named import import_of, name_of
from crosscode.penalties import CountsDead
from crosscode.report import figures_of, print_evaluation, write_report
from crosscode.run.options import RunOptions
from crosscode.run.resuming import made_and_locked, resume_or_keep
from crosscode.run_folder import (
    CHECKPOINTS,
    CLASSES,
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
from crosscode.saving import class_name, own_classes, save
from crosscode.training import Trainer, delete_checkpoints, describe, train_together


def trainer_of(factory: Callable[..., Trainer], run: RunOptions, scheme: Mapping[str, Any]) -> Trainer:
    """A recipe's trainer; with `start_from`, that coder's end is its start."""
    trainer = factory(run, **scheme)
    if run.start_from is None:
        return trainer
    output = run.directory(factory.__name__).resolve()
    if run.start_from.resolve().is_relative_to(output):
        raise BadInput(
            f"start_from={str(run.start_from)!r} lies in the output of this run, {str(output)!r}: give another."
        )
    return attrs.evolve(trainer, init=[StartFrom(run.start_from, own_classes(trainer.model))])


def dataloader_of(trainer: Trainer, run: RunOptions) -> Dataloader:
    """What a run harvests: the recipe's data, or, of data of the recipe's own, what the options stand for."""
    return trainer.data if isinstance(trainer.data, Dataloader) else run.dataloader()


def held_out_of(coder: SparseCoder, run: RunOptions) -> Dataloader:
    """Held-out batches of the shape that the coder reads and writes; see `data_of`."""
    return data_of(coder, run, "held_out")


def data_of(coder: SparseCoder, run: RunOptions, split: Literal["train", "held_out"]) -> Dataloader:
    """Batches of the shape that the coder reads and writes, made of the run's options.

    Raises:
        BadInput: the options stand for other activations: the coder was trained on data of its recipe's own.
    """
    loader = run.dataloader(split)
    wanted = (coder.encoder.in_dims, coder.decoder.out_dims)
    if (loader.in_dims, loader.out_dims) != wanted and len(run.models) == 1:
        loader = run.dataloader(split, one_site=False)
    made = (loader.in_dims, loader.out_dims)
    if made != wanted:
        raise BadInput(
            f"the run's options stand for activations of crosscoding dimensions {made[0]} and {made[1]}, but its coder "
            f"is of {wanted[0]} and {wanted[1]}: it was trained on data of its recipe's own, so hand them to "
            "full_evaluation in Python."
        )
    return loader


def measured_on(trainer: Trainer, run: RunOptions) -> Iterable[Batch]:
    """What a run's figures are of: what the recipe holds out; else held-out text where it trains on a `Dataloader`;
    else its training data."""
    if trainer.held_out is not None:
        return trainer.held_out
    return held_out_of(trainer.model, run) if isinstance(trainer.data, Dataloader) else trainer.data


def dead_after_tokens_of(trainer: Trainer, run: RunOptions) -> int:
    """The silence that makes a latent dead in every figure: that of the first penalty that says it, such as `AuxK`."""
    for weighted in trainer.penalties.values():
        if isinstance(weighted.penalty, CountsDead) and weighted.penalty.dead_after_tokens is not None:
            return weighted.penalty.dead_after_tokens
    return run.dead_after_tokens(trainer.num_steps)


def run_recipe(trainer: Trainer, run: RunOptions, name: str) -> dict[str, Any]:
    """Train, save, measure on held-out tokens, and say what came out.

    Returns:
        The summary, which is also written to `summary.json`.
    """
    return run_together([(trainer, run)], name)[0]


def run_together(
    members: Sequence[tuple[Trainer, RunOptions]], name: str, group: str | None = None
) -> list[dict[str, Any]]:
    """Train several on one harvest, each in the folder of its options, and measure each; of one alone more is printed.

    Args:
        members: trainers with one data object, each with its options.
        name: of their recipe.
        group: what they are grouped under in wandb.

    Returns:
        The summaries, each of which is also written to its folder's `summary.json`.
    """
    started = datetime.now(UTC)
    set_up = [Member.of(trainer, run, name, group, i == 0) for i, (trainer, run) in enumerate(members)]
    trainers, directories = [member.trainer for member in set_up], [member.directory for member in set_up]
    run = set_up[0].run
    with ExitStack() as folders:
        for member in set_up:
            folders.enter_context(made_and_locked(member.directory, member.trainer))
        resume_or_keep(trainers, directories, name, run.resume, run.resume_changed)
        for member in set_up:
            member.begin(name)
        first_step = trainers[0].state.step
        if not run.quiet:
            begin = f"measuring scales on {run.init_tokens:,} tokens first"
            doing = f"going on from step {first_step} of {trainers[0].num_steps:,}" if first_step else begin
            place = directories[0] if group is None else directories[0].parent
            print(f"{name}: {doing}; files go to {place}", file=sys.stderr)
        try:
            train_together(trainers)
            trained = datetime.now(UTC)
            for member in set_up:
                with writing(member.directory):
                    save(member.trainer.model, member.directory / CODER)
                    write_provenance(member.directory, run.device, started, trained, first_step)
            show = group is None and not run.quiet
            summaries = [member.measure(name, show) for member in set_up]
            reported = [member.run.report and make_report(member.directory, member.wandb) for member in set_up]
        finally:
            for member in set_up:
                member.wandb.finish()
    if show and reported[0]:
        print(f"The report: {directories[0] / REPORT}")
    profile = set_up[0].profile
    if profile is not None and profile.spent is not None:
        print_time(profile.spent, profile.trace)
    if any(member.checkpoints.failed for member in set_up):
        raise CrosscodeError("the last checkpoint could not be saved; the coder itself was.")
    return summaries


@attrs.frozen(eq=False)
class Member:
    """A trainer with all that observes it, and where its files go."""

    trainer: Trainer
    run: RunOptions
    directory: Path
    checkpoints: Checkpoint
    wandb: WeightsAndBiases
    profile: Profile | None
    dead_after: int

    @classmethod
    def of(cls, trainer: Trainer, run: RunOptions, name: str, group: str | None, first: bool) -> "Member":
        """A recipe's trainer with its callbacks; the first of several shows progress."""
        directory = run.directory(name)
        profile = Profile(directory / "profile.json") if run.profile else None
        checkpoints = Checkpoint(
            directory / CHECKPOINTS,
            every=run.checkpoint_every,
            keep=run.checkpoint_keep,
            keep_every=run.checkpoint_keep_every,
        )
        wandb = wandb_of(run, name if group is None else directory.name, group)
        sinks: list[Sink] = [JSONLines(directory / CURVES), wandb]
        dead_after = dead_after_tokens_of(trainer, run)
        metrics = [*measures(trainer.model, trainer.data), Dead(dead_after)]
        log = Log(sinks, every=run.log_every, metrics=metrics, samples_every=10 * run.log_every)
        bar = (ProgressBar(),) if first and not run.quiet else ()
        observed = attrs.evolve(
            trainer,
            callbacks=(*trainer.callbacks, log, checkpoints, *bar, *(() if profile is None else (profile,))),
            held_out=measured_on(trainer, run),
        )
        return cls(observed, run, directory, checkpoints, wandb, profile, dead_after)

    def begin(self, name: str) -> None:
        """What the folder holds while the run goes on; of a complete run that this one replaces, its ends go."""
        if not self.run.resume:
            delete_checkpoints(self.directory / CHECKPOINTS)  # of a complete run, which this one replaces …
            shutil.rmtree(self.directory / NULL, ignore_errors=True)  # … and of its null, which is not this one's
        (self.directory / SUMMARY).unlink(missing_ok=True)
        with writing(self.directory):
            self.run.write(self.directory / OPTIONS)
            classes = {class_name(cls): name_of(cls) for cls in own_classes(self.trainer.model)}
            hints = {CLASSES: classes} if classes else {}
            write_json(self.directory / CONFIGURATION, {RECIPE: name, **hints, **describe(self.trainer)})

    def measure(self, name: str, show: bool) -> dict[str, Any]:
        """The summary of the trained coder."""
        spent = None if self.profile is None else self.profile.spent
        return _measure(self.trainer, self.run, name, spent, self.dead_after, show)


def _measure(
    trainer: Trainer, run: RunOptions, name: str, spent: TimeSpent | None, dead_after: int, show: bool
) -> dict[str, Any]:
    """The summary of a trained coder on held-out tokens, written down, and printed if it is to be shown."""
    directory, coder, data = run.directory(name), trainer.model, trainer.calibration_data
    what = "training" if data is trainer.data else "held-out"
    if not run.quiet:
        print(f"{name}: measuring on {run.eval_tokens:,} {what} tokens", file=sys.stderr)
    if data is trainer.data:
        warn(f"{name} holds no data out: its figures are of training data. Give its Trainer held_out for others.")
    dead_L = (trainer.state.tokens_since_fired_L >= dead_after).cpu()
    read = tokens_read(trainer.state.cursor) if isinstance(trainer.data, Dataloader) else None
    parts = Parts()
    measured = partial(full_evaluation, coder, data, run.eval_tokens, splice_tokens=run.splice_tokens, dead_L=dead_L)
    evaluation = parts.run("the evaluation", measured)
    if evaluation is not None and data is trainer.data:
        evaluation = attrs.evolve(evaluation, source={**evaluation.source, "split": "train"})
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
            **({} if read is None else {f"training_tokens/{name}": n for name, n in attrs.asdict(read).items()}),
            **({"bad_rows": trainer.state.cursor.get("bad_rows", 0)} if run.skip_bad_rows else {}),
            **({} if evaluation is None else evaluation.finite()),
            **({"absent": absent} if absent else {}),
            **({} if spent is None else {"tokens_per_second": spent.tokens_per_second, "time": spent.shares}),
        }
        write_json(directory / SUMMARY, summary)
    if show:
        if evaluation is not None:
            title = f"{name} after {trainer.state.tokens:,} tokens, on {what} data"
            shown = partial(print_evaluation, evaluation, title)
            parts.run("showing the evaluation", shown, passing_on=(OSError,))
        if read is not None:
            print(f"Training, {read}")
        if run.skip_bad_rows:
            print(f"Bad rows that were left out of the training text: {summary['bad_rows']:,}")
        print(f"\nThe coder is in {directory / CODER}; to load it:\n")
        print(*(f"    {line}" for line in how_to_load(coder, directory)), "", sep="\n")
    return summary


def how_to_load(coder: SparseCoder, directory: Path) -> list[str]:
    """The lines that load a run's coder, with the imports of classes that are not crosscode's."""
    own = own_classes(coder)
    classes = f", classes=[{', '.join(cls.__name__ for cls in own)}]" if own else ""
    return [
        "import crosscode",
        *(line for cls in own if (line := import_of(cls)) is not None),
        f"coder = crosscode.load({str(directory / CODER)!r}{classes})",
        "latents = coder.encode(activations)  # raw ones",
    ]


def wandb_of(run: RunOptions, name: str, group: str | None = None) -> WeightsAndBiases:
    return WeightsAndBiases(run.wandb_mode, run.wandb_project, name, run.directory(name), hold=True, group=group)


def make_report(directory: Path, wandb: WeightsAndBiases) -> bool:
    """The page, and its figures for wandb; a run is complete without them. Whether there is a page."""
    try:
        page = write_report(directory)
    except Exception as error:
        warn(f"no report was made ({type(error).__name__}: {error}); the run is complete.")
        return False
    Parts().run("showing the report in wandb", lambda: wandb.show(page, figures_of(directory)))
    return True
