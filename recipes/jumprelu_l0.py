"""JumpReLU SAE or crosscoder held to an L0: a quadratic price beside the target, through a straight-through estimator.

Sources: Rajamanoharan et al., "Jumping Ahead", 2024 (JumpReLU, straight-through L0); Gemma Scope 2, 2025, equation 5
(quadratic L0); Google DeepMind's Progress Update 2, March 2025 (quadratic-frequency penalty).

    python recipes/jumprelu_l0.py --target-l0 20
"""

from crosscode import SparseCoder, Trainer, Weighted
from crosscode.activations import JumpReLU
from crosscode.checks import share
from crosscode.initialization import JanUpdate, NormalizeActivations
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseDecoder, DenseEncoder
from crosscode.penalties import FrequencyL0, L0Quadratic
from crosscode.run import RunOptions, main
from crosscode.schedulers import LinearRamp
from crosscode.training import ClipNorm


def jumprelu_l0(
    run: RunOptions = RunOptions(models=("embedded:tuned",)),
    n_latents: int = 1024,
    target_l0: float = 20.0,
    sparsity: float = 0.3,
    sparsity_warmup: float = 0.1,
    frequency: float = 0.0,
    frequency_scale: float = 0.1,
    bandwidth: float = 2.0,
    threshold: float = 1.105,
    ste_to_input: bool = True,
    firing_rate: float = 0.1,
    lr: float = 3e-3,
    threshold_lr: float = 10.0,
    num_steps: int = 600,
) -> Trainer:
    """JumpReLU with a straight-through L0 that is held to a target (Gemma Scope 2; Rajamanoharan et al. 2024).

    Args:
        run: one model and hookpoint for an SAE, several for a crosscoder, data and output.
        n_latents: how many latents (the literature: 8 to 32 x d_model).
        target_l0: latents per token aimed at (Gemma Scope 2: 10 to 150).
        sparsity: weight of the quadratic penalty on the distance from it (Gemma Scope 2 sweeps it).
        sparsity_warmup: part of the run over which that weight rises from 0 (Gemma Scope 2: 50,000 steps).
        frequency: weight of the penalty on frequent latents, 0 for none (Gemma Scope 2 gives no value).
        frequency_scale: the share of tokens at which a latent's price has doubled (Progress Update 2 sweeps it).
        bandwidth: width of the straight-through window (Gemma Scope: 0.001 where activations have a mean square of 1).
        threshold: initial threshold (Gemma Scope: 0.001, with its bandwidth; January 2025 update as ported: 1.105).
        ste_to_input: let the estimator reach all parameters (January 2025: yes; Gemma Scope: thresholds
            alone, which leaves half of the latents silent in as short a run as this).
        firing_rate: share of tokens each latent fires on at the start (January 2025 update: 10000 / n_latents).
        lr: Adam's learning rate (Gemma Scope: 7e-5, for longer runs).
        threshold_lr: learning rate of the thresholds, in multiples of `lr`; at one rate they lag behind (Gemma Scope:
            1, with a far narrower window).
        num_steps: optimizer steps, each of batch_size x accumulate tokens.
    """
    share("sparsity_warmup", sparsity_warmup)
    data = run.dataloader()
    jumprelu = JumpReLU(n_latents, threshold=threshold, bandwidth=bandwidth, ste_to_input=ste_to_input)
    coder = SparseCoder(
        encoder=DenseEncoder(data.in_dims, data.d_in, n_latents, widths_Xi=data.widths_Xi),
        activation=jumprelu,
        decoder=DenseDecoder(n_latents, data.out_dims, data.d_out, widths_Xo=data.widths_Xo),
    ).to(run.device)
    ramp = LinearRamp(sparsity, round(sparsity_warmup * num_steps))
    return Trainer(
        model=coder,
        data=data,
        init=[NormalizeActivations(run.init_tokens), JanUpdate(jumprelu, firing_rate=firing_rate, seed=run.seed)],
        loss=SummedSquaredError(),
        penalties={
            "l0": Weighted(L0Quadratic(jumprelu, target_l0), ramp),
            "frequency": Weighted(FrequencyL0(jumprelu, frequency_scale), frequency),
        },
        optimizer=run.adam(coder, lr_multipliers={jumprelu: threshold_lr}),
        lr=run.lr_schedule(lr, num_steps),
        gradients=[ClipNorm(run.clip_norm)],
        num_steps=num_steps,
        accumulate=run.accumulate,
        precision=run.precision,
    )


if __name__ == "__main__":
    main(jumprelu_l0)
