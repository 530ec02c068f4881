"""Compound cross-layer transcoder: every layer's latents read that MLP's input and write its and all later outputs.

Source: Ameisen et al., "Circuit Tracing", Anthropic, March 2025; a latent's norm is that of its concatenated decoder.

    python recipes/compound_clt.py --activation jumprelu
"""

from typing import Literal

from crosscode import Trainer, Weighted
from crosscode.activations import BatchTopK, JumpReLU, PerSite
from crosscode.initialization import CLTUniform, DecoderBias, NormalizeActivations
from crosscode.losses import SummedSquaredError
from crosscode.models import compound_cross_layer_transcoder
from crosscode.penalties import AuxK, PreActivation, TanhSparsity
from crosscode.run import MLP_INPUTS, MLP_OUTPUTS, RunOptions, main
from crosscode.schedulers import LinearRamp
from crosscode.training import ClipNorm


def compound_clt(
    run: RunOptions = RunOptions(reads=MLP_INPUTS, writes=MLP_OUTPUTS),
    activation: Literal["jumprelu", "batch_topk"] = "jumprelu",
    n_latents: int = 512,
    sparsity: float = 1.0,
    c: float = 4.0,
    pre_act: float = 3e-6,
    threshold: float = 0.03,
    bandwidth: float = 1.0,
    ste_to_input: bool = True,
    k: int = 24,
    aux_k: float = 1 / 32,
    aux_latents: int | None = None,
    dead_after: float = 0.1,
    skip: bool = False,
    rank: int | None = None,
    lr: float = 3e-3,
    threshold_lr: float = 1.0,
    num_steps: int = 600,
) -> Trainer:
    """Compound cross-layer transcoder (Circuit Tracing, Anthropic, March 2025).

    Args:
        run: the model, the MLP inputs read and the MLP outputs written, layer by layer, and output.
        activation: JumpReLU with tanh sparsity as in the paper, or BatchTopK with AuxK; each layer has its own.
        n_latents: latents of each layer (the literature: 8 to 32 x d_model).
        sparsity: JumpReLU: weight of the tanh penalty at the end of its ramp over the whole run (ports: 1 to 5).
        c: JumpReLU: steepness of the tanh (the paper's hyper-parameter; ports: 4).
        pre_act: JumpReLU: weight of the pre-activation loss (ports: 3e-6 to 3e-5).
        threshold: JumpReLU: initial threshold (ports: 0.03).
        bandwidth: JumpReLU: width of the straight-through window (ports: 1).
        ste_to_input: JumpReLU: let the estimator reach all parameters (January 2025: yes; ports of CLTs: no).
        k: BatchTopK: latents per token of each layer, on average (the paper: low hundreds over all layers).
        aux_k: BatchTopK: weight of the auxiliary loss on dead latents (Gao et al. 2024: 1/32).
        aux_latents: BatchTopK: how many dead latents reconstruct a token's error, half the width if not given (Gao).
        dead_after: BatchTopK: silence, as a part of the run's tokens, that makes a latent dead; at most 10M tokens.
        skip: learn a linear map from each layer's input to the same layer's output (Gemma Scope 2).
        rank: the rank of what each layer's latents write to each later layer; none for all of it (the paper: all).
        lr: Adam's learning rate (the paper: falls as 1/sqrt(FLOPs); no value is given).
        threshold_lr: JumpReLU: the thresholds' learning rate, in multiples of `lr` (short runs: about 10).
        num_steps: optimizer steps, each of batch_size x accumulate tokens.
    """
    data = run.dataloader(one_site=False)
    (n_layers,) = data.in_dims
    if activation == "jumprelu":
        layers = PerSite([JumpReLU(n_latents, threshold, bandwidth, ste_to_input) for _ in range(n_layers)])
        penalties = {"tanh": Weighted(TanhSparsity(c, norm="l2"), LinearRamp(sparsity, num_steps))}
        penalties["pre_act"] = Weighted(PreActivation(layers, norm="l2"), pre_act)
    else:
        layers = PerSite([BatchTopK(k, norm="l2") for _ in range(n_layers)])
        dead = run.dead_after_tokens(num_steps, dead_after)
        aux = AuxK(aux_latents, dead, norm="l2")
        penalties = {"aux_k": Weighted(aux, aux_k)}
    coder = compound_cross_layer_transcoder(
        data.d_in, n_layers, n_latents, layers, skip, data.d_out, data.widths_Xi, data.widths_Xo, rank
    ).to(run.device)
    return Trainer(
        model=coder,
        data=data,
        init=[NormalizeActivations(run.init_tokens), CLTUniform(n_latents, seed=run.seed), DecoderBias()],
        loss=SummedSquaredError(),
        penalties=penalties,
        optimizer=run.adam(coder, lr_multipliers={layers: threshold_lr}),
        lr=run.lr_schedule(lr, num_steps),
        gradients=[ClipNorm(run.clip_norm)],
        num_steps=num_steps,
        accumulate=run.accumulate,
        precision=run.precision,
    )


if __name__ == "__main__":
    main(compound_clt)
