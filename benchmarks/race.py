"""Contestants in fresh processes, in interleaved rounds, in CPU time of one thread: for `speed.py` and `peers.py`.

Times do not carry from machine to machine, ratios do, and only if both were taken at the same time: so each round asks
every contestant in turn, a ratio is formed inside the round, and the median over rounds is what counts.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import torch

Step = Callable[[int], object]


class Worker:
    """A contestant's process: `script work *arguments`, which calls `serve`."""

    def __init__(self, python: str, script: str, *arguments: str) -> None:
        self.name = arguments[0]
        self.process = subprocess.Popen(
            [python, script, "work", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def ask(self, *words: object) -> dict[str, Any] | None:
        """The answer to a line of words; None when the contestant has gone."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(" ".join(map(str, words)) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            return None

    def stop(self) -> str:
        """End the process; the last line of its error, if it failed."""
        _, error = self.process.communicate()
        return error.strip().splitlines()[-1] if self.process.returncode and error.strip() else ""


def serve(build: Callable[[], Mapping[str, Callable[..., dict[str, Any]]]]) -> None:
    """Be a contestant: answer each line of standard input by the function that its first word names."""
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    torch.set_num_threads(1)
    torch.manual_seed(0)
    answers = build()
    for line in sys.stdin:
        name, *words = line.split()
        print(json.dumps(answers[name](*words)), file=out, flush=True)


def timed(step: Step, n: int) -> float:
    """Seconds of CPU time that one of `n` steps takes."""
    start = time.process_time()
    for i in range(n):
        step(i)
    return (time.process_time() - start) / n


def peak_MB() -> float:
    """The most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> tuple[float, float, float]:
    """Median, least and greatest of the rounds' ratios."""
    found = [their / our for their, our in zip(theirs, ours)]
    return median(found), min(found), max(found)
