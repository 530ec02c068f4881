"""Curves, bars and checkpoints observe a run: they record it as it was, and no failure of theirs ends it."""

import io
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from crosscode.activations import TopK
from crosscode.batch import Batch
from crosscode.callbacks import Checkpoint, Console, JSONLines, Log, ProgressBar, WeightsAndBiases, progress
from crosscode.errors import BadInput, CrosscodeWarning
from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.metrics import FVU, L0, Density
from crosscode.models import sae
from crosscode.penalties import L1OfNorms
from crosscode.schedulers import LinearRamp
from crosscode.training import Trainer, Weighted, load_checkpoint, newest_checkpoint

METRICS = (FVU((("base",), ("blocks.2.hook_resid_post",))), L0(), Density())


def a_trainer(*callbacks: Any, num_steps: int = 10, lr: float = 1e-2) -> Trainer:
    coder = sae(4, 8, TopK(2))
    generator = torch.Generator().manual_seed(0)
    return Trainer(
        model=coder,
        data=[Batch.autoencode(torch.randn(16, 4, generator=generator)) for _ in range(4)],
        init=[AnthropicTranspose(1.0)],
        loss=SummedSquaredError(),
        penalties={"l1": Weighted(L1OfNorms(), LinearRamp(0.1, 5))},
        optimizer=torch.optim.Adam(coder.parameters()),
        lr=lr,
        num_steps=num_steps,
        callbacks=callbacks,
    )


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


class Calls:
    """A callback and sink that writes down when it was called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, trainer: Trainer, report: Any) -> None:
        self.calls.append(f"step {report.step}")

    def on_start(self, trainer: Trainer) -> None:
        self.calls.append("start")

    def on_finish(self, trainer: Trainer) -> None:
        self.calls.append("finish")

    def on_end(self, trainer: Trainer) -> None:
        self.calls.append("end")


def test_callbacks_are_told_of_every_moment() -> None:
    """Start, each step, finish, end; a run that fails ends without having finished."""
    calls = Calls()
    a_trainer(calls, num_steps=2).train()
    assert calls.calls == ["start", "step 1", "step 2", "finish", "end"]

    def fail(trainer: Trainer, report: Any) -> None:
        raise RuntimeError("power cut")

    calls = Calls()
    with pytest.raises(RuntimeError, match="power cut"):
        a_trainer(calls, fail, num_steps=2).train()
    assert calls.calls == ["start", "step 1", "end"]


def test_curves_have_stable_names(tmp_path: Path) -> None:
    """The names that dashboards and scripts rely on; the first and last steps are always there."""
    a_trainer(Log(JSONLines(tmp_path / "curves.jsonl"), every=4, metrics=METRICS, samples_every=4)).train()
    written = rows(tmp_path / "curves.jsonl")
    assert [row["step"] for row in written] == [1, 4, 8, 10]
    names = {"loss", "reconstruction", "penalty/l1", "lambda/l1", "lr", "gradient_norm", "tokens", "l0/mean", "l0/p50"}
    names |= {"fvu/base/blocks.2.hook_resid_post", "fvu/pooled", "density/never"}
    for row in written:
        assert {f"train/{name}" for name in names} <= row.keys()
        total = row["train/reconstruction"] + row["train/lambda/l1"] * row["train/penalty/l1"]
        assert row["train/loss"] == pytest.approx(total, rel=1e-5)
        numbers = {name: value for name, value in row.items() if name != "step" and not name.endswith("deciles")}
        assert {type(value) for value in numbers.values()} == {float}
        assert all(map(math.isfinite, numbers.values()))
        assert row["train/codes/sparse"] == 1
        assert row["train/codes/density"] == pytest.approx(row["train/l0/mean"] / 8)
    assert [row["train/tokens"] for row in written] == [16, 64, 128, 160]
    assert [row["train/lambda/l1"] for row in written] == pytest.approx([0, 0.06, 0.1, 0.1])
    histograms = [row["step"] for row in written if "train/density/log10/deciles" in row]
    assert histograms == [4, 8, 10]
    deciles = written[-1]["train/density/log10/deciles"]
    assert len(deciles) == 11
    assert deciles == sorted(deciles)


def test_logging_changes_nothing(tmp_path: Path) -> None:
    """The same weights with every callback as with none."""
    log = Log(JSONLines(tmp_path / "curves.jsonl"), every=1, metrics=METRICS)
    plain, watched = a_trainer(), a_trainer(log, ProgressBar())
    for one, other in zip(plain.train().parameters(), watched.train().parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_resumed_run_has_one_curve(tmp_path: Path) -> None:
    """Rows beyond the checkpoint, and a row that a crash cut short, are dropped; the file equals an unbroken run's."""

    def logged(directory: Path) -> Log:
        return Log(JSONLines(directory / "curves.jsonl"), every=1, metrics=METRICS)

    def crash(trainer: Trainer, report: Any) -> None:
        if report.step == 7:
            raise RuntimeError("power cut")

    a_trainer(logged(tmp_path / "whole"), Checkpoint(tmp_path / "whole", every=5)).train()
    cut = tmp_path / "cut"
    with pytest.raises(RuntimeError):
        a_trainer(logged(cut), Checkpoint(cut, every=5), crash).train()
    with (cut / "curves.jsonl").open("a") as stream:
        stream.write('{"step": 8, "train/lo')
    assert [row["step"] for row in rows_that_are_whole(cut / "curves.jsonl")] == list(range(1, 8))
    second = a_trainer(logged(cut), Checkpoint(cut, every=5))
    newest = newest_checkpoint(cut)
    assert newest is not None
    load_checkpoint(second, newest)
    second.train()
    assert (cut / "curves.jsonl").read_text() == (tmp_path / "whole" / "curves.jsonl").read_text()


def rows_that_are_whole(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")]


def test_the_console_prints_a_line_a_row() -> None:
    """Step, loss and what else it is asked for, in order; what a row lacks is left out."""
    stream = io.StringIO()
    console = Console(names=("train/l0/mean", "train/absent", "train/loss"), stream=stream)
    a_trainer(Log([console], every=5, metrics=METRICS)).train()
    lines = stream.getvalue().splitlines()
    assert [line.split()[:2] for line in lines] == [["step", "1"], ["step", "5"], ["step", "10"]]
    assert all(line.split()[2:5:2] == ["l0/mean", "loss"] for line in lines)


def test_the_bar_ends_full(capsys: pytest.CaptureFixture[str]) -> None:
    """It shows loss, L0 and FVU."""
    a_trainer(ProgressBar(every=5)).train()
    shown = capsys.readouterr().err
    assert "10/10" in shown
    for name in ("loss=", "L0=", "FVU="):
        assert name in shown


def test_the_bar_measures_no_more_often_than_anyone_can_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers at the first step, and the last; none in between unless the time for it has come."""
    measured: list[int] = []

    def measure(metrics: Any, traces: Any) -> dict[str, float]:
        measured.append(1)
        return {"l0/mean": 2.0, "fvu/pooled": 0.5}

    monkeypatch.setattr(progress, "measure", measure)
    a_trainer(ProgressBar(every=1, seconds=3600)).train()
    assert len(measured) == 2
    a_trainer(ProgressBar(every=1, seconds=0)).train()
    assert len(measured) == 2 + 10


def test_wandb_offline_needs_nobody(tmp_path: Path) -> None:
    """No login, no network, no prompt: curves and histograms land in an offline run's folder."""
    sink = WeightsAndBiases("offline", name="smoke", directory=tmp_path)
    a_trainer(Log([sink], every=5, metrics=METRICS, samples_every=5)).train()
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (file,) = folder.glob("*.wandb")
    names = (b"train/loss", b"train/density/log10", b"SummedSquaredError")
    give_up = time.monotonic() + 60  # wandb's own process writes, and may do so after `finish`
    while not all(name in file.read_bytes() for name in names):
        assert time.monotonic() < give_up, "curves, histograms and configuration are in the offline run"
        time.sleep(0.1)


def test_wandb_disabled_is_not_even_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`disabled` costs nothing and leaves nothing."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    a_trainer(Log([WeightsAndBiases("disabled", directory=tmp_path)])).train()
    assert not os.listdir(tmp_path)


def test_a_run_goes_on_without_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absent: one warning, and the other sinks have every row."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    log = Log([WeightsAndBiases("offline"), JSONLines(tmp_path / "curves.jsonl")], every=1)
    with pytest.warns(UserWarning, match="wandb stopped working") as caught:
        a_trainer(log).train()
    ours = [str(each.message) for each in caught if issubclass(each.category, CrosscodeWarning)]
    assert len(ours) == 1, ours
    assert len(rows(tmp_path / "curves.jsonl")) == 10


def test_a_run_goes_on_when_wandb_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken in the middle: one warning, and training ends as it should."""

    class Broken:
        def log(self, *args: Any, **kwargs: Any) -> None:
            raise OSError("disk full")

        def finish(self) -> None:
            raise OSError("disk full")

    monkeypatch.setattr(WeightsAndBiases, "_open", lambda sink, *run: setattr(sink, "_run", Broken()))
    sink = WeightsAndBiases("offline")
    with pytest.warns(UserWarning, match="disk full") as caught:
        coder = a_trainer(Log([sink, JSONLines(tmp_path / "curves.jsonl")], every=1)).train()
    assert len(caught) == 1
    assert not coder.training
    assert len(rows(tmp_path / "curves.jsonl")) == 10


def test_a_wandb_that_hangs_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a step nor, for longer than `patience`, the end: one warning, every row in the other sink."""
    from threading import Event

    class Hanging:
        def log(self, *args: Any, **kwargs: Any) -> None:
            Event().wait()

    monkeypatch.setattr(WeightsAndBiases, "_open", lambda sink, *run: setattr(sink, "_run", Hanging()))
    sink = WeightsAndBiases("offline", patience=0.2)
    with pytest.warns(UserWarning, match="did not finish within 0.2 s") as caught:
        a_trainer(Log([sink, JSONLines(tmp_path / "curves.jsonl")], every=1)).train()
    assert len(caught) == 1
    assert len(rows(tmp_path / "curves.jsonl")) == 10


def test_rows_wait_for_room_on_the_disk(tmp_path: Path) -> None:
    """A full disk costs one warning; once there is room, every row is there once, and none is half written."""
    import resource

    class Full:
        """From step 4 to step 7 no file grows."""

        def __call__(self, trainer: Trainer, report: Any) -> None:
            if report.step == 4:
                self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
                size = (tmp_path / "curves.jsonl").stat().st_size
                resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, self.before[1]))
            if report.step == 7:
                assert [row["step"] for row in rows(tmp_path / "curves.jsonl")] == [1, 2, 3, 4]
                resource.setrlimit(resource.RLIMIT_FSIZE, self.before)

    with pytest.warns(UserWarning, match=r"curves\.jsonl could not be written.*wait for room") as caught:
        a_trainer(Log(JSONLines(tmp_path / "curves.jsonl"), every=1), Full()).train()
    assert len(caught) == 1
    assert [row["step"] for row in rows(tmp_path / "curves.jsonl")] == [*range(1, 11)]


def test_checkpoints_come_as_asked(tmp_path: Path) -> None:
    """Every so many steps and at the end, the newest two kept."""
    a_trainer(Checkpoint(tmp_path, every=4)).train()
    assert sorted(child.name for child in tmp_path.iterdir()) == ["step_000000008", "step_000000010"]


def test_a_full_disk_costs_a_checkpoint_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The save fails with a warning, the older checkpoint stays whole, training goes on, and the failure is known."""
    from crosscode.training import store

    write = store._write_manifest

    def full(directory: Path, step: int) -> None:
        if step in (8, 10):
            raise OSError(28, "No space left on device")
        write(directory, step)

    monkeypatch.setattr(store, "_write_manifest", full)
    callback = Checkpoint(tmp_path, every=4)
    trainer = a_trainer(callback)
    with pytest.warns(UserWarning, match="No space left on device") as caught:
        trainer.train()
    assert len(caught) == 2
    assert trainer.state.step == 10
    assert callback.failed
    assert [child.name for child in tmp_path.iterdir()] == ["step_000000004"]
    assert newest_checkpoint(tmp_path) == tmp_path / "step_000000004"


def test_a_new_run_does_not_keep_an_old_ones_checkpoints(tmp_path: Path) -> None:
    """Trained afresh into the directory of another, longer run: what is found afterwards is the new run's."""
    a_trainer(Checkpoint(tmp_path, every=4), num_steps=16).train()
    trainer = a_trainer(Checkpoint(tmp_path, every=4), num_steps=8, lr=1e-3)
    trainer.train()
    assert sorted(child.name for child in tmp_path.iterdir()) == ["step_000000004", "step_000000008"]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    load_checkpoint(a_trainer(num_steps=8, lr=1e-3), newest)


@pytest.mark.parametrize("given", [{"every": 0}, {"keep": 0}])
def test_intervals_are_at_least_one(given: dict[str, int]) -> None:
    """Zero steps between rows or checkpoints is refused when it is asked for."""
    with pytest.raises(BadInput, match="must be at least 1"):
        Checkpoint("x", **given)
    with pytest.raises(BadInput, match="must be at least 1"):
        Log([], every=0)


def test_checkpoints_of_round_steps_stay_too(tmp_path: Path) -> None:
    """`keep` of the newest, and those of multiples of `keep_every`, the step itself included."""
    a_trainer(Checkpoint(tmp_path, every=2, keep=1, keep_every=4)).train()
    assert sorted(int(child.name.removeprefix("step_")) for child in tmp_path.iterdir()) == [4, 8, 10]


class FakeWandb:
    """Stands in wandb's place: writes down what it is asked for; going online fails if told so."""

    def __init__(self, online: bool = True) -> None:
        self.online = online
        self.asked: list[dict[str, Any]] = []
        self.logged: list[tuple[int | None, dict[str, Any]]] = []
        self.finished = 0

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def Histogram(self, values: list[float]) -> tuple[str, int]:
        return "histogram", len(values)

    def Html(self, page: str, inject: bool) -> tuple[str, str, bool]:
        return "html", page, inject

    def Plotly(self, figure: Any) -> tuple[str, Any]:
        return "plotly", figure

    def init(self, **arguments: Any) -> "FakeWandb":
        assert arguments["dir"] is None or Path(arguments["dir"]).is_dir(), "wandb makes no folder of its own"
        self.asked.append(arguments)
        if arguments["mode"] == "online" and not self.online:
            raise ConnectionError("no route")
        return self

    @property
    def id(self) -> str:
        return f"run{len(self.asked)}" if self.asked[-1]["id"] is None else self.asked[-1]["id"]

    def log(self, numbers: dict[str, Any], step: int | None = None) -> None:
        self.logged.append((step, numbers))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.mark.parametrize("folder", ["new/folder", ".", None])
def test_wandb_is_asked_for_a_run(folder: str | None, wandb: FakeWandb, tmp_path: Path) -> None:
    """In a folder that does not exist, one that does, and none; with the run's configuration; every row at its step."""
    directory = None if folder is None else tmp_path / folder
    sink = WeightsAndBiases("offline", "project", "name", directory, patience=7.0)
    a_trainer(Log(sink, every=5, metrics=METRICS, samples_every=5)).train()
    (asked,) = wandb.asked
    assert asked["config"]["loss"] == {"type": "SummedSquaredError", "site_weights": None, "token_weights": None}
    del asked["config"]
    assert asked == {
        "mode": "offline",
        "project": "project",
        "name": "name",
        "dir": None if directory is None else str(directory),
        "id": None,
        "resume": "allow",
        "settings": {"silent": True, "console": "off", "init_timeout": 7.0},
    }
    assert [step for step, _ in wandb.logged] == [1, 5, 10]
    assert all("train/loss" in numbers for _, numbers in wandb.logged)
    histograms = [step for step, numbers in wandb.logged if numbers.get("train/density/log10", [0])[0] == "histogram"]
    assert histograms == [5, 10]
    assert wandb.finished == 1
    if directory is not None:
        assert (directory / "wandb_id.txt").read_text() == "run1\n"


def test_several_runs_of_one_process_are_a_group(wandb: FakeWandb) -> None:
    """Each is a run of its own beside the others, which wandb would otherwise end or give back."""
    a_trainer(Log(WeightsAndBiases("offline", group="sweep"), every=5)).train()
    (asked,) = wandb.asked
    assert (asked["group"], asked["reinit"]) == ("sweep", "create_new")


def test_only_a_resumed_run_goes_on_under_its_id(wandb: FakeWandb, tmp_path: Path) -> None:
    """A run that begins anew has a new one, also where an earlier run has left its own; without a folder, none."""
    for directory, ids in ((tmp_path, [None, "run1", None]), (None, [None, None, None])):
        wandb.asked.clear()
        trainer = a_trainer(num_steps=1)
        for num_steps in (1, 2):
            trainer.num_steps = num_steps
            trainer.callbacks = [Log(WeightsAndBiases(directory=directory), every=1)]
            trainer.train()
        a_trainer(Log(WeightsAndBiases(directory=directory), every=1), num_steps=1).train()
        assert [asked["id"] for asked in wandb.asked] == ids


def test_a_run_that_cannot_go_online_goes_on_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a warning that says why; offline, nothing is tried again."""
    fake = FakeWandb(online=False)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with pytest.warns(UserWarning, match=r"could not go online \(no route\)"):
        a_trainer(Log(WeightsAndBiases("online"), every=5)).train()
    assert [asked["mode"] for asked in fake.asked] == ["online", "offline"]
    assert [step for step, _ in fake.logged] == [1, 5, 10]


def test_a_run_held_open_takes_its_report(wandb: FakeWandb, tmp_path: Path) -> None:
    """The page as it is and each figure by its name, after the last row and before the run ends."""
    page = tmp_path / "report.html"
    page.write_text("<p>ρ</p>", encoding="utf-8")
    sink = WeightsAndBiases(hold=True)
    a_trainer(Log(sink, every=10)).train()
    assert wandb.finished == 0
    sink.show(page, {"loss": "curve"})
    sink.finish()
    sink.finish()
    report = {"report": ("html", "<p>ρ</p>", False), "report/loss": ("plotly", "curve")}
    assert wandb.logged[-1] == (None, report)
    assert len(wandb.logged) == 3
    assert wandb.finished == 1
