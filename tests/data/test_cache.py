"""The cache never lies, never stops a run, and spares the second run its harvest."""

import itertools
import json
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscode.commands import main
from crosscode.data import ActivationCache, Dataloader, Harvester, TokenSequences, load_language_model, shards
from crosscode.data.cache import list_cache, prune_cache, verify_cache
from crosscode.data.harvester import EXPECTED
from crosscode.data.shards import key_of
from crosscode.data.token_sequences import TokenSequence
from crosscode.data.transformer_lens_model import TransformerLensModel
from crosscode.errors import BadInput, NumericalError
from crosscode.kernels.allocator import ReusedMemory

TOKENS_HS = torch.tensor([[0, 5, 6], [0, 7, 8]])


def files(directory, suffix=""):
    return sorted(file for file in Path(directory).rglob("*") if file.is_file() and file.name.endswith(suffix))


@pytest.mark.parametrize("model_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [None, torch.bfloat16])
def test_cold_and_warm_agree_to_the_bit(fake_model, tmp_path, model_dtype, stored):
    """Fresh activations are rounded as stored ones are; bfloat16 works (spec fault 48)."""
    model = fake_model(dtype=model_dtype)

    cold = ActivationCache(tmp_path, dtype=stored).get(model, ["a", "b"], TOKENS_HS)
    cache = ActivationCache(tmp_path, dtype=stored)
    warm = cache.get(model, ["a", "b"], TOKENS_HS)

    assert cold.dtype == warm.dtype == (stored or model_dtype)
    assert torch.equal(cold, warm)
    assert (len(model.harvested), cache.hits, cache.misses) == (1, 1, 0)


def test_a_second_run_harvests_nothing_and_does_not_load_the_model(saved_model, documents, tmp_path):
    """Same batches to the bit, in a loader whose model has no weights in memory."""

    def run():
        model = load_language_model(str(saved_model("Llama")))
        cache = ActivationCache(tmp_path, dtype=torch.bfloat16)
        harvester = Harvester(model, ["blocks.1.hook_resid_post"], cache=cache)
        sequences = TokenSequences(documents(20), model, sequence_length=16)
        batches = [batch.inputs_BXiDi for batch in Dataloader(sequences, harvester, 50, epochs=1)]
        return model, cache, torch.cat(batches)

    first_model, _, cold = run()
    second_model, cache, warm = run()

    assert (first_model.loaded, second_model.loaded, cache.misses) == (True, False, 0)
    assert torch.equal(cold, warm)


@pytest.mark.parametrize("skip", [False, True])
def test_a_shard_that_is_not_finite_where_the_model_is(fake_model, tmp_path, caplog, skip):
    """Whole, with its checksum, and yet wrong: it is dropped and harvested again; asked to skip, its tokens are."""
    model, sequences = fake_model(), [TokenSequence(0, torch.tensor([0, 5, 6]), torch.tensor([0, 0, 0]))]

    def harvest():
        return Harvester(model, ["a", "b"], cache=ActivationCache(tmp_path), skip_not_finite=skip).harvest(sequences)

    right = harvest()
    (file,) = files(tmp_path)
    acts = shards.read_shard(file, (1, 3, 2, 3), ReusedMemory()).clone()
    acts[0, 2, 1, 0] = float("nan")
    key = key_of(file)
    file.unlink()
    shards.write_shard(tmp_path / key[:2], key, acts, {})

    again = harvest()

    assert again.counts.not_finite == skip
    if not skip:
        assert torch.equal(again.acts_NMPD, right.acts_NMPD)
        (line,) = [record.getMessage() for record in caplog.records]
        assert "NaN or infinity where the model gives none" in line
        assert torch.equal(harvest().acts_NMPD, right.acts_NMPD)
        assert len(caplog.records) == 1


@pytest.mark.parametrize("stored", [None, torch.float16])
def test_what_a_cache_cannot_hold_is_told_from_what_a_model_gives(fake_model, tmp_path, stored):
    """bfloat16 beyond 65,504 is infinite in a float16 cache, cold and warm; masked tokens may overflow."""

    class Large(fake_model):
        def harvest(self, tokens_HS, hookpoints):
            acts_HSPD = super().harvest(tokens_HS, hookpoints)
            acts_HSPD[tokens_HS == large] *= 1e5
            return acts_HSPD

    sequences = [TokenSequence(0, torch.tensor([0, 5, 6, 5]), torch.tensor([7, 7, 7, 7]))]
    for large, refused in ((0, False), (6, stored is not None)):
        model = Large(dtype=torch.bfloat16)
        for _ in range(2):
            cache = ActivationCache(tmp_path / str(large), dtype=stored)
            harvester = Harvester(model, "a", cache=cache, max_norm_multiple=None)
            if not refused:
                assert harvester.harvest(sequences).acts_NMPD.isfinite().all()
                continue
            with pytest.raises(NumericalError, match=r"'fake' at a: .* \(float16\) in document 7") as error:
                harvester.harvest(sequences)
            assert "The model's own bfloat16 is finite there: another cache_dtype holds it." in str(error.value)


def test_the_disk_is_told_a_few_harvests_ahead(fake_model, documents, tmp_path):
    """Of every harvest once, before it is read; of no more of them than may lie in memory."""
    told, ahead = [], []

    class Noted(ActivationCache):
        def expect(self, model, hookpoints, tokens_HS):
            told.append(tokens_HS)
            super().expect(model, hookpoints, tokens_HS)

        def get(self, model, hookpoints, tokens_HS):
            ahead.append(len(told) - len(ahead))
            assert torch.equal(told[len(ahead) - 1], tokens_HS)
            return super().get(model, hookpoints, tokens_HS)

    model = fake_model()
    harvester = Harvester(model, ["a"], sequences_at_once=2, cache=Noted(tmp_path))
    n_harvests = len(list(harvester.over(TokenSequences(documents(20), model, sequence_length=8, split="all"))))
    assert n_harvests > 2 * EXPECTED
    assert ahead == [EXPECTED + 1] * (n_harvests - EXPECTED) + list(range(EXPECTED, 0, -1))


def test_whatever_activations_depend_on_changes_the_key(fake_model, tmp_path):
    """Model, revision, dtype, hookpoints and their order, tokens and their shape, the stored dtype (spec fault 48)."""
    model = fake_model(widths=dict.fromkeys(["a", "bc", "ab", "c"], 3))
    other = fake_model(widths=model.widths)
    other.identity = "fake@2:torch.float32"
    half = fake_model(dtype=torch.bfloat16)
    cache = ActivationCache(tmp_path)

    keys = [
        cache.key(model, ["a", "bc"], TOKENS_HS),
        cache.key(model, ["ab", "c"], TOKENS_HS),
        cache.key(model, ["bc", "a"], TOKENS_HS),
        cache.key(model, ["a"], TOKENS_HS),
        cache.key(other, ["a", "bc"], TOKENS_HS),
        cache.key(half, ["a", "bc"], TOKENS_HS),
        cache.key(model, ["a", "bc"], TOKENS_HS + 1),
        cache.key(model, ["a", "bc"], TOKENS_HS.reshape(3, 2)),
        ActivationCache(tmp_path, dtype=torch.bfloat16).key(model, ["a", "bc"], TOKENS_HS),
    ]

    assert len(set(keys)) == len(keys)
    assert cache.key(model, ["a", "bc"], TOKENS_HS.int()) == keys[0]


def test_a_hub_model_is_known_by_its_commit():
    """Two commits behind one branch never share an entry; without a commit the revision tells them apart."""

    def identity(commit, revision):
        model = TransformerLensModel(
            name="it", source="somebody/model", revision=revision, device=torch.device("cpu"), dtype=torch.float32
        )
        model.__dict__["config"] = SimpleNamespace(_commit_hash=commit)
        return model.identity

    assert identity("a1", "main") != identity("b2", "main")
    assert identity("a1", "main") == identity("a1", None)
    assert identity(None, "main") == identity(None, None) != identity(None, "v2")


def test_names_never_become_paths(fake_model, tmp_path):
    """Whatever a model or a hookpoint is called, all files lie in the directory under hexadecimal names."""
    model = fake_model("../../up", widths={"/etc/passwd": 3, "..": 3})
    ActivationCache(tmp_path / "cache").get(model, ["/etc/passwd", ".."], TOKENS_HS)

    assert files(tmp_path) == files(tmp_path / "cache")
    assert all(set(file.name.split(".")[0]) <= set("0123456789abcdef") for file in files(tmp_path))


def forged(shard, **changed):
    """A shard with other contents under a name whose checksum is right."""
    data = shard.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8 : 8 + length]) | changed).encode()
    content = len(header).to_bytes(8, "little") + header + data[8 + length :]
    return content, shard.with_name(f"{key_of(shard)}.{xxhash.xxh3_128_hexdigest(content)}.safetensors")


def forge(shard, **changed):
    content, file = forged(shard, **changed)
    shard.unlink()
    file.write_bytes(content)


ABOUT = {"shape": [2, 3, 1, 3], "data_offsets": [0, 72], "dtype": "F32"}
DAMAGES = {
    "truncated": lambda shard: shard.write_bytes(shard.read_bytes()[:-3]),
    "empty": lambda shard: shard.write_bytes(b""),
    "grown": lambda shard: shard.write_bytes(shard.read_bytes() + b"0"),
    "huge": lambda shard: os.truncate(shard, 1 << 40),
    "bit flipped": lambda shard: shard.write_bytes(shard.read_bytes()[:-1] + b"\x01"),
    "of another key": lambda shard: forge(shard, __metadata__={"about": json.dumps({"key": "0" * 64})}),
    "metadata no object": lambda shard: forge(shard, __metadata__=[1]),
    "metadata nested": lambda shard: forge(shard, __metadata__={"about": json.dumps({"key": {"a": 1}})}),
    "metadata nested without end": lambda shard: forge(shard, __metadata__={"about": "[" * 50_000}),
    "dtype of integers": lambda shard: forge(shard, acts_HSPD={**ABOUT, "dtype": "I32"}),
    "size absurd": lambda shard: forge(shard, acts_HSPD={**ABOUT, "shape": [2**40, 3, 1, 3]}),
    "shape negative": lambda shard: forge(shard, acts_HSPD={**ABOUT, "shape": [-2, -3, 1, 3]}),
    "offsets beyond the end": lambda shard: forge(shard, acts_HSPD={**ABOUT, "data_offsets": [72, 144]}),
    "offsets missing": lambda shard: forge(shard, acts_HSPD={"shape": [2, 3, 1, 3], "dtype": "F32"}),
    "tensor under another name": lambda shard: forge(shard, acts_HSPD=None, other=ABOUT),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_dropped_with_a_warning_and_harvested_again(fake_model, tmp_path, caplog, damage):
    """One line names the file; what comes back is right; the shard is whole afterwards."""
    model, cache = fake_model(), ActivationCache(tmp_path)
    right = cache.get(model, ["a"], TOKENS_HS).clone()
    (shard,) = files(tmp_path)
    DAMAGES[damage](shard)
    (damaged,) = files(tmp_path)

    with caplog.at_level(logging.WARNING):
        again = cache.get(model, ["a"], TOKENS_HS)

    assert torch.equal(again, right)
    assert len(caplog.messages) == 1
    assert str(damaged) in caplog.messages[0]
    assert "\n" not in caplog.messages[0]
    assert torch.equal(cache.get(model, ["a"], TOKENS_HS), right)
    assert (cache.hits, len(model.harvested)) == (1, 2)
    assert files(tmp_path) == [shard]


def test_a_shard_under_the_name_of_another_is_not_believed(fake_model, tmp_path, caplog):
    """Its checksum is right, its key is not: activations of other tokens never come back."""
    model, cache = fake_model(), ActivationCache(tmp_path)
    others = [TOKENS_HS, TOKENS_HS + 1]
    right = [cache.get(model, ["a"], tokens_HS).clone() for tokens_HS in others]
    (one,), (other,) = (cache.shards_of(cache.key(model, ["a"], tokens_HS)) for tokens_HS in others)
    one.write_bytes(other.read_bytes())
    one.rename(one.with_name(f"{key_of(one)}.{other.name.split('.')[1]}.safetensors"))

    assert torch.equal(cache.get(model, ["a"], TOKENS_HS), right[0])
    assert "another key" in caplog.text


def test_a_shard_of_another_shape_is_not_believed_though_its_checksum_is_right(fake_model, tmp_path):
    """A model whose width changed under the same identity gets a harvest, not a crash."""
    cache = ActivationCache(tmp_path)
    cache.get(fake_model(widths={"a": 3}), ["a"], TOKENS_HS)
    wider = fake_model(widths={"a": 4})

    assert cache.get(wider, ["a"], TOKENS_HS).shape == (2, 3, 1, 4)
    assert len(wider.harvested) == 1


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_random_bytes_on_disk_never_give_a_wrong_tensor_or_an_error(fake_model, tmp_path_factory, data):
    """A shard with bytes overwritten, inserted or cut anywhere: right activations, no exception, nothing odd listed."""
    directory = tmp_path_factory.mktemp("fuzz")
    model, cache = fake_model(), ActivationCache(directory)
    right = cache.get(model, ["a"], TOKENS_HS).clone()
    (file,) = files(directory)
    content = file.read_bytes()
    at, cut = data.draw(st.integers(0, len(content))), data.draw(st.integers(0, 20))
    changed = content[:at] + data.draw(st.binary(max_size=20)) + content[at + cut :]
    file.write_bytes(changed)

    logging.disable(logging.WARNING)
    try:
        (entry,) = list_cache(directory)
        assert entry.n_bytes == len(changed)
        assert verify_cache(directory) == ((1, []) if changed == content else (0, [file]))
        file.write_bytes(changed)
        assert torch.equal(cache.get(model, ["a"], TOKENS_HS), right)
    finally:
        logging.disable(logging.NOTSET)


def test_a_cap_evicts_whole_entries_that_were_used_longest_ago(fake_model, tmp_path):
    """The directory never holds more than the cap; what was read lately stays."""
    model = fake_model()
    probe = ActivationCache(tmp_path / "probe")
    probe.get(model, ["a"], TOKENS_HS)
    size = files(tmp_path / "probe", ".safetensors")[0].stat().st_size
    cache = ActivationCache(tmp_path / "cache", max_bytes=3 * size)
    batches = [TOKENS_HS + i for i in range(4)]
    for age, tokens_HS in enumerate(batches[:3]):
        cache.get(model, ["a"], tokens_HS)
        (shard,) = cache.shards_of(cache.key(model, ["a"], tokens_HS))
        os.utime(shard, (age, age))

    cache.get(model, ["a"], batches[0])  # the oldest is used again
    cache.get(model, ["a"], batches[3])

    def cached(tokens_HS):
        return bool(cache.shards_of(cache.key(model, ["a"], tokens_HS)))

    assert list(map(cached, batches)) == [True, False, True, True]
    assert len(files(tmp_path / "cache")) == 3


def test_an_entry_beyond_the_cap_is_not_stored(fake_model, tmp_path, caplog):
    """Nothing is evicted for what can never fit; the activations come all the same."""
    cache = ActivationCache(tmp_path, max_bytes=10)

    assert torch.equal(cache.get(fake_model(), ["a"], TOKENS_HS), fake_model().harvest(TOKENS_HS, ["a"]))
    assert files(tmp_path) == []


def test_a_full_disk_costs_the_entry_and_not_the_run(fake_model, tmp_path, caplog, monkeypatch):
    """One warning each time that it fills up, right activations, no litter."""

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    cache = ActivationCache(tmp_path)

    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with monkeypatch.context() as patch:
                patch.setattr(shards.os, "fsync", no_space)
                for i in range(3):
                    acts_HSPD = cache.get(fake_model(), ["a"], TOKENS_HS + i)
                    assert torch.equal(acts_HSPD, fake_model().harvest(TOKENS_HS + i, ["a"]))
            assert files(tmp_path) == []
            cache.get(fake_model(), ["a"], TOKENS_HS + 9)  # there is room again
            (stored,) = files(tmp_path)
            stored.unlink()

    assert ["No space left on device" in message for message in caplog.messages] == [True, True]


def test_what_killed_processes_left_is_swept_away(fake_model, tmp_path):
    """Temporary files, once they are an hour old: younger ones may be someone's. Files of others stay."""
    cache = ActivationCache(tmp_path)
    cache.get(fake_model(), ["a"], TOKENS_HS)
    whole = files(tmp_path)
    folder = whole[0].parent
    for name, age in {".tmp-1-old": 7200, ".tmp-1-new": 0, "notes.safetensors": 7200}.items():
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (os.stat(folder / name).st_mtime - age,) * 2)

    ActivationCache(tmp_path)

    assert files(tmp_path) == sorted([*whole, folder / ".tmp-1-new", folder / "notes.safetensors"])
    assert prune_cache(tmp_path, 0) == (1, 0)
    assert files(tmp_path) == sorted([folder / ".tmp-1-new", folder / "notes.safetensors"])


def test_a_cache_is_listed_verified_and_pruned(fake_model, tmp_path, caplog):
    """By model and hookpoints, the last used first; every shard's bytes; the oldest go until the rest fits."""
    cache = ActivationCache(tmp_path)
    one, other = fake_model("one"), fake_model("other/model", dtype=torch.bfloat16)
    for i in range(3):
        cache.get(one, ["a", "b"], TOKENS_HS + i)
    cache.get(other, ["b"], TOKENS_HS)
    shards_ = [cache.shards_of(cache.key(one, ["a", "b"], TOKENS_HS + i))[0] for i in range(3)]
    shards_ += cache.shards_of(cache.key(other, ["b"], TOKENS_HS))
    for age, file in enumerate(shards_):
        os.utime(file, (age, age))
    sizes = [file.stat().st_size for file in shards_]

    latest, earlier = list_cache(tmp_path)
    assert (latest.model, latest.identity, latest.hookpoints) == ("other/model", other.identity, ("b",))
    assert (latest.n_shards, latest.n_bytes, latest.last_used) == (1, sizes[3], 3)
    assert (earlier.model, earlier.hookpoints, earlier.n_shards) == ("one", ("a", "b"), 3)
    assert (earlier.n_bytes, earlier.last_used) == (sum(sizes[:3]), 2)

    assert verify_cache(tmp_path) == (4, [])
    shards_[1].write_bytes(shards_[1].read_bytes()[:-1])
    assert verify_cache(tmp_path) == (3, [shards_[1]])
    assert str(shards_[1]) in caplog.text
    assert prune_cache(tmp_path, sizes[2] + sizes[3]) == (1, sizes[2] + sizes[3])
    assert files(tmp_path) == sorted(shards_[2:])
    assert prune_cache(tmp_path, 0) == (2, 0)
    assert (list_cache(tmp_path), verify_cache(tmp_path)) == ([], (0, []))
    for use in (list_cache, verify_cache, lambda directory: prune_cache(directory, 1)):
        with pytest.raises(BadInput, match="does not exist"):
            use(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="max_bytes=-1 must be at least 0"):
        prune_cache(tmp_path, -1)


def test_the_command_line_lists_verifies_and_prunes(fake_model, tmp_path, capsys, caplog):
    """What the functions tell, in lines; what cannot be asked for is one line and exit code 2."""
    cache = ActivationCache(tmp_path)
    for i in range(3):
        cache.get(fake_model("some/model"), ["a", "b"], TOKENS_HS + i)
    first = files(tmp_path)[0]

    main(["cache", "list", str(tmp_path)])
    assert "some/model  a b" in capsys.readouterr().out
    first.write_bytes(b"")
    main(["cache", "verify", str(tmp_path)])
    assert capsys.readouterr().out == f"{first} was damaged: dropped\n2 shards are whole\n"
    main(["cache", "verify", str(tmp_path)])
    assert capsys.readouterr().out == "2 shards are whole\n"
    main(["cache", "prune", str(tmp_path), "--max-gb", "0"])
    assert capsys.readouterr().out == "2 shards removed, 0.000 GB left\n"
    for words, message in {
        ("list", str(tmp_path / "nowhere")): "does not exist",
        ("prune", str(tmp_path)): "max_gb is needed by prune",
        ("list", str(tmp_path), "--max-gb", "1"): "and by nothing else",
    }.items():
        with pytest.raises(SystemExit, match="2"):
            main(["cache", *words])
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_memory_of_the_last_batch_is_reused_only_once_nobody_holds_it(fake_model, tmp_path):
    """Tensors, and views of them, that are kept from one batch to the next stay what they were."""
    model, cache = fake_model(), ActivationCache(tmp_path)
    batches = [TOKENS_HS + i for i in range(4)]
    for tokens_HS in batches:
        cache.get(model, ["a"], tokens_HS)
    kept = [cache.get(model, ["a"], batches[0]), cache.get(model, ["a"], batches[1])[:, 1:]]
    places = {cache.get(model, ["a"], tokens_HS).data_ptr() for tokens_HS in batches[2:]}

    assert cache.hits == 4
    assert len(places) == 1
    assert torch.equal(kept[0], fake_model().harvest(batches[0], ["a"]))
    assert torch.equal(kept[1], fake_model().harvest(batches[1], ["a"])[:, 1:])


def _fill(directory, FakeModel, start, rounds, results):
    model, cache = FakeModel(), ActivationCache(directory, max_bytes=4_000)
    wrong = 0
    for i in range(rounds):
        tokens_HS = TOKENS_HS + (start + i // 2 * 7) % 20  # each twice: the second time it may be there
        wrong += not torch.equal(cache.get(model, ["a"], tokens_HS), FakeModel().harvest(tokens_HS, ["a"]))
    results.put((wrong, cache.hits, cache.misses))


def test_processes_share_a_cache_while_it_evicts(fake_model, tmp_path):
    """Two fill, read and evict the same entries at once: no error, no wrong tensor."""
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    processes = [context.Process(target=_fill, args=(tmp_path, fake_model, start, 150, results)) for start in (0, 3)]
    for process in processes:
        process.start()
    counts = [results.get() for _ in processes]
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0, 0]
    assert [wrong for wrong, _, _ in counts] == [0, 0]
    assert sum(hits for _, hits, _ in counts) > 0
    assert not [file for file in files(tmp_path) if file.name.startswith(".tmp")]


def _fill_until_killed(directory, FakeModel, start):
    model, cache = FakeModel(), ActivationCache(directory)
    for i in itertools.count(start):
        cache.get(model, ["a"], TOKENS_HS + i % 5_000)


def test_processes_killed_while_they_write_leave_a_cache_that_is_right(fake_model, tmp_path):
    """Ten processes, killed -9 soon after their first shard: what is there is right, what is not is harvested."""
    context = multiprocessing.get_context("fork")
    for round_ in range(10):
        before = set(tmp_path.glob("??/*"))
        process = context.Process(target=_fill_until_killed, args=(tmp_path, fake_model, 50 * round_))
        process.start()
        while not set(tmp_path.glob("??/*")) - before and process.is_alive():
            time.sleep(0.001)
        time.sleep(0.005 * round_)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL

    model, cache = fake_model(), ActivationCache(tmp_path)
    for i in range(600):
        assert torch.equal(cache.get(model, ["a"], TOKENS_HS + i), fake_model().harvest(TOKENS_HS + i, ["a"]))
    assert cache.hits > 0


def test_a_directory_that_cannot_be_used_is_refused(tmp_path):
    """A file in its place, a cap or a dtype that is none."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be made"):
        ActivationCache(tmp_path / "file")
    with pytest.raises(BadInput, match="max_bytes=0 must be at least 1"):
        ActivationCache(tmp_path, max_bytes=0)
    with pytest.raises(BadInput, match="int64 is not a floating-point dtype"):
        ActivationCache(tmp_path, dtype=torch.int64)


def test_a_sound_shard_is_kept_when_it_cannot_be_read_or_touched(fake_model, tmp_path, monkeypatch, caplog):
    """Too many open files, or the folder of somebody else: nothing is said of the shard itself."""
    model = fake_model(widths={"a": 3})
    ActivationCache(tmp_path).get(model, ["a"], TOKENS_HS)
    (shard,) = files(tmp_path, ".safetensors")

    def refused(*args, **kwargs):
        raise PermissionError(1, "Operation not permitted")

    with monkeypatch.context() as patch:
        patch.setattr(os, "utime", refused)
        cache = ActivationCache(tmp_path)
        cache.get(model, ["a"], TOKENS_HS)
        assert (cache.hits, cache.misses) == (1, 0)
    with monkeypatch.context() as patch:
        patch.setattr("crosscode.data.cache.read_shard", refused)
        cache = ActivationCache(tmp_path)
        with caplog.at_level(logging.WARNING):
            cache.get(model, ["a"], TOKENS_HS)
        assert (cache.hits, cache.misses) == (0, 1)
    assert "cannot be read" in caplog.text
    assert files(tmp_path, ".safetensors") == [shard]
