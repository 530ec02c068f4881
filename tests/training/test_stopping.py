"""A run may stop early, be intervened in between steps, and show metrics of one's own; all of it resumes."""

import json
from collections.abc import Mapping

import attrs
import pytest
import torch
from torch import Tensor

from crosscode.activations import BatchTopK, TopK
from crosscode.batch import Batch
from crosscode.callbacks import Checkpoint, JSONLines, Log
from crosscode.errors import BadInput
from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.models import SparseCoder, Trace, sae
from crosscode.schedulers import LinearRamp
from crosscode.training import StepReport, Trainer, load_checkpoint, newest_checkpoint, save_checkpoint, train_together
from crosscode.training.store import newest_in_all

D, L = 6, 12
DATA = [Batch.autoencode(torch.randn(8, D, generator=torch.Generator().manual_seed(i))) for i in range(4)]


def a_trainer(**given) -> Trainer:
    coder = sae(D, L, BatchTopK(3))
    optimizer = torch.optim.Adam(coder.parameters())
    return Trainer(
        **{"model": coder, "data": DATA, "loss": SummedSquaredError(), "optimizer": optimizer, "lr": 1e-2}
        | {"num_steps": 12, "init": [AnthropicTranspose(1.0)]}
        | given
    )


@attrs.frozen
class StopAt:
    """Early stopping, as a callback."""

    step: int

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if report.step == self.step:
            trainer.stop()


@attrs.frozen
class Shake:
    """An intervention: noise on the weights, from torch's own generator."""

    every: int

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if report.step % self.every == 0:
            W_XiDiL = trainer.model.encoder.W_enc_XiDiL
            W_XiDiL += 0.1 * torch.randn(W_XiDiL.shape)


@attrs.frozen
class Longest:
    """A metric of one's own."""

    def start(self) -> "Longest":
        return self

    def add(self, trace: Trace) -> None:
        """Nothing to add up."""

    def result(self) -> Mapping[str, float | Tensor]:
        return {"longest": 1.5}


def equal(one: SparseCoder, other: SparseCoder) -> bool:
    ours, its = one.state_dict(), other.state_dict()
    return all(torch.equal(ours[name], its[name]) for name in ours)


def test_a_run_that_is_stopped_ends_as_one_of_so_many_steps(tmp_path) -> None:
    """Thresholds are calibrated, the last row of curves and the last checkpoint are of that step."""
    curves = tmp_path / "curves.jsonl"
    stopped = a_trainer(callbacks=[StopAt(7), Log(JSONLines(curves)), Checkpoint(tmp_path / "checkpoints")])
    seven = a_trainer(num_steps=7)

    stopped.train()
    seven.train()

    assert (stopped.state.step, stopped.is_done, stopped.num_steps) == (7, True, 12)
    assert stopped.model.encoder.W_enc_XiDiL.equal(seven.model.encoder.W_enc_XiDiL)
    assert [json.loads(line)["step"] for line in curves.read_text().splitlines()] == [1, 7]
    assert newest_checkpoint(tmp_path / "checkpoints").name == "step_000000007"
    assert not stopped.model.training


def test_a_stopped_run_makes_no_further_step_when_resumed(tmp_path) -> None:
    stopped = a_trainer(callbacks=[StopAt(5), Checkpoint(tmp_path)])
    stopped.train()
    resumed = a_trainer()

    load_checkpoint(resumed, newest_checkpoint(tmp_path))
    resumed.train()

    assert resumed.state.step == 5
    assert equal(stopped.model, resumed.model)


@pytest.mark.parametrize("which", [0, 1])
def test_each_of_several_stops_by_itself(tmp_path, which) -> None:
    """The others go on over the same batches, to the bit, and the checkpoints of both resume."""

    def pair(callback) -> list[Trainer]:
        trainers = [a_trainer(), a_trainer(lr=3e-3)]
        for i, trainer in enumerate(trainers):
            trainer.callbacks = [*([StopAt(4)] if i == which else []), callback]
        return trainers

    together = pair(Checkpoint(tmp_path, every=3, keep=9))
    train_together(together)
    torch.manual_seed(0)
    resumed = pair(lambda trainer, report: None)
    load_checkpoint(resumed, tmp_path / "step_000000009")
    train_together(resumed)

    assert [trainer.state.step for trainer in together] == ([4, 12] if which == 0 else [12, 4])
    alone = [a_trainer(), a_trainer(lr=3e-3)][1 - which]
    alone.train()
    assert equal(together[1 - which].model, alone.model)
    assert all(equal(one.model, other.model) for one, other in zip(together, resumed))
    assert sorted(each.name[-2:] for each in tmp_path.glob("step_*")) == ["03", "06", "09", "12"]


def test_interventions_act_before_checkpoints_and_resume_to_the_bit(tmp_path) -> None:
    torch.manual_seed(3)
    whole = a_trainer(interventions=[Shake(3)], callbacks=[Checkpoint(tmp_path, every=6)])
    whole.train()
    plain = a_trainer()
    plain.train()
    resumed = a_trainer(interventions=[Shake(3)])
    load_checkpoint(resumed, tmp_path / "step_000000006")
    resumed.train()

    assert equal(whole.model, resumed.model)
    assert not equal(whole.model, plain.model)


def test_an_intervention_that_replaces_a_parameter_is_told_at_once() -> None:
    """The optimizer would go on stepping the old one."""

    def replace(trainer: Trainer, report: StepReport) -> None:
        trainer.model.encoder.W_enc_XiDiL = torch.nn.Parameter(trainer.model.encoder.W_enc_XiDiL.clone())

    with pytest.raises(BadInput, match=r"optimizer does not hold all parameters .*encoder\.W_enc_XiDiL"):
        a_trainer(interventions=[replace]).train()


def test_metrics_of_ones_own_are_in_every_curve(tmp_path) -> None:
    trainer = a_trainer(metrics=[Longest()], callbacks=[Log(JSONLines(tmp_path / "c"), every=5)])

    trainer.train()

    assert [json.loads(line)["train/longest"] for line in (tmp_path / "c").read_text().splitlines()] == [1.5] * 4


def test_a_group_may_learn_at_a_rate_that_changes_and_resumes(tmp_path) -> None:
    """A multiplier that is a function of the step; it is configuration, and no part of a checkpoint."""

    def new(steps: int) -> Trainer:
        coder = sae(D, L, TopK(3))
        groups = [
            {"params": list(coder.encoder.parameters()), "lr_multiplier": LinearRamp(1.0, steps)},
            {"params": list(coder.decoder.parameters())},
        ]
        return a_trainer(model=coder, optimizer=torch.optim.SGD(groups, lr=1e-2))

    rates = []
    trainer = new(4)
    trainer.callbacks = [
        lambda t, report: rates.append([round(group["lr"], 6) for group in t.optimizer.param_groups]),
        Checkpoint(tmp_path, every=6),
    ]
    trainer.train()
    resumed = new(4)
    load_checkpoint(resumed, tmp_path / "step_000000006")
    resumed.train()

    assert rates[:6] == [[0.0, 0.01], [0.0025, 0.01], [0.005, 0.01], [0.0075, 0.01], [0.01, 0.01], [0.01, 0.01]]
    assert equal(trainer.model, resumed.model)
    with pytest.raises(BadInput, match=r"optimizer\.lr_multipliers\.0\.steps: 4 -> 5"):
        load_checkpoint(new(5), tmp_path / "step_000000006")


def test_several_that_keep_folders_of_their_own_resume_though_one_has_stopped(tmp_path) -> None:
    """The stopped one's last checkpoint is of every later step; whichever of them leads."""
    for which in (0, 1):
        folders = [tmp_path / str(which) / name for name in "ab"]

        def pair(folders=folders, which=which) -> list[Trainer]:
            trainers = [a_trainer(), a_trainer(lr=3e-3)]
            for i, (trainer, folder) in enumerate(zip(trainers, folders)):
                stops = [StopAt(4)] if i == which else []
                trainer.callbacks = [*stops, Checkpoint(folder, every=3, keep=1)]
            return trainers

        together = pair()
        train_together(together)
        for folder in folders:
            if (folder / "step_000000012").exists():
                (folder / "step_000000012").rename(folder / "step_000000012.gone")
        save_checkpoint_of_step_nine(folders, which)
        resumed = pair()
        for trainer, checkpoint in zip(resumed, newest_in_all(folders), strict=True):
            load_checkpoint(trainer, checkpoint)
        assert [trainer.state.step for trainer in resumed] == ([4, 9] if which == 0 else [9, 4])
        train_together(resumed)
        assert all(equal(one.model, other.model) for one, other in zip(together, resumed))


def save_checkpoint_of_step_nine(folders, which: int) -> None:
    """What the one that went on had at step 9, of whose checkpoints only the newest is kept."""
    trainer = [a_trainer(), a_trainer(lr=3e-3)][1 - which]

    def save_at_nine(trainer: Trainer, report: StepReport) -> None:
        if report.step == 9:
            save_checkpoint(trainer, folders[1 - which])

    trainer.callbacks = [save_at_nine]
    trainer.train()


def test_a_run_that_stopped_goes_on_where_more_steps_are_asked_for(tmp_path) -> None:
    a_trainer(callbacks=[StopAt(5), Checkpoint(tmp_path)]).train()
    longer = a_trainer(num_steps=15)

    load_checkpoint(longer, newest_checkpoint(tmp_path), changed=["num_steps"])
    longer.train()

    assert longer.state.step == 15


def test_options_of_the_optimizer_that_are_meant_to_differ_do(tmp_path) -> None:
    """Of the optimizer, and of one of its groups; unmeant, they are refused."""

    def new(betas=(0.9, 0.999), decay: float = 0.1) -> Trainer:
        coder = sae(D, L, TopK(3))
        groups = [
            {"params": list(coder.encoder.parameters()), "weight_decay": decay},
            {"params": list(coder.decoder.parameters())},
        ]
        return a_trainer(model=coder, optimizer=torch.optim.AdamW(groups, betas=betas))

    saved = new()
    saved.callbacks = [Checkpoint(tmp_path, every=6, keep=3)]
    saved.train()
    checkpoint = tmp_path / "step_000000006"

    with pytest.raises(BadInput, match=r"optimizer\.groups\.0\.weight_decay: 0\.1 -> 0\.7"):
        load_checkpoint(new(decay=0.7), checkpoint)
    for given in ({"betas": (0.5, 0.9)}, {"decay": 0.7}, {}):
        resumed = new(**given)
        load_checkpoint(resumed, checkpoint, changed=["optimizer"] if given else [])
        assert [group["weight_decay"] for group in resumed.optimizer.param_groups] == [given.get("decay", 0.1), 0.01]
        assert resumed.optimizer.param_groups[0]["betas"] == given.get("betas", (0.9, 0.999))
    resumed.train()
    assert equal(resumed.model, saved.model)


def test_what_came_with_the_steps_stays_where_another_option_is_meant_to_differ(tmp_path) -> None:
    """An optimizer that counts in its groups goes on counting when only a rate's multiplier is changed."""

    class Counting(torch.optim.SGD):
        def __init__(self, groups: object) -> None:
            super().__init__(groups, lr=1e-2)
            self.defaults["n_steps"] = 0
            for group in self.param_groups:
                group["n_steps"] = 0

        def step(self, closure: object = None) -> None:
            super().step()
            for group in self.param_groups:
                group["n_steps"] += 1

    def new(multiplier: float) -> Trainer:
        coder = sae(D, L, TopK(3))
        return a_trainer(
            model=coder, optimizer=Counting([{"params": list(coder.parameters()), "lr_multiplier": multiplier}])
        )

    saved = new(1.0)
    saved.callbacks = [Checkpoint(tmp_path, every=6, keep=3)]
    saved.train()
    resumed = new(0.5)
    load_checkpoint(resumed, tmp_path / "step_000000006", changed=["optimizer"])

    assert resumed.optimizer.param_groups[0]["n_steps"] == 6
    assert resumed.optimizer.param_groups[0]["lr_multiplier"] == 0.5
