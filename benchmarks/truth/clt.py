"""Does shuffling tokens matter for cross-layer transcoders? The same tokens, in the order of the text and shuffled."""

import functools
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from crosscode.run import MLP_INPUTS, MLP_OUTPUTS, RunOptions
from truth.contestants import Activations, measured, train

BATCH, HELD_OUT = 1024, 20


@functools.cache
def in_order(num_steps: int) -> tuple[Float[Tensor, "N P D"], Float[Tensor, "N P D"]]:
    """MLP inputs and outputs of `base`, sequence by sequence; the last batches are for measuring."""
    run = RunOptions(models=("embedded:base",), reads=MLP_INPUTS, writes=MLP_OUTPUTS)
    data = run.dataloader(one_site=False)
    read, written, n_tokens = [], [], 0
    for harvest in data.harvests():
        batch = data.batch(harvest.acts_NMPD)
        read.append(batch.inputs_BXiDi)
        written.append(batch.targets_BXoDo)
        n_tokens += len(harvest)
        if n_tokens >= (num_steps + HELD_OUT) * BATCH:
            break
    return torch.cat(read), torch.cat(written)


def shuffling(num_steps: int, seed: int) -> dict[str, Any]:
    """FVU of a compound CLT on tokens it has not seen, after as many steps on the same tokens in either order."""
    x_NPD, y_NPD = in_order(num_steps)
    n = num_steps * BATCH
    held_out = Activations(x_NPD[n:], BATCH, y_NPD[n:])
    orders = {
        "in_order": torch.arange(n),
        "shuffled": torch.randperm(n, generator=torch.Generator().manual_seed(seed)),
    }
    numbers = {}
    for name, order_n in orders.items():
        data = Activations(x_NPD[:n][order_n], BATCH, y_NPD[:n][order_n])
        found = train("compound_clt", {"activation": "batch_topk"}, data, held_out, seed, num_steps)
        numbers[name] = measured(found.coder, held_out)
    return numbers
