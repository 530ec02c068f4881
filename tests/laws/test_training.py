"""Laws of training: resuming, accumulating, and penalties that are switched off."""

import pytest
import torch
from strategies import ACTIVATIONS, SHAPES, L, jumprelu_of, random_batch, random_coder

from crosscode.activations import ReLU
from crosscode.batch import Batch
from crosscode.initialization import AnthropicTranspose, NormalizeActivations
from crosscode.latents import Latents
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseEncoder, SharedDecoder, SparseCoder, Trace
from crosscode.penalties import AuxK, L1OfNorms, PreActivation, TanhSparsity
from crosscode.schedulers import LinearRamp, WarmupStableDecay
from crosscode.training import ClipNorm, Trainer, Weighted, load_checkpoint, newest_checkpoint, save_checkpoint, state

N_BATCHES = 7


def data() -> list[Batch]:
    generator = torch.Generator().manual_seed(3)
    directions = torch.randn(20, 2, 1, 4, generator=generator)
    active = torch.rand(N_BATCHES * 16, 20, generator=generator) * (
        torch.rand(N_BATCHES * 16, 20, generator=generator) < 0.15
    )
    x_NMPD = torch.tensordot(active, directions, dims=1) + 0.1
    return [Batch.autoencode(part) for part in x_NMPD.split(16)]


def trainer(activation: str, num_steps: int = 24) -> Trainer:
    """A diffing run with ramps, decay, clipping and every kind of penalty; weighted selections, float32."""
    act = ACTIVATIONS[activation]()
    coder = SparseCoder(DenseEncoder((2, 1), 4, L), act, SharedDecoder(L, 5, (2, 1), 4))
    penalties = {
        "tanh": Weighted(TanhSparsity(), LinearRamp(0.1, 18)),
        "aux_k": Weighted(AuxK(2, dead_after_tokens=40), 1 / 32),
    }
    jumprelu = jumprelu_of(coder)
    if jumprelu is not None:
        penalties["pre_act"] = Weighted(PreActivation(jumprelu), 1e-2)
    return Trainer(
        model=coder,
        data=data(),
        init=[NormalizeActivations(), AnthropicTranspose(1.0)],
        loss=SummedSquaredError(),
        penalties=penalties,
        optimizer=torch.optim.Adam(coder.parameters()),
        lr=WarmupStableDecay(1e-2, num_steps, num_steps // 5, num_steps // 3),
        num_steps=num_steps,
    )


def trainer_of_shape(shape: str, activation: str, num_steps: int) -> Trainer:
    """Any kind of coder, of random weights, in float32."""
    coder = random_coder(shape, activation).float()
    return Trainer(
        model=coder,
        data=[random_batch(coder, 16, seed) for seed in range(N_BATCHES)],
        init=[NormalizeActivations()],
        loss=SummedSquaredError(),
        penalties={
            "tanh": Weighted(TanhSparsity(), LinearRamp(0.1, 18)),
            "aux_k": Weighted(AuxK(2, dead_after_tokens=40), 1 / 32),
        },
        optimizer=torch.optim.Adam(coder.parameters()),
        lr=WarmupStableDecay(1e-2, num_steps, num_steps // 5, num_steps // 3),
        num_steps=num_steps,
        gradients=[ClipNorm(1.0)],
    )


class StopAt:
    """A callback that ends a run as a crash would, after a checkpoint."""

    def __init__(self, step: int, run) -> None:
        self.step, self.run = step, run

    def __call__(self, of: Trainer, report) -> None:
        if report.step == self.step:
            save_checkpoint(of, self.run)
            raise KeyboardInterrupt


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_resumed_run_is_the_uninterrupted_run(activation: str, tmp_path) -> None:
    """9 steps, a checkpoint, new objects, 6 more: every tensor of the coder is bit-equal to 15 steps."""
    whole = trainer(activation, 15)
    whole.train()
    first = trainer(activation, 15)
    first.callbacks = [StopAt(9, tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = trainer(activation, 15)
    load_checkpoint(second, newest_checkpoint(tmp_path))
    assert second.state.step == 9
    second.train()
    ours, its = whole.model.state_dict(), second.model.state_dict()
    for name in ours:
        assert torch.equal(ours[name], its[name]), name
    assert torch.equal(whole.state.tokens_since_fired_L, second.state.tokens_since_fired_L)
    assert whole.state.tokens == second.state.tokens


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ["relu", "jumprelu", "batch_topk", "per_site_mixed"])
def test_coders_of_every_kind_resume(shape: str, activation: str, tmp_path) -> None:
    """Skips, masks, tied, causal and ragged decoders: 9 steps, a checkpoint, 6 more are 15, bit for bit."""
    whole = trainer_of_shape(shape, activation, 15)
    start = {name: tensor.clone() for name, tensor in whole.model.state_dict().items()}
    whole.train()
    first = trainer_of_shape(shape, activation, 15)
    first.callbacks = [StopAt(9, tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = trainer_of_shape(shape, activation, 15)
    load_checkpoint(second, newest_checkpoint(tmp_path))
    second.train()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name
    for name, parameter in whole.model.named_parameters():
        assert not torch.equal(parameter, start[name]), f"{name} is not trained"


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "per_site_jumprelu"])
def test_codes_turn_sparse_and_a_resumed_run_turns_with_them(
    activation: str, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form of the codes changes under way, at the same step with and without a resume, and no tensor differs."""
    monkeypatch.setitem(state.FASTER, "cpu", (0.42, 0.48))
    whole, forms = trainer(activation), []
    whole.callbacks = [lambda of, report: forms.append(report.trace.latents.is_sparse)]
    whole.train()
    assert not forms[0]
    assert forms.count(True) > 3
    turn = forms.index(True)
    first = trainer(activation)
    first.callbacks = [StopAt(turn, tmp_path)]
    with pytest.raises(KeyboardInterrupt):
        first.train()
    second = trainer(activation)
    load_checkpoint(second, newest_checkpoint(tmp_path))
    assert second.state.sparse
    second.train()
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


@pytest.mark.parametrize("activation", ["relu", "jumprelu"])
def test_dense_and_sparse_codes_train_the_same_coder(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run in either form ends at the same weights, to rounding."""
    coders = []
    for always in ((-1.0, -1.0), (2.0, 2.0)):
        monkeypatch.setitem(state.FASTER, "cpu", always)
        run = trainer(activation)
        run.model.double()
        run.data = [Batch.autoencode(batch.inputs_BXiDi.double()) for batch in run.data]
        coders.append(run.train())
    for dense, sparse in zip(*(coder.state_dict().values() for coder in coders)):
        torch.testing.assert_close(dense, sparse, rtol=1e-6, atol=1e-8)


def test_the_form_of_codes_has_inertia() -> None:
    """Between the two densities it stays what it was."""
    below, above = state.FASTER["cpu"]
    between, now = (below + above) / 2, state.TrainState.fresh(L, torch.device("cpu"))
    chosen = []
    for density in (1.0, between, below / 2, between, 1.0, between):
        kept_BL = torch.linspace(0, 1, 6 * L).reshape(6, L) <= density
        now.choose_codes(ReLU(), Latents.from_dense(kept_BL.float(), kept_BL.float()))
        assert abs(now.density - density) < 1 / 30
        chosen.append(now.sparse)
    assert chosen == [False, False, True, True, False, False]


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_accumulating_micro_batches_equals_one_large_batch(activation: str) -> None:
    """Per-token terms: parts of unequal size give the gradient of the whole."""
    one, many = trainer(activation, 1), trainer(activation, 1)
    captured: list[list[torch.Tensor]] = []

    def capture(coder: SparseCoder, parameters: list) -> None:
        captured.append([p.grad.clone() for p in parameters])

    x_NMPD = torch.cat([batch.inputs_BXiDi for batch in data()])
    for run, parts in ((one, [112]), (many, [10, 50, 52])):
        run.gradients = [capture]
        run.penalties = {name: Weighted(w.penalty, 0.3) for name, w in run.penalties.items() if name != "aux_k"}
        run.model.double()
        run.initialize()
        run.step([Batch.autoencode(part) for part in x_NMPD.double().split(parts)])
    for whole, summed in zip(*captured):
        torch.testing.assert_close(whole, summed, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("order", [("off", "on"), ("on", "off")])
def test_a_penalty_of_weight_zero_changes_no_gradient(order: tuple[str, str]) -> None:
    """It is computed for its curve; what it shares with the others keeps its graph, in any order."""
    gradients = []
    for names in (("on",), order):
        run = trainer("jumprelu", 1)
        jumprelu = jumprelu_of(run.model)
        assert jumprelu is not None
        penalties = {"on": Weighted(PreActivation(jumprelu), 1.0), "off": Weighted(PreActivation(jumprelu, "l2"), 0.0)}
        run.penalties = {name: penalties[name] for name in names}
        run.gradients = [lambda coder, parameters: gradients.append([p.grad.clone() for p in parameters])]
        run.initialize()
        run.step(data()[:1])
    for alone, beside in zip(*gradients):
        assert torch.equal(alone, beside)


def test_clipping_counts_a_shared_gradient_once() -> None:
    """The reported norm is that of the stored parameters' gradients, not of M copies."""
    run = trainer("relu", 1)
    run.initialize()
    trace = Trace.of(run.model, data()[0])
    SummedSquaredError()(trace).backward()
    parameters = [p for p in run.model.parameters() if p.grad is not None]
    wanted = torch.cat([p.grad.flatten() for p in parameters]).norm()
    norm = ClipNorm(1e-3)(run.model, parameters)
    torch.testing.assert_close(norm, wanted)
    torch.testing.assert_close(torch.cat([p.grad.flatten() for p in parameters]).norm(), torch.tensor(1e-3))


def test_the_global_random_state_is_left_alone() -> None:
    """Initialising and training draw from generators of their own."""
    torch.manual_seed(11)
    before = torch.get_rng_state()
    run = trainer("batch_topk", 2)
    run.penalties = {"l1": Weighted(L1OfNorms(), 0.1)}
    run.train()
    assert torch.equal(torch.get_rng_state(), before)
