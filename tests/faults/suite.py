"""Faults injected into real runs at random moments; a table says what became of each run.

    python tests/faults/suite.py                 # the whole suite: minutes to an hour, as the machine has time
    python tests/faults/suite.py --short         # about ten kills, and one of each other fault
    python tests/faults/suite.py --seed 7 --only checkpoint --write benchmarks/faults.md

A run counts as bit-identical if final weights, optimizer moments, state, every row of its curves and all figures on
held-out tokens equal those of the run to which nothing happened. Recovery is the time from starting the process again
to its first step.
"""

import argparse
import io
import itertools
import json
import logging
import os
import platform
import random
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import torch

sys.path.insert(0, str(Path(__file__).parent))

from cache_faults import break_streams, damage_shards, fill_disk, kill_writers
from runs import RUNS, TINY, Child, Meddle, World, checkpoints, outcome

import crosscode.callbacks.checkpoint
import crosscode.data.cache
import crosscode.evaluation.full
import crosscode.run.beside_null
import crosscode.run.recipe
import crosscode.training.trainer
from crosscode.data import ActivationCache
from crosscode.penalties import AuxK
from crosscode.training import Trainer, store

N_STEPS = TINY["num_steps"]
CALLS = ("mkdir", "open", "close", "fsync", "replace", "rename", "link", "unlink", "rmdir")


@attrs.define
class Row:
    """What became of one kind of fault.

    Attributes:
        fault: which.
        injected: how often it happened.
        runs: that it happened in.
        identical: of them, ended as if it had not.
        rows_lost: rows of curves.
        recovery: the longest, in seconds.
        wrong: what should not have been, a line each.
    """

    fault: str
    injected: int = 0
    runs: int = 0
    identical: int = 0
    rows_lost: int = 0
    recovery: float = 0.0
    wrong: list[str] = attrs.field(factory=list)

    def judge(self, world: World, name: str, output: Path) -> None:
        """Compare a run that has ended with the uninterrupted one."""
        self.runs += 1
        lost = world.rows_lost(name, output)
        self.rows_lost += lost
        mine, whole = outcome(output), world.reference(name)
        differing = [part for part in whole if mine[part] != whole[part]]
        if differing:
            self.wrong.append(f"{self.fault}: run {name} differs in {', '.join(differing)}")
        else:
            self.identical += 1

    def expect(self, holds: bool, what: str, child: Child) -> None:
        if not holds:
            self.wrong.append(f"{self.fault}: {what}; printed: {child.printed()[-800:]}")


@attrs.define
class Suite:
    """Faults, each a method that fills rows.

    Attributes:
        world: where runs happen.
        rng: every random choice.
        row: of the fault being injected.
    """

    world: World
    rng: random.Random
    _n: int = 0

    def new(self) -> tuple[str, Path]:
        """A run by turns, and an empty folder for it."""
        self._n += 1
        return list(RUNS)[self._n % len(RUNS)], self.world.folder / "runs" / str(self._n)

    def finish(self, row: Row, name: str, output: Path, restarted: bool = True, **given: Any) -> None:
        """Start it (again), let it end, and judge it."""
        child = self.world.start(name, output, **given)
        code = child.wait()
        row.expect(code == 0, f"{name} ended with {code}", child)
        if restarted and child.first_step is not None:
            row.recovery = max(row.recovery, child.first_step)
        if code == 0:
            row.judge(self.world, name, output)
        shutil.rmtree(output, ignore_errors=True)

    # --- death, once the last step is made ---------------------------------------------------------------------------

    def kill_after_training(self, row: Row, times: int) -> None:
        """In each of the things that come after the last step: what goes on makes no step again."""
        moments: dict[str, Meddle] = {
            "the calibration": dies_in(crosscode.training.trainer, "calibrate"),
            "saving the coder": kill_inside(crosscode.run.recipe, "save", self.rng.randrange(1, 5), None),
            "the evaluation": dies_in(crosscode.evaluation.full, "splice"),
            "saving the evaluation": kill_inside(crosscode.run.recipe, "_measure", self.rng.randrange(1, 5), None),
            "the report": dies_in(crosscode.run.recipe, "make_report"),
        }
        for _, (moment, meddle) in zip(range(times), itertools.cycle(moments.items())):
            _, output = self.new()
            self.all_but_the_end("text", output)
            child = self.world.start("text", output, meddle)
            code = child.wait()
            row.injected += 1
            row.expect(code == -signal.SIGKILL and child.last_step == N_STEPS, f"{moment}: exit code {code}", child)
            child = self.world.start("text", output)
            code = child.wait()
            row.expect((code, child.steps) == (0, 0), f"{moment}: exit code {code}, {child.steps} steps again", child)
            if code == 0:
                row.judge(self.world, "text", output)
            shutil.rmtree(output, ignore_errors=True)

    def kill_beside_a_null(self, row: Row, times: int) -> None:
        """Between the pair's end and the null's beginning, and in the null's calibration: no step is made again."""
        for _ in range(times):
            _, output = self.new()
            self.all_but_the_end("text", output)
            given = {"null": "embedded:control"}
            died = self.world.start("text", output, dies_in(crosscode.run.beside_null, "run_recipe", calls=2), **given)
            row.expect(died.wait() == -signal.SIGKILL and died.last_step == N_STEPS, "it did not die", died)
            fresh = self.world.start("text", output, **given, resume=False)
            row.expect(fresh.wait() == 2 and "cut short" in fresh.printed(), "the pair would be trained again", fresh)
            in_null = dies_in(crosscode.training.trainer, "calibrate", calls=2)
            died = self.world.start("text", output, in_null, **given)
            row.expect(died.wait() == -signal.SIGKILL, "it did not die", died)
            row.expect(died.steps == N_STEPS, f"{died.steps} steps, not those of the null alone", died)
            row.injected += 2
            child = self.world.start("text", output, **given)
            code = child.wait()
            row.expect((code, child.steps) == (0, 0), f"exit code {code}, {child.steps} steps again", child)
            row.runs += 1
            mine, whole = outcome(output), self.world.reference("text")
            same = all(mine[part] == whole[part] for part in whole if part != "summary")  # which tells of the null
            row.expect(same, "the pair's run is another", child)
            row.identical += same
            shutil.rmtree(output, ignore_errors=True)

    def all_but_the_end(self, name: str, output: Path) -> None:
        """A run that was cut short a few steps before its end."""
        self.world.reference(name)
        shutil.copytree(self.world.folder / "whole" / name, output)
        *_, last = checkpoints(output)
        shutil.rmtree(last)
        shutil.rmtree(output / "coder")
        (output / "summary.json").unlink()

    # --- death -------------------------------------------------------------------------------------------------------

    def killed(self, row: Row, times: int, number: signal.Signals, most_steps: int = 20, twice: bool = False) -> None:
        """Signals from outside, each a random time after a random number of steps, until the run ends in spite."""
        while row.injected < times:
            name, output = self.new()
            while row.injected < times:
                child = self.world.start(name, output)
                if not child.after_steps(self.rng.randrange(1, most_steps)):
                    break
                if child.first_step is not None and any(checkpoints(output)):
                    row.recovery = max(row.recovery, child.first_step)
                time.sleep(self.rng.uniform(0, 0.03))
                child.send(number)
                if twice:
                    time.sleep(self.rng.uniform(0, 0.01))
                    child.send(number)
                code = child.wait()
                row.injected += code != 0
                if number is signal.SIGKILL:
                    row.expect(code in (-number, 0), f"exit code {code}", child)
                elif code != 0:
                    self.check_stopped(row, child, output, 128 + number, code, at_once=twice)
                if code == 0:
                    break
            self.finish(row, name, output)

    def check_stopped(self, row: Row, child: Child, output: Path, wanted: int, code: int, at_once: bool) -> None:
        """The exit code of the signal, the last step saved (unless at once), and one line that says how to go on."""
        row.expect(code == wanted, f"exit code {code}, not {wanted}", child)
        newest = store.newest_checkpoint(output / "checkpoints")
        if at_once:  # the checkpoint that was being written may still become whole
            said = any(how in child.printed() for how in ("Nothing was saved yet", "Go on from step "))
        else:
            saved = newest is not None and newest.name.endswith(f"{child.last_step:09d}")
            row.expect(saved, "steps were lost", child)
            said = f"Go on from step {child.last_step} with: " in child.printed()
        row.expect(said, "it does not say how to go on", child)
        row.expect("Traceback" not in child.printed(), "a traceback", child)

    def kill_in_training(self, row: Row, times: int) -> None:
        self.killed(row, times, signal.SIGKILL)

    def sigterm(self, row: Row, times: int) -> None:
        self.killed(row, times, signal.SIGTERM)

    def sigint(self, row: Row, times: int) -> None:
        self.killed(row, times, signal.SIGINT)

    def sigint_twice(self, row: Row, times: int) -> None:
        self.killed(row, times, signal.SIGINT, twice=True)

    def kill_within(
        self, row: Row, times: int, module: ModuleType, function: str, name: str | None, most_calls: int
    ) -> None:
        """The process kills itself inside a function, at a random call to the disk or a random moment."""
        while row.injected < times:
            run, output = self.new()
            run = name or run
            for _ in range(3):
                if row.injected >= times:
                    break
                meddle = kill_inside(
                    module, function, self.rng.randrange(1, most_calls), self.rng.choice((None, 0.002))
                )
                child = self.world.start(run, output, meddle)
                code = child.wait()
                row.expect(code in (-signal.SIGKILL, 0), f"exit code {code}", child)
                row.injected += code != 0
                if code == 0:
                    break
            self.finish(row, run, output)
            shutil.rmtree(self.cache(output), ignore_errors=True)

    def kill_in_checkpoint(self, row: Row, times: int) -> None:
        self.kill_within(row, times, crosscode.callbacks.checkpoint, "write_checkpoint", None, 240)

    def kill_in_cache(self, row: Row, times: int) -> None:
        self.kill_within(row, times, crosscode.data.cache, "write_shard", "files", 54)

    def two_fill_one_cache(self, row: Row, times: int) -> None:
        """Two runs share a cache that is empty; one is killed while it fills it, and then goes on."""
        for _ in range(times):
            _, one = self.new()
            _, other = self.new()
            cache = self.cache(one)
            meddle = kill_inside(crosscode.data.cache, "write_shard", self.rng.randrange(1, 24), None)
            dying = self.world.start("files", one, meddle, cache=cache)
            living = self.world.start("files", other, cache=cache)
            row.injected += dying.wait() == -signal.SIGKILL
            row.expect(living.wait() == 0, "the other run failed", living)
            row.judge(self.world, "files", other)
            self.finish(row, "files", one, cache=cache)
            shutil.rmtree(cache, ignore_errors=True)

    # --- disks -------------------------------------------------------------------------------------------------------

    def full_disk_for_checkpoints(self, row: Row, times: int) -> None:
        """No room for some checkpoints, or for all to the end: then exit code 1, and what was saved is whole."""
        for i in range(times):
            name, output = self.new()
            first = self.rng.randrange(4, N_STEPS - 12)
            last = first + self.rng.randrange(3, 9) if i % 2 == 0 else 10**6
            child = self.world.start(name, output, full_disk(first, last, self.rng.randrange(100, 9000)))
            code = child.wait()
            row.injected += 1
            row.expect("could not be saved" in child.printed(), "no warning", child)
            row.expect(not any(output.glob("checkpoints/.*")), "litter", child)
            row.expect(code == (0 if last < N_STEPS else 1), f"exit code {code}", child)
            row.expect("Traceback" not in child.printed(), "a traceback", child)
            if code == 0:
                row.judge(self.world, name, output)
                shutil.rmtree(output)
            else:
                self.finish(row, name, output)

    def full_disk_for_cache(self, row: Row, times: int) -> None:
        """Nothing can be stored, in part of the run or all of it."""
        for _ in range(times):
            _, output = self.new()
            row.injected += 1
            self.finish(row, "files", output, False, meddle=full_cache(self.rng.randrange(0, 6)))

    def damaged_checkpoint(self, row: Row, times: int) -> None:
        """A run is killed; a file of its newest checkpoint is damaged; it goes on from the one before."""
        files = ["coder.json", "model.safetensors", "optimizer.safetensors", "state.safetensors", "state.json"]
        cases = list(itertools.product([*files, "MANIFEST.json"], ("flip", "flip", "truncate", "truncate", "delete")))
        self.rng.shuffle(cases)
        name, output = self.new()
        child = self.world.start(name, output)
        child.after_steps(N_STEPS * 3 // 4)
        child.send(signal.SIGKILL)
        child.wait()
        for i, (file, how) in enumerate(cases[:times]):
            copy = output.parent / f"{output.name}-{i}"
            shutil.copytree(output, copy)
            if self.cache(output).exists():
                shutil.copytree(self.cache(output), self.cache(copy))
            self.damage(list(checkpoints(copy))[-1] / file, how)
            row.injected += 1
            child = self.world.start(name, copy)
            code = child.wait()
            row.expect(code == 0 and f"is damaged ({file}" in child.printed(), f"{file} {how}: code {code}", child)
            row.recovery = max(row.recovery, child.first_step or 0.0)
            if code == 0:
                row.judge(self.world, name, copy)
            shutil.rmtree(copy)

    def damaged_cache(self, row: Row, times: int) -> None:
        """Files of a warm cache are damaged, a few at a time; what is trained on it does not differ."""
        _, output = self.new()
        child = self.world.start("files", output)
        row.expect(child.wait() == 0, "the first run failed", child)
        warm = self.cache(output)
        for _ in range(times):
            _, again = self.new()
            shutil.copytree(warm, self.cache(again))
            files = sorted(file for file in self.cache(again).rglob("*") if file.is_file())
            for file in self.rng.sample(files, min(5, len(files))):
                self.damage(file, self.rng.choice(("flip", "truncate", "delete")))
                row.injected += 1
            self.finish(row, "files", again, False)
            shutil.rmtree(self.cache(again))

    def damage(self, file: Path, how: str) -> None:
        content = bytearray(file.read_bytes())
        at = self.rng.randrange(len(content))
        if how == "delete":
            file.unlink()
            return
        if how == "truncate":
            del content[at:]
        else:
            content[at] ^= 1 << self.rng.randrange(8)
        file.write_bytes(content)

    def cache(self, output: Path) -> Path:
        return output.parent / f"{output.name}-cache"

    # --- what runs depend on -----------------------------------------------------------------------------------------

    def wandb_fails(self, row: Row, times: int) -> None:
        """In init, in log, in finish, or for ever: one warning, and the run is what it was."""
        ways = ("init", "log", "finish", "hangs", "init hangs", "init exits")
        for _, where in zip(range(times), itertools.cycle(ways)):
            name, output = self.new()
            child = self.world.start(name, output, broken_wandb(where), wandb_mode="offline")
            code = child.wait()
            row.injected += 1
            row.expect(code == 0, f"{where}: exit code {code}", child)
            row.expect(child.printed().count("wandb stopped working") == 1, f"{where}: not one warning", child)
            if code == 0:
                row.judge(self.world, name, output)
            shutil.rmtree(output)

    def stream_fails(self, row: Row, times: int) -> None:
        """The stream breaks at random documents, several times in a run."""
        for _ in range(times):
            _, output = self.new()
            row.injected += 1
            self.finish(row, "stream", output, False, meddle=broken_stream(self.rng.randrange(1 << 30)))

    def bad_numbers(self, row: Row, times: int) -> None:
        """NaN and infinity in data, a penalty, a gradient, a weight: stopped, named, and the run goes on without."""
        kinds = itertools.product(("data", "penalty", "gradient", "weight"), (float("nan"), float("inf")))
        for _, (where, value) in zip(range(times), itertools.cycle(kinds)):
            name, output = "text", self.new()[1]
            step = self.rng.randrange(5, N_STEPS - 4)
            child = self.world.start(name, output, bad_number(where, value, step))
            code = child.wait()
            row.injected += 1
            said = [line for line in child.printed().splitlines() if line.strip()]
            row.expect(code == 1 and len(said) == 1, f"{where}: exit code {code}, {len(said)} lines", child)
            wanted = {"data": "the data's inputs", "penalty": "aux_k", "gradient": "gradient of", "weight": "b_dec"}
            row.expect(f"error: step {step}: " in said[-1], f"{where}: not at step {step}", child)
            row.expect(wanted[where] in said[-1] and "Go on from step" in said[-1], f"{where}: not named", child)
            self.finish(row, name, output)


# --- what is done inside a child, before its recipe begins -----------------------------------------------------------


def dies_in(module: Any, function: str, calls: int = 1, after: int = 0) -> Meddle:
    """Die at a call of a function; of a generator, after so many of its items."""

    def meddle() -> None:
        counted = itertools.count(1)
        usual = getattr(module, function)

        def items(*args: Any, **kwargs: Any) -> Iterator[Any]:
            yield from itertools.islice(usual(*args, **kwargs), after)
            os.kill(os.getpid(), signal.SIGKILL)

        def dying(*args: Any, **kwargs: Any) -> Any:
            if next(counted) != calls:
                return usual(*args, **kwargs)
            if after:
                return items(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)

        setattr(module, function, dying)

    return meddle


def kill_inside(module: Any, function: str, n: int, seconds: float | None) -> Meddle:
    """Die at the n-th call to the disk within a function; or within its n-th call, after up to so many seconds."""

    def meddle() -> None:
        inside, counted = threading.local(), itertools.count(1)
        usual = getattr(module, function)

        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        def watched(*args: Any, **kwargs: Any) -> Any:
            inside.now = seconds is None
            if seconds is not None and next(counted) == 1 + n % 20:
                threading.Timer(random.Random(n).uniform(0, seconds), die).start()
            try:
                return usual(*args, **kwargs)
            finally:
                inside.now = False

        def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*args: Any, **kwargs: Any) -> Any:
                if getattr(inside, "now", False) and next(counted) == n:
                    die()
                return call(*args, **kwargs)

            return wrapped

        setattr(module, function, watched)
        for name in CALLS:
            setattr(os, name, wrap(getattr(os, name)))
        io.open = wrap(io.open)

    return meddle


def full_disk(first: int, last: int, n_bytes: int) -> Meddle:
    """From step `first` to step `last`, no file of a checkpoint can be larger than so many bytes."""

    def meddle() -> None:
        step_now = 0
        write, step = store.write_tensors, Trainer.step

        def limited(tensors: Any, file: Path) -> None:
            if not first <= step_now <= last:
                return write(tensors, file)
            with no_larger_than(n_bytes):
                return write(tensors, file)

        def counting(trainer: Trainer, micro_batches: Any) -> Any:
            nonlocal step_now
            report = step(trainer, micro_batches)
            step_now = report.step
            return report

        store.write_tensors, Trainer.step = limited, counting

    return meddle


def full_cache(stored: int) -> Meddle:
    """After so many shards there is no room for another."""

    def meddle() -> None:
        counted = itertools.count()
        write = ActivationCache._write

        def limited(*args: Any) -> None:
            if next(counted) < stored:
                return write(*args)
            with no_larger_than(1000):
                return write(*args)

        ActivationCache._write = limited

    return meddle


class no_larger_than:
    """As on a full disk: no file grows beyond so many bytes, for any thread of the process."""

    def __init__(self, n_bytes: int) -> None:
        self.n_bytes = n_bytes

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.n_bytes, self.before[1]))

    def __exit__(self, *error: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def broken_wandb(where: str) -> Meddle:
    """It fails in `init`, `log` or `finish`, hangs in `log` or `init`, or would end the process."""

    def meddle() -> None:
        import wandb

        from crosscode.callbacks import WeightsAndBiases

        class Run:
            id = "broken"

            def log(self, *args: Any, **kwargs: Any) -> None:
                if where == "log":
                    raise ConnectionResetError("broken pipe")
                if where == "hangs":
                    threading.Event().wait()

            def finish(self) -> None:
                if where == "finish":
                    raise TimeoutError("no answer")

        def init(*args: Any, **kwargs: Any) -> Any:
            if where == "init":
                raise wandb.errors.CommError("no route to host")
            if where == "init hangs":
                threading.Event().wait()
            if where == "init exits":
                raise SystemExit(1)
            return Run()

        wandb.init = init
        open_ = WeightsAndBiases.open

        def impatient(sink: WeightsAndBiases, trainer: Trainer) -> None:
            sink.patience = 0.5
            open_(sink, trainer)

        WeightsAndBiases.open = impatient

    return meddle


def broken_stream(seed: int) -> Meddle:
    """One document in twenty cannot be read at first, never five times in a row."""

    def meddle() -> None:
        import datasets

        usual, left = datasets.load_dataset, dict[str, int]()

        def fails(text: str) -> int:
            rng = random.Random(f"{seed} {text}")
            return rng.randint(1, 4) if rng.random() < 0.05 else 0

        class Rows:
            def __init__(self, rows: Any) -> None:
                self.rows = rows

            def __getattr__(self, name: str) -> Any:  # the position in the stream is told and taken as ever
                return getattr(self.rows, name)

            def __iter__(self) -> Iterator[Any]:
                for row in self.rows:
                    text = row["text"]
                    if left.setdefault(text, fails(text)) > 0:
                        left[text] -= 1
                        raise OSError("connection reset by peer")
                    yield row

        datasets.load_dataset = lambda *args, **kwargs: Rows(usual(*args, **kwargs))

    return meddle


def bad_number(where: str, value: float, step: int) -> Meddle:
    """In the data, the auxiliary loss, a gradient or a weight of step `step`, counted from 0."""

    def meddle() -> None:
        usual, penalty = Trainer.step, AuxK.__call__
        now = 0

        def poisoned(trainer: Trainer, micro_batches: Any) -> Any:
            nonlocal now
            now = trainer.state.step
            if now == step:
                if where == "data":
                    micro_batches[0].inputs_BXiDi[3, 1, 0, 5] = value
                if where == "weight":
                    with torch.no_grad():
                        trainer.model.get_parameter("decoder.b_dec_XoDo").flatten()[0] = value
                if where == "gradient":
                    parameter = trainer.model.get_parameter("decoder.b_dec_XoDo")
                    parameter.register_hook(lambda gradient: gradient * value)
            return usual(trainer, micro_batches)

        def term(self: AuxK, trace: Any) -> Any:
            result = penalty(self, trace)
            return result + value if where == "penalty" and now == step else result

        Trainer.step = poisoned
        AuxK.__call__ = term

    return meddle


# --- the table -------------------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[str, int, int]] = {  # name: what to call it, how often, how often in the short suite
    "kill_in_training": ("kill -9 in training", 100, 3),
    "kill_in_checkpoint": ("kill -9 inside checkpoint writing", 30, 2),
    "kill_after_training": ("kill -9 after the last step: thresholds, coder, evaluation, report", 20, 5),
    "kill_beside_a_null": ("kill -9 between a pair and its null, and at the null's end", 4, 1),
    "kill_in_cache": ("kill -9 inside cache writing", 30, 1),
    "sigterm": ("SIGTERM", 10, 1),
    "sigint": ("SIGINT (Ctrl-C)", 10, 1),
    "sigint_twice": ("SIGINT twice: leaves at once", 10, 1),
    "full_disk_for_checkpoints": ("disk full during checkpoints", 10, 2),
    "full_disk_for_cache": ("disk full during cache writing", 6, 1),
    "damaged_checkpoint": ("checkpoint file flipped, truncated, missing", 30, 1),
    "damaged_cache": ("cache files flipped, truncated, missing", 6, 1),
    "wandb_fails": ("wandb fails in init, log, finish, hangs, exits", 12, 6),
    "stream_fails": ("text stream breaks at random documents", 8, 1),
    "bad_numbers": ("NaN, Inf in data, penalty, gradient, weight", 8, 4),
    "two_fill_one_cache": ("two fill one cache, one is killed", 8, 1),
}

CACHE_FAULTS: dict[str, Callable[[Path, int], Counter[str]]] = {  # without a recipe: many in little time
    "kill -9 of processes that fill one cache": lambda folder, seed: kill_writers(folder / "kills", 60, seed),
    "shards flipped, cut, zeroed, swapped, missing": lambda folder, seed: damage_shards(folder / "shards", 300, seed),
    "disk full at any byte of a shard": lambda folder, seed: fill_disk(folder / "full", 40, seed),
    "stream breaks, up to four times in a row": lambda folder, seed: break_streams(40, seed),
}


def table(rows: list[Row], cache: dict[str, Counter[str]], command: str) -> str:
    """Markdown: what was done, and what became of it."""
    counted = ("injected", "runs", "identical", "rows_lost")
    total = Row("**all**", *(sum(getattr(row, what) for row in rows) for what in counted))
    total.recovery = max((row.recovery for row in rows), default=0.0)
    lines = [
        f"| {row.fault} | {row.injected} | {row.runs} | {row.identical} | {row.rows_lost} | "
        f"{f'{row.recovery:.1f} s' if row.recovery else ''} |"
        for row in (*rows, total)
    ]
    beside = [
        f"| {fault} | {counts['killed'] or counts['injected']} | {counts['reads'] or counts['examples'] or ''} | "
        f"{counts['wrong']} |"
        for fault, counts in cache.items()
    ]
    setting = f"`{command}`; torch {torch.__version__}, Python {platform.python_version()}, one thread."
    steps = f"Runs of {N_STEPS} steps over more than one epoch, a checkpoint every {TINY['checkpoint_every']}, "
    kinds = "by turns on packaged text, on files (accumulated, bf16, cached) and on a stream. "
    recovery = "Recovery: from starting the process again to its first step."
    parts = [
        setting,
        steps + kinds + recovery,
        "",
        "| fault | times injected | runs | ended bit-identical | rows of curves lost | worst recovery |",
        "|---|" + "---:|" * 5,
        *lines,
        "",
    ]
    if beside:
        parts += [
            "The cache and text streams by themselves:",
            "",
            "| fault | times injected | tensors or documents read | wrong |",
            "|---|" + "---:|" * 3,
            *beside,
            "",
        ]
    return "\n".join(parts)


def run_suite(folder: Path, seed: int, short: bool, only: str = "") -> list[Row]:
    """Inject every fault; rows are printed as they come."""
    suite = Suite(World.warmed_up(folder, seed), random.Random(seed))
    rows = []
    for name, (called, times, short_times) in FAULTS.items():
        if only in name:
            row = Row(called)
            began = time.perf_counter()
            getattr(suite, name)(row, short_times if short else times)
            rows.append(row)
            print(
                f"{called}: {row.injected} injected, {row.identical} of {row.runs} runs bit-identical, "
                f"{len(row.wrong)} wrong ({time.perf_counter() - began:.0f} s)",
                *row.wrong,
                sep="\n    ",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="of every random choice; a new one if not given")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--write", type=Path, help="a file for the table")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    given = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 31) if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what it runs beside itself without
    logging.getLogger("crosscode").setLevel(logging.ERROR)  # each damaged shard is told in a line
    cache: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        if not given.short and not given.only:
            for fault, inject in CACHE_FAULTS.items():
                cache[fault] = inject(Path(folder), seed)
                print(f"{fault}: {dict(cache[fault])}", flush=True)
        rows = run_suite(Path(folder), seed, given.short, given.only)
    command = f"python tests/faults/suite.py --seed {seed}{' --short' if given.short else ''}"
    shown = table(rows, cache, command)
    print(f"\n{shown}")
    if given.write is not None:
        given.write.write_text(f"# What faults did to runs\n\n{shown}")
    if given.json is not None:
        given.json.write_text(json.dumps([attrs.asdict(row) for row in rows]))
    sound = all(not row.wrong and not row.rows_lost and row.identical == row.runs > 0 for row in rows)
    raise SystemExit(0 if sound and not any(counts["wrong"] for counts in cache.values()) else 1)


if __name__ == "__main__":
    main()
