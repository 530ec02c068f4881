"""TopK sparse autoencoder with unit-norm decoders, on one model's one hookpoint.

Source: Gao et al., "Scaling and evaluating sparse autoencoders", OpenAI, 2024.

    python recipes/sae_topk.py --models smollm2 --hookpoints blocks.14.hook_resid_post --num-steps 200
"""

from crosscode import Trainer, Weighted
from crosscode.activations import TopK
from crosscode.initialization import AnthropicTranspose, DecoderBias, NormalizeActivations
from crosscode.losses import SummedSquaredError
from crosscode.models import sae
from crosscode.penalties import AuxK
from crosscode.run import RunOptions, main
from crosscode.training import ClipNorm, RemoveParallelGradient, UnitNormDecoder


def sae_topk(
    run: RunOptions = RunOptions(models=("embedded:tuned",)),
    n_latents: int = 1024,
    k: int = 16,
    aux_k: float = 1 / 32,
    aux_latents: int | None = None,
    dead_after: float = 0.1,
    lr: float = 3e-3,
    num_steps: int = 600,
) -> Trainer:
    """TopK sparse autoencoder (Gao et al. 2024).

    Args:
        run: one model, one hookpoint, data and output.
        n_latents: how many latents (the literature: 8 to 32 x d_model).
        k: latents per token (Gao et al.: 32).
        aux_k: weight of the auxiliary loss on dead latents (Gao et al.: 1/32).
        aux_latents: how many dead latents reconstruct a token's error; half the width if not given (Gao et al.).
        dead_after: silence, as a part of the run's tokens, that makes a latent dead; at most 10M tokens (Gao et al.).
        lr: Adam's learning rate (the literature: 2e-4 / sqrt(n_latents / 16384), for longer runs).
        num_steps: optimizer steps, each of batch_size x accumulate tokens.
    """
    data = run.dataloader()
    coder = sae(data.d_in, n_latents, TopK(k, weighted=False)).to(run.device)
    dead = run.dead_after_tokens(num_steps, dead_after)
    aux = AuxK(aux_latents, dead, norm="none")
    return Trainer(
        model=coder,
        data=data,
        init=[
            NormalizeActivations(run.init_tokens),
            AnthropicTranspose(norm=1.0, seed=run.seed),
            DecoderBias("geometric_median"),
        ],
        loss=SummedSquaredError(),
        penalties={"aux_k": Weighted(aux, aux_k)},
        optimizer=run.adam(coder, eps=6.25e-10),
        lr=run.lr_schedule(lr, num_steps),
        num_steps=num_steps,
        accumulate=run.accumulate,
        precision=run.precision,
        gradients=[RemoveParallelGradient(), ClipNorm(run.clip_norm)],
        constraints=[UnitNormDecoder()],
    )


if __name__ == "__main__":
    main(sae_topk)
