"""Importing the package is cheap and touches nothing."""

import json
import subprocess
import sys

import pytest

WATCH = """
import sys, time, json, logging, os, random, warnings
import numpy
import torch

events = []

def hook(event, arguments):
    if event.startswith("socket.") or event in ("subprocess.Popen", "os.mkdir", "os.remove", "os.rename", "urllib.Request"):
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


@pytest.fixture(scope="module")
def seen() -> dict:
    """What an import in a fresh process did, in seconds of its own processor time and audited events."""
    done = subprocess.run([sys.executable, "-B", "-c", WATCH], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_importing_is_fast(seen: dict) -> None:
    """Under 1.5 s more than importing torch."""
    assert seen["seconds"] < 1.5


def test_importing_loads_no_heavy_library(seen: dict) -> None:
    """Language models, data sets, tracking and plotting are loaded by who uses them."""
    assert seen["heavy"] == []


def test_importing_opens_no_socket_and_writes_no_file(seen: dict) -> None:
    """Nor does it start a process or make a folder."""
    assert seen["events"] == []


def test_importing_leaves_global_state_alone(seen: dict) -> None:
    """Random states, logging, threads, the default dtype, gradients, the environment."""
    assert seen["same"]
