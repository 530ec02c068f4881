"""Cross-layer transcoder with an L1 penalty: reads one MLP's input, writes that MLP's and later ones' outputs.

Sources: Lindsey et al., "Sparse Crosscoders", Anthropic, October 2024 (the penalty); Ameisen et al., "Circuit Tracing",
Anthropic, March 2025 (cross-layer transcoders); Gemma Scope 2, 2025 (the linear skip, own layer only).

    python recipes/clt_l1.py --skip
"""

from crosscode import SparseCoder, Trainer, Weighted
from crosscode.activations import ReLU
from crosscode.checks import share
from crosscode.initialization import CLTUniform, DecoderBias, NormalizeActivations
from crosscode.losses import SummedSquaredError
from crosscode.models import DenseDecoder, DenseEncoder, LinearSkip
from crosscode.penalties import L1OfNorms
from crosscode.run import MLP_INPUTS, MLP_OUTPUTS, RunOptions, main
from crosscode.schedulers import LinearRamp
from crosscode.training import ClipNorm


def clt_l1(
    run: RunOptions = RunOptions(reads=MLP_INPUTS[1:2], writes=MLP_OUTPUTS[1:], lr_warmup=0.05),
    n_latents: int = 1024,
    l1: float = 0.3,
    l1_ramp: float = 0.05,
    skip: bool = False,
    lr: float = 3e-3,
    num_steps: int = 600,
) -> Trainer:
    """Cross-layer transcoder with an L1 penalty (Sparse Crosscoders, 2024; Circuit Tracing, 2025).

    Args:
        run: the model, one hookpoint read, those written from that layer on, and output.
        n_latents: how many latents (the literature: 8 to 32 x d_model).
        l1: weight of the penalty, in units of squared scaled activations (a CLT paper: 1 to 5).
        l1_ramp: part of the run over which the weight rises from 0 (crosscoder replications: 0.05).
        skip: learn a linear map from the input to the same layer's output beside the latents (Gemma Scope 2).
        lr: Adam's learning rate (Circuit Tracing: falls as 1/sqrt(FLOPs); no value is given).
        num_steps: optimizer steps, each of batch_size x accumulate tokens.
    """
    share("l1_ramp", l1_ramp)
    data = run.dataloader()
    coder = SparseCoder(
        encoder=DenseEncoder(data.in_dims, data.d_in, n_latents, widths_Xi=data.widths_Xi),
        activation=ReLU(),
        decoder=DenseDecoder(n_latents, data.out_dims, data.d_out, widths_Xo=data.widths_Xo),
        skip=LinearSkip(data.in_dims, data.d_in, data.out_dims, data.d_out, run.own_layers()) if skip else None,
    ).to(run.device)
    return Trainer(
        model=coder,
        data=data,
        init=[NormalizeActivations(run.init_tokens), CLTUniform(seed=run.seed), DecoderBias("mean")],
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
    main(clt_l1)
