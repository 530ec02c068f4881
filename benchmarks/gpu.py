"""TopK and BatchTopK on a GPU at D=4096, L=131072, k=64, B=8192: tokens a second, and the share of the bf16 roofline.

    python benchmarks/gpu.py                                   # ours, with triton where it is installed
    python benchmarks/gpu.py --peak-tflops 989                 # of an H100 SXM, dense bf16; needed for the share
    python benchmarks/gpu.py --peers-python PEERS/bin/python   # beside sparsify's kernels: nox -s peers, with triton

It has not been run: no GPU was at hand when it was written. The kernels were checked against torch's products in
triton's interpreter (`nox -s triton`). The roofline is the encoder's product alone, 2 B D L operations; decoding and
gradients touch k of L latents. Steps are timed by CUDA events after warming up, each contestant in its own process.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from schemes import Size

SIZE = Size(B=8192, sites=1, D=4096, L=131_072, k=64, batches=1)
SMALL = Size(B=256, sites=1, D=64, L=1024, k=16, batches=1)


def crosscode_step(kind: str, size: Size) -> Any:
    """Our step in bf16 with float32 masters, and which kernels it ran."""
    from crosscode import Batch, Trainer
    from crosscode.activations import BatchTopK, TopK
    from crosscode.initialization import AnthropicTranspose
    from crosscode.losses import SummedSquaredError
    from crosscode.models import sae

    x_BD = torch.randn(size.B, size.D, device="cuda")
    coder = sae(size.D, size.L, {"TopK": TopK, "BatchTopK": BatchTopK}[kind](size.k)).cuda()
    batch = Batch.autoencode(x_BD)
    AnthropicTranspose(0.1)(coder, [batch])
    trainer = Trainer(
        model=coder, data=[batch], loss=SummedSquaredError(), lr=1e-4, num_steps=10**6, precision="bf16",
        optimizer=torch.optim.Adam(coder.parameters(), fused=True),
    )  # fmt: skip
    return lambda i: trainer.step([batch])


def sparsify_step(kind: str, size: Size) -> Any:
    """sparsify's step with Adam, in bf16 autocast; it has no BatchTopK."""
    assert kind == "TopK"
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    x_BD = torch.randn(size.B, size.D, device="cuda")
    coder = SparseCoder(size.D, SparseCoderConfig(num_latents=size.L, k=size.k), device="cuda")
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-4, fused=True)

    def step(i: int) -> object:
        with torch.autocast("cuda", torch.bfloat16):
            out = coder(x_BD)
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        coder.set_decoder_norm_to_unit_norm()
        return out

    return step


def work(contestant: str, kind: str, steps: str, small: str) -> None:
    """Time one contestant, and print what was found."""
    size = SMALL if small == "True" else SIZE
    step = {"crosscode": crosscode_step, "sparsify": sparsify_step}[contestant](kind, size)
    for i in range(3):
        step(i)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for i in range(int(steps)):
        step(i)
    end.record()
    torch.cuda.synchronize()
    milliseconds = start.elapsed_time(end) / int(steps)
    print(json.dumps({
        "contestant": contestant, "scheme": kind, "ms": milliseconds, "tokens_per_s": 1000 * size.B / milliseconds,
        "tflops": 2e-9 * size.B * size.D * size.L / milliseconds,
        "peak_GB": torch.cuda.max_memory_allocated() / 1e9,
    }))  # fmt: skip


def main(
    steps: int = 20,
    peak_tflops: float | None = None,
    peers_python: Path | None = None,
    small: bool = False,
    json_file: Path | None = None,
) -> None:
    """Time training steps on a GPU.

    Args:
        steps: how many steps are timed.
        peak_tflops: the GPU's dense bf16 peak; without it the share of the roofline is left out.
        peers_python: interpreter of an environment with sparsify and triton.
        small: a size that any GPU holds, to see that all of it runs.
        json_file: where every number goes.
    """
    if not torch.cuda.is_available():
        sys.exit("There is no GPU here, so nothing was measured.")
    print(torch.cuda.get_device_name(), torch.__version__)
    print("| scheme | contestant | ms a step | tokens/s | TFLOP/s of the encoder | of the roofline | peak GB |")
    print("|---|---|---|---|---|---|---|")
    found = []
    pythons = {"crosscode": sys.executable, **({} if peers_python is None else {"sparsify": str(peers_python)})}
    for kind in ("TopK", "BatchTopK"):
        for contestant, python in pythons.items():
            if (contestant, kind) == ("sparsify", "BatchTopK"):
                continue
            command = [python, __file__, "work", contestant, kind, str(steps), str(small)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{contestant}, {kind}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                continue
            row = json.loads(done.stdout.strip().splitlines()[-1])
            found.append(row)
            share = "" if peak_tflops is None else f"{row['tflops'] / peak_tflops:.0%}"
            numbers = f"{row['ms']:.1f} | {row['tokens_per_s']:.0f} | {row['tflops']:.0f} | {share}"
            print(f"| {kind} | {contestant} | {numbers} | {row['peak_GB']:.1f} |", flush=True)
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(*sys.argv[2:])
    else:
        import tyro

        tyro.cli(main)
