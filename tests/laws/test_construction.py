"""Which sites a latent can read and write, and which latents are shared, is said by the parts themselves.

An own encoder or decoder says it without a line of its author: evaluation and report label its latents too.
"""

import pytest
import torch
from jaxtyping import Float
from strategies import SHAPES, L
from torch import Tensor, nn

from crosscode.activations import ReLU, TopK
from crosscode.batch import Batch
from crosscode.evaluation import Names, full_evaluation, measure_coder, measures
from crosscode.evaluation.measures import by_construction
from crosscode.models import (
    Decoder,
    DenseDecoder,
    DenseEncoder,
    Encoder,
    MaskedDecoder,
    SharedDecoder,
    SiteMask,
    SparseCoder,
)
from crosscode.module import module

D = 3


@pytest.mark.parametrize("shape", SHAPES)
def test_what_a_part_says_is_what_follows_from_its_definition(shape: str) -> None:
    """A class of the house that says it by heart says what is found with other parameters."""
    coder = SHAPES[shape](TopK(3))
    assert torch.equal(coder.encoder.reads_LXi(), Encoder.reads_LXi(coder.encoder))
    assert torch.equal(coder.decoder.writes_LXo(), Decoder.writes_LXo(coder.decoder))
    assert torch.equal(coder.decoder.shared_L(), Decoder.shared_L(coder.decoder))


@module
class Dedicated(Decoder):
    """Of each half of the latents one model is written; the first latent of all writes the same to both."""

    n_latents: int
    out_dims: tuple[int, ...] = (2,)
    d_out: int = D

    def __attrs_post_init__(self) -> None:
        self.W_LD = nn.Parameter(torch.randn(self.n_latents, self.d_out, generator=torch.Generator().manual_seed(1)))
        self.b_dec_XoDo = None

    def dense(self) -> Float[Tensor, "L 2 D"]:
        to_first_L = torch.arange(self.n_latents) < self.n_latents // 2
        to_LM = torch.stack([to_first_L, ~to_first_L], dim=-1)
        to_LM = to_LM | (torch.arange(self.n_latents) == 0)[:, None]
        return self.W_LD[:, None] * to_LM[..., None]


@module
class Gated(Encoder):
    """Latents of site 0, then of site 1, each gated by its own site: no affine map, and no weights to be read."""

    n_latents: int
    in_dims: tuple[int, ...] = (2,)
    d_in: int = D

    def __attrs_post_init__(self) -> None:
        self.W_XDLp = nn.Parameter(torch.zeros(2, self.d_in, self.n_latents // 2))
        self.b_enc_L = None

    def forward(self, x_BXiDi: Float[Tensor, "B 2 D"]) -> Float[Tensor, "B L"]:
        return torch.cat([x_BXiDi[:, i] @ self.W_XDLp[i] * (x_BXiDi[:, i, :1] > 0) for i in range(2)], dim=-1)


NAMES = Names(("base", "tuned"), ("a",), ("a",))


def test_own_parts_are_labelled_by_construction() -> None:
    """Dedicated and shared latents, and those that read one site, whatever the weights are now (all 0 in `Gated`)."""
    coder = SparseCoder(Gated(6), ReLU(), Dedicated(6))
    known = by_construction(coder, NAMES)
    assert known["source_L"].tolist() == [0, 0, 0, 1, 1, 1]
    assert known["shared_L"].tolist() == [True] + [False] * 5
    assert known["dedicated_L"].tolist() == [-1, 0, 0, 1, 1, 1]


class Named(list[Batch]):
    model_names = ("base", "tuned")


def test_dedicated_latents_are_told_apart_and_never_called_exclusive() -> None:
    """They are beyond every cut-off by construction: their verdicts and their L0 stand by themselves."""
    x_BMD = torch.randn(200, 2, D, generator=torch.Generator().manual_seed(0))
    data = Named([Batch.autoencode(x_BMD)])
    coder = SparseCoder(DenseEncoder((2,), D, 6), ReLU(), Dedicated(6))
    coder.encoder.assign_(torch.randn(2, D, 6, generator=torch.Generator().manual_seed(2)))
    found = full_evaluation(coder, data, 100)
    assert found.metrics["exclusive/base/candidates"] == found.metrics["exclusive/tuned/candidates"] == 0
    assert (found.metrics["dedicated/base/candidates"], found.metrics["dedicated/tuned/candidates"]) == (2, 3)
    l0 = measure_coder(coder, data, measures(coder, data))
    parts = l0["l0/dedicated_base"] + l0["l0/dedicated_tuned"] + l0["l0/shared"]
    assert parts == pytest.approx(l0["l0/mean"])


def test_equal_weights_are_not_shared_latents() -> None:
    """Directions that start equal in both models are free to part: only the tied ones are shared."""
    free, tied = DenseDecoder(L, (2, 1), D), SharedDecoder(L, 4, (2, 1), D)
    free.assign_(torch.ones(L, 2, 1, D))
    assert not free.shared_L().any()
    assert not Decoder.shared_L(free).any()
    assert tied.shared_L().tolist() == [True] * 4 + [False] * (L - 4)
    one_model = MaskedDecoder(SiteMask([(4, (0, 1)), (L - 4, (1,))]), (2, 1), D)
    assert one_model.writes_LXo()[:, :, 0].tolist() == [[True, True]] * 4 + [[False, True]] * (L - 4)
