"""The README does what it says."""

import re
from pathlib import Path

import pytest
import torch

from crosscode import SparseCoder

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_custom_trainer_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    """The README's own trainer trains a coder that reconstructs better than the mean."""
    (block,) = [block for block in BLOCKS if "Trainer(" in block]
    torch.manual_seed(0)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)

    coder, acts_NMPD = names["coder"], names["acts_NMPD"]
    error = (coder(acts_NMPD) - acts_NMPD).square().sum() / (acts_NMPD - acts_NMPD.mean(0)).square().sum()
    assert isinstance(coder, SparseCoder)
    assert error < 0.3
    assert "step    200" in capsys.readouterr().out


def test_the_custom_trainer_is_about_thirty_lines() -> None:
    """What is left of it without imports and blank lines fits on half a page."""
    (block,) = [block for block in BLOCKS if "Trainer(" in block]
    lines = [line for line in block.splitlines() if line.strip() and not line.startswith(("import", "from"))]

    assert len(lines) <= 32


@pytest.mark.parametrize("path", sorted(set(re.findall(r"(?:recipes|benchmarks|docs)/[\w./]+\.(?:py|png)", README))))
def test_every_file_it_names_exists(path: str) -> None:
    """Recipes, benchmarks and pictures named in the README are in the repository."""
    assert (ROOT / path).is_file()


def test_its_table_names_every_recipe() -> None:
    """No recipe is missing from the README's table."""
    recipes = {file.stem for file in (ROOT / "recipes").glob("*.py")}

    assert recipes == {name for name in recipes if f"`{name}`" in README}
