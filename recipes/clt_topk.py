"""TopK-style cross-layer transcoder: reads one MLP's input, writes that MLP's and later ones' outputs.

Sources: Gao et al. 2024, Bussmann et al. 2024 (TopK, AuxK, BatchTopK); Ameisen et al., "Circuit Tracing", Anthropic,
March 2025 (cross-layer transcoders); Gemma Scope 2, 2025 (the linear skip, own layer only).

    python recipes/clt_topk.py --style topk --skip
"""

from typing import Literal

from crosscode import SparseCoder, Trainer, Weighted
from crosscode.activations import BatchTopK, GroupMax, TopK
from crosscode.initialization import CLTUniform, DecoderBias, NormalizeActivations
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseDecoder, DenseEncoder, LinearSkip
from crosscode.penalties import AuxK
from crosscode.run import MLP_INPUTS, MLP_OUTPUTS, RunOptions, main
from crosscode.training import ClipNorm

STYLES = {"topk": TopK, "batch_topk": BatchTopK, "groupmax": GroupMax}


def clt_topk(
    run: RunOptions = RunOptions(reads=MLP_INPUTS[1:2], writes=MLP_OUTPUTS[1:]),
    style: Literal["topk", "batch_topk", "groupmax"] = "batch_topk",
    n_latents: int = 1024,
    k: int = 48,
    skip: bool = False,
    aux_k: float = 1 / 32,
    aux_latents: int | None = None,
    dead_after: float = 0.1,
    lr: float = 1e-2,
    num_steps: int = 600,
) -> Trainer:
    """TopK-style cross-layer transcoder (Gao et al. 2024; Bussmann et al. 2024; Circuit Tracing, 2025).

    Args:
        run: the model, one hookpoint read, those written from that layer on, and output.
        style: k latents per token, k on average over a batch, or the largest of each of k groups.
        n_latents: how many latents (the literature: 8 to 32 x d_model).
        k: latents per token, with `groupmax` at most (single-site coders of the literature: 32 to 64).
        skip: learn a linear map from the input to the same layer's output beside the latents (Gemma Scope 2).
        aux_k: weight of the auxiliary loss on dead latents (Gao et al. 2024: 1/32).
        aux_latents: how many dead latents reconstruct a token's error; half the width if not given (Gao et al. 2024).
        dead_after: silence, as a part of the run's tokens, that makes a latent dead; at most 10M tokens (Gao et al.).
        lr: Adam's learning rate (the literature: 2e-4 / sqrt(n_latents / 16384), for longer runs).
        num_steps: optimizer steps, each of batch_size x accumulate tokens.
    """
    data = run.dataloader()
    coder = SparseCoder(
        encoder=DenseEncoder(data.in_dims, data.d_in, n_latents, widths_Xi=data.widths_Xi),
        activation=STYLES[style](k),
        decoder=DenseDecoder(n_latents, data.out_dims, data.d_out, widths_Xo=data.widths_Xo),
        skip=LinearSkip(data.in_dims, data.d_in, data.out_dims, data.d_out, run.own_layers()) if skip else None,
    ).to(run.device)
    dead = run.dead_after_tokens(num_steps, dead_after)
    aux = AuxK(aux_latents, dead)
    return Trainer(
        model=coder,
        data=data,
        init=[NormalizeActivations(run.init_tokens), CLTUniform(seed=run.seed), DecoderBias("mean")],
        loss=SummedSquaredError(),
        penalties={"aux_k": Weighted(aux, aux_k)},
        optimizer=run.adam(coder),
        lr=run.lr_schedule(lr, num_steps),
        gradients=[ClipNorm(run.clip_norm)],
        num_steps=num_steps,
        accumulate=run.accumulate,
        precision=run.precision,
    )


if __name__ == "__main__":
    main(clt_topk)
