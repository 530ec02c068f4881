"""Figures on held-out tokens and the tokens that latents fire on, checked against a direct computation."""

from collections.abc import Sequence

import pytest
import torch
from strategies import ACTIVATIONS, random_batch, random_coder
from torch import Tensor

from crosscode.activations import BatchTopK, JumpReLU, ReLU, SeparateBudgets
from crosscode.batch import Batch
from crosscode.data import Dataloader, Harvester, TokenSequences
from crosscode.evaluation import find_examples, measure_coder
from crosscode.evaluation.examples import texts_of
from crosscode.evaluation.measures import has_thresholds
from crosscode.initialization import AnthropicTranspose
from crosscode.metrics import FVU, L0, Thresholds, measure
from crosscode.models import SparseCoder, Trace, sae
from crosscode.training import calibrate

WORDS = [f"w{i}" for i in range(40)]


class OneHot:
    """A language model whose activation at a token is that token's unit vector, scaled by its position."""

    name, identity, bos_id, eos_id, context_length, n_layers = "onehot", "onehot@1", 0, 1, None, 1
    vocabulary = {"<bos>": 0, "<eos>": 1} | {word: i + 2 for i, word in enumerate(WORDS)}
    special_ids = frozenset({0, 1})
    hookpoints = ("a",)

    def __init__(self) -> None:
        self.tokenizer = self
        self.names = {i: word for word, i in self.vocabulary.items()}

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[self.vocabulary[word] for word in text.split()] for text in texts]}

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(" " * (i > 0) + self.names[id_] for i, id_ in enumerate(ids))

    def width(self, hookpoint: str) -> int:
        return 42

    def harvest(self, tokens_HS: Tensor, hookpoints: Sequence[str]) -> Tensor:
        acts_HSD = torch.nn.functional.one_hot(tokens_HS, 42).float()
        return (acts_HSD * (1 + torch.arange(tokens_HS.shape[1]))[:, None] / 10)[:, :, None]


def loader(epochs: int | None = 1) -> Dataloader:
    generator = torch.Generator().manual_seed(0)
    texts = [" ".join(WORDS[i] for i in torch.randint(0, 40, (15,), generator=generator)) for _ in range(80)]
    sequences = TokenSequences(texts, OneHot(), sequence_length=16, split="all")
    return Dataloader(sequences, Harvester(OneHot(), "a"), 64, shuffle_buffer=256, squeeze=True, epochs=epochs)


def token_detector() -> SparseCoder:
    """Latent i fires on word i by its position; its decoder norm is i + 1."""
    coder = sae(42, 40, ReLU())
    W_DL = torch.eye(42)[:, 2:]
    coder.encoder.assign_(W_DL)
    coder.decoder.assign_(W_DL.T * torch.arange(1.0, 41)[:, None])
    return coder


def test_a_latents_strongest_tokens_are_found_in_context() -> None:
    """The token itself, what stands around it, at most one example a sequence, strongest first, then some at random."""
    coder, data = token_detector(), loader()
    before, after = 5, 3
    found = find_examples(coder, data, [3, 7], n_strongest=4, n_random=3, before=before, after=after)
    sequences = [sequence.tokens_S.tolist() for sequence in data.sequences.in_order()]
    for latent, tokens_KW, values_KW, strength_K in zip(
        (3, 7), found.tokens_EKW.tolist(), found.values_EKW.tolist(), found.strength_EK().tolist()
    ):
        places = [[at for at, token in enumerate(tokens) if token == latent + 2 and at > 0] for tokens in sequences]
        best = {i: (1 + max(at)) / 10 for i, at in enumerate(places) if at}
        assert strength_K[:4] == pytest.approx(sorted(best.values(), reverse=True)[:4])
        windows = []
        for i, tokens in enumerate(sequences):
            if i in best:
                at = max(places[i])
                padded = [-1] * before + tokens + [-1] * after
                values = [(1 + place) / 10 * (token == latent + 2) for place, token in enumerate(tokens)]
                values[0] = 0.0  # training leaves the first position out
                padded_values = [0.0] * before + values + [0.0] * after
                window = slice(at, at + before + 1 + after)
                windows.append((padded[window], pytest.approx(padded_values[window])))
        shown = [(tokens, values) for tokens, values in zip(tokens_KW, values_KW) if tokens[before] >= 0]
        assert len(shown) > 4
        assert all(example in windows for example in shown)
        assert len({str(tokens) for tokens, _ in shown}) == len(shown), "none twice"


def test_a_silent_latent_has_no_example() -> None:
    """And asks for none."""
    coder = token_detector()
    with torch.no_grad():
        coder.encoder.b_enc_L[5] = -100
    found = find_examples(coder, loader(), [5, 6])
    assert (found.tokens_EKW[0] == -1).all()
    assert (found.values_EKW[0] == 0).all()
    assert (found.tokens_EKW[1] >= 0).any()


def test_tokens_read_as_they_do_inside_a_text() -> None:
    """With their leading blank, which a tokenizer drops from a token that it decodes alone."""

    class Tokenizer(OneHot):
        def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
            return {"input_ids": [[2]]}

    assert texts_of(Tokenizer(), [5, 2]) == {5: " w3", 2: " w0"}


def test_figures_do_not_depend_on_the_batching() -> None:
    """Sums run over all tokens: batches of 7, 64 and everything at once agree, in eval mode with a threshold."""
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.randn(200, 6, generator=generator)
    coder = sae(6, 12, BatchTopK(3))
    AnthropicTranspose(1.0)(coder, [])
    calibrate(coder, [Batch.autoencode(x_ND)])
    coder.train()
    results = [
        measure_coder(coder, [Batch.autoencode(part) for part in x_ND.split(size)], [FVU(), L0()], 10_000)
        for size in (7, 64, 200)
    ]
    assert coder.training, "the mode is put back"
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-5)
    coder.eval()
    trace = Trace.of(coder, Batch.autoencode(x_ND))
    error = (x_ND - coder(x_ND)).square().sum() / (x_ND - x_ND.mean(0)).square().sum()
    assert results[0]["fvu/pooled"] == pytest.approx(float(error.detach()), rel=1e-5)
    assert results[0]["l0/mean"] == pytest.approx(float(trace.latents.l0_B().double().mean()))


def test_no_more_tokens_are_used_than_asked_for() -> None:
    """Whole batches, the last one reaching the number."""
    lengths: list[int] = []

    class Count:
        def start(self) -> "Count":
            return self

        def add(self, trace: Trace) -> None:
            lengths.append(len(trace))

        def result(self) -> dict[str, float]:
            return {}

    measure_coder(token_detector(), loader(), [Count()], 150)
    assert lengths == [64, 64, 64]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_thresholds_are_measured_where_every_latent_has_one(activation: str) -> None:
    """A JumpReLU, or one at every site; any other activation is measured without them."""
    coder = random_coder("compound", activation)
    jumps = activation in ("jumprelu", "jumprelu_gdm", "per_site_jumprelu")
    assert has_thresholds(coder.activation) == jumps
    if jumps:
        assert measure([Thresholds(coder.activation)], [Trace.of(coder, random_batch(coder))])["threshold/mean"] > 0
    assert not has_thresholds(SeparateBudgets(JumpReLU(5), JumpReLU(7), 5))
