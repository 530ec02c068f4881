"""Bad input to a recipe: one line that says what is wrong, exit code 2, no weights read, no step taken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_runs
from small_runs import SMALL, VOCABULARY, factory, options, save_model, save_text

from crosscode.data.language_model import TransformerLensModel
from crosscode.run import main
from crosscode.training import Trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models `base`, `wide` and `foreign` (another vocabulary) and some text."""
    folder = tmp_path_factory.mktemp("bad_input")
    save_model(folder / "base", seed=0)
    save_model(folder / "wide", seed=0, width=32)
    save_model(folder / "foreign", seed=0, vocabulary={"<bos>": 0, "<eos>": 1, "<unk>": 2, "other": 3})
    save_text(folder / "text.txt")
    save_text(folder / "few.txt", n_documents=3)
    rows = [json.dumps({"body": "w1 w2 w3", "title": "w4"}) for _ in range(100)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "empty.txt").write_text("")
    return folder


@pytest.fixture
def refusal(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """`refusal("l1_crosscoder", l1=-1)`: the one line that the recipe ends with."""

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("bad input must be found before any weight is read or step taken")

    def run(recipe: str, **given: Any) -> str:
        monkeypatch.setattr(TransformerLensModel, "harvest", forbidden)
        monkeypatch.setattr(Trainer, "step", forbidden)
        capsys.readouterr()
        defaults = {"models": [folder / "base"], "dataset": folder / "text.txt", "output": tmp_path / "run"}
        with pytest.raises(SystemExit) as stopped:
            main(factory(recipe), options(**{**SMALL, **defaults, **given}))
        assert stopped.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "Loading" not in line]
        assert line.startswith("error: ")
        return line

    return run


@pytest.mark.parametrize(
    ("recipe", "given", "said"),
    [
        ("l1_crosscoder", {"hookpoints": ["blocks.2.hook_resid_pots"]}, ["resid_pots", "'blocks.2.hook_resid_post'"]),
        ("clt_l1", {"reads": ["blocks.1.mlp.hook_inn"]}, ["blocks.1.mlp.hook_inn", "'blocks.1.mlp.hook_in'"]),
        ("topk_crosscoder", {"k": 33}, ["k=33", "n_latents=32"]),
        ("topk_crosscoder", {"k": 33, "style": "topk"}, ["k=33", "n_latents=32"]),
        ("topk_crosscoder", {"k": 33, "style": "groupmax"}, ["k=33", "n_latents=32"]),
        ("topk_crosscoder", {"k": 0}, ["k=0", "at least 1"]),
        ("topk_crosscoder", {"n_latents": 0}, ["n_latents=0", "at least 1"]),
        ("l1_crosscoder", {"l1": -1}, ["-1", "at least 0"]),
        ("l1_crosscoder", {"lr": -1}, ["-1", "at least 0"]),
        ("topk_crosscoder", {"k": 4, "aux_k": -0.1}, ["-0.1", "at least 0"]),
        ("jan_update_jumprelu", {"sparsity": -1}, ["-1", "at least 0"]),
        ("jan_update_jumprelu", {"pre_act": -1}, ["-1", "at least 0"]),
        ("jan_update_jumprelu", {"bandwidth": 0}, ["bandwidth=0", "greater than 0"]),
        ("jan_update_jumprelu", {"firing_rate": 1.5}, ["firing_rate=1.5", "between 0 and 1"]),
        ("l1_crosscoder", {"num_steps": 0}, ["num_steps=0", "at least 1"]),
        ("l1_crosscoder", {"batch_size": 9999, "shuffle_buffer": 9999}, ["batch_size=9999", "larger than the data"]),
        ("l1_crosscoder", {"device": "abacus"}, ["abacus"]),
        ("l1_crosscoder", {"models": ["./nowhere"]}, ["./nowhere"]),
        ("l1_crosscoder", {"models": ["embedded:bsae"]}, ["bsae", "'base'"]),
        ("l1_crosscoder", {"resume": True}, ["resume", "no whole checkpoint"]),
        ("l1_crosscoder", {"n_latens": 3}, ["--n-latens", "'--n-latents'"]),
        ("l1_crosscoder", {"checkpoint_every": 0}, ["every=0", "at least 1"]),
        ("l1_crosscoder", {"log_every": 0}, ["every=0", "at least 1"]),
        ("l1_crosscoder", {"l1": "nan"}, ["nan"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_impossible_option_is_one_line(recipe: str, given: dict, said: list[str], refusal) -> None:
    """The line names the option, its value and what is allowed."""
    line = refusal(recipe, **given)
    for part in said:
        assert part in line


def test_more_shared_latents_than_latents(folder: Path, tmp_path: Path, refusal) -> None:
    """`n_shared > n_latents` is named, in both the penalised and the TopK-style recipe."""
    save_model(tmp_path / "tuned", seed=1)
    for recipe in ("feb_diffing_l1", "feb_diffing_topk"):
        line = refusal(recipe, models=[folder / "base", tmp_path / "tuned"], n_shared=33)
        assert "n_shared=33" in line
        assert "32" in line


def test_a_hookpoint_of_another_width(folder: Path, refusal) -> None:
    """Latents cannot be shared between models of different width."""
    line = refusal("feb_diffing_jumprelu", models=[folder / "base", folder / "wide"], n_shared=4)
    assert "widths" in line
    assert "(16, 32)" in line


def test_an_sae_of_several_sites(refusal) -> None:
    """`sae_topk` has no crosscoding dimension: two hookpoints do not fit it, and both shapes are named."""
    line = refusal("sae_topk", k=4, hookpoints=["blocks.1.hook_resid_post", "blocks.2.hook_resid_post"])
    assert "(16,)" in line
    assert "(1, 2, 16)" in line


def test_a_missing_text_column(folder: Path, refusal) -> None:
    """The columns that are there are listed."""
    line = refusal("l1_crosscoder", dataset=folder / "rows.jsonl", text_column="text")
    assert "'text'" in line
    assert "body" in line
    assert "title" in line


def test_an_empty_dataset(folder: Path, refusal) -> None:
    """No document is no training."""
    assert "empty.txt" in refusal("l1_crosscoder", dataset=folder / "empty.txt")


def test_a_dataset_without_a_held_out_document(folder: Path, refusal) -> None:
    """Every twentieth document is held out: three documents hold out none, and the line says which split is empty."""
    assert "held_out" in refusal("l1_crosscoder", dataset=folder / "few.txt", batch_size=32)


def test_a_file_that_is_not_there(folder: Path, refusal) -> None:
    """The path is named."""
    assert "nowhere.jsonl" in refusal("l1_crosscoder", dataset=folder / "nowhere.jsonl")


def test_vocabularies_that_differ(folder: Path, refusal) -> None:
    """Both models and how they differ are named."""
    line = refusal("feb_diffing_l1", models=[folder / "base", folder / "foreign"])
    for part in ("base", "foreign", "vocabular", "64", "4 tokens"):
        assert part in line


def test_resuming_another_configuration(folder: Path, tmp_path: Path, refusal, monkeypatch) -> None:
    """The fields that differ are listed with both values."""
    given = {"models": [folder / "base"], "dataset": folder / "text.txt", "output": tmp_path / "run"}
    main(factory("l1_crosscoder"), options(**{**SMALL, **given, "num_steps": 2, "l1": 0.5}))
    line = refusal("l1_crosscoder", resume=True, num_steps=2, l1=0.25, n_latents=16)
    assert "penalties.l1.weight.value: 0.5 -> 0.25" in line
    assert "n_latents: 32 -> 16" in line


def test_a_run_that_was_cut_short_is_not_overwritten(folder: Path, tmp_path: Path, refusal) -> None:
    """Without `--resume` the line says that there is something to resume; a complete run is replaced."""
    given = {"models": [folder / "base"], "dataset": folder / "text.txt", "output": tmp_path / "run", "num_steps": 2}
    arguments = options(**{**SMALL, **given})
    main(factory("l1_crosscoder"), arguments)
    main(factory("l1_crosscoder"), arguments)
    (tmp_path / "run" / "summary.json").unlink()
    line = refusal("l1_crosscoder", num_steps=2)
    assert "cut short" in line
    assert "--resume" in line


def test_the_vocabulary_of_the_tests_fits() -> None:
    """The models above have as many embeddings as tokens."""
    assert len(VOCABULARY) == len(small_runs.WORDS) + 3 == 64
