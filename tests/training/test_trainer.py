"""What a trainer promises: it stops before nonsense is stepped, reads data honestly, and ends with a usable coder."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from crosscode.activations import BatchTopK, JumpReLU, PerSite, ReLU, SeparateBudgets, TopK
from crosscode.batch import Batch
from crosscode.callbacks import Checkpoint
from crosscode.data import Dataloader, Harvester, TokenSequences
from crosscode.errors import BadInput
from crosscode.initialization import AnthropicTranspose, CLTUniform, DecoderBias, JanUpdate, NormalizeActivations
from crosscode.losses import SummedSquaredError
from crosscode.metrics import FVU, L0, measure
from crosscode.models import (
    DenseDecoder,
    DenseEncoder,
    SharedDecoder,
    SparseCoder,
    Trace,
    compound_cross_layer_transcoder,
    sae,
)
from crosscode.penalties import AuxK, ExpectedL0, L1OfNorms, PreActivation
from crosscode.training import (
    ClipNorm,
    NonNegativeThresholds,
    NumericalError,
    RemoveParallelGradient,
    StepReport,
    Trainer,
    UnitNormDecoder,
    Weighted,
    calibrate,
    newest_checkpoint,
    train_together,
)

D, L = 8, 24


def batches(n: int = 6, size: int = 32, seed: int = 0) -> list[Batch]:
    """Sparse combinations of more directions than there are coordinates."""
    generator = torch.Generator().manual_seed(seed)
    directions_FD = torch.randn(16, D, generator=generator)
    active_NF = torch.rand(n * size, 16, generator=generator)
    active_NF = active_NF * (torch.rand(n * size, 16, generator=generator) < 0.15)
    return [Batch.autoencode(x_BD) for x_BD in (active_NF @ directions_FD + 0.1).split(size)]


def a_trainer(activation=None, data=None, **given) -> Trainer:
    coder = sae(D, L, BatchTopK(3) if activation is None else activation)
    defaults = {
        "model": coder,
        "data": batches() if data is None else data,
        "init": [NormalizeActivations(), AnthropicTranspose(1.0)],
        "loss": SummedSquaredError(),
        "optimizer": torch.optim.Adam(coder.parameters()),
        "lr": 1e-2,
        "num_steps": 30,
    }
    return Trainer(**{**defaults, **given})


def weights(coder: SparseCoder) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in coder.state_dict().items()}


def same(one: SparseCoder, other: SparseCoder) -> bool:
    ours, its = one.state_dict(), other.state_dict()
    return ours.keys() == its.keys() and all(torch.equal(ours[name], its[name]) for name in ours)


class Reports:
    """A callback that keeps what it is shown."""

    def __init__(self) -> None:
        self.seen: list[StepReport] = []

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        self.seen.append(report)


# --- numbers that are none -------------------------------------------------------------------------------------------


def test_nan_in_the_data_stops_before_the_step() -> None:
    """The data is named, and the weights are those of the step before."""
    data = batches()
    data[3].inputs_BXiDi[5, 2] = float("nan")
    trainer = a_trainer(ReLU(), data, init=[AnthropicTranspose(1.0)])
    with pytest.raises(NumericalError, match="step 3: the data's inputs are not finite in 1 of 32 tokens"):
        trainer.train()
    assert trainer.state.step == 3
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_penalty_that_is_not_finite_is_named(value: float) -> None:
    """Its own name, not that of the reconstruction."""

    def broken(trace: Trace) -> Float[Tensor, ""]:
        return trace.latents_BL.sum() * value

    trainer = a_trainer(ReLU(), penalties={"l1": Weighted(L1OfNorms(), 0.1), "broken": Weighted(broken, 0.1)})
    trainer.initialize()
    before = weights(trainer.model)
    with pytest.raises(NumericalError, match="step 0: broken is not finite"):
        trainer.train()
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


@pytest.mark.parametrize("gradients", [(ClipNorm(1.0),), (), (RemoveParallelGradient(), ClipNorm(1.0))])
def test_a_gradient_that_is_not_finite_is_named(gradients) -> None:
    """A finite loss with a NaN gradient: the parameter is named, with or without clipping, and only that one."""

    def poisoned(trace: Trace) -> Float[Tensor, ""]:
        # sqrt has an infinite slope at 0, which times 0 is NaN.
        return (trace.model.decoder.b_dec_XoDo * 0).sqrt().sum()

    trainer = a_trainer(TopK(3, weighted=False), penalties={"poisoned": Weighted(poisoned, 1.0)}, gradients=gradients)
    trainer.initialize()
    before = weights(trainer.model)
    with pytest.raises(NumericalError, match=r"the gradient of decoder\.b_dec_XoDo is not finite"):
        trainer.step(batches()[:1])
    assert all(torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


# --- data ------------------------------------------------------------------------------------------------------------


def test_a_one_shot_iterator_is_refused() -> None:
    """A generator would be used up by the first init strategy."""
    for data in (iter(batches()), (batch for batch in batches())):
        with pytest.raises(BadInput, match="re-iterable"):
            a_trainer(data=data)


class Counted:
    """Data that counts how often each batch was handed out, and can say where it is."""

    def __init__(self, n_epochs: int | None = None) -> None:
        self.batches, self.n_epochs = batches(), n_epochs
        self.handed_out: list[int] = []

    def __iter__(self) -> Iterator[Batch]:
        return self._from(0)

    def _from(self, start: int) -> Iterator[Batch]:
        for i, batch in enumerate(self.batches):
            if i >= start:
                self.handed_out.append(i)
                yield batch


def test_initialising_takes_nothing_away_from_training() -> None:
    """Every strategy, and then training, starts at the first batch; what several strategies measure is read once."""
    data = Counted()
    first: list[Batch] = []

    def strategy(coder: SparseCoder, data: object) -> None:
        first.append(next(iter(data)))

    trainer = a_trainer(
        data=data, init=[strategy, NormalizeActivations(n_tokens=40), strategy, AnthropicTranspose()], num_steps=3
    )
    reports = Reports()
    trainer.callbacks = [reports]
    trainer.train()
    assert [torch.equal(batch.inputs_BXiDi, data.batches[0].inputs_BXiDi) for batch in first] == [True, True]
    for batch, report in zip(data.batches[:3], reports.seen, strict=True):
        assert torch.equal(trainer.model.scale_inputs(batch.inputs_BXiDi), report.trace.inputs_BXiDi)
    assert data.handed_out[:5] == [0, 1, 0, 1, 2]


def test_plain_data_starts_its_next_epoch() -> None:
    """Ten steps over three batches read them 1 2 3 1 2 3 1 2 3 1, and the cursor says so."""
    data = Counted()
    data.batches = data.batches[:3]
    trainer = a_trainer(ReLU(), data, init=[AnthropicTranspose(1.0)], num_steps=10)
    trainer.train()
    assert data.handed_out == [0, 1, 2] * 3 + [0]
    assert trainer.state.cursor == {"epoch": 3, "batch": 1}


class Words:
    """A language model of a few lines."""

    name, identity, bos_id, eos_id, context_length, n_layers = "words", "words@1", 0, 1, None, 1
    vocabulary = {"<bos>": 0, "<eos>": 1} | {f"w{i}": i + 2 for i in range(50)}
    special_ids = frozenset({0, 1})
    hookpoints = ("a",)

    def __init__(self) -> None:
        self.embedding_VD = torch.randn(52, D, generator=torch.Generator().manual_seed(0))
        self.tokenizer = self

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[self.vocabulary[word] for word in text.split()] for text in texts]}

    def width(self, hookpoint: str) -> int:
        return D

    def harvest(self, tokens_HS: Tensor, hookpoints: tuple[str, ...]) -> Tensor:
        return self.embedding_VD[tokens_HS][:, :, None]


def text_to_batches(epochs: int | None) -> Dataloader:
    texts = [" ".join(f"w{(i * j) % 50}" for j in range(1, 20)) for i in range(1, 60)]
    sequences = TokenSequences(texts, Words(), sequence_length=16, split="all")
    return Dataloader(sequences, Harvester(Words(), "a"), 64, shuffle_buffer=256, squeeze=True, epochs=epochs)


def test_data_that_ends_ends_training() -> None:
    """One epoch of a data loader is fewer steps than asked for: training ends cleanly, its last, short batch used."""
    data = text_to_batches(epochs=1)
    n_tokens = [len(batch) for batch in data]
    trainer = a_trainer(data=data, num_steps=1000)
    trainer.train()
    assert trainer.state.step == len(n_tokens) < 1000
    assert trainer.state.tokens == sum(n_tokens)
    assert n_tokens[-1] < 64
    assert not trainer.model.training


def test_accumulation_does_not_lose_the_rest_of_the_data() -> None:
    """Where the micro-batches are no multiple of `accumulate`, the last step has fewer."""
    data = text_to_batches(epochs=1)
    n_tokens = [len(batch) for batch in data]
    n_tokens = n_tokens if len(n_tokens) % 2 else n_tokens[:-1]
    trainer = a_trainer(data=data, num_steps=1000, accumulate=4)
    trainer.train()
    assert trainer.state.tokens == sum(map(len, data))


def test_measuring_stops_at_the_end_of_the_text() -> None:
    """Data that starts over for ever is measured once: nearly the scale of one epoch (its last batch runs over)."""
    scales = []
    for epochs in (1, None):
        trainer = a_trainer(data=text_to_batches(epochs), init=[NormalizeActivations(10_000_000)])
        trainer.initialize()
        scales.append(float(trainer.model.scale_in_Xi))
    assert scales[1] == pytest.approx(scales[0], rel=0.02)


def test_no_data_is_an_error() -> None:
    """Nothing to train on is said, not looped over for ever."""
    with pytest.raises(BadInput, match="data holds no batch"):
        a_trainer(data=[], init=[AnthropicTranspose(1.0)]).train()


@pytest.mark.parametrize("cut", range(1, 4))
def test_a_data_loader_goes_on_where_it_was(cut: int) -> None:
    """Trained through the shuffled pipeline: the second half from a saved state equals the uninterrupted run."""
    whole = a_trainer(data=text_to_batches(None), num_steps=2 * cut + 3)
    whole.train()
    first = a_trainer(data=text_to_batches(None), num_steps=2 * cut + 3)
    first.initialize()
    for batch in itertools.islice(first.batches(), cut):
        first.step([batch])
    second = a_trainer(data=text_to_batches(None), num_steps=2 * cut + 3)
    second.load_state_dict(first.state_dict())
    second.train()
    assert same(whole.model, second.model)


# --- wiring ----------------------------------------------------------------------------------------------------------


def test_a_penalty_that_holds_another_coders_activation_is_refused() -> None:
    """Its thresholds would never be trained; the penalty is named. The coder's own, even nested, is accepted."""
    for penalty in (PreActivation(JumpReLU(L)), ExpectedL0(JumpReLU(L))):
        with pytest.raises(BadInput, match="'foreign' holds a JumpReLU that is no part of the model"):
            a_trainer(JumpReLU(L), penalties={"foreign": Weighted(penalty, 1.0)})
    own = JumpReLU(L - 4)
    penalty = functools.partial(lambda trace, jumprelu: jumprelu.threshold_L.sum(), jumprelu=own)
    a_trainer(SeparateBudgets(JumpReLU(4), own, 4), penalties={"own": Weighted(penalty, 1.0)})


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    """Some of the model's parameters would never move."""
    coder = sae(D, L, ReLU())
    with pytest.raises(BadInput, match="optimizer does not hold all parameters"):
        a_trainer(model=coder, optimizer=torch.optim.Adam(sae(D, L, ReLU()).parameters()))
    with pytest.raises(BadInput, match="optimizer does not hold all parameters"):
        a_trainer(model=coder, optimizer=torch.optim.Adam(coder.encoder.parameters()))


def test_parameter_groups_may_learn_at_multiples_of_the_rate() -> None:
    """`lr_multiplier` scales the scheduled rate of its group."""
    coder = sae(D, L, ReLU())
    groups = [{"params": coder.encoder.parameters(), "lr_multiplier": 3.0}, {"params": coder.decoder.parameters()}]
    trainer = a_trainer(model=coder, optimizer=torch.optim.SGD(groups, lr=1.0), lr=lambda step: 0.1 * (step + 1))
    trainer.initialize()
    for step in range(2):
        report = trainer.step(batches()[:1])
        assert report.lr == pytest.approx(0.1 * (step + 1))
        assert [group["lr"] for group in trainer.optimizer.param_groups] == pytest.approx([0.3 * (step + 1), report.lr])


def test_a_tied_gradient_counts_once_in_clipping() -> None:
    """V-FEB: the shared decoder's gradient is 4 and so is the norm, not 5.657 as of two copies."""
    coder = SparseCoder(DenseEncoder((2, 1), 1, 2), ReLU(), SharedDecoder(2, 1, (2, 1), 1)).double()
    shared = coder.decoder.W_shared_LsPD
    shared.grad = torch.full_like(shared, 4.0)
    assert float(ClipNorm(1.0)(coder, [shared])) == 4.0
    assert float(shared.grad) == pytest.approx(1.0, abs=1e-6)


# --- several coders --------------------------------------------------------------------------------------------------


def test_training_together_is_training_alone() -> None:
    """Each coder, of its own scheme and size, is bit-equal to its own run, though the data is read once."""
    activations = (lambda: BatchTopK(3), lambda: TopK(2), ReLU, lambda: JumpReLU(24, threshold=0.1))
    sizes = (L, 2 * L, L // 2, 24)

    def trainers(data: object) -> list[Trainer]:
        torch.manual_seed(0)
        coders = [sae(D, size, make()) for size, make in zip(sizes, activations, strict=True)]
        penalties = (
            {},
            {"aux": Weighted(AuxK(4, 50), 1 / 32)},
            {"l1": Weighted(L1OfNorms(), 0.1)},
            {"l0": Weighted(ExpectedL0(coders[3].activation), 1e-2)},
        )
        return [
            a_trainer(data=data, model=coder, penalties=terms, optimizer=torch.optim.Adam(coder.parameters()))
            for coder, terms in zip(coders, penalties, strict=True)
        ]

    alone = [trainer.train() for trainer in trainers(batches())]
    together = train_together(trainers(batches()))
    for one, other in zip(alone, together, strict=True):
        assert same(one, other)
    shared = text_to_batches(None)
    apart = [trainer.train() for trainer in trainers(text_to_batches(None))]
    for one, other in zip(apart, train_together(trainers(shared)), strict=True):
        assert same(one, other)


def test_trainers_that_would_read_different_batches_do_not_train_together() -> None:
    """Other data, other lengths or other places are refused, by name."""
    data = batches()
    with pytest.raises(BadInput, match="share one data object"):
        train_together([a_trainer(data=data), a_trainer(data=batches())])
    with pytest.raises(BadInput, match="num_steps: 30 and 10"):
        train_together([a_trainer(data=data), a_trainer(data=data, num_steps=10)])
    ahead = a_trainer(data=data)
    ahead.initialize()
    ahead.step(data[:1])
    with pytest.raises(BadInput, match="different places"):
        train_together([a_trainer(data=data), ahead])
    with pytest.raises(BadInput, match="empty"):
        train_together([])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None])
@pytest.mark.parametrize("what", ["lr", "weight"])
def test_a_schedule_that_gives_no_number_stops_before_the_step(what: str, value: Any) -> None:
    """Also at the last step, after which weights would be handed back as NaN."""
    schedule = lambda step: value if step == 3 else 1e-3
    penalties = {"l1": Weighted(L1OfNorms(), schedule if what == "weight" else 1e-3)}
    trainer = a_trainer(TopK(3), penalties=penalties, num_steps=4)
    if what == "lr":
        trainer.lr = schedule
    with pytest.raises(NumericalError, match=f"step 3: .*{'lr' if what == 'lr' else 'l1'}.* is {value}"):
        trainer.train()
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


def test_weights_that_the_last_step_spoiled_are_not_handed_back() -> None:
    """Nothing is computed with them any more: they are looked at all the same."""
    trainer = a_trainer(TopK(3), num_steps=3)

    def spoil(coder: SparseCoder) -> None:
        if trainer.state.step == 2:
            coder.encoder.b_enc_L[0] = float("nan")

    trainer.constraints = [torch.no_grad()(spoil)]
    with pytest.raises(NumericalError, match=r"encoder\.b_enc_L is not finite; it was made by the last steps"):
        trainer.train()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_activations_of_any_precision_are_read_in_the_coders(dtype: torch.dtype) -> None:
    """As they come from a model in half precision, or from numpy in double."""
    coder = a_trainer(TopK(3), num_steps=2).train()
    x_BXD = batches()[0].inputs_BXiDi
    torch.testing.assert_close(coder(x_BXD.to(dtype)), coder(x_BXD.to(dtype).float()))


def test_an_empty_micro_batch_is_nothing() -> None:
    """Beside a full one, first or last; its mean would be 0 / 0."""
    ends = []
    for order in ((0, 1), (1, 0), (1,)):
        trainer = a_trainer(TopK(3))
        trainer.initialize()
        full = batches()[0]
        empty = Batch.autoencode(full.inputs_BXiDi[:0])
        trainer.step([(empty, full)[i] for i in order])
        ends.append(trainer.model.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name])
        assert torch.equal(value, ends[2][name])


# --- precision, constraints, thresholds ------------------------------------------------------------------------------


def test_mixed_precision_keeps_masters_and_thresholds_in_float32() -> None:
    """Products in bfloat16, everything stored in float32; the run ends near the float32 one."""
    ends = {}
    for precision in ("fp32", "bf16"):
        jumprelu = JumpReLU(L, threshold=0.5)
        trainer = a_trainer(
            jumprelu, penalties={"pre": Weighted(PreActivation(jumprelu), 1e-3)}, precision=precision, num_steps=60
        )
        coder = trainer.train()
        assert {p.dtype for p in coder.parameters()} == {torch.float32}
        assert {v.dtype for s in trainer.optimizer.state.values() for v in s.values()} == {torch.float32}
        with torch.no_grad():
            ends[precision] = measure([FVU(), L0()], [Trace.of(coder, batch) for batch in batches()])
    assert ends["fp32"]["fvu/pooled"] < 0.2
    assert ends["bf16"]["fvu/pooled"] == pytest.approx(ends["fp32"]["fvu/pooled"], rel=0.25, abs=0.01)
    assert ends["bf16"]["l0/mean"] == pytest.approx(ends["fp32"]["l0/mean"], rel=0.1)


@pytest.mark.parametrize("activation", [BatchTopK, TopK, lambda k: ReLU()], ids=["batch_topk", "topk", "relu"])
def test_every_activation_trains_in_mixed_precision(activation) -> None:
    """Sparse kernels included."""
    trainer = a_trainer(activation(3), precision="bf16", penalties={"aux": Weighted(AuxK(4, 50), 1 / 32)})
    coder = trainer.train()
    with torch.no_grad():
        assert measure([FVU()], [Trace.of(coder, batch) for batch in batches()])["fvu/pooled"] < 0.5


def test_sums_are_not_taken_in_half_precision() -> None:
    """513 latents are not 512: counts, L1 and what a causal decoder adds up over layers keep float32."""
    jumprelu = JumpReLU(513, threshold=0.5, bandwidth=2.0)
    coder = sae(4, 513, jumprelu)
    with torch.no_grad():
        coder.encoder.b_enc_L.fill_(1.0)
        coder.decoder.W_dec_LXoDo.fill_(0.5)
    batch = Batch.autoencode(torch.zeros(3, 4))
    for sparse in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            trace = Trace.of(coder, batch, sparse=sparse)
            assert ExpectedL0(jumprelu)(trace).item() == 513
            assert L1OfNorms()(trace).item() == 513
    clt = compound_cross_layer_transcoder(64, 26, 32, PerSite([ReLU() for _ in range(26)]))
    CLTUniform(32)(clt, [])
    x_BPD = torch.randn(16, 26, 64)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        latents = clt.activate(x_BPD)
        recon_BPD = clt.decoder.linear(latents)
        one_product_BPD = latents @ clt.decoder.dense().flatten(1)
    exact_BPD = latents.dense().double() @ clt.decoder.dense().double().flatten(1)
    off = [(found.flatten(1) - exact_BPD)[:, -64:].norm() for found in (recon_BPD, one_product_BPD)]
    assert off[0] < 1.6 * off[1]


def test_decoder_vectors_stay_at_norm_one() -> None:
    """The constraint holds after every step, and the gradient handed to Adam has no part along a vector."""
    norms: list[Tensor] = []
    along: list[Tensor] = []

    def watch(coder: SparseCoder, parameters: list) -> None:
        W_LD = coder.decoder.W_dec_LXoDo
        along.append((W_LD.grad * W_LD).sum(-1).abs().max())

    trainer = a_trainer(
        TopK(3, weighted=False),
        gradients=[RemoveParallelGradient(), watch, ClipNorm(1.0)],
        constraints=[UnitNormDecoder()],
        callbacks=[lambda trainer, report: norms.append(trainer.model.decoder.norms_LXo().detach())],
        num_steps=10,
    )
    trainer.train()
    assert len(norms) == 10
    for norm_L in norms:
        torch.testing.assert_close(norm_L, torch.ones(L))
    assert max(along) < 1e-5


def test_unit_norms_are_refused_where_norms_weigh() -> None:
    """A weighted ranking or a tied decoder gives the norms a meaning."""
    for coder in (
        sae(D, L, TopK(3)),
        SparseCoder(DenseEncoder((2, 1), D, L), ReLU(), SharedDecoder(L, 3, (2, 1), D)),
    ):
        with pytest.raises(BadInput, match="UnitNormDecoder"):
            UnitNormDecoder()(coder)


def test_raw_thresholds_never_fall_below_zero() -> None:
    """The constraint clamps what is stored, so that the threshold can rise again at once."""
    jumprelu = JumpReLU(L, parametrisation="raw")
    with torch.no_grad():
        jumprelu.stored_threshold_L.fill_(-0.5)
    NonNegativeThresholds(jumprelu)(sae(D, L, jumprelu))
    assert torch.equal(jumprelu.stored_threshold_L, torch.zeros(L))


@pytest.mark.parametrize("k", [1, 3, 7])
def test_calibration_gives_a_mean_of_k_latents(k: int) -> None:
    """On the very tokens it saw, the mean L0 in eval mode is k to within one latent on one token."""
    data = batches()
    coder = a_trainer(BatchTopK(k), data).train()
    calibrate(coder, data)
    n_tokens = sum(map(len, data))
    n_fired = sum(int(coder.encode(batch.inputs_BXiDi).l0_B().sum()) for batch in data)
    assert abs(n_fired - k * n_tokens) <= 1


def test_training_ends_calibrated_on_held_out_data() -> None:
    """Thresholds come from `held_out` where there is one."""
    held_out = batches(seed=7)
    coder = a_trainer(BatchTopK(3), held_out=held_out).train()
    assert not coder.training
    fired = [float(coder.encode(batch.inputs_BXiDi).l0_B().double().mean()) for batch in held_out]
    assert sum(fired) / len(fired) == pytest.approx(3, abs=0.02)


def test_calibration_leaves_other_activations_and_the_mode_alone() -> None:
    """A coder in training stays in training."""
    coder = sae(D, L, BatchTopK(3)).train()
    AnthropicTranspose(1.0)(coder, batches())
    assert calibrate(coder, batches()).training
    assert calibrate(sae(D, L, TopK(3)), []) is not None


def test_the_last_step_leaves_a_checkpoint(tmp_path) -> None:
    """Whether or not `every` divides `num_steps`, and also where the data ends first; with calibrated thresholds."""
    for data, num_steps in ((batches(), 7), (text_to_batches(epochs=1), 1000)):
        trainer = a_trainer(data=data, num_steps=num_steps)
        trainer.callbacks = [Checkpoint(tmp_path / str(num_steps), every=4)]
        coder = trainer.train()
        newest = newest_checkpoint(tmp_path / str(num_steps))
        assert newest is not None
        assert newest.name == f"step_{trainer.state.step:09d}"
        from crosscode import load

        assert same(coder, load(newest))


def test_the_recipe_is_the_configuration() -> None:
    """Two trainers are described alike exactly when they are configured alike; what changes in training is left out."""
    from crosscode.training import describe, differences

    one, other = a_trainer(), a_trainer()
    one.train()
    assert differences(describe(one), describe(other)) == []
    other = attrs.evolve(other, init=[NormalizeActivations(), AnthropicTranspose(0.5)], lr=1e-3)
    assert differences(describe(one), describe(other)) == ["init.1.norm: 1.0 -> 0.5", "lr.value: 0.01 -> 0.001"]


def test_a_coder_that_starts_at_its_data() -> None:
    """All strategies together: the first step's loss is finite and the trained coder explains the data."""
    jumprelu = JumpReLU(L, threshold=0.3)
    trainer = a_trainer(
        jumprelu, init=[NormalizeActivations(), JanUpdate(jumprelu, 0.3), DecoderBias("mean")], num_steps=120, lr=2e-2
    )
    coder = trainer.train()
    with torch.no_grad():
        assert measure([FVU()], [Trace.of(coder, batch) for batch in batches()])["fvu/pooled"] < 0.3
    assert isinstance(coder.decoder, DenseDecoder)
