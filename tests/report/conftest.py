"""Evaluated runs made up of random numbers, in folders of their own."""

from collections.abc import Callable
from pathlib import Path

import pytest
from made_up_runs import MODELS, save_run


@pytest.fixture(scope="session")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`run_of(10_000, 1_000)`: the folder of a run."""

    def made(n_latents: int, n_examples: int, models: tuple[str, ...] = MODELS, cross_layer: bool = False) -> Path:
        return save_run(tmp_path_factory.mktemp("run"), n_latents, n_examples, models, cross_layer)

    return made
