"""A run that was cut short goes on, in the folder that it began in and with the scheme that it began with."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT

from crosscode.errors import DAMAGE, BadInput, close_match
from crosscode.files import read_json
from crosscode.run_folder import (
    CHECKPOINTS,
    CONFIGURATION,
    LOCK,
    NULL,
    OPTIONS,
    RECIPE,
    SUMMARY,
    is_complete,
    locked,
    recipe_of,
)
from crosscode.training import (
    Interrupted,
    NumericalError,
    Trainer,
    describe,
    load_checkpoint,
    newest_checkpoint,
    newest_in_all,
)
from crosscode.training.description import differences
from crosscode.training.interrupt import Terminated, sigterm_as_interrupt


def check_resumed(directory: Path, recipe: str, changed: Sequence[str]) -> None:
    """Refuse to go on in a folder that is none of this recipe's runs, saying what it is, or what to give instead.

    Args:
        directory: where a run is to go on.
        recipe: the name of the recipe that is to go on.
        changed: what is meant to differ; `recipe` for one that was renamed.

    Raises:
        BadInput: it is missing, a part of a run's folder, another recipe's, or something else.
    """
    if not directory.exists():
        near = directory.parent
        siblings = [each.name for each in near.iterdir() if each.is_dir()] if near.is_dir() else []
        close = close_match(directory.name, siblings) if siblings else ""
        raise BadInput(f"resume: output={str(directory)!r} does not exist.{close}")
    for folder in list(directory.absolute().parents)[:2]:
        part = directory.absolute().relative_to(folder).as_posix()
        if (folder / OPTIONS).is_file() and (part == NULL or not (directory / OPTIONS).is_file()):
            kind = "the null run" if part == NULL else repr(part)
            raise BadInput(
                f"resume: output={str(directory)!r} is {kind} of the run in {str(folder)!r}: give --output {folder}."
            )
    if not (directory / CHECKPOINTS).is_dir():
        if (directory / OPTIONS).is_file():
            raise BadInput(
                f"resume: output={str(directory)!r} holds a run without its checkpoints: put {CHECKPOINTS}/ there, or "
                "leave --resume out."
            )
        holds = ", ".join(sorted(each.name for each in directory.iterdir())[:6])
        raise BadInput(f"resume: output={str(directory)!r} is no folder of a run: it holds {holds or 'nothing'}.")
    before = recipe_of(directory)
    if before not in (None, recipe) and RECIPE not in changed:  # a list of all that differs would say less
        raise BadInput(
            f"resume: output={str(directory)!r} was made by the recipe {before}, not by {recipe}: run {before}, or "
            f"give another --output. If it was renamed: --resume-changed {RECIPE}"
        )


def check_null(trainer: Trainer, directory: Path) -> None:
    """Refuse to go on with the run of another null, before the pair's run goes on.

    Args:
        trainer: of the null run, fresh.
        directory: of the null run.

    Raises:
        BadInput: the models there are not this one's.
    """
    try:
        then = read_json(directory / CONFIGURATION)["data"]["harvester"]["models"]
        now = describe(trainer.data)["harvester"]["models"]
        differing, was = differences(then, now, "models"), then[1]["called"]
    except DAMAGE:
        return
    if differing:
        raise BadInput(
            f"resume: {str(directory)!r} is of the null {was}, not of {now[1]['called']}: give --null {was}, or remove "
            "that folder."
        )


@contextmanager
def made_and_locked(directory: Path, trainer: Trainer) -> Iterator[None]:
    """The directory of a run, locked; one that was not there before is gone again if input is refused before a step.

    Raises:
        BadInput: it cannot be made; another process runs there.
    """
    existed = directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, RecursionError) as error:  # a name with a zero byte is a ValueError
        why = getattr(error, "strerror", None) or error
        raise BadInput(f"output={str(directory)!r} cannot be made: {why}.") from error
    with locked(directory):
        # Only who holds the lock may take the directory back, and only if nobody has been here meanwhile.
        made = not existed and set(os.listdir(directory)) <= {LOCK}
        try:
            yield
        except BadInput:
            if made and trainer.state.step == 0:
                shutil.rmtree(directory, ignore_errors=True)
            raise


def resume_or_keep(
    trainers: Sequence[Trainer], directories: Sequence[Path], recipe: str, resume: bool, changed: Sequence[str]
) -> None:
    """Put trainers at the newest step that all have a whole checkpoint of, or keep runs that were cut short.

    Args:
        trainers: fresh, with the configuration of this run; several train together.
        directories: their folders.
        recipe: the name of this run's recipe.
        resume: whether to go on.
        changed: fields of the configuration that are meant to differ.

    Raises:
        BadInput: nothing to resume; a run to resume that this one would replace; another configuration.
    """
    if changed and not resume:
        raise BadInput(f"resume_changed={tuple(changed)}: there is nothing to compare with without --resume.")
    if not resume:
        for directory in directories:
            refuse_cut_short(directory, recipe)
        return
    newest = newest_in_all([directory / CHECKPOINTS for directory in directories])
    if not newest:
        lacking = [each / CHECKPOINTS for each in directories if newest_checkpoint(each / CHECKPOINTS) is None]
        if not lacking:
            raise BadInput(f"resume: the members in {str(directories[0].parent)!r} have no checkpoint of one step.")
        raise BadInput(f"resume: {str(lacking[0])!r} holds no whole checkpoint.")
    for trainer, checkpoint in zip(trainers, newest):
        load_checkpoint(trainer, checkpoint, [name for name in changed if name != RECIPE])


def refuse_cut_short(directory: Path, recipe: str) -> None:
    """Raise `BadInput` for the folder of a run that is not complete: a new one, of this recipe, would replace it."""
    if not is_complete(directory) and newest_checkpoint(directory / CHECKPOINTS) is not None:
        before = recipe_of(directory) or recipe
        of, on = ("", "--resume") if before == recipe else (f" of {before}", f"{before} with --resume")
        raise BadInput(
            f"output={str(directory)!r} holds a run{of} that was cut short: {on} goes on, another --output keeps it."
        )


@contextmanager
def saying_how_to_resume(directory: Path, arguments: Sequence[str]) -> Iterator[None]:
    """A run that stops in here says how it goes on; one that was asked to stop has the exit code of its signal.

    Args:
        directory: the run's folder.
        arguments: of the command that was called.
    """
    try:
        with sigterm_as_interrupt():  # before and after the steps; in a step it is deferred
            yield
    except NumericalError as error:
        raise NumericalError(f"{error} {how_to_resume(directory, arguments)}") from error
    except KeyboardInterrupt as stopped:
        signal = stopped.signal if isinstance(stopped, Interrupted | Terminated) else SIGINT
        print(f"{str(stopped) or 'stopped at once'}. {how_to_resume(directory, arguments)}", file=sys.stderr)
        raise SystemExit(128 + signal) from None


def how_to_resume(directory: Path, arguments: Sequence[str]) -> str:
    """One line: the command that goes on where the newest checkpoint was taken."""
    newest = newest_checkpoint(directory / CHECKPOINTS)
    if newest is None:
        return "Nothing was saved yet: the same command begins again."
    of_null = newest_checkpoint(directory / NULL / CHECKPOINTS) if (directory / SUMMARY).exists() else None
    newest, which = (newest, "") if of_null is None else (of_null, " of the null run")
    again = arguments if "--resume" in arguments else [*arguments, "--resume"]
    python = Path(sys.executable).name
    python = python if shutil.which(python) == sys.executable else sys.executable
    program = ["-m", "crosscode"] if Path(sys.argv[0]).name == "__main__.py" else [sys.argv[0]]
    command = shlex.join([python, *program, *again])
    return f"Go on from step {int(newest.name.removeprefix('step_'))}{which} with: {command}"
