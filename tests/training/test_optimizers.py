"""Any optimizer trains, is saved and goes on bit for bit: of PyTorch, of two modes, several as one, of 8 bits."""

import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import SMALL, options, save_model, save_text
from torch import Tensor, nn
from torch.optim import Optimizer

from crosscode import SparseCoder, Trainer, Weighted
from crosscode.activations import JumpReLU, ReLU
from crosscode.batch import Batch
from crosscode.callbacks import Checkpoint
from crosscode.errors import BadInput, NumericalError
from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.models import Trace, sae
from crosscode.penalties import L1OfNorms
from crosscode.run import RunOptions, main
from crosscode.training import Several, describe, load_checkpoint, save_checkpoint
from crosscode.training.memory import moments_per_number
from crosscode.training.optimizers import join_state, split_state

Parameters = Iterable[nn.Parameter]


class ScheduleFree(Optimizer):
    """SGD as in Defazio et al. 2024: steps at y, evaluated at x; the group counts steps and keeps a tensor."""

    def __init__(self, params: Any, lr: float = 0.1, beta: float = 0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0, "train_mode": False, "weight": None})

    def switch(self, mode: bool) -> None:
        for group in self.param_groups:
            if group["train_mode"] != mode:
                for p in group["params"]:
                    if p in self.state:
                        beta = group["beta"]
                        p.data.lerp_(self.state[p]["z"], 1 - beta if mode else 1 - 1 / beta)
                group["train_mode"] = mode

    def train(self) -> None:
        self.switch(True)

    def eval(self) -> None:
        self.switch(False)

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            assert group["train_mode"]
            group["k"] += 1
            group["weight"] = torch.tensor(1 / group["k"], dtype=torch.float64)
            for p in group["params"]:
                if p.grad is not None:
                    z = self.state[p].setdefault("z", p.data.clone())
                    p.data.lerp_(z, float(group["weight"]))
                    p.data.add_(p.grad, alpha=-group["lr"] * group["beta"])
                    z.sub_(p.grad, alpha=group["lr"])


class EightBits(Optimizer):
    """Momentum in 8 bits by blocks of 4, with scales of their own shape, and a table in a list of the state."""

    def __init__(self, params: Any, lr: float = 0.1):
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                grad = nn.functional.pad(p.grad.flatten(), (0, -p.numel() % 4)).view(-1, 4)
                if "codes" in state:
                    assert state["codes"].dtype == torch.int8
                    grad = grad + 0.9 * state["codes"] * state["scales"][0]
                scale = grad.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
                state["codes"], state["scales"] = (grad / scale).round().to(torch.int8), [scale]
                p.data.sub_(group["lr"] * grad.flatten()[: p.numel()].view_as(p))


class Composite(Optimizer):
    """A user's own way to put two optimizers behind one, with a state dictionary of its own form."""

    def __init__(self, params: Any, lr: float = 0.1):
        first, *rest = params
        self.parts = {"first": torch.optim.Adam([first]), "rest": torch.optim.SGD(rest, lr=lr, momentum=0.9)}
        super().__init__([group for part in self.parts.values() for group in part.param_groups], {})

    def step(self, closure: Any = None) -> None:
        for part in self.parts.values():
            part.step()

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Any) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        self.param_groups = [group for part in self.parts.values() for group in part.param_groups]


def matrices_and_rest(parameters: Parameters) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    parameters = list(parameters)
    return [p for p in parameters if p.ndim == 2], [p for p in parameters if p.ndim != 2]


def several(parameters: Parameters) -> Several:
    matrices, rest = matrices_and_rest(parameters)
    return Several(ScheduleFree(matrices), torch.optim.Adam([{"params": rest, "lr_multiplier": 0.5}]))


def muon(parameters: Parameters) -> Several:
    """Muon takes matrices alone."""
    matrices, rest = matrices_and_rest(parameters)
    return Several(torch.optim.Muon(matrices), torch.optim.Adam(rest))


def torchs() -> Iterator[tuple[str, Callable[[Parameters], Optimizer]]]:
    """Every class of `torch.optim`, by its defaults."""
    for name, cls in vars(torch.optim).items():
        if inspect.isclass(cls) and issubclass(cls, Optimizer) and cls is not Optimizer:
            yield name, muon if name == "Muon" else cls


UNUSABLE = ("LBFGS", "SparseAdam")
OPTIMIZERS: dict[str, Callable[[Parameters], Optimizer]] = {
    **{name: made for name, made in torchs() if name not in UNUSABLE},
    "AMSGrad": lambda p: torch.optim.Adam(p, amsgrad=True),
    "a rate that is a tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(1e-3)),
    "ScheduleFree": ScheduleFree,
    "8 bits": EightBits,
    "a composite": Composite,
    "several": several,
}


def trainer_of(optimizer: Callable[[Parameters], Optimizer], num_steps: int = 5, **given: Any) -> Trainer:
    coder = sae(4, 6, ReLU())
    generator = torch.Generator().manual_seed(0)
    return Trainer(
        model=coder,
        data=[Batch.autoencode(torch.randn(16, 4, generator=generator)) for _ in range(3)],
        init=[AnthropicTranspose(1.0)],
        optimizer=optimizer(coder.parameters()),
        num_steps=num_steps,
        **{"loss": SummedSquaredError(), "lr": 1e-2, **given},
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Two steps, a checkpoint in files, three steps: weights and every tensor of the state are those of five steps."""
    whole = trainer_of(OPTIMIZERS[name])
    whole.callbacks = [lambda trainer, report: save_checkpoint(trainer, tmp_path, 9) and None]
    start = {name: value.clone() for name, value in whole.model.state_dict().items()}
    whole.train()
    assert not torch.equal(whole.model.decoder.W_dec_LXoDo, start["decoder.W_dec_LXoDo"])
    resumed = trainer_of(OPTIMIZERS[name])
    load_checkpoint(resumed, tmp_path / "step_000000002")
    assert resumed.state.step == 2
    resumed.train()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    ours, its = (split_state(each.optimizer.state_dict()) for each in (whole, resumed))
    assert ours[0].keys() == its[0].keys()
    for key, value in ours[0].items():
        assert value.dtype == its[0][key].dtype, key
        assert torch.equal(value, its[0][key]), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_an_optimizer_keeps_is_estimated(name: str) -> None:
    """No optimizer is refused before it has begun; those that are not known count as Adam."""
    n = moments_per_number(OPTIMIZERS[name](sae(4, 6, ReLU()).parameters()))
    assert 0 <= n <= 3
    known = {"Adam": 2, "SGD": 0, "AMSGrad": 3, "Adafactor": 0, "8 bits": 0.25, "ScheduleFree": 2, "several": 2}
    assert n == known.get(name, n)


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_optimizer_that_cannot_step_is_refused(name: str) -> None:
    """Before any data is read, by its name."""
    with pytest.raises(BadInput, match=f"optimizer {name} "):
        trainer_of(dict(torchs())[name])


def test_every_optimizer_of_torch_is_tried() -> None:
    """One that a later version brings is in the table, or refused by name."""
    assert {"Adam", "AdamW", "Adafactor", "Adagrad", "NAdam", "RAdam", "Rprop", "SGD"} <= OPTIMIZERS.keys()
    assert set(UNUSABLE) <= dict(torchs()).keys()


def test_several_are_one() -> None:
    """Rates reach each, by its multiplier; none, or two that hold the same parameter, are refused."""
    coder = sae(4, 6, ReLU())
    optimizer = several(coder.parameters())
    trainer = trainer_of(lambda parameters: several(parameters), num_steps=1, lr=0.25)
    trainer.train()
    inner = trainer.optimizer.optimizers
    assert [each.param_groups[0]["lr"] for each in inner] == [0.25, 0.125]
    described = describe(optimizer)
    assert [each["type"] for each in described["optimizers"]] == ["ScheduleFree", "Adam"]
    with pytest.raises(BadInput, match="at least one"):
        Several()
    with pytest.raises(ValueError, match="two of the optimizers hold one parameter"):
        Several(torch.optim.Adam(coder.parameters()), torch.optim.SGD(coder.parameters(), lr=1.0))


def test_a_nested_state_comes_back(tmp_path: Path) -> None:
    """Numbers as keys, tuples, lists, names that plain data uses itself; what is no data is refused by its place."""
    state = {
        "state": {0: {"a": torch.ones(2), "b": [torch.zeros(1), (1, None)]}},
        "tensor": {"tensor": 1.5},
        "items": [],
    }
    tensors, plain = split_state(state)
    back = join_state(tensors, plain)
    assert set(tensors) == {"state.0.a", "state.0.b.0"}
    assert back["state"][0]["a"] is state["state"][0]["a"]
    assert back["state"][0]["b"] == state["state"][0]["b"]
    assert (back["tensor"], back["items"]) == ({"tensor": 1.5}, [])
    with pytest.raises(BadInput, match=r"the optimizer's state\.0\.f=<function .*> cannot be saved"):
        split_state({"state": {0: {"f": test_a_nested_state_comes_back}}})
    trainer_of(torch.optim.Adam, callbacks=[Checkpoint(tmp_path)])
    with pytest.raises(BadInput, match=r"param_groups\.0\.rule"):  # before data is read
        trainer_of(lambda p: torch.optim.Adam([{"params": list(p), "rule": print}]), callbacks=[Checkpoint(tmp_path)])


class Learned(nn.Module):
    """A loss with a parameter, a buffer, and something frozen that is large elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.register_buffer("n_calls", torch.zeros((), dtype=torch.int64))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)

    def forward(self, trace: Trace) -> Tensor:
        self.n_calls += 1
        return ((self.frozen(trace.error_BXoDo) * self.weight).square().sum(-1)).mean() + (
            self.weight - 2
        ).square().sum()


@pytest.mark.parametrize("held_by", ["loss", "penalty"])
def test_what_losses_and_penalties_learn_goes_on(held_by: str, tmp_path: Path) -> None:
    """Parameters and buffers of modules among the parts are in a checkpoint, frozen ones are not."""

    def made() -> tuple[Trainer, Learned]:
        torch.manual_seed(0)
        learned = Learned()
        penalty = {"learned": Weighted(learned.__call__, 1.0)}
        given = {"loss": learned} if held_by == "loss" else {"penalties": penalty}
        return trainer_of(lambda p: torch.optim.Adam([*p, learned.weight]), **given), learned

    whole, learned = made()
    whole.callbacks = [lambda trainer, report: save_checkpoint(trainer, tmp_path, 9) and None]
    whole.train()
    resumed, its = made()
    load_checkpoint(resumed, tmp_path / "step_000000002")
    assert int(its.n_calls) == 2
    resumed.train()
    assert torch.equal(learned.weight, its.weight)
    assert not torch.equal(learned.weight, torch.ones(4))
    assert int(its.n_calls) == 5
    assert torch.equal(whole.model.encoder.W_enc_XiDiL, resumed.model.encoder.W_enc_XiDiL)
    assert {name.split(": ")[1] for name in whole.state_dict()["modules"]} == {"weight", "n_calls"}


def test_a_moment_that_is_none_is_not_saved_of_a_composite(tmp_path: Path) -> None:
    """It is looked for in every tensor, however deep."""
    trainer = trainer_of(several)
    trainer.train()
    next(iter(trainer.optimizer.optimizers[0].state.values()))["z"].fill_(torch.nan)
    with pytest.raises(NumericalError, match=r"optimizers\.0\.state\.0\.z"):
        save_checkpoint(trainer, tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("optimizers")
    save_model(folder / "base", seed=0)
    save_text(folder / "text.txt")
    return folder


DEFAULT = RunOptions()


def own(run: RunOptions = DEFAULT, n_latents: int = 8, num_steps: int = 4) -> Trainer:
    """A recipe with several optimizers behind one, one of them schedule-free.

    Args:
        run: models, data and output.
        n_latents: how many latents.
        num_steps: optimizer steps.
    """
    data = run.dataloader()
    coder: SparseCoder = sae(data.d_in, n_latents, ReLU()).to(run.device)
    return Trainer(
        model=coder, data=data, init=[AnthropicTranspose()], loss=SummedSquaredError(),
        penalties={"l1": Weighted(L1OfNorms(), 1e-3)}, optimizer=several(coder.parameters()), lr=1e-2,
        num_steps=num_steps,
    )  # fmt: skip


def test_several_run_and_resume_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    """The memory check lets them through, and a run that goes on ends with the weights of one that was not cut."""
    given = {**SMALL, "n_latents": 8, "models": folder / "base", "dataset": folder / "text.txt", "num_steps": 4}
    given |= {"checkpoint_every": 2, "eval_tokens": 100, "splice_tokens": 0}
    main(own, options(**given, output=tmp_path / "whole"))
    main(own, options(**given, output=tmp_path / "cut"))
    ended = tmp_path / "cut" / "checkpoints" / "step_000000004"
    for file in ended.iterdir():
        file.unlink()
    ended.rmdir()
    main(own, options(**given, output=tmp_path / "cut", resume=True))
    whole, cut = ((tmp_path / name / "coder" / "model.safetensors").read_bytes() for name in ("whole", "cut"))
    assert whole == cut


def test_a_part_may_have_a_rate_of_its_own() -> None:
    """The thresholds', and theirs alone; the configuration tells of it, and one rate for all is one group."""
    jumprelu = JumpReLU(6)
    coder = sae(4, 6, jumprelu)
    run = RunOptions()
    optimizer = run.adam(coder, lr_multipliers={jumprelu: 10.0})
    of = {p: group.get("lr_multiplier", 1.0) for group in optimizer.param_groups for p in group["params"]}
    assert of.keys() == set(coder.parameters())
    assert {name for name, p in coder.named_parameters() if of[p] != 1} == {"activation.stored_threshold_L"}
    assert describe(optimizer)["lr_multipliers"] == [1.0, 10.0]
    one = run.adam(coder, lr_multipliers={jumprelu: 1.0})
    assert len(one.param_groups) == 1
    assert "lr_multipliers" not in describe(one)
    decayed = run.optimizer(coder, torch.optim.AdamW, {coder.decoder: {"weight_decay": 0.5}}, weight_decay=0.0)
    assert [group["weight_decay"] for group in decayed.param_groups] == [0.0, 0.5]
    with pytest.raises(BadInput, match="groups: ReLU has no parameters"):
        run.optimizer(coder, groups={ReLU(): {}})
    with pytest.raises(BadInput, match=r"lr_multipliers\[JumpReLU\]=-1.0"):
        run.adam(coder, lr_multipliers={jumprelu: -1.0})
