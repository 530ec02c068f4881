"""Ctrl-C and SIGTERM end training after a whole, saved step; the second one ends it at once."""

import os
import threading
from pathlib import Path
from signal import SIG_IGN, SIGINT, SIGTERM, Signals, default_int_handler, getsignal, raise_signal, signal
from typing import Any

import pytest
import torch

from crosscode.activations import BatchTopK
from crosscode.batch import Batch
from crosscode.callbacks import Checkpoint
from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.models import sae
from crosscode.training import Interrupted, Trainer, newest_checkpoint


def a_trainer(*callbacks: Any, num_steps: int = 6) -> Trainer:
    coder = sae(4, 6, BatchTopK(2))
    return Trainer(
        model=coder,
        data=[Batch.autoencode(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)))],
        init=[AnthropicTranspose()],
        loss=SummedSquaredError(),
        optimizer=torch.optim.Adam(coder.parameters()),
        lr=1e-2,
        num_steps=num_steps,
        callbacks=callbacks,
    )


class SignalAt:
    """Sends itself signals during a step; writes down what it was told."""

    def __init__(self, step: int, *signals: Signals) -> None:
        self.step, self.signals, self.told = step, signals, list[str]()

    def __call__(self, trainer: Trainer, report: Any) -> None:
        self.told.append(str(report.step))
        if report.step == self.step:
            for number in self.signals:
                raise_signal(number)
            self.told.append("went on")

    def on_interrupt(self, trainer: Trainer) -> None:
        self.told.append("interrupt")

    def on_finish(self, trainer: Trainer) -> None:
        self.told.append("finish")

    def on_end(self, trainer: Trainer) -> None:
        self.told.append("end")


@pytest.fixture(autouse=True)
def handlers() -> Any:
    """Whatever a test does, the next one has the usual handlers; and each leaves those that it found."""
    before = [signal(SIGINT, default_int_handler), getsignal(SIGTERM)]
    yield
    after = [getsignal(SIGINT), getsignal(SIGTERM)]
    signal(SIGINT, before[0])
    assert after[1:] == before[1:]


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_the_step_is_finished_and_saved(number: Signals, tmp_path: Path) -> None:
    """Every callback sees it; what listens to the interrupt saves; the exception says where and why."""
    last = SignalAt(3, number)
    with pytest.raises(Interrupted, match=f"stopped after step 3 by {number.name}") as stopped:
        a_trainer(last, Checkpoint(tmp_path, every=100)).train()
    assert last.told == ["1", "2", "3", "went on", "interrupt", "end"]
    assert (stopped.value.signal, stopped.value.step) == (number, 3)
    assert newest_checkpoint(tmp_path) == tmp_path / "step_000000003"
    assert getsignal(SIGINT) is default_int_handler


def test_a_notebook_sees_a_keyboard_interrupt() -> None:
    """As from any other cell, and no error that `except Exception` would swallow."""
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert not issubclass(Interrupted, Exception)


def test_the_second_one_leaves_at_once(tmp_path: Path) -> None:
    """In the middle of what is going on, without saving; callbacks learn that the run has ended."""
    last = SignalAt(3, SIGINT, SIGINT)
    with pytest.raises(KeyboardInterrupt) as stopped:
        a_trainer(last, Checkpoint(tmp_path, every=2)).train()
    assert not isinstance(stopped.value, Interrupted)
    assert last.told == ["1", "2", "3", "end"]
    assert getsignal(SIGINT) is default_int_handler


def test_an_interrupt_of_the_last_step_waits_for_the_thresholds(tmp_path: Path) -> None:
    """Training is over, so the run is finished and saved as a whole; then it leaves."""

    class DuringCalibration(SignalAt):
        def on_finish(self, trainer: Trainer) -> None:
            super().on_finish(trainer)
            os.kill(os.getpid(), SIGINT)

    last = DuringCalibration(99)
    with pytest.raises(Interrupted, match="after step 6"):
        a_trainer(last, Checkpoint(tmp_path, every=100)).train()
    assert last.told[-2:] == ["finish", "end"]
    assert newest_checkpoint(tmp_path) == tmp_path / "step_000000006"


def test_ignored_signals_stay_ignored() -> None:
    """`nohup` and background jobs ask for that."""
    signal(SIGINT, SIG_IGN)
    last = SignalAt(3, SIGINT, SIGINT)
    a_trainer(last).train()
    assert last.told[-2:] == ["finish", "end"]
    assert getsignal(SIGINT) is SIG_IGN


def test_training_in_another_thread_leaves_signals_alone() -> None:
    """Python handles them in the main thread only."""
    errors: list[BaseException] = []

    def train() -> None:
        try:
            a_trainer().train()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert errors == []


class Fails:
    """Fails at one moment; every moment is written down under its name."""

    def __init__(self, name: str, told: list[str], at: str | None = None) -> None:
        self.name, self.told, self.at = name, told, at

    def _tell(self, moment: str) -> None:
        self.told.append(f"{self.name} {moment}")
        if moment == self.at:
            raise OSError(f"{self.name} fails")

    def __call__(self, trainer: Trainer, report: Any) -> None:
        pass

    def on_start(self, trainer: Trainer) -> None:
        self._tell("start")

    def on_end(self, trainer: Trainer) -> None:
        self._tell("end")


def test_what_has_started_is_ended_though_another_callback_cannot_start() -> None:
    told: list[str] = []
    with pytest.raises(OSError, match="b fails"):
        a_trainer(Fails("a", told), Fails("b", told, "start"), Fails("c", told)).train()
    assert told == ["a start", "b start", "a end"]


def test_all_are_ended_though_one_cannot_end() -> None:
    told: list[str] = []
    with pytest.raises(OSError, match="a fails"):
        a_trainer(Fails("a", told, "end"), Fails("b", told)).train()
    assert told == ["a start", "b start", "a end", "b end"]
