"""A sweep: one recipe with every combination of some values, trained on one harvest, in one folder.

sweep.parquet  pareto.html     a row a member, with its values and figures; FVU against L0
k=16,n_latents=2048/  …        a member's folder, complete like that of any run
"""

import contextlib
import inspect
import itertools
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch

from crosscode.checks import function, instance
from crosscode.command_line import read_grid
from crosscode.errors import BadInput, close_match
from crosscode.files import write_whole
from crosscode.named import is_name, object_named
from crosscode.report import pareto
from crosscode.run.options import RunOptions, check_project
from crosscode.run.program import memory_of, print_loading
from crosscode.run.recipe import held_out_of, run_together, trainer_of
from crosscode.run.resuming import check_resumed, saying_how_to_resume
from crosscode.run_folder import check_output, writing
from crosscode.training import Trainer
from crosscode.training.memory import Estimate, free_bytes, free_disk, together

TABLE, FIGURE = "sweep.parquet", "pareto.html"
OF_EACH = ("lr_warmup", "lr_decay", "betas", "clip_norm", "precision")  # of a run, and no matter of its data
OF_ONE = ("null", "profile")
UNSAFE = re.compile(r"[^\w.+-]")  # in a folder's name
SHOWN = {"l0/mean": "L0", "fvu/pooled": "FVU", "density/never": "never fired"}


@attrs.frozen(eq=False)
class Sweep:
    """Every combination of some values of a recipe's arguments, trained step by step on one harvest.

    Args:
        factory: the recipe.
        run: what the members share; `output` is the sweep's folder, `runs/<recipe>_sweep` if not given.
        grid: the values of each argument that members differ in: one of the recipe's, but for `num_steps`, or
            `lr_warmup`, `lr_decay`, `betas`, `clip_norm` or `precision` of `run`.
        scheme: arguments of the recipe that all members have.

    Raises:
        BadInput: an argument that the recipe does not have, or that members cannot differ in; values that are no list
            of different ones.
    """

    factory: Callable[..., Trainer]
    run: RunOptions
    grid: Mapping[str, Sequence[Any]]
    scheme: Mapping[str, Any] = {}

    def __attrs_post_init__(self) -> None:
        function("factory", self.factory)
        own = [name for name in inspect.signature(self.factory).parameters if name not in ("run", "num_steps")]
        shared = {"num_steps", *(field.name for field in attrs.fields(RunOptions))} - set(OF_EACH)
        instance("grid", self.grid, Mapping, "a dictionary of lists of values by argument")
        if not self.grid:
            raise BadInput("grid is empty: give an argument of the recipe several values, as in --k 16 32 64.")
        for name, values in self.grid.items():
            if name in shared:
                raise BadInput(f"{name} takes one value in a sweep: its members share text, steps, device and files.")
            if name not in (*own, *OF_EACH):
                known = close_match(name, (*own, *OF_EACH))
                raise BadInput(f"grid: {self.factory.__name__} has no argument {name!r}.{known}")
            listed = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
            if not listed or any(one == other for one, other in itertools.combinations(values, 2)):
                raise BadInput(f"grid: {name}={values!r} must be a list of different values.")
        for name in OF_ONE:
            if getattr(self.run, name):
                raise BadInput(f"{name} is of a single run, not of a sweep.")

    @property
    def directory(self) -> Path:
        """The sweep's folder."""
        return self.run.directory(f"{self.factory.__name__}_sweep")

    @property
    def members(self) -> list[dict[str, Any]]:
        """What each member has of its own, in the order of the grid."""
        return [dict(zip(self.grid, values)) for values in itertools.product(*self.grid.values())]

    @property
    def directories(self) -> list[Path]:
        """The members' folders, in the same order."""
        return [self.directory / folder_of(member) for member in self.members]

    def _arguments(self) -> Iterator[tuple[RunOptions, dict[str, Any]]]:
        """What the factory is called with for each member; they share models and data with `run`."""
        models = self.run.loaded_models()
        for member, directory in zip(self.members, self.directories):
            of_run = {name: value for name, value in member.items() if name in OF_EACH}
            own = {name: value for name, value in member.items() if name not in OF_EACH}
            run = attrs.evolve(self.run, models=models, output=directory, **of_run)
            run.take_data_of(self.run)
            yield run, {**self.scheme, **own}
            self.run.take_data_of(run)

    def memory(self) -> Estimate:
        """What all members take together."""
        return together([memory_of(self.factory, run, scheme) for run, scheme in self._arguments()])

    def train(self) -> list[dict[str, Any]]:
        """Train, save and measure all members, and write the table and the figure.

        The held-out text goes through the models once: what is harvested of it is kept until all are measured.

        Returns:
            A row a member: its folder's name, its values, and the figures of its summary.

        Raises:
            BadInput: what `Trainer`, a recipe or `resume` refuses.
        """
        members: list[tuple[Trainer, RunOptions]] = []
        for run, scheme in self._arguments():
            torch.manual_seed(run.seed)
            members.append((trainer_of(self.factory, run, scheme), run))
        with contextlib.ExitStack() as stack:
            if self.run.cache is None and members[0][0].held_out is None:
                stack.callback(_remove_if_empty, self.directory)
                with writing(self.directory):
                    self.directory.mkdir(parents=True, exist_ok=True)
                    kept = stack.enter_context(tempfile.TemporaryDirectory(prefix=".held_out_", dir=self.directory))
                trainer, run = members[0]
                measured = attrs.evolve(run, cache=Path(kept))
                held_out_of(trainer.model, measured)
                for _, each in members:
                    each.take_data_of(measured)
            summaries = run_together(members, self.factory.__name__, group=self.directory.name)
        rows = [
            {"member": directory.name, **member, **{name: value for name, value in summary.items() if _is_plain(value)}}
            for directory, member, summary in zip(self.directories, self.members, summaries)
        ]
        with writing(self.directory, "The members are complete: make room, then --resume."):
            write_table(rows, self.directory / TABLE)
            write_whole(self.directory / FIGURE, pareto(rows, list(self.grid)).to_html(include_plotlyjs=True))
        return rows


def folder_of(member: Mapping[str, Any]) -> str:
    """`k=16,n_latents=2048`."""
    return ",".join(f"{name}={UNSAFE.sub('_', str(value))}" for name, value in member.items())


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()


def write_table(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """A parquet file of rows; a value that is no number or text is written as its text."""
    import pyarrow
    import pyarrow.parquet

    columns = dict.fromkeys(name for row in rows for name in row)
    values = {name: _column([row.get(name) for row in rows]) for name in columns}
    beside = file.with_name(f".{file.name}")
    pyarrow.parquet.write_table(pyarrow.table(values), beside)
    os.replace(beside, file)


def _column(values: list[Any]) -> list[Any]:
    """Values of one kind: numbers, texts or flags; others as texts."""
    kinds = {float if type(value) is int else type(value) for value in values if value is not None}
    of_one_kind = kinds <= {float} or kinds <= {str} or kinds <= {bool}
    return values if of_one_kind else [None if value is None else str(value) for value in values]


def main(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """`python -m crosscode sweep RECIPE.py --k 16 32 64 …`: each option of the recipe that is given several values.

    Args:
        arguments: the recipe's file (its function has the file's name) or `FILE.py:NAME`, then options of the recipe.

    Raises:
        BadInput: an option or a value that cannot be; more memory than is free; whatever a run refuses.
    """
    if not arguments or arguments[0].startswith("-"):
        raise BadInput(
            "sweep: name a recipe first, as in python -m crosscode sweep recipes/topk_crosscoder.py --k 16 32."
        )
    recipe, *words = arguments
    factory = object_named("recipe", recipe if is_name(recipe) else f"{recipe}:{Path(recipe).stem}")
    run, scheme, grid = read_grid(factory, words)
    sweep = Sweep(factory, run, grid, scheme)
    run.check_like(inspect.signature(factory).parameters["run"].default)
    check_output(sweep.directory)
    if run.resume:
        for directory in sweep.directories:
            check_resumed(directory, factory.__name__, run.resume_changed)
    check_project("WANDB_PROJECT", os.environ.get("WANDB_PROJECT") or None)
    memory = sweep.memory()
    free = free_bytes(memory.device), free_disk(sweep.directory)
    if run.dry_run:
        print(memory.table(*free))
        return []
    memory.check(*free)
    if not run.quiet:
        print_loading(f"{factory.__name__} x {len(sweep.members)}", run)
    with saying_how_to_resume(sweep.directories[0], ["sweep", *arguments]):
        rows = sweep.train()
    if not run.quiet:
        print_rows(rows, list(grid))
        print(f"\nThe table: {sweep.directory / TABLE}\nThe figure: {sweep.directory / FIGURE}")
    return rows


def print_rows(rows: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> None:
    """Each member's values, L0, FVU and share of latents that never fired."""
    lines = [[*axes, *SHOWN.values()]]
    for row in rows:
        figures = [row.get(name) for name in SHOWN]
        lines.append([*(str(row[axis]) for axis in axes), *("-" if x is None else f"{x:.4g}" for x in figures)])
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths)))
