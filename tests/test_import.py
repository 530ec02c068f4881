"""Importing the package is cheap and touches nothing."""

import json
import subprocess
import sys

WATCH = """
import sys, time, json, logging, os, random, warnings
import numpy
import torch

events = []

def hook(event, arguments):
    if event.startswith("socket.") or event in ("subprocess.Popen", "os.mkdir", "os.remove", "os.rename"):
        events.append(event)
    if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        events.append(f"open {arguments[0]}")

def state():
    return [
        torch.get_rng_state().tolist(),
        repr(random.getstate()),
        repr(numpy.random.get_state()),
        repr(logging.root.handlers),
        logging.root.level,
        torch.get_num_threads(),
        str(torch.get_default_dtype()),
        torch.is_grad_enabled(),
        dict(os.environ),
        os.getcwd(),
    ]

before = state()
sys.addaudithook(hook)
start = time.process_time()
import crosscode
seconds = time.process_time() - start
heavy = {"transformers", "transformer_lens", "wandb", "datasets", "matplotlib"} & set(sys.modules)
print(json.dumps({"seconds": seconds, "heavy": sorted(heavy), "events": events, "same": before == state()}))
"""


def test_importing_is_cheap_and_touches_nothing() -> None:
    """In a fresh process: under 1.5 s of its own time more than torch, no heavy library, socket, file or state."""
    done = subprocess.run([sys.executable, "-B", "-c", WATCH], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout)
    assert seen["seconds"] < 1.5
    assert seen["heavy"] == []
    assert seen["events"] == []
    assert seen["same"], "random state, logging, threads, dtype, environment or folder changed"
