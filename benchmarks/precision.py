"""What bfloat16 products gain, and what they cost: speed of a step, and FVU at the end of a run, beside float32.

    python benchmarks/precision.py            # minutes
    python benchmarks/precision.py --quick    # at the small size

Steps are timed as in `peers.py`, a float32 and a bfloat16 step in turn. The run trains both from the same weights on
the same batches, which never repeat. Masters, moments and thresholds are float32 in both.
"""

from dataclasses import replace
from statistics import median

import torch
from assemblies import trainer_of
from race import timed
from schemes import SIZES, Size, fvu

from crosscode.training.trainer import Precision

PRECISIONS: tuple[Precision, Precision] = ("fp32", "bf16")


def gain(scheme: str, size: Size, rounds: int) -> tuple[float, float, float]:
    """Milliseconds of a float32 step and of a bfloat16 step, and the median of the rounds' ratios."""
    trainers = [trainer_of(scheme, size, precision) for precision in PRECISIONS]
    seconds: list[list[float]] = [[], []]
    for turn in range(rounds + 2):
        for own, (trainer, data) in zip(seconds, trainers):
            own.append(timed(lambda i, trainer=trainer, data=data: trainer.step([data[i % size.batches]]), 1))
        if turn < 2:  # warming up
            seconds = [[], []]
    fp32, bf16 = seconds
    return 1000 * median(fp32), 1000 * median(bf16), median(a / b for a, b in zip(fp32, bf16))


def final_fvu(scheme: str, precision: Precision, num_steps: int, lr: float) -> float:
    """FVU on fresh activations after a run of the small size, each batch seen once."""
    trainer, data = trainer_of(scheme, replace(SIZES["quick"], batches=num_steps), precision)
    trainer.lr = lambda step: lr * min(1.0, 5 * (num_steps - step) / num_steps)
    for batch in data[:num_steps]:
        trainer.step([batch])
    with torch.no_grad():
        return fvu(trainer.model.train()(data[-1].inputs_BXiDi), data[-1].inputs_BXiDi)


def main(
    schemes: tuple[str, ...] = ("sae ReLU dense", "sae TopK", "sae JumpReLU"),
    quick: bool = False,
    rounds: int = 5,
    num_steps: int = 600,
    lr: float = 1e-3,
) -> None:
    """Time steps in both precisions, and compare the runs' final FVU.

    Args:
        schemes: which schemes.
        quick: time the small size.
        rounds: how many rounds of timed steps.
        num_steps: length of the runs.
        lr: their learning rate, falling to 0 over the last fifth.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| scheme | ms fp32 | ms bf16 | fp32 / bf16 | final FVU fp32 | final FVU bf16 | change |")
    print("|---|---|---|---|---|---|---|")
    for scheme in schemes:
        size = SIZES["quick" if quick else "full"].of(scheme.split()[0])
        fp32, bf16, ratio = gain(scheme, size, rounds)
        first, second = (final_fvu(scheme, precision, num_steps, lr) for precision in PRECISIONS)
        print(
            f"| {scheme} | {fp32:.1f} | {bf16:.1f} | {ratio:.2f} | {first:.4f} | {second:.4f} |"
            f" {second / first - 1:+.2%} |",
            flush=True,
        )


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
