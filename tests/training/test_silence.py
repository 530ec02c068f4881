"""A coder that cannot fire, or does not, is told in one line; so are latents below 0."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from crosscode.activations import Activation, JumpReLU, ReLU, TopK
from crosscode.batch import Batch
from crosscode.errors import BadInput, CrosscodeWarning
from crosscode.initialization import AnthropicTranspose
from crosscode.latents import Latents
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseDecoder, DenseEncoder, Encoder, SparseCoder, acausal_crosscoder, sae, transcoder
from crosscode.module import module
from crosscode.penalties import L1OfNorms
from crosscode.training import Trainer, Weighted

D, L = 6, 12


def trainer_of(coder: SparseCoder, num_steps: int = 3, **given) -> Trainer:
    shape = (4, *coder.encoder.in_dims, D)
    data = [Batch.autoencode(torch.randn(shape, generator=torch.Generator().manual_seed(i))) for i in range(3)]
    optimizer = torch.optim.Adam(coder.parameters())
    return Trainer(
        **{"model": coder, "data": data, "loss": SummedSquaredError(), "optimizer": optimizer, "lr": 1e-2}
        | {"num_steps": num_steps, "init": [AnthropicTranspose(1.0)]}
        | given
    )


@module
class OfNothing(Encoder):
    """An encoder of one's own that is no affine map, and begins as a constant."""

    in_dims: tuple[int, ...]
    d_in: int
    n_latents: int

    def __attrs_post_init__(self) -> None:
        self.W_DL, self.b_enc_L = nn.Parameter(torch.zeros(self.d_in, self.n_latents)), None

    def forward(self, x_BXiDi: Tensor) -> Tensor:
        return torch.tanh(x_BXiDi @ self.W_DL)


@pytest.mark.parametrize(
    "coder",
    [
        sae(D, L, TopK(3)),
        acausal_crosscoder(n_models=2, n_hookpoints=3, d_model=D, n_latents=L, activation=ReLU()),
        transcoder(D, L, JumpReLU(L)),
        SparseCoder(OfNothing((), D, L), ReLU(), DenseDecoder(L, (), D)),
    ],
    ids=["sae", "crosscoder", "transcoder", "own"],
)
def test_a_coder_without_a_start_is_refused_before_the_first_step(coder) -> None:
    """All weights are zero: nothing would fire, and nothing would be learnt."""
    trainer = trainer_of(coder, init=[])

    with pytest.raises(BadInput, match=r"init: the \w+ gives the same pre-activations whatever it reads.*init="):
        trainer.train()
    assert trainer.state.step == 0


def test_latents_that_read_nothing_are_counted() -> None:
    def some_of_them(coder: SparseCoder, data) -> None:
        AnthropicTranspose(1.0)(coder, data)
        with torch.no_grad():
            coder.encoder.W_enc_XiDiL[:, :5] = 0

    with pytest.warns(CrosscodeWarning, match="^5 of 12 latents read nothing at the start"):
        trainer_of(sae(D, L, TopK(3)), init=[some_of_them]).train()


def test_a_penalty_that_silences_everything_is_told_once() -> None:
    """After a hundred steps in which nothing fired; training goes on."""
    coder = sae(D, L, ReLU())
    trainer = trainer_of(coder, num_steps=420, penalties={"l1": Weighted(L1OfNorms(), 1e4)}, lr=0.1)

    with pytest.warns(CrosscodeWarning) as told:
        trainer.train()

    (line,) = [str(each.message) for each in told]
    assert line.startswith(("step 200: no latent has fired on the last", "step 100: no latent has fired on the last"))


def test_a_coder_that_fires_is_told_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", CrosscodeWarning)
        trainer_of(sae(D, L, TopK(3)), num_steps=250).train()


@module
class Signed(Activation):
    """Latents that may be negative."""

    def forward(self, pre_BL: Tensor, score_norms_L: Tensor | None = None) -> Latents:
        return Latents.from_dense(pre_BL)


def test_latents_below_zero_are_refused_in_the_first_step() -> None:
    """They would count as silent in L0, density and dead latents."""
    trainer = trainer_of(SparseCoder(DenseEncoder((), D, L), Signed(), DenseDecoder(L, (), D)))

    with pytest.raises(BadInput, match=r"what Signed.forward returns has latents below 0, the least -\d"):
        trainer.train()
    assert trainer.state.step == 0
