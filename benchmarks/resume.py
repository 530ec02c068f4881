"""How long a resumed run waits for its first batch: as long after a million steps as after ten.

    python benchmarks/resume.py            # a minute on one core
    python benchmarks/resume.py --embedded # the text that ships with crosscode instead of a file

A text file of 20 million tokens (words of a small vocabulary) is read by `embedded:base`. The run is put after so many
steps and its cursor taken as a checkpoint would hold it; then a new process, without anything of the first one in
memory, goes on from there: seconds are from opening the text to the first batch, without imports and loading models.
Beside it, what it would take without the place in the text that the cursor holds.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from crosscode.data import Dataloader, Harvester, TokenSequences, load_language_model

BATCH_SIZE, BUFFER, S = 1024, 16_384, 256


def write_text(file: Path, n_words: int) -> None:
    """JSON lines, of 20 to 400 words each."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 7))) for _ in range(3000)]
    with file.open("w") as opened:
        while n_words > 0:
            some = rng.choices(words, k=rng.randint(20, 400))
            opened.write(json.dumps({"text": " ".join(some)}) + "\n")
            n_words -= len(some)


def loader(source: str, harvest: bool = True) -> Dataloader:
    model = load_language_model("embedded:base")
    hookpoint = "blocks.0.hook_resid_post"
    if harvest:
        model.harvest(torch.zeros(1, 2, dtype=torch.long), [hookpoint])
    sequences = TokenSequences(source, model, sequence_length=S)
    return Dataloader(sequences, Harvester(model, hookpoint), BATCH_SIZE, shuffle_buffer=BUFFER, ahead=0, squeeze=True)


def cursors(data: Dataloader, steps: list[int]) -> list[dict[str, Any]]:
    """Where the run is after some of its first batches; activations are made up, for they cost most."""
    harvester = data.harvester
    real = type(harvester).activations
    width = harvester.widths_MP[0][0]
    type(harvester).activations = lambda self, tokens_HS: torch.zeros(*tokens_HS.shape, 1, 1, width)
    try:
        iterator, done, found = iter(data), 0, []
        for step in steps:
            for _ in islice(iterator, step - done):
                pass
            done = step
            found.append(iterator.cursor())
        return found
    finally:
        type(harvester).activations = real


def seconds_to_first_batch(source: str, cursor: dict[str, Any]) -> float:
    """In a process of its own."""
    command = [sys.executable, __file__, "--resume", source, json.dumps(cursor)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def resume(source: str, cursor: str) -> None:
    data = loader("embedded" if source == "embedded" else source)
    started = time.perf_counter()
    next(data.iter_from(json.loads(cursor)))
    print(time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--embedded", action="store_true", help="read the text that ships with crosscode")
    parser.add_argument("--steps", type=int, nargs="+", help="after how many steps to resume, rising")
    parser.add_argument("--resume", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.resume:
        resume(*asked.resume)
        return
    steps = asked.steps or ([10, 100, 400, 1600] if asked.embedded else [10, 100, 1000, 10_000])
    with tempfile.TemporaryDirectory() as folder:
        source = "embedded"
        if not asked.embedded:
            source = str(Path(folder) / "text.jsonl")
            write_text(Path(source), 700 * steps[-1] + 100_000)
        print(f"{'steps done':>12}{'seconds':>10}{'without place':>16}{'bytes of cursor':>18}")
        for step, cursor in zip(steps, cursors(loader(source, harvest=False), steps)):
            times = [seconds_to_first_batch(source, given) for given in (cursor, {**cursor, "place": None})]
            print(f"{step:>12,}{times[0]:>10.2f}{times[1]:>16.2f}{len(json.dumps(cursor)):>18}", flush=True)


if __name__ == "__main__":
    main()
