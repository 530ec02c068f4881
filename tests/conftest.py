"""What every test runs under: no network, one quiet wandb, few threads, and shape checks on the records too."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import torch
from beartype import beartype
from hypothesis import settings
from jaxtyping import jaxtyped

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton
settings.register_profile("crosscode", deadline=None)  # how long an example takes depends on what else runs
settings.load_profile("crosscode")

torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else int(os.environ.get("OMP_NUM_THREADS", 2)))
sys.path.insert(0, str(Path(__file__).parent))  # `import strategies`, whatever pytest's import mode


def records() -> Iterator[type]:
    """The attrs classes that hold tensors, in the modules of the package that the collected tests import."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "crosscode":
            for record in list(vars(module).values()):
                ours = isinstance(record, type) and attrs.has(record) and record.__module__ == name
                if ours and any("jaxtyping" in repr(field.type) for field in attrs.fields(record)):
                    yield record


def pytest_collection_finish() -> None:
    """Check records when they are made: jaxtyping's import hook does not see the `__init__` that attrs writes."""
    for record in records():
        record.__init__ = jaxtyped(typechecker=beartype)(record.__init__)


@pytest.fixture(autouse=True, scope="session")
def wandb_writes_to_a_temporary_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No run of the tests leaves a folder behind in the checkout or at home."""
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        os.environ[name] = str(tmp_path_factory.getbasetemp())
