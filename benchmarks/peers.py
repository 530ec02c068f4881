"""How fast one training step is beside other libraries: CPU time on one thread, each contestant in its own process.

    python benchmarks/peers.py                                    # beside the dense reference alone
    python benchmarks/peers.py --peers-python PEERS/bin/python    # and what that environment has: nox -s peers

All contestants see the same batches; ours goes through `Trainer.step` with clipping, dead-latent tracking and checks, a
peer through its own training step, with the default memory allocator. Rounds are interleaved, a ratio is formed inside
each round, and the table gives their median, least and greatest. FVU and L0 are those of a batch that was not trained
on, after the same number of steps with Adam at the same rate; every library starts from its own initial weights, the
dense reference from ours. No installed library has crosscoders, cross-layer transcoders or the January losses: sparsify
and dictionary_learning take a crosscoder's sites flattened into one, as a plain SAE. The dense reference has every
scheme: autograd through dense products, `torch.topk`, `scatter` and fused Adam; `dense_loop`, for two schemes, is the
same with the loop over parameters that is torch's default on CPU and that the libraries use.

With `--json`, rows that the file already has are not measured again: what was interrupted goes on.
"""

import itertools
import json
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from race import Worker, peak_MB, ratios, serve, timed
from schemes import LR, SCHEMES, SIZES, Contestant, Size, activations, fvu, kill_a_tenth

WARM_UP = {"full": 2, "quick": 5}  # a coder turns sparse after its first step
STEPS = {"full": 1, "quick": 5}  # of a round


# --- contestants: functions of scheme and size; an AssertionError says that there is no such scheme


def crosscode(scheme: str, size: Size) -> Contestant:
    """Ours, assembled as the recipes assemble it."""
    from assemblies import ours

    return ours(scheme, size)


def dense(scheme: str, size: Size, fused: bool = True) -> Contestant:
    """The dense reference, with fused Adam."""
    from assemblies import dense_reference

    return dense_reference(scheme, size, fused)


def sparsify(scheme: str, size: Size) -> Contestant:
    """EleutherAI's sparsify, Adam, decoders normalised as it does by default; crosscoders on flattened activations."""
    family, _, kind = scheme.partition(" ")
    assert family in ("sae", "crosscoder")
    assert kind in ("TopK", "TopK + AuxK")
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    data = [acts.flatten(1) for acts in activations(size)]
    coder = SparseCoder(data[0].shape[1], SparseCoderConfig(num_latents=size.L, k=size.k))
    optimizer = torch.optim.Adam(coder.parameters(), lr=LR)
    dead_L = torch.zeros(size.L, dtype=torch.bool)
    dead_L[::10] = True
    since_L = torch.zeros(size.L, dtype=torch.long)
    fired_L = torch.zeros(size.L, dtype=torch.bool)

    def step(i: int) -> object:
        x = data[i % size.batches]
        out = coder(x, dead_mask=dead_L if "AuxK" in kind else None)
        fired_L[out.latent_indices.flatten()] = True
        (out.fvu + out.auxk_loss / 32).backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        coder.set_decoder_norm_to_unit_norm()
        since_L.add_(len(x))
        since_L[fired_L] = 0
        fired_L.zero_()
        return out

    def quality() -> dict[str, float]:
        with torch.no_grad():
            out = coder(data[-1])
        return {"fvu": fvu(out.sae_out, data[-1]), "l0": float((out.latent_acts > 0).sum(-1).float().mean())}

    return step, quality


def dictionary_learning(scheme: str, size: Size) -> Contestant:
    """dictionary_learning's trainers, through their `update`."""
    family, _, kind = scheme.partition(" ")
    assert family in ("sae", "crosscoder")
    assert "January" not in kind
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    data = [acts.flatten(1) for acts in activations(size)]
    common: dict[str, Any] = {
        "steps": 10**6, "activation_dim": data[0].shape[1], "dict_size": size.L, "layer": 0, "lm_name": "none",
        "lr": LR, "device": "cpu",
    }  # fmt: skip
    if kind.startswith("TopK"):
        trainer: Any = TopKTrainer(k=size.k, **common)
    elif kind.startswith("BatchTopK"):
        trainer = BatchTopKTrainer(k=size.k, **common)
    elif kind.startswith("ReLU"):
        trainer = StandardTrainer(**common)
    else:
        trainer = JumpReluTrainer(**common)

    def step(i: int) -> object:
        if "AuxK" in kind:
            kill_a_tenth(trainer.num_tokens_since_fired)
        return trainer.update(i + 1, data[i % size.batches])

    def quality() -> dict[str, float]:
        chosen = {"use_threshold": False} if "TopK" in kind else {}
        with torch.no_grad():
            f = trainer.ae.encode(data[-1], **chosen)
            return {"fvu": fvu(trainer.ae.decode(f), data[-1]), "l0": float((f > 0).sum(-1).float().mean())}

    return step, quality


def sae_lens(scheme: str, size: Size) -> Contestant:
    """SAELens' training SAEs (`training_forward_pass`) with Adam and its clipping."""
    family, _, kind = scheme.partition(" ")
    assert family == "sae"
    assert "January" not in kind
    import sae_lens as library
    from sae_lens.saes.sae import TrainStepInput

    data = [acts.flatten(1) for acts in activations(size)]
    common: dict[str, Any] = {"d_in": data[0].shape[1], "d_sae": size.L, "dtype": "float32", "device": "cpu"}
    names = {"TopK": "TopK", "BatchTopK": "BatchTopK", "ReLU": "Standard", "JumpReLU": "JumpReLU"}
    name = names[kind.split()[0]]
    chosen = {"k": size.k} if "TopK" in name else {}
    if name == "TopK":
        chosen["use_sparse_activations"] = True
    config = getattr(library, f"{name}TrainingSAEConfig")(**common, **chosen)
    coder = getattr(library, f"{name}TrainingSAE")(config)
    optimizer = torch.optim.Adam(coder.parameters(), lr=LR)
    dead_L = torch.zeros(size.L, dtype=torch.bool)
    dead_L[::10] = "AuxK" in kind

    def forward(x: torch.Tensor, i: int = 0) -> Any:
        given = TrainStepInput(
            sae_in=x, coefficients={"l1": 1e-3, "l0": 1e-3}, dead_neuron_mask=dead_L, n_training_steps=i,
            is_logging_step=False,
        )  # fmt: skip
        return coder.training_forward_pass(given)

    def step(i: int) -> object:
        out = forward(data[i % size.batches], i)
        (out.feature_acts.detach() > 0).float().sum(0)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return out

    def quality() -> dict[str, float]:
        with torch.no_grad():
            out = forward(data[-1])
        return {"fvu": fvu(out.sae_out, data[-1]), "l0": float((out.feature_acts > 0).sum(-1).float().mean())}

    return step, quality


OWN = {"crosscode": crosscode, "dense": dense, "dense_loop": partial(dense, fused=False)}
OF_ADAM = ("sae TopK", "crosscoder ReLU dense")  # `dense_loop` tells of Adam, not of schemes: two are enough
PEERS = {f.__name__: f for f in (sparsify, dictionary_learning, sae_lens)}


def work(contestant: str, scheme: str, size: str) -> None:
    """Be a contestant."""

    def build() -> dict[str, Any]:
        step, quality = {**OWN, **PEERS}[contestant](scheme, SIZES[size].of(scheme.split()[0]))
        count = itertools.count()
        return {
            "steps": lambda n: {"seconds": timed(lambda _: step(next(count)), int(n))},
            "quality": lambda: {"peak_MB": peak_MB(), **quality()},
        }

    serve(build)


def race(scheme: str, size: str, rounds: int, peers_python: Path | None) -> list[dict[str, Any]]:
    """One scheme: a row for each contestant that has it."""
    own = [name for name in OWN if scheme in OF_ADAM or name != "dense_loop"]
    workers = [Worker(sys.executable, __file__, name, scheme, size) for name in own]
    if peers_python is not None:
        workers += [Worker(str(peers_python), __file__, name, scheme, size) for name in PEERS]
    running = [worker for worker in workers if worker.ask("steps", WARM_UP[size]) is not None]
    seconds: dict[str, list[float]] = {worker.name: [] for worker in running}
    for _ in range(rounds):
        for worker in running:
            answer = worker.ask("steps", STEPS[size])
            assert answer is not None, f"{worker.name} ended under way: {worker.stop()}"
            seconds[worker.name].append(answer["seconds"])
    n_trained = WARM_UP[size] + rounds * STEPS[size]
    rows = []
    for worker in running:
        quality = worker.ask("quality")
        assert quality is not None, f"{worker.name} has no quality: {worker.stop()}"
        ratio, least, greatest = ratios(seconds[worker.name], seconds["crosscode"])
        rows.append({
            "scheme": scheme, "size": size, "contestant": worker.name, "ms": 1000 * median(seconds[worker.name]),
            "ratio": ratio, "least": least, "greatest": greatest, **quality, "trained_steps": n_trained,
        })  # fmt: skip
    for worker in workers:
        error = worker.stop()
        if error and worker not in running and "AssertionError" not in error:
            print(f"{worker.name}, {scheme}: {error}", file=sys.stderr)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """What was measured, as Markdown; ratios above 1 mean that a contestant takes longer than ours."""
    lines = [
        "| scheme | size | contestant | ms a step | x ours [least, greatest] | FVU | L0 | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = f"{row['ratio']:.2f} [{row['least']:.2f}, {row['greatest']:.2f}]"
        lines.append(
            f"| {row['scheme']} | {row['size']} | {row['contestant']} | {row['ms']:.1f} | {ratio} |"
            f" {row['fvu']:.3f} | {row['l0']:.0f} | {row['peak_MB']:.0f} |"
        )
    return "\n".join(lines)


def main(
    schemes: tuple[str, ...] = tuple(SCHEMES),
    sizes: tuple[str, ...] = ("full", "quick"),
    rounds: int = 3,
    peers_python: Path | None = None,
    json_file: Path | None = None,
    table_file: Path | None = None,
) -> None:
    """Time one training step of each scheme beside others.

    Args:
        schemes: which schemes.
        sizes: `full` is B=2048 D=512 L=8192 k=32, `quick` is B=512 D=128 L=2048 k=32; crosscoders have two models, CLTs
            four layers of half the width and latents.
        rounds: how many interleaved rounds.
        peers_python: interpreter of an environment with the other libraries.
        json_file: where every number goes, after each scheme; what it already has is kept.
        table_file: where the table goes, as Markdown.
    """
    rows = json.loads(json_file.read_text()) if json_file is not None and json_file.exists() else []
    for size in sizes:
        for scheme in schemes:
            if not any((row["scheme"], row["size"]) == (scheme, size) for row in rows):
                found = race(scheme, size, rounds, peers_python)
                print("\n".join(table(found).splitlines()[2 if rows else 0 :]), flush=True)
                rows += found
            if json_file is not None:
                json_file.write_text(json.dumps(rows, indent=1) + "\n")
    if table_file is not None:
        what = f"`python benchmarks/peers.py --peers-python … --rounds {rounds}`, torch {torch.__version__}, one thread"
        table_file.write_text(f"# One training step beside other libraries\n\n{what}.\n{MEANING}\n{table(rows)}\n")


MEANING = """
Ratios above 1 mean that the contestant takes longer than crosscode. `full` is B=2048 D=512 L=8192 k=32, `quick` is
B=512 D=128 L=2048 k=32; crosscoders have two models, CLTs four layers of half the width and latents. ReLU dense
fires at 35 %, ReLU sparse at 3.5 %, JumpReLU at 2 %, with as many silent in the January window; AuxK has 10 % dead
latents. FVU and L0 are those of fresh activations after the same few steps. No installed library has crosscoders,
CLTs or the January losses: there sparsify and dictionary_learning are plain SAEs on flattened sites. `dense` is the
scheme itself in plain dense PyTorch, from the same weights as ours (`dense_loop`: with Adam as a loop over
parameters).
"""

if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(*sys.argv[2:])
    else:
        import tyro

        tyro.cli(main)
