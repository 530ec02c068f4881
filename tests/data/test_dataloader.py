"""Batches: every token once an epoch, in an order of counters, resumable from three integers to the bit."""

import itertools
import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crosscode.data import ActivationCache, Dataloader, Harvester, TokenCounts, TokenSequences, load_language_model
from crosscode.data.dataloader import tokens_read
from crosscode.errors import BadInput, NumericalError


@pytest.fixture(scope="session")
def loader(fake_model, documents):
    """A small loader: `loader(batch_size, n_documents=…, model=…, hookpoints=…, **options)`."""

    def make(batch_size=10, n_documents=30, model=None, hookpoints=("a", "b"), H=2, harvester: Any = None, **options):
        model = model or fake_model()
        sequences = TokenSequences(documents(n_documents), model, sequence_length=8, split="all", shuffle_sequences=16)
        harvester = harvester or Harvester(model, hookpoints, sequences_at_once=H)
        return Dataloader(sequences, harvester, batch_size, **({"shuffle_buffer": 100, "ahead": 0} | options))

    return make


def places(batches):
    """What identifies each token of fake activations: its id and its position."""
    return torch.cat([batch.inputs_BXiDi.flatten(1)[:, :2] for batch in batches]).tolist()


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 60), st.integers(60, 200), st.integers(1, 4), st.integers(1, 3), st.integers(0, 5))
def test_every_token_is_served_once_an_epoch(loader, batch_size, shuffle_buffer, H, epochs, seed):
    """Whatever the sizes: all batches full but the very last, no token lost, none twice (spec faults 43, 44)."""
    data = loader(batch_size, n_documents=12, H=H, shuffle_buffer=shuffle_buffer, epochs=epochs, seed=seed)

    batches = list(data)

    in_order = torch.cat([harvest.acts_NMPD[:, 0, 0, :2] for harvest in data.harvests()]).tolist()
    assert sorted(places(batches)) == sorted(in_order * epochs)
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
    assert 1 <= len(batches[-1]) <= batch_size


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 60), st.integers(60, 200), st.integers(1, 3), st.data())
def test_a_cursor_resumes_to_the_bit(loader, batch_size, shuffle_buffer, H, data):
    """From any cursor, a new loader serves exactly the batches that would have followed, over epochs too.

    Whether it or the first one reads ahead; and from a cursor without a place, as they were before they had one.
    """

    order = data.draw(st.sampled_from(["shuffled", "sequences"]))
    batch_size = max(batch_size, 8) if order == "sequences" else batch_size

    def new():
        given = {"ahead": data.draw(st.sampled_from([0, 1, 5])), "order": order}
        return loader(batch_size, n_documents=12, H=H, shuffle_buffer=shuffle_buffer, epochs=2, **given)

    iterator = iter(new())
    cursors, batches = [iterator.cursor()], []
    for batch in iterator:
        batches.append(batch.inputs_BXiDi)
        cursors.append(iterator.cursor())
    k = data.draw(st.integers(0, len(batches)))

    known = {**cursors[k], "place": None} if data.draw(st.booleans()) else cursors[k]

    resumed = new().iter_from(json.loads(json.dumps(known)))

    assert resumed.cursor() == known
    for expected, cursor in zip(batches[k:], cursors[k + 1 :]):
        assert torch.equal(next(resumed).inputs_BXiDi, expected)
        assert resumed.cursor() == cursor
    assert next(resumed, None) is None


def test_what_was_left_out_is_counted_once_wherever_it_is_read(loader, fake_model, tmp_path):
    """Over epochs, read ahead, from a cache, resumed at any batch: what the text holds, and not what was read again."""
    totals = []
    for ahead, cache in ((0, None), (3, ActivationCache(tmp_path)), (0, ActivationCache(tmp_path))):
        model = fake_model()
        harvester = Harvester(model, ["a", "b"], sequences_at_once=3, max_norm_multiple=1.5, cache=cache)
        data = loader(harvester=harvester, model=model, n_documents=12, epochs=2, ahead=ahead)
        one_epoch = sum((h.counts for h in harvester.over(data.sequences.iter_from(0, 0))), TokenCounts())
        another = sum((h.counts for h in harvester.over(data.sequences.iter_from(0, 1))), TokenCounts())
        list(data)  # as initialising does: nothing of it is counted
        batches = iter(data)
        cursors = [batches.cursor() for _ in batches]
        for k in range(0, len(cursors), 7):
            resumed = data.iter_from(cursors[k])
            assert [resumed.cursor() for _ in resumed] == cursors[k + 1 :]
        assert tokens_read(cursors[-1]) == one_epoch + another
        assert one_epoch.outliers > 0
        assert one_epoch.special > 0
        assert one_epoch.first_positions == len(list(data.sequences))
        assert tokens_read(cursors[-1]).kept == sum(len(batch) for batch in data)
        assert all(tokens_read(a).read <= tokens_read(b).read for a, b in itertools.pairwise(cursors))
        totals.append(cursors)
    assert totals[0] == totals[1] == totals[2]
    assert tokens_read({}) == TokenCounts()


def test_a_run_that_skips_stops_where_too_much_is_not_finite(loader, fake_model):
    """At the same batch, whether it was resumed or not: what came before counts."""

    class Overflowing(fake_model):
        def harvest(self, tokens_HS, hookpoints):
            acts_HSPD = super().harvest(tokens_HS, hookpoints)
            acts_HSPD[tokens_HS == 20, 0, 0] = float("inf")  # one word in 61: 1.6 %
            return acts_HSPD

    def new(skip):
        model = Overflowing()
        harvester = Harvester(model, ["a", "b"], sequences_at_once=8, skip_not_finite=skip)
        return loader(100, n_documents=1000, model=model, harvester=harvester, shuffle_buffer=400, epochs=1)

    with pytest.raises(NumericalError, match=r"model 'fake' at a: .* \(float32\) in document \d+"):
        next(iter(new(skip=False)))
    batches, served = iter(new(skip=True)), []
    with pytest.raises(NumericalError, match=r"1\d\d of 10,\d\d\d tokens read are not finite, more") as stopped:
        served.extend((batch.inputs_BXiDi.isfinite().all(), batches.cursor()) for batch in batches)
    finite, served = zip(*served)
    assert all(finite)
    resumed = new(skip=True).iter_from(served[-3])
    with pytest.raises(NumericalError, match=re.escape(str(stopped.value))):
        list(resumed)
    assert resumed.cursor() == served[-1]


def test_resuming_harvests_two_blocks_again_and_no_more(loader, fake_model):
    """What came before the blocks in flight is tokenised, never harvested."""
    model = fake_model()
    data = loader(10, n_documents=100, model=model)
    at_start = len(model.harvested)
    iterator = iter(data)
    for _ in range(30):
        next(iterator)
    model.harvested.clear()

    next(data.iter_from(iterator.cursor()))

    assert at_start == 0
    cursor = iterator.cursor()
    before = (cursor["unit"] - 2) * data.harvests_per_block * 2  # sequences ahead of those blocks, two a harvest
    assert before - 16 < cursor["place"]["sequence"] <= before + 2 * data.harvests_per_block
    assert iterator.cursor()["unit"] > 3
    assert len(model.harvested) <= 3 * data.harvests_per_block  # two, and one more if the batch crosses a unit


CARRY = ("tokens", "positions", "documents", "sequences", "context")


def test_what_is_carried_stays_with_its_token(loader, fake_model, tmp_path):
    """Through the shuffle, a cache, epochs, reading ahead and a resume: ids, places, sequences and annotations."""

    def new(order, ahead, cache):
        harvester = Harvester(fake_model(), ["a", "b"], sequences_at_once=3, cache=cache)
        annotate = {"weights": lambda harvest: harvest.tokens_N / 7 + harvest.positions_N}
        more = {"order": order, "carry": CARRY, "annotate": annotate}
        return loader(20, n_documents=8, harvester=harvester, model=harvester.models[0], epochs=2, ahead=ahead, **more)

    ways = ((0, None), (3, ActivationCache(tmp_path)))
    for order, (ahead, cache) in itertools.product(("shuffled", "sequences"), ways):
        data = new(order, ahead, cache)
        known = {
            (int(s), int(p)): int(d)
            for h in data.harvests()
            for s, p, d in zip(h.sequences_N, h.positions_N, h.documents_N)
        }
        batches = iter(data)
        served = [(batch, batches.cursor()) for batch in batches]
        for batch, _ in served:
            extra, x_BD = batch.extra, batch.inputs_BXiDi.flatten(1)
            assert set(extra) == {*CARRY, "weights"}
            assert torch.equal(extra["tokens"], x_BD[:, 0].long())
            assert torch.equal(extra["positions"], x_BD[:, 1].long())
            assert torch.equal(extra["weights"], extra["tokens"] / 7 + extra["positions"])
            assert torch.equal(extra["context"][torch.arange(len(batch)), extra["positions"]], extra["tokens"])
            places = zip(extra["sequences"].tolist(), extra["positions"].tolist())
            assert [known[place] for place in places] == extra["documents"].tolist()
        k = len(served) // 2
        for batch, (expected, _) in zip(new(order, 0, None).iter_from(served[k - 1][1]), served[k:]):
            assert torch.equal(batch.inputs_BXiDi, expected.inputs_BXiDi)
            assert all(torch.equal(batch.extra[name], expected.extra[name]) for name in expected.extra)


@settings(max_examples=10, deadline=None)
@given(st.integers(8, 60), st.integers(60, 200), st.integers(1, 3))
def test_batches_in_the_order_of_sequences_hold_whole_ones(loader, batch_size, shuffle_buffer, H):
    """Each sequence in one batch, its tokens in order, as many sequences as fit; every token once an epoch."""
    given = {"order": "sequences", "carry": ("sequences", "positions"), "epochs": 1, "shuffle_buffer": shuffle_buffer}
    data = loader(batch_size, n_documents=15, H=H, **given)

    served = [list(zip(batch.extra["sequences"].tolist(), batch.extra["positions"].tolist())) for batch in data]

    in_order = sorted((int(s), int(p)) for h in data.harvests() for s, p in zip(h.sequences_N, h.positions_N))
    assert sorted(itertools.chain(*served)) == in_order
    per_sequence = [
        [len(list(g)) for _, g in itertools.groupby(places, key=lambda place: place[0])] for places in served
    ]
    for places, lengths, following in zip(served, per_sequence, [*per_sequence[1:], [batch_size + 1]]):
        assert len(lengths) == len({s for s, _ in places})
        assert all(one < two for one, two in itertools.pairwise(places) if one[0] == two[0])
        assert len(places) <= batch_size < len(places) + following[0]


@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (lambda harvest: 3.0, "annotate\\['weights'\\] gives must be a tensor with an entry for each token, got 3.0"),
        (lambda harvest: torch.ones(2), "gives a tensor of shape \\(2,\\) for the .* tokens of a harvest"),
    ],
)
def test_an_annotation_has_an_entry_for_each_token(loader, annotation, message):
    with pytest.raises(BadInput, match=message):
        next(iter(loader(annotate={"weights": annotation})))


def test_an_annotation_is_of_one_kind_in_all_harvests(loader):
    """Whole numbers of one and fractions of another would be cut to whole ones."""
    kinds = itertools.cycle([torch.int64, torch.float32])
    data = loader(annotate={"labels": lambda harvest: torch.ones(len(harvest), dtype=next(kinds))})

    with pytest.raises(BadInput, match=r"annotate\['labels'\] gave torch.int64 \(\) .* torch.float32 \(\) of another"):
        next(iter(data))


def test_a_name_that_no_batch_carries_is_told_with_the_close_one(loader):
    """Where a loss asks for it."""
    batch = next(iter(loader(carry=("tokens",))))

    with pytest.raises(BadInput, match=r"carries no 'token': .* Did you mean 'tokens'\?"):
        batch.extra["token"]


def test_every_iteration_starts_at_the_first_token(loader):
    """Normalisation and calibration take nothing away from training (spec fault 42: not even one batch)."""
    data = loader()
    for _ in itertools.islice(data, 3):
        pass
    first, second = (list(itertools.islice(data, 5)) for _ in range(2))

    assert places(first) == places(second)


def test_batches_are_not_overwritten_by_later_ones(loader):
    """The ring is refilled in place, the batches are not views of it."""
    iterator = iter(loader())
    first = next(iterator).inputs_BXiDi
    copy = first.clone()
    for _ in range(20):
        next(iterator)

    assert torch.equal(first, copy)


def test_the_order_follows_seed_and_epoch_and_mixes_the_text(loader):
    """Other seeds and other epochs give other orders; a batch holds tokens of many sequences."""
    one, other = (places(loader(200, shuffle_buffer=400, seed=seed, epochs=1)) for seed in (0, 1))
    two_epochs = places(loader(200, shuffle_buffer=400, epochs=2))

    assert one != other
    assert sorted(one) == sorted(other)
    assert two_epochs[: len(one)] == one
    assert two_epochs[len(one) :] != one
    runs = sum(b[1] == a[1] + 1 for a, b in itertools.pairwise(one))  # neighbours that were neighbours in the text
    assert runs < 0.4 * len(one)


def test_epochs_end_or_go_on_as_asked(loader):
    """A number of epochs ends the iteration cleanly; None goes on for ever (spec fault 39)."""
    n_tokens = len(places(loader(epochs=1, n_documents=10)))

    assert len(places(loader(epochs=3, n_documents=10))) == 3 * n_tokens
    assert len(places(itertools.islice(loader(n_documents=10), n_tokens))) == 10 * n_tokens


def test_an_acausal_crosscoder_reads_and_writes_models_and_hookpoints(loader, fake_model):
    """The same tensor in and out, x_BMPD; squeezed to x_BD it is the data of a plain SAE."""
    harvester = Harvester([fake_model("x"), fake_model("y", widths={"a": 5, "b": 4})], ["a", "b"])
    data = loader(harvester=harvester)
    batch = next(iter(data))

    assert batch.inputs_BXiDi is batch.targets_BXoDo
    assert batch.inputs_BXiDi.shape == (10, 2, 2, 5)
    assert (data.in_dims, data.d_in, data.widths_Xi) == ((2, 2), 5, (3, 3, 5, 4))
    assert (data.out_dims, data.d_out, data.widths_Xo) == ((2, 2), 5, (3, 3, 5, 4))
    assert (data.model_names, data.hookpoints) == (("x", "y"), ("a", "b"))


@pytest.mark.parametrize(
    ("widths", "n_models", "options", "shapes", "real_widths"),
    [
        ({"a": 3}, 1, {}, ((1, 1, 3), (1, 1, 3)), (None, None)),
        ({"a": 3}, 1, {"squeeze": True}, ((3,), (3,)), (None, None)),
        ({"a": 3, "b": 3}, 1, {"squeeze": True}, ((2, 3), (2, 3)), (None, None)),
        ({"a": 3}, 2, {"squeeze": True}, ((2, 3), (2, 3)), (None, None)),
        ({"a": 3, "b": 5}, 1, {"reads": "a", "writes": "b"}, ((3,), (5,)), (None, None)),
        ({"a": 3, "b": 5}, 1, {"reads": "b", "writes": ["a"]}, ((5,), (1, 3)), (None, None)),
        ({"a": 3, "b": 5}, 1, {"reads": ["a", "b"], "writes": ["b", "a"]}, ((2, 5), (2, 5)), ((3, 5), (5, 3))),
        ({"a": 3, "b": 5}, 2, {"reads": "a", "writes": ["a", "b"]}, ((2, 3), (2, 2, 5)), (None, (3, 5, 3, 5))),
        ({"a": 3, "b": 5}, 1, {"reads": "a"}, ((3,), (3,)), (None, None)),
    ],
)
def test_reads_and_writes_say_what_is_input_and_what_is_target(
    loader, fake_model, widths, n_models, options, shapes, real_widths
):
    """A name drops the axis P, a list keeps it, one model has no axis M; widths may differ (spec fault 33)."""
    models = [fake_model(name, widths=widths) for name in "xy"[:n_models]]
    harvester = Harvester(models, list(widths))
    data = loader(harvester=harvester, **options)
    batch = next(iter(data))

    assert (batch.inputs_BXiDi.shape[1:], batch.targets_BXoDo.shape[1:]) == shapes
    assert ((*data.in_dims, data.d_in), (*data.out_dims, data.d_out)) == shapes
    assert (data.widths_Xi, data.widths_Xo) == real_widths
    tokens = batch.inputs_BXiDi.flatten(1)[:, 0]
    assert torch.equal(batch.targets_BXoDo.flatten(1)[:, 0], tokens)
    if options.get("writes") == "b":
        assert batch.targets_BXoDo[0, 2] == torch.tensor(1 + 1 / 3)


def test_batches_are_float32_unless_another_dtype_is_asked_for(loader, fake_model):
    """bfloat16 activations are widened exactly; `dtype` says otherwise."""
    model = fake_model(dtype=torch.bfloat16)
    wide, half = next(iter(loader(model=model))), next(iter(loader(model=model, dtype=torch.bfloat16)))

    assert (wide.inputs_BXiDi.dtype, half.inputs_BXiDi.dtype) == (torch.float32, torch.bfloat16)
    assert torch.equal(wide.inputs_BXiDi, half.inputs_BXiDi.float())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"batch_size": 101}, "batch_size=101 is larger than shuffle_buffer=100"),
        ({"epochs": 0}, "epochs=0 must be at least 1, or None"),
        ({"ahead": -1}, "ahead=-1 must be at least 0, or None"),
        (
            {"batch_size": 5000, "shuffle_buffer": 10_000},
            r"batch_size=5000 is larger than the data: \d+ sequences of 8",
        ),
        ({"reads": "aa"}, "reads='aa' is not among the harvested hookpoints"),
        ({"reads": "a", "writes": ["b", "c"]}, "writes='c' is not among the harvested hookpoints"),
        ({"writes": "b"}, "writes='b' needs reads"),
        ({"reads": []}, "reads is empty"),
        ({"carry": "token"}, r"carry='token' must be one of 'tokens', .* Did you mean 'tokens'\?"),
        ({"order": "sequences", "batch_size": 7}, "batch_size=7 is smaller than sequence_length=8: with order="),
        ({"order": "shuffle"}, r"order='shuffle' must be one of .* Did you mean 'shuffled'\?"),
        ({"annotate": {"tokens": len}}, "annotate has 'tokens', which is a name of carry"),
        ({"annotate": {"labels": 3}}, r"annotate\['labels'\] must be a function"),
    ],
)
def test_what_cannot_work_is_refused_before_any_harvest(loader, fake_model, options, message):
    """Sizes are compared with the buffer and the text, names with the hookpoints."""
    model = fake_model()

    with pytest.raises(BadInput, match=message):
        loader(model=model, **options)

    assert model.harvested == []


def test_a_batch_larger_than_what_masking_leaves_is_found_at_the_end_of_the_first_epoch(fake_model):
    """Enough text, too few tokens: the error counts those that are left."""
    model = fake_model()
    sequences = TokenSequences([[5] * 80], model, sequence_length=8, split="all")

    for drop_first, message in {5: "larger than the data: 33 tokens after masking", 8: "nothing is left"}.items():
        data = Dataloader(sequences, Harvester(model, "a", drop_first=drop_first), 70)
        with pytest.raises(BadInput, match=message):
            next(iter(data))


@pytest.mark.parametrize(
    "cursor",
    [
        {},
        {"epoch": 0, "unit": 0},
        {"epoch": 0, "unit": 0, "offset": -1},
        {"epoch": 0, "unit": 0.0, "offset": 0},
        {"epoch": 0, "unit": 0, "offset": 0, "place": 3},
        {"epoch": 0, "unit": 0, "offset": 0, "step": 3},
        {"epoch": 0, "unit": 0, "offset": 0, "tokens_read": {"kept": -1}},
        {"epoch": 0, "unit": 0, "offset": 0, "tokens_read": {"lost": 1}},
        {"epoch": 0, "unit": 0, "offset": 0, "tokens_read": 3},
    ],
)
def test_a_cursor_that_is_none_is_refused(loader, cursor):
    """Keys missing, negative, or no integer."""
    with pytest.raises(BadInput, match="is not a position in the data: epoch, offset, unit"):
        loader().iter_from(cursor)


def test_a_cursor_of_other_data_is_refused(loader):
    """An offset beyond its unit cannot have come from here."""
    with pytest.raises(BadInput, match="beyond its unit"):
        next(loader().iter_from({"epoch": 0, "unit": 0, "offset": 1000}))
    place = {"sequence": 16, "document": 4, "pieces": 0, "tokens": 0, "source": {"row": 4}}
    for changed in ({"sequence": 3}, {"sequence": 160}, {"tokens": -1}, {"source": None}, {"pieces": "1"}):
        with pytest.raises(BadInput, match="is not"):
            next(loader().iter_from({"epoch": 0, "unit": 5, "offset": 0, "place": place | changed}))


def test_the_whole_path_resumes_to_the_bit_with_language_models(saved_model, documents, tmp_path):
    """Two real (tiny) models, a cursor after 7 batches, models loaded anew: the same batches, cache cold or warm."""

    def anew():
        return [load_language_model(str(saved_model(name))) for name in ("Llama", "GPTNeoX")]

    def new(models, cache=None):
        harvester = Harvester(models, ["blocks.1.hook_resid_post"], sequences_at_once=4, cache=cache)
        return Dataloader(
            TokenSequences(documents(60), models[0], sequence_length=16), harvester, 40, shuffle_buffer=256, ahead=0
        )

    iterator = iter(new(anew()))
    for _ in range(7):
        next(iterator)
    cursor, expected = iterator.cursor(), [next(iterator).inputs_BXiDi for _ in range(5)]

    models = anew()
    for cache in (ActivationCache(tmp_path), ActivationCache(tmp_path)):
        resumed = new(models, cache).iter_from(cursor)
        assert all(torch.equal(next(resumed).inputs_BXiDi, batch) for batch in expected)
    assert cache.hits > 0
    assert cache.misses == 0
