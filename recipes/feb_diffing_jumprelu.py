"""Model diffing with designated shared latents, JumpReLU: the February 2025 update on January 2025 machinery.

Sources: "Insights on Crosscoder Model Diffing", Anthropic, February 2025 (shared latents at a reduced price);
"Circuits Updates, January 2025" (JumpReLU, tanh sparsity, pre-activation loss, calibrated start).

    python recipes/feb_diffing_jumprelu.py
    python recipes/feb_diffing_jumprelu.py --models google/gemma-2-2b google/gemma-2-2b-it \
        --hookpoints blocks.13.hook_resid_post --dataset HuggingFaceFW/fineweb --n-latents 16384 --device cuda
"""

from crosscode import SparseCoder, Trainer, Weighted
from crosscode.activations import JumpReLU
from crosscode.initialization import JanUpdate, NormalizeActivations
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseEncoder, SharedDecoder
from crosscode.penalties import PreActivation, TanhSparsity
from crosscode.run import RunOptions, main
from crosscode.schedulers import LinearRamp
from crosscode.training import ClipNorm


def feb_diffing_jumprelu(
    run: RunOptions = RunOptions(models=("embedded:base", "embedded:tuned")),
    n_latents: int = 1024,
    n_shared: int = 256,
    sparsity: float = 1.0,
    shared_ratio: float = 0.5,
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
    """Model diffing with shared latents and JumpReLU (February and January 2025 updates, Anthropic).

    Args:
        run: two or more models, data and output; reports compare the first two.
        n_latents: how many latents (the literature: 8 to 32 x d_model).
        n_shared: how many of them are shared (the update: "a small set").
        sparsity: weight of the tanh penalty on exclusive latents at the end of its ramp over the run (January: 10).
        shared_ratio: weight on shared latents relative to that on exclusive ones (the update: 0.1 to 0.2, which
            makes the few shared latents of a small coder fire on most tokens).
        c: steepness of the tanh (ports of the January update: 4).
        pre_act: weight of the pre-activation loss (ports: 3e-6).
        bandwidth: width of the straight-through window, in units of pre-activations (ports: 2).
        threshold: initial threshold (ports: e^0.1 = 1.105, or 0.1).
        ste_to_input: let the straight-through estimator reach all parameters, not thresholds alone (January: yes).
        firing_rate: share of tokens each latent fires on at the start (January: 10000 / n_latents, here above 1).
        lr: Adam's learning rate (ports: 2e-4).
        threshold_lr: the thresholds' learning rate, in multiples of `lr` (for a target L0 in a short run about 10).
        num_steps: optimizer steps, each of batch_size x accumulate tokens.
    """
    data = run.dataloader()
    jumprelu = JumpReLU(n_latents, threshold=threshold, bandwidth=bandwidth, ste_to_input=ste_to_input)
    coder = SparseCoder(
        encoder=DenseEncoder(data.in_dims, data.d_in, n_latents, widths_Xi=data.widths_Xi),
        activation=jumprelu,
        decoder=SharedDecoder(n_latents, n_shared, data.out_dims, data.d_out, widths_Xo=data.widths_Xo),
    ).to(run.device)
    shared, exclusive = slice(0, n_shared), slice(n_shared, None)
    return Trainer(
        model=coder,
        data=data,
        init=[NormalizeActivations(run.init_tokens), JanUpdate(jumprelu, firing_rate=firing_rate, seed=run.seed)],
        loss=SummedSquaredError(),
        penalties={  # shared latents pay less: a lower weight, and for one model's copy of their decoder
            "shared": Weighted(TanhSparsity(c, "single_model", shared), LinearRamp(shared_ratio * sparsity, num_steps)),
            "exclusive": Weighted(TanhSparsity(c, "l1_of_l2", exclusive), LinearRamp(sparsity, num_steps)),
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
    main(feb_diffing_jumprelu)
