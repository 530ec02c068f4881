"""A recipe whose data is no `Dataloader` runs from the command line to its report."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from small_runs import SMALL, options

import crosscode.run
from crosscode.activations import TopK
from crosscode.batch import Batch
from crosscode.commands import main as command
from crosscode.data import Dataloader
from crosscode.evaluation import Evaluation
from crosscode.initialization import AnthropicTranspose, NormalizeActivations
from crosscode.losses import SummedSquaredError
from crosscode.models import sae
from crosscode.run import RunOptions
from crosscode.training import Trainer


class Differences:
    """Activations of the second model less those of the first."""

    def __init__(self, data: Dataloader) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.data:
            yield Batch.autoencode(batch.inputs_BXiDi[:, 1, 0] - batch.inputs_BXiDi[:, 0, 0])


DEFAULT = RunOptions()


def trainer_of(run: RunOptions, n_latents: int, num_steps: int, held_out: Differences | None) -> Trainer:
    coder = sae(16, n_latents, TopK(3))
    return Trainer(
        model=coder,
        data=Differences(run.dataloader()),
        init=[NormalizeActivations(500), AnthropicTranspose(1.0)],
        loss=SummedSquaredError(),
        optimizer=run.adam(coder),
        lr=1e-2,
        num_steps=num_steps,
        held_out=held_out,
    )


def holding_out(run: RunOptions = DEFAULT, n_latents: int = 32, num_steps: int = 10) -> Trainer:
    return trainer_of(run, n_latents, num_steps, Differences(run.dataloader("held_out")))


def holding_nothing_out(run: RunOptions = DEFAULT, n_latents: int = 32, num_steps: int = 10) -> Trainer:
    return trainer_of(run, n_latents, num_steps, None)


@pytest.mark.parametrize("factory", [holding_out, holding_nothing_out])
def test_figures_are_of_what_the_recipe_holds_out_else_of_its_training_data(
    factory: Callable[..., Trainer], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which of the two is said; curves, summary, evaluation and page are there; the command says that it cannot."""
    run = tmp_path / "run"
    models = [folder / "base", folder / "tuned"]
    given = {**SMALL, "models": models, "dataset": folder / "text.txt", "output": run, "report": True, "num_steps": 10}
    if factory is holding_nothing_out:
        with pytest.warns(UserWarning, match="holds no data out: its figures are of training data"):
            summary = crosscode.run.main(factory, options(**given))
    else:
        summary = crosscode.run.main(factory, options(**given))
    assert 0 < summary["fvu/pooled"] < 1
    assert not any(name.startswith("training_tokens") for name in summary)
    found = Evaluation.load(run)
    assert found.source["data"] == "Differences"
    assert found.source.get("split") == ("train" if factory is holding_nothing_out else None)
    coder = crosscode.load(run / "coder")
    of_split = trainer_of(RunOptions.read(run / "options.json"), 32, 10, None).data
    if factory is holding_out:
        of_split = Differences(RunOptions.read(run / "options.json").dataloader("held_out"))
    x_BD = torch.cat([batch.inputs_BXiDi for batch, _ in zip(of_split, range(4))])[: found.source["tokens"]]
    with torch.no_grad():
        error = (coder(x_BD) - x_BD).square().sum() / (x_BD - x_BD.mean(0)).square().sum()
    assert summary["fvu/pooled"] == pytest.approx(float(error), rel=1e-4)
    assert (run / "report.html").is_file()
    assert len((run / "metrics.jsonl").read_text().splitlines()) > 1
    assert "fvu/0/0" in json.dumps(summary)
    with pytest.raises(SystemExit):
        command(["evaluate", str(run), "--quiet"])
    assert "was trained on data of its recipe's own" in capsys.readouterr().err
