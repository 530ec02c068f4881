"""Forty steps are twenty steps, a power cut, and `--resume`: bit for bit, from text to weights."""

import functools
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from small_runs import RECIPES, SMALL, factory, options, save_model, save_text

import crosscode
import crosscode.run.options
import crosscode.run.recipe
from crosscode.callbacks import Checkpoint
from crosscode.data import TokenSequences, load_language_model
from crosscode.errors import BadInput
from crosscode.files import write_tensors
from crosscode.run import main
from crosscode.run.resuming import made_and_locked
from crosscode.run_folder import locked
from crosscode.training import Trainer, describe
from crosscode.training.description import SAMPLED

RUNS: dict[str, dict[str, Any]] = {
    "feb_diffing_topk": {"style": "batch_topk", "n_shared": 8, "k_shared": 3, "k_exclusive": 3, "dead_after": 0.05},
    "feb_diffing_jumprelu": {"n_shared": 8, "sparsity": 0.1, "accumulate": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    save_model(folder / "base", seed=0)
    save_model(folder / "tuned", seed=1)
    save_text(folder / "text.txt")
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """A forked process has no others."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


@pytest.fixture(scope="module", autouse=True)
def models_loaded_once() -> Iterator[None]:
    """Booting a model costs a second."""
    with pytest.MonkeyPatch.context() as patch:
        load = crosscode.run.options.load_language_model
        patch.setattr(crosscode.run.options, "load_language_model", functools.cache(load))
        yield


FEW: dict[str, Any] = {**SMALL, "init_tokens": 512, "splice_tokens": 64}


def words(folder: Path, recipe: str, output: Path, **given: Any) -> list[str]:
    """The recipe's command line."""
    inputs = {"models": [folder / "base", folder / "tuned"], "dataset": folder / "text.txt"}
    return options(**{**FEW, **inputs, "output": output, **RUNS[recipe], **given})


def cut_short(recipe: str, arguments: list[str], step: int) -> int:
    """The recipe in a forked process that dies, as by a power cut, after the checkpoint of a step; its exit code."""
    call = Checkpoint.__call__

    def call_and_die(self, trainer, report) -> None:
        call(self, trainer, report)
        if report.step == step:
            self.wait()
            os._exit(9)

    pid = os.fork()
    if pid == 0:
        try:
            Checkpoint.__call__ = call_and_die
            main(factory(recipe), arguments)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_a_new_process(recipe: str, arguments: list[str]) -> int:
    """Its exit code; nothing is shared with this process, not even the order of a set's elements."""
    command = [sys.executable, str(RECIPES / f"{recipe}.py"), *arguments]
    return subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True).returncode


def fingerprint(directory: Path) -> str:
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("recipe", RUNS)
def test_a_run_cut_short_ends_as_if_it_had_not_been(recipe: str, folder: Path, tmp_path: Path) -> None:
    """Final weights, last checkpoint, figures and curves of the resumed run equal those of the whole one."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cut_short(recipe, words(folder, recipe, cut), step=20) == 9
    assert not (cut / "coder").exists()
    assert [child.name for child in (cut / "checkpoints").iterdir()] == ["step_000000020"]
    goes_on = words(folder, recipe, cut, resume=True)
    if recipe == "feb_diffing_topk":
        assert in_a_new_process(recipe, goes_on) == 0
    else:
        main(factory(recipe), goes_on)
    main(factory(recipe), words(folder, recipe, whole))
    assert fingerprint(cut / "coder") == fingerprint(whole / "coder")
    last = Path("checkpoints/step_000000040")
    for file in ("optimizer.safetensors", "state.safetensors", "state.json"):
        assert (cut / last / file).read_bytes() == (whole / last / file).read_bytes()
    assert (cut / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert json.loads((cut / "summary.json").read_text()) == json.loads((whole / "summary.json").read_text())
    assert crosscode.load(cut / "coder").encoder.n_latents == SMALL["n_latents"]


def test_a_run_that_leaves_bad_rows_out_counts_each_once(folder: Path, tmp_path: Path) -> None:
    """However often it was cut short and the text gone through; the count is in the summary and in the report."""
    documents = (folder / "text.txt").read_text().split("\n\n")
    rows = ["{" if i % 9 == 4 else json.dumps({"text": document}) for i, document in enumerate(documents)]
    (tmp_path / "text.jsonl").write_text("\n".join(rows))
    recipe, given = "feb_diffing_topk", {"dataset": tmp_path / "text.jsonl", "skip_bad_rows": True}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    main(factory(recipe), words(folder, recipe, whole, **given))
    assert cut_short(recipe, words(folder, recipe, cut, **given), step=20) == 9
    main(factory(recipe), words(folder, recipe, cut, resume=True, report=True, **given))
    summary = json.loads((cut / "summary.json").read_text())
    assert summary == json.loads((whole / "summary.json").read_text())
    n_bad = sum(row == "{" and i % 20 != 19 for i, row in enumerate(rows))
    assert summary["bad_rows"] == n_bad
    assert f"{n_bad} bad rows left out" in (cut / "report.html").read_text()
    assert fingerprint(cut / "coder") == fingerprint(whole / "coder")


def test_a_run_goes_on_in_another_place(folder: Path, tmp_path: Path) -> None:
    """Models, text and output moved to other folders, some named by relative paths: `--resume` finds all alike."""
    here, there = tmp_path / "here", tmp_path / "there"
    for name in ("base", "tuned"):
        shutil.copytree(folder / name, here / name)
    shutil.copy(folder / "text.txt", here)
    given = {**FEW, **RUNS["feb_diffing_topk"], "num_steps": 2}

    def places(at: Path) -> dict[str, Any]:
        return {"models": [at / "base", at / "tuned"], "dataset": at / "text.txt", "output": at / "run"}

    first = main(factory("feb_diffing_topk"), options(**given, **places(here)))
    here.rename(there)
    assert main(factory("feb_diffing_topk"), options(**given, **places(there), resume=True)) == first


def test_a_run_says_what_changed_and_goes_on_if_that_is_meant(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More steps than were asked for at first: refused with the words that allow it; these do."""
    given = {**FEW, **RUNS["feb_diffing_topk"], "models": [folder / "base", folder / "tuned"], "num_steps": 2}
    given |= {"dataset": folder / "text.txt", "output": tmp_path / "run"}
    main(factory("feb_diffing_topk"), options(**given))
    given |= {"num_steps": 4, "resume": True}
    with pytest.raises(SystemExit, match="2"):
        main(factory("feb_diffing_topk"), options(**given))
    said = capsys.readouterr().err
    assert "num_steps: 2 -> 4" in said
    assert said.count("\n") == 1
    named = said.split("--resume-changed ")[1].rstrip(".\n").split()
    assert main(factory("feb_diffing_topk"), [*options(**given), "--resume-changed", *named])["step"] == 4


def test_two_runs_cannot_share_a_folder(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second is told in one line, and the first is left alone."""
    given = {**FEW, **RUNS["feb_diffing_topk"], "models": [folder / "base", folder / "tuned"], "output": tmp_path}
    with locked(tmp_path), pytest.raises(SystemExit, match="2"):
        main(factory("feb_diffing_topk"), options(**given, dataset=folder / "text.txt"))
    said = capsys.readouterr().err
    assert "is in use by another run: wait for its end, or give another --output." in said
    assert said.count("\n") == 1
    assert not (tmp_path / "configuration.json").exists()


def test_who_is_refused_leaves_the_folder_of_another_run(tmp_path: Path) -> None:
    """Both found no folder; the one that lost the race takes nothing away, nor does one that comes later."""
    trainer: Any = object.__new__(Trainer)
    trainer.state = SimpleNamespace(step=0)
    directory = tmp_path / "run"
    exists = Path.exists

    with made_and_locked(directory, trainer):
        (directory / "checkpoints").mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Path, "exists", lambda self: self != directory and exists(self))  # seen before it was made
            with pytest.raises(BadInput, match="in use"), made_and_locked(directory, trainer):
                raise AssertionError("two runs in one folder")
    assert (directory / "checkpoints").is_dir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "exists", lambda self: self != directory and exists(self))
        with pytest.raises(BadInput, match="late"), made_and_locked(directory, trainer):
            raise BadInput("late")
    assert (directory / "checkpoints").is_dir()
    with pytest.raises(BadInput), made_and_locked(tmp_path / "fresh", trainer):
        raise BadInput("refused")
    assert not (tmp_path / "fresh").exists()


def test_a_new_run_replaces_a_complete_one_whole(folder: Path, tmp_path: Path) -> None:
    """Its checkpoints do not stay beside the new ones, from which a later --resume would go on."""
    given = {**FEW, "models": [folder / "base"], "dataset": folder / "text.txt", "output": tmp_path / "run", "k": 4}
    main(factory("sae_topk"), options(**{**given, "num_steps": 6, "checkpoint_every": 3}))
    main(factory("sae_topk"), options(**{**given, "num_steps": 4, "checkpoint_every": 2}))
    kept = sorted(child.name for child in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step_000000002", "step_000000004"]


def test_sigterm_before_the_first_step_is_told(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends with its exit code and a line, as Ctrl-C does; the handler that was there is there again."""
    monkeypatch.setattr(Trainer, "initialize", lambda *args: signal.raise_signal(signal.SIGTERM))
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        given = {
            **FEW,
            "models": [folder / "base"],
            "dataset": folder / "text.txt",
            "output": tmp_path / "run",
            "k": 4,
        }
        with pytest.raises(SystemExit) as stopped:
            main(factory("sae_topk"), options(**given))
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert "the same command begins again" in capsys.readouterr().err


def test_a_full_disk_at_the_end_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What safetensors says of a full disk is no traceback."""

    def full(*args: Any, **kwargs: Any) -> None:
        raise SafetensorError("No space left on device")

    given = {**FEW, "models": [folder / "base"], "dataset": folder / "text.txt", "output": tmp_path / "run", "k": 4}
    monkeypatch.setattr(crosscode.run.recipe, "save_silence", lambda *a: write_tensors({}, tmp_path / "x"))
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(SystemExit) as stopped:
        main(factory("sae_topk"), options(**{**given, "num_steps": 2, "checkpoint_every": 100}))
    assert stopped.value.code == 1
    assert "could not be written to: No space left on device" in capsys.readouterr().err


def test_text_is_described_by_what_it_holds(folder: Path, tmp_path: Path) -> None:
    """By content wherever it lies; every byte of small files counts, and of large ones size, beginning and end."""
    model = load_language_model(str(folder / "base"))

    def source(path: Any) -> Any:
        return describe(TokenSequences(path, model, sequence_length=32))["source"]

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text("w1 w2")
        (tmp_path / name / "b.txt").write_text("w3 w4")
    assert source(str(tmp_path / "one")) == source(tmp_path / "two")
    assert source(str(tmp_path / "one")).keys() == {"a.txt", "b.txt"}
    (tmp_path / "two" / "b.txt").write_text("w3 w5")
    assert source(tmp_path / "one")["a.txt"] == source(tmp_path / "two")["a.txt"]
    assert source(tmp_path / "one")["b.txt"] != source(tmp_path / "two")["b.txt"]
    assert source(["w1 w2", "w3"]) == source(["w1 w2", "w3"]) != source(["w1 w2", "w4"])
    assert "numpy" in source("embedded")["embedded"]

    large = tmp_path / "large.txt"
    large.write_bytes(b"w" * (2 * SAMPLED))
    descriptions = [source(large)]
    for at in (0, 2 * SAMPLED - 1):
        with large.open("r+b") as opened:
            opened.seek(at)
            opened.write(b"x")
        descriptions.append(source(large))
    assert len({str(description) for description in descriptions}) == 3


def test_describing_the_embedded_models_is_quick() -> None:
    """A hash of 2.5 MB and a few versions, asked for at every checkpoint."""
    model = load_language_model("embedded:base")
    started = time.process_time()
    described = describe(TokenSequences("embedded", model))
    assert time.process_time() - started < 0.2  # 0.01 on an idle machine
    assert described["model"]["called"] == "embedded:base"
    assert str(Path.home()) not in str(described)
    assert str(Path(crosscode.__file__).parent) not in str(described)
