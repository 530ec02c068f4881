"""Several coders on one harvest."""

from collections.abc import Sequence
from itertools import islice

from crosscode.errors import BadInput
from crosscode.initialization.data import Remembered
from crosscode.models import SparseCoder
from crosscode.training.trainer import Trainer


def train_together(trainers: Sequence[Trainer]) -> list[SparseCoder]:
    """Train several coders over one data stream, harvested once: each becomes what it would be alone, bit for bit.

    Args:
        trainers: all with the very same `data`, `num_steps` and `accumulate`, and at the same step.

    Returns:
        The trained coders, in order.

    Raises:
        BadInput: the trainers would not read the same batches.
    """
    if not trainers:
        raise BadInput("trainers is empty: nothing to train.")
    first, *others = trainers
    for trainer in others:
        if trainer.data is not first.data:
            raise BadInput("trainers must share one data object, so that it is harvested once.")
        for name in ("num_steps", "accumulate"):
            if getattr(trainer, name) != getattr(first, name):
                raise BadInput(f"trainers differ in {name}: {getattr(first, name)} and {getattr(trainer, name)}.")
        if trainer.state.cursor != first.state.cursor or trainer.state.step != first.state.step:
            raise BadInput("trainers are at different places in the data: resume all from the same step.")
    remembered = Remembered(first.data)
    for trainer in trainers:
        trainer.initialize(remembered)
        trainer.tell("on_start")
    del remembered
    batches = first.batches()
    while first.state.step < first.num_steps:
        micro_batches = list(islice(batches, first.accumulate))
        if not micro_batches:
            break
        for trainer in trainers:
            trainer.state.cursor = dict(first.state.cursor)
            report = trainer.step(micro_batches)
            for callback in trainer.callbacks:
                callback(trainer, report)
    remembered = Remembered(first.calibration_data)
    for trainer in trainers:
        shared = trainer.calibration_data is first.calibration_data
        trainer.finish(remembered if shared else None)
        trainer.tell("on_finish")
        trainer.tell("on_end")
    return [trainer.model for trainer in trainers]
