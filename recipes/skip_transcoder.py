"""Skip transcoder: an MLP's input to its output through sparse latents and a linear skip.

Source: Paulo, Shabalin and Belrose, "Transcoders Beat Sparse Autoencoders for Interpretability", 2025, and their code:
decoder and skip start at zero, the decoder bias at the mean output, so latents rank by activation alone.

    python recipes/skip_transcoder.py
"""

from crosscode import Trainer, Weighted
from crosscode.activations import TopK
from crosscode.initialization import NormalizeActivations, ZeroDecoderSkip
from crosscode.losses import SummedSquaredError
from crosscode.models import transcoder
from crosscode.penalties import AuxK
from crosscode.run import MLP_INPUTS, MLP_OUTPUTS, RunOptions, main
from crosscode.training import ClipNorm


def skip_transcoder(
    run: RunOptions = RunOptions(reads=MLP_INPUTS[2:3], writes=MLP_OUTPUTS[2:3]),
    n_latents: int = 1024,
    k: int = 8,
    skip: bool = True,
    aux_k: float = 1 / 32,
    aux_latents: int | None = None,
    dead_after: float = 0.1,
    lr: float = 3e-3,
    num_steps: int = 600,
) -> Trainer:
    """Skip transcoder (Paulo, Shabalin and Belrose 2025).

    Args:
        run: the model, one hookpoint read and one written, and output.
        n_latents: how many latents (the literature: 8 to 32 x d_model).
        k: latents per token (the paper: 32).
        skip: learn the linear skip; without it a plain transcoder.
        aux_k: weight of the auxiliary loss on dead latents (Gao et al. 2024: 1/32).
        aux_latents: how many dead latents reconstruct a token's error; half the width if not given (Gao et al. 2024).
        dead_after: silence, as a part of the run's tokens, that makes a latent dead; at most 10M tokens (Gao et al.).
        lr: Adam's learning rate (the literature: 2e-4 / sqrt(n_latents / 16384), for longer runs).
        num_steps: optimizer steps, each of batch_size x accumulate tokens.
    """
    data = run.dataloader()
    coder = transcoder(data.d_in, n_latents, TopK(k, weighted=False), d_out=data.d_out, skip=skip).to(run.device)
    dead = run.dead_after_tokens(num_steps, dead_after)
    aux = AuxK(aux_latents, dead, norm="none")
    return Trainer(
        model=coder,
        data=data,
        init=[NormalizeActivations(run.init_tokens), ZeroDecoderSkip(seed=run.seed)],
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
    main(skip_transcoder)
