"""A thread reads ahead: the same batches sooner, the same errors, and nothing of it is left behind."""

import gc
import itertools
import subprocess
import sys
import threading
import time
import traceback

import attrs
import pytest
import torch

from crosscode.activations import TopK
from crosscode.data import Dataloader, Harvester, TokenSequences, dataloader
from crosscode.errors import CrosscodeError
from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.models import sae
from crosscode.training import Trainer


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "crosscode reading ahead"]


def gone(deadline=20.0):
    """Whether every reading thread ends by itself."""
    end = time.monotonic() + deadline
    while readers() and time.monotonic() < end:
        time.sleep(0.005)
    return not readers()


def take_all(iterator, served):
    for batch in iterator:
        served.append(batch)


@pytest.fixture
def loader(fake_model, documents):
    def make(ahead=4, model=None, n_documents=60, batch_size=16, **options):
        model = model or fake_model()
        sequences = TokenSequences(documents(n_documents), model, sequence_length=8, split="all", shuffle_sequences=16)
        options = {"shuffle_buffer": 128, "squeeze": True} | options
        return Dataloader(sequences, Harvester(model, "a", sequences_at_once=2), batch_size, **options, ahead=ahead)

    return make


def a_trainer(data, *callbacks, num_steps=12):
    coder = sae(data.d_in, 8, TopK(2))
    return Trainer(
        model=coder,
        data=data,
        init=[AnthropicTranspose()],
        loss=SummedSquaredError(),
        optimizer=torch.optim.Adam(coder.parameters()),
        lr=1e-2,
        num_steps=num_steps,
        callbacks=callbacks,
    )


@pytest.mark.parametrize("ahead", [1, 3, 1000])
def test_batches_and_cursors_are_the_same(loader, ahead):
    """Over two epochs, however far it reads ahead; and the thread ends with the data."""
    plain, reading = iter(loader(0, epochs=2)), iter(loader(ahead, epochs=2))

    for expected, batch in itertools.zip_longest(plain, reading):
        assert torch.equal(batch.inputs_BXiDi, expected.inputs_BXiDi)
        assert reading.cursor() == plain.cursor()
    assert gone()


def test_it_is_ahead_and_no_further_than_it_may_be(loader, fake_model):
    """What is made while nobody asks: as many batches as may wait, and the one that has no room."""

    def harvested(ahead):
        model = fake_model()
        iterator = iter(loader(ahead, model=model, batch_size=8, shuffle_buffer=32))
        next(iterator)
        count = -1
        while count != len(model.harvested):
            count = len(model.harvested)
            time.sleep(0.2)
        return count

    counts = [harvested(ahead) for ahead in (0, 2, 8)]
    assert counts[0] < counts[1] < counts[2] < len(list(loader(0).harvests()))


def test_an_error_comes_in_its_turn_with_its_cause(loader, fake_model):
    """Batches before it are served; it is raised as it was, its traceback leads to where it happened; then no more."""

    class Broken(fake_model):
        def harvest(self, tokens_HS, hookpoints):
            if len(self.harvested) == 12:
                try:
                    raise OSError("the disk is gone")
                except OSError as error:
                    raise CrosscodeError("no activations") from error
            return super().harvest(tokens_HS, hookpoints)

    counts = []
    for ahead in (0, 100):
        iterator, served = iter(loader(ahead, model=Broken())), []
        with pytest.raises(CrosscodeError, match="no activations") as raised:
            take_all(iterator, served)
        counts.append(len(served))
        assert isinstance(raised.value.__cause__, OSError)
        assert "harvest" in [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
        assert next(iterator, None) is None
    assert counts[0] == counts[1] > 0
    assert gone()


def test_training_leaves_no_thread_behind(loader):
    """Not at its end, not when a callback fails, not after Ctrl-C; and what it read ahead is read again on resume."""

    def failing(error):
        def callback(trainer, report):
            if report.step == 5:
                raise error

        return callback

    a_trainer(loader()).train()
    assert readers() == []
    for error in (RuntimeError("power cut"), KeyboardInterrupt()):
        with pytest.raises(type(error)):
            a_trainer(loader(), failing(error)).train()
        assert readers() == []

    weights = []
    for ahead in (0, 4):
        torch.manual_seed(0)
        trainer = a_trainer(loader(ahead), num_steps=5)
        trainer.train()
        torch.manual_seed(1)
        resumed = a_trainer(loader(4 - ahead))
        resumed.load_state_dict(trainer.state_dict())
        resumed.train()
        weights.append(resumed.model.encoder.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_an_iterator_that_is_closed_or_forgotten_stops(loader):
    """There are no batches after it is closed; its thread ends soon after nobody holds it."""
    closed, forgotten = iter(loader(1000)), iter(loader(1000))
    next(closed), next(forgotten)
    closed.close()
    assert next(closed, None) is None
    del forgotten
    gc.collect()
    assert gone()


def test_a_process_ends_though_a_thread_reads_ahead(tmp_path):
    """At once and cleanly, with an iterator that is still held and a thread in the middle of a product."""
    code = """
import torch
from crosscode.data.ahead import ReadAhead
def forever(stopped):
    a = torch.randn(300, 300)
    while not stopped():
        yield a @ a
reading = ReadAhead(forever, 10)
next(reading)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout, done.stderr) == ("done\n", "")


def test_a_model_is_used_by_one_thread_at_a_time(loader, fake_model):
    """Another loader harvests from it here while the thread does there; both get what is theirs."""

    class Busy(fake_model):
        inside = clashes = 0

        def harvest(self, tokens_HS, hookpoints):
            self.inside += 1
            self.clashes += self.inside > 1
            time.sleep(0.002)
            acts_HSPD = super().harvest(tokens_HS, hookpoints)
            self.inside -= 1
            return acts_HSPD

    model = Busy()
    reading, other = iter(loader(1000, model=model)), iter(loader(0, model=model))
    expected = iter(loader(0))
    for _ in range(10):
        wanted = next(expected).inputs_BXiDi
        assert torch.equal(next(other).inputs_BXiDi, wanted)
        assert torch.equal(next(reading).inputs_BXiDi, wanted)
    assert model.clashes == 0


def test_it_reads_ahead_by_itself_where_there_is_something_to_do_it_with(loader, fake_model, monkeypatch):
    """With cores that torch leaves idle, or a model on a GPU: as many batches as a block has. Else not, unless told."""

    class OnGPU(fake_model):
        device = torch.device("cuda")

    monkeypatch.setattr(dataloader, "n_cores", lambda: torch.get_num_threads())
    assert loader(None).batches_ahead == 0
    assert loader(3).batches_ahead == 3
    assert loader(None, model=OnGPU()).batches_ahead == 4
    monkeypatch.setattr(dataloader, "n_cores", lambda: torch.get_num_threads() + 1)
    assert loader(None).batches_ahead == 4
    assert loader(0).batches_ahead == 0
    assert attrs.evolve(loader(None), batch_size=128).batches_ahead == 1
