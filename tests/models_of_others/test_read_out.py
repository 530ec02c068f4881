"""What a direction adds to the logits, held against the model itself: its logits for a stream and for its opposite."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from jaxtyping import Float
from models_of_others.architectures import ARCHITECTURES, made, make
from torch import Tensor, nn

from crosscode.data import load_language_model
from crosscode.data.read_out import unembedding_of
from crosscode.errors import CrosscodeWarning

NONE: dict[str, str] = {}  # architectures of the table that cannot be read out, and why: none of them


def blocks_of(model: Any) -> nn.ModuleList:
    """The list of blocks that text passes through."""
    passed: set[int] = set()
    handles = [each.register_forward_hook(lambda each, args, _: passed.add(id(each))) for each in model.modules()]
    model(torch.zeros(1, 2, dtype=torch.long), use_cache=False)
    for handle in handles:
        handle.remove()
    n_layers = model.config.get_text_config().num_hidden_layers
    lists = [each for each in model.modules() if isinstance(each, nn.ModuleList) and len(each) == n_layers]
    return next(each for each in lists if passed.issuperset(map(id, each)))


@torch.no_grad()
def logits_of(model: Any, stream_ND: Float[Tensor, "N D"]) -> Float[Tensor, "N V"]:
    """A model's own logits for what its last block is made to give, at the second of two positions."""

    def instead(block: Any, args: Any, output: Any) -> Any:
        stream_NSD = stream_ND[:, None].expand(-1, 2, -1).to(output[0].dtype)
        return (stream_NSD, *output[1:]) if isinstance(output, tuple | list) else stream_NSD

    handle = blocks_of(model)[-1].register_forward_hook(instead)
    logits_NSV: Tensor = model(torch.full((len(stream_ND), 2), 5), use_cache=False).logits
    handle.remove()
    return logits_NSV[:, 1].double()


def directions(width: int) -> Float[Tensor, "N D"]:
    """Of other sizes, some with a mean, some with one large coordinate."""
    generator = torch.Generator().manual_seed(1)
    directions_ND = 4 * torch.randn(12, width, generator=generator)
    directions_ND[4:8] += 3
    directions_ND[8:, 2] = 60
    return directions_ND


def before_cap(model: Any, logits_NV: Tensor) -> Tensor:
    """A cap's inverse, where a configuration has one."""
    config = model.config.get_text_config()
    cap = getattr(config, "final_logit_softcapping", None) or getattr(config, "logits_soft_cap", None)
    return logits_NV if cap is None else cap * torch.atanh(logits_NV / cap)


def distances(claimed_NV: Tensor, own_NV: Tensor) -> Tensor:
    """1 - cosine, less the mean over the vocabulary as in attributions."""
    claimed_NV, own_NV = (each.double() - each.double().mean(-1, keepdim=True) for each in (claimed_NV, own_NV))
    return 1 - torch.cosine_similarity(claimed_NV, own_NV, dim=-1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_it_is_what_the_model_does_with_a_direction(name: str) -> None:
    """Half the difference between the logits of a stream and of its opposite, as far as a norm's division goes."""
    model = made(name)
    found = unembedding_of(name, model)
    if name in NONE:
        assert found is None
        return
    assert found is not None
    stream_ND = directions(len(found))
    up_NV, down_NV = (before_cap(model, logits_of(model, sign * stream_ND)) for sign in (1, -1))
    own_NV = (up_NV - down_NV) / 2
    assert found.shape[1] == own_NV.shape[1]
    assert distances(stream_ND @ found, own_NV).max() < 1e-6
    # And in size: what a norm divides by is the root mean square, of what is left when it has centred.
    ratio_N = (stream_ND @ found).double().norm(dim=-1) / own_NV.norm(dim=-1)
    sizes = {
        "rms": stream_ND.square().mean(-1).sqrt(),
        "std": stream_ND.std(-1, unbiased=False),
        "none": torch.ones(len(stream_ND)),
    }
    wrong = {kind: float((ratio_N / size_N - 1).abs().max()) for kind, size_N in sizes.items()}
    assert min(wrong.values()) < 1e-3, wrong


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "phi", "opt_350m", "mamba", "cohere"])
def test_in_low_precision_it_is_as_good_as_that(name: str, dtype: torch.dtype) -> None:
    found = unembedding_of(name, make(name).to(dtype))
    wanted = unembedding_of(name, made(name))
    assert found is not None
    assert wanted is not None
    assert found.dtype == torch.float32
    assert float((found - wanted).norm() / wanted.norm()) < 0.02


def test_the_model_is_left_as_it_is() -> None:
    """No hook, no method of an instance, no weight changed."""
    model = make("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = model(torch.arange(8)[None]).logits
    unembedding_of("llama", model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(model(torch.arange(8)[None]).logits, wanted)


class Rectified(nn.Sequential):
    """An MLP: half of the difference between a direction and its opposite is linear even in it."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 64))


class Squared(nn.Module):
    """A linear layer, and then no cap."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).square()


class Picks(nn.Module):
    """No linear layer at all."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.flip(-1)], dim=-1)


class Gated(nn.Module):
    """In the final norm's place: neither a norm nor linear."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x[..., :1].sigmoid()


class Tanh(nn.Module):
    """In the final norm's place: odd, and bounded as a norm is."""

    def forward(self, x: Tensor) -> Tensor:
        return x.tanh()


@pytest.mark.parametrize(
    ("place", "part", "why"),
    [
        ("lm_head", Rectified, "neither a norm nor a linear map"),
        ("lm_head", Squared, "no function of what its head gives|no linear layer"),
        ("lm_head", Picks, "no linear layer"),
        ("model.norm", Gated, "neither a norm nor a linear map"),
        ("model.norm", Tanh, "neither a norm nor a linear map"),
    ],
)
def test_what_is_no_norm_and_linear_map_is_not_read_out(place: str, part: type[nn.Module], why: str) -> None:
    """None, in one line that says why; nothing that looks like an answer."""
    torch.manual_seed(0)
    model = make("llama")
    model.set_submodule(place, part())
    with pytest.warns(CrosscodeWarning, match=f"^model 'odd': no logit attribution: .*({why})"):
        assert unembedding_of("odd", model) is None


INSIDE = re.compile(r"blocks\.\d+\.hook_(attn|mlp)_out")


@pytest.fixture(scope="module", autouse=True)
def nothing_is_installed() -> Iterator[None]:
    """TransformerLens would install torchvision for models that also see."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("subprocess.check_call", lambda *args, **options: pytest.fail(f"{args} was called"))
        yield


@pytest.mark.parametrize(
    "name",
    ["gpt2", "gpt_neox", "opt_projected", "bloom", "gemma2", "gemma4_text", "granite", "cohere", "olmo2", "mixtral"],
)
def test_all_that_is_added_makes_up_the_stream(name: str, saved: Callable[[str], Any]) -> None:
    """The last block's output is what enters the first, and what is added to it, each times its gain; so are logits.

    Blocks in a row and side by side, norms before and after, a factor on what is added (Granite) or on the stream
    (Gemma 4).
    """
    model = load_language_model(str(saved(name)))
    tokens_HS = torch.arange(3, 23).reshape(2, 10)
    *parts, end = hookpoints = [
        "blocks.0.hook_resid_pre",
        *(name for name in model.hookpoints if INSIDE.fullmatch(name)),
        f"blocks.{model.n_layers - 1}.hook_resid_post",
    ]
    assert len(parts) == 1 + 2 * model.n_layers
    *acts_pHSD, end_HSD = model.harvest(tokens_HS, hookpoints).unbind(2)
    gains = [model.direct_gain(part) for part in parts]
    assert None not in gains
    sum_HSD = sum(gain * acts_HSD for gain, acts_HSD in zip(gains, acts_pHSD))
    torch.testing.assert_close(sum_HSD, end_HSD, rtol=1e-3, atol=1e-3)
    assert model.direct_gain(end) == 1
    unembed_DV = model.unembedding()
    assert unembed_DV is not None
    far_ND = 1e5 * directions(len(unembed_DV))

    def logits(sign: int, part: str) -> Tensor:
        logits_NSV = model.logits(torch.full((len(far_ND), 1), 5), {part: lambda _: sign * far_ND[:, None]})
        return before_cap(model.hf_model, logits_NSV[:, 0].double())

    for part in parts:
        own_NV = (logits(1, part) - logits(-1, part)) / 2
        assert distances(far_ND @ unembed_DV, own_NV).max() < 1e-4, part


def test_a_stream_that_every_layer_scales_is_followed(saved: Callable[[str], Any]) -> None:
    """Gemma 4 with inputs for every layer: what leaves a layer is multiplied by the scalars of those after it."""
    model = load_language_model(str(saved("gemma4_e_text")))
    first, last = (float(layer.layer_scalar) for layer in blocks_of(model.hf_model))
    assert model.direct_gain("blocks.0.hook_resid_post") == pytest.approx(last, rel=1e-5)
    assert model.direct_gain("blocks.0.hook_resid_pre") == pytest.approx(first * last, rel=1e-5)


def test_what_a_norm_lies_behind_is_not_read_out(saved: Callable[[str], Any]) -> None:
    """OPT-350m normalises its stream in every block: the last block's output alone reaches the logits as it is."""
    model = load_language_model(str(saved("opt_350m")))
    assert model.direct_gain("blocks.1.hook_resid_post") == 1
    for hookpoint in ("blocks.0.hook_resid_post", "blocks.1.hook_resid_pre", "blocks.1.hook_mlp_out"):
        with pytest.warns(CrosscodeWarning, match=f"no logit attribution: what is written at {hookpoint} does not"):
            assert model.direct_gain(hookpoint) is None


def test_what_is_not_on_the_direct_path_has_no_gain(saved: Callable[[str], Any]) -> None:
    """A norm's output, an MLP's input, the final norm's: turned, lost, or of another width."""
    model = load_language_model(str(saved("llama")))
    for hookpoint in (
        "blocks.0.mlp.hook_in",
        "blocks.0.hook_mlp_in",
        "ln_final.hook_normalized",
        "blocks.1.attn.hook_z",
    ):
        if hookpoint in model.hookpoints:
            with pytest.warns(CrosscodeWarning, match="no logit attribution"):
                assert model.direct_gain(hookpoint) is None
