"""Two random language models and a text, made once; each model is loaded once for all recipes."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from small_runs import SMALL, factory, options, save_model, save_text

import crosscode.run
import crosscode.run.options


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `base`, `tuned`, the twice as wide `wide`, and `text.txt`."""
    folder = tmp_path_factory.mktemp("recipes")
    save_model(folder / "base", seed=0)
    save_model(folder / "tuned", seed=1)
    save_model(folder / "wide", seed=2, width=32)
    save_text(folder / "text.txt")
    return folder


@pytest.fixture(scope="module", autouse=True)
def models_loaded_once() -> Iterator[None]:
    """Booting a model costs a second: the tests of a file share them; others may change theirs."""
    load = crosscode.run.options.load_language_model
    crosscode.run.options.load_language_model = functools.cache(load)
    yield
    crosscode.run.options.load_language_model = load


@pytest.fixture
def run_small(folder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """`run_small("sae_topk", k=4)`: the recipe's command line, small, into `tmp_path / "run"`; gives the summary."""

    def run(recipe: str, n_models: int = 1, **given: Any) -> dict[str, Any]:
        models = [folder / "base", folder / "tuned"][:n_models]
        arguments = {**SMALL, "models": models, "dataset": folder / "text.txt", "output": tmp_path / "run", **given}
        if recipe == "compound_clt":
            arguments["n_latents"] //= 4  # of each layer
        return crosscode.run.main(factory(recipe), options(**arguments))

    return run
