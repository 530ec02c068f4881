"""Whoever writes a file makes the folders that it needs, and writes again where it has written before."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_runs import evaluation, save_run

import crosscode
from crosscode.activations import TopK
from crosscode.batch import Batch
from crosscode.callbacks import JSONLines
from crosscode.data import ActivationCache
from crosscode.errors import CrosscodeError
from crosscode.losses import SummedSquaredError
from crosscode.models import sae
from crosscode.report import write_report
from crosscode.run.resuming import made_and_locked
from crosscode.run_folder import SILENCE, read_dead, save_silence
from crosscode.training import Trainer, save_checkpoint


def a_trainer() -> Trainer:
    coder = sae(4, 8, TopK(2))
    data = [Batch.autoencode(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)))]
    optimizer = torch.optim.Adam(coder.parameters())
    return Trainer(model=coder, data=data, loss=SummedSquaredError(), optimizer=optimizer, lr=1e-3, num_steps=2)


def curves(folder: Path) -> None:
    sink = JSONLines(folder / "metrics.jsonl")
    sink.open(a_trainer())
    sink.close()


def a_run(folder: Path) -> None:
    with made_and_locked(folder, a_trainer()):
        pass


def a_report(folder: Path) -> None:
    write_report(save_run(folder.parents[1] / "evaluated", 60, 2), folder / "report.html")


WRITERS: dict[str, Callable[[Path], Any]] = {
    "a coder": lambda folder: crosscode.save(sae(4, 8, TopK(2)), folder),
    "a checkpoint": lambda folder: save_checkpoint(a_trainer(), folder),
    "an evaluation": lambda folder: evaluation(60, 2).save(folder),
    "a cache": ActivationCache,
    "curves": curves,
    "a run": a_run,
    "a report": a_report,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_folders_are_made_and_may_be_there(writer: str, tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    for _ in range(2):
        WRITERS[writer](folder)
        assert folder.is_dir()


def test_what_training_found_dead_comes_back(tmp_path: Path) -> None:
    assert read_dead(tmp_path) is None
    dead_L = torch.tensor([False, True, True])
    save_silence(tmp_path, torch.tensor([0, 9, 12]), dead_L)
    found_L = read_dead(tmp_path)
    assert found_L is not None
    assert found_L.tolist() == dead_L.tolist()
    (tmp_path / SILENCE).write_bytes(b"{}")
    with pytest.raises(CrosscodeError, match="is damaged"):
        read_dead(tmp_path)
