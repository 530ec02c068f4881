"""Curves: computed once, written to any number of sinks under stable names.

`train/loss`, `train/reconstruction`, `train/penalty/<name>`, `train/lambda/<name>`, `train/lr`,
`train/gradient_norm`, `train/tokens`, `train/codes/density`, `train/codes/sparse`, and what each metric names:
`train/fvu/<model>/<hookpoint>`, `train/l0/mean`, …
"""

import errno
import io
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from queue import Full, Queue
from threading import Event, Thread
from typing import IO, Any, ClassVar, Literal, Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor

from crosscode.checks import at_least
from crosscode.errors import CrosscodeError, warn
from crosscode.files import rows_of, write_whole
from crosscode.metrics import Metric, measure
from crosscode.order import Effect
from crosscode.phases import Phase
from crosscode.protocols import Structural
from crosscode.training import StepReport, Trainer, describe

MOST_WAITING = 1000  # rows that wait for room on the disk, or for wandb
WANDB_ID = "wandb_id.txt"


@runtime_checkable
class Sink(Protocol, metaclass=Structural):
    """Where numbers go. A sink that fails warns once; training goes on."""

    def open(self, trainer: Trainer) -> None: ...

    def write(self, step: int, numbers: Mapping[str, float], samples: Mapping[str, Tensor]) -> None:
        """Numbers of a step, and samples to draw histograms of."""
        ...

    def close(self) -> None: ...


def _as_sinks(sinks: Sink | Sequence[Sink]) -> tuple[Sink, ...]:
    return tuple(sinks) if isinstance(sinks, Sequence) else (sinks,)


@attrs.define(eq=False)
class Log:
    """Writes a step's curves to sinks.

    Args:
        sinks: one sink, or several.
        every: steps between rows; the first and the last step are always written.
        metrics: measured on the last micro-batch of a written step, and beside them the trainer's own.
        samples_every: steps between histograms, which are costlier.
    """

    phase: ClassVar[Phase] = "logging"
    effect: ClassVar[Effect] = Effect(amends={"curves", "time of callbacks"})
    sinks: Sequence[Sink] = attrs.field(converter=_as_sinks)
    every: int = attrs.field(default=50, kw_only=True)
    metrics: Sequence[Metric] = attrs.field(default=(), kw_only=True)
    samples_every: int = attrs.field(default=500, kw_only=True)

    def __attrs_post_init__(self) -> None:
        at_least("Log.every", self.every, 1)
        at_least("Log.samples_every", self.samples_every, 1)

    def on_start(self, trainer: Trainer) -> None:
        for sink in self.sinks:
            sink.open(trainer)

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if report.step % self.every and report.step != 1 and not trainer.is_done:
            return
        numbers = {
            "loss": float(report.loss),
            "lr": report.lr,
            "tokens": float(report.tokens),
            "codes/density": trainer.state.density,
            "codes/sparse": float(report.trace.latents.is_sparse),
            **{f"lambda/{name}": weight for name, weight in report.weights.items()},
            **{name if name == "reconstruction" else f"penalty/{name}": float(v) for name, v in report.terms.items()},
        }
        if report.gradient_norm is not None:
            numbers["gradient_norm"] = float(report.gradient_norm)
        measured = measure((*self.metrics, *trainer.metrics), [report.trace])
        samples = {f"train/{name}": value for name, value in measured.items() if isinstance(value, Tensor)}
        numbers |= {name: value for name, value in measured.items() if not isinstance(value, Tensor)}
        show_samples = report.step % self.samples_every == 0 or trainer.is_done
        for sink in self.sinks:
            sink.write(
                report.step,
                {f"train/{name}": value for name, value in numbers.items()},
                samples if show_samples else {},
            )

    def on_end(self, trainer: Trainer) -> None:
        for sink in self.sinks:
            sink.close()


@attrs.define(eq=False)
class Console:
    """One line a row, without histograms.

    Args:
        names: which numbers to print, in order; those that a row lacks are left out.
        stream: where to.
    """

    names: Sequence[str] = ("train/loss", "train/reconstruction", "train/l0/mean", "train/fvu/pooled", "train/dead")
    stream: IO[str] | None = None

    def open(self, trainer: Trainer) -> None:
        """Nothing to open."""

    def write(self, step: int, numbers: Mapping[str, float], samples: Mapping[str, Tensor]) -> None:
        shown = [f"{name.removeprefix('train/')} {numbers[name]:.4g}" for name in self.names if name in numbers]
        print(f"step {step:>6}  " + "  ".join(shown), file=self.stream or sys.stdout, flush=True)

    def close(self) -> None:
        """Nothing to close."""


@attrs.define(eq=False)
class JSONLines:
    """One JSON object a row in a file, appended to: `{"step": 50, "train/loss": 1.2, …}`; samples as deciles.

    On resume, rows beyond the step resumed from are dropped, so that the file reads as one uninterrupted run. A row
    that finds no room on the disk waits, among at most `MOST_WAITING`, until there is some.

    Args:
        path: the file.
    """

    path: Path = attrs.field(converter=Path)
    _stream: io.FileIO | None = attrs.field(default=None, init=False, repr=False)
    _waiting: deque[bytes] = attrs.field(factory=lambda: deque(maxlen=MOST_WAITING), init=False, repr=False)
    _warned: bool = attrs.field(default=False, init=False, repr=False)

    def open(self, trainer: Trainer) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [f"{line}\n" for line, row in rows_of(self.path) if 0 < row["step"] <= trainer.state.step]
        try:
            write_whole(self.path, "".join(kept))  # rows that were kept once are not lost now
            self._stream = io.FileIO(self.path, "a")
        except OSError as error:
            raise CrosscodeError(f"{self.path} could not be written to: {error}. Make room, then --resume.") from error

    def write(self, step: int, numbers: Mapping[str, float], samples: Mapping[str, Tensor]) -> None:
        tenths = torch.linspace(0, 1, 11, dtype=torch.float64)
        deciles = {
            f"{name}/deciles": torch.quantile(value.double().cpu().flatten()[:1_000_000], tenths).tolist()
            for name, value in samples.items()
            if value.numel()
        }
        self._waiting.append((json.dumps({"step": step, **numbers, **deciles}) + "\n").encode())
        self._write_waiting()

    def _write_waiting(self) -> None:
        assert self._stream is not None, "open comes first"
        try:
            while self._waiting:
                end = os.fstat(self._stream.fileno()).st_size
                try:
                    if self._stream.write(self._waiting[0]) < len(self._waiting[0]):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                except OSError:
                    self._stream.truncate(end)  # half a row is none
                    raise
                self._waiting.popleft()
        except OSError as error:
            if not self._warned:
                self._warned = True
                warn(f"{self.path} could not be written: {error}; its rows wait for room.")

    def close(self) -> None:
        if self._stream is not None:
            self._write_waiting()
            self._stream.close()
            self._stream = None


@attrs.define(eq=False)
class WeightsAndBiases:
    """Curves and histograms in Weights & Biases; without a login in offline mode. Its failures never stop a run.

    Rows are handed to a thread of their own: however slow wandb is, training does not wait for it. A resumed run goes
    on under the id of the run that it resumes, which is kept in `directory`; offline, wandb writes a second folder of
    that id, and `wandb sync` makes both one run.

    Args:
        mode: `offline` writes files that `wandb sync` uploads later, `online` needs a login, `disabled` does nothing.
        project: project name; `WANDB_PROJECT` and `WANDB_ENTITY` are honoured.
        name: name of the run.
        directory: where wandb keeps its files.
        patience: seconds that `wandb.init` may take, online and then offline, and that the end of a run may wait.
        hold: keep the run open when training ends, for `show`; whoever holds it calls `finish`.
        group: what several runs of one process, such as a sweep's, are grouped under; each is a run of its own.
    """

    mode: Literal["online", "offline", "disabled"] = "offline"
    project: str | None = None
    name: str | None = None
    directory: Path | None = None
    patience: float = attrs.field(default=60.0, kw_only=True)
    hold: bool = attrs.field(default=False, kw_only=True)
    group: str | None = attrs.field(default=None, kw_only=True)
    _run: Any = attrs.field(default=None, init=False, repr=False)
    _rows: "Queue[Callable[[], None] | None]" = attrs.field(factory=lambda: Queue(MOST_WAITING), init=False, repr=False)
    _thread: Thread | None = attrs.field(default=None, init=False, repr=False)
    _opened: Event = attrs.field(factory=Event, init=False, repr=False)
    _error: BaseException | None = attrs.field(default=None, init=False, repr=False)
    _failed: bool = attrs.field(default=False, init=False, repr=False)

    def open(self, trainer: Trainer) -> None:
        if self.mode == "disabled":
            return
        work = partial(self._work, describe(trainer), trainer.state.step > 0)
        self._opened.clear()
        self._thread = Thread(target=work, name="crosscode-wandb", daemon=True)
        self._thread.start()
        if not self._opened.wait(2 * self.patience):  # online and then, in its stead, offline
            self._error = TimeoutError(f"it did not start within {2 * self.patience:g} s")
        if self._error is not None:
            self._give_up(self._error)

    def _open(self, configuration: Mapping[str, Any], resumed: bool) -> None:
        if self.mode == "offline":  # else wandb itself would call home
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        id_file = None if self.directory is None else self.directory / WANDB_ID
        resumed = resumed and id_file is not None and id_file.is_file()
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
        arguments: dict[str, Any] = {
            "project": self.project,
            "name": self.name,
            "dir": None if self.directory is None else str(self.directory),
            "id": id_file.read_text().strip() if id_file is not None and resumed else None,
            "resume": "allow",
            "config": configuration,
            **({} if self.group is None else {"group": self.group, "reinit": "create_new"}),  # beside the others
            "settings": wandb.Settings(silent=True, console="off", init_timeout=self.patience),
        }
        try:
            self._run = wandb.init(mode=self.mode, **arguments)
        except Exception as error:
            if self.mode == "offline":
                raise
            warn(f"wandb could not go online ({error}); logging offline instead.")
            self._run = wandb.init(mode="offline", **arguments)
        if id_file is not None:
            id_file.write_text(f"{self._run.id}\n")

    def write(self, step: int, numbers: Mapping[str, float], samples: Mapping[str, Tensor]) -> None:
        if self._thread is None:
            return
        values = {name: value.float().cpu().tolist() for name, value in samples.items()}
        self._put(lambda: self._write(step, numbers, values))

    def show(self, page: Path, figures: Mapping[str, Any]) -> None:
        """Add an HTML page and plotly figures to a run that is held open."""
        if self._thread is not None:
            self._put(lambda: self._show(page, figures))

    def _put(self, row: Callable[[], None]) -> None:
        """Leave something to the thread."""
        try:
            self._rows.put_nowait(row)
        except Full:
            self._error = self._error or TimeoutError(f"{MOST_WAITING} rows wait for it")
        if self._error is not None:
            self._give_up(self._error)

    def _show(self, page: Path, figures: Mapping[str, Any]) -> None:
        import wandb

        media = {f"report/{name}": wandb.Plotly(figure) for name, figure in figures.items()}
        self._run.log({"report": wandb.Html(page.read_text(encoding="utf-8"), inject=False), **media})

    def _write(self, step: int, numbers: Mapping[str, float], values: Mapping[str, list[float]]) -> None:
        import wandb

        histograms = {name: wandb.Histogram(value) for name, value in values.items()}
        self._run.log({**numbers, **histograms}, step=step)

    def close(self) -> None:
        if not self.hold:
            self.finish()

    def finish(self) -> None:
        """End the run, if there is one, once what was left to the thread is done."""
        if self._thread is None:
            return
        with suppress(Full):
            self._rows.put_nowait(None)
        at_once = type(sys.exception()) is KeyboardInterrupt  # no time to wait for anything
        self._thread.join(0 if at_once else self.patience)
        if self._thread is not None and self._thread.is_alive() and not at_once:
            self._error = self._error or TimeoutError(f"it did not finish within {self.patience:g} s")
        if self._error is not None:
            self._give_up(self._error)
        self._run = self._thread = None

    def _work(self, configuration: Mapping[str, Any], resumed: bool) -> None:
        """Of the thread: the run is opened, rows until the end, then `finish`; after an error nothing."""
        try:
            self._open(configuration, resumed)
            self._opened.set()
            while (row := self._rows.get()) is not None:
                row()
            self._run.finish()
        except BaseException as error:  # also where wandb would end the process
            self._error = error
        finally:
            self._opened.set()

    def _give_up(self, error: BaseException) -> None:
        """wandb may be absent, offline, slow or broken at any time: say so once and go on."""
        self._thread = None
        with suppress(Full):
            self._rows.put_nowait(None)  # should it come to life again, it ends
        if not self._failed:
            self._failed = True
            warn(
                f"wandb stopped working ({type(error).__name__}: {error}); curves go on in the other sinks.",
            )
