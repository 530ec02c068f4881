"""The folder of a run: one process writes there, what is written is whole, and a run that was cut short goes on."""

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from signal import SIGINT

from crosscode.errors import BadInput, CrosscodeError, warn
from crosscode.run_files import CHECKPOINTS, NULL, SUMMARY
from crosscode.training import Interrupted, NumericalError, Trainer, load_checkpoint, newest_checkpoint
from crosscode.training.interrupt import Terminated, sigterm_as_interrupt

LOCK = "run.lock"


def check_output(directory: Path) -> None:
    """Refuse an output that cannot be written to, without making anything yet."""
    nearest = directory
    try:
        while not nearest.exists() and nearest != nearest.parent:
            nearest = nearest.parent
    except OSError as error:  # a name that is too long
        raise BadInput(f"output={str(directory)!r} cannot be made: {error.strerror}.") from error
    if not nearest.is_dir():
        raise BadInput(f"output={str(directory)!r}: {str(nearest)!r} is a file, not a directory.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise BadInput(f"output={str(directory)!r}: {str(nearest)!r} cannot be written to.")


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


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Two runs in one folder would write over each other: the second is refused. A killed process holds no lock.

    Raises:
        BadInput: another process runs here.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(directory / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BadInput(
            f"output={str(directory)!r} is in use by another run: wait for its end, or give another --output."
        ) from None
    except (OSError, NotImplementedError) as error:  # some network file systems have no locks
        warn(f"{directory} cannot be locked ({error}): let no other run write there.")
    try:
        yield
    finally:
        lock.release()


def take_up(trainer: Trainer, directory: Path, resume: bool, changed: Sequence[str]) -> None:
    """Put the trainer at the newest whole checkpoint if it is to resume, and keep a run that was cut short if not.

    Args:
        trainer: fresh, with the configuration of this run.
        directory: the run's folder.
        resume: whether to go on.
        changed: fields of the configuration that are meant to differ.

    Raises:
        BadInput: nothing to resume; a run to resume that this one would replace; another configuration.
    """
    if changed and not resume:
        raise BadInput(f"resume_changed={tuple(changed)}: there is nothing to compare with without --resume.")
    if not resume:
        refuse_cut_short(directory)
        return
    newest = newest_checkpoint(directory / CHECKPOINTS)
    if newest is None:
        raise BadInput(f"resume: {str(directory / CHECKPOINTS)!r} holds no whole checkpoint.")
    load_checkpoint(trainer, newest, changed)


def refuse_cut_short(directory: Path) -> None:
    """Raise `BadInput` for the folder of a run that is not complete: a new one would replace it."""
    if not (directory / SUMMARY).exists() and newest_checkpoint(directory / CHECKPOINTS) is not None:
        raise BadInput(
            f"output={str(directory)!r} holds a run that was cut short: --resume goes on, another --output keeps it."
        )


@contextmanager
def writing(
    directory: Path, cure: str = "What was trained is in its checkpoints: make room, then --resume."
) -> Iterator[None]:
    """What is written in here is worth nothing by halves: a full disk is said in one line, and how to go on.

    Raises:
        CrosscodeError: something could not be written.
    """
    try:
        yield
    except OSError as error:
        raise CrosscodeError(f"{directory} could not be written to: {error}. {cure}") from error


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
    command = shlex.join([python, sys.argv[0], *again])
    return f"Go on from step {int(newest.name.removeprefix('step_'))}{which} with: {command}"
