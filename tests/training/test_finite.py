"""Numbers gone wrong stop a run before its step, are named, and are never saved."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from crosscode.activations import BatchTopK, JumpReLU, TopK
from crosscode.batch import Batch
from crosscode.callbacks import Checkpoint
from crosscode.evaluation import latent_scaling, measure_coder
from crosscode.finite import all_finite
from crosscode.initialization import AnthropicTranspose, DecoderBias, NormalizeActivations
from crosscode.initialization.data import Remembered
from crosscode.losses import SummedSquaredError
from crosscode.metrics import FVU
from crosscode.models import SparseCoder, acausal_crosscoder, transcoder
from crosscode.training import NumericalError, Snapshot, Trainer, calibrate, newest_checkpoint, trainer
from crosscode.training.finite import check_batch

BAD = [float("nan"), float("inf"), float("-inf")]


class Sites(list[Batch]):
    """Batches that know what their sites are called."""

    model_names = ("base", "tuned")
    hookpoints = ("blocks.1", "blocks.2", "blocks.3")


def a_batch(*dims: int) -> Batch:
    return Batch.autoencode(torch.randn(16, *dims, 4, generator=torch.Generator().manual_seed(0)))


def a_trainer(activation: object = None, data: object = None, **given: object) -> Trainer:
    chosen = TopK(2) if activation is None else activation
    coder = acausal_crosscoder(n_models=2, n_hookpoints=3, d_model=4, n_latents=8, activation=chosen)
    defaults = {"init": [AnthropicTranspose(1.0)], "loss": SummedSquaredError(), "lr": 1e-2, "num_steps": 8}
    optimizer = torch.optim.Adam(coder.parameters())
    return Trainer(model=coder, data=data or [a_batch(2, 3)], optimizer=optimizer, **{**defaults, **given})


def weights(of: Trainer) -> list[Tensor]:
    return [value.clone() for value in of.model.state_dict().values()]


@pytest.mark.parametrize("value", BAD)
def test_an_activation_is_named_by_model_and_hookpoint(value: float) -> None:
    """Where the data knows them; and it is found though no loss would show it: a JumpReLU does not fire for NaN."""
    batch = a_batch(2, 3)
    batch.inputs_BXiDi[5:8, 1, 2, 0] = value
    with pytest.raises(NumericalError, match=r"step 7: the data's inputs at tuned blocks\.3 are not finite in 3 of 16"):
        check_batch(7, batch, Sites())
    with pytest.raises(NumericalError, match=r"inputs at site \(1, 2\) are not finite"):
        check_batch(7, batch, [])
    with pytest.raises(NumericalError, match=r"step 0: the data's inputs at tuned blocks\.3"):
        a_trainer(JumpReLU(8, threshold=0.1), Sites([batch])).train()


@pytest.mark.parametrize("value", BAD)
def test_what_is_measured_on_is_looked_at_too(value: float) -> None:
    """Scales, thresholds and figures: batches of one's own are named by site; none gives NaN in silence."""
    batch = a_batch(2, 3)
    batch.inputs_BXiDi[5:8, 1, 2, 0] = value
    data = Sites([a_batch(2, 3), batch])
    coder = a_trainer(BatchTopK(2)).model
    scaling = acausal_crosscoder(n_models=2, n_hookpoints=3, d_model=4, n_latents=8, activation=TopK(2))
    for measured in (
        lambda: NormalizeActivations()(coder, Remembered(data)),
        lambda: DecoderBias()(coder, data),
        lambda: calibrate(coder, data),
        lambda: measure_coder(scaling, data, [FVU()]),
        lambda: latent_scaling(scaling, data),
    ):
        with pytest.raises(NumericalError, match=r"inputs at tuned blocks\.3 are not finite in 3 of 16 tokens"):
            measured()


class OneRead(Sites):
    """One hookpoint is read, which has no axis, and two are written."""

    model_names = ("base",)
    reads = "blocks.1"
    writes = ("blocks.2", "blocks.3")


@pytest.mark.parametrize("bad", ["inputs", "targets"])
def test_a_single_hookpoint_is_named_whole(bad: str) -> None:
    """Not by its first letter; and what is written has names of its own."""
    x_BD, y_BPD = a_batch().inputs_BXiDi.clone(), a_batch(2).inputs_BXiDi.clone()
    (x_BD if bad == "inputs" else y_BPD[:, 1])[3, 0] = float("nan")
    place = "base blocks.1" if bad == "inputs" else "base blocks.3"
    with pytest.raises(NumericalError, match=f"step 2: the data's {bad} at {place} are not finite in 1 of 16 tokens"):
        check_batch(2, Batch(x_BD, y_BPD), OneRead())


def test_a_target_is_told_from_an_input() -> None:
    """A transcoder reads one site and writes another."""
    x_BD, y_BD = a_batch().inputs_BXiDi, a_batch().inputs_BXiDi.clone()
    y_BD[0, 0] = float("nan")
    coder = transcoder(4, 8, TopK(2))
    run = Trainer(
        model=coder,
        data=[Batch(x_BD, y_BD)],
        init=[AnthropicTranspose(1.0)],
        loss=SummedSquaredError(),
        optimizer=torch.optim.Adam(coder.parameters()),
        lr=1e-2,
        num_steps=2,
    )
    with pytest.raises(NumericalError, match="the data's targets are not finite in 1 of 16"):
        run.train()


def test_initialising_from_numbers_that_are_none_is_refused() -> None:
    """Neither a scale nor a bias measured on NaN is trained with, even if the first batch is sound."""
    bad = a_batch(2, 3)
    bad.inputs_BXiDi[3, 0, 0, 0] = float("nan")
    for strategy in (NormalizeActivations(), DecoderBias("mean")):
        with pytest.raises(NumericalError, match=r"inputs at site \(0, 0\) are not finite in 1 of 16 tokens"):
            a_trainer(data=[a_batch(2, 3), bad], init=[strategy]).train()

    def spoil(coder: SparseCoder, data: object) -> None:
        coder.decoder.b_dec_XoDo.fill_(float("nan"))

    with pytest.raises(NumericalError, match=r"step 0: decoder\.b_dec_XoDo is not finite; after initialising"):
        a_trainer(init=[torch.no_grad()(spoil)]).train()


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", ["encoder.W_enc_XiDiL", "decoder.W_dec_LXoDo", "decoder.b_dec_XoDo"])
def test_a_weight_is_named(name: str, value: float, tmp_path: Path) -> None:
    """Poisoned after step 2, it stops step 3 or the next look at all weights, and no checkpoint holds it."""

    def poison(of: Trainer, report: object) -> None:
        if of.state.step == 2:
            with torch.no_grad():
                of.model.get_parameter(name).flatten()[0] = value

    run = a_trainer(callbacks=[poison, Checkpoint(tmp_path, every=1)])
    assert name in dict(run.model.named_parameters())
    with pytest.raises(NumericalError, match=name.rpartition(".")[2]):
        run.train()
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.name == "step_000000001"


def test_a_weight_that_no_loss_shows_is_found_when_all_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """A JumpReLU whose pre-activation is NaN never fires: the latent would be lost without a word."""
    monkeypatch.setattr(trainer, "WEIGHTS_CHECKED_EVERY", 3)

    def poison(of: Trainer, report: object) -> None:
        if of.state.step == 1:
            with torch.no_grad():
                of.model.get_parameter("encoder.b_enc_L")[0] = float("nan")

    with pytest.raises(NumericalError, match=r"step [123]: .*b_enc_L"):
        a_trainer(JumpReLU(8, threshold=0.1), callbacks=[poison]).train()


def test_a_moment_that_is_not_finite_is_not_saved() -> None:
    """Weights alone are not the state."""
    run = a_trainer(num_steps=2)
    run.train()
    next(iter(run.optimizer.state.values()))["exp_avg"].flatten()[0] = float("inf")
    with pytest.raises(NumericalError, match=r"optimizer\.safetensors would hold state\.0\.exp_avg"):
        Snapshot.of([run])


def test_a_sum_that_overflows_is_not_taken_for_infinity() -> None:
    """Large numbers are numbers."""
    assert all_finite([torch.full((10,), 3e38), torch.tensor([1], dtype=torch.int64)])
    assert all_finite([])
    assert not all_finite([torch.full((10,), 3e38), torch.tensor([float("-inf"), float("inf")])])
    assert all_finite([torch.full((10,), 6e4, dtype=torch.float16)])
