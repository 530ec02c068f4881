"""How fast one training step is, beside other libraries: CPU time on one thread, each contestant in its own process.

    python benchmarks/speed.py                                    # this library alone
    python benchmarks/speed.py --peers-python PEERS/bin/python    # beside what that environment has: nox -s peers

All contestants see the same batches; ours goes through `Trainer.step` with clipping, dead-latent tracking and checks, a
peer through its own training step. Rounds are interleaved, a ratio is formed inside each round, and the table gives
their median, least and greatest: times do not carry from machine to machine, ratios do.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

SIZES = {"full": (2048, 512, 8192, 32), "quick": (512, 128, 2048, 32)}  # B, D, L, k
N_MODELS, N_LAYERS = 2, 4
FIRING = 0.02  # of JumpReLU latents; as many again lie silent in the January window
DENSE, SPARSE = 0.35, 0.035  # of ReLU latents

Step = Callable[[int], float]


def batches(size: str, n_sites: int, n: int = 8) -> list[torch.Tensor]:
    """Batches of sparse combinations of random features plus noise, (B, sites, D), mean norm sqrt(D)."""
    n_tokens, d, _, _ = SIZES[size]
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4 * d, n_sites * d, generator=generator)
    active = torch.rand(n * n_tokens, 4 * d, generator=generator)
    active *= torch.rand(n * n_tokens, 4 * d, generator=generator) < 0.01
    acts = active @ features + 0.1 * torch.randn(n * n_tokens, n_sites * d, generator=generator)
    acts = acts.reshape(-1, n_sites, d)
    return list((acts * d**0.5 / acts.norm(dim=-1).mean()).split(n_tokens))


# --- contestants: a function of scheme and size that gives a step, and says nothing where it has no such scheme


def crosscode(scheme: str, size: str) -> Step:
    """Ours, assembled as the recipes assemble it."""
    from crosscode import Batch, SparseCoder, Trainer, Weighted
    from crosscode.activations import BatchTopK, JumpReLU, PerSite, ReLU, TopK
    from crosscode.initialization import AnthropicTranspose, CLTUniform
    from crosscode.losses import SummedSquaredError
    from crosscode.models import SharedDecoder, acausal_crosscoder, compound_cross_layer_transcoder, sae
    from crosscode.penalties import AuxK, ExpectedL0, L1OfNorms, PreActivation, TanhSparsity

    _, d, n_latents, k = SIZES[size]
    family, _, kind = scheme.partition(" ")
    n_sites = {"sae": 1, "crosscoder": N_MODELS, "diffing": N_MODELS, "clt": N_LAYERS}[family]
    if family == "clt":
        d, n_latents = d // 2, n_latents // 2
    jumprelu = JumpReLU(n_latents, bandwidth=2.0 if "January" in kind else 0.1, ste_to_input="January" in kind)
    if kind.startswith("TopK"):
        activation: Any = TopK(k)
    elif kind.startswith("BatchTopK"):
        activation = PerSite([BatchTopK(k) for _ in range(n_sites)]) if family == "clt" else BatchTopK(k)
    else:
        activation = ReLU() if kind.startswith("ReLU") else jumprelu
    if family == "sae":
        coder = sae(d, n_latents, activation)
    elif family == "clt":
        if kind.startswith("TopK"):
            activation = PerSite([TopK(k) for _ in range(n_sites)])
        coder = compound_cross_layer_transcoder(d, n_sites, n_latents, activation)
    else:
        coder = acausal_crosscoder(
            n_models=N_MODELS, n_hookpoints=1, d_model=d, n_latents=n_latents, activation=activation
        )
        if family == "diffing":
            shared = SharedDecoder(n_latents, n_latents // 8, (n_sites, 1), d)
            coder = SparseCoder(coder.encoder, activation, shared)
    data = [batch.reshape(len(batch), *coder.encoder.in_dims, coder.encoder.d_in) for batch in sized(size, family)]
    batched = [Batch.autoencode(acts) for acts in data]
    init = CLTUniform() if family == "clt" else AnthropicTranspose(1.0)
    init(coder, batched)
    set_density(coder, jumprelu, data[0], kind)
    penalties: dict[str, Any] = {}
    if "AuxK" in kind:
        penalties["aux_k"] = Weighted(AuxK(d // 2, dead_after_tokens=1), 1 / 32)
    elif kind.startswith("ReLU"):
        penalties["l1"] = Weighted(L1OfNorms(), 1e-3)
    elif "January" in kind:
        penalties["tanh"] = Weighted(TanhSparsity(), 1e-3)
        penalties["pre_act"] = Weighted(PreActivation(jumprelu), 3e-6)
    elif kind.startswith("JumpReLU"):
        penalties["l0"] = Weighted(ExpectedL0(jumprelu), 1e-3)
    optimizer = torch.optim.Adam(coder.parameters(), fused=True)
    trainer = Trainer(
        model=coder, data=batched, loss=SummedSquaredError(), penalties=penalties, optimizer=optimizer, lr=1e-5,
        num_steps=10**6,
    )  # fmt: skip

    def step(i: int) -> float:
        if "AuxK" in kind:
            kill_a_tenth(trainer.state.tokens_since_fired_L)
        report = trainer.step([batched[i % len(batched)]])
        return float(report.trace.latents.l0_B().float().mean())

    return step


def sized(size: str, family: str) -> list[torch.Tensor]:
    """Batches for a family of schemes; a CLT has more layers of half the width."""
    if family == "clt":
        return [acts.reshape(len(acts), N_LAYERS, -1) for acts in batches(size, N_LAYERS // 2)]
    return batches(size, {"sae": 1, "crosscoder": N_MODELS, "diffing": N_MODELS}[family])


def kill_a_tenth(tokens_since_fired_L: torch.Tensor) -> None:
    """A tenth of the latents counts as dead, whatever fires."""
    tokens_since_fired_L.zero_()
    tokens_since_fired_L[::10] = 100_000_000


@torch.no_grad()
def set_density(coder: Any, jumprelu: Any, acts: torch.Tensor, kind: str) -> None:
    """Shift encoder biases (and for the January window scale columns) until the stated share of latents fires."""
    if not kind.startswith(("ReLU", "JumpReLU")):
        return
    z_BL = coder.encoder.linear(acts)
    sorted_BL = z_BL.sort(dim=0, descending=True).values
    at = lambda rate: sorted_BL[round(rate * len(z_BL))]
    if kind.startswith("ReLU"):
        coder.encoder.b_enc_L.copy_(-at(SPARSE if "sparse" in kind else DENSE))
        return
    if "January" in kind:  # the lower edge of the window lies half a bandwidth below the threshold
        scale_L = jumprelu.bandwidth / 2 / (at(FIRING) - at(2 * FIRING))
        coder.encoder.assign_(coder.encoder.weights() * scale_L)
    else:
        scale_L = torch.ones_like(z_BL[0])
    coder.encoder.b_enc_L.copy_(jumprelu.threshold_L - at(FIRING) * scale_L)


def sparsify(scheme: str, size: str) -> Step:
    """EleutherAI's sparsify, Adam, decoders normalised as it does by default; crosscoders on flattened activations."""
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    _, _, n_latents, k = SIZES[size]
    family, _, kind = scheme.partition(" ")
    assert family in ("sae", "crosscoder")
    assert kind in ("TopK", "TopK + AuxK")
    data = [acts.flatten(1) for acts in sized(size, family)]
    coder = SparseCoder(data[0].shape[1], SparseCoderConfig(num_latents=n_latents, k=k))
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-5)
    dead_L = torch.zeros(n_latents, dtype=torch.bool)
    dead_L[::10] = True
    since_L = torch.zeros(n_latents, dtype=torch.long)
    fired_L = torch.zeros(n_latents, dtype=torch.bool)

    def step(i: int) -> float:
        x = data[i % len(data)]
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
        return float(k)

    return step


def dictionary_learning(scheme: str, size: str) -> Step:
    """dictionary_learning's trainers, through their `update`."""
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer
    from dictionary_learning.trainers.jumprelu import JumpReluTrainer
    from dictionary_learning.trainers.standard import StandardTrainer
    from dictionary_learning.trainers.top_k import TopKTrainer

    _, _, n_latents, k = SIZES[size]
    family, _, kind = scheme.partition(" ")
    assert family in ("sae", "crosscoder")
    data = [acts.flatten(1) for acts in sized(size, family)]
    common: dict[str, Any] = {
        "steps": 10**6, "activation_dim": data[0].shape[1], "dict_size": n_latents, "layer": 0, "lm_name": "none",
        "lr": 1e-5, "device": "cpu",
    }  # fmt: skip
    if kind.startswith("TopK"):
        trainer: Any = TopKTrainer(k=k, **common)
    elif kind.startswith("BatchTopK"):
        trainer = BatchTopKTrainer(k=k, **common)
    elif kind.startswith("ReLU"):
        trainer = StandardTrainer(**common)
    else:
        assert "January" not in kind
        trainer = JumpReluTrainer(**common)

    def step(i: int) -> float:
        if "AuxK" in kind:
            kill_a_tenth(trainer.num_tokens_since_fired)
        trainer.update(i + 1, data[i % len(data)])
        return 0.0

    return step


def sae_lens(scheme: str, size: str) -> Step:
    """SAELens' training SAEs (`training_forward_pass`) with Adam and its clipping."""
    import sae_lens as library
    from sae_lens.saes.sae import TrainStepInput

    _, _, n_latents, k = SIZES[size]
    family, _, kind = scheme.partition(" ")
    assert family in ("sae", "crosscoder")
    assert "January" not in kind
    data = [acts.flatten(1) for acts in sized(size, family)]
    common: dict[str, Any] = {"d_in": data[0].shape[1], "d_sae": n_latents, "dtype": "float32", "device": "cpu"}
    names = {"TopK": "TopK", "BatchTopK": "BatchTopK", "ReLU": "Standard", "JumpReLU": "JumpReLU"}
    name = names[kind.split()[0]]
    chosen = {"k": k} if "TopK" in name else {}
    if name == "TopK":
        chosen["use_sparse_activations"] = True
    config = getattr(library, f"{name}TrainingSAEConfig")(**common, **chosen)
    coder = getattr(library, f"{name}TrainingSAE")(config)
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-5)
    dead_L = torch.zeros(n_latents, dtype=torch.bool)
    dead_L[::10] = "AuxK" in kind

    def step(i: int) -> float:
        given = TrainStepInput(
            sae_in=data[i % len(data)], coefficients={"l1": 1e-3, "l0": 1e-3}, dead_neuron_mask=dead_L,
            n_training_steps=i, is_logging_step=False,
        )  # fmt: skip
        out = coder.training_forward_pass(given)
        (out.feature_acts.detach() > 0).float().sum(0)
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(k)

    return step


CONTESTANTS = {f.__name__: f for f in (crosscode, sparsify, dictionary_learning, sae_lens)}
SCHEMES = [
    *(f"sae {kind}" for kind in ("TopK", "TopK + AuxK", "BatchTopK", "BatchTopK + AuxK")),
    *(f"sae {kind}" for kind in ("ReLU dense", "ReLU sparse", "JumpReLU", "JumpReLU January")),
    *(f"crosscoder {kind}" for kind in ("TopK", "BatchTopK", "ReLU dense", "ReLU sparse", "JumpReLU")),
    "diffing JumpReLU January",
    *(f"clt {kind}" for kind in ("TopK", "BatchTopK")),
]


# --- one process a contestant


def work(contestant: str, scheme: str, size: str) -> None:
    """Answer each line of standard input, a number of steps, with seconds of CPU time and peak memory."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    out, sys.stdout = sys.stdout, sys.stderr
    step = CONTESTANTS[contestant](scheme, size)
    done = 0
    for line in sys.stdin:
        start = time.process_time()
        for _ in range(int(line)):
            value = step(done)
            done += 1
        seconds = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps({"seconds": seconds, "peak_MB": peak, "value": value}), file=out, flush=True)


class Worker:
    """A contestant in its own process; None of its words reach the table."""

    def __init__(self, python: str, contestant: str, scheme: str, size: str) -> None:
        self.name = contestant
        self.process = subprocess.Popen(
            [python, __file__, "work", contestant, scheme, size],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def steps(self, n: int) -> dict[str, float] | None:
        """What `n` steps cost; None when the contestant has gone."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(f"{n}\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            return None

    def stop(self) -> str:
        """End the process; the last line of its error, if it failed."""
        _, error = self.process.communicate()
        return error.strip().splitlines()[-1] if self.process.returncode and error.strip() else ""


def race(scheme: str, size: str, rounds: int, peers_python: Path | None) -> list[dict[str, Any]]:
    """One scheme: a row for each contestant that has it."""
    peers = [name for name in CONTESTANTS if name != "crosscode"] if peers_python else []
    workers = [Worker(sys.executable, "crosscode", scheme, size)]
    workers += [Worker(str(peers_python), name, scheme, size) for name in peers]
    n_steps = 1 if size == "full" else 10
    running = [worker for worker in workers if worker.steps(3 if size == "full" else 10) is not None]
    results: dict[str, list[dict[str, float]]] = {worker.name: [] for worker in running}
    for _ in range(rounds):
        for worker in running:
            result = worker.steps(n_steps)
            assert result is not None, f"{worker.name} ended under way: {worker.stop()}"
            results[worker.name].append(result)
    for worker in workers:
        error = worker.stop()
        if error and worker not in running and "AssertionError" not in error:
            print(f"{worker.name}, {scheme}: {error}", file=sys.stderr)
    ours = [result["seconds"] for result in results["crosscode"]]
    rows = []
    for name, found in results.items():
        ratios = [result["seconds"] / own for result, own in zip(found, ours)]
        rows.append({
            "scheme": scheme, "size": size, "contestant": name,
            "ms": 1000 * median(result["seconds"] for result in found) / n_steps,
            "ratio": median(ratios), "least": min(ratios), "greatest": max(ratios),
            "peak_MB": max(result["peak_MB"] for result in found), "value": found[-1]["value"],
        })  # fmt: skip
    return rows


def main(
    schemes: tuple[str, ...] = tuple(SCHEMES),
    sizes: tuple[str, ...] = ("full", "quick"),
    rounds: int = 7,
    peers_python: Path | None = None,
    json_file: Path | None = None,
) -> None:
    """Time one training step of each scheme.

    Args:
        schemes: which schemes.
        sizes: `full` is B=2048 D=512 L=8192 k=32, `quick` is B=512 D=128 L=2048 k=32.
        rounds: how many interleaved rounds.
        peers_python: interpreter of an environment with the other libraries; without one, ours alone is timed.
        json_file: where every number goes.
    """
    rows: list[dict[str, Any]] = []
    print("| scheme | size | contestant | ms a step | x ours [least, greatest] | peak MB |\n|---|---|---|---|---|---|")
    for scheme in schemes:
        for size in sizes:
            for row in race(scheme, size, rounds, peers_python):
                rows.append(row)
                ratio = f"{row['ratio']:.2f} [{row['least']:.2f}, {row['greatest']:.2f}]"
                print(
                    f"| {scheme} | {size} | {row['contestant']} | {row['ms']:.1f} | {ratio} | {row['peak_MB']:.0f} |",
                    flush=True,
                )
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(*sys.argv[2:])
    else:
        import tyro

        tyro.cli(main)
