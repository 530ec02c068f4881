"""Model diffing with designated shared latents, L1 penalty: the form in the February 2025 text.

Source: "Insights on Crosscoder Model Diffing", Anthropic, February 2025. A small set of latents writes the same vector
to both models and pays less to fire; it absorbs what they share, so that the rest can be exclusive and monosemantic.

    python recipes/feb_diffing_l1.py
"""

from crosscode import SparseCoder, Trainer, Weighted
from crosscode.activations import ReLU
from crosscode.checks import share
from crosscode.initialization import AnthropicTranspose, NormalizeActivations
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseEncoder, SharedDecoder
from crosscode.penalties import L1OfNorms
from crosscode.run import RunOptions, main
from crosscode.schedulers import LinearRamp
from crosscode.training import ClipNorm


def feb_diffing_l1(
    run: RunOptions = RunOptions(models=("embedded:base", "embedded:tuned")),
    n_latents: int = 1024,
    n_shared: int = 256,
    l1: float = 1.0,
    shared_ratio: float = 0.5,
    l1_ramp: float = 0.05,
    decoder_norm: float = 0.1,
    lr: float = 3e-3,
    num_steps: int = 600,
) -> Trainer:
    """Model diffing with shared latents and an L1 penalty (February 2025 update, Anthropic).

    Args:
        run: two or more models, data and output; reports compare the first two.
        n_latents: how many latents (the literature: 8 to 32 x d_model).
        n_shared: how many of them are shared (the update: "a small set").
        l1: weight of the penalty on exclusive latents (crosscoder replications: 2).
        shared_ratio: weight on shared latents relative to that on exclusive ones (the update: 0.1 to 0.2, at which
            the exclusive latents of small coders die out).
        l1_ramp: part of the run over which both weights rise from 0 (replications: 0.05).
        decoder_norm: norm of each latent's decoder at each site at the start (replications: 0.08).
        lr: Adam's learning rate (replications at L = 16384: 5e-5).
        num_steps: optimizer steps, each of batch_size x accumulate tokens.
    """
    share("l1_ramp", l1_ramp)
    data = run.dataloader()
    coder = SparseCoder(
        encoder=DenseEncoder(data.in_dims, data.d_in, n_latents, widths_Xi=data.widths_Xi),
        activation=ReLU(),
        decoder=SharedDecoder(n_latents, n_shared, data.out_dims, data.d_out, widths_Xo=data.widths_Xo),
    ).to(run.device)
    shared, exclusive = slice(0, n_shared), slice(n_shared, None)
    ramp = round(l1_ramp * num_steps)
    return Trainer(
        model=coder,
        data=data,
        init=[NormalizeActivations(run.init_tokens), AnthropicTranspose(norm=decoder_norm, seed=run.seed)],
        loss=SummedSquaredError(),
        penalties={
            "shared": Weighted(L1OfNorms("single_model", shared), LinearRamp(shared_ratio * l1, ramp)),
            "exclusive": Weighted(L1OfNorms("l1_of_l2", exclusive), LinearRamp(l1, ramp)),
        },
        optimizer=run.adam(coder),
        lr=run.lr_schedule(lr, num_steps),
        gradients=[ClipNorm(run.clip_norm)],
        num_steps=num_steps,
        accumulate=run.accumulate,
        precision=run.precision,
    )


if __name__ == "__main__":
    main(feb_diffing_l1)
