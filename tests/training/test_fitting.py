"""A checkpoint of unknown origin: whatever cannot be the trainer's is told, and what can be is taken."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from crosscode.activations import BatchTopK
from crosscode.batch import Batch
from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.models import sae
from crosscode.training import Trainer
from crosscode.training.fitting import why_not_of


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    coder = sae(4, 6, BatchTopK(2))
    made = Trainer(
        model=coder,
        data=[Batch.autoencode(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)))],
        init=[AnthropicTranspose()],
        loss=SummedSquaredError(),
        optimizer=torch.optim.Adam(coder.parameters()),
        lr=1e-2,
        num_steps=2,
    )
    made.train()
    return made


def change(*path: Any, to: Any) -> Callable[[Any], None]:
    """Put something else at a place of the parts."""

    def do(parts: Any) -> None:
        *way, last = path
        for key in way:
            parts = parts[key]
        parts[last] = to

    return do


def group(name: str, to: Any) -> Callable[[Any], None]:
    return change("optimizer", "param_groups", 0, name, to=to)


GROUPS = "the optimizer's groups are not those"
WRONG: dict[str, tuple[Callable[[Any], None], str]] = {
    "a text for a number": (group("eps", "small"), GROUPS),
    "a switch for a number": (group("eps", True), GROUPS),
    "a number for a switch": (group("amsgrad", 1), GROUPS),
    "nothing for a number": (group("weight_decay", None), GROUPS),
    "one beta": (group("betas", (0.9,)), GROUPS),
    "a text among betas": (group("betas", (0.9, "x")), GROUPS),
    "other parameters": (group("params", [0, 1, 2]), GROUPS),
    "an argument too few": (lambda parts: parts["optimizer"]["param_groups"][0].pop("eps"), GROUPS),
    "no state of a parameter": (change("optimizer", "state", 1, to=3), "the optimizer's state of parameter 1 is 3"),
    "several optimizers": (
        lambda parts: parts.update(optimizer={"optimizers": [parts["optimizer"]] * 2}),
        "it is of another number of optimizers",
    ),
    "a foreign part": (change("modules", "loss: a", to=torch.zeros(1)), "it holds 'loss: a', which is no part of the"),
    "no list": (change("optimizer", "param_groups", to={}), GROUPS),
    "no group": (change("optimizer", "param_groups", 0, to=3), GROUPS),
    "a parameter too many": (change("optimizer", "state", 4, to={}), "knows 4 parameters, not a number 4"),
    "a negative parameter": (change("optimizer", "state", -1, to={}), "knows 4 parameters, not a number -1"),
    "a weight of another shape": (
        change("model", "encoder.b_enc_L", to=torch.zeros(7)),
        r"model.encoder.b_enc_L is torch.float32 \(7,\)",
    ),
    "a weight of another dtype": (
        change("model", "encoder.b_enc_L", to=torch.zeros(6, dtype=torch.float64)),
        "model.encoder.b_enc_L is torch.float64",
    ),
    "a missing weight": (lambda parts: parts["model"].pop("encoder.b_enc_L"), "model.encoder.b_enc_L is missing"),
    "a foreign weight": (change("model", "a.b", to=torch.zeros(1)), "it holds 'a.b', which is no part of the model"),
    "counters of other latents": (change("tokens_since_fired_L", to=torch.zeros(5, dtype=torch.int64)), "tokens_since"),
    "a step that is none": (change("progress", "step", to=1.0), "step is 1.0"),
    "a step before the first": (change("progress", "step", to=-1), "step is -1"),
    "a step beyond all": (change("progress", "step", to=2**63), "step is "),
    "a switch for a step": (change("progress", "step", to=True), "step is True"),
    "a density that is none": (change("progress", "density", to=float("nan")), "density is nan"),
    "a cursor that is none": (change("progress", "cursor", to=[]), r"cursor is \[\]"),
    "another generator": (lambda parts: parts["rng"].fill_(255), "rng is no state of a random generator"),
}


def parts_of(trainer: Trainer) -> Any:
    return copy.deepcopy(trainer.state_dict())


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_the_trainers_is_told(what: str, trainer: Trainer) -> None:
    spoil, said = WRONG[what]
    parts = parts_of(trainer)
    spoil(parts)
    wrong = why_not_of(parts, trainer)
    assert wrong is not None
    assert re.search(said, wrong), wrong


@pytest.mark.parametrize(
    "differs",
    [
        lambda parts: None,
        group("lr", 3),
        group("betas", [0.8, 0]),
        group("eps", 1),
        change("progress", "step", to=0),
        change("progress", "step", to=2**63 - 1),
        change("progress", "tokens", to=0),
        change("progress", "density", to=0.0),
        group("weight_sum", 0.5),  # that came with the first step
        change("optimizer", "state", 1, "exp_avg", to=torch.zeros(3)),  # moments may be of any shape
        lambda parts: parts["optimizer"]["state"].clear(),
    ],
)
def test_other_values_of_the_same_kind_are_taken(differs: Callable[[Any], None], trainer: Trainer) -> None:
    """Rates and progress are what a checkpoint is there for; whole numbers stand for numbers."""
    parts = parts_of(trainer)
    differs(parts)
    assert why_not_of(parts, trainer) is None
