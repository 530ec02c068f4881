"""Faults of an earlier implementation, in its run scripts: the options that were read and then ignored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import SMALL, factory, options, save_model, save_text

import crosscode.run.program
import crosscode.run.recipe
from crosscode.activations import BatchTopK, GroupMax, SeparateBudgets, TopK
from crosscode.penalties import AuxK
from crosscode.training import Trainer

STYLES = {"topk": TopK, "batch_topk": BatchTopK, "groupmax": GroupMax}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    save_model(folder / "base", seed=0)
    save_model(folder / "tuned", seed=1)
    save_text(folder / "text.txt")
    return folder


@pytest.fixture
def built(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Trainer, crosscode.run.RunOptions]]:
    """`built("clt_topk", style="topk")`: the trainer that a recipe's command line makes, and its `RunOptions`."""

    def build(recipe: str, models: tuple[str, ...] = ("base",), **given: Any) -> tuple[Trainer, Any]:
        monkeypatch.setattr(
            crosscode.run.program, "run_recipe", lambda trainer, run, name: {"trainer": trainer, "run": run}
        )
        places = {"models": [folder / model for model in models], "dataset": folder / "text.txt"}
        parts = crosscode.run.main(factory(recipe), options(**{**SMALL, **places, **given}))
        return parts["trainer"], parts["run"]

    return build


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("recipe", ["clt_topk", "topk_crosscoder"])
def test_the_style_that_is_asked_for_is_trained(recipe: str, style: str, built) -> None:
    """Fault 34: `--style` chooses the activation, by its type and by what it selects."""
    trainer, _ = built(recipe, style=style, k=4)
    activation = trainer.model.activation
    assert type(activation) is STYLES[style]
    generator = torch.Generator().manual_seed(0)
    pre_BL = torch.randn(64, 32, generator=generator).abs() * torch.rand(64, 1, generator=generator)
    fired_BL = activation.train()(pre_BL).dense() > 0
    assert fired_BL.sum() == 4 * 64
    in_groups_BK = fired_BL.reshape(64, 4, 8).sum(-1)
    assert (fired_BL.sum(-1) == 4).all() == (style != "batch_topk")
    assert (in_groups_BK == 1).all() == (style == "groupmax")


@pytest.mark.parametrize("style", STYLES)
def test_the_style_of_separate_budgets_is_trained(style: str, built) -> None:
    """Fault 34, where shared and exclusive latents have separate budgets: both are of the style, each with its k."""
    trainer, _ = built("feb_diffing_topk", ("base", "tuned"), style=style, n_shared=8, k_shared=2, k_exclusive=3)
    activation = trainer.model.activation
    assert isinstance(activation, SeparateBudgets)
    assert [type(part) for part in (activation.shared, activation.exclusive)] == [STYLES[style]] * 2
    assert [part.k for part in (activation.shared, activation.exclusive)] == [2, 3]


@pytest.mark.parametrize("ste_to_input", [True, False])
def test_the_estimators_reach_is_as_asked(ste_to_input: bool, built) -> None:
    """Fault 23: `--ste-to-input` reaches the JumpReLU, and what is inside the window gets a gradient only with it."""
    trainer, _ = built("jan_update_jumprelu", ste_to_input=ste_to_input, bandwidth=2.0, threshold=0.5)
    jumprelu = trainer.model.activation
    assert jumprelu.ste_to_input == ste_to_input
    z_BL = torch.full((1, 32), 0.25, requires_grad=True)
    jumprelu(z_BL).dense().sum().backward()
    assert (z_BL.grad != 0).all() == ste_to_input


@pytest.mark.parametrize("recipe", ["jan_update_jumprelu", "compound_clt"])
def test_thresholds_have_the_rate_that_is_asked_for(recipe: str, built) -> None:
    """`--threshold-lr` reaches the thresholds, and nothing else."""
    trainer, _ = built(recipe, threshold_lr=10.0)
    of = {p: group.get("lr_multiplier", 1.0) for group in trainer.optimizer.param_groups for p in group["params"]}
    rates = {name: of[p] for name, p in trainer.model.named_parameters()}
    assert {rate for name, rate in rates.items() if "threshold" in name} == {10.0}
    assert {rate for name, rate in rates.items() if "threshold" not in name} == {1.0}


@pytest.mark.parametrize("dead_after", [0.1, 0.5])
def test_dead_has_one_meaning(dead_after: float, built) -> None:
    """The silence that AuxK revives after is the one that every figure counts with."""
    trainer, run = built("topk_crosscoder", k=4, dead_after=dead_after)
    penalty = trainer.penalties["aux_k"].penalty
    assert isinstance(penalty, AuxK)
    expected = round(dead_after * SMALL["num_steps"] * SMALL["batch_size"])
    assert crosscode.run.recipe.dead_after_tokens_of(trainer, run) == penalty.dead_after_tokens == expected
    trainer, run = built("l1_crosscoder")
    assert crosscode.run.recipe.dead_after_tokens_of(trainer, run) == run.dead_after_tokens(SMALL["num_steps"])


def test_scales_are_measured_on_as_many_tokens_as_asked(built) -> None:
    """`--init-tokens` reaches the strategy; without it, the 100,000 of the literature."""
    for given, expected in (({"init_tokens": 500}, 500), ({}, 100_000)):
        trainer, _ = built("sae_topk", k=4, **given)
        assert trainer.init[0].n_tokens == expected
