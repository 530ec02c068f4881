"""Models and texts of a user's own: as objects from Python, as `lab.py:make` anywhere, in every part of a run."""

import copy
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
from small_runs import SMALL, factory, options

import crosscode
import crosscode.run
from crosscode.commands import main
from crosscode.errors import BadInput
from crosscode.files import read_json
from crosscode.penalties import AuxK, CountsDead, L1OfNorms, PreActivation
from crosscode.run import RunOptions
from crosscode.run.recipe import run_recipe
from crosscode.run_folder import OPTIONS

LAB = (Path(__file__).parents[1] / "letters.py").read_text()


@pytest.fixture
def lab(tmp_path: Path) -> Any:
    """The user's file as a module; no other test's is taken for it."""
    (tmp_path / "lab.py").write_text(LAB)
    sys.modules.pop("lab", None)
    return crosscode.named.object_named("models", f"{tmp_path / 'lab.py'}:make").__globals__


GIVEN = {**SMALL, "hookpoints": ["embedding"], "n_latents": 16, "k": 2, "num_steps": 4, "splice_tokens": 0}


def test_functions_that_give_models_and_text_run_from_the_command_line(lab: Any, tmp_path: Path, monkeypatch, capsys):
    """The model is made once; the names lead there from anywhere, and the run is evaluated by them."""
    monkeypatch.chdir(tmp_path)
    names = {"models": ["lab.py:make"], "dataset": "lab.py:text", "output": tmp_path / "run"}
    summary = crosscode.run.main(factory("sae_topk"), options(**GIVEN, **names))
    assert lab["calls"] == ["make"]
    written = read_json(tmp_path / "run" / OPTIONS)
    assert (written["models"], written["dataset"]) == ([f"{tmp_path}/lab.py:make"], f"{tmp_path}/lab.py:text")
    monkeypatch.chdir("/")
    main(["evaluate", str(tmp_path / "run"), "--n-tokens", "500", "--splice-tokens", "0"])
    assert f"{summary['fvu/pooled']:.4f}" in capsys.readouterr().out


def test_objects_are_handed_over_from_python(lab: Any, tmp_path: Path, capsys) -> None:
    """They train and are measured; the folder knows them by name, and `evaluate` says so in one line, or is told."""
    model = lab["Letters"]()
    given = {name: value for name, value in GIVEN.items() if name not in ("n_latents", "k", "num_steps")}
    run = RunOptions(**{**given, "models": [model], "dataset": lab["text"](), "output": tmp_path / "run"})
    assert run.language_models == [model]
    assert copy.deepcopy(attrs.evolve(run, seed=1)).models == run.models == ("object:letters",)
    recipe = factory("sae_topk")
    summary = run_recipe(recipe(run, n_latents=16, k=2, num_steps=4), run, "sae_topk")
    read = RunOptions.read(tmp_path / "run" / OPTIONS)
    assert (read.models, read.dataset) == (("object:letters",), "object:list")
    with pytest.raises(SystemExit):
        main(["evaluate", str(tmp_path / "run")])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "error: models='object:letters' was handed over as an object: hand it over again, or name a "
    )
    told = ["--models", f"{tmp_path}/lab.py:make", "--dataset", f"{tmp_path}/lab.py:text"]
    main(["evaluate", str(tmp_path / "run"), "--n-tokens", "500", "--splice-tokens", "0", *told])
    assert f"{summary['fvu/pooled']:.4f}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lab.py:make_it", "defines no 'make_it'. Did you mean 'make'"),
        ("lab.py:number", "must name a function, got 3."),
        ("lab.py:broken", "failed when it was called: OSError: no weights here"),
        ("lab.py:text", "must be a LanguageModel, got .*: it has no bos_id, "),
        (
            "lab.py:Mute",
            "the tokenizer of models='lab.py:Mute' must be a Tokenizer, got None: it has no __call__, decode",
        ),
        ("lab.py:NoWidth", "must be a LanguageModel, got .*: it has no width."),
        ("nowhere.py:make", "there is no file"),
        ("object:letters", "was handed over as an object"),
    ],
)
def test_what_gives_no_model_is_one_line(name: str, said: str, lab: Any, tmp_path: Path, monkeypatch) -> None:
    """The name, what it is of, and what is missing."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=said) as refused:
        _ = RunOptions(models=(name,)).language_models
    assert name in str(refused.value)
    with pytest.raises(BadInput, match="models must be a name or a LanguageModel, got 3"):
        RunOptions(models=[3])


def test_models_and_batches_are_used_again_for_a_coder_without_values(lab: Any, tmp_path: Path) -> None:
    """Estimating memory loads nothing twice and leaves the options as they were."""
    run = RunOptions(models=[f"{tmp_path}/lab.py:make"], hookpoints=["embedding"], dataset=lab["text"](), batch_size=64)
    before = attrs.asdict(run)
    seen: list[Any] = []

    def recipe(run: RunOptions) -> crosscode.Trainer:
        seen.append(run.dataloader())
        return factory("sae_topk")(run, n_latents=16, k=2, num_steps=4)

    crosscode.run.program.memory_of(recipe, run, {})
    assert run.dataloader() is seen[0]
    assert lab["calls"] == ["make"]
    assert run.language_models == list(seen[0].harvester.models)
    assert attrs.asdict(run) == before


def test_a_penalty_says_itself_when_a_latent_is_dead() -> None:
    """By having the number, whatever its class."""
    assert isinstance(AuxK(), CountsDead)
    assert not isinstance(L1OfNorms(), CountsDead)
    assert PreActivation(crosscode.activations.JumpReLU(4)).dead_after_tokens is None
