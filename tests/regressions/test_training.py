"""Faults of an earlier implementation, in training: the right value beside the wrong one."""

import pytest
import torch
from strategies import L, f64, put

from crosscode.activations import BatchTopK, ReLU, TopK
from crosscode.batch import Batch
from crosscode.callbacks import Checkpoint
from crosscode.initialization import AnthropicTranspose, NormalizeActivations
from crosscode.latents import Latents
from crosscode.losses import SummedSquaredError
from crosscode.models import sae
from crosscode.penalties import AuxK, L1OfNorms
from crosscode.saving import load
from crosscode.training import Trainer, TrainState, Weighted, load_checkpoint, newest_checkpoint


def batches(n: int, size: int = 8) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [Batch.autoencode(torch.randn(size, 4, generator=generator)) for _ in range(n)]


def run(data, num_steps: int, activation=None, **more) -> Trainer:
    coder = sae(4, L, activation or TopK(2))
    options = {"init": [AnthropicTranspose(1.0)], "lr": 1e-2, **more}
    return Trainer(
        model=coder,
        data=data,
        loss=SummedSquaredError(),
        optimizer=torch.optim.Adam(coder.parameters()),
        num_steps=num_steps,
        **options,
    )


def test_penalties_are_trained_and_not_only_logged() -> None:
    """Fault 1: the step's loss is the whole objective, and the auxiliary loss alone moves a dead latent."""
    coder = put(sae(1, 2, TopK(1)), {"encoder.b_enc_L": [5, 1], "decoder.W_dec_LXoDo": [1, 1]})
    gradients: list[list[float]] = []
    trainer = Trainer(
        model=coder,
        data=[Batch.autoencode(f64([[6], [8]]))],
        loss=SummedSquaredError(),
        penalties={"aux_k": Weighted(AuxK(1, dead_after_tokens=5), 0.5)},
        optimizer=torch.optim.Adam(coder.parameters()),
        lr=1e-3,
        num_steps=1,
        gradients=[lambda coder, parameters: gradients.append(coder.encoder.b_enc_L.grad.tolist())],
        state=TrainState(torch.tensor([0, 10])),
    )
    report = trainer.step(trainer.data)
    assert report.terms["reconstruction"].item() == 5
    assert report.terms["aux_k"].item() == 2
    assert report.loss.item() == 5 + 0.5 * 2
    assert report.loss.item() != report.terms["reconstruction"].item()
    assert gradients[0][1] == 0.5 * 2 * ((1 - 1) + (1 - 3)) / 2


def test_latents_count_as_fired_before_they_are_called_dead() -> None:
    """Counters are updated before the penalties look at them: who fires now is not dead."""
    silent = []
    trainer = run(batches(1), 1, penalties={"look": Weighted(lambda trace: look(trace), 1.0)})

    def look(trace):
        silent.append(trace.tokens_since_fired_L.clone())
        assert (trace.tokens_since_fired_L[trace.latents.fired_L()] == 0).all()
        return trace.recon_BXoDo.sum() * 0

    trainer.train()
    assert set(silent[0].tolist()) == {0, 8}


def test_counters_of_silence_count_tokens() -> None:
    """Fault 49: fired latents start again, the others add the batch's tokens; state moves in place."""
    state = TrainState.fresh(3, torch.device("cpu"))
    counters_L = state.tokens_since_fired_L
    state.observe(Latents.from_dense(f64([[1, 0, 0], [0, 0, 0]])))
    state.observe(Latents.from_dense(f64([[0, 2, 0]])))
    assert counters_L.tolist() == [1, 0, 3]
    assert state.tokens == 3


def test_the_end_is_saved(tmp_path) -> None:
    """Fault 38: the last checkpoint holds the trained coder, not the start and not the step before."""
    trainer = run(batches(3), 5, BatchTopK(2), callbacks=[Checkpoint(tmp_path, every=2)])
    start = sae(4, L, BatchTopK(2))
    AnthropicTranspose(1.0)(start, [])
    coder = trainer.train()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "step_000000005"
    saved = load(newest)
    x_BD = batches(1)[0].inputs_BXiDi
    assert torch.equal(saved(x_BD), coder(x_BD))
    assert not torch.equal(saved.decoder.dense(), start.decoder.dense())
    assert saved.activation.threshold.item() == coder.activation.threshold.item() > 0


def test_all_that_a_resume_needs_is_in_the_checkpoint(tmp_path) -> None:
    """Fault 15: moments of the optimizer, counters of silence, place in the data and random state come back alike.

    Each is away from where a fresh run has it, so that a checkpoint without it would be noticed.
    """
    penalties = {"aux_k": Weighted(AuxK(1, dead_after_tokens=5), 0.5)}
    first = run(batches(3), 5, penalties=penalties, callbacks=[Checkpoint(tmp_path)])
    torch.manual_seed(5)
    first.train()
    kept, fresh = first.state_dict(), run(batches(3), 5, penalties=penalties)
    torch.manual_seed(6)
    before = fresh.state_dict()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert before["optimizer"]["state"] == {}
    assert not torch.equal(before["tokens_since_fired_L"], kept["tokens_since_fired_L"])
    assert not torch.equal(before["rng"], kept["rng"])
    assert before["progress"] != kept["progress"]
    assert kept["progress"]["cursor"] == {"epoch": 1, "batch": 2}
    load_checkpoint(fresh, newest)
    resumed = fresh.state_dict()
    assert resumed["progress"] == kept["progress"]
    assert [group["lr"] for group in resumed["optimizer"]["param_groups"]] == [1e-2]
    for name in ("tokens_since_fired_L", "rng"):
        assert torch.equal(resumed[name], kept[name])
    for name, value in kept["model"].items():
        assert torch.equal(resumed["model"][name], value)
    assert len(kept["optimizer"]["state"]) == len(list(first.model.parameters()))
    for i, moments in kept["optimizer"]["state"].items():
        assert moments.keys() == {"step", "exp_avg", "exp_avg_sq"}
        for name, value in moments.items():
            assert torch.equal(resumed["optimizer"]["state"][i][name], value)


def test_data_that_runs_out_starts_again() -> None:
    """Fault 39: three batches serve seven steps, in order, epoch after epoch."""
    data = batches(3)
    seen: list[int] = []
    wanted = [batch.inputs_BXiDi.sum().item() for batch in data]
    watch = lambda trainer, report: seen.append(wanted.index(report.trace.inputs_BXiDi.sum().item()))
    trainer = run(data, 7, callbacks=[watch])
    trainer.train()
    assert seen == [0, 1, 2, 0, 1, 2, 0]
    assert trainer.state.step == 7
    assert trainer.state.cursor == {"epoch": 2, "batch": 1}


def test_measuring_takes_nothing_away_from_training() -> None:
    """Fault 7, as seen from the trainer: init strategies iterate the data; training starts at its first token."""
    data = batches(3)
    first: list[torch.Tensor] = []
    watch = lambda trainer, report: first.append(trainer.model.unscale_outputs(report.trace.inputs_BXiDi))
    run(data, 1, init=[NormalizeActivations(), AnthropicTranspose(1.0)], callbacks=[watch]).train()
    torch.testing.assert_close(first[0], data[0].inputs_BXiDi)


def test_a_shared_scale_is_measured_over_all_batches() -> None:
    """Fault 42: the first batch counts like every other."""
    trainer = run([Batch.autoencode(torch.full((2, 4), 3.0)), Batch.autoencode(torch.full((2, 4), 1.0))], 1)
    NormalizeActivations()(trainer.model, trainer.data)
    assert trainer.model.scale_in_Xi.item() == pytest.approx(0.5)  # sqrt(4) over a mean norm of (6 + 2) / 2


class Movable(Batch):
    """A batch that remembers where it was moved, and is doubled there."""

    def to(self, where: torch.device | str) -> Batch:
        self.inputs_BXiDi.moved_to = where
        return Batch.autoencode(self.inputs_BXiDi * 2)


def test_batches_are_moved_to_the_coder() -> None:
    """Fault 37: every batch, those of a step as well; the trainer reads the moved one and leaves the other be."""
    data = [Movable.autoencode(batch.inputs_BXiDi) for batch in batches(3)]
    read: list[torch.Tensor] = []
    trainer = run(data, 3, callbacks=[lambda trainer, report: read.append(report.trace.inputs_BXiDi)])
    trainer.train()
    for batch, inputs_BD in zip(data, read, strict=True):
        assert batch.inputs_BXiDi.moved_to == trainer.model.device
        assert torch.equal(inputs_BD, 2 * batch.inputs_BXiDi)


class Averaging(torch.optim.SGD):
    """An optimizer that trains at one point and is evaluated at another, as schedule-free ones are."""

    mode = "train"

    def train(self) -> None:
        if self.mode == "eval":
            self._shift(-1.0)
        self.mode = "train"

    def eval(self) -> None:
        if self.mode == "train":
            self._shift(1.0)
        self.mode = "eval"

    @torch.no_grad()
    def _shift(self, by: float) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.add_(by)


def test_averaged_weights_are_the_ones_kept(tmp_path) -> None:
    """Fault 40: an optimizer with `train` and `eval` trains in one and is saved, and handed back, in the other."""
    plain = run(batches(2), 4, ReLU())
    plain.optimizer = torch.optim.SGD(plain.model.parameters())
    averaged = run(batches(2), 4, ReLU(), callbacks=[Checkpoint(tmp_path, every=3)])
    averaged.optimizer = Averaging(averaged.model.parameters())
    for trainer in (plain, averaged):
        trainer.train()
    torch.testing.assert_close(averaged.model.decoder.dense(), plain.model.decoder.dense() + 1)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    torch.testing.assert_close(load(newest).decoder.dense(), averaged.model.decoder.dense())
    resumed = run(batches(2), 4, ReLU())
    resumed.optimizer = Averaging(resumed.model.parameters())
    load_checkpoint(resumed, newest)


def test_a_step_without_warm_up_has_a_learning_rate() -> None:
    """Fault 41: the first step's rate is not 0."""
    reports = []
    run(batches(1), 1, callbacks=[lambda trainer, report: reports.append(report)]).train()
    assert reports[0].lr == 1e-2


def test_weights_are_logged_as_trained_with() -> None:
    """Terms are unweighted, weights beside them, and the loss is their sum."""
    reports = []
    penalties = {"l1": Weighted(L1OfNorms(), lambda step: 0.25 * step)}
    run(batches(2), 3, penalties=penalties, callbacks=[lambda trainer, report: reports.append(report)]).train()
    assert [report.weights["l1"] for report in reports] == [0, 0.25, 0.5]
    for report in reports:
        whole = report.terms["reconstruction"] + report.weights["l1"] * report.terms["l1"]
        torch.testing.assert_close(report.loss, whole)
