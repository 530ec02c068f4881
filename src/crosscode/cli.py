"""`python -m crosscode COMMAND`: what is done with a run's folder. Options are the arguments of the functions here."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from crosscode.command_line import errors_in_one_line, read_command
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


COMMANDS: Mapping[str, Callable[..., Any]] = {"evaluate": evaluate, "report": report}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first word names; bad input ends the program with one line and exit code 2."""
    with errors_in_one_line():
        read_command(COMMANDS, sys.argv[1:] if arguments is None else arguments, "python -m crosscode")()
