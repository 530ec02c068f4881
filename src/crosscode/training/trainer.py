"""The trainer: one loop for every scheme.

weights of penalties at this step
for each micro-batch:  scale, encode, activate -> observe who fired -> decode -> loss + sum of penalties -> backward
gradient transforms -> learning rate -> optimizer step -> constraints -> interventions
callbacks are shown a `StepReport`
"""

import copy
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from typing import Any, Literal

import attrs
import torch
from jaxtyping import Float
from torch import Tensor, nn

from crosscode.activations import Activation
from crosscode.batch import Batch
from crosscode.checks import count, function, functions, instance, one_of, usable_dtype
from crosscode.errors import BadInput
from crosscode.initialization import InitStrategy
from crosscode.initialization.data import Remembered
from crosscode.kernels.allocator import keep_freed_memory, return_freed_memory
from crosscode.losses import LossFn
from crosscode.metrics import Metric
from crosscode.models import SparseCoder, Trace
from crosscode.module import fields_of
from crosscode.order import check_order
from crosscode.penalties import SparsityPenalty
from crosscode.phases import phase
from crosscode.schedulers import Scheduler, as_scheduler
from crosscode.training.calibration import calibrate
from crosscode.training.description import describe
from crosscode.training.finite import check_batch, check_gradients, check_terms, check_weights, scheduled
from crosscode.training.gradients import ClipNorm, Constraint, GradientTransform
from crosscode.training.interrupt import deferred_interrupts
from crosscode.training.optimizers import check_steps, load_optimizer, states_in
from crosscode.training.silence import check_can_fire, check_sign, tell_of_silence
from crosscode.training.state import TrainState

Precision = Literal["fp32", "bf16"]
WEIGHTS_CHECKED_EVERY = 100  # steps; most weights that are not finite show in the loss at once
SILENCE_TOLD_AFTER = 100  # steps in which nothing fires


@attrs.frozen
class Weighted:
    """A penalty and its weight, a number or a function of the step.

    Args:
        penalty: any function of the `Trace` to a scalar.
        weight: lambda, in units of the loss per unit of the penalty.
    """

    penalty: SparsityPenalty
    weight: Scheduler = attrs.field(converter=as_scheduler)

    def __attrs_post_init__(self) -> None:
        if not callable(self.penalty) or isinstance(self.penalty, type):
            raise BadInput(f"Weighted.penalty={self.penalty!r} must be a function of the Trace, such as L1OfNorms().")


@attrs.frozen(eq=False)
class StepReport:
    """What one step did. Callbacks observe it; what changes a coder between steps is an intervention.

    Attributes:
        step: optimizer steps done, this one included.
        tokens: tokens trained on so far.
        loss: the whole objective, mean over the step's tokens.
        terms: the reconstruction loss (`reconstruction`) and each penalty, unweighted.
        weights: each penalty's weight at this step.
        lr: learning rate of this step.
        gradient_norm: norm before clipping, where a transform reports it.
        trace: the forward pass of the last micro-batch.
    """

    step: int
    tokens: int
    loss: Float[Tensor, ""]
    terms: Mapping[str, Float[Tensor, ""]]
    weights: Mapping[str, float]
    lr: float
    gradient_norm: Float[Tensor, ""] | None
    trace: Trace


Callback = Callable[["Trainer", StepReport], None]
Intervention = Callable[["Trainer", StepReport], None]

PROGRESS = ("step", "tokens", "density", "sparse", "cursor", "stopped")


def _a_coder(model: SparseCoder) -> SparseCoder:
    instance("model", model, SparseCoder, "a SparseCoder")
    return model


@attrs.define(kw_only=True, eq=False)
class Trainer:
    """Trains any coder on any re-iterable of batches with any loss and penalties.

    Args:
        model: the coder.
        data: raw activations; iterated afresh by each init strategy and by training, so nothing is used up.
        loss: reconstruction loss.
        penalties: named penalties and their weights; the names are those of the curves.
        init: strategies run in order before the first step (not after a resume); one that would undo what an earlier
            one did is refused (`crosscode.order`).
        optimizer: over the coder's parameters; a parameter group may carry an `lr_multiplier`, a number or a function
            of the step.
        lr: learning rate, a number or a function of the step.
        num_steps: optimizer steps of the whole run.
        accumulate: micro-batches per step. Per-token terms equal the large batch's; BatchTopK's selection, AuxK and
            other batch-level terms act per micro-batch.
        gradients: transforms of gradients, in order.
        constraints: what holds of parameters before the first step and after every one.
        interventions: what changes the coder or the optimizer's moments between steps, such as resampling: called with
            the trainer and the `StepReport` after every step, before any callback sees or saves it. What they do
            follows from the trainer's state and torch's generator, which a resume restores.
        metrics: measured beside the recipe's own, in every curve (`Log`).
        callbacks: shown a `StepReport` after every step; may have `on_start`, `on_trained` (after the last step, before
            thresholds are calibrated), `on_finish`, `on_interrupt` and `on_end`, each called with the trainer, and a
            `phase` that its time counts for (`crosscode.phases`); `check_trainer` refuses one before data is read. One
            may call `trainer.stop()`; list it before the `Log`, which then writes the last step.
        held_out: data that final thresholds are calibrated on; the training data if not given.
        precision: `bf16` computes the dense products in bfloat16, with float32 masters and thresholds.
        state: what a run knows; made fresh if not given.

    Any part may have a `check_coder(coder)`, which refuses a coder that it cannot serve, and those of a list an
    `effect`, which says what they must not undo of each other.

    Raises:
        BadInput: a part that cannot work, or not with the others, before any data is read.
    """

    model: SparseCoder = attrs.field(converter=_a_coder)
    data: Iterable[Batch]
    loss: LossFn
    penalties: Mapping[str, Weighted] = attrs.field(factory=dict)
    init: Sequence[InitStrategy] = ()
    optimizer: torch.optim.Optimizer
    lr: Scheduler = attrs.field(converter=as_scheduler)
    num_steps: int
    accumulate: int = 1
    gradients: Sequence[GradientTransform] = (ClipNorm(1.0),)
    constraints: Sequence[Constraint] = ()
    interventions: Sequence[Intervention] = ()
    metrics: Sequence[Metric] = ()
    callbacks: Sequence[Callback] = attrs.field(default=(), repr=False)
    held_out: Iterable[Batch] | None = None
    precision: Precision = "fp32"
    state: TrainState = attrs.field(
        default=attrs.Factory(lambda self: TrainState.fresh(self.model.n_latents, self.model.device), takes_self=True),
        repr=False,
    )
    _began_as: Any = attrs.field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        instance("data", self.data, Iterable, "re-iterable batches, such as a list of Batch")
        function("loss", self.loss)
        instance("penalties", self.penalties, Mapping, "a dictionary of Weighted penalties by name")
        instance("optimizer", self.optimizer, torch.optim.Optimizer, "an optimizer over model.parameters()")
        for name in ("init", "gradients", "constraints", "interventions", "callbacks"):
            functions(name, getattr(self, name))
        instance("metrics", self.metrics, Sequence, "a list of metrics, such as [L0()]")
        for i, metric in enumerate(self.metrics):
            instance(f"metrics[{i}]", metric, Metric, "a metric, such as L0()")
        instance("held_out", self.held_out, Iterable | None, "re-iterable batches, or None")
        count("num_steps", self.num_steps)
        count("accumulate", self.accumulate)
        one_of("precision", self.precision, Precision)
        if self.precision == "bf16":
            usable_dtype("precision", self.precision, torch.bfloat16, self.model.device)
        if isinstance(self.data, Iterator):
            raise BadInput("data is an iterator, which init strategies would use up: hand over something re-iterable.")
        for name, weighted in self.penalties.items():
            if not isinstance(weighted, Weighted):
                got = type(weighted).__name__
                raise BadInput(f"penalty {name!r} is a {got}, not Weighted: write Weighted(penalty, weight).")
        self.check_parts()

    def check_parts(self) -> None:
        """Whether the parts fit the model and each other, as they are now.

        Raises:
            BadInput: one does not; it is named.
        """
        self._check_optimizer()
        self._check_shapes()
        modules = set(self.model.modules())
        for name, part in self._parts():
            for value in held_by(part):
                if isinstance(value, Activation) and value not in modules:
                    raise BadInput(f"{name} holds a {type(value).__name__} that is no part of the model.")
            check_coder = getattr(part, "check_coder", None)
            if check_coder is not None:
                check_coder(self.model)
        for name in ("init", "gradients", "constraints", "interventions", "callbacks"):
            check_order(name, getattr(self, name))
        for constraint in self.constraints:
            check_start = getattr(constraint, "check_start", None)
            if check_start is not None:
                check_start(self.init)
        for callback in self.callbacks:
            check_trainer = getattr(callback, "check_trainer", None)
            if check_trainer is not None:
                check_trainer(self)

    def _parts(self) -> Iterator[tuple[str, object]]:
        """What is made for one coder, by name: all parts but callbacks, of which only the metrics are."""
        yield "loss", self.loss
        yield from ((f"penalty {name!r}", weighted.penalty) for name, weighted in self.penalties.items())
        for name in ("init", "gradients", "constraints", "interventions", "metrics"):
            yield from ((f"{name}[{i}]", part) for i, part in enumerate(getattr(self, name)))
        for i, callback in enumerate(self.callbacks):
            yield from ((f"callbacks[{i}]", metric) for metric in getattr(callback, "metrics", ()))

    def _tensors_of_parts(self) -> dict[str, Tensor]:
        """What changes in modules that parts are or hold, such as a learned loss: not the coder's, nothing frozen."""
        seen = set(self.model.modules())
        found: dict[str, Tensor] = {}
        for name, part in self._parts():
            for i, value in enumerate([part, *held_by(part)]):
                if isinstance(value, nn.Module) and value not in seen:
                    seen.update(value.modules())
                    for key, tensor in value.state_dict(keep_vars=True).items():
                        if tensor.requires_grad or not isinstance(tensor, nn.Parameter):
                            found[f"{name}{f'.{i}' if i else ''}: {key}"] = tensor
        return found

    def _check_optimizer(self) -> None:
        """A parameter that took another's place since the optimizer was built would never be trained."""
        check_steps(self.optimizer)
        held = {p for group in self.optimizer.param_groups for p in group["params"]}
        missing = [name for name, p in self.model.named_parameters() if p.requires_grad and p not in held]
        if missing:
            raise BadInput(
                f"optimizer does not hold all parameters of the model ({', '.join(missing)}): build it on "
                "model.parameters() once every part is in place."
            )

    def _check_shapes(self) -> None:
        """Data that knows its shapes (a `Dataloader`) must have the model's: found before anything is harvested."""
        encoder, decoder = self.model.encoder, self.model.decoder
        for what, names, dims, width in (
            ("reads", ("in_dims", "d_in"), encoder.in_dims, encoder.d_in),
            ("writes", ("out_dims", "d_out"), decoder.out_dims, decoder.d_out),
        ):
            if all(hasattr(self.data, name) for name in names):
                given = (*getattr(self.data, names[0]), getattr(self.data, names[1]))
                if given != (*dims, width):
                    raise BadInput(
                        f"the model {what} activations of shape {(*dims, width)} but the data has {given}:"
                        " models, then hookpoints, then width."
                    )

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def train(self) -> SparseCoder:
        """Initialise, step until `num_steps` or the data ends, calibrate; resumes where a loaded state left off.

        Raises:
            NumericalError: an activation, loss, penalty, gradient or weight is NaN or infinite; it is named.
            Interrupted: Ctrl-C or SIGTERM came; the step was finished, and callbacks that save have saved.
        """
        return train_together([self])[0]

    def initialize(self, data: Iterable[Batch] | None = None) -> None:
        """Run the init strategies, unless the run has already begun.

        Args:
            data: the same batches as the trainer's own, where several trainers remember one harvest.
        """
        if self.state.step == 0:
            data = Remembered(self.data) if data is None else data
            for strategy in self.init:
                strategy(self.model, data)
            for constraint in self.constraints:
                constraint(self.model)
            self._check_optimizer()
            check_weights(0, self.model, "after initialising")

    def finish(self, data: Iterable[Batch] | None = None) -> None:
        """What a trained coder needs: calibrated thresholds, eval mode.

        Args:
            data: the same batches as `calibration_data`, where several trainers remember one harvest.
        """
        check_weights(self.state.step, self.model, "it was made by the last steps")
        calibrate(self.model, self.calibration_data if data is None else data)
        self.model.eval()

    @property
    def calibration_data(self) -> Iterable[Batch]:
        """What final thresholds are set on: held-out data, or else the training data."""
        return self.data if self.held_out is None else self.held_out

    def step(self, micro_batches: Sequence[Batch]) -> StepReport:
        """One optimizer step on the given micro-batches. After the first, freed memory stays with the process."""
        keep_freed_memory()
        model, state = self.model, self.state
        model.train()
        self._switch_optimizer("train")
        model.activation.at_step(state.step, self.num_steps)
        weights = {
            name: scheduled(state.step, f"the weight of {name!r}", weighted.weight(state.step))
            for name, weighted in self.penalties.items()
        }
        lr = scheduled(state.step, "lr", self.lr(state.step))
        for batch in micro_batches:
            instance("data", batch, Batch, "batches, such as Batch.autoencode(activations)")
        n_tokens = sum(map(len, micro_batches))
        if n_tokens == 0:
            raise BadInput("a step needs at least one token.")
        if state.step % WEIGHTS_CHECKED_EVERY == 0:
            check_weights(state.step, model)
        sums: dict[str, Tensor] = {}
        trace: Trace | None = None
        for batch in filter(len, micro_batches):
            share = len(batch) / n_tokens
            bf16 = torch.autocast(model.device.type, torch.bfloat16, enabled=self.precision == "bf16")
            with phase("forward"), bf16:
                check_batch(state.step, batch, self.data)
                trace = Trace.of(
                    model,
                    batch.to(model.device),
                    state.tokens_since_fired_L,
                    state.sparse,
                    step=state.step,
                    num_steps=self.num_steps,
                )
                if state.step == 0:
                    check_sign(trace)
                state.observe(trace.latents)
                terms = {"reconstruction": _scalar("loss", self.loss(trace))}
                # A penalty of weight 0 is computed for its curve, without a graph; last, because what it is the first
                # to ask of the trace would stay without one.
                for name, weighted in sorted(self.penalties.items(), key=lambda item: weights[item[0]] == 0):
                    with torch.set_grad_enabled(weights[name] != 0):
                        terms[name] = _scalar(f"penalty {name!r}", weighted.penalty(trace))
            loss = terms["reconstruction"]
            for name, weight in weights.items():
                if weight != 0:
                    loss = loss + weight * terms[name]
            check_terms(state.step, loss, terms, model)
            with phase("backward"):
                (loss * share).backward()
            for name, value in {**terms, "": loss}.items():
                sums[name] = sums.get(name, 0) + share * value.detach()
        with phase("optimizer"):
            gradient_norm = self._transform_gradients()
            for group in self.optimizer.param_groups:
                group["lr"] = lr * self._multiplier(group)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            for constraint in self.constraints:
                constraint(model)
        self._switch_optimizer("eval")
        assert trace is not None
        state.choose_codes(model.activation, trace.latents)
        state.step += 1
        total = sums.pop("")
        report = StepReport(state.step, state.tokens, total, sums, weights, lr, gradient_norm, trace)
        if state.step % SILENCE_TOLD_AFTER == 0:
            tell_of_silence(state, SILENCE_TOLD_AFTER * n_tokens)
        if self.interventions:
            with torch.no_grad():
                for intervention in self.interventions:
                    intervention(self, report)
            self._check_optimizer()
        return report

    def stop(self) -> None:
        """Make no further step: thresholds are calibrated and the run ends as if its last step had been made.

        For callbacks that decide it. Of several trainers that train together the others go on.
        """
        self.state.stopped = True

    @property
    def is_done(self) -> bool:
        """Whether the last step has been made."""
        return self.state.stopped or self.state.step >= self.num_steps

    def _multiplier(self, group: Mapping[str, Any]) -> float:
        """What a parameter group multiplies the learning rate by, now."""
        multiplier = as_scheduler(group.get("lr_multiplier", 1.0))
        return scheduled(self.state.step, "lr_multiplier", multiplier(self.state.step))

    def _switch_optimizer(self, mode: Literal["train", "eval"]) -> None:
        # Schedule-free optimizers train at one point and are evaluated at another: the latter stands between steps.
        switch = getattr(self.optimizer, mode, None)
        if switch is not None:
            switch()

    def _transform_gradients(self) -> Tensor | None:
        parameters = [parameter for parameter in self._parameters() if parameter.grad is not None]
        norms = [transform(self.model, parameters) for transform in self.gradients]
        norm = next((norm for norm in norms if norm is not None), None)
        total = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]) if norm is None else norm
        check_gradients(self.state.step, total, self.model)
        return norm

    def batches(self) -> Generator[Batch]:
        """Batches from the state's cursor on, which moves with them.

        Data with an `iter_from(cursor)` whose iterator has a `cursor()` says itself where it is and when it ends;
        any other iterable is repeated, and skipped into by counting.
        """
        iter_from = getattr(self.data, "iter_from", None)
        if iter_from is not None:
            batches: Any = iter_from(self.state.cursor) if self.state.cursor else iter(self.data)
            try:
                for batch in batches:
                    self.state.cursor = dict(batches.cursor())
                    yield batch
            finally:
                getattr(batches, "close", lambda: None)()  # who reads ahead stops
            return
        epoch, skip = self.state.cursor.get("epoch", 0), self.state.cursor.get("batch", 0)
        while True:
            n = 0
            for n, batch in enumerate(self.data, start=1):
                if n > skip:
                    self.state.cursor = {"epoch": epoch, "batch": n}
                    yield batch
            if n == 0:
                raise BadInput("data holds no batch.")
            epoch, skip = epoch + 1, 0

    @property
    def description(self) -> Any:
        """What the run was made of when it began, in words; of one that has not, what it is made of now."""
        return describe(self) if self._began_as is None else self._began_as

    def tell(self, moment: str) -> None:
        """Call the callbacks that listen to `on_trained`, `on_finish` or `on_interrupt`."""
        for callback in self.callbacks:
            _tell(callback, moment, self)

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes: model, optimizer, state, data cursor, random state, and modules among the parts."""
        optimizer = self.optimizer.state_dict()
        for state in states_in(optimizer):
            for group in state["param_groups"]:
                group.pop("lr_multiplier", None)  # configuration, and no state
        return {
            "model": self.model.state_dict(),
            "modules": self._tensors_of_parts(),
            "optimizer": optimizer,
            "tokens_since_fired_L": self.state.tokens_since_fired_L,
            "progress": {name: copy.copy(getattr(self.state, name)) for name in PROGRESS},
            "rng": torch.get_rng_state(),
        }

    def load_state_dict(self, parts: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        multipliers = [group.get("lr_multiplier", 1.0) for group in self.optimizer.param_groups]
        load_optimizer(self.optimizer, parts["optimizer"])
        self.model.load_state_dict(parts["model"])
        for group, multiplier in zip(self.optimizer.param_groups, multipliers):
            group["lr_multiplier"] = multiplier
        with torch.no_grad():
            for name, tensor in self._tensors_of_parts().items():
                tensor.copy_(parts["modules"][name])
        self.state.tokens_since_fired_L.copy_(parts["tokens_since_fired_L"])
        for name, value in parts["progress"].items():
            setattr(self.state, name, copy.copy(value))
        torch.set_rng_state(parts["rng"].cpu())


def _tell(callback: Callback, moment: str, trainer: Trainer) -> None:
    listener = getattr(callback, moment, None)
    if listener is not None:
        listener(trainer)


def _scalar(name: str, value: Tensor) -> Tensor:
    """A term of the objective, or a line that says which term is not one number."""
    if not isinstance(value, Tensor) or value.ndim != 0:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"
        raise BadInput(f"{name} gives {got}: it must give a tensor without axes, a mean over tokens.")
    return value


def held_by(part: object, depth: int = 4) -> Iterator[object]:
    """The values a part was built from, and those that they hold, in lists, dictionaries, parts and bound functions."""
    values: list[object]
    if isinstance(part, Mapping):
        values = list(part.values())
    elif isinstance(part, list | tuple | set | frozenset):
        values = list(part)
    elif isinstance(part, partial):
        values = [part.func, *part.args, *part.keywords.values()]
    elif attrs.has(type(part)):
        values = [getattr(part, field.name) for field in fields_of(part)]
    else:
        values = [*getattr(part, "__dict__", {}).values(), getattr(part, "__self__", None)]
    for value in values:
        yield value
        # Of modules only those that are handed over: what they are made of is their own.
        if depth and not isinstance(value, nn.Module | Tensor | type | str | bytes | None):
            yield from held_by(value, depth - 1)


def train_together(trainers: Sequence[Trainer]) -> list[SparseCoder]:
    """Train several coders over one data stream, harvested once: each becomes what it would be alone, bit for bit.

    Args:
        trainers: all with the very same `data`, `num_steps` and `accumulate`, and at the same step.

    Returns:
        The trained coders, in order.

    Raises:
        BadInput: the trainers would not read the same batches, or two of them train one coder.
    """
    instance("trainers", trainers, Sequence, "a list of Trainers")
    for trainer in trainers:
        instance("trainers", trainer, Trainer, "a list of Trainers")
    if len({id(trainer.model) for trainer in trainers}) < len(trainers):
        raise BadInput("trainers hold one coder twice: each trains a coder of its own.")
    of_others: set[nn.Module] = set()
    for trainer in trainers:
        for name, part in trainer.model.named_modules():
            if part in of_others:
                raise BadInput(f"trainers hold one {type(part).__name__} twice ({name}): each coder has its own parts.")
        of_others |= set(trainer.model.modules())
        trainer.check_parts()
    if not trainers:
        raise BadInput("trainers is empty: nothing to train.")
    first, *others = trainers
    for trainer in others:
        if trainer.data is not first.data:
            raise BadInput("trainers must share one data object, so that it is harvested once.")
        for name in ("num_steps", "accumulate"):
            if getattr(trainer, name) != getattr(first, name):
                raise BadInput(f"trainers differ in {name}: {getattr(first, name)} and {getattr(trainer, name)}.")
    leader, *following = [trainer for trainer in trainers if not trainer.state.stopped] or [first]
    if any((each.state.cursor, each.state.step) != (leader.state.cursor, leader.state.step) for each in following):
        raise BadInput("trainers are at different places in the data: resume all from the same step.")
    remembered = Remembered(first.data)
    for trainer in trainers:
        trainer._began_as = describe(trainer)
        trainer.initialize(remembered)
        if trainer.state.step == 0:
            check_can_fire(trainer.model)
    del remembered
    started: list[tuple[Trainer, Callback]] = []
    try:
        for trainer in trainers:
            for callback in trainer.callbacks:
                _tell(callback, "on_start", trainer)
                started.append((trainer, callback))
        with deferred_interrupts() as interrupt, closing(leader.batches()) as batches:
            while running := [trainer for trainer in trainers if not trainer.is_done]:
                with phase("data"):
                    micro_batches = list(islice(batches, first.accumulate))
                if not micro_batches:
                    break  # the data ended cleanly
                for trainer in trainers:
                    trainer.state.cursor = dict(leader.state.cursor)  # of one that has stopped too: they resume as one
                for trainer in running:
                    report = trainer.step(micro_batches)
                    for callback in trainer.callbacks:
                        with phase(getattr(callback, "phase", "other")):
                            callback(trainer, report)
                if interrupt.signal is not None:
                    for trainer in trainers:
                        trainer.tell("on_interrupt")
                    interrupt.leave_after(max(trainer.state.step for trainer in trainers))
            batches.close()  # before other data is harvested
            for trainer in trainers:
                trainer.tell("on_trained")
            remembered = Remembered(first.calibration_data)
            for trainer in trainers:
                shared = trainer.calibration_data is first.calibration_data
                trainer.finish(remembered if shared else None)
                trainer.tell("on_finish")
            interrupt.leave_after(max(trainer.state.step for trainer in trainers))
    finally:
        return_freed_memory()
        with ExitStack() as ending:  # all that have started, in their order, though one of them fails
            for trainer, callback in reversed(started):
                ending.callback(_tell, callback, "on_end", trainer)
    return [trainer.model for trainer in trainers]
