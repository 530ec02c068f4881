"""Small coders for the tests: every shape of coder times every activation, with weights drawn from a seed."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

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
from crosscode.models import (
    DenseDecoder,
    DenseEncoder,
    LinearSkip,
    MaskedDecoder,
    MaskedEncoder,
    SharedDecoder,
    SiteMask,
    SparseCoder,
    acausal_crosscoder,
    compound_cross_layer_transcoder,
    cross_layer_transcoder,
    sae,
)

L, N_SHARED, N_SITES = 12, 5, 3
MASK = SiteMask([(3, (0, 1)), (4, (2, 3)), (5, (0, 1, 2, 3))])  # (2, 2) sites: model 0 only, model 1 only, shared
MASK_LX = torch.tensor([[1, 1, 0, 0]] * 3 + [[0, 0, 1, 1]] * 4 + [[1, 1, 1, 1]] * 5, dtype=torch.float64)

SHAPES: Mapping[str, Callable[[Activation], SparseCoder]] = {
    "sae": lambda activation: sae(4, L, activation),
    "crosscoder": lambda activation: acausal_crosscoder(
        n_models=2, n_hookpoints=2, d_model=3, n_latents=L, activation=activation
    ),
    "masked": lambda activation: SparseCoder(
        MaskedEncoder((2, 2), 3, MASK), activation, MaskedDecoder(MASK, (2, 2), 3)
    ),
    "shared": lambda activation: SparseCoder(
        DenseEncoder((2, 2), 3, L), activation, SharedDecoder(L, N_SHARED, (2, 2), 3)
    ),
    "clt": lambda activation: cross_layer_transcoder(4, N_SITES, L, activation, skip=True, skip_targets=(0, 2)),
    "compound": lambda activation: compound_cross_layer_transcoder(4, N_SITES, L // N_SITES, activation, skip=True),
    "ragged": lambda activation: acausal_crosscoder(
        n_models=2, n_hookpoints=1, d_model=5, n_latents=L, activation=activation, widths_X=(5, 3)
    ),
    "no_bias": lambda activation: SparseCoder(
        DenseEncoder((2,), 3, L, bias=False), activation, DenseDecoder(L, (2,), 3, bias=False)
    ),
}

ACTIVATIONS: Mapping[str, Callable[[], Activation]] = {
    "relu": ReLU,
    "jumprelu": lambda: JumpReLU(L, bandwidth=1.5),
    "jumprelu_gdm": lambda: JumpReLU(L, bandwidth=1.0, ste_to_input=False, parametrisation="raw"),
    "topk": lambda: TopK(3),
    "topk_l2": lambda: TopK(3, norm="l2"),
    "topk_unweighted": lambda: TopK(3, weighted=False),
    "batch_topk": lambda: BatchTopK(3),
    "groupmax": lambda: GroupMax(5),
    "budgets_topk": lambda: SeparateBudgets(TopK(2), TopK(1), N_SHARED),
    "budgets_batch_topk": lambda: SeparateBudgets(BatchTopK(2), BatchTopK(1), N_SHARED),
    "priced_topk": lambda: Priced(TopK(3), N_SHARED, 0.25),
    "priced_batch_topk": lambda: Priced(BatchTopK(3), N_SHARED, 0.25),
    "per_site_batch_topk": lambda: PerSite([BatchTopK(k) for k in (1, 2, 1)]),
    "per_site_jumprelu": lambda: PerSite([JumpReLU(L // N_SITES, bandwidth=1.5) for _ in range(N_SITES)]),
    "per_site_mixed": lambda: PerSite([ReLU(), TopK(1, weighted=False), JumpReLU(L // N_SITES)]),
}

PRODUCT = [(shape, activation) for shape in SHAPES for activation in ACTIVATIONS]
# Every shape and every activation, but not every pair.
CROSS = [pair for pair in PRODUCT if pair[0] in ("masked", "compound") or pair[1] in ("jumprelu", "budgets_batch_topk")]


def f64(*values: object) -> Tensor:
    """A float64 tensor from numbers or nested lists."""
    return torch.tensor(values[0] if len(values) == 1 else values, dtype=torch.float64)


def put(coder: SparseCoder, parameters: Mapping[str, Sequence[object]]) -> SparseCoder:
    """The coder in float64 with parameters set by name, each given as numbers in row-major order."""
    coder = coder.double()
    named = dict(coder.named_parameters())
    with torch.no_grad():
        for name, values in parameters.items():
            named[name].copy_(f64(list(values)).reshape(named[name].shape))
    return coder


def grads(coder: SparseCoder, name: str) -> list[float]:
    """A parameter's gradient in row-major order."""
    gradient = dict(coder.named_parameters())[name].grad
    assert gradient is not None
    return gradient.flatten().tolist()


def random_coder(shape: str, activation: str, seed: int = 0) -> SparseCoder:
    """A float64 coder with random weights, biases, thresholds, scales and shifts."""
    generator = torch.Generator().manual_seed(seed)
    coder = SHAPES[shape](ACTIVATIONS[activation]()).double()

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype)

    with torch.no_grad():
        for parameter in coder.parameters():
            parameter.copy_(0.5 * normal(parameter))
        if shape == "ragged":
            coder.encoder.assign_(coder.encoder.weights().clone())
            coder.decoder.assign_(coder.decoder.dense().clone())
            coder.decoder.b_dec_XoDo[1, :, 3:] = 0
        for part in coder.activation.modules():
            if isinstance(part, JumpReLU):
                part.set_threshold_(0.2 + normal(part.threshold_L).abs())
        for scale in (coder.scale_in_Xi, coder.scale_out_Xo):
            scale.copy_(0.5 + normal(scale).abs())
        for shift in (coder.shift_in_XiDi, coder.shift_out_XoDo):
            shift.copy_(0.3 * normal(shift))
        if shape == "ragged":
            coder.shift_in_XiDi[1, :, 3:] = 0
            coder.shift_out_XoDo[1, :, 3:] = 0
        if (coder.encoder.in_dims, coder.encoder.d_in) == (coder.decoder.out_dims, coder.decoder.d_out):
            coder.scale_out_Xo.copy_(coder.scale_in_Xi)
            coder.shift_out_XoDo.copy_(coder.shift_in_XiDi)
    return coder


def random_batch(coder: SparseCoder, n_tokens: int = 6, seed: int = 1) -> Batch:
    """Raw activations of the coder's shapes, the same tensor twice where it autoencodes."""
    generator = torch.Generator().manual_seed(seed)
    dtype = coder.scale_in_Xi.dtype
    in_shape, out_shape = coder.shift_in_XiDi.shape, coder.shift_out_XoDo.shape
    x_BXiDi = torch.randn(n_tokens, *in_shape, generator=generator, dtype=torch.float64).to(dtype)
    widths = coder.encoder.widths_Xi
    if widths is not None:
        x_BXiDi[:, 1, :, widths[1] :] = 0
    if in_shape == out_shape and coder.skip is None:
        return Batch.autoencode(x_BXiDi)
    return Batch(x_BXiDi, torch.randn(n_tokens, *out_shape, generator=generator, dtype=torch.float64).to(dtype))


def in_eval_mode(coder: SparseCoder, x_BXiDi: Tensor) -> SparseCoder:
    """The coder in eval mode, its inference thresholds set from a batch.

    A threshold that equals a score could flip by rounding: it is moved off the score it was taken from.
    """
    with torch.no_grad():
        coder.train().encode(x_BXiDi)
    for part in coder.activation.modules():
        if isinstance(part, BatchTopK):
            part.threshold.mul_(1 - 1e-6).clamp_(min=0.0)  # 0 where nothing fired, as calibration sets it
    return coder.eval()


def jumprelu_of(coder: SparseCoder) -> JumpReLU | None:
    """The coder's activation, where it is one JumpReLU over all latents."""
    return coder.activation if isinstance(coder.activation, JumpReLU) else None


__all__ = [
    "ACTIVATIONS",
    "CROSS",
    "MASK",
    "MASK_LX",
    "N_SHARED",
    "N_SITES",
    "PRODUCT",
    "SHAPES",
    "L",
    "LinearSkip",
    "f64",
    "grads",
    "in_eval_mode",
    "jumprelu_of",
    "put",
    "random_batch",
    "random_coder",
]
