"""What is measured does not depend on the mode that a coder was left in, and nothing of the coder is changed by it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor

from crosscode.activations import BatchTopK
from crosscode.batch import Batch
from crosscode.data import Dataloader, Harvester, TokenSequences
from crosscode.evaluation import (
    Evaluation,
    attribute_logits,
    find_examples,
    full_evaluation,
    latent_scaling,
    measure_coder,
    measures,
    splice,
)
from crosscode.initialization import AnthropicTranspose
from crosscode.models import SparseCoder, acausal_crosscoder
from crosscode.training import calibrate

WORDS = [f"w{i}" for i in range(20)]


class Sums:
    """A language model whose one activation is the running sum of its tokens' vectors; it may break down."""

    bos_id, eos_id, context_length, n_layers, breaks = 0, 1, None, 1, False
    vocabulary: Mapping[str, int] = {"<bos>": 0, "<eos>": 1} | {word: i + 2 for i, word in enumerate(WORDS)}
    special_ids = frozenset({0, 1})
    hookpoints = ("blocks.0.hook_resid_post",)

    def __init__(self, seed: int) -> None:
        self.name, self.identity, self.tokenizer = f"sums{seed}", f"sums@{seed}", self
        generator = torch.Generator().manual_seed(seed)
        self.embed_VD, self.unembed_DV = (torch.randn(*size, generator=generator) for size in ((22, 6), (6, 22)))

    def __call__(self, texts: list[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[self.vocabulary[word] for word in text.split() if word != "a"] or [2] for text in texts]}

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(map(str, ids))

    def width(self, hookpoint: str) -> int:
        return 6

    def unembedding(self) -> Tensor:
        return self.unembed_DV

    def direct_gain(self, hookpoint: str) -> float:
        return 1.0

    def harvest(self, tokens_HS: Tensor, hookpoints: Sequence[str]) -> Tensor:
        if self.breaks:
            raise RuntimeError("power cut")
        return self.embed_VD[tokens_HS].cumsum(1)[:, :, None]

    def logits(self, tokens_HS: Tensor, edits: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensor:
        acts_HSD = self.harvest(tokens_HS, self.hookpoints)[:, :, 0]
        for edit in edits.values():
            acts_HSD = edit(acts_HSD)
        return acts_HSD @ self.unembed_DV


def loader() -> Dataloader:
    generator = torch.Generator().manual_seed(0)
    texts = [" ".join(WORDS[i] for i in torch.randint(0, 20, (14,), generator=generator)) for _ in range(12)]
    models = (Sums(0), Sums(1))
    sequences = TokenSequences(texts, models[0], sequence_length=8, split="all")
    return Dataloader(sequences, Harvester(models, Sums.hookpoints[0]), 16, shuffle_buffer=64, epochs=1)


def a_coder() -> SparseCoder:
    """BatchTopK in training mode keeps the batch's best; in eval mode what exceeds its threshold."""
    coder = acausal_crosscoder(n_models=2, n_hookpoints=1, d_model=6, n_latents=24, activation=BatchTopK(3))
    AnthropicTranspose(1.0)(coder, [])
    with torch.no_grad():
        coder.scale_in_Xi.mul_(0.3)
        coder.scale_out_Xo.mul_(0.3)
    return calibrate(coder, loader())


def everything(coder: SparseCoder, data: Dataloader) -> Any:
    return full_evaluation(coder, data, 60, splice_tokens=30, example_latents=5)


FUNCTIONS: dict[str, Callable[[SparseCoder, Dataloader], Any]] = {
    "measure_coder": lambda coder, data: measure_coder(coder, data, measures(coder, data), 60),
    "latent_scaling": lambda coder, data: latent_scaling(coder, data, 60),
    "splice": lambda coder, data: splice(coder, data, 60, ablation="mean"),
    "find_examples": lambda coder, data: find_examples(coder, data, [0, 1, 2], n_tokens=60),
    "attribute_logits": lambda coder, data: attribute_logits(coder, data, torch.arange(3), torch.ones(3), k=2),
    "full_evaluation": everything,
    "calibrate": lambda coder, data: calibrate(coder, data, 60).activation.threshold.clone(),
}


def plainly(found: Any) -> Any:
    """Records as nested dictionaries of numbers and lists."""
    if isinstance(found, Tensor):
        return found.double().nan_to_num(nan=-1.0).flatten().tolist()
    if attrs.has(type(found)):
        return {field.name: plainly(getattr(found, field.name)) for field in attrs.fields(type(found))}
    if isinstance(found, Mapping):
        return {name: plainly(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [plainly(each) for each in found]
    return -1.0 if found != found else found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_mode_does_not_matter_and_is_put_back(name: str) -> None:
    """In training mode BatchTopK would select among the batch, and move its threshold."""
    results = []
    for training in (False, True):
        coder = a_coder().train(training)
        before = {key: value.clone() for key, value in coder.state_dict().items()}
        results.append(plainly(FUNCTIONS[name](coder, loader())))
        assert coder.training == training
        for key, value in coder.state_dict().items():
            assert torch.equal(value, before[key]) or name == "calibrate", key
        assert all(parameter.grad is None for parameter in coder.parameters())
    assert results[0] == results[1]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name != "attribute_logits"])  # which reads weights
def test_the_mode_is_put_back_when_the_data_break_down(name: str, training: bool) -> None:
    """A coder that is trained on after a failed evaluation would otherwise not learn its thresholds."""
    coder, data = a_coder().train(training), loader()
    for model in data.harvester.models:
        model.breaks = True
    with pytest.raises(RuntimeError, match="power cut"):
        FUNCTIONS[name](coder, data)
    assert coder.training == training


@pytest.mark.parametrize("name", ["measure_coder", "latent_scaling", "full_evaluation"])
def test_batches_go_to_the_coders_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them, whatever device the data are on; without an accelerator only that it is asked for can be seen."""
    asked: list[torch.device | str] = []
    to = Batch.to

    def record(batch: Batch, where: torch.device | str) -> Batch:
        asked.append(where)
        return to(batch, where)

    coder, data = a_coder(), loader()
    monkeypatch.setattr(Batch, "to", record)
    monkeypatch.setattr(SparseCoder, "device", property(lambda coder: torch.device("cpu", 0)))
    FUNCTIONS[name](coder, data)
    assert asked
    assert set(asked) == {torch.device("cpu", 0)}


@pytest.mark.parametrize("name", ["splice", "find_examples"])
def test_a_coder_of_another_precision_is_given_its_own(name: str) -> None:
    """Activations of float32 for a coder in float64: figures as those of float32, to rounding."""
    single, double = (FUNCTIONS[name](a_coder().to(dtype), loader()) for dtype in (torch.float32, torch.float64))
    if name == "splice":
        for one, other in zip(single, double):
            assert attrs.asdict(one.joint) == pytest.approx(attrs.asdict(other.joint), rel=1e-3, abs=1e-4)
    else:
        assert torch.equal(single.tokens_EKW, double.tokens_EKW)
        torch.testing.assert_close(single.values_EKW, double.values_EKW, rtol=1e-4, atol=1e-5)


def flattened(found: Any, path: str = "") -> dict[str, Any]:
    """Every number and text of a nested result, by where it stands."""
    if isinstance(found, Mapping):
        return {k: v for name, each in found.items() for k, v in flattened(each, f"{path}/{name}").items()}
    if isinstance(found, list):
        return {k: v for i, each in enumerate(found) for k, v in flattened(each, f"{path}/{i}").items()}
    return {path: found}


def test_an_evaluation_comes_back_from_its_files_whole(tmp_path: Path) -> None:
    """Every field of every record, to the rounding of float32; what is written again is the same."""
    made = everything(a_coder(), loader())
    made.save(tmp_path / "one")
    read = Evaluation.load(tmp_path / "one")
    wanted, found = flattened(plainly(made)), flattened(plainly(read))
    assert found.keys() == wanted.keys()
    assert {"/scaling/1/own", "/scaling/1/count_L/0", "/examples/before", "/logits/sites/0"} <= wanted.keys()
    for name, value in wanted.items():
        assert found[name] == (pytest.approx(value, rel=1e-3, abs=1e-4) if isinstance(value, float) else value), name
    read.save(tmp_path / "two")
    for name in ("metrics.json", "latents.safetensors", "tokens.json"):
        assert (tmp_path / "two/evaluation" / name).read_bytes() == (tmp_path / "one/evaluation" / name).read_bytes()
