"""An offline run asks no network for anything."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import atexit, socket, sys
from pathlib import Path
asked = []
sys.addaudithook(lambda event, arguments: asked.append(arguments[0]) if event == "socket.getaddrinfo" else None)

atexit.register(lambda: print("asked for", sorted({{str(host) for host in asked}})))  # first in, last out

import torch
from crosscode import Batch, Trainer
from crosscode.activations import TopK
from crosscode.callbacks import Log, WeightsAndBiases
from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.models import sae

coder = sae(4, 8, TopK(2))
log = Log(WeightsAndBiases("offline", directory=Path({directory!r})), every=1)
Trainer(model=coder, data=[Batch.autoencode(torch.randn(16, 4))], loss=SummedSquaredError(), callbacks=[log],
        init=[AnthropicTranspose()], optimizer=torch.optim.Adam(coder.parameters()), lr=1e-3, num_steps=3).train()
"""


def test_no_name_is_looked_up(tmp_path: Path) -> None:
    """Not by us, and not by wandb's own telemetry; the run's files are there."""
    program = PROGRAM.format(directory=str(tmp_path))
    usual = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=usual)
    assert done.returncode == 0, done.stderr
    assert "asked for []" in done.stdout
    assert list((tmp_path / "wandb").glob("offline-run-*"))
