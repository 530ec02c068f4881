"""Files are data: whatever stands in them, loading runs none of it, allocates nothing absurd, and fails in one line.

That everything comes back bit for bit is tested over the whole product of coders in `laws/test_saving.py`.
"""

import copy
import json
import pickle
import struct
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

import crosscode
from crosscode.activations import BatchTopK, JumpReLU, PerSite, ReLU
from crosscode.batch import Batch
from crosscode.callbacks import Checkpoint
from crosscode.errors import BadInput
from crosscode.initialization import AnthropicTranspose
from crosscode.losses import SummedSquaredError
from crosscode.models import (
    DenseDecoder,
    DenseEncoder,
    SharedDecoder,
    SparseCoder,
    compound_cross_layer_transcoder,
    sae,
)
from crosscode.module import module
from crosscode.saving import NotLoadable, UnknownClass, build, load, save, spec_of
from crosscode.training import Trainer, load_checkpoint, newest_checkpoint, save_checkpoint
from crosscode.training.store import DamagedCheckpoint

REFUSED = (NotLoadable, BadInput)
ONE, TWO = "activation.activations.0.stored_threshold_L", "activation.activations.1.stored_threshold_L"
NESTED = json.dumps({"format": 1, "coder": 0}).replace("0", "[" * 900 + "]" * 900)  # parsed, but no further


def coders() -> dict[str, SparseCoder]:
    return {
        "diffing": SparseCoder(DenseEncoder((2, 1), 4, 6), JumpReLU(6), SharedDecoder(6, 2, (2, 1), 4)),
        "compound": compound_cross_layer_transcoder(3, 2, 4, PerSite([BatchTopK(1), BatchTopK(2)]), skip=True),
        "tied": tied_thresholds(),
    }


def without_checksum(directory: Path) -> Path:
    """A saved coder as in a checkpoint, where the manifest has the checksums: damage gets as far as the reader."""
    spec = directory / "coder.json"
    spec.write_text(json.dumps(json.loads(spec.read_text()) | {"sha256": None}))
    return directory


def assert_loads_or_refuses(directory: Path) -> None:
    """A coder, or an error of ours in one line: anything else is raised."""
    refusal = ""
    try:
        assert isinstance(load(directory), SparseCoder)
    except REFUSED as error:
        refusal = str(error)
    assert "\n" not in refusal


def spec_paths(spec: Any, path: tuple = ()) -> Iterator[tuple]:
    """The place of every value in nested JSON."""
    yield path
    items = spec.items() if isinstance(spec, dict) else enumerate(spec) if isinstance(spec, list) else ()
    for key, value in items:
        yield from spec_paths(value, (*path, key))


def put_at(spec: Any, path: tuple, value: Any) -> Any:
    if not path:
        return value
    spec = copy.copy(spec)
    spec[path[0]] = put_at(spec[path[0]], path[1:], value)
    return spec


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.sampled_from([0, 1, 2, 3, 10**6, 10**9, 10**12, 2**63, -1])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["os.system", "../x", "crosscode.models.sae", "crosscode.models.SparseCoder", "builtins.eval"])
    | st.sampled_from([ONE, TWO])
    | st.sampled_from(["crosscode.activations.TopK", "crosscode.models.DenseEncoder", "crosscode.saving.Path", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["class", "fields", "slice", "k", "n_latents", ONE, TWO]), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(data=st.data())
def test_an_edited_spec_loads_or_is_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any value at any place: either a coder that fits the weights, or one of our errors; never anything else."""
    name = data.draw(st.sampled_from(sorted(coders())))
    directory = tmp_path_factory.getbasetemp() / f"fuzz_{name}"
    save(coders()[name], directory)
    content = json.loads((directory / "coder.json").read_text())
    path = data.draw(st.sampled_from(list(spec_paths(content))))
    (directory / "coder.json").write_text(json.dumps(put_at(content, path, data.draw(JSON))))
    assert_loads_or_refuses(directory)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "builtins.eval",
        "../x",
        "crosscode.saving.os.system",
        "crosscode.models.torch",
        "crosscode.models.sae",
        "crosscode.models.nn.Linear",
        "crosscode.activations.base",
        "crosscode.activations..TopK",
        "crosscode.activations.TopK\n",
        "subprocess.Popen",
        "torch.nn.Linear",
    ],
)
def test_a_spec_cannot_name_foreign_code(name: str) -> None:
    """Only attrs classes that crosscode makes public, by their public name."""
    with pytest.raises(NotLoadable, match="no part of crosscode"):
        build({"class": name, "fields": {}})


@pytest.mark.parametrize("size", [10**9, 10**12, 2**62])
@pytest.mark.parametrize("field", ["n_latents", "n_shared", "d_in", "d_out", "in_dims", "out_dims"])
def test_absurd_sizes_fail_before_anything_is_allocated(field: str, size: int, tmp_path: Path) -> None:
    """A terabyte in the spec is refused at once, wherever it stands, naming the file."""
    n_found = 0
    for name, coder in coders().items():
        load(save(coder, tmp_path / name))
        content = json.loads((tmp_path / name / "coder.json").read_text())
        for path in spec_paths(content):
            if path and path[-1] == field:
                n_found += 1
                for value in [[size], [size, size], [2, size]] if field.endswith("dims") else [size]:
                    (tmp_path / name / "coder.json").write_text(json.dumps(put_at(content, path, value)))
                    started = time.process_time()
                    with pytest.raises(NotLoadable):
                        load(tmp_path / name)
                    assert time.process_time() - started < 1
    assert n_found


def test_numbers_must_be_of_their_kind(tmp_path: Path) -> None:
    """Half a latent, a flag for a number or a word for a flag fail at once, not when first used."""
    save(sae(4, 6, BatchTopK(2)), tmp_path)
    content = json.loads((tmp_path / "coder.json").read_text())
    for field, value in {"k": 2.5, "weighted": "false", "ema_decay": True, "ema_start": "3", "norm": "l3"}.items():
        path = next(path for path in spec_paths(content) if path and path[-1] == field)
        (tmp_path / "coder.json").write_text(json.dumps(put_at(content, path, value)))
        with pytest.raises(NotLoadable, match=field):
            load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, NESTED, "null", "[]", '"a"', '{"format": 1}'])
def test_a_spec_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    """Cut short, endlessly nested, of another format: one line that names the file."""
    save(sae(4, 6, ReLU()), tmp_path)
    (tmp_path / "coder.json").write_text(text)
    with pytest.raises(NotLoadable, match=r"coder\.json"):
        load(tmp_path)
    (tmp_path / "coder.json").write_bytes(b"\xff\xfe" + text.encode())
    with pytest.raises(NotLoadable, match=r"coder\.json"):
        load(tmp_path)


def test_weights_cut_short_anywhere_are_refused(tmp_path: Path) -> None:
    """Every length of the file but the whole one; deleted files are named."""
    save(sae(4, 6, ReLU()), tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for n in [*range(0, len(whole), 29), len(whole) - 1]:
        file.write_bytes(whole[:n])
        with pytest.raises(NotLoadable, match=r"model\.safetensors"):
            load(tmp_path)
    file.write_bytes(whole + b"\0")
    with pytest.raises(NotLoadable, match=r"model\.safetensors"):
        load(tmp_path)
    for name in ("model.safetensors", "coder.json"):
        save(sae(4, 6, ReLU()), tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(BadInput, match=name):
            load(tmp_path)
    with pytest.raises(BadInput, match="nowhere"):
        load(tmp_path / "nowhere")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(data=st.data())
def test_an_altered_header_loads_or_is_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Bytes of the safetensors header overwritten: one of our errors, or a coder of the right shapes."""
    directory = without_checksum(save(sae(4, 6, ReLU()), tmp_path_factory.getbasetemp() / "header"))
    file = directory / "model.safetensors"
    content = bytearray(file.read_bytes())
    n_header = 8 + struct.unpack("<Q", content[:8])[0]
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, n_header - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(content)
    assert_loads_or_refuses(directory)


@given(data=st.data())
def test_weights_that_were_altered_are_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Any bit of the weights' file."""
    directory = save(sae(4, 6, ReLU()), tmp_path_factory.getbasetemp() / "altered")
    file = directory / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(content)
    with pytest.raises(NotLoadable, match="has been altered"):
        load(directory)


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    """Named, before anything is read."""
    with pytest.raises(BadInput, match="device 'gpu' is not available here"):
        load(tmp_path / "nothing", device="gpu")


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    """Integers cannot be weights."""
    from safetensors.torch import load_file, save_file

    without_checksum(save(sae(4, 6, ReLU()), tmp_path))
    weights = load_file(tmp_path / "model.safetensors")
    weights["encoder.W_enc_XiDiL"] = weights["encoder.W_enc_XiDiL"].to(torch.int64)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(NotLoadable, match=r"W_enc_XiDiL is torch\.int64"):
        load(tmp_path)


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither saving nor loading touches pickle, and a pickle in place of the weights stays data."""

    def forbidden(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "dump", "dumps", "Unpickler", "Pickler"):
        monkeypatch.setattr(pickle, name, forbidden)
    trainer = a_trainer()
    trainer.train()
    load(save(trainer.model, tmp_path / "coder"))
    load_checkpoint(a_trainer(), save_checkpoint(trainer, tmp_path / "run"))
    monkeypatch.undo()
    (tmp_path / "coder" / "model.safetensors").write_bytes(pickle.dumps({"encoder": 1}))
    with pytest.raises(NotLoadable):
        load(tmp_path / "coder")


@module
class TwiceNamedDecoder(DenseDecoder):
    """A user's decoder whose weights have two names: its state holds one tensor twice."""

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.W_alias_LXoDo = self.W_dec_LXoDo


def test_tied_weights_of_a_users_own_can_be_saved(tmp_path: Path) -> None:
    """Tensors that share memory come back equal, and tied."""
    coder = SparseCoder(DenseEncoder((), 4, 6), ReLU(), TwiceNamedDecoder(6, (), 4))
    AnthropicTranspose(1.0)(coder, [])
    decoder = load(save(coder, tmp_path), classes=[TwiceNamedDecoder]).decoder
    assert torch.equal(decoder.W_dec_LXoDo, coder.decoder.W_dec_LXoDo)
    assert decoder.W_alias_LXoDo is decoder.W_dec_LXoDo


def tied_thresholds() -> SparseCoder:
    """A compound coder whose layers share one vector of thresholds, tied by hand."""
    coder = compound_cross_layer_transcoder(3, 2, 4, PerSite([JumpReLU(4), JumpReLU(4)]))
    first, second = coder.activation.activations
    second.stored_threshold_L = first.stored_threshold_L
    return coder


def test_weights_that_modules_share_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    """Whoever steps one of them steps the other, as before; the spec says which names are one tensor."""
    save(tied_thresholds(), tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert ONE in file.keys()  # noqa: SIM118
        assert TWO not in file.keys()  # noqa: SIM118
    assert json.loads((tmp_path / "coder.json").read_text())["tied"] == {TWO: ONE}
    first, second = load(tmp_path).activation.activations
    assert first.stored_threshold_L is second.stored_threshold_L
    assert save(load(tmp_path), tmp_path / "again").is_dir()
    assert (tmp_path / "again" / "coder.json").read_text() == (tmp_path / "coder.json").read_text()


@pytest.mark.parametrize(
    "tied",
    [
        None,
        [TWO, ONE],
        {TWO: 1},
        {TWO: [ONE]},
        {TWO: "encoder.b_enc"},  # no such tensor
        {TWO: "scale_in_Xi"},  # of another shape
        {TWO: TWO},
        {TWO: ONE, ONE: TWO},
        {TWO: ONE, "os.system": ONE},
        {TWO: ONE, "encoder.b_enc_L": ONE},  # which has weights of its own
        {},  # then a weight is missing
    ],
)
def test_ties_that_cannot_be_are_refused(tied: Any, tmp_path: Path) -> None:
    """Names must be the coder's, of one shape, and stored once."""
    content = json.loads((save(tied_thresholds(), tmp_path) / "coder.json").read_text())
    (tmp_path / "coder.json").write_text(json.dumps(content | {"tied": tied}))
    with pytest.raises(NotLoadable, match=r"coder\.json"):
        load(tmp_path)


class Outer:
    """Holds another class of the name of one of crosscode's."""

    @module
    class ReLU(ReLU):
        """A user's, of another full name."""


@pytest.mark.parametrize("name", ["__main__.Mine", "lab.Mine", "a.package.Mine", "__main__.f.<locals>.Mine"])
def test_a_class_is_found_by_its_own_name_where_that_is_unique(name: str) -> None:
    """A file that was run calls it otherwise than one that is imported; a name of crosscode's stays crosscode's."""

    @module
    class Mine(ReLU):
        """Defined here."""

    spec = {"class": name, "fields": {}}
    assert type(build(spec, [Outer.ReLU, Mine])) is Mine
    assert type(build({"class": "crosscode.activations.ReLU", "fields": {}}, [Outer.ReLU])) is ReLU
    other = type("Mine", (Mine,), {"__module__": "elsewhere"})
    with pytest.raises(UnknownClass, match="no part of crosscode"):
        build(spec, [Mine, other])
    assert type(build({"class": "elsewhere.Mine", "fields": {}}, [Mine, module(other)])) is other


@module
class Holding(ReLU):
    """An activation with a field of any kind."""

    held: Any = None


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"a": 1}, "coder.activation.held={'a': 1} cannot be saved"),
        (torch.zeros(3), "Make it a buffer or parameter"),
        (print, "coder.activation.held=<built-in function print> cannot be saved: .* with a __call__"),
        ([1, {2}], r"coder.activation.held\[1\]=.2. cannot be saved"),
        (nn.Linear(4, 6), "coder.activation.held is a Linear, which cannot be saved: make its class a @module"),
    ],
)
def test_what_is_no_data_cannot_be_saved(held: Any, said: str, tmp_path: Path) -> None:
    """Field and value are named with the cure; nothing is written, and with checkpoints no run begins."""
    coder = sae(4, 6, Holding(held))
    with pytest.raises(BadInput, match=said):
        save(coder, tmp_path / "coder")
    assert not (tmp_path / "coder").exists()
    with pytest.raises(BadInput, match=said):
        a_trainer(model=coder, optimizer=torch.optim.Adam(coder.parameters()), callbacks=[Checkpoint(tmp_path)])


def test_a_spec_is_readable() -> None:
    """Public names, and every choice with its value."""
    spec = spec_of(sae(4, 6, BatchTopK(2, weighted=False)))
    assert spec["class"] == "crosscode.models.SparseCoder"
    assert spec["fields"]["activation"]["class"] == "crosscode.activations.BatchTopK"
    assert spec["fields"]["activation"]["fields"]["k"] == 2
    assert spec["fields"]["skip"] is None


# --- checkpoints -----------------------------------------------------------------------------------------------------


def a_trainer(**given: Any) -> Trainer:
    coder = sae(4, 6, BatchTopK(2))
    generator = torch.Generator().manual_seed(0)
    defaults = {
        "model": coder,
        "data": [Batch.autoencode(torch.randn(16, 4, generator=generator)) for _ in range(3)],
        "init": [AnthropicTranspose(1.0)],
        "loss": SummedSquaredError(),
        "optimizer": torch.optim.Adam(coder.parameters()),
        "lr": 1e-2,
        "num_steps": 4,
    }
    return Trainer(**{**defaults, **given})


def test_tied_weights_resume_tied(tmp_path: Path) -> None:
    """A checkpoint holds them once; the trainer that goes on has them tied, and so has the coder that is read of it."""

    def made() -> Trainer:
        coder = SparseCoder(DenseEncoder((), 4, 6), ReLU(), TwiceNamedDecoder(6, (), 4))
        return a_trainer(model=coder, optimizer=torch.optim.Adam(coder.parameters()))

    trainer = made()
    trainer.train()
    checkpoint = save_checkpoint(trainer, tmp_path)
    other = made()
    load_checkpoint(other, checkpoint)
    for decoder in (other.model.decoder, load(checkpoint, [TwiceNamedDecoder]).decoder):
        assert decoder.W_alias_LXoDo is decoder.W_dec_LXoDo
        assert torch.equal(decoder.W_alias_LXoDo, trainer.model.decoder.W_dec_LXoDo)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with whole checkpoints of steps 2 and 4."""
    trainer = a_trainer(callbacks=[lambda trainer, report: report.step % 2 or save_checkpoint(trainer, tmp_path)])
    trainer.train()
    return tmp_path


FILES = ("coder.json", "model.safetensors", "optimizer.safetensors", "state.safetensors", "state.json", "MANIFEST.json")


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "deleted":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif how == "emptied":
        file.write_bytes(b"")
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["deleted", "truncated", "emptied", "flipped"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(name: str, how: str, run: Path) -> None:
    """Every file in turn: the warning names it, the older checkpoint is found, and the damaged one is not loaded."""
    newest = run / "step_000000004"
    assert sorted(file.name for file in newest.iterdir()) == sorted(FILES)
    assert newest_checkpoint(run) == newest
    damage(newest / name, how)
    with pytest.warns(UserWarning, match=f"step_000000004 is damaged.*{name.replace('.', '[.]')}"):
        assert newest_checkpoint(run) == run / "step_000000002"
    with pytest.raises(DamagedCheckpoint, match=name):
        load_checkpoint(a_trainer(), newest)
    trainer = a_trainer()
    load_checkpoint(trainer, run / "step_000000002")
    assert trainer.state.step == 2


def test_no_whole_checkpoint_is_none(run: Path) -> None:
    """All damaged, or no directory at all."""
    for step in (2, 4):
        damage(run / f"step_00000000{step}" / "model.safetensors", "flipped")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert newest_checkpoint(run) is None
    assert len(caught) == 2
    assert newest_checkpoint(run / "nowhere") is None


def test_a_manifest_cannot_point_elsewhere(run: Path) -> None:
    """Names with slashes or dots up are damage, even with a fitting checksum."""
    import hashlib

    manifest = run / "step_000000004" / "MANIFEST.json"
    body = json.dumps({"files": {"../../secret": {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}}})
    manifest.write_text(f"{hashlib.sha256(body.encode()).hexdigest()}\n{body}\n")
    with pytest.warns(UserWarning, match="names"):
        assert newest_checkpoint(run) == run / "step_000000002"


def test_what_a_killed_run_left_half_written_is_ignored(run: Path) -> None:
    """Temporary directories are no checkpoints, and do not stand in the way of the next one."""
    (run / ".writing_6_123").mkdir()
    (run / "step_000000006").mkdir()
    with pytest.warns(UserWarning, match="step_000000006 is damaged"):
        assert newest_checkpoint(run) == run / "step_000000004"
    trainer = a_trainer(num_steps=6)
    trainer.train()
    assert save_checkpoint(trainer, run) == run / "step_000000006" == newest_checkpoint(run)


def test_only_the_newest_checkpoints_stay(tmp_path: Path) -> None:
    """`keep` of them; the rest is deleted."""
    trainer = a_trainer(
        num_steps=5, callbacks=[lambda trainer, report: save_checkpoint(trainer, tmp_path, keep=2) and None]
    )
    trainer.train()
    assert sorted(child.name for child in tmp_path.iterdir()) == ["step_000000004", "step_000000005"]


def test_a_checkpoint_of_another_configuration_lists_what_differs(run: Path) -> None:
    """Each differing field with both values; equal ones are not mentioned."""
    for given_, said in [
        ({"lr": 1e-3}, "lr.value: 0.01 -> 0.001"),
        ({"num_steps": 9}, "num_steps: 4 -> 9"),
        ({"init": [AnthropicTranspose(0.5)]}, "init.0.norm: 1.0 -> 0.5"),
        ({"model": (coder := sae(4, 6, BatchTopK(3))), "optimizer": torch.optim.Adam(coder.parameters())}, "k: 2 -> 3"),
        ({"accumulate": 2}, "accumulate: 1 -> 2"),
    ]:
        with pytest.raises(BadInput, match="another configuration") as error:
            load_checkpoint(a_trainer(**given_), run / "step_000000004")
        assert said in str(error.value)
        assert str(error.value).count("->") == 1


def test_a_checkpoint_is_a_saved_coder(run: Path) -> None:
    """`crosscode.load` reads it as any other."""
    trainer = a_trainer()
    trainer.train()
    x_BD = torch.randn(5, 4)
    mid_run = crosscode.load(run / "step_000000004")
    assert torch.equal(mid_run.encoder.weights(), trainer.model.encoder.weights())
    assert mid_run(x_BD).shape == (5, 4)
