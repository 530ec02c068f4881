"""Sparse autoencoder trained end to end: by what its reconstruction changes in the model's predictions.

Sources: Braun et al. 2024 (KL of the model's own predictions as the objective); Karvonen 2025 (a short fine-tuning of a
coder that was trained on reconstruction gains most of it); Gao et al. 2024 (TopK).

    python recipes/sae_topk.py --models embedded:base
    python recipes/end_to_end.py --start-from runs/sae_topk/coder
"""

from crosscode import Trainer, Weighted
from crosscode.activations import TopK
from crosscode.initialization import AnthropicTranspose, DecoderBias, NormalizeActivations
from crosscode.losses import SplicedKL, SummedSquaredError
from crosscode.models import sae
from crosscode.run import RunOptions, main
from crosscode.training import ClipNorm


def end_to_end(
    run: RunOptions = RunOptions(),
    n_latents: int = 1024,
    k: int = 16,
    reconstruction: float = 1e-3,
    lr: float = 1e-3,
    num_steps: int = 100,
) -> Trainer:
    """TopK sparse autoencoder by KL of the spliced model (Braun et al. 2024; Karvonen 2025).

    Args:
        run: one model, one hookpoint, data and output; `start_from` fine-tunes a saved coder of the same sizes.
        n_latents: how many latents (the literature: 8 to 32 x d_model).
        k: latents per token (Gao et al.: 32).
        reconstruction: weight of the summed squared error beside the KL, in nats per unit; 0 for KL alone.
        lr: Adam's learning rate.
        num_steps: optimizer steps, each of at most batch_size x accumulate tokens, in whole sequences.
    """
    data = run.dataloader(order="sequences", carry=("positions", "sequences", "context"))
    coder = sae(data.d_in, n_latents, TopK(k, weighted=False)).to(run.device)
    return Trainer(
        model=coder,
        data=data,
        init=[
            NormalizeActivations(run.init_tokens),
            AnthropicTranspose(norm=1.0, seed=run.seed),
            DecoderBias("geometric_median"),
        ],
        loss=SplicedKL(data.harvester.models, data.hookpoints),
        penalties={"squared_error": Weighted(SummedSquaredError(), reconstruction)},
        optimizer=run.adam(coder),
        lr=run.lr_schedule(lr, num_steps),
        gradients=[ClipNorm(run.clip_norm)],
        num_steps=num_steps,
        accumulate=run.accumulate,
        precision=run.precision,
    )


if __name__ == "__main__":
    main(end_to_end)
