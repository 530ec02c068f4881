"""Crosscoder with an L1 penalty on decoder-norm-weighted latents.

Source: Lindsey et al., "Sparse Crosscoders for Cross-Layer Features and Model Diffing", Anthropic, October 2024.
Several models, several layers, or both; one model and one hookpoint make it an SAE.

    python recipes/l1_crosscoder.py
    python recipes/l1_crosscoder.py --hookpoints blocks.2.hook_resid_post        # an SAE
"""

from crosscode import SparseCoder, Trainer, Weighted
from crosscode.activations import ReLU
from crosscode.checks import share
from crosscode.initialization import AnthropicTranspose, NormalizeActivations
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseDecoder, DenseEncoder
from crosscode.penalties import L1OfNorms
from crosscode.run import RunOptions, main
from crosscode.schedulers import LinearRamp
from crosscode.training import ClipNorm

LAYERS = RunOptions(hookpoints=tuple(f"blocks.{i}.hook_resid_post" for i in (1, 2, 3)))


def l1_crosscoder(
    run: RunOptions = LAYERS,
    n_latents: int = 1024,
    l1: float = 1.0,
    l1_ramp: float = 0.05,
    decoder_norm: float = 0.1,
    lr: float = 3e-3,
    num_steps: int = 600,
) -> Trainer:
    """Crosscoder with an L1 penalty (Sparse Crosscoders, Anthropic, October 2024).

    Args:
        run: models, data and output.
        n_latents: how many latents (the literature: 8 to 32 x d_model).
        l1: weight of the penalty, in units of squared scaled activations (the paper: 1; replications: 2).
        l1_ramp: part of the run over which the weight rises from 0 (replications: 0.05).
        decoder_norm: norm of each latent's decoder at each site at the start (replications: 0.08).
        lr: Adam's learning rate (replications at L = 16384: 5e-5).
        num_steps: optimizer steps, each of batch_size x accumulate tokens.
    """
    share("l1_ramp", l1_ramp)
    data = run.dataloader()
    coder = SparseCoder(
        encoder=DenseEncoder(data.in_dims, data.d_in, n_latents, widths_Xi=data.widths_Xi),
        activation=ReLU(),
        decoder=DenseDecoder(n_latents, data.out_dims, data.d_out, widths_Xo=data.widths_Xo),
    ).to(run.device)
    return Trainer(
        model=coder,
        data=data,
        init=[NormalizeActivations(run.init_tokens), AnthropicTranspose(norm=decoder_norm, seed=run.seed)],
        loss=SummedSquaredError(),
        penalties={"l1": Weighted(L1OfNorms(norm="l1_of_l2"), LinearRamp(l1, round(l1_ramp * num_steps)))},
        optimizer=run.adam(coder),
        lr=run.lr_schedule(lr, num_steps),
        gradients=[ClipNorm(run.clip_norm)],
        num_steps=num_steps,
        accumulate=run.accumulate,
        precision=run.precision,
    )


if __name__ == "__main__":
    main(l1_crosscoder)
