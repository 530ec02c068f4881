"""A tiny model of every architecture, saved when it is first asked for."""

from collections.abc import Callable
from pathlib import Path

import pytest
from models_of_others.architectures import save


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`saved("gemma2")`: the `save_pretrained` folder of that architecture; made once, never changed."""
    folders: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in folders:
            folders[name] = save(name, tmp_path_factory.mktemp(name))
        return folders[name]

    return folder
