"""Other libraries' coders on the same activations; runs in an environment of its own (`nox -s peers`).

    PEERS/bin/python benchmarks/truth/peers.py REQUEST.pt ANSWER.pt

None of them has a crosscoder, so they see the models' activations laid end to end, which is a crosscoder whose latents
are ranked by the norm of their whole decoder vector. Sizes, batches, warm-up, decay and the silence that makes a latent
dead are those of our recipes; losses, initialisation, clipping and projections are theirs.
"""

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Step = Callable[[int, Tensor], None]
Export = Callable[[], dict[str, Tensor]]


def decay(step: int, steps: int) -> float:
    """The learning rate's factor: 1, then linearly to 0 over the last fifth."""
    return min(1.0, (steps - step) / max(1, round(0.2 * steps)))


def exported(W_enc_OL: Tensor, b_enc_L: Tensor, W_dec_LO: Tensor, b_dec_O: Tensor) -> dict[str, Tensor]:
    """All of them encode `x - b_dec`: folded into the bias."""
    tensors = {"W_enc_OL": W_enc_OL, "b_enc_L": b_enc_L - b_dec_O @ W_enc_OL, "W_dec_LO": W_dec_LO, "b_dec_O": b_dec_O}
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


class Silence:
    """Which latents have been silent for `window` tokens."""

    def __init__(self, n_latents: int, window: int) -> None:
        self.since_L, self.window = torch.zeros(n_latents, dtype=torch.long), window

    @property
    def dead_L(self) -> Tensor:
        return self.since_L >= self.window

    def saw(self, fired_L: Tensor, n_tokens: int) -> None:
        self.since_L += n_tokens
        self.since_L[fired_L] = 0


def sparsify_topk(request: dict[str, Any]) -> tuple[Step, Export]:
    """EleutherAI's sparsify: TopK, its FVU loss with AuxK, decoders normalised, Adam."""
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    L, steps = request["n_latents"], request["steps"]
    coder = SparseCoder(request["x_NO"].shape[1], SparseCoderConfig(num_latents=L, k=request["k"]))
    coder.b_dec.data = request["x_NO"][:20_000].mean(0)
    optimizer = torch.optim.Adam(coder.parameters(), lr=request["lr"])
    silence = Silence(L, request["dead_after_tokens"])

    def step(i: int, x_BO: Tensor) -> None:
        out = coder(x_BO, dead_mask=silence.dead_L)
        fired_L = torch.zeros(L, dtype=torch.bool)
        fired_L[out.latent_indices[out.latent_acts > 0]] = True
        silence.saw(fired_L, len(x_BO))
        (out.fvu + out.auxk_loss / 32).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = request["lr"] * decay(i, steps)
        optimizer.step()
        optimizer.zero_grad()
        coder.set_decoder_norm_to_unit_norm()

    return step, lambda: exported(coder.encoder.weight.T, coder.encoder.bias, coder.W_dec, coder.b_dec)


def dictionary_learning_batch_topk(request: dict[str, Any]) -> tuple[Step, Export]:
    """dictionary_learning's BatchTopK trainer, through its `update`."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

    steps = request["steps"]
    trainer = BatchTopKTrainer(
        steps=steps, activation_dim=request["x_NO"].shape[1], dict_size=request["n_latents"], k=request["k"],
        layer=0, lm_name="none", lr=request["lr"], warmup_steps=0, decay_start=round(0.8 * steps), device="cpu",
        threshold_start_step=steps // 2, seed=request["seed"],
    )  # fmt: skip
    trainer.dead_feature_threshold = request["dead_after_tokens"]
    coder = trainer.ae

    def step(i: int, x_BO: Tensor) -> None:
        trainer.update(i, x_BO)

    def export() -> dict[str, Tensor]:
        return exported(coder.encoder.weight.T, coder.encoder.bias, coder.decoder.weight.T, coder.b_dec)

    return step, export


def sae_lens_batch_topk(request: dict[str, Any]) -> tuple[Step, Export]:
    """SAELens' BatchTopK training SAE (`training_forward_pass`) with Adam and its clipping."""
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    L, steps, d_in = request["n_latents"], request["steps"], request["x_NO"].shape[1]
    config = BatchTopKTrainingSAEConfig(d_in=d_in, d_sae=L, k=request["k"], dtype="float32", device="cpu")
    coder = BatchTopKTrainingSAE(config)
    optimizer = torch.optim.Adam(coder.parameters(), lr=request["lr"])
    silence = Silence(L, request["dead_after_tokens"])

    def step(i: int, x_BO: Tensor) -> None:
        given = TrainStepInput(
            sae_in=x_BO, coefficients={}, dead_neuron_mask=silence.dead_L, n_training_steps=i, is_logging_step=False
        )
        out = coder.training_forward_pass(given)
        silence.saw((out.feature_acts.detach() > 0).any(0), len(x_BO))
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = request["lr"] * decay(i, steps)
        optimizer.step()
        optimizer.zero_grad()

    return step, lambda: exported(coder.W_enc, coder.b_enc, coder.W_dec, coder.b_dec)


PEERS = {f.__name__: f for f in (sparsify_topk, dictionary_learning_batch_topk, sae_lens_batch_topk)}


def main(asked: str, answer: str) -> None:
    """Train one peer: the request names it, the answer holds its weights and the CPU seconds of its steps."""
    torch.set_num_threads(1)
    request = torch.load(asked)
    torch.manual_seed(request["seed"])
    step, export = PEERS[request["peer"]](request)
    x_NO, B = request["x_NO"], request["batch_size"]
    start = time.process_time()
    for i in range(request["steps"]):
        first = i * B % len(x_NO)
        step(i, x_NO[first : first + B])
    seconds = time.process_time() - start
    torch.save({**export(), "seconds": seconds}, answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
