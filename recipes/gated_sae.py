"""Gated SAE: gates say which latents fire, magnitudes how strongly, so that the sparsity penalty shrinks nothing.

Source: Rajamanoharan et al., "Improving Dictionary Learning with Gated Sparse Autoencoders", 2024: unit-norm decoders,
an L1 penalty on the gates, and a reconstruction through the gates alone, for which the decoder is frozen.

    python recipes/gated_sae.py
"""

from crosscode import SparseCoder, Trainer, Weighted
from crosscode.activations import Gated
from crosscode.checks import share
from crosscode.initialization import AnthropicTranspose, NormalizeActivations
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseDecoder, DenseEncoder
from crosscode.penalties import GateReconstruction, GateSparsity
from crosscode.run import RunOptions, main
from crosscode.schedulers import LinearRamp
from crosscode.training import ClipNorm, RemoveParallelGradient, UnitNormDecoder


def gated_sae(
    run: RunOptions = RunOptions(models=("embedded:tuned",)),
    n_latents: int = 1024,
    sparsity: float = 2.0,
    sparsity_warmup: float = 0.1,
    aux: float = 1.0,
    lr: float = 3e-3,
    num_steps: int = 600,
) -> Trainer:
    """Gated sparse autoencoder (Rajamanoharan et al. 2024).

    Args:
        run: one model, one hookpoint, data and output.
        n_latents: how many latents (the literature: 8 to 32 x d_model).
        sparsity: weight of the L1 penalty on open gates (the paper sweeps it).
        sparsity_warmup: part of the run over which that weight rises from 0 (the paper: 1000 steps).
        aux: weight of the reconstruction through the gates, the decoder frozen (the paper: 1).
        lr: Adam's learning rate (the paper: 1e-3 to 3e-4, for longer runs).
        num_steps: optimizer steps, each of batch_size x accumulate tokens.
    """
    share("sparsity_warmup", sparsity_warmup)
    data = run.dataloader()
    gated = Gated(n_latents)
    coder = SparseCoder(
        encoder=DenseEncoder((), data.d_in, n_latents, bias=False),
        activation=gated,
        decoder=DenseDecoder(n_latents, (), data.d_out),
    ).to(run.device)
    ramp = LinearRamp(sparsity, round(sparsity_warmup * num_steps))
    return Trainer(
        model=coder,
        data=data,
        init=[NormalizeActivations(run.init_tokens), AnthropicTranspose(norm=1.0, seed=run.seed)],
        loss=SummedSquaredError(),
        penalties={
            "gate_l1": Weighted(GateSparsity(gated, norm="none"), ramp),
            "gate_reconstruction": Weighted(GateReconstruction(gated), aux),
        },
        optimizer=run.adam(coder),
        lr=run.lr_schedule(lr, num_steps),
        gradients=[RemoveParallelGradient(), ClipNorm(run.clip_norm)],
        constraints=[UnitNormDecoder()],
        num_steps=num_steps,
        accumulate=run.accumulate,
        precision=run.precision,
    )


if __name__ == "__main__":
    main(gated_sae)
