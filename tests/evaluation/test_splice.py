"""Splicing: exact activations cost nothing, zeros cost what ablation costs, and the rest against plain loops."""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
import pytest
import torch
from strategies import random_coder
from torch import Tensor

from crosscode.activations import Activation, BatchTopK, JumpReLU, PerSite, ReLU
from crosscode.data import Dataloader, Harvester, TokenSequences, load_language_model
from crosscode.data.language_model import SpliceableModel
from crosscode.errors import BadInput, CrosscodeWarning, NumericalError
from crosscode.evaluation import Splice, full_evaluation, splice
from crosscode.models import (
    DenseDecoder,
    DenseEncoder,
    SparseCoder,
    acausal_crosscoder,
    compound_cross_layer_transcoder,
    cross_layer_transcoder,
    sae,
)
from crosscode.training import calibrate

Edits = Mapping[str, Callable[[Tensor], Tensor]]
WORDS = [f"w{i}" for i in range(30)]
WIDTH = 4


class Chain:
    """Two MLPs in a residual stream that mixes positions, in float64: `in0`, `out0`, `in1`, `out1`, `end`."""

    bos_id, eos_id, context_length, n_layers = 0, 1, None, 2
    vocabulary: Mapping[str, int] = {"<bos>": 0, "<eos>": 1} | {word: i + 2 for i, word in enumerate(WORDS)}
    special_ids = frozenset({0, 1})
    hookpoints = ("in0", "out0", "in1", "out1", "end")

    def __init__(self, seed: int = 0) -> None:
        self.name, self.identity, self.tokenizer = f"chain{seed}", f"chain@{seed}", self
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.embed_VD, self.W_LDD, self.unembed_DV = normal(32, WIDTH), normal(2, WIDTH, WIDTH), normal(WIDTH, 32)

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[self.vocabulary[word] for word in text.split()] for text in texts]}

    def width(self, hookpoint: str) -> int:
        return WIDTH

    def run(self, tokens_HS: Tensor, edits: Edits) -> tuple[dict[str, Tensor], Tensor]:
        """What passed every hookpoint, edited, and the logits."""
        passed: dict[str, Tensor] = {}

        def at(name: str, acts_HSD: Tensor) -> Tensor:
            passed[name] = edits[name](acts_HSD) if name in edits else acts_HSD
            return passed[name]

        stream_HSD = self.embed_VD[tokens_HS]
        for i, W_DD in enumerate(self.W_LDD):
            stream_HSD = stream_HSD + 0.3 * stream_HSD.cumsum(1)
            stream_HSD = stream_HSD + at(f"out{i}", (at(f"in{i}", stream_HSD) @ W_DD).tanh())
        return passed, at("end", stream_HSD) @ self.unembed_DV

    def harvest(self, tokens_HS: Tensor, hookpoints: Sequence[str]) -> Tensor:
        passed, _ = self.run(tokens_HS, {})
        return torch.stack([passed[name] for name in hookpoints], dim=2)

    def logits(self, tokens_HS: Tensor, edits: Edits) -> Tensor:
        return self.run(tokens_HS, edits)[1]


def loader(*models: Any, hookpoints: Sequence[str] = ("out0", "end"), H: int = 4, **options: Any) -> Dataloader:
    """Texts of random words as sequences of 8, the last one padded."""
    generator = torch.Generator().manual_seed(0)
    texts = [" ".join(WORDS[i] for i in torch.randint(0, 30, (11,), generator=generator)) for _ in range(8)]
    models = models or (Chain(),)
    harvesting = {name: options.pop(name) for name in ("drop_first", "max_norm_multiple") if name in options}
    sequences = TokenSequences(texts, models[0], sequence_length=8, split="all", short="pad")
    harvester = Harvester(models, hookpoints, sequences_at_once=H, **harvesting)
    return Dataloader(sequences, harvester, 16, shuffle_buffer=64, dtype=torch.float64, **options)


def coder_of(data: Dataloader, recon: str, activation: Activation | None = None) -> SparseCoder:
    """A coder that returns its input exactly, zeros, or something in between that depends on every input."""
    M, P, D = *data.in_dims, data.d_in
    L, activation = 2 * M * P * D, activation or ReLU()
    coder = acausal_crosscoder(n_models=M, n_hookpoints=P, d_model=D, n_latents=L, activation=activation)
    eye = torch.eye(M * P * D)
    both_LI = torch.cat([eye, -eye])
    if recon == "between":
        both_LI = both_LI + 0.1 * torch.randn(both_LI.shape, generator=torch.Generator().manual_seed(1))
    coder.encoder.assign_(both_LI.T.reshape(M, P, D, -1))
    if recon != "zeros":
        coder.decoder.assign_(both_LI.reshape(-1, M, P, D))
    return coder.to(data.dtype)


def kept_and_counted(data: Dataloader) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, which of them are spliced, and which of all but the last of a sequence count, by plain rules."""
    sequences = list(data.sequences.in_order())
    tokens_HS = torch.stack([sequence.tokens_S for sequence in sequences])
    documents_HS = torch.stack([sequence.documents_S for sequence in sequences])
    kept_HS = tokens_HS > 1
    kept_HS[:, 0] = False
    return tokens_HS, kept_HS, documents_HS[:, 1:] != -2


def figures(clean_HSV: Tensor, other_HSV: Tensor, tokens_HS: Tensor, counted_HC: Tensor) -> dict[str, float]:
    """Cross-entropy, KL and agreement, position by position."""
    ce, kl, agree, agree_unsure = [], [], [], []
    for h, c in counted_HC.nonzero().tolist():
        p_V, q_V, token = clean_HSV[h, c].softmax(-1), other_HSV[h, c].softmax(-1), tokens_HS[h, c + 1]
        ce.append(-q_V[token].log())
        kl.append((p_V * (p_V / q_V).log()).sum())
        agree.append(float(p_V.argmax() == q_V.argmax()))
        if p_V.argmax() == token and p_V[token] < 0.8:
            agree_unsure.append(agree[-1])
    n = len(ce)
    return {
        "ce": float(sum(ce)) / n,
        "kl": float(sum(kl)) / n,
        "agreement": sum(agree) / n,
        "agreement_unsure": sum(agree_unsure) / len(agree_unsure),
    }


def approximately(record: Any, abs: float = 1e-9) -> Any:
    """A record's numbers, for comparison."""
    return pytest.approx(attrs.asdict(record), abs=abs, nan_ok=True)


def replacing(kept_HS: Tensor, values_HSD: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda acts_HSD: torch.where(kept_HS[..., None], values_HSD, acts_HSD)


@torch.no_grad()
def test_every_figure_is_that_of_a_plain_loop() -> None:
    """Two models, each hookpoint alone and both jointly, from clean activations of both models; padding counts not."""
    chains = (Chain(0), Chain(1))
    data = loader(*chains)
    coder = coder_of(data, "between")
    tokens_HS, kept_HS, counted_HC = kept_and_counted(data)
    x_HSMPD = torch.stack([chain.harvest(tokens_HS, data.hookpoints) for chain in chains], dim=2)
    recon_HSMPD = coder(x_HSMPD.flatten(0, 1)).reshape(x_HSMPD.shape)
    for m, (chain, result) in enumerate(zip(chains, splice(coder, data))):
        clean_HSV = chain.logits(tokens_HS, {})
        ce_clean = figures(clean_HSV, clean_HSV, tokens_HS, counted_HC)["ce"]
        assert result.model == chain.name
        assert result.ce_clean == pytest.approx(ce_clean)
        assert (result.n_positions, result.n_spliced) == (int(counted_HC.sum()), int(kept_HS.sum()))
        assert set(result.sites) == {"out0", "end"}
        assert result.replacement is None
        for names, found in ((("out0",), result.sites["out0"]), (("end",), result.sites["end"]), (None, result.joint)):
            columns = {name: data.hookpoints.index(name) for name in names or data.hookpoints}
            runs = {}
            for kind, values_HSMPD in (("spliced", recon_HSMPD), ("ablated", torch.zeros_like(recon_HSMPD))):
                edits = {name: replacing(kept_HS, values_HSMPD[:, :, m, p]) for name, p in columns.items()}
                runs[kind] = figures(clean_HSV, chain.logits(tokens_HS, edits), tokens_HS, counted_HC)
            spliced, ablated = runs["spliced"], runs["ablated"]
            wanted = {
                **spliced,
                "delta_ce": spliced["ce"] - ce_clean,
                "ce_ablated": ablated["ce"],
                "ce_recovered": (ablated["ce"] - spliced["ce"]) / (ablated["ce"] - ce_clean),
                "kl_ablated": ablated["kl"],
                "kl_recovered": 1 - spliced["kl"] / ablated["kl"],
            }
            assert wanted == approximately(found)


def test_a_perfect_coder_recovers_everything_and_an_empty_one_nothing() -> None:
    """1 and 0, of cross-entropy and of KL, at every site and jointly."""
    data = loader(Chain(0), Chain(1))
    for recon, share in (("exact", 1.0), ("zeros", 0.0)):
        for result in splice(coder_of(data, recon), data):
            for found in (*result.sites.values(), result.joint):
                assert (found.ce_recovered, found.kl_recovered) == pytest.approx((share, share), abs=1e-9)


def test_an_ablation_to_the_mean_is_a_coder_that_knows_only_the_mean() -> None:
    """The mean over kept tokens of the same text, in raw space."""
    data = loader()
    coder = coder_of(data, "zeros")
    mean_MPD = torch.cat([harvest.acts_NMPD for harvest in data.harvests()]).mean(0)
    with torch.no_grad():
        coder.decoder.b_dec_XoDo.copy_(mean_MPD)
    (result,) = splice(coder, data, ablation="mean")
    for found in (*result.sites.values(), result.joint):
        assert found.ce == pytest.approx(found.ce_ablated, abs=1e-9)
        assert found.kl == pytest.approx(found.kl_ablated, abs=1e-9)
    (zero,) = splice(coder, data)
    assert zero.joint.ce_ablated != pytest.approx(result.joint.ce_ablated, abs=1e-3)


@torch.no_grad()
def test_tokens_that_training_leaves_out_keep_their_activations() -> None:
    """Special tokens, first positions, outliers and padding pass unchanged; all others are the reconstruction."""
    passed: list[dict[str, Tensor]] = []
    texts: list[Tensor] = []

    class Watched(Chain):
        def run(self, tokens_HS: Tensor, edits: Edits) -> tuple[dict[str, Tensor], Tensor]:
            result = super().run(tokens_HS, edits)
            passed.append(result[0])
            texts.append(tokens_HS)
            return result

    data = loader(Watched(), drop_first=2, max_norm_multiple=1.05, H=100, hookpoints=("out0",))
    harvest = next(data.harvests())
    kept_HS = torch.zeros(texts[-1].shape, dtype=torch.bool)
    kept_HS[harvest.sequences_N, harvest.positions_N] = True
    plain_HS = (texts[-1] > 1) & (torch.arange(8) >= 2)
    assert kept_HS.any()
    assert (plain_HS & ~kept_HS).any(), "outliers were left out"
    clean_HSD = passed[-1]["out0"]
    passed.clear()
    coder = coder_of(data, "between")
    (result,) = splice(coder, data)
    assert result.n_spliced == kept_HS.sum() == len(harvest)
    spliced_HSD, ablated_HSD = (run["out0"] for run in passed[-2:])
    for edited_HSD in (spliced_HSD, ablated_HSD):
        assert torch.equal(edited_HSD[~kept_HS], clean_HSD[~kept_HS])
    torch.testing.assert_close(spliced_HSD[kept_HS], coder(clean_HSD[kept_HS][:, None, None])[:, 0, 0])
    assert (ablated_HSD[kept_HS] == 0).all()


@torch.no_grad()
def test_a_harvest_batch_may_be_larger_than_what_is_measured_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out follows from the sequences harvested at once; they are spliced in parts, to the same figures."""
    data = loader(max_norm_multiple=1.2, H=8, hookpoints=("out0",))
    coder, shown = coder_of(data, "between"), []
    (whole,) = splice(coder, data)
    full = full_evaluation(coder, data, n_tokens=50, example_latents=0)
    plain = Chain.logits

    def logits(self: Chain, tokens_HS: Tensor, edits: Edits) -> Tensor:
        shown.append(len(tokens_HS))
        return plain(self, tokens_HS, edits)

    monkeypatch.setattr(Chain, "logits", logits)
    monkeypatch.setattr("crosscode.evaluation.text.AT_ONCE", 24)
    (parts,) = splice(coder, data)
    assert max(shown) == 3
    assert_same(whole, parts)
    again = full_evaluation(coder, data, n_tokens=50, example_latents=0)
    assert full.tokens == again.tokens
    assert full.tokens.outliers > 0
    assert full.tokens.read == 56
    assert full.source["tokens"] == full.tokens.kept
    assert again.metrics == pytest.approx(full.metrics, nan_ok=True)


@torch.no_grad()
def test_what_is_not_finite_is_refused_by_name_or_told() -> None:
    """Harvested: as in training. A model's own logits: beyond what the coder reads. Of a spliced run: a warning."""

    class Overflowing(Chain):
        at = None

        def run(self, tokens_HS: Tensor, edits: Edits) -> tuple[dict[str, Tensor], Tensor]:
            passed, logits_HSV = super().run(tokens_HS, edits)
            if self.at == "out0" or (self.at == "spliced" and edits):
                passed["out0"][tokens_HS == 7] = math.nan
                logits_HSV[tokens_HS == 7] = math.nan
            if self.at == "logits":
                logits_HSV[tokens_HS == 7] = math.inf
            return passed, logits_HSV

    model = Overflowing()
    data = loader(model, hookpoints=("out0",))
    coder = coder_of(data, "between")
    model.at = "out0"
    for measure in (splice, full_evaluation):
        with pytest.raises(NumericalError, match=r"at out0: .* NaN or infinite \(float64\) in document \d"):
            measure(coder, data)
    skipping = Dataloader(data.sequences, attrs.evolve(data.harvester, skip_not_finite=True), 16, shuffle_buffer=64)
    model.at = None
    n_kept = splice(coder, skipping)[0].n_spliced
    model.at = "logits"
    with pytest.raises(NumericalError, match=r"itself gives no finite prediction at \d+ of \d+ positions \(float64\)"):
        splice(coder, skipping)
    model.at = "spliced"
    with pytest.warns(CrosscodeWarning) as warned:
        (result,) = splice(coder, skipping)
    told = [str(each.message) for each in warned]
    assert any(re.search(r"spliced at out0: \d+ of \d+ predictions are not finite", line) for line in told)
    assert math.isnan(result.joint.ce)
    assert math.isfinite(result.ce_clean)
    assert result.n_spliced == n_kept


def assert_same(one: Any, other: Any) -> None:
    assert one.ce_clean == pytest.approx(other.ce_clean)
    assert (one.n_positions, one.n_spliced) == (other.n_positions, other.n_spliced)
    for name in one.sites:
        assert attrs.asdict(one.sites[name]) == approximately(other.sites[name])
    assert attrs.asdict(one.joint) == approximately(other.joint)


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_how_many_sequences_run_at_once_does_not_matter(ablation: Any) -> None:
    """Sums first, divided once; `n_tokens` counts whole sequences, not batches; latents by threshold, not by batch."""
    results = []
    for H in (1, 3, 100):
        data = loader(H=H, epochs=1)
        coder = coder_of(data, "between", BatchTopK(3))
        calibrate(coder, list(loader(epochs=1)))
        results.append(splice(coder.train(), data, n_tokens=50, ablation=ablation)[0])
        assert coder.training
    assert results[0].n_positions == 7 * 7  # 50 tokens begin the seventh sequence of 8
    for other in results[1:]:
        assert_same(other, results[0])


def test_one_hookpoint_alone_is_all_jointly() -> None:
    """It is not even computed twice."""
    chain = Chain()
    runs = []
    run = chain.run
    chain.run = lambda tokens_HS, edits: runs.append(edits) or run(tokens_HS, edits)
    data = loader(chain, hookpoints=("end",), H=100)
    runs.clear()
    (result,) = splice(coder_of(data, "between"), data)
    assert result.joint is result.sites["end"]
    assert len(runs) == 4, "harvest, clean, spliced, ablated"


def transcoding(writes: Sequence[str] | str, reads: Sequence[str] | str) -> Dataloader:
    return loader(hookpoints=("in0", "out0", "in1", "out1"), reads=reads, writes=writes)


def randomised(coder: SparseCoder) -> SparseCoder:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        coder.scale_in_Xi.mul_(1.5)
        coder.scale_out_Xo.mul_(0.7)
        coder.shift_in_XiDi.add_(0.1)
    return coder.double().train()


def compound() -> SparseCoder:
    """A compound CLT over two layers, with a skip."""
    return compound_cross_layer_transcoder(WIDTH, 2, 10, PerSite([JumpReLU(10, 0.1), JumpReLU(10, 0.1)]), skip=True)


def acausal() -> SparseCoder:
    """A transcoder of which every latent reads both sites and writes both."""
    return SparseCoder(DenseEncoder((2,), WIDTH, 20), ReLU(), DenseDecoder(20, (2,), WIDTH))


@pytest.mark.parametrize(("first_read", "make"), [("in0", compound), ("out0", acausal)])
@torch.no_grad()
def test_the_replacement_model_recomputes_latents_layer_by_layer(
    first_read: str, make: Callable[[], SparseCoder]
) -> None:
    """The second layer reads what the replaced first one left, where `joint` has clean inputs.

    What the run has not reached is clean, and where a site is read and written, it is read first.
    """
    data = transcoding(reads=(first_read, "in1"), writes=("out0", "out1"))
    coder = randomised(make())
    (result,) = splice(coder, data)
    coder.eval()
    chain, (tokens_HS, kept_HS, counted_HC) = Chain(), kept_and_counted(data)
    clean, clean_HSV = chain.run(tokens_HS, {})

    def recon_HSPD(in1_HSD: Tensor) -> Tensor:
        x_HSPD = torch.stack([clean[first_read], in1_HSD], dim=2)
        return coder(x_HSPD.flatten(0, 1)).reshape(x_HSPD.shape)

    first = {"out0": replacing(kept_HS, recon_HSPD(clean["in1"])[:, :, 0])}
    in1_HSD = chain.run(tokens_HS, first)[0]["in1"]
    online = first | {"out1": replacing(kept_HS, recon_HSPD(in1_HSD)[:, :, 1])}
    offline = first | {"out1": replacing(kept_HS, recon_HSPD(clean["in1"])[:, :, 1])}
    assert result.replacement is not None
    for edits, found in ((online, result.replacement), (offline, result.joint)):
        wanted = figures(clean_HSV, chain.logits(tokens_HS, edits), tokens_HS, counted_HC)
        for name, value in wanted.items():
            assert getattr(found, name) == pytest.approx(value, abs=1e-9), name
    assert result.replacement.ce != pytest.approx(result.joint.ce, abs=1e-3)
    assert result.replacement.ce_ablated == result.joint.ce_ablated


def test_a_single_source_has_only_one_replacement_model() -> None:
    """What a CLT of one input reads is not replaced by itself, so that clean inputs are the replaced run's."""
    data = transcoding(reads="in0", writes=("out0", "out1"))
    (result,) = splice(randomised(cross_layer_transcoder(WIDTH, 2, 10, ReLU())), data)
    assert result.replacement is not None
    assert attrs.asdict(result.replacement) == approximately(result.joint)


def test_bad_input_is_one_line() -> None:
    """Shapes of other data, a model that only harvests, a misspelt ablation, no tokens, nothing kept; mode put back."""
    data = loader()
    coder = coder_of(data, "between").train()

    class OnlyHarvested(Chain):
        logits = None

    for wrong, text, options, message in [
        (sae(WIDTH, 8, ReLU()), data, {}, r"coder reads activations of shape \(4,\) but the data has \(1, 2, 4\)"),
        (random_coder("crosscoder", "relu"), data, {}, r"coder reads activations of shape \(2, 2, 3\)"),
        (coder, loader(OnlyHarvested()), {}, "model 'chain0' has no logits: it can only be harvested"),
        (coder, data, {"ablation": "means"}, "ablation 'means' is not one of zero, mean. Did you mean 'mean'"),
        (coder, data, {"n_tokens": 0}, "n_tokens=0 is too small"),
        (coder, loader(drop_first=8), {}, "nothing is left of the text after masking"),
    ]:
        with pytest.raises(BadInput, match=message) as raised:
            inspect.unwrap(splice)(wrong, text, **options)  # as without the shape checks, which know the ablations
        assert "\n" not in str(raised.value)
        assert coder.training


# The embedded models, whole.

EVERYWHERE = (
    "blocks.0.hook_resid_pre",
    "blocks.1.hook_resid_mid",
    "blocks.2.hook_mlp_out",
    "blocks.2.attn.hook_z",
    "blocks.3.hook_resid_post",
)


@pytest.fixture(scope="module")
def embedded() -> tuple[SpliceableModel, SpliceableModel]:
    """`base` and `tuned`, loaded once."""
    return load_language_model("embedded:base"), load_language_model("embedded:tuned")


def few_sentences(models: Sequence[SpliceableModel], hookpoints: Sequence[str]) -> Dataloader:
    texts = [f"Return the {word} of a list of numbers, or None if there is no {word}." for word in ["sum", "mean"]]
    sequences = TokenSequences(texts * 4, models[0], sequence_length=24, split="all")
    return Dataloader(sequences, Harvester(models, hookpoints, sequences_at_once=3), 16, shuffle_buffer=256)


def test_exact_activations_reproduce_the_clean_cross_entropy(embedded: tuple[SpliceableModel, SpliceableModel]) -> None:
    """To 1e-6, in both models, at every kind of hookpoint and at all of them; and zeros reproduce the ablation."""
    data = few_sentences(embedded, EVERYWHERE)
    exact, zeros = (splice(coder_of(data, recon), data, n_tokens=72) for recon in ("exact", "zeros"))
    for same, nothing in zip(exact, zeros):
        for name in (*EVERYWHERE, "joint"):
            spliced: Splice = same.joint if name == "joint" else same.sites[name]
            ablated: Splice = nothing.joint if name == "joint" else nothing.sites[name]
            assert spliced.ce == pytest.approx(same.ce_clean, abs=1e-6), name
            assert spliced.kl == pytest.approx(0, abs=1e-6)
            assert spliced.agreement == 1
            assert ablated.ce == pytest.approx(ablated.ce_ablated, abs=1e-6)
            assert ablated.ce_recovered == pytest.approx(0, abs=1e-6)
            assert ablated.kl_ablated > 1e-3, "what is replaced matters"
    assert exact[0].ce_clean != exact[1].ce_clean


def test_the_adapters_logits_are_those_of_hugging_face(embedded: tuple[SpliceableModel, SpliceableModel]) -> None:
    """Without edits, and with edits that return what they were shown; an unknown hookpoint is refused."""
    from transformers import AutoModelForCausalLM

    from crosscode.data.embedded import folder

    model, tokens_HS = embedded[0], torch.arange(10, 34).reshape(2, 12)
    reference = AutoModelForCausalLM.from_pretrained(folder("base"), dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        wanted_HSV = reference(tokens_HS).logits
    clean_HSV = model.logits(tokens_HS, {})
    torch.testing.assert_close(clean_HSV, wanted_HSV, rtol=0, atol=1e-5)
    assert torch.equal(model.logits(tokens_HS, {name: lambda acts: acts for name in EVERYWHERE}), clean_HSV)
    assert torch.equal(model.logits(tokens_HS, {}), clean_HSV), "edits are gone with their run"
    with pytest.raises(BadInput, match=r"'blocks\.9\.hook_resid_post' is unknown"):
        model.logits(tokens_HS, {"blocks.9.hook_resid_post": lambda acts: acts})


def test_a_replaced_activation_is_what_the_rest_of_the_model_sees(
    embedded: tuple[SpliceableModel, SpliceableModel],
) -> None:
    """Between attention and MLP too, where the residual stream goes around what the bridge hooks."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], Tensor]:
        def edit(acts_HSD: Tensor) -> Tensor:
            seen[name] = acts_HSD
            return acts_HSD

        return edit

    mid, out, post = (f"blocks.1.hook_{name}" for name in ("resid_mid", "mlp_out", "resid_post"))
    new_HSD = torch.randn(2, 12, 128, generator=torch.Generator().manual_seed(0))
    tokens_HS = torch.arange(10, 34).reshape(2, 12)
    embedded[0].logits(tokens_HS, {mid: lambda _: new_HSD, out: keep(out), post: keep(post)})
    torch.testing.assert_close(seen[post], new_HSD + seen[out])

    z = "blocks.2.attn.hook_z"
    first_head_HSD = torch.zeros(2, 12, 128)
    first_head_HSD[..., :32] = 1
    embedded[0].logits(tokens_HS, {z: lambda _: first_head_HSD, "blocks.2.hook_attn_out": keep("attn")})
    W_DO = embedded[0].bridge.original_model.model.layers[2].self_attn.o_proj.weight[:, :32]  # type: ignore[attr-defined]
    torch.testing.assert_close(seen["attn"], W_DO.sum(-1).detach().expand(2, 12, -1), rtol=1e-4, atol=1e-5)


def test_half_precision_models_are_spliced_in_their_own_dtype() -> None:
    """A float32 coder's exact reconstructions of bfloat16 activations are those activations."""
    model = load_language_model("embedded:base", dtype="bfloat16")
    data = few_sentences([model], ["blocks.2.hook_resid_post"])
    (result,) = splice(coder_of(data, "exact"), data, n_tokens=48)
    assert result.joint.ce == pytest.approx(result.ce_clean, abs=1e-6)
    assert result.n_positions == 46
