"""Do coders find what is there? Worlds of known features, and planted behaviours with a label for every token.

    python benchmarks/ground_truth.py --json benchmarks/ground_truth.json   # hours of a core; goes on where it stopped
    python benchmarks/ground_truth.py --quick                               # minutes: whether it works at all
    python benchmarks/ground_truth.py --peers-python PEERS/bin/python …     # beside other libraries: nox -s peers

Writes `ground_truth.md` and its pictures beside this file (not with --quick). Latents are called exclusive by
`crosscode.evaluation.exclusivity`: beyond the 99th percentile of a null run of the same scheme, budget and seed, and
confirmed by latent scaling. Labels score; they choose nothing but the at most five latents of a behaviour, on the half
of the labelled text that is not scored.
"""

import functools
import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs
import torch
import tyro
from tqdm import tqdm
from truth import planted, synthetic
from truth.clt import shuffling
from truth.contestants import Activations, Trained, compared, firing, measured, train, train_peer
from truth.pages import draw, page
from truth.peers import PEERS

from crosscode.evaluation import Compared, Exclusivity, exclusivity

HERE = Path(__file__).parent
TIMEKEEPER = "BatchTopK"
TUNING_SEED = 1000  # of the world that weights and learning rates are set on; it is never scored


@attrs.frozen
class Scheme:
    """One of our recipes with its arguments; `knob` names the weight that is set so that L0 is the target's."""

    recipe: str
    arguments: Mapping[str, Any] = attrs.field(factory=dict)
    knob: str | None = None


@attrs.frozen(kw_only=True)
class Plan:
    """Sizes of everything.

    Attributes:
        world: the synthetic features.
        latents: of the synthetic coders; a quarter of them are shared where a scheme has shared latents.
        k: latents per token that all synthetic coders have, exactly, on average, or by the weight of their penalty.
        steps, batch: of the synthetic coders.
        held_out: tokens that they are measured on.
        weights_tried: runs that find a penalty's weight.
        pace_rounds: runs of a fifth of the steps that find how fast a contestant is, each beside the timekeeper's.
        planted_steps: of the recipes on the embedded pair.
        planted_tokens, planted_held_out: harvested for them.
        texts: labelled texts of each behaviour.
        clt_steps: of the cross-layer transcoders.
    """

    world: synthetic.Sizes = attrs.field(factory=synthetic.Sizes)
    latents: int = 320
    k: int = 12
    steps: int = 2500
    batch: int = 256
    held_out: int = 20_480
    weights_tried: int = 4
    pace_rounds: int = 3
    planted_steps: int = 600
    planted_tokens: int = 614_400
    planted_held_out: int = 60_416
    texts: int = 400
    clt_steps: int = 250


FULL = Plan()
QUICK = Plan(
    steps=300, held_out=5_120, weights_tried=2, pace_rounds=1, planted_steps=150, planted_tokens=153_600,
    planted_held_out=20_480, texts=100, clt_steps=60,
)  # fmt: skip
QUICK_ONLY = ("feb_diffing_topk", "feb_diffing_jumprelu", "L1", "BatchTopK", "February BatchTopK")


def synthetic_schemes(plan: Plan) -> dict[str, Scheme]:
    """All of ours, at equal size and equal L0."""
    n, shared, k_shared = plan.latents, plan.latents // 4, plan.k // 2
    feb = {"n_latents": n, "n_shared": shared}
    budgets = {**feb, "k_shared": k_shared, "k_exclusive": plan.k - k_shared}
    styles = {"TopK": "topk", "BatchTopK": "batch_topk", "GroupMax": "groupmax"}
    schemes = {
        "L1": Scheme("l1_crosscoder", {"n_latents": n}, "l1"),
        **{name: Scheme("topk_crosscoder", {"n_latents": n, "k": plan.k, "style": s}) for name, s in styles.items()},
        "January JumpReLU": Scheme("jan_update_jumprelu", {"n_latents": n}, "sparsity"),
        "February L1": Scheme("feb_diffing_l1", feb, "l1"),
        "February L1, full price": Scheme("feb_diffing_l1", {**feb, "shared_ratio": 1.0}, "l1"),
        "February JumpReLU": Scheme("feb_diffing_jumprelu", feb, "sparsity"),
        **{f"February {name}": Scheme("feb_diffing_topk", {**budgets, "style": s}) for name, s in styles.items()},
        "February BatchTopK, tied only": Scheme("feb_diffing_topk", {**budgets, "pricing": "none"}),
        "TopK SAE": Scheme("sae_topk", {"n_latents": n, "k": plan.k}),
    }
    return schemes


PLANTED: dict[str, Scheme] = {
    # recipes for two models at their defaults, and the plain crosscoders that they are compared with
    **{
        recipe: Scheme(recipe)
        for recipe in (
            "feb_diffing_topk",
            "feb_diffing_jumprelu",
            "feb_diffing_l1",
            "topk_crosscoder",
            "l1_crosscoder",
            "jan_update_jumprelu",
        )
    },
    # what was tried for the behaviour that the first two miss
    "feb_diffing_topk, style topk": Scheme("feb_diffing_topk", {"style": "topk"}),
    "feb_diffing_topk, k 48 + 16": Scheme("feb_diffing_topk", {"k_shared": 48, "k_exclusive": 16}),
    "feb_diffing_topk, decoder norm 0.1": Scheme("feb_diffing_topk", {"decoder_norm": 0.1}),
    "feb_diffing_jumprelu, sparsity 0.3": Scheme("feb_diffing_jumprelu", {"sparsity": 0.3}),
    "feb_diffing_jumprelu, c 0.5, sparsity 3": Scheme("feb_diffing_jumprelu", {"c": 0.5, "sparsity": 3.0}),
}


class Cells:
    """Finished numbers by name, written to the file as soon as they are there, so that a stopped run goes on."""

    def __init__(self, file: Path | None, plan: Plan) -> None:
        self.file = file
        self.plan = json.loads(json.dumps(attrs.asdict(plan)))
        saved = json.loads(file.read_text()) if file is not None and file.exists() else {"plan": self.plan, "cells": {}}
        if saved["plan"] != self.plan:
            sys.exit(f"error: {file} holds numbers of other sizes: name another file.")
        self.numbers: dict[str, dict[str, Any]] = saved["cells"]

    def get(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The numbers of that name, computed unless they are there."""
        if name not in self.numbers:
            self.numbers[name] = compute()
            self.write()
        return self.numbers[name]

    def take(self, other: "Cells") -> None:
        """What the other has and this has not."""
        self.numbers |= {name: cell for name, cell in other.numbers.items() if name not in self.numbers}
        self.write()

    def write(self) -> None:
        """The old file or the new one, whenever the process may be stopped."""
        if self.file is not None:
            beside = self.file.with_name(f".{self.file.name}")
            beside.write_text(json.dumps({"plan": self.plan, "cells": self.numbers}, separators=(",", ":")) + "\n")
            beside.replace(self.file)


# --- synthetic ------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Stage:
    """One seed's world: features, codes of the held-out tokens, activations of the pair and of the null."""

    world: synthetic.World
    codes_BN: torch.Tensor
    train: Mapping[str, Activations]
    held_out: Mapping[str, Activations]


@functools.lru_cache(maxsize=1)
def stage(plan: Plan, seed: int) -> Stage:
    """Everything that all contestants of a seed see."""
    world = synthetic.make_world(plan.world, seed)
    codes = {name: world.codes(n, seed + i) for i, (name, n) in enumerate(sizes(plan).items())}
    data = {
        name: {
            which: Activations(world.activations(codes_BN, models, seed + 7)[:, :, None], plan.batch)
            for which, models in (("pair", synthetic.PAIR), ("null", synthetic.NULL))
        }
        for name, codes_BN in codes.items()
    }
    return Stage(world, codes["held_out"], data["train"], data["held_out"])


def sizes(plan: Plan) -> dict[str, int]:
    return {"train": plan.steps * plan.batch, "held_out": plan.held_out}


def trained(plan: Plan, scheme: Scheme, seed: int, which: str, steps: int, weight: float | None) -> Trained:
    """One of ours on one seed's pair or null."""
    at = stage(plan, seed)
    arguments = {**scheme.arguments, **({scheme.knob: weight} if scheme.knob else {})}
    return train(scheme.recipe, arguments, at.train[which], at.held_out[which], seed, steps)


def matched_weight(plan: Plan, scheme: Scheme, steps: int, weight: float = 1.0) -> dict[str, Any]:
    """The penalty's weight at which L0 is k on the tuning world after so many steps: secants in logarithms."""
    assert scheme.knob is not None
    tried: list[tuple[float, float]] = []
    for _ in range(plan.weights_tried):
        coder = trained(plan, scheme, TUNING_SEED, "pair", steps, weight).coder
        tried.append((weight, max(0.1, measured(coder, stage(plan, TUNING_SEED).held_out["pair"])["l0"])))
        slope = -1.0
        if len(tried) > 1 and tried[-1][0] != tried[-2][0]:
            (w0, l0), (w1, l1) = (torch.tensor(pair).log() for pair in tried[-2:])
            slope = float(((l1 - l0) / (w1 - w0)).clamp(-4.0, -0.25))
        weight *= (plan.k / tried[-1][1]) ** (1 / slope)
    return {"weight": weight, "tried": tried}


def best_lr(plan: Plan, python: Path, peer: str) -> dict[str, Any]:
    """The peer's learning rate of least FVU on the tuning world."""
    at = stage(plan, TUNING_SEED)
    fvu = {}
    for lr in (1e-3, 3e-3) if plan is FULL else (3e-3,):
        coder = train_peer(
            python, peer, at.train["pair"], at.held_out["pair"], TUNING_SEED, plan.steps, lr=lr, **request(plan)
        ).coder
        fvu[lr] = measured(coder, at.held_out["pair"])["fvu"]
    return {"lr": min(fvu, key=fvu.__getitem__), "fvu": {str(lr): value for lr, value in fvu.items()}}


def request(plan: Plan) -> dict[str, int]:
    return {"n_latents": plan.latents, "k": plan.k}


def synthetic_numbers(plan: Plan, seed: int, steps: int, make: Callable[[str], Trained]) -> dict[str, Any]:
    """All scores of a contestant on a seed.

    Args:
        plan: sizes.
        seed: of the world, of weights and of the order.
        steps: that the contestant is trained for.
        make: trains on the pair, or on the null.
    """
    at = stage(plan, seed)
    pair, null = make("pair"), make("null")
    said = {which: compared(found.coder, at.held_out[which]) for which, found in (("pair", pair), ("null", null))}
    calls = exclusivity(said["pair"], said["null"])
    W_NMD = at.world.W_NMD[:, list(synthetic.PAIR)]
    scale_M = pair.coder.scale_out_Xo[:, 0]
    W_dec_LMD = pair.coder.decoder.dense().detach()[:, :, 0] / scale_M[None, :, None]
    cosine_NL = synthetic.cosines_NL(W_NMD, W_dec_LMD)
    fires_NL = firing(pair.coder, at.held_out["pair"])
    f1_NL = synthetic.firing_f1_NL(at.codes_BN[: len(fires_NL)] > 0, fires_NL)
    f1_N, alive_L = synthetic.matched(f1_NL), fires_NL.any(0)
    feature_L = torch.where(alive_L & (cosine_NL.max(0).values >= 0.7), cosine_NL.argmax(0), -1)
    called_L = calls.exclusive_to_0_L | calls.exclusive_to_1_L
    return {
        **measured(pair.coder, at.held_out["pair"]),
        "steps": steps,
        "seconds": pair.seconds,
        "mmcs": float((cosine_NL * alive_L).max(1).values.mean()),
        "f1": float(f1_N.mean()),
        "f1_of": {kind.name.lower(): float(f1_N[at.world.kind_N == kind].mean()) for kind in synthetic.Kind},
        **rates("", [calls.exclusive_to_0_L, calls.exclusive_to_1_L], feature_L, at.world),
        **rates("norms_", [calls.beyond_0_L, calls.beyond_1_L], feature_L, at.world),
        **rates("classical_", classical(said["pair"]), feature_L, at.world),
        "exclusive_density": mean(fires_NL[:, called_L].float().mean(0)),
        "exclusive_f1": mean(f1_NL.max(0).values[called_L]),
        "exclusivity": calls.numbers(),
    }


def mean(values: torch.Tensor) -> float | None:
    """None where there is nothing to take the mean of."""
    return float(values.mean()) if len(values) else None


def classical(said: Compared) -> list[torch.Tensor]:
    """The classical bins alone."""
    rho_L = said.relative_norm_L
    return [said.eligible_L & (rho_L < 0.1), said.eligible_L & (rho_L > 0.9)]


def rates(
    prefix: str, called: list[torch.Tensor], feature_L: torch.Tensor, world: synthetic.World
) -> dict[str, float | None]:
    """Precision and recall of exclusivity over both directions; no precision where nothing was called."""
    counts = [
        synthetic.precision_and_recall(called_L, feature_L, world.exclusive_N(model))
        for model, called_L in enumerate(called)
    ]
    right, n_called, n_found, n_exclusive = (sum(column) for column in zip(*counts))
    return {f"{prefix}precision": right / n_called if n_called else None, f"{prefix}recall": n_found / n_exclusive}


def run_synthetic(
    cells: Cells, plan: Plan, seeds: Sequence[int], names: Sequence[str], peers_python: Path | None, timed: bool
) -> None:
    """Contestants at equal tokens or, `timed`, at equal CPU time: that of BatchTopK at equal tokens."""
    schemes = synthetic_schemes(plan)

    def weight_of(name: str, steps: int) -> float | None:
        """At equal tokens; for another number of steps, found anew from there."""
        if schemes[name].knob is None:
            return None
        find = functools.partial(matched_weight, plan, schemes[name])
        weight: float = cells.get(f"synthetic/weight/{name}", lambda: find(plan.steps))["weight"]
        if steps == plan.steps:
            return weight
        anew = cells.get(f"synthetic/weight at equal time/{name}", lambda: find(steps, weight))
        return float(anew["weight"])

    def run(name: str, seed: int, which: str, steps: int, weight: float | None) -> Trained:
        if name in schemes:
            return trained(plan, schemes[name], seed, which, steps, weight)
        assert peers_python is not None
        lr = cells.get(f"synthetic/lr/{name}", functools.partial(best_lr, plan, peers_python, name))["lr"]
        at = stage(plan, seed)
        return train_peer(peers_python, name, at.train[which], at.held_out[which], seed, steps, lr=lr, **request(plan))

    def pace(name: str) -> dict[str, Any]:
        """How many steps it makes while the timekeeper makes one: the median of runs by turns."""
        steps = plan.steps // 5
        rounds = [
            [run(each, TUNING_SEED, "pair", steps, weight_of(each, plan.steps) if each in schemes else None).seconds
             for each in (TIMEKEEPER, name)]
            for _ in range(plan.pace_rounds)
        ]  # fmt: skip
        return {"steps": statistics.median(keeper / own for keeper, own in rounds), "seconds": rounds}

    def numbers(name: str, seed: int, steps: int) -> dict[str, Any]:
        weight = weight_of(name, steps) if name in schemes else None
        return synthetic_numbers(plan, seed, steps, lambda which: run(name, seed, which, steps, weight))

    for seed in seeds:
        for name in tqdm(names, desc=f"synthetic, seed {seed}{', equal time' * timed}", unit="scheme"):
            if timed:
                found = {"steps": 1.0}
                if name != TIMEKEEPER:
                    found = cells.get(f"synthetic/pace/{name}", functools.partial(pace, name))
                compute = functools.partial(numbers, name, seed, round(plan.steps * found["steps"]))
                cells.get(f"synthetic/time/{name}/{seed}", compute)
            else:
                cells.get(f"synthetic/tokens/{name}/{seed}", functools.partial(numbers, name, seed, plan.steps))


# --- planted --------------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Harvested:
    """The embedded models' activations, shuffled, for the pair and the null, and the labelled points."""

    train: Mapping[str, Activations]
    held_out: Mapping[str, Activations]
    points: Mapping[str, planted.Points]


@functools.cache
def harvested(plan: Plan) -> Harvested:
    """Once for all recipes and seeds."""
    batch = 1024
    acts = planted.harvest(plan.planted_tokens, plan.planted_held_out, batch)
    data = [
        {which: Activations(acts_NMD[:, views][:, :, None], batch) for which, views in VIEWS.items()}
        for acts_NMD in acts
    ]
    return Harvested(data[0], data[1], planted.labelled_points(plan.texts, seed=0))


VIEWS = {"pair": slice(0, 2), "null": slice(0, None, 2)}  # base and tuned, base and control, without a copy
MODELS = {"pair": planted.PAIR, "null": planted.NULL}


def run_probes(cells: Cells, plan: Plan, seeds: Sequence[int]) -> None:
    """What a linear probe on each model's activations reaches, on other labelled texts for each seed."""
    labelled = functools.lru_cache(maxsize=1)(planted.labelled_points)
    for seed in seeds:
        for m, name in enumerate(planted.NAMES):
            auroc = lambda m=m, seed=seed: {
                behaviour: planted.probe_auroc(found, m) for behaviour, found in labelled(plan.texts, seed).items()
            }
            cells.get(f"probes/{name}/{seed}", auroc)


def planted_numbers(plan: Plan, name: str, seed: int) -> dict[str, Any]:
    """A recipe on the pair and on the null."""
    data, scheme = harvested(plan), PLANTED[name]
    found = {
        which: train(scheme.recipe, scheme.arguments, data.train[which], data.held_out[which], seed, plan.planted_steps)
        for which in VIEWS
    }
    said = {which: compared(found[which].coder, data.held_out[which]) for which in VIEWS}
    calls = {"pair": exclusivity(said["pair"], said["null"]), "null": exclusivity(said["null"], said["null"])}
    fires_NL = firing(found["pair"].coder, data.held_out["pair"])
    called_L = calls["pair"].exclusive_to_0_L | calls["pair"].exclusive_to_1_L
    return {
        **measured(found["pair"].coder, data.held_out["pair"]),
        "seconds": found["pair"].seconds,
        "exclusivity": calls["pair"].numbers(),
        "auroc": {which: aurocs(found[which], data, which, calls[which]) for which in VIEWS},
        "auroc_of_any": aurocs(found["pair"], data, "pair", None, said["pair"]),
        "exclusive_density": mean(fires_NL[:, called_L].float().mean(0)),
        "density": mean(fires_NL[:, said["pair"].eligible_L].float().mean(0)),
        "histogram": {which: histogram(said[which]) for which in VIEWS},
        "null_confirmed": confirmed(said["null"]),
    }


def aurocs(
    found: Trained, data: Harvested, which: str, calls: Exclusivity | None, said: Compared | None = None
) -> dict[str, Any]:
    """For each behaviour, at most five of the latents called exclusive; of all living, untied ones without calls."""
    if calls is not None:
        mask_L = calls.exclusive_to_0_L | calls.exclusive_to_1_L
    else:
        assert said is not None
        mask_L = said.eligible_L
    latents, result = mask_L.nonzero()[:, 0], {}
    for behaviour, points in data.points.items():
        auroc, chosen = planted.latents_auroc(found.coder, points, MODELS[which], latents)
        result[behaviour] = {"auroc": auroc, "latents": chosen}
    return result


def histogram(said: Compared) -> list[int]:
    """Relative norms of the latents that may be called, in fifty bins from 0 to 1."""
    return torch.histc(said.relative_norm_L[said.eligible_L].float(), 50, 0.0, 1.0).long().tolist()


def confirmed(said: Compared) -> dict[str, Any]:
    """Relative norms of the null's latents that latent scaling confirms, so that any cut-offs can be tried on them."""
    rho_L = said.relative_norm_L
    masks = [said.eligible_L & side.specific_L() for side in said.scaling]
    return {"n_eligible": int(said.eligible_L.sum()), "towards": [rho_L[mask_L].tolist() for mask_L in masks]}


def run_planted(cells: Cells, plan: Plan, seeds: Sequence[int], names: Sequence[str]) -> None:
    run_probes(cells, plan, seeds)
    for seed in seeds:
        for name in tqdm(names, desc=f"planted, seed {seed}", unit="recipe"):
            cells.get(f"planted/{name}/{seed}", functools.partial(planted_numbers, plan, name, seed))


def run_clts(cells: Cells, plan: Plan, seeds: Sequence[int]) -> None:
    for seed in tqdm(seeds, desc="cross-layer transcoders", unit="seed"):
        cells.get(f"clt/{seed}", functools.partial(shuffling, plan.clt_steps, seed))


def main(
    parts: tuple[Literal["planted", "synthetic", "time", "clt"], ...] = ("planted", "synthetic", "time", "clt"),
    only: tuple[str, ...] = (),
    seeds: tuple[int, ...] = (0, 1, 2),
    quick: bool = False,
    peers_python: Path | None = None,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
    also: tuple[Path, ...] = (),
    pages: Path | None = None,
) -> None:
    """Score every scheme on ground truth.

    Args:
        parts: what to run, if anything: planted behaviours, synthetic features at equal tokens, the same at equal CPU
            time, and cross-layer transcoders.
        only: recipes, schemes and peers to run, of those that the tables name; all if not given.
        seeds: of worlds, weights and orders; intervals are over them.
        quick: small sizes, a few schemes, and the first seed alone.
        peers_python: interpreter of an environment with other libraries; without one, ours alone are tried.
        json_file: where every number goes, and where finished ones are taken from.
        also: files of other processes, which ran other parts, schemes or seeds, to take finished numbers from.
        pages: folder of `ground_truth.md` and its pictures; this command's own, or none with --quick.
    """
    torch.set_num_threads(1)
    plan, seeds = (QUICK, seeds[:1]) if quick else (FULL, seeds)
    peers = tuple(PEERS) if peers_python else ()
    wanted = only or ((*QUICK_ONLY, *peers) if quick else (*PLANTED, *synthetic_schemes(plan), *peers))
    if unknown := set(wanted) - {*PLANTED, *synthetic_schemes(plan), *peers}:
        sys.exit(f"error: only={sorted(unknown)}: no such recipe, scheme or installed peer.")
    chosen = lambda *names: [name for name in names if name in wanted]
    cells = Cells(json_file, plan)
    for file in also:
        cells.take(Cells(file, plan))
    if "planted" in parts:
        run_planted(cells, plan, seeds, chosen(*PLANTED))
    if "synthetic" in parts:
        run_synthetic(cells, plan, seeds, chosen(*synthetic_schemes(plan), *peers), peers_python, timed=False)
    if "time" in parts:
        run_synthetic(cells, plan, seeds, chosen(*synthetic_schemes(plan), *peers), peers_python, timed=True)
    if "clt" in parts:
        run_clts(cells, plan, seeds)
    text = page(cells.numbers, plan)
    print(text)
    pages = HERE if pages is None and not quick else pages
    if pages is not None:
        (pages / "ground_truth.md").write_text(text)
        draw(cells.numbers, pages)


if __name__ == "__main__":
    tyro.cli(main)
