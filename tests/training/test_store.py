"""Checkpoints are whole or absent, whatever kills the process, fills the disk or damages a file."""

import io
import os
import random
import resource
import shutil
import subprocess
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import crosscode.training.trainer
from crosscode.activations import BatchTopK, TopK
from crosscode.batch import Batch
from crosscode.callbacks import Checkpoint
from crosscode.errors import BadInput
from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.models import sae
from crosscode.training import (
    Trainer,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
    store,
    train_together,
)

BATCHES = [Batch.autoencode(torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))) for seed in range(3)]


def a_trainer(*callbacks: Any, **given: Any) -> Trainer:
    coder = sae(4, 6, given.pop("activation", None) or BatchTopK(2))
    defaults = {"loss": SummedSquaredError(), "lr": 1e-2, "num_steps": 6, "init": [AnthropicTranspose(1.0)]}
    optimizer = torch.optim.Adam(coder.parameters())
    return Trainer(model=coder, data=BATCHES, optimizer=optimizer, callbacks=callbacks, **{**defaults, **given})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with whole checkpoints of steps 2 and 4."""
    folder = tmp_path / "run"
    a_trainer(lambda of, report: report.step % 2 or save_checkpoint(of, folder), num_steps=4).train()
    return folder


def names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


def same(one: Trainer, other: Trainer) -> bool:
    ours, its = one.model.state_dict(), other.model.state_dict()
    return all(torch.equal(ours[name], its[name]) for name in ours)


# --- killed at any call ----------------------------------------------------------------------------------------------

CALLS = ("mkdir", "open", "close", "fsync", "replace", "unlink", "rmdir")


def dying(n: int) -> None:
    """From now on, this process dies when it is about to make its n-th call that touches the disk."""
    counted = 0

    def wrap(call: Callable[..., Any], half: Callable[..., Any] | None = None) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal counted
            counted += 1
            if counted == n:
                if half is not None:
                    half(*args, **kwargs)
                os._exit(9)
            return call(*args, **kwargs)

        return wrapped

    for name in CALLS:
        setattr(os, name, wrap(getattr(os, name)))
    io.open = wrap(io.open)
    write = store.write_tensors

    def half(tensors: Any, file: Path) -> None:
        write(tensors, file)
        os.truncate(file, file.stat().st_size // 2)

    store.write_tensors = wrap(write, half)


def exit_code(work: Callable[[], None]) -> int:
    """Of a forked child that does this and nothing else."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("replacing", [False, True], ids=["a new step", "the same step"])
def test_a_save_is_all_or_nothing_at_every_call(replacing: bool, run: Path, tmp_path: Path) -> None:
    """Killed before each call of a save: what is found is the checkpoint before or the new one, whole."""
    trainer = a_trainer(num_steps=4 if replacing else 6)
    trainer.train()
    if replacing:  # calibrated thresholds come to a step that was saved before
        trainer.model.load_state_dict({**trainer.model.state_dict(), "scale_in_Xi": torch.tensor(2.0)})
    found = {"before": 0, "new": 0}
    n, code = 0, 9
    while code == 9:
        n += 1
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)

        def save() -> None:
            dying(n)  # noqa: B023
            save_checkpoint(trainer, copy, keep=1)  # noqa: B023

        code = exit_code(save)
        store.clear_away(copy)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            newest = newest_checkpoint(copy)
        assert newest is not None
        assert not any(name.startswith(".") for name in names(copy)), "the sweep leaves no litter"
        before = run / newest.name / "model.safetensors"
        is_old = before.exists() and before.read_bytes() == (newest / "model.safetensors").read_bytes()
        found["before" if is_old else "new"] += 1
    assert code == 0
    assert n > 20, "the calls are counted"
    assert min(found.values()) > 3


def test_two_processes_do_not_sweep_each_others_work(run: Path) -> None:
    """A folder that a living process writes is left alone; a dead one's, and our own of an earlier save, are not."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    for pid in (1, ended.pid, os.getpid()):
        (run / f".writing_6_{pid}").mkdir()
    store.clear_away(run)
    assert names(run) == [".writing_6_1", "step_000000002", "step_000000004"]


def test_what_cannot_be_swept_away_is_left(run: Path) -> None:
    """A file under the name of such a folder ends no run."""
    (run / ".deleted_2_1").write_text("")
    (run / f".writing_6_{os.getpid()}").mkdir()
    store.clear_away(run)
    assert names(run) == [".deleted_2_1", "step_000000002", "step_000000004"]


# --- damaged ---------------------------------------------------------------------------------------------------------


def damage(rng: random.Random, file: Path, other: Path) -> bool:
    """Damage a file in one of six ways; False if nothing has changed."""
    before = file.read_bytes()
    content = bytearray(before)
    at = rng.randrange(len(content))
    match rng.choice(("flip", "truncate", "delete", "zero", "append", "swap")):
        case "flip":
            content[at] ^= 1 << rng.randrange(8)
        case "truncate":
            del content[at:]
        case "delete":
            file.unlink()
            return True
        case "zero":
            content[at : at + 64] = bytes(len(content[at : at + 64]))
        case "append":
            content += rng.randbytes(rng.randrange(1, 9))
        case "swap":
            content[:] = other.read_bytes() + bytes(other.read_bytes() == before)
    file.write_bytes(content)
    return bytes(content) != before


def test_whatever_is_damaged_is_found_named_and_passed_over(run: Path, tmp_path: Path) -> None:
    """200 times: a file of the newest checkpoint is damaged at random; the one before is found, with one line."""
    rng = random.Random(0)
    files = names(run / "step_000000004")
    n_changed = 0
    for i in range(200):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(run, copy)
        name = files[i % len(files)]
        changed = damage(rng, copy / "step_000000004" / name, run / "step_000000002" / name)
        n_changed += changed
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            newest = newest_checkpoint(copy)
        assert newest == copy / ("step_000000002" if changed else "step_000000004")
        assert len(caught) == changed
        for line in caught:
            assert name in str(line.message)
            assert "\n" not in str(line.message)
    assert n_changed > 180


# --- no room ---------------------------------------------------------------------------------------------------------


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """As if the disk were full after so many bytes of any one file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("n_bytes", [0, 100, 700, 1500])
def test_a_full_disk_leaves_earlier_checkpoints_and_no_litter(n_bytes: int, run: Path) -> None:
    """Wherever the room ends, among tensors or in the manifest."""
    trainer = a_trainer()
    trainer.train()
    before = names(run)
    with largest_file(n_bytes), pytest.raises(OSError, match=r"File too large|too large|os error 27"):
        save_checkpoint(trainer, run)
    assert names(run) == before
    assert newest_checkpoint(run) == run / "step_000000004"
    assert save_checkpoint(trainer, run) == newest_checkpoint(run)


# --- in the background -----------------------------------------------------------------------------------------------


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written is the state of its step though training is further on by then; one is written at a time."""
    from threading import Event

    alone = a_trainer(lambda of, report: save_checkpoint(of, tmp_path / "alone", keep=9) and None)
    alone.train()
    further, writing = Event(), []
    write = store.write_tensors

    def slow(tensors: Any, file: Path) -> None:
        writing.append(file.parent.name.split("_")[1])
        if writing[-1] == "2":
            assert further.wait(60), "training waits for the disk"
        write(tensors, file)

    monkeypatch.setattr(store, "write_tensors", slow)

    def tell(of: Trainer, report: Any) -> None:
        if report.step == 3:
            further.set()

    beside = a_trainer(Checkpoint(tmp_path / "beside", every=2, keep=9), tell)
    beside.train()
    assert same(alone, beside)
    assert writing == ["2"] * 3 + ["4"] * 3 + ["6"] * 6  # the last step: before its thresholds are set, and after
    for step in (2, 4):
        for file in names(tmp_path / "beside" / f"step_00000000{step}"):
            one, other = (tmp_path / run / f"step_00000000{step}" / file for run in ("alone", "beside"))
            assert one.read_bytes() == other.read_bytes()


def test_the_last_step_is_on_the_disk_before_thresholds_are_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slow the disk: a process that dies while it calibrates makes no step again."""
    write, calibrate, found = store.write_tensors, crosscode.training.trainer.calibrate, []

    def slow(tensors: Any, file: Path) -> None:
        time.sleep(0.05)
        write(tensors, file)

    def calibrating(*args: Any, **given: Any) -> None:
        found.append(newest_checkpoint(tmp_path))
        calibrate(*args, **given)

    monkeypatch.setattr(store, "write_tensors", slow)
    monkeypatch.setattr(crosscode.training.trainer, "calibrate", calibrating)
    a_trainer(Checkpoint(tmp_path, every=4)).train()
    assert found == [tmp_path / "step_000000006"]


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, RuntimeError])
def test_only_who_leaves_at_once_does_not_wait_for_the_disk(
    stopped: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever else ends a run, the checkpoint that was being written is there."""
    write, free = store.write_tensors, threading.Event()

    def slow(tensors: Any, file: Path) -> None:
        free.wait(60)
        write(tensors, file)

    def stop(of: Trainer, report: Any) -> None:
        if report.step == 4:
            raise stopped

    monkeypatch.setattr(store, "write_tensors", slow)
    checkpoints = Checkpoint(tmp_path, every=4)
    opens = threading.Timer(0.3, free.set)
    opens.start()
    with pytest.raises(stopped):
        a_trainer(checkpoints, stop).train()
    assert (newest_checkpoint(tmp_path) is None) == (stopped is KeyboardInterrupt)
    opens.join()
    checkpoints.wait()
    assert newest_checkpoint(tmp_path) == tmp_path / "step_000000004"


def test_some_checkpoints_stay_for_ever(tmp_path: Path) -> None:
    """The newest two, and every fourth step."""
    a_trainer(Checkpoint(tmp_path, every=1, keep=2, keep_every=4), num_steps=10).train()
    assert names(tmp_path) == [f"step_{step:09d}" for step in (4, 8, 9, 10)]
    with pytest.raises(BadInput, match="keep_every"):
        Checkpoint(tmp_path, keep_every=0)


def test_going_on_from_an_older_checkpoint_gives_up_the_newer_ones(tmp_path: Path) -> None:
    """Else a damaged one of a later step would count among the newest, and push whole ones out."""
    a_trainer(Checkpoint(tmp_path, every=1, keep=9)).train()
    (tmp_path / "step_000000006" / "MANIFEST.json").unlink()
    trainer = a_trainer(Checkpoint(tmp_path, every=1, keep=1))
    load_checkpoint(trainer, tmp_path / "step_000000003")
    trainer.num_steps = 4
    trainer.train()
    assert names(tmp_path) == ["step_000000004"]
    assert newest_checkpoint(tmp_path) is not None


def test_data_that_ends_on_a_saved_step_leaves_the_calibrated_coder(tmp_path: Path) -> None:
    """The last checkpoint replaces that of the same step, which knew no thresholds yet."""

    class Four:
        def iter_from(self, cursor: Any) -> Any:
            raise AssertionError("not resumed")

        def __iter__(self) -> "Four":
            self.n = 0
            return self

        def __next__(self) -> Batch:
            self.n += 1
            if self.n > 4:
                raise StopIteration
            return BATCHES[self.n % 3]

        def cursor(self) -> dict[str, int]:
            return {"n": self.n}

    class Data:
        def __iter__(self) -> Four:
            return iter(Four())

        iter_from = Four.iter_from

    trainer = a_trainer(Checkpoint(tmp_path, every=2), num_steps=100)
    trainer.data = Data()
    coder = trainer.train()
    saved = a_trainer(num_steps=100)
    saved.data = trainer.data
    load_checkpoint(saved, tmp_path / "step_000000004")
    assert torch.equal(saved.model.activation.threshold, coder.activation.threshold)
    assert names(tmp_path) == ["step_000000002", "step_000000004"]


# --- several trainers ------------------------------------------------------------------------------------------------


def test_trainers_that_train_together_are_saved_at_one_step(tmp_path: Path) -> None:
    """One checkpoint of all; each goes on from it as if nothing had been; each is a coder that can be loaded."""
    from crosscode import load

    def trainers(*callbacks: Any) -> list[Trainer]:
        return [a_trainer(*callbacks, activation=TopK(k), lr=0.01 * k) for k in (1, 2, 3)]

    whole = trainers()
    train_together(whole)

    class Stop:
        def __call__(self, of: Trainer, report: Any) -> None:
            if report.step == 5:
                raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train_together(trainers(Checkpoint(tmp_path, every=2), Stop()))
    newest = newest_checkpoint(tmp_path)
    assert newest == tmp_path / "step_000000004"
    resumed = trainers(Checkpoint(tmp_path, every=2))
    load_checkpoint(resumed, newest)
    train_together(resumed)
    assert all(map(same, whole, resumed))
    last = newest_checkpoint(tmp_path)
    assert last == tmp_path / "step_000000006"
    assert [load(last / str(i)).activation.k for i in range(3)] == [1, 2, 3]
    with pytest.raises(BadInput, match="of 3 trainers that trained together, not of 1"):
        load_checkpoint(trainers()[0], last)
    with pytest.raises(BadInput, match="k: 1 -> 2"):
        load_checkpoint([resumed[1], resumed[0], resumed[2]], last)
    (last / "1" / "optimizer.safetensors").unlink()
    with pytest.warns(UserWarning, match=r"1/optimizer\.safetensors is missing"):
        assert newest_checkpoint(tmp_path) == newest


# --- another configuration, another machine --------------------------------------------------------------------------


def test_what_is_meant_to_differ_is_named(run: Path) -> None:
    """The refusal lists what to say; saying it resumes; a name that is no field is told with the close match."""
    longer = a_trainer(num_steps=9, lr=1e-3)
    with pytest.raises(BadInput, match=r"lr\.value: 0\.01 -> 0\.001; num_steps: 4 -> 9.*--resume-changed lr num_steps"):
        load_checkpoint(longer, run / "step_000000004")
    with pytest.raises(BadInput, match="num_steps: 4 -> 9") as refused:
        load_checkpoint(longer, run / "step_000000004", changed=["lr"])
    assert "lr.value" not in str(refused.value)
    with pytest.raises(BadInput, match=r"'num_step' is no field.*Did you mean 'num_steps'"):
        load_checkpoint(longer, run / "step_000000004", changed=["lr.value", "num_step"])
    load_checkpoint(longer, run / "step_000000004", changed=["lr.value", "num_steps"])
    longer.train()
    assert longer.state.step == 9


def test_sizes_cannot_change(run: Path) -> None:
    """However much it is meant."""
    other = a_trainer(num_steps=4)
    other.model = sae(4, 7, BatchTopK(2))
    with pytest.raises(BadInput, match=r"W_dec_LXoDo has shape \(6, 4\), not \(7, 4\)"):
        load_checkpoint(other, run / "step_000000004", changed=["model"])


def test_other_arithmetic_is_told(run: Path) -> None:
    """More threads add in another order: the run goes on, with one line that says so."""
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with pytest.warns(UserWarning, match=rf"threads: {before} -> {before + 1}: this run goes on") as caught:
            load_checkpoint(a_trainer(num_steps=4), run / "step_000000004")
        assert len(caught) == 1
    finally:
        torch.set_num_threads(before)
