"""`--profile` says where a run's time goes, and the run does not notice."""

import contextlib
import functools
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from small_runs import SMALL, factory, options, save_model, save_text

import crosscode.run.options
from crosscode.activations import TopK
from crosscode.batch import Batch
from crosscode.callbacks import Profile
from crosscode.errors import BadInput
from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.models import sae
from crosscode.phases import PHASES, UNTIMED, Stopwatch, phase, running
from crosscode.run import main
from crosscode.training import Trainer


@attrs.frozen
class SlowData:
    """A batch that takes 5 ms to come, for ever."""

    def __iter__(self) -> Iterator[Batch]:
        while True:
            time.sleep(0.005)
            yield Batch.autoencode(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)))


def a_trainer(*callbacks: Any, num_steps: int = 10) -> Trainer:
    coder = sae(4, 8, TopK(2))
    return Trainer(
        model=coder,
        data=SlowData(),
        init=[AnthropicTranspose(1.0)],
        loss=SummedSquaredError(),
        optimizer=torch.optim.Adam(coder.parameters()),
        lr=1e-2,
        num_steps=num_steps,
        callbacks=callbacks,
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same small recipe into `profiled`, with its output in `printed.txt`, and into `plain`."""
    folder = tmp_path_factory.mktemp("profile")
    arguments = {
        **SMALL,
        "models": [save_model(folder / "base", seed=0)],
        "dataset": save_text(folder / "text.txt"),
        "init_tokens": 500,
        "k": 4,
        "ahead": 0,  # what another thread harvests is no part of this one's time
    }
    with pytest.MonkeyPatch.context() as patch:
        load = functools.cache(crosscode.run.options.load_language_model)
        patch.setattr(crosscode.run.options, "load_language_model", load)
        run(folder, arguments)
    return folder


def run(folder: Path, arguments: dict[str, Any]) -> None:
    for name in ("profiled", "plain"):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            main(factory("topk_crosscoder"), options(**arguments, profile=name == "profiled", output=folder / name))
        (folder / f"{name}.txt").write_text(printed.getvalue())


def test_a_profile_names_every_phase(runs: Path) -> None:
    """Harvest, data, forward, backward, optimizer, logging, checkpoints and the rest; their shares sum to 1."""
    summary = json.loads((runs / "profiled" / "summary.json").read_text())
    shares = summary["time"]
    assert list(shares) == list(PHASES)
    assert sum(shares.values()) == pytest.approx(1)
    assert all(share > 0 for share in shares.values()), "each happened in this run"
    assert summary["tokens_per_second"] > 0
    assert "time" not in json.loads((runs / "plain" / "summary.json").read_text())


def test_a_trace_shows_the_phases_and_operations_of_the_middle_steps(runs: Path) -> None:
    """Valid JSON of complete events; 20 of 40 steps."""
    events = json.loads((runs / "profiled" / "profile.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if event.get("ph") == "X"]
    assert {"data", "forward", "backward", "optimizer", "logging", "aten::mm"} <= {*names}
    assert names.count("forward") == 20
    assert not (runs / "plain" / "profile.json").exists()


def test_a_profiled_run_learns_the_same_weights(runs: Path) -> None:
    """Bit for bit."""
    one, other = (crosscode.load(runs / name / "coder").state_dict() for name in ("profiled", "plain"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_table_tells_what_the_summary_does(runs: Path) -> None:
    """Tokens per second, each phase with its share, and where the trace is."""
    printed = (runs / "profiled.txt").read_text()
    summary = json.loads((runs / "profiled" / "summary.json").read_text())
    assert f"{summary['tokens_per_second']:,.0f} tokens/s: 5,120 tokens, 40 steps" in printed
    for name, share in summary["time"].items():
        (line,) = [line for line in printed.splitlines() if name in line.split()[:2]]
        assert f"{share:.1%}" in line
    assert "steps 11 to 30" in printed
    assert "profile.json" in printed
    assert "tokens/s" not in (runs / "plain.txt").read_text()


def test_time_counts_for_the_innermost_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds add up to what passed; what is in no phase is other, and a pause counts for nothing."""
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    stopwatch = Stopwatch(torch.device("cpu"))
    token = running.set(stopwatch)
    try:
        now = 1.0
        with phase("data"):
            now = 3.0
            with contextlib.suppress(ValueError), phase("harvest"):
                now = 7.0
                raise ValueError("broken text")
            now = 15.0
        with stopwatch.paused():
            now = 100.0
        now = 101.0
        stopwatch.book()
    finally:
        running.reset(token)
    assert {name: seconds for name, seconds in stopwatch.seconds.items() if seconds} == {
        "harvest": 4.0,
        "data": 10.0,
        "other": 2.0,
    }


def test_a_step_is_in_the_phase_where_it_waits(tmp_path: Path) -> None:
    """Slow data is data's time, and a callback's is that of its phase, or other."""

    class Slow:
        phase = "logging"

        def __call__(self, trainer: Trainer, report: Any) -> None:
            time.sleep(0.003)

    def slower(trainer: Trainer, report: Any) -> None:
        time.sleep(0.004)

    profile = Profile(tmp_path / "profile.json")
    a_trainer(Slow(), slower, profile).train()
    assert profile.spent is not None
    seconds = profile.spent.seconds
    assert seconds["data"] >= 10 * 0.005
    assert seconds["logging"] >= 10 * 0.003
    assert seconds["other"] >= 10 * 0.004
    assert (profile.spent.steps, profile.spent.tokens) == (10, 160)
    assert seconds["checkpoints"] == 0


@pytest.mark.parametrize(("num_steps", "shown"), [(1, (1, 1)), (2, (2, 2)), (21, (2, 21)), (31, (7, 26))])
def test_a_run_of_any_length_has_a_trace(
    num_steps: int, shown: tuple[int, int], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """Of up to 20 steps in the middle, after one to warm up where there is one."""
    profile = Profile(tmp_path / "new" / "profile.json")
    a_trainer(profile, num_steps=num_steps).train()
    assert profile.spent is not None
    assert profile.spent.traced == shown
    events = json.loads((tmp_path / "new" / "profile.json").read_text())["traceEvents"]
    assert sum(event["name"] == "forward" for event in events) == shown[1] - shown[0] + 1


def test_a_profile_of_a_resumed_run_counts_what_it_saw(tmp_path: Path) -> None:
    """Not the tokens of the first part."""
    trainer = a_trainer(num_steps=4)
    trainer.train()
    trainer.num_steps, trainer.callbacks = 10, (profile := Profile(tmp_path / "profile.json"),)
    trainer.train()
    assert profile.spent is not None
    assert (profile.spent.steps, profile.spent.tokens) == (6, 96)


def test_a_trace_that_cannot_be_written_costs_no_run(tmp_path: Path) -> None:
    """A warning; the times are there."""
    (tmp_path / "taken").write_text("a file where a folder should be")
    profile = Profile(tmp_path / "taken" / "profile.json")
    with pytest.warns(UserWarning, match="trace could not be written"):
        a_trainer(profile).train()
    assert profile.spent is not None
    assert profile.spent.traced is None


def test_nothing_is_measured_once_a_run_has_ended(tmp_path: Path) -> None:
    """However it ended: no stopwatch runs on, and a model's harvest is its own again."""

    def fail(trainer: Trainer, report: Any) -> None:
        assert running.get() is not None
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        a_trainer(fail, Profile(tmp_path / "profile.json")).train()
    assert running.get() is None
    assert phase("data") is UNTIMED


def test_one_profile_sees_a_whole_run(tmp_path: Path) -> None:
    """Of two, neither would: refused before anything is read, and inside another's run as that begins."""
    with pytest.raises(BadInput, match="keep one of the two"):
        a_trainer(Profile(tmp_path / "one.json"), Profile(tmp_path / "two.json"))
    within = a_trainer(Profile(tmp_path / "two.json"))
    with pytest.raises(BadInput, match="second Profile"):
        a_trainer(lambda trainer, report: within.train(), Profile(tmp_path / "one.json")).train()
    assert running.get() is None
