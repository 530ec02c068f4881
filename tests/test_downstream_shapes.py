"""The shape checks work for a user's own package: a wrong shape gives an error that names the argument."""

import subprocess
import sys
from pathlib import Path

import pytest

HOYER = '''
"""A user's package: one penalty and one activation of their own."""

from jaxtyping import Float
from torch import Tensor

from crosscode import Latents, Trace
from crosscode.activations import Activation


def hoyer(z_BL: Float[Tensor, "B L"], a_L: Float[Tensor, " L"]) -> Float[Tensor, ""]:
    z_BL = z_BL * a_L
    return (z_BL.sum(-1).square() / z_BL.square().sum(-1).clamp_min(1e-8)).mean()


def hoyer_penalty(trace: Trace) -> Float[Tensor, ""]:
    return hoyer(trace.latents_BL, trace.decoder_norms_LXo.sum(-1))


def per_token(trace: Trace) -> Float[Tensor, ""]:
    return trace.latents_BL.sum(-1)  # forgot the mean


class Squared(Activation):
    def forward(self, pre_BL: Float[Tensor, "B L"], score_norms_L: Float[Tensor, " L"] | None = None) -> Latents:
        return Latents.from_dense(pre_BL.relu().square())
'''

TESTS = """
import torch
from crosscode import Batch, SparseCoder, Trace
from crosscode.activations import JumpReLU
from crosscode.models import DenseDecoder, DenseEncoder, acausal_crosscoder
from lab import Squared, hoyer, hoyer_penalty, per_token

coder = acausal_crosscoder(n_models=2, n_hookpoints=1, d_model=3, n_latents=5, activation=Squared())
one_axis = SparseCoder(DenseEncoder((2,), 3, 5), Squared(), DenseDecoder(5, (2,), 3))
batch = Batch.autoencode(torch.ones(4, 2, 3))

def test_right_shapes_pass():
    assert hoyer_penalty(Trace.of(one_axis, batch)).shape == ()
    assert coder(torch.ones(4, 2, 1, 3)).shape == (4, 2, 1, 3)

def test_own_argument():
    hoyer(torch.ones(4, 5), torch.ones(6))

def test_own_result():
    per_token(Trace.of(one_axis, batch))

def test_our_argument():
    JumpReLU(5).set_threshold_(torch.ones(5, 1))

def test_our_batch():
    Trace.of(one_axis, Batch.autoencode(torch.ones(4, 2, 7)))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest says of the user's tests, with the checks on for our package and for theirs."""
    folder: Path = tmp_path_factory.mktemp("downstream")
    (folder / "lab").mkdir()
    (folder / "lab" / "__init__.py").write_text(HOYER)
    (folder / "test_lab.py").write_text(TESTS)
    (folder / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = ''\n")
    flags = ["--jaxtyping-packages=crosscode,lab,beartype.beartype", "-p", "no:cacheprovider", "--tb=line", "-q", "-rA"]
    command = [sys.executable, "-m", "pytest", str(folder), "--rootdir", str(folder), *flags]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout


def failure(report: str, test: str) -> str:
    """The summary line of one failed test and the lines of its error."""
    assert f"FAILED test_lab.py::{test}" in report, report
    return report


def test_right_shapes_are_let_through(report: str) -> None:
    """Only what is wrong fails."""
    assert "PASSED test_lab.py::test_right_shapes_pass" in report
    assert "4 failed, 1 passed" in report


@pytest.mark.parametrize(
    ("test", "argument", "shape"),
    [
        ("test_own_argument", "a_L", "6"),
        ("test_own_result", "return", "4"),
        ("test_our_argument", "threshold_L", "5, 1"),
        ("test_our_batch", "inputs_BXiDi", "2, 7"),
    ],
)
def test_the_error_names_the_argument(report: str, test: str, argument: str, shape: str) -> None:
    """Theirs and ours alike, with the shape that was handed over."""
    assert f"FAILED test_lab.py::{test}" in report, report
    assert argument in report
    assert shape in report
