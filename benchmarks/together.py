"""What training several coders on one harvest costs: at most the harvest, their own steps and 3 %.

    python benchmarks/together.py            # four schemes on the embedded model, a few minutes
    python benchmarks/together.py --quick

A run of `train_together`, from text to step, halts every so many steps (a round). In the halt the same stretch of text
is harvested alone, and then each coder's twin trains alone on the batches of that stretch. CPU times of one thread; a
ratio is formed inside each round; the table gives medians, and of the ratio its least and greatest. In the end, twins
are compared bit for bit.
"""

import argparse
import json
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from crosscode import Batch, SparseCoder, Trainer, Weighted, train_together
from crosscode.activations import BatchTopK, JumpReLU, ReLU, TopK
from crosscode.data import Dataloader
from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.models import sae
from crosscode.penalties import AuxK, ExpectedL0, L1OfNorms
from crosscode.run import RunOptions
from crosscode.training import StepReport

LIMIT = 1.03
BATCH_SIZE = 1024


def coders(d: int) -> dict[str, tuple[SparseCoder, dict[str, Any]]]:
    """Schemes and sizes as different as a sweep's, with their penalties."""
    jumprelu = JumpReLU(1024, threshold=0.5)
    return {
        "TopK, 2048 latents": (sae(d, 2048, TopK(32)), {"aux_k": Weighted(AuxK(d // 2, 10_000), 1 / 32)}),
        "BatchTopK, 1024 latents": (sae(d, 1024, BatchTopK(24)), {}),
        "JumpReLU, 1024 latents": (sae(d, 1024, jumprelu), {"l0": Weighted(ExpectedL0(jumprelu), 1e-2)}),
        "ReLU, 512 latents": (sae(d, 512, ReLU()), {"l1": Weighted(L1OfNorms(), 1e-2)}),
    }


def trainers(data: Dataloader, num_steps: int, held_out: Sequence[Batch]) -> dict[str, Trainer]:
    """Fresh, alike each time."""
    torch.manual_seed(0)
    return {
        name: Trainer(
            model=coder,
            data=data,
            init=[AnthropicTranspose(0.1)],
            loss=SummedSquaredError(),
            penalties=penalties,
            optimizer=torch.optim.Adam(coder.parameters(), fused=True),
            lr=1e-3,
            num_steps=num_steps,
            held_out=held_out,
        )
        for name, (coder, penalties) in coders(data.d_in).items()
    }


class Halts:
    """The last callback of a run of `train_together`: times its rounds, and in the halts between them, the parts."""

    def __init__(self, data: Dataloader, twins: dict[str, Trainer], length: int) -> None:
        self.stretches, self.twins, self.length = iter(data), twins, length
        self.rounds: list[dict[str, float]] = []

    def on_start(self, trainer: Trainer) -> None:
        self.resumed = time.process_time()

    def __call__(self, trainer: Trainer, report: StepReport) -> None:
        if report.step % self.length:
            return
        seconds = {"together": time.process_time() - self.resumed}
        begin = time.process_time()
        batches = list(islice(self.stretches, self.length))
        seconds["harvest"] = time.process_time() - begin
        for name, twin in self.twins.items():
            begin = time.process_time()
            for batch in batches:
                twin.step([batch])
            seconds[name] = time.process_time() - begin
        self.rounds.append(seconds)
        self.resumed = time.process_time()


def measure(data: Dataloader, n_rounds: int, length: int) -> list[dict[str, float]]:
    """CPU seconds of each round: `together`, `harvest`, and each scheme's own steps; a first round only warms up."""
    num_steps = (n_rounds + 1) * length
    held_out = list(islice(data, 1))
    in_company, twins = (trainers(data, num_steps, held_out) for _ in range(2))
    for twin in twins.values():
        twin.initialize()
    halts = Halts(data, twins, length)
    list(in_company.values())[-1].callbacks = (halts,)
    train_together(list(in_company.values()))
    for name, twin in twins.items():
        twin.finish()
        other = in_company[name].model.state_dict()
        same = all(torch.equal(value, other[key]) for key, value in twin.model.state_dict().items())
        assert same, f"{name} became another coder in company"
    return halts.rounds[1:]


def report(rounds: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Print the table; returns its numbers."""
    names = [name for name in rounds[0] if name != "together"]
    ratios = [times["together"] / sum(times[name] for name in names) for times in rounds]
    print(f"CPU seconds of a round, median of {len(rounds)}")
    for name in names:
        print(f"  {name:<30}{median(times[name] for times in rounds):8.2f}")
    print(f"  {'sum':<30}{median(sum(times[name] for name in names) for times in rounds):8.2f}")
    print(f"  {'train_together':<30}{median(times['together'] for times in rounds):8.2f}")
    print(f"ratio {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); at most {LIMIT} is asked for")
    return {"rounds": list(rounds), "ratios": ratios, "ratio": median(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded:base", help="what is harvested")
    parser.add_argument("--steps", type=int, default=16, help="steps of a round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="five rounds of 8 steps")
    parser.add_argument("--json", type=Path, help="where every number goes")
    asked = parser.parse_args()
    length, n_rounds = (8, 5) if asked.quick else (asked.steps, asked.rounds)
    torch.set_num_threads(1)
    options = RunOptions(models=(asked.model,), batch_size=BATCH_SIZE, shuffle_buffer=8 * BATCH_SIZE)
    print(f"{asked.model}: rounds of {length} steps of {BATCH_SIZE} tokens")
    rounds = measure(options.dataloader(), n_rounds, length)
    numbers = report(rounds)
    if asked.json is not None:
        asked.json.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
