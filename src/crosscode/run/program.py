"""A recipe as a program: its arguments are options, and what would fail is told before anything is read.

    if __name__ == "__main__":
        main(l1_crosscoder)

makes every argument of the factory, and of `RunOptions`, an option of the command line.
"""

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import torch

from crosscode.command_line import errors_in_one_line, read_options
from crosscode.run.beside_null import run_beside_null
from crosscode.run.options import RunOptions, check_project
from crosscode.run.recipe import dataloader_of, run_recipe, trainer_of
from crosscode.run.resuming import check_resumed, saying_how_to_resume
from crosscode.run_folder import check_output
from crosscode.training import Trainer
from crosscode.training.memory import Estimate, estimate, free_bytes, free_disk


def print_loading(name: str, run: RunOptions) -> None:
    """Say once that models are loaded, which may take a while."""
    models = (*run.models, *([] if run.null is None else [run.null]))
    n_bytes = sum(getattr(model, "weight_bytes", 0) for model in run.language_models)
    print(f"{name}: loading {', '.join(models)} ({n_bytes / 1e9:.2g} GB of weights)", file=sys.stderr)


def memory_of(factory: Callable[..., Trainer], run: RunOptions, scheme: Mapping[str, Any]) -> Estimate:
    """What a run would take of memory, from a coder without values; the data are found, and not yet read."""
    for model in run.language_models:
        for hookpoint in (*run.reads, *run.writes) or run.hookpoints:
            _ = model.width(hookpoint)  # found in the model as it is, not in one without values
    without_values = attrs.evolve(run, models=run.loaded_models(), device="meta")
    without_values.take_data_of(run)
    try:
        with torch.device("meta"):
            trainer = factory(without_values, **scheme)
        run.take_data_of(without_values)
    except (NotImplementedError, RuntimeError):  # a recipe of one's own that looks at values
        run.take_data_of(without_values)
        trainer = factory(run, **scheme)
    return estimate(trainer, dataloader_of(trainer, without_values), torch.device(run.device))


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
            return run_recipe(trainer_of(factory, run, scheme), run, factory.__name__)
