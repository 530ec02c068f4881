"""Any re-iterable batches are evaluated and reported: with all that they offer, and without what they do not."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_language_model import WORDS, D, TinyModel

from crosscode.activations import TopK
from crosscode.batch import Batch
from crosscode.data import Dataloader, Harvester, TokenSequences
from crosscode.errors import BadInput
from crosscode.evaluation import Evaluation, Names, find_examples, full_evaluation, names_of, splice
from crosscode.initialization import AnthropicTranspose
from crosscode.models import (
    DenseDecoder,
    DenseEncoder,
    SparseCoder,
    acausal_crosscoder,
    compound_cross_layer_transcoder,
    cross_layer_transcoder,
    sae,
)
from crosscode.report import figures_of, print_evaluation, write_report

STREAM = "blocks.1.hook_resid_post"
CARRY = ("tokens", "sequences", "positions")


def loader(carry: tuple[str, ...] = CARRY) -> Dataloader:
    generator = torch.Generator().manual_seed(0)
    texts = [" ".join(WORDS[i] for i in torch.randint(0, 20, (14,), generator=generator)) for _ in range(30)]
    models = (TinyModel(0), TinyModel(1))
    sequences = TokenSequences(texts, models[0], sequence_length=16, split="all")
    harvester = Harvester(models, STREAM, max_norm_multiple=None)
    return Dataloader(sequences, harvester, 64, shuffle_buffer=256, epochs=1, carry=carry)


def started(coder: SparseCoder) -> SparseCoder:
    AnthropicTranspose(1.0)(coder, [])
    return coder.eval()


def a_crosscoder() -> SparseCoder:
    return started(acausal_crosscoder(n_models=2, n_hookpoints=1, d_model=D, n_latents=24, activation=TopK(3)))


class Differences:
    """What a text's activations differ by between two models, at one hookpoint; with a name and a tokenizer."""

    hookpoints = (STREAM,)
    tokenizer = TinyModel()

    def __init__(self, data: Dataloader) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.data:
            x_BMPD = batch.inputs_BXiDi
            yield Batch.autoencode(x_BMPD[:, 1, 0] - x_BMPD[:, 0, 0], batch.extra)


class OnDisk:
    """Activations of two models from a file, with the models' names and nothing else."""

    model_names = ("base", "tuned")

    def __init__(self, file: Path) -> None:
        self.file = file

    def __iter__(self) -> Iterator[Batch]:
        yield from map(Batch.autoencode, torch.load(self.file, mmap=True).split(100))


def test_a_list_of_batches_gives_the_figures_of_the_text_that_it_is_of() -> None:
    """Every figure but splices, every number of every latent, and examples in context though batches are shuffled."""
    coder, data = a_crosscoder(), loader()
    batches = list(data)
    text = full_evaluation(coder, data, 10_000, splice_tokens=0)
    plain = full_evaluation(coder, batches, 10_000)
    named = {
        name.replace("tiny0/", "0/").replace("tiny1/", "1/").replace(STREAM, "0"): n for name, n in text.metrics.items()
    }
    shared = {name: n for name, n in named.items() if not name.startswith("tokens/")}
    assert plain.metrics.keys() == shared.keys()
    assert plain.metrics == pytest.approx(shared, rel=1e-4, abs=1e-6, nan_ok=True)
    assert {"fvu/0/0", "l0/mean", "exclusive/1/candidates", "decoder_cosine/median"} <= plain.metrics.keys()
    assert plain.latents.keys() == text.latents.keys()
    for name, values in plain.latents.items():
        torch.testing.assert_close(values, text.latents[name], rtol=1e-4, atol=1e-5, equal_nan=True)
    assert plain.examples is not None
    assert text.examples is not None
    n = text.examples.n_strongest
    torch.testing.assert_close(plain.examples.values_EKW[:, :n], text.examples.values_EKW[:, :n], rtol=1e-4, atol=1e-5)
    known = plain.examples.tokens_EKW[:, :n] >= 0  # tokens that training leaves out are not in batches
    assert torch.equal(plain.examples.tokens_EKW[:, :n][known], text.examples.tokens_EKW[:, :n][known])
    assert torch.equal(known, text.examples.tokens_EKW[:, :n] > max(TinyModel.special_ids))
    assert plain.source["data"] == "list"
    assert "split" not in plain.source
    assert plain.absent.keys() == {"splicing", "logit attribution"}


def test_differences_of_two_models_are_evaluated_and_reported(tmp_path: Path) -> None:
    """An SAE on them: figures under the name of the hookpoint, examples as text, a page; no curves are needed."""
    data = Differences(loader())
    found = full_evaluation(started(sae(D, 16, TopK(2))), data, 10_000)
    assert found.metrics["fvu/0/" + STREAM] == pytest.approx(found.metrics["fvu/pooled"])
    assert found.examples is not None
    assert set(found.texts.values()) <= {" " + word for word in TinyModel.vocabulary}
    found.save(tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "its data (Differences)" in page
    assert not any(f"<h3>{missing}</h3>" in page for missing in ("Training", "What it costs the language models"))
    assert "configuration.json" not in page
    assert "the data are activations without their models" in page
    shown = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert len(shown["examples"]) == len(found.examples.latents_E) > 0
    assert set(figures_of(tmp_path)) == {"density"}


def test_activations_from_disk_have_no_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two models without a hookpoint's axis: they are compared by name; what is missing is said, on the page too."""
    x_NMD = torch.cat([batch.inputs_BXiDi[:, :, 0] for batch in loader(())])
    torch.save(x_NMD, tmp_path / "activations.pt")
    coder = started(SparseCoder(DenseEncoder((2,), D, 24), TopK(3), DenseDecoder(24, (2,), D)))
    found = full_evaluation(coder, OnDisk(tmp_path / "activations.pt"), 10_000)
    assert found.source["tokens"] == len(x_NMD)
    assert found.scaling is not None
    assert {"fvu/base/0", "fvu/tuned/0", "exclusive/tuned/specific"} <= found.metrics.keys()
    assert found.examples is None
    assert "do not carry tokens, sequences, positions" in found.absent["finding examples"]
    found.save(tmp_path)
    assert "only in tuned" in write_report(tmp_path).read_text(encoding="utf-8")
    assert "latent_scaling" in figures_of(tmp_path)
    print_evaluation(Evaluation.load(tmp_path), "activations")
    assert "tuned" in capsys.readouterr().out


def test_token_ids_are_shown_where_there_is_no_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the page and in the terminal."""
    found = full_evaluation(a_crosscoder(), list(loader()), 10_000)
    assert found.texts == {}
    found.save(tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    shown = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert set(shown["texts"]) <= {f"[{id_}]" for id_ in range(22)}
    print_evaluation(found, "a list")
    assert "⟦[" in capsys.readouterr().out


@pytest.mark.parametrize("name", CARRY)
def test_what_examples_need_is_said(name: str) -> None:
    """By `find_examples` itself, which was asked for nothing else."""
    batches = list(loader(tuple(each for each in CARRY if each != name)))
    with pytest.raises(BadInput, match=f"batches carry no '{name}': examples need tokens, sequences, positions"):
        find_examples(a_crosscoder(), batches, [0])
    with pytest.raises(BadInput, match="data must be text with the models, such as a Dataloader, got a list"):
        splice(a_crosscoder(), batches)


class Named(list[Batch]):
    """Batches with any names."""

    def __init__(self, **names: object) -> None:
        vars(self).update(names)


def crosscoder(M: int, P: int) -> SparseCoder:
    return acausal_crosscoder(n_models=M, n_hookpoints=P, d_model=D, n_latents=6, activation=TopK(1))


def two_sites() -> SparseCoder:
    return SparseCoder(DenseEncoder((2,), D, 6), TopK(1), DenseDecoder(6, (2,), D))


NAMES: list[tuple[SparseCoder, list[Batch], Names]] = [
    (sae(D, 6, TopK(1)), [], Names(("0",), ("0",), ("0",))),
    (sae(D, 6, TopK(1)), Named(hookpoints=("a",)), Names(("0",), ("a",), ("a",))),
    (sae(D, 6, TopK(1)), Named(model_names=("base", "tuned"), hookpoints=("a",)), Names(("0",), ("a",), ("a",))),
    (crosscoder(2, 3), [], Names(("0", "1"), ("0", "1", "2"), ("0", "1", "2"))),
    (two_sites(), [], Names(("0",), ("0", "1"), ("0", "1"))),
    (two_sites(), Named(model_names=("base", "tuned")), Names(("base", "tuned"), ("0",), ("0",))),
    (two_sites(), Named(model_names=("base",), hookpoints=("a", "b")), Names(("base",), ("a", "b"), ("a", "b"))),
    (
        cross_layer_transcoder(D, 2, 6, TopK(1)),
        Named(model_names=("base",), hookpoints=("a", "b", "c"), reads="a", writes=("b", "c")),
        Names(("base",), ("a",), ("b", "c")),
    ),
    (
        compound_cross_layer_transcoder(D, 2, 3, TopK(1)),
        Named(model_names=("base",), hookpoints="abcd", reads=("a", "b"), writes=("c", "d")),
        Names(("base",), ("a", "b"), ("c", "d")),
    ),
]


@pytest.mark.parametrize(("coder", "data", "names"), NAMES)
def test_sites_have_the_datas_names_where_they_fit_and_numbers_else(
    coder: SparseCoder, data: list[Batch], names: Names
) -> None:
    """One axis is of hookpoints unless only the models are as many; names of another number are not believed."""
    assert names_of(coder, data) == names


def test_the_loaders_names_are_its_own() -> None:
    assert names_of(a_crosscoder(), loader()) == Names(("tiny0", "tiny1"), (STREAM,), (STREAM,))
