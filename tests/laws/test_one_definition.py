"""A part's author writes one definition; whatever form of it a coder asks for, it is that one and no other's."""

import pytest
import torch
from jaxtyping import Float
from strategies import N_SHARED, N_SITES, L
from torch import Tensor, nn

from crosscode.activations import (
    Activation,
    BatchTopK,
    GroupMax,
    JumpReLU,
    PerSite,
    Priced,
    ReLU,
    SeparateBudgets,
    TopK,
)
from crosscode.batch import Batch
from crosscode.errors import BadInput
from crosscode.kernels.pattern import Pattern
from crosscode.kernels.screening import _group_size
from crosscode.kernels.selection import entries_where
from crosscode.latents import Latents
from crosscode.models import (
    AffineEncoder,
    DenseDecoder,
    DenseEncoder,
    Encoder,
    LinearSkip,
    LowRankMaskedDecoder,
    MaskedDecoder,
    MaskedEncoder,
    SharedDecoder,
    SharedEncoder,
    SiteMask,
    SparseCoder,
    TiedEncoder,
    Trace,
)
from crosscode.module import module
from crosscode.penalties import AuxK, PreActivation
from crosscode.testing import check_part

D, B = 5, 9


@module
class Centred(DenseEncoder):
    """Takes something away first: `forward` alone is written."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.m = nn.Parameter(torch.ones(*self.in_dims, self.d_in))

    def forward(self, x_BXiDi: Float[Tensor, "B *Xi Di"]) -> Float[Tensor, "B L"]:
        return super().forward(x_BXiDi - self.m)


@module
class CentredBySite(MaskedEncoder):
    """The same of the other encoder."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.m = nn.Parameter(torch.ones(*self.in_dims, self.d_in))

    def forward(self, x_BXiDi: Float[Tensor, "B P Di"]) -> Float[Tensor, "B L"]:
        return super().forward(x_BXiDi - self.m)


@module
class Cubed(DenseEncoder):
    """No affine map."""

    def forward(self, x_BXiDi: Float[Tensor, "B *Xi Di"]) -> Float[Tensor, "B L"]:
        return super().forward(x_BXiDi.pow(3))


@module
class UnitColumns(DenseEncoder):
    """Other weights than those that are stored: still affine, and still fast."""

    def weights(self) -> Float[Tensor, "*Xi Di L"]:
        W_enc_XiDiL = super().weights()
        return W_enc_XiDiL / W_enc_XiDiL.flatten(0, -2).norm(dim=0)


@module
class LowRankEncoder(AffineEncoder):
    """`weights` alone is written."""

    in_dims: tuple[int, ...]
    d_in: int
    n_latents: int
    rank: int = 2

    def __attrs_post_init__(self) -> None:
        self.U_XiDiR = nn.Parameter(torch.ones(*self.in_dims, self.d_in, self.rank))
        self.V_RL = nn.Parameter(torch.ones(self.rank, self.n_latents))
        self.b_enc_L = nn.Parameter(torch.zeros(self.n_latents))

    def weights(self) -> Float[Tensor, "*Xi Di L"]:
        return self.U_XiDiR @ self.V_RL


LP = L // N_SITES
READS = SiteMask([(LP, (i,)) for i in range(N_SITES)])
WRITES = SiteMask([(LP, range(i, N_SITES)) for i in range(N_SITES)])
APART = SiteMask([(3, (0, 2)), (4, (1, 3)), (5, (0, 1, 3))])  # sites of a group that are no neighbours

ENCODERS = {
    "dense": lambda: DenseEncoder((), D, L),
    "of sites": lambda: DenseEncoder((2, 2), 3, L),
    "ragged": lambda: DenseEncoder((2,), D, L, widths_Xi=(5, 3)),
    "per site": lambda: MaskedEncoder((N_SITES,), D, READS),
    "without bias": lambda: MaskedEncoder((N_SITES,), D, READS, bias=False),
    "of the mean of models": lambda: SharedEncoder((2, 2), 3, L),
    "ragged mean": lambda: SharedEncoder((2, 2), D, L, widths_Xi=(5, 3, 5, 3)),
    "tied": lambda: TiedEncoder(DenseDecoder(L, (2,), D)),
    "tied to a masked decoder": lambda: TiedEncoder(MaskedDecoder(APART, (2, 2), 3), bias=False),
    "of sites apart": lambda: MaskedEncoder((2, 2), 3, APART),
    "of all sites": lambda: MaskedEncoder((), D, SiteMask([(L, (0,))])),
    "centred": lambda: Centred((), D, L),
    "centred by site": lambda: CentredBySite((N_SITES,), D, READS),
    "cubed": lambda: Cubed((2,), D, L),
    "unit columns": lambda: UnitColumns((2,), D, L),
    "low rank": lambda: LowRankEncoder((2,), D, L),
}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_form_of_an_encoder_is_its_forward(encoder: str) -> None:
    """All latents, some, selected ones with their gradients, exports and copies: the house's own and a user's."""
    check_part(ENCODERS[encoder]())


@module
class SummedDecoder(SharedDecoder):
    """Directions of its own, of a decoder with fast forms."""

    def dense(self) -> Float[Tensor, "L M *P D"]:
        return 2 * super().dense()

    @torch.no_grad()
    def assign_(self, W_dec_LXoDo: Float[Tensor, "L M *P D"]) -> None:
        super().assign_(W_dec_LXoDo / 2)


@module
class HalvedCausal(MaskedDecoder):
    """The same of the triangle."""

    def dense(self) -> Float[Tensor, "L P D"]:
        return super().dense() / 2

    @torch.no_grad()
    def assign_(self, W_dec_LXoDo: Float[Tensor, "L P D"]) -> None:
        super().assign_(2 * W_dec_LXoDo)


DECODERS = {
    "dense": lambda: DenseDecoder(L, (2,), D),
    "shared": lambda: SharedDecoder(L, N_SHARED, (2, 2), 3),
    "causal": lambda: MaskedDecoder(WRITES, (N_SITES,), D),
    "without bias": lambda: MaskedDecoder(WRITES, (N_SITES,), D, bias=False),
    "low rank": lambda: LowRankMaskedDecoder(WRITES, (N_SITES,), D, rank=2),
    "low rank apart": lambda: LowRankMaskedDecoder(APART, (2, 2), D, rank=1, bias=False, widths_Xo=(5, 3, 4, 5)),
    "to sites apart": lambda: MaskedDecoder(APART, (2, 2), 3),
    "to all sites": lambda: MaskedDecoder(SiteMask([(L, (0,))]), (), D),
    "doubled": lambda: SummedDecoder(L, N_SHARED, (2, 2), 3),
    "halved": lambda: HalvedCausal(WRITES, (N_SITES,), D),
}


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_form_of_a_decoder_is_its_directions(decoder: str) -> None:
    """Reconstructions, norms, exports and copies follow `dense`."""
    check_part(DECODERS[decoder]())


def test_a_skip_keeps_the_laws() -> None:
    """With and without forbidden pairs."""
    check_part(LinearSkip((2,), 3, (3,), 4))
    check_part(LinearSkip((2,), 3, (2,), 3, pairs=[(0, 0), (1, 1)]))


def halved(kind: type[Activation]) -> type[Activation]:
    """A subclass of an activation that overrides `forward` and nothing else."""

    def forward(self, pre_BL, score_norms_L=None):
        return Latents.from_dense(kind.forward(self, pre_BL, score_norms_L).dense() / 2)

    return module(type(f"Halved{kind.__name__}", (kind,), {"forward": forward, "__module__": __name__}))


FORWARDS = {
    "relu": lambda: halved(ReLU)(),
    "jumprelu": lambda: halved(JumpReLU)(L, threshold=0.2),
    "topk": lambda: halved(TopK)(3),
    "batch_topk": lambda: halved(BatchTopK)(3),
    "groupmax": lambda: halved(GroupMax)(5),
    "per_site": lambda: halved(PerSite)([ReLU() for _ in range(N_SITES)]),
    "per_site_topk": lambda: halved(PerSite)([TopK(1) for _ in range(N_SITES)]),
    "budgets": lambda: halved(SeparateBudgets)(TopK(2), TopK(1), N_SHARED),
    "priced": lambda: halved(Priced)(TopK(3), N_SHARED, 0.25),
    "within": lambda: PerSite([halved(TopK)(1, weighted=False), halved(ReLU)(), halved(JumpReLU)(L // N_SITES)]),
}


def coder_of(activation: Activation, encoder: Encoder | None = None) -> SparseCoder:
    """A float64 coder with drawn weights."""
    torch.manual_seed(0)
    encoder = DenseEncoder((), D, L) if encoder is None else encoder
    coder = SparseCoder(encoder, activation, DenseDecoder(L, encoder.in_dims, encoder.d_in)).double()
    with torch.no_grad():
        for part in (coder.encoder, coder.decoder):
            for parameter in part.parameters():
                parameter.copy_(torch.randn_like(parameter))
    return coder


def batch_of(coder: SparseCoder) -> Batch:
    torch.manual_seed(1)
    return Batch.autoencode(torch.randn(B, *coder.encoder.in_dims, coder.encoder.d_in, dtype=torch.float64))


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", FORWARDS)
def test_a_forward_that_is_written_runs_in_every_step(name: str, sparse: bool) -> None:
    """Whichever form the trainer asks for, values and gradients are those of `forward` by autograd."""
    coder = coder_of(FORWARDS[name]())
    batch = batch_of(coder)
    wanted = coder.activation(coder.encoder(batch.inputs_BXiDi), coder.score_norms_L()).dense()
    got = coder.activate(batch.inputs_BXiDi, sparse=sparse).dense()
    assert torch.equal(got, wanted)
    weights_BL = torch.randn_like(wanted)
    leaves = list(coder.encoder.parameters())
    one, other = (torch.autograd.grad((f_BL * weights_BL).sum(), leaves) for f_BL in (got, wanted))
    assert all(map(torch.equal, one, other))


@pytest.mark.parametrize("name", FORWARDS)
def test_what_was_true_of_another_forward_is_not_claimed(name: str) -> None:
    """An override may not scale as its base did: it is exported as it is, or not at all."""
    coder = coder_of(FORWARDS[name]()).eval()
    assert not coder.activation.is_rescalable
    if coder.activation.score_norm is not None:
        with pytest.raises(BadInput, match="give it a `rescaled`"):
            coder.folded()


@module
class EveryOther(TopK):
    """A selection of its own, of a class that screens where that is faster."""

    def select(self, pre_BL, score_norms_L=None):
        pattern = super().select(pre_BL, score_norms_L)
        kept_BL = torch.zeros(pre_BL.shape, dtype=torch.bool)
        kept_BL.view(-1)[pattern.flat_N[::2]] = True
        return entries_where(kept_BL)


@pytest.mark.parametrize("encoder", [DenseEncoder, Centred, Cubed, UnitColumns])
@pytest.mark.parametrize("activation", [TopK, EveryOther])
def test_screening_serves_no_other_definition(activation, encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """At sizes where the fast selection would be chosen, codes are still those of the parts as they are written."""
    monkeypatch.setattr(
        "crosscode.models.coder.screening_is_faster", lambda x_BI, W_IL, k: _group_size(W_IL.shape[1], k) > 1
    )
    torch.manual_seed(0)
    coder = SparseCoder(encoder((), 16, 512), activation(4), DenseDecoder(512, (), 16))
    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(torch.randn_like(parameter))
    x_BD = torch.randn(32, 16)
    got, wanted = coder.activate(x_BD), coder.activation(coder.encoder(x_BD), coder.score_norms_L())
    assert torch.equal(got.dense() > 0, wanted.dense() > 0)
    torch.testing.assert_close(got.dense(), wanted.dense())


@pytest.mark.parametrize("encoder", ["centred", "cubed", "centred by site", "low rank", "per site"])
def test_penalties_ask_the_same_encoder(encoder: str) -> None:
    """PreActivation of dense and of sparse codes is one number, affine encoder or not; so is AuxK."""
    jumprelu = JumpReLU(L, threshold=0.3, bandwidth=0.1)
    coder = coder_of(jumprelu, ENCODERS[encoder]())
    batch, silent_L = batch_of(coder), torch.full((L,), 10)
    dense, sparse = (Trace.of(coder, batch, silent_L, sparse=form) for form in (False, True))
    for penalty in (PreActivation(jumprelu), AuxK(k=2, dead_after_tokens=5)):
        torch.testing.assert_close(penalty(sparse), penalty(dense))
    z_BL = coder.encoder(batch.inputs_BXiDi)
    wanted = (jumprelu.threshold_L - z_BL).relu().sum(0) @ dense.decoder_norms_LXo.reshape(L, -1).sum(-1) / B
    torch.testing.assert_close(PreActivation(jumprelu)(sparse), wanted)


def test_hooks_and_replaced_methods_run() -> None:
    """What is added to one object, not to its class, is seen by every form of codes too."""
    for add in (
        lambda coder: coder.encoder.register_forward_pre_hook(lambda _, args: (2 * args[0],)),
        lambda coder: setattr(coder.encoder, "forward", lambda x_BD: DenseEncoder.forward(coder.encoder, 2 * x_BD)),
    ):
        coder = coder_of(TopK(3))
        batch = batch_of(coder)
        doubled = coder.activate(2 * batch.inputs_BXiDi).dense().detach()
        add(coder)
        got = coder.activate(batch.inputs_BXiDi).dense()
        torch.testing.assert_close(got, doubled)


def refused(base: type, member: str) -> str:
    """What is said of a class that overrides one member."""
    with pytest.raises(BadInput) as told:
        type("Mine", (base,), {member: lambda self, *args: None})
    return str(told.value)


@pytest.mark.parametrize(
    ("base", "member", "definition"),
    [
        (DenseEncoder, "attach", "forward"),
        (DenseEncoder, "linear", "forward"),
        (MaskedEncoder, "as_product", "forward"),
        (MaskedEncoder, "weights", "forward"),
        (ReLU, "of_entries", "forward"),
        (JumpReLU, "select", "forward"),
        (PerSite, "of_entries", "forward"),
        (DenseDecoder, "linear", "dense"),
        (DenseDecoder, "forward", "dense"),
        (MaskedDecoder, "norms_LXo", "dense"),
        (Activation, "select", "forward"),
    ],
)
def test_a_form_alone_is_refused(base: type, member: str, definition: str) -> None:
    """Beside an inherited definition it would be a second answer: the line names member and definition."""
    told = refused(base, member)
    assert f"Mine.{member}" in told
    assert f"`{definition}`" in told


def test_a_coder_is_not_subclassed() -> None:
    """Training asks more than one of its methods."""
    assert "SparseCoder" in refused(SparseCoder, "forward")
    type("Named", (SparseCoder,), {"title": "a method that it does not have"})


def test_a_form_written_beside_its_definition_is_taken() -> None:
    """A user's own fast form is used, until a subclass has another definition."""

    class Doubling(Encoder):
        def forward(self, x_BXiDi):
            return 2 * x_BXiDi

        def of_latents(self, x_BXiDi, latents_l):
            return "fast"

    class Tripling(Doubling):
        def forward(self, x_BXiDi):
            return 3 * x_BXiDi

    class Also(Tripling):
        pass

    x_BD = torch.ones(1, 4)
    assert Doubling().of_latents(x_BD, slice(2)) == "fast"
    for cls in (Tripling, Also):
        assert torch.equal(cls().of_latents(x_BD, slice(2)), 3 * torch.ones(1, 2))


def test_missing_attributes_are_named() -> None:
    """A part without its bias, which cannot be guessed."""

    @module
    class NoBias(Encoder):
        in_dims: tuple[int, ...] = ()
        d_in: int = D
        n_latents: int = L

    with pytest.raises(BadInput, match="NoBias has no attribute b_enc_L"):
        SparseCoder(NoBias(), ReLU(), DenseDecoder(L, (), D))


def test_an_activation_that_gives_no_latents_is_named() -> None:
    """The first time that it is asked."""

    @module
    class Plain(Activation):
        def forward(self, pre_BL, score_norms_L=None):
            return pre_BL.relu()

    @module
    class Few(Activation):
        def forward(self, pre_BL, score_norms_L=None):
            return Latents.from_dense(pre_BL[:, :3].relu())

    for activation, told in ((Plain(), "Plain.forward returns must be Latents"), (Few(), "returns 3 latents")):
        coder = coder_of(activation)
        with pytest.raises(BadInput, match=told):
            coder.encode(batch_of(coder).inputs_BXiDi)


def test_entries_of_a_selection_may_be_changed() -> None:
    """`of_entries` of a selection is part of its definition: dense and sparse codes have it."""

    @module
    class Binary(TopK):
        def of_entries(self, pre_N: Float[Tensor, " N"], pattern: Pattern) -> Float[Tensor, " N"]:
            return pre_N / pre_N.detach()

    coder = coder_of(PerSite([Binary(1), Binary(2), TopK(1)]))
    f_BL = coder.activate(batch_of(coder).inputs_BXiDi).dense()
    assert ((f_BL[:, :8] == 0) | (f_BL[:, :8] == 1)).all()
    check_part(Binary(2))
    check_part(Priced(Binary(2), 4, 0.5))
