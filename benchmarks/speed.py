"""How the cost of a training step grows: our step beside the dense reference of the same scheme, in the same run.

    python benchmarks/speed.py                   # minutes: a table and a plot
    python benchmarks/speed.py --quick           # smaller and fewer sizes
    python benchmarks/speed.py --json-file growth.json --table-file benchmarks/speed.md --plot-file benchmarks/speed.png

One of L (latents), k (latents a token), sites (models x hookpoints) and B (tokens a batch) grows while the others stay.
CPU time of one thread; rounds are interleaved, a ratio is formed inside each. `GEMM` is the encoder's product alone,
without which no exact scheme can do (in bfloat16 where a TopK step screens with it); what a TopK step takes beyond it
reads B x L once for the selection and otherwise touches kept entries and weights, so it must not grow faster than L.
The exponents are slopes of log time over log size, fitted to the larger half of the sizes, where what is constant
weighs little.

With `--json-file`, points that the file already has are not measured again: what was interrupted goes on.
"""

import itertools
import json
import math
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from race import Worker, ratios, serve, timed
from schemes import Size

BASE = Size(B=1024, D=128, L=8192, k=32, batches=2)
AXES = {
    "L": [1 << n for n in range(10, 17)],
    "k": [8, 16, 32, 64, 128, 256],
    "sites": [1, 2, 4, 8],
    "B": [256 << n for n in range(7)],
}
QUICK_AXES = {"L": [1024, 4096, 16384], "k": [8, 32, 128], "sites": [1, 2, 4], "B": [256, 1024, 4096]}
# How the step, what it takes beyond the encoder's product, and the dense reference should grow at most.
EXPECTED = {"L": (1, 1, 1), "k": (1, 1, 0), "sites": (1, 1, 1), "B": (1, 1, 1)}
KINDS = ("TopK", "BatchTopK")
OURS, DENSE = "crosscode", "dense"


def work(contestant: str, kind: str, axis: str, value: str) -> None:
    """Be a contestant at one point."""

    def build() -> dict[str, Any]:
        from assemblies import dense_reference, ours

        from crosscode.kernels.screening import screening_is_faster

        size = at(axis, int(value))
        scheme = f"{'sae' if size.sites == 1 else 'crosscoder'} {kind}"
        step, _ = (ours if contestant == OURS else dense_reference)(scheme, size)
        count = itertools.count()
        x_BI, W_IL = torch.randn(size.B, size.sites * size.D), torch.randn(size.sites * size.D, size.L)
        if kind.startswith("TopK") and screening_is_faster(x_BI, W_IL, size.k):
            x_BI, W_IL = x_BI.bfloat16(), W_IL.bfloat16()
        z_BL = x_BI.new_empty(size.B, size.L)
        return {
            "steps": lambda n: {"seconds": timed(lambda _: step(next(count)), int(n))},
            "gemm": lambda n: {"seconds": timed(lambda _: torch.mm(x_BI, W_IL, out=z_BL), int(n))},
        }

    serve(build)


def at(axis: str, value: int) -> Size:
    """The base size with one thing changed."""
    return Size(**{**vars(BASE), axis: value})


def measure(kind: str, axis: str, value: int, rounds: int) -> dict[str, Any]:
    """One point: milliseconds of our step, of the encoder's product, and of the dense step, and the ratio."""
    size = at(axis, value)
    n_steps = max(1, round(2e9 / (size.B * size.sites * size.D * size.L)))  # small ones several times
    workers = {name: Worker(sys.executable, __file__, name, kind, axis, str(value)) for name in (OURS, DENSE)}
    seconds: dict[str, list[float]] = {OURS: [], DENSE: [], "gemm": []}
    for turn in range(rounds + 1):
        for name, who, what in ((OURS, OURS, "steps"), ("gemm", OURS, "gemm"), (DENSE, DENSE, "steps")):
            answer = workers[who].ask(what, n_steps if turn else 1 if who == DENSE else 2)
            assert answer is not None, f"{who} ended under way: {workers[who].stop()}"
            if turn:  # the first warms up
                seconds[name].append(answer["seconds"])
    for worker in workers.values():
        worker.stop()
    ratio, least, greatest = ratios(seconds[DENSE], seconds[OURS])
    beyond = median(own - product for own, product in zip(seconds[OURS], seconds["gemm"]))
    return {
        "scheme": kind, "axis": axis, "value": value, "ms": 1000 * median(seconds[OURS]),
        "gemm_ms": 1000 * median(seconds["gemm"]), "beyond_ms": 1000 * beyond,
        "dense_ms": 1000 * median(seconds[DENSE]), "ratio": ratio, "least": least, "greatest": greatest,
    }  # fmt: skip


def exponent(points: list[dict[str, Any]], what: str) -> float:
    """The slope of log time over log size, over the larger half of the sizes."""
    points = sorted(points, key=lambda point: point["value"])[len(points) // 2 - len(points) % 2 :]
    xs = [math.log(point["value"]) for point in points]
    ys = [math.log(max(1e-6, point[what])) for point in points]
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - x_mean) * (y - y_mean) for x, y in zip(xs, ys)) / sum((x - x_mean) ** 2 for x in xs)


def row(point: dict[str, Any]) -> str:
    """A point as a row of the table."""
    ratio = f"{point['ratio']:.2f} [{point['least']:.2f}, {point['greatest']:.2f}]"
    return (
        f"| {point['scheme']} | {point['axis']} | {point['value']} | {point['ms']:.1f} | {point['gemm_ms']:.1f} |"
        f" {point['beyond_ms']:.1f} | {point['dense_ms']:.1f} | {ratio} |"
    )


HEADER = """| scheme | what grows | to | ms a step | GEMM | beyond it | dense reference | x ours [least, greatest] |
|---|---|---|---|---|---|---|---|"""


def growth(points: list[dict[str, Any]]) -> str:
    """The fitted exponents beside the expected ones."""
    lines = [
        "| scheme | what grows | step: fitted (at most) | beyond the GEMM | dense reference |",
        "|---|---|---|---|---|",
    ]
    for (kind, axis), group in itertools.groupby(points, key=lambda point: (point["scheme"], point["axis"])):
        own = list(group)
        if len(own) > 2:
            cells = zip(("ms", "beyond_ms", "dense_ms"), EXPECTED[axis])
            shown = " | ".join(f"{exponent(own, what):.2f} ({expected})" for what, expected in cells)
            lines.append(f"| {kind} | {axis} | {shown} |")
    return "\n".join(lines)


def plot(points: list[dict[str, Any]], file: Path) -> None:
    """Four panels, one for each thing that grows."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    axes = [axis for axis in AXES if any(point["axis"] == axis for point in points)]
    figure, panels = plt.subplots(1, len(axes), figsize=(4 * len(axes), 3.6), squeeze=False, layout="constrained")
    styles = {"ms": ("crosscode", "-o"), "beyond_ms": ("crosscode beyond the GEMM", ":."), "dense_ms": ("dense", "--s")}
    for panel, axis in zip(panels[0], axes):
        for number, kind in enumerate(dict.fromkeys(point["scheme"] for point in points)):
            own = [point for point in points if (point["scheme"], point["axis"]) == (kind, axis)]
            for what, (label, style) in styles.items():
                ys = [max(1e-2, point[what]) for point in own]
                panel.loglog(
                    [point["value"] for point in own], ys, style, color=f"C{number}", ms=4, label=f"{kind}: {label}"
                )
        panel.set(xlabel=axis, title=f"growing {axis}")
        panel.set_xscale("log", base=2)
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("CPU ms a step, one thread")
    panels[0][0].legend(fontsize=7)
    figure.savefig(file, dpi=120)


def main(
    schemes: tuple[str, ...] = KINDS,
    quick: bool = False,
    rounds: int = 3,
    json_file: Path | None = None,
    table_file: Path | None = None,
    plot_file: Path | None = None,
) -> None:
    """Measure how a step's cost grows.

    Args:
        schemes: kinds of scheme: TopK, BatchTopK, "TopK + AuxK", "ReLU sparse", JumpReLU, …
        quick: fewer and smaller sizes.
        rounds: how many interleaved rounds.
        json_file: where every number goes, after each point; what it already has is kept.
        table_file: where the tables go, as Markdown.
        plot_file: where the plot goes.
    """
    points = json.loads(json_file.read_text()) if json_file is not None and json_file.exists() else []
    print(HEADER)
    for kind in schemes:
        for axis, values in (QUICK_AXES if quick else AXES).items():
            for value in values:
                known = (kind, axis, value)
                if any((point["scheme"], point["axis"], point["value"]) == known for point in points):
                    continue
                points.append(measure(kind, axis, value, rounds))
                print(row(points[-1]), flush=True)
                if json_file is not None:
                    json_file.write_text(json.dumps(points, indent=1) + "\n")
    print("\n" + growth(points))
    if plot_file is not None:
        plot(points, plot_file)
    if table_file is not None:
        base = ", ".join(f"{name}={value}" for name, value in vars(BASE).items() if name != "batches")
        how = f"`python benchmarks/speed.py --rounds {rounds}`, torch {torch.__version__}, one thread; else {base}."
        rows = "\n".join(map(row, points))
        table_file.write_text(f"# How a step's cost grows\n\n{how}\n\n{growth(points)}\n\n{HEADER}\n{rows}\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(*sys.argv[2:])
    else:
        import tyro

        tyro.cli(main)
