"""Recipes on the embedded pair in processes of their own, forked from one that has everything imported.

Three runs, so that resuming is tried on every path: packaged text; local files, accumulated, in mixed
precision, through the activation cache; a stream from the hub (a local stand-in).
"""

import functools
import hashlib
import itertools
import json
import os
import shutil
import signal
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_runs import factory, options

import crosscode.run.beside_null
import crosscode.run.options
import crosscode.run.recipe
from crosscode.data import documents, embedded
from crosscode.run import main
from crosscode.training import Trainer

Meddle = Callable[[], None]

TINY: Mapping[str, Any] = {
    "models": ["embedded:base", "embedded:tuned"],
    "sequence_length": 32,
    "batch_size": 96,
    "shuffle_buffer": 768,
    "n_latents": 48,
    "n_shared": 12,
    "init_tokens": 300,
    "eval_tokens": 300,
    "splice_tokens": 64,
    "num_steps": 36,
    "log_every": 1,
    "checkpoint_every": 3,
    "wandb_mode": "disabled",
    "quiet": True,
}
TOPK = {"k_shared": 3, "k_exclusive": 3, "dead_after": 0.05}
RUNS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "text": ("feb_diffing_topk", {**TOPK, "dataset": "embedded"}),
    "files": ("feb_diffing_jumprelu", {"accumulate": 2, "precision": "bf16", "dataset": "FOLDER/text.jsonl"}),
    "stream": ("feb_diffing_topk", {**TOPK, "style": "topk", "dataset": "somebody/text"}),
}
N_HELD_OUT = 25
N_DOCUMENTS = 24  # of the local files and the stream: so few that every run reads its text more than once


packaged_documents = embedded.documents


@functools.cache
def documents_of(split: str) -> list[str]:
    """Part of the packaged text, which every child tokenises anew; the held-out part is for thresholds and figures."""
    return list(itertools.islice(packaged_documents(split), N_DOCUMENTS if split == "train" else N_HELD_OUT))


def texts() -> list[str]:
    return documents_of("train")


def stand_in_for_the_hub(*args: Any, **kwargs: Any) -> Any:
    """`datasets.load_dataset`, streaming, of a data set that is here."""
    import datasets

    return datasets.IterableDataset.from_generator(lambda: ({"text": text} for text in texts()))


@attrs.define(eq=False)
class Child:
    """A recipe in a process of its own.

    Attributes:
        pid: of the process.
        steps: how many it has made, as far as has been looked.
        output: what it printed.
        first_step: seconds from its start to its first step; None before that.
    """

    pid: int
    output: Path
    _pipe: int
    _started: float = attrs.field(factory=time.perf_counter)
    first_step: float | None = None
    last_step: int | None = None
    steps: int = 0

    def after_steps(self, n: int) -> bool:
        """Wait until it has made n steps; False if it ended before."""
        while self.steps < n:
            told = os.read(self._pipe, 4)
            if len(told) < 4:
                return False
            if self.first_step is None:
                self.first_step = time.perf_counter() - self._started
            self.last_step = struct.unpack("<i", told)[0]
            self.steps += 1
        return True

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code; minus the signal that killed it."""
        while self.after_steps(self.steps + 1):
            pass
        os.close(self._pipe)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def printed(self) -> str:
        return self.output.read_text(errors="replace")


@attrs.frozen
class World:
    """Where runs happen, and what they end as when nothing happens to them."""

    folder: Path
    seed: int
    _reference: dict[str, dict[str, str]] = attrs.field(factory=dict, init=False)

    @classmethod
    def warmed_up(cls, folder: Path, seed: int) -> "World":
        """Imports, models, text: what every child then has from its parent."""
        torch.set_num_threads(1)
        os.environ["HF_HUB_OFFLINE"] = "1"
        import datasets
        import wandb  # noqa: F401 -- each child would import it anew

        datasets.load_dataset = stand_in_for_the_hub
        documents.WAIT = 0.0
        embedded.documents = lambda split: iter(documents_of(split))
        crosscode.run.options.load_language_model = functools.cache(crosscode.run.options.load_language_model)
        for module in (crosscode.run.recipe, crosscode.run.beside_null):
            module.make_report = lambda *args: None  # drawn from what is compared, and half of the time
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()))
        world = cls(folder, seed)
        for name in RUNS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                main(*world.command(name, folder / "warm-up" / name, num_steps=2))
        return world

    def command(self, name: str, output: Path, **given: Any) -> tuple[Callable[..., Trainer], list[str]]:
        recipe, arguments = RUNS[name]
        arguments = {**TINY, **arguments, "output": output, **given}
        arguments["dataset"] = arguments["dataset"].replace("FOLDER", str(self.folder))
        if name == "files":
            arguments.setdefault("cache", output.parent / f"{output.name}-cache")
        return factory(recipe), options(**arguments)

    def start(self, name: str, output: Path, meddle: Meddle | None = None, **given: Any) -> Child:
        """The recipe in a new process, going on if there is a checkpoint; `meddle` is called in it beforehand."""
        there = any(output.glob("checkpoints/step_*"))
        make, arguments = self.command(name, output, **{"resume": there, **given})
        reads, writes = os.pipe()
        printed = output.parent / f"{output.name}.txt"
        printed.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        pid = os.fork()
        if pid:
            os.close(writes)
            return Child(pid, printed, reads)
        code = 70
        try:
            os.close(reads)
            for stream in (1, 2):
                os.dup2(os.open(printed, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
            _tell_steps(writes)
            if meddle is not None:
                meddle()
            main(make, arguments)
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def reference(self, name: str) -> dict[str, str]:
        """What the uninterrupted run ends as."""
        if name not in self._reference:
            output = self.folder / "whole" / name
            shutil.rmtree(output, ignore_errors=True)
            child = self.start(name, output)
            if child.wait() != 0:
                raise RuntimeError(f"the uninterrupted run {name!r} failed: {child.printed()}")
            *_, last = checkpoints(output)
            if json.loads((last / "state.json").read_text())["progress"]["cursor"]["epoch"] < 1:
                raise RuntimeError(f"the run {name!r} does not go beyond its first epoch")
            self._reference[name] = outcome(output)
        return self._reference[name]

    def rows_lost(self, name: str, output: Path) -> int:
        """Rows of the uninterrupted run's curves that this one lacks or has otherwise; and rows it has twice."""
        whole, mine = (text["metrics"].splitlines() for text in (self.reference(name), outcome(output)))
        return len(set(whole) - set(mine)) + max(0, len(mine) - len(whole))


def outcome(output: Path) -> dict[str, str]:
    """All that must be equal, bit for bit: final weights, the last checkpoint, curves and figures."""
    *_, last = checkpoints(output)
    of_state = ("optimizer.safetensors", "state.safetensors", "state.json")
    files = [output / "coder" / "model.safetensors", *(last / file for file in of_state)]
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    texts = {"metrics": output / "metrics.jsonl", "summary": output / "summary.json"}
    return {**hashes, **{name: file.read_text() for name, file in texts.items()}}


def checkpoints(output: Path) -> Iterator[Path]:
    yield from sorted((output / "checkpoints").glob("step_*"))


def _tell_steps(pipe: int) -> None:
    step = Trainer.step

    def told(trainer: Trainer, micro_batches: Any) -> Any:
        report = step(trainer, micro_batches)
        os.write(pipe, struct.pack("<i", report.step))
        return report

    Trainer.step = told
