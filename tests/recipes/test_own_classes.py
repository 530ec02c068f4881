"""A user's own classes after training: a recipe in a file of one's own is evaluated, reported and loaded like any."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import SMALL, options

import crosscode
import crosscode.run
from crosscode.commands import main
from crosscode.errors import BadInput
from crosscode.files import read_json
from crosscode.named import import_of, name_of, object_named

LAB = '''
from crosscode import SparseCoder, Trainer
from crosscode.activations import ReLU
from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseDecoder, DenseEncoder
from crosscode.module import module
from crosscode.run import RunOptions, main


@module
class Gated(ReLU):
    """Own by name alone."""

    n_gates: int = 3


def gated(run: RunOptions = RunOptions(), n_latents: int = 16, num_steps: int = 2) -> Trainer:
    """A recipe of one's own.

    Args:
        run: models, data and output.
        n_latents: how many latents.
        num_steps: optimizer steps.
    """
    data = run.dataloader()
    coder = SparseCoder(
        DenseEncoder(data.in_dims, data.d_in, n_latents), Gated(), DenseDecoder(n_latents, data.out_dims, data.d_out)
    ).to(run.device)
    return Trainer(
        model=coder,
        data=data,
        init=[AnthropicTranspose()],
        loss=SummedSquaredError(),
        optimizer=run.adam(coder),
        lr=1e-3,
        num_steps=num_steps,
    )


if __name__ == "__main__":
    main(gated)
'''


@pytest.fixture
def lab(tmp_path: Path) -> Path:
    """A file of a user's own; no other test's module is taken for it."""
    (tmp_path / "lab.py").write_text(LAB)
    sys.modules.pop("lab", None)
    return tmp_path / "lab.py"


def test_a_script_with_a_class_of_its_own_is_evaluated_and_loaded(lab: Path, folder: Path, tmp_path: Path, capsys):
    """What the run prints at its end loads the coder, and what `evaluate` asks for is what it needs."""
    run = tmp_path / "a run"
    given = {**SMALL, "n_latents": 16, "models": [folder / "base"], "dataset": folder / "text.txt", "output": run}
    words = options(**{**given, "num_steps": 2, "report": True, "quiet": False})
    ended = subprocess.run([sys.executable, lab, *words], capture_output=True, text=True, env=dict(os.environ))
    assert ended.returncode == 0, ended.stderr
    lines = [line[4:] for line in ended.stdout.splitlines() if line.startswith("    ")]
    (at,) = [i for i, line in enumerate(lines) if line == "import crosscode"]
    assert lines[at + 1] == "from lab import Gated"
    assert read_json(run / "configuration.json")["classes"] == {"__main__.Gated": f"{lab}:Gated"}
    scope: dict[str, object] = {"activations": torch.zeros(2, 16)}
    sys.path.append(str(tmp_path))
    try:
        exec("\n".join(lines[at : at + 4]), scope)
    finally:
        sys.path.remove(str(tmp_path))
    assert scope["latents"].dense().shape == (2, 16)  # type: ignore[attr-defined]

    with pytest.raises(SystemExit):
        main(["evaluate", str(run), "--quiet"])
    said = capsys.readouterr().err.strip()
    assert said == f"error: {str(run)!r} is made of classes that are not crosscode's: add --classes {lab}:Gated"
    main(["evaluate", str(run), "--quiet", "--n-tokens", "100", "--splice-tokens", "0", "--classes", f"{lab}:Gated"])
    main(["report", str(run)])
    resumed = options(**{**given, "num_steps": 2, "resume": True})
    assert crosscode.run.main(object_named("classes", f"{lab}:gated"), resumed)["step"] == 2


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lab.py", "must have the form FILE.py:NAME or MODULE:NAME."),
        ("lab.py:", "must have the form"),
        (":Gated", "must have the form"),
        ("lab.py:Gated()", "must have the form"),
        ("nowhere.py:Gated", "there is no file '/.*/nowhere.py'."),
        ("lab.py:Gate", "lab.py defines no 'Gate'. Did you mean 'Gated'"),
        ("no.such.module:Gated", "cannot be imported: ModuleNotFoundError: No module named 'no'"),
        ("broken.py:Gated", "cannot be imported: ZeroDivisionError: division by zero"),
        ("ended.py:Gated", "cannot be imported: SystemExit: 3"),
    ],
)
def test_a_name_that_names_nothing_is_one_line(name: str, said: str, lab: Path, monkeypatch) -> None:
    """Each with what was given and what is allowed; a file that failed is not left half imported."""
    (lab.parent / "broken.py").write_text("1 / 0")
    (lab.parent / "ended.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(lab.parent)
    with pytest.raises(BadInput, match=f"^classes={name!r}.*".replace("(", r"\(").replace(")", r"\)") + said):
        object_named("classes", name)
    assert not {"broken", "ended"} & sys.modules.keys()


def test_a_file_is_imported_once_and_taken_for_no_other(lab: Path, tmp_path: Path) -> None:
    """Two names of one file are of one module; a file that is called as a module that is there stays itself."""
    first, second = (object_named("classes", f"{lab}:{name}") for name in ("Gated", "gated"))
    assert second.__globals__["Gated"] is first
    (tmp_path / "json.py").write_text("class Mine: pass")
    assert object_named("classes", f"{tmp_path / 'json.py'}:Mine").__name__ == "Mine"
    assert sys.modules["json"].__file__ != str(tmp_path / "json.py")
    assert object_named("classes", "crosscode.activations:ReLU") is crosscode.activations.ReLU


def test_a_class_is_named_as_it_is_found(lab: Path) -> None:
    """By its file, or its module; one that is made in a function is found under no name."""

    class Local:
        """No name leads here."""

    gated = object_named("classes", f"{lab}:Gated")
    assert name_of(gated) == f"{lab}:Gated"
    assert import_of(gated) == "from lab import Gated"
    assert name_of(crosscode.activations.ReLU) == "crosscode.activations.relu:ReLU"
    assert (name_of(Local), import_of(Local), name_of(int)) == (None, None, None)
    assert object_named("classes", name_of(crosscode.activations.ReLU) or "") is crosscode.activations.ReLU
