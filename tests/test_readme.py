"""The README does what it says."""

import re
import shlex
import tomllib
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


def test_its_test_command_is_the_one_that_is_run() -> None:
    """What `.ci/run` installs and calls is the README's second command, with what lint and types need besides."""
    (command,) = re.findall(r"Pass the tests:\n\n```bash\n(.*?)```", README, re.DOTALL)
    ours = [part.strip() for part in command.replace("\\\n", " ").split("&&")]
    run = (ROOT / ".ci" / "run").read_text().replace("pip install -q", "pip install")
    assert ours[-1] == "pytest -n 2"
    for part in ours[2:]:
        assert re.search(rf"^{re.escape(part)}( --group \w+)*$", run, re.MULTILINE), part


def test_nothing_slow_runs_without_being_asked_for() -> None:
    """Not even where a folder is named: the options deselect it, and a later `-m slow` is what counts."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    words = shlex.split(options["addopts"])

    assert words[words.index("-m") + 1] == "not slow"


def test_the_pythons_it_names_are_those_that_are_proven() -> None:
    """README and classifiers claim the same versions, from the oldest allowed on; `.ci/run` has the newest run too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    claimed = re.findall(r"Python :: (3\.\d+)$", "\n".join(project["classifiers"]), re.MULTILINE)
    (told,) = re.findall(r"on a fresh machine with Python (.*?);", README)

    assert re.findall(r"3\.\d+", told) == claimed
    assert project["requires-python"] == f">={claimed[0]}"
    assert '-s core -p "$newest"' in (ROOT / ".ci" / "run").read_text()


def test_its_table_names_every_recipe() -> None:
    """No recipe is missing from the README's table."""
    recipes = {file.stem for file in (ROOT / "recipes").glob("*.py")}

    assert recipes == {name for name in recipes if f"`{name}`" in README}


ROWS_OF_PEERS = {
    "TopK": "sae TopK",
    "TopK + AuxK, 10 % dead": "sae TopK + AuxK",
    "BatchTopK": "sae BatchTopK",
    "BatchTopK + AuxK": "sae BatchTopK + AuxK",
    "ReLU with L1, 35 % of latents fire": "sae ReLU dense",
    "ReLU with L1, 3.5 %": "sae ReLU sparse",
    "JumpReLU, 2 %": "sae JumpReLU",
    "JumpReLU, January update": "sae JumpReLU January",
    "crosscoder, TopK": "crosscoder TopK",
    "crosscoder, BatchTopK": "crosscoder BatchTopK",
    "crosscoder, ReLU, 3.5 %": "crosscoder ReLU sparse",
    "crosscoder, JumpReLU, 2 %": "crosscoder JumpReLU",
    "diffing, JumpReLU (February)": "diffing JumpReLU January",
    "cross-layer transcoder, TopK": "clt TopK",
    "cross-layer transcoder, BatchTopK": "clt BatchTopK",
}


def test_its_speeds_are_those_of_the_benchmark() -> None:
    """Every row of `How fast` is rounded from benchmarks/peers.md, beside the library that is the fastest there."""
    measured: dict[tuple[str, str], dict[str, float]] = {}
    row = re.compile(r"\| (.+?) \| (full|quick) \| (\w+) \| [\d.]+ \| ([\d.]+) \[")
    for scheme, size, contestant, ratio in row.findall((ROOT / "benchmarks" / "peers.md").read_text()):
        measured.setdefault((scheme, size), {})[contestant] = float(ratio)
    (table,) = re.findall(r"## How fast\n.*?\n\|---.*?\n(.*?)\n\n", README, re.DOTALL)
    told = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]

    assert [name for name, *_ in told] == list(ROWS_OF_PEERS)
    for name, library, *ratios in told:
        full, quick = (measured[ROWS_OF_PEERS[name], size] for size in ("full", "quick"))
        others = set(full) - {"crosscode", "dense", "dense_loop"}
        fastest = min(others, key=full.__getitem__, default="none")
        assert library.startswith(fastest), name
        expected = [full.get(fastest), quick.get(fastest), full["dense"], quick["dense"]]
        assert len(ratios) == len(expected), name
        for cell, number in zip(ratios, expected):
            assert cell == "" if number is None else abs(float(cell) - number) <= 0.051, (name, cell, number)


def test_its_faults_are_those_of_the_benchmark() -> None:
    """How many runs, with how many faults: the last row of benchmarks/faults.md, where all ended bit-identical."""
    row = r"\| \*\*all\*\* \| (\d+) \| (\d+) \| (\d+) \| 0 \|"
    ((injected, runs, identical),) = re.findall(row, (ROOT / "benchmarks" / "faults.md").read_text())
    assert runs == identical
    assert f"of {runs} runs with {injected} faults all ended" in " ".join(README.split())
