"""What the pages show runs as it stands."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.models import sae
from crosscode.training import Trainer, load_checkpoint, newest_checkpoint

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def extending() -> dict[str, Any]:
    """The names of `extending.md` after all of its blocks ran, one behind the other."""
    names: dict[str, Any] = {"__name__": "extending"}
    for block in re.findall(r"```python\n(.*?)```", (DOCS / "extending.md").read_text(), re.DOTALL):
        exec(compile(block, "extending.md", "exec"), names)
    return names


def test_every_part_on_the_page_works_in_a_run(extending: dict[str, Any]) -> None:
    """The last trainer learnt, resampled what was dead, and was stopped by its own callback or came to its end."""
    trainer = extending["trainer"]
    with torch.no_grad():
        error = (trainer.model(extending["acts_ND"]) - extending["acts_ND"]).square().sum()
    assert float(error / (extending["acts_ND"] - extending["acts_ND"].mean(0)).square().sum()) < 0.5
    assert trainer.state.stopped == (trainer.state.step < trainer.num_steps)


def test_the_pages_own_data_resumes_where_it_was(extending: dict[str, Any], tmp_path: Path) -> None:
    """To the bit: a run cut at its last checkpoint reads the rows that would have followed."""
    from crosscode.callbacks import Checkpoint

    np.save(tmp_path / "acts.npy", extending["acts_ND"][:500].numpy())

    def new(**given: Any) -> Trainer:
        coder = sae(8, 16, extending["TopK"](3))
        return Trainer(
            model=coder,
            data=extending["OnDisk"](str(tmp_path / "acts.npy")),
            init=[AnthropicTranspose(norm=1.0)],
            loss=SummedSquaredError(),
            optimizer=torch.optim.Adam(coder.parameters()),
            lr=3e-3,
            num_steps=9,
            **given,
        )

    whole = new(callbacks=[Checkpoint(tmp_path / "run", every=5)])
    whole.train()
    (tmp_path / "run" / newest_checkpoint(tmp_path / "run").name).rename(tmp_path / "last")
    resumed = new()
    load_checkpoint(resumed, newest_checkpoint(tmp_path / "run"))
    assert resumed.state.step == 5
    resumed.train()
    assert torch.equal(whole.model.encoder.W_enc_XiDiL, resumed.model.encoder.W_enc_XiDiL)


def test_the_page_names_every_property_of_a_trace() -> None:
    """An author finds there all that a loss may look at."""
    from crosscode import Trace

    page = (DOCS / "extending.md").read_text()
    public = [name for name, value in vars(Trace).items() if not name.startswith("_") and name not in ("of",)]
    assert [name for name in public if f"`{name}" not in page and f" {name}" not in page] == []
