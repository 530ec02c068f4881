"""The shape checks work for a user's own package: a wrong shape gives an error that names the argument."""

import subprocess
import sys
from pathlib import Path

PACKAGE = '''
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


SEEN = [
    "parameters of lab.hoyer.\n    The problem arose whilst typechecking parameter 'a_L'.\n    Actual value: f32[6]",
    "return value of lab.per_token.\n    Actual value: f32[4]",
    "set_threshold_.\n    The problem arose whilst typechecking parameter 'threshold_L'.\n    Actual value: f32[5,1]",
    "BadInput: inputs_BXiDi has shape (B, 2, 7) but the coder expects (B, 2, 3).",
]


def test_a_wrong_shape_is_caught_by_name_in_theirs_and_in_ours(tmp_path: Path) -> None:
    """Argument and result of their own functions, argument of ours, batch of the wrong width; right shapes pass."""
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "__init__.py").write_text(PACKAGE)
    (tmp_path / "test_lab.py").write_text(TESTS)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\naddopts = ''\n")
    flags = ["--jaxtyping-packages=crosscode,lab,beartype.beartype", "-p", "no:cacheprovider", "--tb=line", "-q", "-rA"]
    command = [sys.executable, "-m", "pytest", str(tmp_path), "--rootdir", str(tmp_path), *flags]
    report = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert "PASSED test_lab.py::test_right_shapes_pass" in report, report
    assert "4 failed, 1 passed" in report
    for error in SEEN:
        assert error in report, report
