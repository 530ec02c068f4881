"""Curves: computed once, written to any number of sinks under stable names.

`train/loss`, `train/reconstruction`, `train/penalty/<name>`, `train/lambda/<name>`, `train/lr`,
`train/gradient_norm`, `train/tokens`, `train/codes/density`, `train/codes/sparse`, and what each metric names:
`train/fvu/<model>/<hookpoint>`, `train/l0/mean`, …
"""

import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, Protocol, runtime_checkable

import attrs
import torch
from torch import Tensor

from crosscode.checks import at_least
from crosscode.metrics import Metric, measure
from crosscode.phases import Phase
from crosscode.training import StepReport, Trainer, describe


@runtime_checkable
class Sink(Protocol):
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
        metrics: measured on the last micro-batch of a written step.
        samples_every: steps between histograms, which are costlier.
    """

    phase: ClassVar[Phase] = "logging"
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
        if report.step % self.every and report.step not in (1, trainer.num_steps):
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
        measured = measure(self.metrics, [report.trace])
        samples = {f"train/{name}": value for name, value in measured.items() if isinstance(value, Tensor)}
        numbers |= {name: value for name, value in measured.items() if not isinstance(value, Tensor)}
        show_samples = report.step % self.samples_every == 0 or report.step == trainer.num_steps
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

    On resume, rows beyond the step resumed from are dropped, so that the file reads as one uninterrupted run.

    Args:
        path: the file.
    """

    path: Path = attrs.field(converter=Path)
    _stream: IO[str] | None = attrs.field(default=None, init=False, repr=False)

    def open(self, trainer: Trainer) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if self.path.exists() and trainer.state.step > 0:
            for line in self.path.read_text().splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # a row that a crash cut short
                if row["step"] <= trainer.state.step:
                    kept.append(line + "\n")
        self._stream = self.path.open("w")
        self._stream.writelines(kept)

    def write(self, step: int, numbers: Mapping[str, float], samples: Mapping[str, Tensor]) -> None:
        assert self._stream is not None, "open comes first"
        tenths = torch.linspace(0, 1, 11, dtype=torch.float64)
        deciles = {
            f"{name}/deciles": torch.quantile(value.double().cpu().flatten()[:1_000_000], tenths).tolist()
            for name, value in samples.items()
            if value.numel()
        }
        self._stream.write(json.dumps({"step": step, **numbers, **deciles}) + "\n")
        self._stream.flush()

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


@attrs.define(eq=False)
class WeightsAndBiases:
    """Curves and histograms in Weights & Biases; without a login in offline mode. Its failures never stop a run.

    Args:
        mode: `offline` writes files that `wandb sync` uploads later, `online` needs a login, `disabled` does nothing.
        project: project name; `WANDB_PROJECT` and `WANDB_ENTITY` are honoured.
        name: name of the run.
        directory: where wandb keeps its files.
    """

    mode: Literal["online", "offline", "disabled"] = "offline"
    project: str | None = None
    name: str | None = None
    directory: Path | None = None
    _run: Any = attrs.field(default=None, init=False, repr=False)
    _failed: bool = attrs.field(default=False, init=False, repr=False)

    def open(self, trainer: Trainer) -> None:
        if self.mode != "disabled":
            self._try(self._open, trainer)

    def _open(self, trainer: Trainer) -> None:
        if self.mode == "offline":  # else wandb itself would call home
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)
        arguments: dict[str, Any] = {
            "project": self.project,
            "name": self.name,
            "dir": None if self.directory is None else str(self.directory),
            "config": describe(trainer),
            "settings": wandb.Settings(silent=True, console="off"),
        }
        try:
            self._run = wandb.init(mode=self.mode, **arguments)
        except Exception as error:
            if self.mode == "offline":
                raise
            warnings.warn(f"wandb could not go online ({error}); logging offline instead.", stacklevel=2)
            self._run = wandb.init(mode="offline", **arguments)

    def write(self, step: int, numbers: Mapping[str, float], samples: Mapping[str, Tensor]) -> None:
        if self._run is not None:
            self._try(self._write, step, numbers, samples)

    def _write(self, step: int, numbers: Mapping[str, float], samples: Mapping[str, Tensor]) -> None:
        import wandb

        histograms = {name: wandb.Histogram(value.float().cpu().tolist()) for name, value in samples.items()}
        self._run.log({**numbers, **histograms}, step=step)

    def close(self) -> None:
        if self._run is not None:
            self._try(self._run.finish)
            self._run = None

    def _try(self, action: Any, *arguments: Any) -> None:
        """wandb may be absent, offline or broken at any time: say so once and go on."""
        if self._failed:
            return
        try:
            action(*arguments)
        except Exception as error:
            self._failed = True
            warnings.warn(
                f"wandb stopped working ({type(error).__name__}: {error}); curves go on in the other sinks.",
                stacklevel=3,
            )
