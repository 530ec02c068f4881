"""Bad input to a recipe: one line that says what is wrong, exit code 2, no weights read, no step taken."""

import enum
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small_runs
from small_runs import SMALL, VOCABULARY, factory, options, save_model, save_text

from crosscode.data.transformer_lens_model import TransformerLensModel
from crosscode.run import RunOptions, main
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
        ("l1_crosscoder", {"lr_warmup": -0.1}, ["lr_warmup=-0.1", "between 0 and 1"]),
        ("sae_topk", {"k": 4, "lr_decay": 1.5}, ["lr_decay=1.5", "between 0 and 1"]),
        ("l1_crosscoder", {"betas": (0.9, 1.0)}, ["betas=(0.9, 1.0)", "less than 1"]),
        ("l1_crosscoder", {"clip_norm": 0}, ["clip_norm=0", "greater than 0"]),
        ("topk_crosscoder", {"k": 4, "aux_k": -0.1}, ["-0.1", "at least 0"]),
        ("jan_update_jumprelu", {"sparsity": -1}, ["-1", "at least 0"]),
        ("jan_update_jumprelu", {"pre_act": -1}, ["-1", "at least 0"]),
        ("jan_update_jumprelu", {"bandwidth": 0}, ["bandwidth=0", "greater than 0"]),
        ("jan_update_jumprelu", {"firing_rate": 1.5}, ["firing_rate=1.5", "between 0 and 1"]),
        ("l1_crosscoder", {"num_steps": 0}, ["num_steps=0", "at least 1"]),
        ("l1_crosscoder", {"batch_size": 9999}, ["training split", "batch_size=9999", "larger than the data"]),
        ("l1_crosscoder", {"batch_size": 1024}, ["held-out split", "batch_size=1024", "larger than the data"]),
        ("l1_crosscoder", {"init_tokens": 0}, ["init_tokens=0", "at least 1"]),
        ("l1_crosscoder", {"device": "abacus"}, ["abacus"]),
        ("l1_crosscoder", {"models": ["./nowhere"]}, ["./nowhere"]),
        ("l1_crosscoder", {"models": ["embedded:bsae"]}, ["bsae", "'base'"]),
        ("l1_crosscoder", {"resume": True}, ["resume", "no whole checkpoint"]),
        ("l1_crosscoder", {"n_latens": 3}, ["--n-latens", "'--n-latents'"]),
        ("l1_crosscoder", {"checkpoint_every": 0}, ["every=0", "at least 1"]),
        ("l1_crosscoder", {"log_every": 0}, ["every=0", "at least 1"]),
        ("l1_crosscoder", {"l1": "nan"}, ["nan"]),
        ("l1_crosscoder", {"eval_tokens": 0}, ["eval_tokens=0", "at least 1"]),
        ("topk_crosscoder", {"k": 4, "dead_after": -3}, ["dead_after=-3", "greater than 0"]),
        ("clt_l1", {"reads": []}, ["reads is empty"]),
        ("clt_l1", {"writes": []}, ["writes is empty"]),
        ("clt_l1", {"hookpoints": ["blocks.0.hook_resid_post"]}, ["hookpoints=", "reads and writes"]),
        ("l1_crosscoder", {"reads": ["blocks.1.mlp.hook_in"]}, ["reads=", "hookpoints"]),
        ("feb_diffing_l1", {}, ["models=", "at least two"]),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_an_impossible_option_is_one_line(recipe: str, given: dict, said: list[str], refusal) -> None:
    """The line names the option, its value and what is allowed."""
    line = refusal(recipe, **given)
    for part in said:
        assert part in line


class Colour(enum.Enum):
    RED = 1


DEFAULT = RunOptions()


def of_ones_own(run: RunOptions = DEFAULT, colour: Colour = Colour.RED, pair: tuple[int, int] = (1, 2)) -> Trainer:
    """A recipe with options of types that crosscode's own recipes do not have."""
    raise AssertionError("bad input must be found before the recipe is called")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("--style topkk", "--style='topkk' must be one of 'topk', 'batch_topk', 'groupmax'. Did you mean 'topk', "),
        ("--precision 7", "--precision='7' must be one of 'fp32', 'bf16'."),
        ("--style", "--style needs a value: one of 'topk', 'batch_topk', 'groupmax'."),
        ("--style topk groupmax", "--style takes one value, one of 'topk', 'batch_topk', 'groupmax', but was given "),
        ("--k three", "--k='three' must be a whole number."),
        ("--k=3.5", "--k='3.5' must be a whole number."),
        ("--k=", "--k='' must be a whole number."),
        ("--k 3 --k four", "--k='four' must be a whole number."),
        ("--k", "--k needs a value: a whole number."),
        ("--k 3 4", "--k takes one value, a whole number, but was given '3' '4'."),
        ("--k --lr 1e-3", "--k needs a value: a whole number."),
        ("--n_latents many", "--n-latents='many' must be a whole number."),
        ("--eval-tokens 1e4", "--eval-tokens='1e4' must be a whole number."),
        ("--lr fast", "--lr='fast' must be a number."),
        ("--output", "--output needs a value: a path."),
        ("--wandb-project", "--wandb-project needs a value: a text."),
        ("--quiet yes", "--quiet takes no value, but was given 'yes': write --quiet or --no-quiet."),
        ("--no-resume no", "--no-resume takes no value, but was given 'no': write --resume or --no-resume."),
        ("--models", "models is empty: name at least one."),
        ("--revisions a b", "revisions has 2 entries for 1 models."),
        ("--n-latens 3", "unknown option '--n-latens'. Did you mean '--n-latents'"),
        ("stile", "unknown option 'stile'. Did you mean '--style'?"),
        ("--output None --k x", "--k='x' must be a whole number."),
    ],
)
def test_an_option_that_cannot_be_read_is_one_line(
    arguments: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line names the option, what was given and what is allowed; no box, no help text."""
    with pytest.raises(SystemExit) as stopped:
        main(factory("topk_crosscoder"), arguments.split())
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: " + line)
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"), [("--colour BLUE", ["BLUE", "--colour", "RED"]), ("--pair 1", ["--pair"])]
)
def test_options_of_other_types_are_refused_in_one_line_too(
    arguments: str, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What only tyro understands is said in its words, without its box."""
    with pytest.raises(SystemExit) as stopped:
        main(of_ones_own, arguments.split())
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    for part in ["error: ", *said]:
        assert part in line
    assert not set(line) & set("│╭─")


def test_help_is_shown_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` explains every option on stdout and is no error."""
    with pytest.raises(SystemExit) as stopped:
        main(factory("topk_crosscoder"), ["--help"])
    assert not stopped.value.code
    shown = capsys.readouterr()
    assert shown.err == ""
    for option in ("--style {topk,batch_topk,groupmax}", "--n-latents INT", "--init-tokens INT", "--models"):
        assert option in shown.out


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


def test_a_compound_clt_of_two_models(folder: Path, refusal) -> None:
    """It is of one model."""
    line = refusal("compound_clt", models=[folder / "base", folder / "base"], n_latents=8, k=2)
    assert "models=" in line
    assert "one model" in line


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


def test_resuming_on_other_text_or_weights(folder: Path, tmp_path: Path, refusal) -> None:
    """A data set file that has changed, or another model in the same folder, is among the fields that differ."""
    text, model = tmp_path / "text.txt", tmp_path / "base"
    shutil.copy(folder / "text.txt", text)
    shutil.copytree(folder / "base", model)
    given = {"models": [model], "dataset": text, "output": tmp_path / "run", "num_steps": 2}
    main(factory("l1_crosscoder"), options(**{**SMALL, **given}))
    original = text.read_text()
    text.write_text(original.replace("w1 ", "w2 ", 1))
    line = refusal("l1_crosscoder", resume=True, **given)
    assert "data.sequences.source.text.txt" in line
    assert "identity" not in line
    text.write_text(original)
    save_model(model, seed=9)
    line = refusal("l1_crosscoder", resume=True, **given)
    assert "data.harvester.models.0.identity" in line
    assert "text.txt" not in line


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
