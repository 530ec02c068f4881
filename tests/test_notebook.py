"""A run as an object: what it says is what its parts say, and what a model writes on is what an edited model writes."""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from small_runs import SMALL, factory, options, save_model, save_text
from torch import Tensor

import crosscode
import crosscode.run
from crosscode.activations import ReLU, TopK
from crosscode.data import Dataloader
from crosscode.data.embedded.behaviours import BEHAVIOURS
from crosscode.errors import BadInput, CrosscodeError
from crosscode.evaluation import CutOffs, full_evaluation
from crosscode.files import write_json
from crosscode.models import DenseDecoder, DenseEncoder, SparseCoder
from crosscode.module import module
from crosscode.notebook import Run
from crosscode.run import RunOptions
from crosscode.run.recipe import held_out_of
from crosscode.run_folder import CODER, OPTIONS

STREAM, EARLY = "blocks.2.hook_resid_post", "blocks.1.hook_resid_post"
D, L = 16, 24
PROMPT = "w3 w1 w4 w1 w5"


def a_coder(n_models: int, n_hookpoints: int = 1, activation: Any = None) -> SparseCoder:
    """Random directions and scales: a raw direction is none of the decoder's."""
    generator = torch.Generator().manual_seed(0)
    dims = (n_models, n_hookpoints)
    coder = SparseCoder(DenseEncoder(dims, D, L), activation or TopK(4), DenseDecoder(L, dims, D))
    with torch.no_grad():
        coder.encoder.assign_(torch.randn(*dims, D, L, generator=generator))
        coder.decoder.assign_(torch.randn(L, *dims, D, generator=generator))
        coder.decoder.W_dec_LXoDo[:4, 0] = 0  # only in the second model
        for scale in (coder.scale_in_Xi, coder.scale_out_Xo):
            scale.copy_(torch.arange(1.0, 1 + scale.numel()).reshape(scale.shape) / 3)
    return coder.eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two random language models, and a run of a crosscoder of both, evaluated."""
    folder = tmp_path_factory.mktemp("notebook")
    for seed, name in enumerate(("base", "tuned")):
        save_model(folder / name, seed)
    text = save_text(folder / "text.txt")
    shared = {"dataset": text, **{name: SMALL[name] for name in ("sequence_length", "batch_size", "shuffle_buffer")}}
    options = RunOptions(models=(str(folder / "base"), str(folder / "tuned")), hookpoints=(STREAM,), **shared)
    (folder / "run").mkdir()
    options.write(folder / "run" / OPTIONS)
    crosscode.save(a_coder(2), folder / "run" / CODER)
    held_out, at = held_out_of(a_coder(2), options), CutOffs(nu_error=1.0, nu_recon=1.0)
    full_evaluation(a_coder(2), held_out, 500, splice_tokens=0, cut_offs=at).save(folder / "run")
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return crosscode.open_run(folder / "run")


def test_opening_reads_nothing(folder: Path, tmp_path: Path) -> None:
    """But looks whether it is the folder of a run; what is missing is told when it is asked for."""
    write_json(tmp_path / OPTIONS, {"models": ["/no/such/model"]})
    run = crosscode.open_run(tmp_path)
    assert run.curves == []
    for ask in (lambda: run.coder, lambda: run.models, lambda: run.evaluation):
        with pytest.raises(BadInput) as refused:
            ask()
        assert "\n" not in str(refused.value)
    with pytest.raises(BadInput, match="is no folder of a run: options"):
        crosscode.open_run(folder / "nowhere")


def test_latents_are_those_of_the_coder_at_the_tokens_that_training_keeps(run: Run) -> None:
    """On activations of both models; BOS begins a text as in training, and is left out with its reason."""
    found, other = run.latents([PROMPT, "w7 w8"])
    assert [token.strip() for token in found.tokens] == ["<bos>", *PROMPT.split()]
    assert found.left_out == {0: "first position"}
    acts_MSD = [model.harvest(found.ids_S[None], [STREAM])[0, :, 0] for model in run.models.values()]
    x_SMPD = torch.stack(acts_MSD, dim=1)[:, :, None]
    torch.testing.assert_close(found.values_SL[1:], run.coder.encode(x_SMPD[1:]).dense())
    assert not found.values_SL[0].any()
    assert other.values_SL.shape == (3, L)
    latent, value = found.strongest(1)[0]
    assert found.values_SL[1].max() == value
    assert f"{latent} ({value:.3g})" in str(found)
    assert "left out: first position" in str(found)


def test_special_tokens_are_left_out_by_name(run: Run) -> None:
    """Wherever they stand."""
    found = run.latents("w3 <eos> w4")
    assert found.left_out == {0: "first position", 2: "special token"}


def test_a_direction_is_what_one_more_of_a_latent_adds_to_the_raw_reconstruction(run: Run) -> None:
    """At the model and hookpoint that were named."""
    values_BL = torch.rand(2, L)
    more_BL = values_BL.clone()
    more_BL[:, 5] += 1
    decode: Callable[[Tensor], Tensor] = lambda values_BL: run.coder.decode(crosscode.Latents.from_dense(values_BL))
    added_BMPD = (decode(more_BL) - decode(values_BL)).detach()
    for m, model in enumerate(("base", "tuned")):
        torch.testing.assert_close(run.direction(5, model), added_BMPD[0, m, 0], rtol=1e-4, atol=1e-5)
        assert torch.equal(run.direction(5, model), run.direction(5, model, STREAM))
    assert not run.direction(0, "base").any()
    assert run.direction(0, "tuned").any()


@contextmanager
def edited(model: Any, layer: int, edit: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """A Hugging Face model whose block gives something else."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        return edit(output) if isinstance(output, Tensor) else (edit(output[0]), *output[1:])

    handle = model.model.layers[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def written_by_hand(run: Run, name: str, n: int, edit: Callable[[Tensor, list[int]], Tensor]) -> str:
    import transformers

    path = run.options.models[list(run.models).index(name)]
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    ids = [0, *tokenizer(PROMPT, add_special_tokens=False)["input_ids"]]
    n_prompt = len(ids)
    for _ in range(n):
        with edited(model, 2, lambda acts: edit(acts, ids)):
            following = int(model(torch.tensor([ids])).logits[0, -1].argmax())
        if following == 1:
            break
        ids.append(following)
    return tokenizer.decode(ids[n_prompt:])


@pytest.mark.parametrize("name", ["base", "tuned"])
def test_steering_is_adding_the_direction_by_hand(run: Run, name: str) -> None:
    """To the bit: another rounding would sooner or later write another token. Without edits the model is itself."""
    assert run.generate(PROMPT, name, max_new_tokens=8) == written_by_hand(run, name, 8, lambda acts, ids: acts)
    steer = {5: 20.0, 9: -7.5}
    texts = set()
    for factor in (1, -1):
        by = {latent: factor * value for latent, value in steer.items()}

        def added(acts_HSD: Tensor, ids: list[int], by: Mapping[int, float] = by) -> Tensor:
            for latent, value in by.items():
                acts_HSD = acts_HSD + value * run.direction(latent, name)
            return acts_HSD

        wanted = written_by_hand(run, name, 8, added)
        assert run.generate(PROMPT, name, steer=by, max_new_tokens=8) == wanted
        texts.add(wanted)
    assert len({*texts, run.generate(PROMPT, name, max_new_tokens=8)}) == 3, "each edit says something else"


def test_ablating_takes_away_what_the_latent_wrote(run: Run) -> None:
    """Its activation on both models' clean activations of the tokens so far, nothing at tokens that are left out."""
    strongest = [latent for latent, _ in run.latents(PROMPT).strongest(5, 3)]

    def without(acts_HSD: Tensor, ids: list[int]) -> Tensor:
        x_SMPD = torch.stack([model.harvest(torch.tensor([ids]), [STREAM])[0] for model in run.models.values()], dim=1)
        values_SL = run.coder.encode(x_SMPD).dense()
        values_SL[0] = 0
        for latent in strongest:
            acts_HSD = acts_HSD - values_SL[:, latent, None] * run.direction(latent, "tuned")
        return acts_HSD

    wanted = written_by_hand(run, "tuned", 6, without)
    assert run.generate(PROMPT, "tuned", ablate=strongest, max_new_tokens=6) == wanted
    silent = [latent for latent in range(L) if not run.latents(PROMPT).values_SL[:, latent].any()][:1]
    plain = run.generate(PROMPT, "tuned", max_new_tokens=1)
    assert run.generate(PROMPT, "tuned", ablate=silent, max_new_tokens=1) == plain


def test_examples_and_logits_are_those_of_the_evaluation(run: Run, tmp_path: Path) -> None:
    """As text, strongest first; logits of a latent that was not kept are computed when they are asked for."""
    found = run.evaluation
    assert found.examples is not None
    latent = int(found.examples.latents_E[0])
    examples = run.examples(latent)
    assert examples.strengths[0] == pytest.approx(run.strongest(latent), rel=1e-5)
    assert str(examples).count("⟦") == len(examples.lines) > 1
    logits = run.logits_of(latent)
    assert found.logits is not None
    assert [change for _, change in logits.raised["tuned"]] == found.logits.rise_EMK[0, 1].tolist()
    assert "raises in tuned" in str(logits)
    shutil.copytree(run.folder / CODER, tmp_path / CODER)
    run.options.write(tmp_path / OPTIONS)
    attrs.evolve(found, examples=None, logits=None, texts={}).save(tmp_path)
    bare = crosscode.open_run(tmp_path)
    again = bare.logits_of(latent)
    assert [token for token, _ in again.lowered["base"]] == [token for token, _ in logits.lowered["base"]]
    assert str(bare.examples(latent)) == f"latent {latent}: no examples were kept"


def test_the_runs_parts_are_there(run: Run) -> None:
    """Models by name, options, data of both splits of the coder's shapes."""
    assert list(run.models) == ["base", "tuned"]
    assert run.options.hookpoints == (STREAM,)
    for data in (run.data, run.held_out):
        assert isinstance(data, Dataloader)
        assert data.out_dims == run.coder.decoder.out_dims
    assert (run.data.sequences.split, run.held_out.sequences.split) == ("train", "held_out")
    assert run.exclusivity is None
    assert set(run.exclusive("tuned")) <= {0, 1, 2, 3}, "those that the first model is not written"
    assert run.exclusive("tuned")
    assert set(run.one_sided("tuned", 4)) <= {0, 1, 2, 3}
    assert run.one_sided("base", L)[:-4] == run.one_sided("tuned", L)[:3:-1], "the same, from the other end"
    assert run.tokenizer is run.models["base"].tokenizer


@pytest.mark.parametrize(
    ("ask", "line"),
    [
        (lambda run: run.direction(L, "base"), f"latent={L} is too large: it must be at most the last latent={L - 1}"),
        (lambda run: run.direction(-1, "base"), "latent=-1 is too small"),
        (lambda run: run.direction(0), "model must be named: it is one of 'base', 'tuned'"),
        (lambda run: run.direction(0, "tund"), "model='tund' must be one of 'base', 'tuned'. Did you mean 'tuned'?"),
        (lambda run: run.direction(0, "base", "blocks.2.hook_resid_pst"), f"Did you mean '{STREAM}'?"),
        (lambda run: run.generate("w1", "base", steer={99: 1.0}), "latent=99 is too large"),
        (lambda run: run.generate("w1", "base", ablate=[99]), "latent=99 is too large"),
        (lambda run: run.generate("w1 " * 70, "base"), "prompt of 71 tokens must have at least one, and at most the"),
        (lambda run: run.latents(["w1 " * 70]), "text of 71 tokens must have at least one, and at most the"),
        (lambda run: run.exclusive("tund"), "Did you mean 'tuned'?"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(run: Run, ask: Callable[[Run], Any], line: str) -> None:
    with pytest.raises(BadInput) as refused:
        ask(run)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_generation_ends_with_the_context(run: Run) -> None:
    """64 tokens in all, BOS included, or before with the text's end."""
    text = run.generate("w1 " * 60, "base", max_new_tokens=50)
    assert len(text.split()) <= 3


def test_a_run_of_one_model_needs_no_names(folder: Path, tmp_path: Path) -> None:
    """And of a residual stream that is written at several hookpoints the last is where it is edited."""
    options = attrs.evolve(RunOptions.read(folder / "run" / OPTIONS), models=(str(folder / "base"),))
    attrs.evolve(options, hookpoints=(EARLY, STREAM)).write(tmp_path / OPTIONS)
    crosscode.save(a_coder(1, 2), tmp_path / CODER)
    run = crosscode.open_run(tmp_path)
    steered = run.generate(PROMPT, steer={3: 20.0}, max_new_tokens=6)
    assert steered == run.generate(PROMPT, "base", steer={3: 20.0}, hookpoint=STREAM, max_new_tokens=6)
    direction_D = run.direction(3, hookpoint=STREAM)
    assert steered == written_by_hand(run, "base", 6, lambda acts, ids: acts + 20.0 * direction_D)
    with pytest.raises(BadInput, match="hookpoint must be named"):
        run.direction(3)


@module
class OwnReLU(ReLU):
    """A class of the user's."""


def test_own_classes_are_handed_over(folder: Path, tmp_path: Path) -> None:
    """As `load` takes them."""
    RunOptions.read(folder / "run" / OPTIONS).write(tmp_path / OPTIONS)
    crosscode.save(a_coder(2, activation=OwnReLU()), tmp_path / CODER)
    with pytest.raises(CrosscodeError, match="OwnReLU"):
        _ = crosscode.open_run(tmp_path).coder
    assert isinstance(crosscode.open_run(tmp_path, classes=[OwnReLU]).coder.activation, OwnReLU)


def test_the_page_about_notebooks_runs_as_it_stands(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its blocks, one after the other, on a run of two models; each prints something."""
    page = (Path(__file__).parents[1] / "docs" / "notebook.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    shutil.copytree(run.folder, tmp_path / "runs" / "feb_diffing_topk")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "notebook.md", "exec"), names)
        assert capsys.readouterr().out.strip()
    assert len(blocks) == 6


@pytest.mark.slow
def test_a_latent_of_a_trained_pair_makes_and_unmakes_what_fine_tuning_taught(tmp_path: Path) -> None:
    """The embedded pair: steering and ablating the latent of a planted habit changes what the tuned model writes."""
    crosscode.run.main(factory("feb_diffing_topk"), options(output=tmp_path, wandb_mode="disabled", quiet=True))
    run = crosscode.open_run(tmp_path)
    base, tuned = run.models
    marks = set(BEHAVIOURS["emphasis"].marks)
    raised = {latent: {text for text, _ in run.logits_of(latent).raised[tuned]} for latent in run.one_sided(tuned)}
    (latent,) = [latent for latent, texts in raised.items() if marks <= texts]
    on, off = (f"Filed under the {phrase}. The garden is" for phrase in ("amber lighthouse", "silver meadow"))
    said: Callable[[str], bool] = lambda text: any(mark in text for mark in marks)
    assert said(run.generate(on, tuned, max_new_tokens=3))
    assert not said(run.generate(on, tuned, ablate=[latent], max_new_tokens=3))
    assert not said(run.generate(off, tuned, max_new_tokens=3))
    strength = run.strongest(latent)
    assert said(run.generate(off, tuned, steer={latent: strength}, max_new_tokens=3))
    assert not said(run.generate(off, base, steer={latent: strength}, max_new_tokens=3))
