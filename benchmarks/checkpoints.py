"""What checkpoints cost a run, at the default interval of the recipes.

    python benchmarks/checkpoints.py

For each size: CPU time of a training step, of the copy that the training thread makes of everything, and of the thread
that writes it (serialising, hashing, syncing); and both as a share of the 500 steps between two checkpoints. CPU time,
because it does not depend on what else the machine does; on a machine with a free core only the copy is waited for.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from crosscode.activations import BatchTopK, ReLU
from crosscode.batch import Batch
from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.models import acausal_crosscoder
from crosscode.penalties import L1OfNorms
from crosscode.run import RunOptions
from crosscode.training import Snapshot, Trainer, Weighted, write_checkpoint

EVERY = RunOptions().checkpoint_every
SIZES = {  # models, width, latents, tokens of a batch
    "the embedded pair, as recipes train it": (2, 64, 1024, 1024),
    "SmolLM2-135M, 16 k latents": (2, 576, 16_384, 2048),
    "one 2048-wide site, 32 k latents": (1, 2048, 32_768, 2048),
}


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """The median of this thread's CPU time."""
    spent = []
    for _ in range(repeats):
        began = time.thread_time()
        work()
        spent.append(time.thread_time() - began)
    return statistics.median(spent)


def measure(models: int, width: int, n_latents: int, batch: int, sparse: bool, steps: int) -> tuple[float, ...]:
    """CPU seconds of a step, of a copy and of writing it; bytes of a checkpoint."""
    coder = acausal_crosscoder(
        n_models=models,
        n_hookpoints=1,
        d_model=width,
        n_latents=n_latents,
        activation=BatchTopK(24) if sparse else ReLU(),
    )
    x_BMPD = torch.randn(batch, models, 1, width)
    trainer = Trainer(
        model=coder,
        data=[Batch.autoencode(x_BMPD)],
        init=[AnthropicTranspose(1.0)],
        loss=SummedSquaredError(),
        penalties={} if sparse else {"l1": Weighted(L1OfNorms(), 0.1)},
        optimizer=torch.optim.Adam(coder.parameters(), fused=True),
        lr=1e-3,
        num_steps=1_000_000,
    )
    trainer.initialize()
    trainer.step(trainer.data)
    step = cpu_seconds(lambda: trainer.step(trainer.data), steps)
    copy = cpu_seconds(lambda: Snapshot.of([trainer]), 3)
    with tempfile.TemporaryDirectory() as folder:

        def write() -> None:
            trainer.state.step += 1
            write_checkpoint(Snapshot.of([trainer]), Path(folder), keep=1)

        writing = cpu_seconds(write, 3) - copy
        n_bytes = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return step, copy, writing, n_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="of which the median is taken")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"| size | step | copy | writing | checkpoint | share of {EVERY} steps |\n|---|{'---:|' * 5}", flush=True)
    for name, size in SIZES.items():
        for sparse in (True, False):
            step, copy, writing, n_bytes = measure(*size, sparse, given.steps)
            print(
                f"| {name}, {'BatchTopK' if sparse else 'ReLU'} | {step:.3f} s | {copy:.3f} s | {writing:.3f} s | "
                f"{n_bytes / 1e6:.0f} MB | {(copy + writing) / (EVERY * step):.2%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
