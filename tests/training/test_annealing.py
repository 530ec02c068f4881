"""A `k` that changes over a run is saved as it is, and annealed anew only with a word."""

import json

import pytest
import torch

from crosscode import load, save
from crosscode.activations import BatchTopK, GroupMax, SeparateBudgets, TopK
from crosscode.batch import Batch
from crosscode.callbacks import Checkpoint
from crosscode.errors import BadInput, CrosscodeWarning
from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.models import SparseCoder, sae
from crosscode.schedulers import LinearRamp
from crosscode.training import Trainer, load_checkpoint

D, L = 16, 32
DATA = [Batch.autoencode(torch.randn(24, D, generator=torch.Generator().manual_seed(i))) for i in range(4)]


def trainer_of(coder: SparseCoder, **given) -> Trainer:
    optimizer = torch.optim.Adam(coder.parameters())
    return Trainer(
        **{"model": coder, "data": DATA, "loss": SummedSquaredError(), "optimizer": optimizer, "lr": 1e-3}
        | {"num_steps": 12, "init": [AnthropicTranspose(1.0)]}
        | given
    )


def annealed(kind: type):
    return kind(LinearRamp(2, 10, start=12))


ACTIVATIONS = {
    "topk": lambda: annealed(TopK),
    "batch_topk": lambda: annealed(BatchTopK),
    "groupmax": lambda: annealed(GroupMax),
    "budgets": lambda: SeparateBudgets(annealed(TopK), TopK(1), 20),
}


@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_a_checkpoint_in_the_middle_selects_as_training_did(activation, tmp_path) -> None:
    """Loaded as a coder it has the L0 of its step, and resumed it goes on to the bit."""
    shown = {}
    whole = trainer_of(
        sae(D, L, activation()),
        callbacks=[
            lambda trainer, report: shown.setdefault(report.step, float(report.trace.latents.l0_B().float().mean())),
            Checkpoint(tmp_path, every=5, keep=3),
        ],
    )
    whole.train()
    middle = load(tmp_path / "step_000000005")
    resumed = trainer_of(sae(D, L, activation()))
    load_checkpoint(resumed, tmp_path / "step_000000005")
    resumed.train()

    middle_l0 = float(middle.train().activate(middle.scale_inputs(DATA[0].inputs_BXiDi)).l0_B().float().mean())
    assert middle_l0 == pytest.approx(shown[5], abs=0.8)
    assert shown[1] > shown[5] > shown[12]
    ours, its = whole.model.state_dict(), resumed.model.state_dict()
    assert ours.keys() == its.keys()
    assert all(torch.equal(ours[name], its[name]) for name in ours)


def test_a_finished_coder_keeps_its_last_k_and_is_annealed_anew_only_with_a_word(tmp_path) -> None:
    coder = trainer_of(sae(D, L, annealed(TopK))).train()

    loaded = load(save(coder, tmp_path))

    assert loaded.activation.k_now == 2
    assert torch.equal(loaded.encode(DATA[0].inputs_BXiDi).dense(), coder.encode(DATA[0].inputs_BXiDi).dense())
    with pytest.warns(
        CrosscodeWarning, match=r"TopK.k is annealed anew, from 12: this coder ended with 2\. .*TopK\(2\)"
    ):
        trainer_of(loaded, init=[], num_steps=1).train()


def test_a_coder_saved_with_the_former_fields_of_annealing_is_read(tmp_path) -> None:
    """`k_start` and `anneal_steps` beside `k`: it selects as the finished coder did, by the `k` that it ended with."""
    save(sae(D, L, TopK(2)), tmp_path)
    content = json.loads((tmp_path / "coder.json").read_text())
    fields = content["coder"]["fields"]["activation"]["fields"]
    for former in ({"k_start": None, "anneal_steps": 7}, {"k_start": 9, "anneal_steps": 7}):
        fields |= former
        (tmp_path / "coder.json").write_text(json.dumps(content))
        assert load(tmp_path).activation.k == 2


def test_a_schedule_that_passes_the_number_of_latents_is_told_at_its_step() -> None:
    trainer = trainer_of(sae(D, L, TopK(LinearRamp(40, 10, start=4))))

    with pytest.raises(BadInput, match=r"TopK.k at step 8=33 is too large: it must be at most n_latents=32"):
        trainer.train()
    assert trainer.state.step == 8
