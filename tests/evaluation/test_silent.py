"""A coder of which nothing fires: a penalty was too high, say. It is measured and shown as any other."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_language_model import WORDS, D, TinyModel

from crosscode.activations import Activation, BatchTopK, JumpReLU, PerSite, ReLU, TopK
from crosscode.data import Dataloader, Harvester, TokenSequences
from crosscode.evaluation import Evaluation, attribute_logits, find_examples, full_evaluation, latent_scaling
from crosscode.models import (
    DenseEncoder,
    SharedDecoder,
    SparseCoder,
    acausal_crosscoder,
    compound_cross_layer_transcoder,
    cross_layer_transcoder,
    sae,
    transcoder,
)
from crosscode.report import figures_of, print_evaluation, write_report
from crosscode.training import calibrate

READS = tuple(f"blocks.{i}.mlp.hook_in" for i in range(2))
WRITES = tuple(f"blocks.{i}.hook_mlp_out" for i in range(2))
STREAM = "blocks.1.hook_resid_post"


def loader(n_models: int = 1, reads: object = None, writes: object = None) -> Dataloader:
    generator = torch.Generator().manual_seed(0)
    texts = [" ".join(WORDS[i] for i in torch.randint(0, 20, (14,), generator=generator)) for _ in range(12)]
    models = tuple(TinyModel(seed) for seed in range(n_models))
    sequences = TokenSequences(texts, models[0], sequence_length=8, split="all")
    harvester = Harvester(models, STREAM if reads is None else (*READS, *WRITES))
    options = {"shuffle_buffer": 64, "epochs": 1, "squeeze": n_models == 1, "reads": reads, "writes": writes}
    return Dataloader(sequences, harvester, 16, **options)


def never(n_latents: int) -> Activation:
    """A threshold that nothing reaches."""
    return JumpReLU(n_latents, threshold=1e6)


def shared(n_latents: int) -> SparseCoder:
    return SparseCoder(DenseEncoder((2, 1), D, n_latents), never(n_latents), SharedDecoder(n_latents, 4, (2, 1), D))


def silence(coder: SparseCoder) -> None:
    """Weights at random, and a bias that nothing gets over."""
    generator = torch.Generator().manual_seed(0)
    encoder, decoder = coder.encoder, coder.decoder
    encoder.assign_(torch.randn(*encoder.in_dims, D, 12, generator=generator))
    decoder.assign_(torch.randn(12, *decoder.out_dims, D, generator=generator))
    with torch.no_grad():
        encoder.b_enc_L -= 100.0


SILENT: dict[str, tuple[Callable[[], Dataloader], Callable[[], SparseCoder]]] = {
    "SAE, TopK": (loader, lambda: sae(D, 12, TopK(3))),
    "SAE, JumpReLU": (loader, lambda: sae(D, 12, never(12))),
    "two models, TopK": (
        lambda: loader(2),
        lambda: acausal_crosscoder(n_models=2, n_hookpoints=1, d_model=D, n_latents=12, activation=TopK(3)),
    ),
    "two models, BatchTopK": (
        lambda: loader(2),
        lambda: acausal_crosscoder(n_models=2, n_hookpoints=1, d_model=D, n_latents=12, activation=BatchTopK(3)),
    ),
    "two models, shared": (lambda: loader(2), lambda: shared(12)),
    "transcoder": (lambda: loader(1, READS[0], WRITES[0]), lambda: transcoder(D, 12, ReLU(), skip=True)),
    "CLT": (lambda: loader(1, READS[0], WRITES), lambda: cross_layer_transcoder(D, 2, 12, TopK(3))),
    "compound CLT": (
        lambda: loader(1, READS, WRITES),
        lambda: compound_cross_layer_transcoder(D, 2, 6, PerSite([never(6), never(6)])),
    ),
}


@pytest.mark.parametrize("kind", SILENT)
def test_a_silent_coder_is_measured_and_shown(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every function, file, figure and line: with zeros and without a failed part; it reconstructs by its bias."""
    data, coder = (make() for make in SILENT[kind])
    silence(coder)
    coder = calibrate(coder, data)
    found = full_evaluation(coder, data, 60, splice_tokens=30, example_latents=5, dead_L=torch.ones(12).bool())
    assert found.metrics["l0/mean"] == 0
    assert found.metrics["density/never"] == found.metrics["dead"] == 1
    assert math.isfinite(found.metrics["fvu/pooled"])
    assert set(found.absent) <= {"logit attribution"}, "nothing failed"
    assert found.examples is not None
    assert len(found.examples.latents_E) == 0
    if found.scaling is not None:
        assert found.scaling[0].nu_error_L.isnan().all()
        assert latent_scaling(coder, data, 60)[1].verdicts(0.0).n_undefined == 12
    assert find_examples(coder, data, [], n_tokens=60).tokens_EKW.shape == (0, 8, 25)
    logits = attribute_logits(coder, data, torch.zeros(0, dtype=torch.int64), torch.zeros(0), k=3)
    assert logits is not None
    assert logits.rise_EMK.shape == (0, len(data.model_names), 3)
    found.save(tmp_path)
    read = Evaluation.load(tmp_path)
    assert read.examples is not None
    assert read.examples.tokens_EKW.shape == found.examples.tokens_EKW.shape
    assert "density" not in figures_of(tmp_path), "there is none to be drawn"
    assert "100.0 %" in write_report(tmp_path).read_text()
    print_evaluation(read, "silent")
    assert "never fired here 100.0%" in capsys.readouterr().out
