"""Bad input to a recipe: one line that says what is wrong, exit code 2, no weights read, no step taken."""

import enum
import functools
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import small_runs
from small_runs import RECIPES, SMALL, VOCABULARY, factory, options, save_model, save_text

import crosscode.run.options
from crosscode.data.transformer_lens_model import TransformerLensModel
from crosscode.run import RunOptions, main
from crosscode.training import Trainer

ALL_RECIPES = sorted(file.stem for file in RECIPES.glob("*.py"))


@pytest.fixture(scope="module", autouse=True)
def models_loaded_once() -> Iterator[None]:
    """What is known of a model without its weights is found once for all rows."""
    load = crosscode.run.options.load_language_model

    @functools.cache
    def load_once(modified: float, name: str, *options: Any) -> Any:
        return load(name, *options)

    def load_anew_if_changed(name: str, *options: Any) -> Any:
        weights = Path(name) / "model.safetensors"
        return load_once(weights.stat().st_mtime if weights.exists() else 0.0, name, *options)

    crosscode.run.options.load_language_model = load_anew_if_changed
    yield
    crosscode.run.options.load_language_model = load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models `base`, `wide` and `foreign` (another vocabulary) and some text."""
    folder = tmp_path_factory.mktemp("bad_input")
    save_model(folder / "base", seed=0)
    save_model(folder / "tuned", seed=1)
    save_model(folder / "wide", seed=0, width=32)
    save_model(folder / "foreign", seed=0, vocabulary={"<bos>": 0, "<eos>": 1, "<unk>": 2, "other": 3})
    save_text(folder / "text.txt")
    save_text(folder / "few.txt", n_documents=3)
    rows = [json.dumps({"body": "w1 w2 w3", "title": "w4"}) for _ in range(100)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "empty.txt").write_text("")
    (folder / "blank.txt").write_text("\n \n\n")
    (folder / "broken.jsonl").write_text("\n".join([*rows[:2], '{"body": "w1', *rows]) + "\n")
    (folder / "list.jsonl").write_text("[1, 2]\n")
    (folder / "object.json").write_text('{"rows": [{"text": "w1"}]}')
    (folder / "emoji.jsonl").write_text('{"text": "\\ud83d"}\n{"text": 7}\n')
    (folder / "parts").mkdir()
    for name in ("train", "test"):
        (folder / "parts" / f"{name}.jsonl").write_text('{"text": "w1"}\n')
    (folder / "numbers.jsonl").write_text('{"text": 3}\n')
    (folder / "ids.jsonl").write_text('{"text": [1, 2, 64]}\n')
    (folder / "latin.txt").write_bytes("w1 caf\xe9 w2".encode("latin-1") * 100)
    (folder / "no.parquet").write_bytes(b"PAR1 is what I am not")
    (folder / "no.jsonl.gz").write_bytes(b"not gzip")
    (folder / "text.csv").write_text("text\nw1\n")
    (folder / "no_text").mkdir()
    (folder / "no_model").mkdir()
    for name in ("cut", "no_tokenizer", "no_weights", "half_config", "unknown_type"):
        shutil.copytree(folder / "base", folder / name)
    weights = (folder / "cut" / "model.safetensors").read_bytes()
    (folder / "cut" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    (folder / "no_weights" / "model.safetensors").unlink()
    (folder / "no_tokenizer" / "tokenizer.json").write_text("{")
    config = (folder / "base" / "config.json").read_text()
    (folder / "half_config" / "config.json").write_text(config[: len(config) // 2])
    (folder / "unknown_type" / "config.json").write_text(config.replace('"llama"', '"lama"'))
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
        monkeypatch.setattr(TransformerLensModel, "hf_model", property(forbidden))
        monkeypatch.setattr(Trainer, "step", forbidden)
        capsys.readouterr()
        defaults = {"models": [folder / "base"], "dataset": folder / "text.txt", "output": tmp_path / "run"}
        before = files_of(tmp_path)
        if given.get("models") == TWO:
            given["models"] = [folder / "base", folder / "tuned"]
        with pytest.raises(SystemExit) as stopped:
            main(factory(recipe), options(**{**SMALL, **defaults, **given}))
        assert stopped.value.code == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "Loading" not in line]
        assert line.startswith("error: ")
        assert files_of(tmp_path) == before, "a half-made output is left"
        return line

    return run


def files_of(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


TWO = ["BASE", "TUNED"]
"""Two models of one width, wherever they are saved."""
MLP_IN = [f"blocks.{i}.mlp.hook_in" for i in range(4)]
MLP_OUT = [f"blocks.{i}.hook_mlp_out" for i in range(4)]


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
        ("l1_crosscoder", {"resume": True}, ["resume", "does not exist"]),
        ("l1_crosscoder", {"n_latens": 3}, ["--n-latens", "'--n-latents'"]),
        ("l1_crosscoder", {"checkpoint_every": 0}, ["every=0", "at least 1"]),
        ("l1_crosscoder", {"log_every": 0}, ["every=0", "at least 1"]),
        ("l1_crosscoder", {"l1": "nan"}, ["nan"]),
        ("l1_crosscoder", {"eval_tokens": 0}, ["eval_tokens=0", "at least 1"]),
        ("topk_crosscoder", {"k": 4, "dead_after": 0}, ["dead_after=0", "greater than 0"]),
        ("clt_l1", {"reads": []}, ["reads is empty"]),
        ("clt_l1", {"writes": []}, ["writes is empty"]),
        ("clt_l1", {"hookpoints": ["blocks.0.hook_resid_post"]}, ["hookpoints=", "reads and writes"]),
        ("l1_crosscoder", {"reads": ["blocks.1.mlp.hook_in"]}, ["reads=", "hookpoints"]),
        ("feb_diffing_l1", {}, ["models=", "at least two"]),
        ("l1_crosscoder", {"l1_ramp": 2}, ["l1_ramp=2.0", "between 0 and 1"]),
        ("feb_diffing_l1", {"l1_ramp": 2, "models": TWO}, ["l1_ramp=2.0", "between 0 and 1"]),
        ("clt_l1", {"l1_ramp": 1.01}, ["l1_ramp=1.01", "between 0 and 1"]),
        ("l1_crosscoder", {"decoder_norm": 0}, ["norm=0", "greater than 0"]),
        ("jan_update_jumprelu", {"threshold": 0}, ["threshold=0", "greater than 0"]),
        ("jan_update_jumprelu", {"c": 0}, ["c=0", "greater than 0"]),
        ("jan_update_jumprelu", {"firing_rate": 0}, ["firing_rate=0", "between 0 and 1"]),
        ("compound_clt", {"bandwidth": 0}, ["bandwidth=0", "greater than 0"]),
        ("compound_clt", {"threshold": 0}, ["threshold=0", "greater than 0"]),
        ("compound_clt", {"activation": "batch_topk", "k": 33}, ["k=33", "n_latents=32"]),
        ("compound_clt", {"activation": "topk"}, ["--activation='topk'", "'jumprelu', 'batch_topk'", "Did you mean"]),
        ("compound_clt", {"n_latents": 0}, ["n_latents=0", "at least 1"]),
        ("compound_clt", {"reads": ["blocks.0.mlp.hook_in"]}, ["reads=", "writes=", "own"]),
        ("clt_topk", {"k": 33}, ["k=33", "n_latents=32"]),
        ("sae_topk", {"k": 33}, ["k=33", "n_latents=32"]),
        ("skip_transcoder", {"k": 33}, ["k=33", "n_latents=32"]),
        ("feb_diffing_topk", {"k_shared": 9, "models": TWO, "n_shared": 8}, ["k=9", "n_latents=8"]),
        (
            "feb_diffing_topk",
            {"k_shared": 4, "k_exclusive": 25, "models": TWO, "n_shared": 8},
            ["k=25", "n_latents=24"],
        ),
        ("feb_diffing_topk", {"pricing": "price", "price": 0, "models": TWO, "n_shared": 8}, ["price=0", "0"]),
        ("feb_diffing_topk", {"pricing": "prize", "models": TWO}, ["--pricing='prize'", "Did you mean 'price'"]),
        ("feb_diffing_topk", {"n_shared": 33, "models": TWO}, ["n_shared=33", "32"]),
        ("feb_diffing_jumprelu", {"n_shared": 33, "models": TWO}, ["n_shared=33", "32"]),
        ("clt_l1", {"reads": MLP_IN[1:2], "writes": MLP_OUT[::-1]}, ["writes", "order of the layers"]),
        ("clt_l1", {"reads": MLP_IN[2:3], "writes": MLP_OUT}, ["blocks.0.hook_mlp_out", "lies before"]),
        ("compound_clt", {"reads": MLP_IN[::-1], "writes": MLP_OUT[::-1]}, ["reads", "order of the layers"]),
        ("compound_clt", {"reads": MLP_IN[1:], "writes": MLP_OUT[:3]}, ["blocks.0.hook_mlp_out", "lies before"]),
        ("compound_clt", {"reads": MLP_IN[:3], "writes": MLP_OUT[1:]}, ["'blocks.1.hook_mlp_out'", "another layer"]),
        ("clt_l1", {"reads": MLP_IN[:1], "writes": MLP_OUT[2:], "skip": True}, ["skip", "'blocks.0.mlp.hook_in'"]),
        ("clt_topk", {"reads": MLP_IN[:1], "writes": MLP_OUT[2:], "skip": True}, ["skip", "'blocks.0.mlp.hook_in'"]),
        ("topk_crosscoder", {"aux_latents": 0}, ["AuxK.k=0", "at least 1"]),
        ("sae_topk", {"aux_latents": -1}, ["AuxK.k=-1", "at least 1"]),
        ("l1_crosscoder", {"epochs": 0}, ["epochs=0", "at least 1"]),
        ("l1_crosscoder", {"drop_first": -1}, ["drop_first=-1", "at least 0"]),
        ("l1_crosscoder", {"drop_first": 32}, ["drop_first=32", "sequence_length=32"]),
        ("sae_topk", {"n_latents": 10**19}, ["n_latents=10000000000000000000", "too large"]),
        ("sae_topk", {"models": ["m" * 300]}, ["File name too long"]),
        ("sae_topk", {"dataset": "./" + "d" * 300}, ["File name too long"]),
        ("sae_topk", {"cache": "CACHE", "cache_max_gb": 1e300}, ["cache_max_gb=1e+300", "too large"]),
        ("l1_crosscoder", {"max_norm_multiple": 1.0}, ["max_norm_multiple=1.0", "greater than 1"]),
        ("l1_crosscoder", {"max_norm_multiple": "inf"}, ["max_norm_multiple=inf", "finite, or None"]),
        ("l1_crosscoder", {"max_norm_multiple": "none"}, ["max-norm-multiple='none'", "a number or None"]),
        ("l1_crosscoder", {"sequences_at_once": 0}, ["sequences_at_once=0", "at least 1"]),
        ("l1_crosscoder", {"sequences_at_once": 1.5}, ["sequences-at-once='1.5'", "a whole number"]),
        ("l1_crosscoder", {"sequences_at_once": 10**12}, ["of memory", "--sequences-at-once"]),
        ("clt_topk", {"writes": [MLP_OUT[1], MLP_OUT[1]]}, ["writes", "'blocks.1.hook_mlp_out' twice"]),
        ("compound_clt", {"reads": MLP_IN[:1] * 2, "writes": MLP_OUT[:1] * 2}, ["reads", "mlp.hook_in' twice"]),
        ("l1_crosscoder", {"hookpoints": ["blocks.1.hook_resid_post"] * 2}, ["hookpoints", "twice"]),
        ("l1_crosscoder", {"hookpoints": []}, ["hookpoints is empty"]),
        ("l1_crosscoder", {"hookpoints": ["blocks.9.hook_resid_post"]}, ["blocks.9", "Did you mean"]),
        ("l1_crosscoder", {"hookpoints": [""]}, ["hookpoint ''", "Known"]),
        ("l1_crosscoder", {"hookpoints": ["blocks.1.attn.hook_pattern"]}, ["hook_pattern"]),
        ("skip_transcoder", {"reads": MLP_IN[:2]}, ["(2, 16)", "(16,)"]),
        ("skip_transcoder", {"models": TWO}, ["(16,)", "(2, 16)"]),
        ("sae_topk", {"models": TWO}, ["(16,)", "(2, 1, 16)"]),
        ("l1_crosscoder", {"sequence_length": 65}, ["sequence_length=65", "64"]),
        ("l1_crosscoder", {"sequence_length": 1}, ["sequence_length=1", "at least 2"]),
        ("l1_crosscoder", {"seed": -1}, ["seed=-1", "at least 0"]),
        ("l1_crosscoder", {"seed": 2**63}, ["seed=9223372036854775808", "at most"]),
        ("l1_crosscoder", {"betas": ("nan", 0.9)}, ["betas=", "at least 0"]),
        ("l1_crosscoder", {"betas": (-0.1, 0.9)}, ["betas=", "at least 0"]),
        ("l1_crosscoder", {"clip_norm": "inf"}, ["clip_norm=inf", "finite"]),
        ("l1_crosscoder", {"lr_warmup": 0.9, "lr_decay": 1.01}, ["lr_decay=1.01", "between 0 and 1"]),
        ("l1_crosscoder", {"lr_warmup": "nan"}, ["lr_warmup=nan", "between 0 and 1"]),
        ("l1_crosscoder", {"device": "cuda:99"}, ["device", "cuda:99"]),
        ("l1_crosscoder", {"device": "gpu"}, ["device", "gpu", "cuda"]),
        ("l1_crosscoder", {"device": "meta"}, ["device", "meta"]),
        ("l1_crosscoder", {"device": ""}, ["device", "''"]),
        ("l1_crosscoder", {"model_dtype": "float64"}, ["--model-dtype='float64'", "'float32', 'bfloat16', 'float16'"]),
        ("l1_crosscoder", {"model_dtype": "bf16"}, ["--model-dtype='bf16'", "'bfloat16'"]),
        ("l1_crosscoder", {"precision": "fp16"}, ["--precision='fp16'", "'fp32', 'bf16'"]),
        ("l1_crosscoder", {"wandb_mode": "of"}, ["--wandb-mode='of'", "'offline', 'online', 'disabled'"]),
        ("l1_crosscoder", {"wandb_mode": "offline", "wandb_project": "a/b"}, ["wandb_project='a/b'", "without /"]),
        ("l1_crosscoder", {"wandb_mode": "offline", "wandb_project": "a" * 129}, ["wandb_project=", "128"]),
        ("l1_crosscoder", {"wandb_mode": "offline", "wandb_project": ""}, ["wandb_project=''", "1 to 128"]),
        ("l1_crosscoder", {"revisions": ["main"]}, ["'main'", "is local"]),
        ("l1_crosscoder", {"revisions": ["main", "v2"]}, ["revisions has 2", "1 models"]),
        ("l1_crosscoder", {"models": []}, ["models is empty"]),
        ("l1_crosscoder", {"models": [""]}, ["model ''", "no such folder"]),
        ("l1_crosscoder", {"models": ["embedded:"]}, ["''", "'base'"]),
        ("l1_crosscoder", {"models": ["not-a-model-of-the-hub"]}, ["'not-a-model-of-the-hub'", "no local folder"]),
        ("l1_crosscoder", {"models": ["a b"]}, ["'a b'"]),
        ("l1_crosscoder", {"dataset": "nobody/no-such-data"}, ["'nobody/no-such-data'", "no local file"]),
        ("l1_crosscoder", {"dataset": "./nowhere"}, ["nowhere", "does not exist"]),
        ("l1_crosscoder", {"dataset": ""}, ["dataset"]),
        ("l1_crosscoder", {"cache": "/proc/nowhere"}, ["cache", "/proc/nowhere"]),
        ("l1_crosscoder", {"output": "/proc/nowhere"}, ["disk space", "--output"]),
        ("l1_crosscoder", {"output": "/dev/null"}, ["output='/dev/null'", "is a file"]),
        ("l1_crosscoder", {"output": "/dev/null/run"}, ["output='/dev/null/run'", "'/dev/null' is a file"]),
        ("l1_crosscoder", {"output": "a\0b"}, ["output"]),
        ("l1_crosscoder", {"output": "/" + "a" * 300}, ["output"]),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, str | dict) else "",
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
        ("--output", "--output needs a value: a path or None."),
        ("--wandb-project", "--wandb-project needs a value: a text or None."),
        ("--quiet yes", "--quiet takes no value, but was given 'yes': write --quiet or --no-quiet."),
        ("--no-resume no", "--no-resume takes no value, but was given 'no': write --resume or --no-resume."),
        ("--models", "models is empty: name at least one."),
        ("--revisions a b", "revisions has 2 entries for 1 models."),
        ("--n-latens 3", "unknown option '--n-latens'. Did you mean '--n-latents'"),
        ("stile", "unknown option 'stile'. Did you mean '--style'"),
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


@pytest.mark.parametrize("recipe", ALL_RECIPES)
def test_help_is_shown_in_full(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` explains every option of the scheme and of `RunOptions` on stdout and is no error."""
    with pytest.raises(SystemExit) as stopped:
        main(factory(recipe), ["--help"])
    assert not stopped.value.code
    shown = capsys.readouterr()
    assert shown.err == ""
    words = " ".join(re.sub("[│╭╮╰╯─]", " ", shown.out).split())
    of_scheme = inspect.signature(factory(recipe)).parameters.keys() - {"run"}
    for name in of_scheme | {field.name for field in attrs.fields(RunOptions)}:
        option = re.escape(name.replace("_", "-"))
        explained = re.search(rf"--{option}(?:,| |$).*?\((?:default|repeatable)", words)
        assert explained, f"{name} is not in the help"
        # Between the option's value and its default there is a sentence.
        assert len(re.findall(r"[a-z]{2,}", explained[0])) >= 5, f"{name} is not explained: {explained[0]}"


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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("broken.jsonl", ["broken.jsonl", "line 3", "not JSON"]),
        ("list.jsonl", ["list.jsonl", "object"]),
        ("object.json", ["object.json", "line 1", "'rows'"]),
        ("emoji.jsonl", ["emoji.jsonl", "line 2", "int '7'", "--skip-bad-rows"]),
        ("base", ["base", "is a language model", "--models"]),
        ("*.tsv", ["*.tsv", "no file matches"]),
        ("numbers.jsonl", ["numbers.jsonl", "neither a text nor a list"]),
        ("ids.jsonl", ["ids.jsonl", "ids from 1 to 64", "63"]),
        ("latin.txt", ["latin.txt", "line 1", "not in UTF-8", "byte 6", "--skip-bad-rows"]),
        ("no.parquet", ["no.parquet", "could not be read"]),
        ("no.jsonl.gz", ["no.jsonl.gz", "could not be read"]),
        ("text.csv", ["text.csv", "suffix", ".parquet", "to_parquet"]),
        ("no_text", ["no_text", "holds no"]),
        ("blank.txt", ["blank.txt", "no document"]),
        ("txet.txt", ["txet.txt", "does not exist", "Did you mean", "text.txt"]),
    ],
)
def test_text_that_cannot_be_read(name: str, said: list[str], folder: Path, refusal) -> None:
    """The file is named, the line where there is one, and why."""
    column = "body" if name == "broken.jsonl" else "text"
    line = refusal("l1_crosscoder", dataset=folder / name, text_column=column)
    for part in said:
        assert part in line


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dataset_split": "tset"}, ["dataset_split='tset'", "Did you mean 'test'"]),
        ({"dataset_config": "en"}, ["dataset_config='en'", "no configurations"]),
        ({"dataset_revision": "v1"}, ["dataset_revision='v1'", "leave --dataset-revision out"]),
        ({"dataset": "text.txt", "dataset_split": "test"}, ["dataset_split='test'", "leave --dataset-split out"]),
        ({"dataset": "embedded", "dataset_config": "en"}, ["dataset_config='en'", "leave --dataset-config out"]),
        ({"dataset": "nobody/none", "dataset_config": "en"}, ["'nobody/none'", "config 'en'", "split 'train'"]),
    ],
)
def test_a_part_of_a_data_set_that_is_not_there(given: dict, said: list[str], folder: Path, refusal) -> None:
    """The option, its value, and what there is."""
    source = given.get("dataset", "parts")
    path = folder / source if (folder / source).exists() else source
    line = refusal("l1_crosscoder", **{**given, "dataset": path})
    for part in said:
        assert part in line


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_model", ["no_model", "config.json"]),
        ("cut", ["cut", "model.safetensors"]),
        ("no_weights", ["no_weights", "safetensors"]),
        ("no_tokenizer", ["no_tokenizer", "could not be read"]),
        ("half_config", ["half_config", "could not be read"]),
        ("unknown_type", ["unknown_type", "could not be read", "lama"]),
    ],
)
def test_a_damaged_model_folder(name: str, said: list[str], folder: Path, refusal) -> None:
    """The folder is named, and what is wrong with it, before anything is read in earnest."""
    line = refusal("l1_crosscoder", models=[folder / name])
    for part in said:
        assert part in line


def test_the_project_that_the_environment_names(folder: Path, refusal, monkeypatch: pytest.MonkeyPatch) -> None:
    """WANDB_PROJECT is checked as the option is."""
    monkeypatch.setenv("WANDB_PROJECT", "a#b")
    assert "WANDB_PROJECT='a#b'" in refusal("l1_crosscoder", wandb_mode="offline")


def numbers_that_cannot_be() -> Iterator[tuple[str, str, str]]:
    """(recipe, option, value): what no number of any recipe may be, and counts of nothing."""
    for file in sorted(RECIPES.glob("*.py")):
        parameters = inspect.signature(factory(file.stem)).parameters
        for name, parameter in parameters.items():
            if type(parameter.default) is int:
                yield file.stem, name, "-1"
            if type(parameter.default) is float:
                for value in ("-1.0", "nan", "inf"):
                    yield file.stem, name, value
    for field in attrs.fields(RunOptions):
        if field.type is int and field.name != "seed":
            for value in ("-1",) if field.name in ("splice_tokens", "drop_first") else ("0", "-1"):  # 0: none
                yield "sae_topk", field.name, value


@pytest.mark.parametrize(("recipe", "name", "value"), numbers_that_cannot_be())
def test_a_number_that_cannot_be(recipe: str, name: str, value: str, refusal) -> None:
    """Every number of every recipe: the line names the option as the user wrote it, its value and what is allowed."""
    line = refusal(recipe, **{name: value})
    assert f"{name}={value}" in line
    assert "at least" in line or "finite" in line


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("recipes/sae_topk.py --models ./nowhere", "error: model './nowhere'"),
        ("recipes/compound_clt.py --k 3.5", "error: --k='3.5' must be a whole number."),
        ("-m crosscode evaluate ./nowhere", "error: 'nowhere"),
    ],
)
def test_a_real_process_ends_with_2_and_one_line(command: str, said: str, tmp_path: Path) -> None:
    """As the user runs it, in a directory of its own that stays empty."""
    script, *rest = command.split()
    script = str(RECIPES.parent / script) if script.endswith(".py") else script
    path = str(Path(crosscode.__file__).parents[1])
    ran = subprocess.run(
        [sys.executable, script, *rest],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert (ran.returncode, ran.stdout) == (2, "")
    (line,) = ran.stderr.splitlines()
    assert line.startswith(said)
    assert not list(tmp_path.iterdir())


NO_MODEL_NEEDED = """
import sys
import crosscode.run

sys.path.insert(0, {recipes!r})
for line in {lines!r}:
    recipe, *options = line.split()
    try:
        crosscode.run.main(getattr(__import__(recipe), recipe), options)
    except SystemExit as stopped:
        assert stopped.code == 2, line
    assert "transformers" not in sys.modules, line
"""


def test_what_needs_no_model_is_told_before_anything_of_models_is_imported(tmp_path: Path) -> None:
    """The import of transformers alone takes seconds."""
    lines = (
        "feb_diffing_topk --dead-after 0",
        "feb_diffing_topk --k-shared 1025",
        "feb_diffing_topk --n-shared 300 --n-latents 299",
        "sae_topk --k 65 --n-latents 64",
        "clt_topk --k 0",
        "compound_clt --lr -1",
        "l1_crosscoder --n-latents 2.5",
        "l1_crosscoder --num-step 3",
        "l1_crosscoder --lr-warmup 0.9 --lr-decay 1.01",
        "l1_crosscoder --output /dev/null/run",
        "l1_crosscoder --models",
        "skip_transcoder --precision fp16",
    )
    path = str(Path(crosscode.__file__).parents[1])
    ran = subprocess.run(
        [sys.executable, "-c", NO_MODEL_NEEDED.format(recipes=str(RECIPES), lines=lines)],
        capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert [line.split(":")[0] for line in ran.stderr.splitlines()] == ["error"] * len(lines)
    assert not list(tmp_path.iterdir())


def test_the_vocabulary_of_the_tests_fits() -> None:
    """The models above have as many embeddings as tokens."""
    assert len(VOCABULARY) == len(small_runs.WORDS) + 3 == 64
