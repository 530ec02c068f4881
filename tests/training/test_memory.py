"""Memory is known beforehand: the table adds up, follows the sizes, and refuses what does not fit."""

from pathlib import Path

import pytest
import torch
from small_runs import SMALL, factory, options, save_model, save_text

import crosscode.run.options
import crosscode.run.program
from crosscode import SparseCoder, Trainer
from crosscode.activations import ReLU, TopK
from crosscode.data.transformer_lens_model import TransformerLensModel
from crosscode.losses import SummedSquaredError
from crosscode.models import sae
from crosscode.run import RunOptions, main
from crosscode.run.program import memory_of
from crosscode.training.memory import Estimate, _container_leaves, moments_per_number

DEFAULT = RunOptions()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and a text."""
    folder = tmp_path_factory.mktemp("memory")
    save_model(folder / "base", seed=0)
    save_text(folder / "text.txt")
    return folder


@pytest.fixture
def given(folder: Path, tmp_path: Path) -> dict[str, object]:
    return {**SMALL, "models": [folder / "base"], "dataset": folder / "text.txt", "output": tmp_path / "run"}


def estimate_of(recipe: str, given: dict[str, object], **more: object) -> Estimate:
    run, scheme = crosscode.run.program.read_options(factory(recipe), options(**{**given, **more}))
    return memory_of(factory(recipe), run, scheme)


def part(estimate: Estimate, what: str) -> int:
    return next(part.bytes for part in estimate.parts if part.what.startswith(what))


@pytest.mark.parametrize("recipe", ["sae_topk", "compound_clt", "feb_diffing_jumprelu"])
def test_a_dry_run_prints_the_table_and_stops(recipe: str, given, folder, tmp_path, capsys, monkeypatch) -> None:
    """Every part is there; no weight is read, nothing is written."""

    def forbidden(*args: object) -> None:
        raise AssertionError("a dry run reads no weights")

    monkeypatch.setattr(TransformerLensModel, "harvest", forbidden)
    monkeypatch.setattr(TransformerLensModel, "hf_model", property(forbidden))
    if recipe == "feb_diffing_jumprelu":
        save_model(tmp_path / "tuned", seed=1)
        given |= {"models": [folder / "base", tmp_path / "tuned"], "n_shared": 8}
    assert main(factory(recipe), options(**{**given, "k": 4} if recipe == "sae_topk" else given, dry_run=True)) == {}
    shown = capsys.readouterr().out
    parts = ("language models", "coder", "gradients", "optimizer", "shuffle buffer", "batches remembered", "harvesting")
    for said in (*parts, "a step on 128 tokens", "checkpoints", "peak", "free on cpu", "refused when"):
        assert said in shown
    assert ("dense codes" in shown) == (recipe != "sae_topk")
    assert not (tmp_path / "run").exists()


def test_the_table_follows_the_sizes(given) -> None:
    """What belongs to the coder grows with its latents, what belongs to the buffer with the buffer; Adam is twice."""
    one = estimate_of("sae_topk", given, k=4)
    wide = estimate_of("sae_topk", given, k=4, n_latents=3200)
    assert part(wide, "gradients") == pytest.approx(100 * part(one, "gradients"), rel=0.02)  # b_dec stays
    assert part(wide, "optimizer") == 2 * part(wide, "gradients")
    assert part(estimate_of("sae_topk", given, k=4, shuffle_buffer=8192), "shuffle") == 8 * part(one, "shuffle")
    assert part(estimate_of("sae_topk", given, k=4, init_tokens=25_600), "batches rem") == 25_600 * 16 * 4
    assert part(estimate_of("l1_crosscoder", given, init_tokens=25_600), "batches rem") == 3 * 25_600 * 16 * 4
    assert part(estimate_of("clt_l1", given, init_tokens=25_600), "batches rem") == 4 * 25_600 * 16 * 4
    assert one.peak == one.at("always") + max(
        one.at(when) for when in ("before the first step", "in a step", "at the end")
    )


def test_the_table_knows_how_many_sequences_are_harvested_at_once(given) -> None:
    """A forward pass grows with them; the shuffle buffer does where two of them no longer fit, and then says so."""
    one, four = (estimate_of("sae_topk", given, k=4, sequences_at_once=n) for n in (1, 4))
    passes = [next(part.bytes for part in each.parts if part.what == "harvesting") for each in (one, four)]
    assert passes[1] == 4 * passes[0]
    assert part(four, "shuffle") == part(one, "shuffle") == 1024 * 16 * 4
    many = estimate_of("sae_topk", given, k=4, sequences_at_once=1000)
    assert part(many, "shuffle") == 2 * 1000 * 32 * 16 * 4
    (option,) = {part.option for part in many.parts if part.what == "shuffle buffer"}
    assert "--sequences-at-once" in option


def test_the_weights_of_language_models_are_counted(folder: Path) -> None:
    """From a skeleton, to the byte."""
    model = crosscode.run.options.load_language_model(str(folder / "base"), dtype="bfloat16")
    assert isinstance(model, TransformerLensModel)
    expected = model.weight_bytes
    assert not model.loaded
    assert expected == sum(value.nbytes for value in model.hf_model.parameters())


@pytest.mark.parametrize(
    ("free", "disk", "said"),
    [
        (10 << 20, 1 << 40, ["of memory", "10.0 MiB are free", "--"]),
        (1 << 40, 1 << 10, ["disk space", "0.0 MiB are free", "--output"]),
    ],
)
def test_what_does_not_fit_is_refused(
    free: int, disk: int, said: list[str], given, tmp_path, capsys, monkeypatch
) -> None:
    """One line with the largest part and what makes it smaller; exit code 2; nothing is left behind."""
    monkeypatch.setattr(crosscode.run.program, "free_bytes", lambda device: free)
    monkeypatch.setattr(crosscode.run.program, "free_disk", lambda directory: disk)
    with pytest.raises(SystemExit) as stopped:
        main(factory("sae_topk"), options(**given, k=4))
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    for each in (*said, "--dry-run"):
        assert each in line
    assert not (tmp_path / "run").exists()


def test_the_largest_part_is_named(given, capsys, monkeypatch) -> None:
    """A million latents are refused for their own sake, and the option that lowers them is named."""
    monkeypatch.setattr(crosscode.run.program, "free_bytes", lambda device: 1 << 30)
    with pytest.raises(SystemExit):
        main(factory("sae_topk"), options(**{**given, "n_latents": 20_000_000}, k=4))
    line = capsys.readouterr().err
    assert "optimizer" in line or "a step on" in line
    assert "--n-latents" in line or "--batch-size" in line


def test_a_container_has_less_than_the_machine(tmp_path: Path) -> None:
    """Both kinds of control groups; pages of files count as free; no limit is no bound."""
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 200\n")
    assert _container_leaves(tmp_path) == [500]
    (tmp_path / "memory.max").write_text("max\n")
    assert _container_leaves(tmp_path) == []
    old = tmp_path / "old"
    (old / "memory").mkdir(parents=True)
    (old / "memory" / "memory.limit_in_bytes").write_text("1000")
    (old / "memory" / "memory.usage_in_bytes").write_text("900")
    (old / "memory" / "memory.stat").write_text("total_inactive_file 50\n")
    assert _container_leaves(old) == [150]
    assert _container_leaves(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("optimizer", "n"),
    [
        (torch.optim.Adam, 2),
        (torch.optim.SGD, 0),
        (lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), 1),
        (torch.optim.AdamW, 2),
    ],
)
def test_moments_of_optimizers_are_counted(optimizer, n: int) -> None:
    """Adam keeps two numbers for each, SGD none."""
    assert moments_per_number(optimizer(sae(4, 6, ReLU()).parameters())) == n


def test_a_recipe_that_looks_at_values_is_estimated_too(given) -> None:
    """A coder that cannot be built without values is built with them."""

    def mine(run: RunOptions = DEFAULT, n_latents: int = 32) -> Trainer:
        data = run.dataloader()
        coder: SparseCoder = sae(data.d_in, n_latents, TopK(2)).to(run.device)
        assert float(coder.decoder.dense().sum()) == float(coder.decoder.dense().sum())
        return Trainer(
            model=coder, data=data, loss=SummedSquaredError(), optimizer=torch.optim.Adam(coder.parameters()),
            lr=1e-3, num_steps=2,
        )  # fmt: skip

    run, _ = crosscode.run.program.read_options(mine, options(**{k: v for k, v in given.items() if k != "num_steps"}))
    assert part(memory_of(mine, run, {}), "gradients") > 0


def test_a_loss_that_runs_models_and_what_batches_carry_are_counted(given) -> None:
    """The end-to-end recipe: its model's logits, and the whole sequence that each token carries."""
    plain, spliced = (estimate_of(recipe, given, k=4) for recipe in ("sae_topk", "end_to_end"))
    of_loss = "what the loss takes"
    assert not [each for each in plain.parts if each.what.startswith(of_loss)]
    assert part(spliced, of_loss) >= 5 * 4 * 64 * 128  # of 128 tokens and 64 rows
    a_token, carried = 16 * 4, 8 * (32 + 2)
    assert part(spliced, "shuffle") == part(plain, "shuffle") // a_token * (a_token + carried)
