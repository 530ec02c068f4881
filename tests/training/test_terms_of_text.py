"""Losses and penalties that look at more than activations: tokens, the model itself, and the step."""

from pathlib import Path

import pytest
import torch
from small_runs import save_model, save_text
from torch import Tensor

from crosscode.activations import ReLU, TopK
from crosscode.batch import Batch
from crosscode.data import Dataloader, Harvester, TokenSequences, load_language_model
from crosscode.errors import BadInput, CrosscodeWarning
from crosscode.initialization import AnthropicTranspose, NormalizeActivations, StartFrom
from crosscode.latents import Latents
from crosscode.losses import MeanNorm, SplicedKL, SummedSquaredError
from crosscode.models import SparseCoder, Trace, acausal_crosscoder, sae
from crosscode.penalties import L1OfNorms, LpOfNorms
from crosscode.saving import save
from crosscode.schedulers import LinearRamp
from crosscode.training import Trainer, UnitNormDecoder, Weighted

D, L = 16, 40
HOOKPOINTS = ("blocks.1.hook_resid_post", "blocks.2.hook_resid_post")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terms_of_text")
    for i in range(2):
        save_model(folder / f"model{i}", seed=i)
    save_text(folder / "text.txt", 60)
    return folder


def loader_of(folder: Path, n_models: int = 1, hookpoints=HOOKPOINTS[:1], **given) -> Dataloader:
    models = [load_language_model(str(folder / f"model{i}")) for i in range(n_models)]
    sequences = TokenSequences(str(folder / "text.txt"), models[0], sequence_length=16)
    return Dataloader(
        sequences,
        Harvester(models, hookpoints, sequences_at_once=2),
        **{"batch_size": 32, "shuffle_buffer": 256, "squeeze": n_models == len(hookpoints) == 1, "ahead": 0}
        | {"order": "sequences", "carry": ("positions", "sequences", "context")}
        | given,
    )


def kl_of(data: Dataloader) -> SplicedKL:
    return SplicedKL(data.harvester.models, data.hookpoints)


def coder_of(data: Dataloader) -> SparseCoder:
    n_models, n_hookpoints = len(data.harvester.models), len(data.hookpoints)
    if data.in_dims == ():
        coder = sae(D, L, TopK(8))
    else:
        sizes = {"n_models": n_models, "n_hookpoints": n_hookpoints, "d_model": D, "n_latents": L}
        coder = acausal_crosscoder(**sizes, activation=TopK(8))
    for start in (NormalizeActivations(500), AnthropicTranspose(1.0)):
        start(coder, data)
    return coder.train()


def gradients(coder: SparseCoder) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in coder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("n_models", "hookpoints"), [(1, HOOKPOINTS[:1]), (1, HOOKPOINTS), (2, HOOKPOINTS)])
def test_spliced_kl_is_what_the_models_say_of_the_reconstruction(folder, n_models, hookpoints) -> None:
    """By hand: both runs' distributions at each token's own position; several models count alike."""
    data = loader_of(folder, n_models, hookpoints)
    coder, batch = coder_of(data), next(iter(data))
    assert len(batch.extra["sequences"].unique()) == 2
    trace = Trace.of(coder, batch)

    kl = kl_of(data)(trace)
    kl.backward()

    recon = coder.unscale_outputs(trace.recon_BXoDo).detach().reshape(len(batch), n_models, len(hookpoints), D)
    expected = 0.0
    rows = (batch.extra["sequences"] == batch.extra["sequences"].max()).long()
    tokens_HS = torch.stack([batch.extra["context"][rows == row][0] for row in (0, 1)])
    for m, model in enumerate(data.harvester.models):

        def put(p: int, acts: Tensor, m: int = m) -> Tensor:
            acts = acts.clone()
            for b, (row, position) in enumerate(zip(rows, batch.extra["positions"])):
                acts[row, position] = recon[b, m, p]
            return acts

        edits = {name: lambda acts, p=p: put(p, acts) for p, name in enumerate(hookpoints)}
        clean, spliced = (model.logits(tokens_HS, e).log_softmax(-1) for e in ({}, edits))
        kl_HS = (clean.exp() * (clean - spliced)).sum(-1)
        expected += float(kl_HS[rows, batch.extra["positions"]].mean()) / n_models
    assert float(kl.detach()) == pytest.approx(expected, rel=1e-4)
    assert expected > 0.01
    assert set(gradients(coder)) == {
        "encoder.W_enc_XiDiL",
        "encoder.b_enc_L",
        "decoder.W_dec_LXoDo",
        "decoder.b_dec_XoDo",
    }
    assert all(p.grad is None for model in data.harvester.models for p in model.hf_model.parameters())


def test_spliced_kl_of_a_perfect_reconstruction_is_zero(folder) -> None:
    data = loader_of(folder)
    coder = coder_of(data)
    trace = Trace.of(coder, next(iter(data)))
    object.__setattr__(trace, "recon_BXoDo", trace.targets_BXoDo)

    assert float(kl_of(data)(trace)) == pytest.approx(0, abs=1e-6)


def test_spliced_kl_is_exact_under_accumulation(folder) -> None:
    """Two micro-batches of two sequences give the gradient of one batch of four, whatever is left out of each."""
    large = loader_of(folder, batch_size=64)
    small = iter(loader_of(folder, batch_size=32))
    whole, parts = next(iter(large)), [next(small), next(small)]
    assert len(whole) == sum(map(len, parts))
    results = []
    for batches in ([whole], parts):
        coder = coder_of(large)
        taken: list[dict[str, Tensor]] = []
        trainer = Trainer(
            model=coder,
            data=large,
            loss=kl_of(large),
            optimizer=torch.optim.SGD(coder.parameters()),
            lr=0.0,
            num_steps=1,
            gradients=[lambda coder, parameters, taken=taken: taken.append(gradients(coder))],
        )
        report = trainer.step(batches)
        results.append((taken[0], report.loss))
    (one, loss), (two, other) = results
    torch.testing.assert_close(loss, other, rtol=1e-5, atol=0)
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-7)


def test_fine_tuning_by_it_lowers_what_the_model_loses(folder, tmp_path) -> None:
    """From a saved coder on; the language model is as it was."""
    data = loader_of(folder)
    save(coder_of(data), tmp_path)
    coder = sae(D, L, TopK(8))
    before = [p.clone() for p in data.harvester.models[0].hf_model.parameters()]
    losses: list[float] = []
    Trainer(
        model=coder,
        data=data,
        init=[StartFrom(tmp_path)],
        loss=kl_of(data),
        optimizer=torch.optim.Adam(coder.parameters()),
        lr=3e-3,
        num_steps=30,
        callbacks=[lambda trainer, report: losses.append(float(report.loss))],
    ).train()

    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert all(torch.equal(a, b) for a, b in zip(before, data.harvester.models[0].hf_model.parameters()))


def test_what_does_not_fit_is_refused_before_any_data_is_read(folder, tmp_path) -> None:
    data = loader_of(folder)
    coder = sae(D, L, TopK(8))
    given = {
        "model": coder,
        "data": data,
        "optimizer": torch.optim.Adam(coder.parameters()),
        "lr": 1e-3,
        "num_steps": 1,
    }
    save(sae(D, L + 1, TopK(8)), tmp_path)

    with pytest.raises(BadInput, match="SplicedKL: 1 models at 2 hookpoints are not the 1 sites that the coder writes"):
        Trainer(**given, loss=SplicedKL(data.harvester.models, HOOKPOINTS))
    with pytest.raises(
        BadInput, match=r"start_from: decoder\.W_dec_LXoDo of the coder in .* \(41, 16\), and \(40, 16\)"
    ):
        Trainer(**given, loss=SummedSquaredError(), init=[StartFrom(tmp_path)])
    with pytest.raises(BadInput, match="holds no saved coder"):
        Trainer(**given, loss=SummedSquaredError(), init=[StartFrom(tmp_path / "no")])
    with pytest.raises(BadInput, match=r"a batch carries no 'positions'"):
        kl_of(data)(Trace.of(coder, Batch.autoencode(torch.randn(3, D))))


def test_what_a_start_from_a_saved_coder_leaves_aside_is_told(tmp_path) -> None:
    """Weights are taken as they are: another k is told, and norms that a constraint would change are refused."""
    saved = sae(D, L, TopK(2))
    AnthropicTranspose(0.7)(saved, [])
    save(saved, tmp_path)
    coder = sae(D, L, TopK(9))

    with pytest.warns(CrosscodeWarning, match=r"start_from: activation\.k of the coder in .* is not what this one has"):
        StartFrom(tmp_path)(coder, [])
    unweighted = sae(D, L, TopK(2, weighted=False))
    with pytest.raises(BadInput, match="UnitNormDecoder undoes what StartFrom has done"):
        Trainer(
            model=unweighted,
            data=[],
            loss=SummedSquaredError(),
            optimizer=torch.optim.Adam(unweighted.parameters()),
            lr=1e-3,
            num_steps=1,
            init=[StartFrom(tmp_path)],
            constraints=[UnitNormDecoder()],
        )


@pytest.mark.parametrize("loss", [SummedSquaredError, MeanNorm])
def test_a_token_of_weight_two_counts_twice(loss) -> None:
    """And one of weight 0 not at all, in value and gradient; without weights nothing changes."""
    coder = acausal_crosscoder(n_models=2, n_hookpoints=3, d_model=4, n_latents=6, activation=ReLU())
    AnthropicTranspose(0.5)(coder, [])
    x = torch.randn(3, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    repeated = Batch.autoencode(torch.stack([x[0], x[1], x[1]]))
    weighted = Batch.autoencode(x, {"w": torch.tensor([1.0, 2.0, 0.0])})
    results = []
    for batch, name in ((repeated, None), (weighted, "w")):
        coder.zero_grad()
        value = loss(token_weights=name)(Trace.of(coder, batch))
        value.backward()
        results.append((value.detach(), gradients(coder)))
    (one, ours), (two, its) = results
    torch.testing.assert_close(one, two)
    for name in ours:
        torch.testing.assert_close(ours[name], its[name])


def test_weights_that_are_no_numbers_of_tokens_are_refused() -> None:
    coder = sae(4, 6, ReLU())
    batch = Batch.autoencode(torch.randn(3, 4), {"w": torch.ones(3, 2)})

    with pytest.raises(
        BadInput, match=r"token_weights='w': the batch carries a tensor of shape \(3, 2\), not one number"
    ):
        SummedSquaredError(token_weights="w")(Trace.of(coder, batch))


def lp(p, f_BL: Tensor, **given) -> Tensor:
    coder = sae(2, 3, ReLU()).double()
    with torch.no_grad():
        coder.decoder.W_dec_LXoDo.copy_(torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]]))  # norms 5, 1, 2
    place = {key: given.pop(key) for key in ("step", "num_steps") if key in given}
    x_BD = torch.zeros(len(f_BL), 2, dtype=torch.float64)
    trace = Trace(coder, x_BD, x_BD, Latents.from_dense(f_BL), torch.zeros(3, dtype=torch.int64), **place)
    return LpOfNorms(p, **given)(trace)


def test_a_power_of_what_fires_is_paid() -> None:
    """By hand: sqrt(1 * 5) + sqrt(4 * 1) and sqrt(2 * 2), over two tokens; of p = 1 it is the L1 of norms."""
    f_BL = torch.tensor([[1.0, 4.0, 0.0], [0.0, 0.0, 2.0]], dtype=torch.float64)

    assert float(lp(0.5, f_BL, keep_size=False)) == pytest.approx((5**0.5 + 2 + 2) / 2)
    assert float(lp(1.0, f_BL)) == pytest.approx((5 + 4 + 4) / 2)
    assert float(lp(0.5, f_BL)) == pytest.approx((5 + 4 + 4) / 2)
    assert float(lp(0.5, 0 * f_BL)) == 0


def test_its_slope_is_finite_where_nothing_fires_and_steeper_for_weak_latents() -> None:
    f_BL = torch.tensor([[0.01, 4.0, 0.0]], dtype=torch.float64, requires_grad=True)

    lp(0.5, f_BL, keep_size=False).backward()

    assert f_BL.grad is not None
    assert f_BL.grad[0].tolist() == pytest.approx([0.5 * 5**0.5 / 0.1, 0.25, 0.0])


def test_p_is_annealed_by_the_step_of_the_run() -> None:
    f_BL = torch.tensor([[1.0, 4.0, 0.0]], dtype=torch.float64)
    p = LinearRamp(0.2, 10, start=1.0)

    for step, exponent in ((0, 1.0), (5, 0.6), (20, 0.2)):
        assert float(lp(p, f_BL, keep_size=False, step=step, num_steps=20)) == pytest.approx(5**exponent + 4**exponent)


def test_a_term_is_told_how_far_the_run_is() -> None:
    """Through the trainer: step, number of steps and the share that is done."""
    seen = []
    coder = sae(4, 6, ReLU())

    def look(trace: Trace) -> Tensor:
        seen.append((trace.step, trace.num_steps, trace.progress))
        return trace.recon_BXoDo.sum() * 0

    Trainer(
        model=coder,
        data=[Batch.autoencode(torch.randn(5, 4))],
        init=[AnthropicTranspose()],
        loss=SummedSquaredError(),
        penalties={"look": Weighted(look, 1.0), "l1": Weighted(L1OfNorms(), 0.1)},
        optimizer=torch.optim.Adam(coder.parameters()),
        lr=1e-3,
        num_steps=4,
    ).train()

    assert seen == [(0, 4, 0.0), (1, 4, 0.25), (2, 4, 0.5), (3, 4, 0.75)]
    assert Trace.of(coder, Batch.autoencode(torch.randn(5, 4))).progress == 1.0
