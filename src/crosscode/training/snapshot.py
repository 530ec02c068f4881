"""A consistent copy of all that changes in training, in the form in which it is written down.

One trainer's files lie side by side; those of several that train together, in folders `0`, `1`, … in their order.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from crosscode.errors import NumericalError
from crosscode.finite import all_finite, not_finite
from crosscode.saving import SPEC, WEIGHTS, spec_text, ties_of
from crosscode.training.optimizers import split_state
from crosscode.training.trainer import Trainer

OPTIMIZER, EXTRA, STATE = "optimizer.safetensors", "state.safetensors", "state.json"


@attrs.frozen(eq=False)
class Snapshot:
    """A checkpoint that is still in memory: nothing that training does changes it.

    Attributes:
        step: optimizer steps done; of several trainers, by the one that has not stopped.
        tensors: what each safetensors file holds.
        texts: what each JSON file holds.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    texts: Mapping[str, str]

    @classmethod
    def of(cls, trainers: Sequence[Trainer]) -> "Snapshot":
        """The trainers as they stand between two steps.

        Raises:
            NumericalError: a weight or optimizer moment is not finite: such a state is never written.
        """
        tensors: dict[str, Mapping[str, Tensor]] = {}
        texts: dict[str, str] = {}
        for folder, trainer in zip(folders(len(trainers)), trainers):
            parts = trainer.state_dict()
            moments, plain = split_state(parts["optimizer"])
            extra = {name: parts[name] for name in ("tokens_since_fired_L", "rng")} | parts["modules"]
            ties = ties_of(trainer.model)
            weights = {name: value for name, value in parts["model"].items() if name not in ties}
            for file, held in ((WEIGHTS, weights), (OPTIMIZER, moments), (EXTRA, extra)):
                _check(trainer.state.step, file, held)
                tensors[folder + file] = {name: _copy(value) for name, value in held.items()}
            state = {
                "progress": parts["progress"],
                "optimizer": plain,
                "configuration": trainer.description,
                "arithmetic": arithmetic(trainer),
            }
            texts[folder + SPEC] = spec_text(trainer.model)
            texts[folder + STATE] = json.dumps(state, indent=2) + "\n"
        return cls(max(trainer.state.step for trainer in trainers), tensors, texts)


def folders(n_trainers: int) -> Iterator[str]:
    """Where in a checkpoint the files of each trainer are."""
    return iter([""] if n_trainers == 1 else [f"{i}/" for i in range(n_trainers)])


def arithmetic(trainer: Trainer) -> dict[str, Any]:
    """What the last bits of sums depend on, beside the configuration."""
    return {
        "threads": torch.get_num_threads(),
        "device_type": trainer.model.device.type,
        "torch": str(torch.__version__),
    }


def _check(step: int, file: str, tensors: Mapping[str, Tensor]) -> None:
    if not all_finite(tensors.values()):
        culprits = not_finite(tensors.items())
        raise NumericalError(f"step {step}: {file} would hold {', '.join(culprits)}, not finite; it was not saved.")


def _copy(tensor: Tensor) -> Tensor:
    """On the device, where there is ample room: it then reaches the host while training goes on; else on the host."""
    tensor = tensor.detach()
    if tensor.device.type == "cuda" and torch.cuda.mem_get_info(tensor.device)[0] < 8 * tensor.nbytes:
        return tensor.to("cpu", copy=True)
    return tensor.clone(memory_format=torch.contiguous_format)
