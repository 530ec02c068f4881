"""`python -m crosscode COMMAND`: what is done with a run's folder or a cache, typed by the functions here."""

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from crosscode.command_line import errors_in_one_line, read_command
from crosscode.data.cache import list_cache, prune_cache, verify_cache
from crosscode.errors import BadInput
from crosscode.evaluation import evaluate as evaluate_on
from crosscode.run import OPTIONS, RunOptions, held_out_of, measures
from crosscode.saving import load


def evaluate(run: Path, /, *, n_tokens: int = 30_000) -> None:
    """Measure a run's coder on held-out tokens.

    Args:
        run: the run's folder.
        n_tokens: how many tokens.
    """
    coder = load(run / "coder")
    held_out = held_out_of(coder, RunOptions.read(run / OPTIONS))
    for name, value in evaluate_on(coder, held_out, measures(coder, held_out), n_tokens).items():
        if not isinstance(value, Tensor):
            print(f"{name}  {value:.4g}")


def report(run: Path, /) -> None:
    """Say where a run's picture is.

    Args:
        run: the run's folder.
    """
    RunOptions.read(run / OPTIONS)
    print(run / "run.png")


def cache(action: Literal["list", "verify", "prune"], directory: Path, /, *, max_gb: float | None = None) -> None:
    """List what an activation cache holds, verify every byte of it, or prune it.

    Args:
        action: `list` shows models, hookpoints, bytes and last use; `verify` reads everything and drops what is
            damaged; `prune` removes what was used longest ago until `max_gb` are left.
        directory: of the cache.
        max_gb: for `prune`: what may stay, in 10^9 bytes; 0 empties the cache.
    """
    if (max_gb is None) == (action == "prune"):
        raise BadInput("max_gb is needed by prune, and by nothing else.")
    if action == "list":
        entries = list_cache(directory)
        for entry in entries:
            used = datetime.fromtimestamp(entry.last_used).isoformat(" ", "minutes")
            print(f"{entry.n_bytes / 1e9:10.3f} GB  last used {used}  {entry.model}  {' '.join(entry.hookpoints)}")
        print(f"{sum(entry.n_bytes for entry in entries) / 1e9:10.3f} GB in all")
    elif action == "verify":
        n_whole, damaged = verify_cache(directory)
        print(*(f"{file} was damaged: dropped" for file in damaged), f"{n_whole} shards are whole", sep="\n")
    elif max_gb is not None:
        n_removed, left = prune_cache(directory, round(max_gb * 1e9))
        print(f"{n_removed} shards removed, {left / 1e9:.3f} GB left")


COMMANDS: Mapping[str, Callable[..., Any]] = {"evaluate": evaluate, "report": report, "cache": cache}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first word names; bad input ends the program with one line and exit code 2."""
    with errors_in_one_line():
        read_command(COMMANDS, sys.argv[1:] if arguments is None else arguments, "python -m crosscode")()
