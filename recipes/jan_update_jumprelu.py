"""JumpReLU crosscoder of the January 2025 update: tanh sparsity, pre-activation loss, calibrated start.

Source: "Circuits Updates, January 2025", Anthropic (dictionary learning optimization techniques). Of the update's own
values, bandwidth 2, c = 4 and the pre-activation weight 3e-6 are kept; its sparsity weight of about 10 collapses small
coders, and the default here comes from a sweep on the default data.

    python recipes/jan_update_jumprelu.py
"""

from crosscode import SparseCoder, Trainer, Weighted
from crosscode.activations import JumpReLU
from crosscode.initialization import JanUpdate, NormalizeActivations
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseDecoder, DenseEncoder
from crosscode.penalties import PreActivation, TanhSparsity
from crosscode.run import RunOptions, main
from crosscode.schedulers import LinearRamp
from crosscode.training import ClipNorm


def jan_update_jumprelu(
    run: RunOptions = RunOptions(hookpoints=tuple(f"blocks.{i}.hook_resid_post" for i in (1, 2, 3))),
    n_latents: int = 1024,
    sparsity: float = 0.3,
    c: float = 4.0,
    pre_act: float = 3e-6,
    bandwidth: float = 2.0,
    threshold: float = 1.105,
    ste_to_input: bool = True,
    firing_rate: float = 0.3,
    lr: float = 3e-3,
    threshold_lr: float = 1.0,
    num_steps: int = 600,
) -> Trainer:
    """JumpReLU crosscoder with tanh sparsity and pre-activation loss (January 2025 update, Anthropic).

    Args:
        run: models, data and output.
        n_latents: how many latents (the literature: 8 to 32 x d_model).
        sparsity: weight of the tanh penalty at the end of its ramp over the whole run (the update: about 10).
        c: steepness of the tanh (ports of the update: 4).
        pre_act: weight of the pre-activation loss (ports: 3e-6).
        bandwidth: width of the straight-through window, in units of pre-activations (ports: 2).
        threshold: initial threshold (ports: e^0.1 = 1.105, or 0.1).
        ste_to_input: let the straight-through estimator reach all parameters, not thresholds alone (the update: yes).
        firing_rate: share of tokens each latent fires on at the start (the update: 10000 / n_latents, here above 1).
        lr: Adam's learning rate (ports: 2e-4).
        threshold_lr: the thresholds' learning rate, in multiples of `lr` (for a target L0 in a short run about 10).
        num_steps: optimizer steps, each of batch_size x accumulate tokens.
    """
    data = run.dataloader()
    jumprelu = JumpReLU(n_latents, threshold=threshold, bandwidth=bandwidth, ste_to_input=ste_to_input)
    coder = SparseCoder(
        encoder=DenseEncoder(data.in_dims, data.d_in, n_latents, widths_Xi=data.widths_Xi),
        activation=jumprelu,
        decoder=DenseDecoder(n_latents, data.out_dims, data.d_out, widths_Xo=data.widths_Xo),
    ).to(run.device)
    return Trainer(
        model=coder,
        data=data,
        init=[NormalizeActivations(run.init_tokens), JanUpdate(jumprelu, firing_rate=firing_rate, seed=run.seed)],
        loss=SummedSquaredError(),
        penalties={
            "tanh": Weighted(TanhSparsity(c=c), LinearRamp(sparsity, num_steps)),
            "pre_act": Weighted(PreActivation(jumprelu), pre_act),
        },
        optimizer=run.adam(coder, lr_multipliers={jumprelu: threshold_lr}),
        lr=run.lr_schedule(lr, num_steps),
        gradients=[ClipNorm(run.clip_norm)],
        num_steps=num_steps,
        accumulate=run.accumulate,
        precision=run.precision,
    )


if __name__ == "__main__":
    main(jan_update_jumprelu)
