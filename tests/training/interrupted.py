"""A recipe in a process of its own that dies, as by a power cut, right after the checkpoint of a given step.

Run as `python interrupted.py RECIPE STEP OPTION…`; with STEP 0 nothing happens to it.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from small_runs import factory

from crosscode.callbacks import Checkpoint
from crosscode.run import main


def die_after(step: int) -> None:
    """Make the process end, without any clean-up, once the checkpoint of `step` is on disk."""
    call = Checkpoint.__call__

    def call_and_die(self, trainer, report) -> None:
        call(self, trainer, report)
        if report.step == step:
            self.wait()
            os._exit(9)

    Checkpoint.__call__ = call_and_die


if __name__ == "__main__":
    die_after(int(sys.argv[2]))
    main(factory(sys.argv[1]), sys.argv[3:])
