"""`check_part` passes what keeps the laws, and names member and law of what does not."""

import pytest
import torch
from strategies import ACTIVATIONS, SHAPES, L, random_coder
from torch import nn

from crosscode.activations import Activation, JumpReLU, ReLU, Selection, TopK
from crosscode.errors import BadInput
from crosscode.kernels.selection import entries_where
from crosscode.latents import Latents
from crosscode.losses import SummedSquaredError
from crosscode.models import Decoder, DenseDecoder, Encoder, LinearSkip, sae
from crosscode.module import module
from crosscode.one_definition import form_of
from crosscode.penalties import L1OfNorms, PreActivation
from crosscode.testing import BrokenLaw, check_part


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_of_the_house_keeps_the_laws(activation: str) -> None:
    """Forms, gradients, rows, rescaling, copies, files."""
    check_part(ACTIVATIONS[activation](), n_latents=L)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_coder_of_the_house_keeps_the_laws(shape: str) -> None:
    """Encoder, decoder and skip of every shape."""
    check_part(random_coder(shape, "relu"))


def test_the_part_is_left_as_it_was() -> None:
    """A copy is tried."""
    coder = sae(4, L, TopK(2))
    check_part(coder)
    assert all((parameter == 0).all() for parameter in coder.parameters())
    assert coder.scale_in_Xi.dtype == torch.float32


@module
class Own(Encoder):
    """A dense encoder from scratch; what is broken is added to it."""

    in_dims: tuple[int, ...] = ()
    d_in: int = 4
    n_latents: int = L

    def __attrs_post_init__(self) -> None:
        self.W_DL = nn.Parameter(torch.ones(self.d_in, self.n_latents))
        self.b_enc_L = nn.Parameter(torch.zeros(self.n_latents))

    def forward(self, x_BD):
        return x_BD @ self.W_DL + self.b_enc_L


def own(base: type, **members):
    """A class with some members replaced in it, whose other forms are its own."""
    definitions = {name: vars(base)[name] for name in ("forward", "dense") if name in vars(base)}
    return module(type("Broken", (base,), {"__module__": __name__, **definitions, **members}))


@torch.no_grad()
def _copied(self, W_DL):
    self.W_DL.copy_(W_DL)


BROKEN = {
    "not the columns": (own(Own, of_latents=lambda self, x, at: 2 * self(x)[:, at])(), "of_latents: gives forward's"),
    "no gradient": (own(Own, attach=lambda self, values, x, pattern: values)(), "attach: its gradient"),
    "other entries": (own(Own, attach=lambda self, v, x, at: 2 * at.of(self(x)))(), "attach: gives forward's"),
    "other product": (own(Own, as_product=lambda self, x: (x, self.W_DL, None))(), "as_product"),
    "not affine": (own(Own, forward=lambda self, x: x.pow(2) @ self.W_DL, is_affine=True)(), "is_affine"),
    "rows": (own(Own, forward=lambda self, x: (x - x.mean(0)) @ self.W_DL)(), "do not depend on other tokens"),
    "shape": (own(Own, forward=lambda self, x: x)(), "pre-activations, but the shape"),
    "raises": (own(Own, attach=lambda self, v, x, p: 1 / 0)(), "attach raises ZeroDivisionError"),
    "weights that are not set": (own(Own, weights=lambda self: self.W_DL.exp(), assign_=_copied)(), "assign_"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_encoder_is_told_by_member_and_law(name: str) -> None:
    """One law at a time."""
    part, told = BROKEN[name]
    with torch.no_grad():
        part.b_enc_L.fill_(0.5)
    with pytest.raises(BrokenLaw, match=told):
        check_part(part)


@module
class Signed(Activation):
    """Gives negative codes."""

    def forward(self, pre_BL, score_norms_L=None):
        return Latents.from_dense(pre_BL)


@module
class Plain(Activation):
    """Gives a tensor."""

    def forward(self, pre_BL, score_norms_L=None):
        return pre_BL.relu()


@module
class OtherSelection(ReLU):
    """Its sparse codes are not its dense ones."""

    def forward(self, pre_BL, score_norms_L=None):
        return Latents.from_dense(pre_BL.relu())

    codes = "either"

    def select(self, pre_BL, score_norms_L=None):
        return entries_where(pre_BL > 0.5)

    def of_entries(self, pre_N, pattern):
        return pre_N


@module
class NotRescalable(Activation):
    """Says that it scales, and does not."""

    is_rescalable = True

    def forward(self, pre_BL, score_norms_L=None):
        return Latents.from_dense(pre_BL.relu().square())


@module
class OfItsBatch(Selection):
    """A token's latents depend on its neighbours, in eval mode too."""

    def select(self, pre_BL, score_norms_L=None):
        return entries_where((pre_BL > 0) & (pre_BL >= pre_BL[:1]))


class NoSpec(Activation):
    """No attrs class."""

    def forward(self, pre_BL, score_norms_L=None):
        return Latents.from_dense(pre_BL.relu())


@module
class Forgetful(ReLU):
    """What it computes with is in no buffer."""

    def __attrs_post_init__(self) -> None:
        self.gain = 1.0

    def at_step(self, step: int, num_steps: int) -> None:
        self.gain = 2.0

    def forward(self, pre_BL, score_norms_L=None):
        return Latents.from_dense(self.gain * pre_BL.relu())


@pytest.mark.parametrize(
    ("part", "told"),
    [
        (Signed(), "never negative"),
        (Plain(), "gives Latents, not a Tensor"),
        (OtherSelection(), "select: the selected entries"),
        (NotRescalable(), "rescaled: of a z"),
        (OfItsBatch(), "do not depend on other tokens"),
        (NoSpec(), "cannot be saved"),
        (Forgetful(), "what is saved and loaded does the same"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Activation) else None,
)
def test_a_broken_activation_is_told_by_member_and_law(part: Activation, told: str) -> None:
    """One law at a time."""
    with pytest.raises(BrokenLaw, match=told):
        check_part(part)


DIRECTIONS = {
    "norms": own(DenseDecoder, norms_LXo=lambda self: self.dense().norm(dim=-1) * 2),
    "linear": own(DenseDecoder, linear=lambda self, latents: 2 * Decoder.linear(self, latents)),
    "forward": own(DenseDecoder, forward=lambda self, latents: self.linear(latents)),
}


@pytest.mark.parametrize("member", DIRECTIONS)
def test_a_broken_decoder_is_told(member: str) -> None:
    """By the member whose answer is another's."""
    with pytest.raises(BrokenLaw, match="norms_LXo" if member == "norms" else member):
        check_part(DIRECTIONS[member](L, (), 4))


def test_terms_are_tried_on_a_coder() -> None:
    """A scalar, finite, the same for dense and sparse codes."""
    jumprelu = JumpReLU(L, threshold=0.01, bandwidth=0.01)
    coder = random_coder("sae", "relu")
    for term in (SummedSquaredError(), L1OfNorms()):
        check_part(term, coder=coder)
    coder = sae(4, L, jumprelu).double()
    check_part(PreActivation(jumprelu), coder=coder)
    coder = random_coder("sae", "relu")
    broken = {
        lambda trace: trace.latents_BL.sum(0): "scalar",
        lambda trace: 3.0: "scalar",
        lambda trace: trace.latents_BL.sum() / 0: "finite",
        lambda trace: trace.latents.values.numel() * trace.latents_BL.sum(): "dense and of sparse",
    }
    for term, told in broken.items():
        with pytest.raises(BrokenLaw, match=told):
            check_part(term, coder=coder)


def test_what_is_no_part_is_refused() -> None:
    """A penalty without a coder, and anything else."""
    for part in (L1OfNorms(), nn.Linear(3, 4), 3):
        with pytest.raises(BadInput, match="no encoder, activation, decoder"):
            check_part(part)


def test_a_marked_form_of_ones_own_follows() -> None:
    """An author may mark a form that follows from the definition of those below."""

    class Base(Own):
        def forward(self, x_BD):
            return super().forward(x_BD)

        @form_of("forward")
        def of_latents(self, x_BXiDi, latents_l):
            return self(x_BXiDi)[:, latents_l]

    class Below(Base):
        def forward(self, x_BD):
            return 2 * super().forward(x_BD)

    x_BD = torch.ones(2, 4)
    assert torch.equal(Below().of_latents(x_BD, slice(2)), Below()(x_BD)[:, :2])


def test_a_skip_is_linear() -> None:
    """Its function is its weights': another one cannot be written beside them."""
    with pytest.raises(BadInput, match="write `weights` in Squared"):

        class Squared(LinearSkip):
            def forward(self, x_BXiDi):
                return super().forward(x_BXiDi) ** 2
