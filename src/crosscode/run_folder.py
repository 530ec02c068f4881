"""The folder of a run: what its files hold, and that one process at a time writes there.

options.json          models, data, hookpoints and all else that recipes share
configuration.json    what the trainer was made of
metrics.jsonl         curves
summary.json          the figures at the end; there once the run is complete
provenance.json       when, where and with which versions
coder/                the trained coder (`crosscode.load`)
silence.safetensors   tokens_since_fired_L, dead_L: for how long each latent had been silent in training
checkpoints/  evaluation/  null/  wandb/
report.html           the page that shows all of it
"""

import os
import platform
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from crosscode.errors import BadInput, CrosscodeError, first_line, warn
from crosscode.files import read_json, write_json, write_tensors

OPTIONS, CONFIGURATION, CURVES = "options.json", "configuration.json", "metrics.jsonl"
SUMMARY, PROVENANCE, SILENCE = "summary.json", "provenance.json", "silence.safetensors"
CODER, CHECKPOINTS, NULL, REPORT = "coder", "checkpoints", "null", "report.html"
LOCK = "run.lock"
RECIPE = "recipe"  # in a run's configuration: the name of what made it
CLASSES = "classes"  # there too: where each class of the coder that is not crosscode's was defined, as a hint


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


def recipe_of(directory: Path) -> str | None:
    """The recipe that made a run; None where that is not written down."""
    configuration = read_json(directory / CONFIGURATION)
    return configuration.get(RECIPE) if isinstance(configuration, dict) else None


def words_for_classes(directory: Path, names: Iterable[str]) -> str:
    """What to write behind `--classes` for a run whose coder is made of these classes, as far as it says.

    Args:
        directory: the run's folder.
        names: full names of the classes.
    """
    configuration = read_json(directory / CONFIGURATION)
    known = configuration.get(CLASSES) if isinstance(configuration, dict) else None
    known = known if isinstance(known, dict) else {}
    return shlex.join(str(known.get(name) or f"FILE.py:{name.rpartition('.')[2]}") for name in names)


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


def is_complete(directory: Path) -> bool:
    """Whether a run, and the null run beside it if it was asked for, came to their end."""
    options = read_json(directory / OPTIONS)
    beside_null = isinstance(options, dict) and options.get("null") is not None
    return all((each / SUMMARY).exists() for each in (directory, *([directory / NULL] if beside_null else [])))


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


def write_provenance(run: Path, device: str, started: datetime, trained: datetime, first_step: int) -> None:
    """When a run was made, where and with what.

    Args:
        run: the folder.
        device: where the coder was trained.
        started, trained: when training began and ended.
        first_step: the step that training went on from; 0 if it was not resumed.
    """
    content = {
        "started": started.isoformat(timespec="seconds"),
        "training_seconds": round((trained - started).total_seconds(), 1),
        "from_step": first_step,
        "device": device if not device.startswith("cuda") else f"{device} ({torch.cuda.get_device_name(device)})",
        "machine": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("crosscode", "torch", "transformers")},
    }
    write_json(run / PROVENANCE, content)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def save_silence(run: Path, tokens_since_fired_L: Int[Tensor, " L"], dead_L: Bool[Tensor, " L"]) -> None:
    """Keep for how long each latent had been silent at the end of training, and which ones count as dead."""
    tensors = {"tokens_since_fired_L": tokens_since_fired_L.cpu().contiguous(), "dead_L": dead_L.cpu()}
    write_tensors(tensors, run / SILENCE)


def read_dead(run: Path) -> Bool[Tensor, " L"] | None:
    """The latents that training found dead; None if the folder does not say."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = run / SILENCE
    if not file.is_file():
        return None
    try:
        dead_L = load_file(file)["dead_L"]
    except (OSError, KeyError, SafetensorError) as error:
        raise CrosscodeError(f"{str(file)!r} is damaged: {first_line(error)}") from error
    if dead_L.dtype != torch.bool or dead_L.ndim != 1:
        raise CrosscodeError(f"{str(file)!r} is damaged: dead_L is no mask of latents.")
    return dead_L
