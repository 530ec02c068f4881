"""Text is packed without loss, ordered by counters, and refused in one line when it cannot be read."""

import copy
import errno
import itertools
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_text import FORMATS

from crosscode.data import TokenSequences, token_sequences
from crosscode.data import documents as sources_module
from crosscode.data import text_files as files_module
from crosscode.errors import BadInput, CrosscodeError

BOS, EOS = 0, 1
id_lists = st.lists(st.lists(st.integers(2, 63), max_size=30), min_size=1, max_size=12).filter(any)


def ids_of(sequences):
    return [sequence.tokens_S.tolist() for sequence in sequences]


@settings(max_examples=60, deadline=None)
@given(id_lists, st.integers(2, 12), st.booleans(), st.sampled_from(["eos", "bos", "none"]))
def test_packing_keeps_every_token_in_order(fake_model, docs, S, prepend_bos, separator):
    """Without the tokens that were added, the sequences are the documents laid end to end; the end may be padded."""
    packed = TokenSequences(
        docs, fake_model(), sequence_length=S, prepend_bos=prepend_bos, separator=separator, split="all", short="pad"
    )

    sequences = list(packed.in_order())

    kept = [(t, d) for s in sequences for t, d in zip(s.tokens_S.tolist(), s.documents_S.tolist()) if d >= 0]
    assert kept == [(token, i) for i, doc in enumerate(docs) for token in doc]
    assert all(len(sequence.tokens_S) == S for sequence in sequences)
    assert [sequence.index for sequence in sequences] == list(range(len(sequences)))
    if prepend_bos:
        assert all(sequence.tokens_S[0] == BOS and sequence.tokens_S[1] != BOS for sequence in sequences)
    added = [t for s in sequences for t, d in zip(s.tokens_S.tolist(), s.documents_S.tolist()) if d == -1]
    assert added.count(EOS) == (sum(map(bool, docs)) if separator == "eos" else 0)


@settings(max_examples=40, deadline=None)
@given(id_lists, st.integers(2, 12))
def test_only_a_short_last_sequence_is_dropped(fake_model, docs, S):
    """The last full sequence is there (spec fault 44), and no sequence is short."""

    def sequences(short):
        return list(TokenSequences(docs, fake_model(), sequence_length=S, split="all", short=short).in_order())

    padded = sequences("pad")
    ends_in_padding = padded[-1].documents_S[-1] == -2

    assert ids_of(sequences("drop")) == ids_of(padded[:-1] if ends_in_padding else padded)


def test_a_text_that_fills_its_last_sequence_exactly_loses_nothing(fake_model):
    """2,000 tokens are 100 sequences of 20, not 99 (spec fault 44)."""
    packed = TokenSequences(
        [[5] * 2000], fake_model(), sequence_length=20, prepend_bos=False, separator="none", split="all"
    )

    assert len(list(packed)) == 100


def test_documents_are_joined_as_the_policy_says(fake_model):
    """Two documents under each policy, token by token (spec fault 45)."""
    docs = [[5, 6, 7], [8, 9]]

    def packed(**policy):
        options: dict[str, Any] = {"sequence_length": 4, "split": "all", "short": "pad", "seed": None} | policy
        return ids_of(TokenSequences(docs, fake_model(), **options))

    assert packed(prepend_bos=True, separator="eos") == [[BOS, 5, 6, 7], [BOS, EOS, 8, 9], [BOS, EOS, EOS, EOS]]
    assert packed(prepend_bos=True, separator="bos") == [[BOS, 5, 6, 7], [BOS, 8, 9, EOS]]
    assert packed(prepend_bos=False, separator="bos") == [[BOS, 5, 6, 7], [BOS, 8, 9, EOS]]
    assert packed(prepend_bos=False, separator="none") == [[5, 6, 7, 8], [9, EOS, EOS, EOS]]


def test_a_token_that_is_both_bos_and_eos_stands_once_between_documents(fake_model):
    """As in GPT-2: it ends one document and begins the next, also where a sequence begins with it."""
    model = fake_model(eos_id=BOS)
    packed = TokenSequences([[5, 6], [7, 8, 9], [10]], model, sequence_length=4, split="all", short="pad")

    assert ids_of(packed.in_order()) == [[BOS, 5, 6, BOS], [BOS, 7, 8, 9], [BOS, 10, BOS, BOS]]


def test_the_policy_follows_the_model_unless_it_is_given(fake_model):
    """BOS when the model has one; EOS between documents, else BOS, else nothing."""
    assert TokenSequences(["w1"], fake_model()).separator == "eos"
    assert TokenSequences(["w1"], fake_model(eos_id=None)).separator == "bos"
    bare = TokenSequences(["w1"], fake_model(bos_id=None, eos_id=None))
    assert (bare.prepend_bos, bare.separator) == (False, "none")


def test_a_separator_that_a_document_brings_along_is_not_doubled(fake_model):
    """Pre-tokenised documents often end in EOS or begin with BOS already."""
    options: dict[str, Any] = {"sequence_length": 8, "split": "all", "short": "pad", "seed": None}

    (sequence,) = ids_of(TokenSequences([[BOS, 5, EOS], [6, EOS]], fake_model(), **options))

    assert sequence == [BOS, 5, EOS, 6, EOS, EOS, EOS, EOS]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 60), st.integers(1, 20), st.integers(0, 3), st.integers(0, 2))
def test_iteration_can_start_anywhere(fake_model, start, block, seed, epoch):
    """iter_from(k) is what a whole pass yields from its k-th sequence on, in the same order."""
    docs = [[5 + i % 50] * (3 + i % 7) for i in range(60)]
    packed = TokenSequences(docs, fake_model(), sequence_length=8, seed=seed, shuffle_sequences=block)

    whole = ids_of(packed.iter_from(0, epoch))

    assert ids_of(packed.iter_from(start, epoch)) == whole[start:]


@pytest.fixture
def sources(tmp_path, hub):
    """180 texts as every kind of source, each with a count of what is read of it (None where nobody counts)."""
    texts = [" ".join(f"w{(7 * i + j) % 60}" for j in range(3 + i % 11)) for i in range(180)]
    rows = [{"text": text.replace("w5 ", "w5\nwé 世 "), "n": i} for i, text in enumerate(texts)]

    def source(kind):
        if kind in FORMATS:
            FORMATS[kind](tmp_path / kind, rows)
            return tmp_path / kind
        return {"list": texts, "iterable": dict.fromkeys(texts), "hub": "some/dataset"}[kind]

    hub(streamed := Hub(rows))
    return source, streamed


@pytest.mark.parametrize("split", ["train", "held_out"])
@pytest.mark.parametrize("kind", [*FORMATS, "list", "iterable", "hub"])
def test_reading_goes_on_at_a_place_and_tokenises_little_of_what_came_before(
    fake_model, sources, kind, split, monkeypatch
):
    """Any place that is told, as JSON, of any source: the same sequences follow, and little is read again."""
    monkeypatch.setattr(token_sequences, "DOCUMENTS_AT_ONCE", 8)
    found, streamed = sources
    model = fake_model()
    packed = TokenSequences(
        found(kind), model, sequence_length=7, split=split, held_out_every=3, shuffle_sequences=10, seed=3
    )
    tokenised = []
    tokenize = model.tokenizer
    monkeypatch.setattr(model, "tokenizer", lambda texts, **o: tokenised.extend(texts) or tokenize(texts, **o))

    def content(sequences):
        return [(s.index, s.tokens_S.tolist(), s.documents_S.tolist()) for s in sequences]

    whole, iterator = content(packed.iter_from(0, epoch=1)), packed.iter_from(0, epoch=1)
    for n in range(len(whole)):
        next(iterator)
        if n % 13 == 0:
            place = json.loads(json.dumps(iterator.place_of(n)))
            tokenised.clear()
            streamed.read.clear()

            resumed = packed.iter_from(n, 1, place)
            first = content(itertools.islice(resumed, 1))

            assert len(tokenised) <= 4 * 8
            assert len(streamed.read) <= 4 * 8 * 3
            assert len(json.dumps(place)) < 300
            assert first + content(resumed) == whole[n:]


@pytest.fixture
def streamed_file(fake_model, tmp_path, monkeypatch):
    """A data set of the hub that is a local file: the real library streams it."""
    import datasets

    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"w{i % 61} w{i % 7}"}) + "\n" for i in range(500)))
    load = datasets.load_dataset
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *_, **__: load("json", data_files=str(tmp_path / "a.jsonl"), split="train", streaming=True),
    )
    return TokenSequences("some/dataset", fake_model(), sequence_length=8, shuffle_sequences=16)


def test_a_stream_of_datasets_goes_on_at_a_place(streamed_file):
    """The place is the library's own state, and the rest follows exactly."""
    whole, iterator = ids_of(streamed_file), iter(streamed_file)
    for n in range(0, len(whole), 40):
        for _ in range(40):
            next(iterator, None)
        last = min(n + 39, len(whole) - 1)
        place = json.loads(json.dumps(iterator.place_of(last)))
        assert ids_of(streamed_file.iter_from(last, place=place)) == whole[last:]


def test_a_stream_of_datasets_goes_on_however_often_it_is_resumed(streamed_file):
    """Each time at a place that a resumed stream told. `datasets` 5.0.0 fails here: pyproject.toml excludes it."""
    whole, read, iterator = ids_of(streamed_file), [], iter(streamed_file)
    while len(read) < len(whole):
        read += ids_of(itertools.islice(iterator, 30))
        if len(read) < len(whole):
            place = json.loads(json.dumps(iterator.place_of(len(read))))
            iterator = streamed_file.iter_from(len(read), place=place)
    assert read == whole


class Breaks:
    """An iterable of texts that fails at certain of them, each a number of times, and is well again afterwards."""

    def __init__(self, n, breaks, error=ConnectionError):
        self.n, self.breaks, self.error = n, list(breaks), error

    def __iter__(self):
        for i in range(self.n):
            if i in self.breaks:
                self.breaks.remove(i)
                raise self.error("the network is gone")
            yield f"w{i % 61}"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 299), max_size=12))
def test_an_iterable_that_breaks_anywhere_is_read_on_where_it_broke(fake_model, breaks):
    """Each example once and in its order, though four tries in a row fail."""
    breaks = [i for i in breaks if breaks.count(i) < sources_module.TRIES]
    packed = TokenSequences(
        Breaks(300, breaks), fake_model(), separator="none", prepend_bos=False, sequence_length=300, split="all"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources_module.time, "sleep", lambda seconds: None)
        (sequence,) = ids_of(packed)

    assert sequence == [i % 61 + 3 for i in range(300)]


def test_what_stays_broken_is_given_up_and_a_mistake_is_not_tried_again(fake_model, monkeypatch):
    """After five tries in a row with pauses that double; an error of the user's program comes as it is, at once."""
    waited = []
    monkeypatch.setattr(sources_module.time, "sleep", waited.append)

    with pytest.raises(CrosscodeError, match="<Breaks> broke at document 150, 5 times in a row: the network is gone"):
        list(TokenSequences(Breaks(300, [150] * 5), fake_model(), sequence_length=4))
    assert waited == [1, 2, 4, 8]
    with pytest.raises(KeyError, match="the network is gone"):
        list(TokenSequences(Breaks(300, [150], KeyError), fake_model(), sequence_length=4))
    assert len(waited) == 4


def test_a_file_that_cannot_be_read_for_a_moment_is_read_on(fake_model, tmp_path, monkeypatch):
    """As on a network disk; no document is lost or comes twice."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"w{i % 61}"}) + "\n" for i in range(300)))
    monkeypatch.setattr(sources_module.time, "sleep", lambda seconds: None)
    failures = iter([False] * 100 + [True, True] + [False] * 150 + [True])
    loads = json.loads

    def fails(line):
        if next(failures, False):
            raise OSError(errno.EIO, "Input/output error")
        return loads(line)

    monkeypatch.setattr(files_module.json, "loads", fails)
    packed = TokenSequences(
        tmp_path / "a.jsonl", fake_model(), separator="none", prepend_bos=False, sequence_length=300, split="all"
    )

    (sequence,) = ids_of(packed)

    assert next(failures, None) is None
    assert sequence == [i % 61 + 3 for i in range(300)]


def test_the_order_is_a_function_of_the_seed_and_the_epoch(fake_model, documents):
    """Each seed and each epoch has an order of its own, of the same sequences; None keeps the text's."""
    docs = documents(200)

    def order(seed, epoch=0):
        packed = TokenSequences(docs, fake_model(), sequence_length=16, seed=seed, shuffle_sequences=64)
        return [sequence.index for sequence in packed.iter_from(0, epoch)]

    assert order(0) == order(0)
    assert len({tuple(order(0)), tuple(order(1)), tuple(order(0, epoch=1))}) == 3
    assert sorted(order(0)) == order(None) == list(range(len(order(0))))


def test_training_and_held_out_documents_are_disjoint_and_complete(fake_model, documents):
    """Every n-th document is held out, and training never sees it."""
    docs = documents(100)

    def seen(split):
        packed = TokenSequences(docs, fake_model(), split=split, held_out_every=10, sequence_length=4, short="pad")
        return set(torch.cat([s.documents_S for s in packed]).unique().tolist()) - {-1, -2}

    assert seen("held_out") == set(range(9, 100, 10))
    assert seen("train") == set(range(100)) - seen("held_out")
    assert seen("all") == set(range(100))


ROWS = [{"text": "w1 w2", "n": 1}, {"text": "w3 w4", "n": 2}]


@pytest.mark.parametrize("name", FORMATS)
def test_every_local_format_gives_the_same_documents(fake_model, tmp_path, name):
    """Rows of every format, paragraphs of plain text, folders; what lies beside a text, and its test split, is none."""
    FORMATS[name](tmp_path / name, ROWS)
    packed = TokenSequences(str(tmp_path / name), fake_model(), sequence_length=7, split="all")

    assert ids_of(packed) == [[BOS, 4, 5, EOS, 6, 7, EOS]]


def test_a_column_of_token_ids_is_read_as_such(fake_model, tmp_path):
    """Pre-tokenised data sets need no tokenizer."""
    (tmp_path / "ids.jsonl").write_text('{"ids": [5, 6]}\n{"ids": [7]}\n')
    packed = TokenSequences(tmp_path / "ids.jsonl", fake_model(), text_column="ids", sequence_length=6, split="all")

    assert ids_of(packed) == [[BOS, 5, 6, EOS, 7, EOS]]


def test_rows_that_are_handed_in_are_read_by_their_column(fake_model):
    """A `datasets.Dataset` of the user's own, or a list of dictionaries."""
    import datasets

    rows = datasets.Dataset.from_list([{"body": "w2"}, {"body": "w3"}])
    packed = TokenSequences(rows, fake_model(), text_column="body", sequence_length=5, split="all")

    assert ids_of(packed) == [[BOS, 5, EOS, 6, EOS]]
    with pytest.raises(BadInput, match=r"text_column 'text' .* Columns: 'body'"):
        list(TokenSequences(rows, fake_model()))


class Hub:
    """A streamed data set that breaks when it reaches certain rows, each a number of times."""

    def __init__(self, rows, breaks=()):
        self.rows, self.breaks, self.at, self.read = rows, list(breaks), 0, []

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]

    def __iter__(self):
        while self.at < len(self.rows):
            if self.at in self.breaks:
                self.breaks.remove(self.at)
                raise ConnectionError("the network is gone")
            self.read.append(self.at)
            self.at += 1
            yield self.rows[self.at - 1]


@pytest.fixture
def hub(monkeypatch):
    """Replaces `datasets.load_dataset`, and the pause between tries."""
    import datasets

    def install(found):
        def load_dataset(name, config, **options):
            assert options["streaming"] is True
            if isinstance(found, Exception):
                raise found
            opened = copy.copy(found)
            opened.at = 0
            return opened

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        monkeypatch.setattr(sources_module.time, "sleep", lambda seconds: None)

    return install


def test_a_hub_stream_that_breaks_goes_on_where_it_broke(fake_model, hub):
    """No row twice, none lost, wherever the network fails."""
    rows = [{"text": f"w{i}"} for i in range(40)]
    hub(Hub(rows, breaks=[0, 7, 7, 7, 7, 8, 39]))
    options: dict[str, Any] = {"separator": "none", "prepend_bos": False, "sequence_length": 40, "split": "all"}

    (sequence,) = ids_of(TokenSequences("some/dataset", fake_model(), **options))

    assert sequence == [i + 3 for i in range(40)]


def test_a_hub_stream_that_stays_broken_is_given_up_with_its_place(fake_model, hub):
    """Five times in a row without a document, then one line says where."""
    hub(Hub([{"text": f"w{i}"} for i in range(40)], breaks=[7] * 5))

    message = "'some/dataset' broke at document 7, 5 times in a row: the network is gone"
    with pytest.raises(CrosscodeError, match=message):
        list(TokenSequences("some/dataset", fake_model(), sequence_length=4))


def test_an_unknown_hub_name_is_refused_in_one_line(fake_model, hub):
    """Whatever `datasets` raises becomes one line with name, config and split."""
    hub(ValueError("Unknown split\nand a page more"))

    with pytest.raises(BadInput, match=r"'some/dataset' .*'train'.* the hub did not give it: Unknown split$"):
        list(TokenSequences("some/dataset", fake_model()))


@pytest.mark.parametrize("name", [name for name in FORMATS if ".txt" not in name])
def test_a_missing_text_column_lists_the_columns_at_once(fake_model, tmp_path, name):
    """In files of each kind, with the close match, before anything else is done."""
    FORMATS[name](tmp_path / name, ROWS)
    with pytest.raises(BadInput, match=r"text_column 'txt' .*Did you mean 'text'\? Columns: .*'text', 'n'\.$"):
        TokenSequences(tmp_path / name, fake_model(), text_column="txt")


def test_a_missing_text_column_of_the_hub_lists_the_columns(fake_model, hub):
    """With the name of the data set."""
    hub(Hub([{"content": "w1", "texts": "w2"}]))
    with pytest.raises(BadInput, match=r"text_column 'text' .*'some/dataset'.* Columns: 'content', 'texts'\.$"):
        list(TokenSequences("some/dataset", fake_model()))


def test_what_cannot_be_found_is_refused_before_anything_is_read(fake_model, tmp_path):
    """Files, folders, and names that look like files."""
    (tmp_path / "corpus.jsonl").write_text("")
    (tmp_path / "empty").mkdir()
    for source, message in {
        tmp_path / "corpsu.jsonl": r"does not exist\. Did you mean 'corpus\.jsonl'\?$",
        str(tmp_path / "nowhere" / "a.txt"): "Nor does its folder",
        "no_such_file.parquet": "does not exist",
        str(tmp_path / "empty"): r"holds no \.parquet",
    }.items():
        with pytest.raises(BadInput, match=message):
            TokenSequences(source, fake_model())
    (tmp_path / "a.csv").write_text("a")
    with pytest.raises(BadInput, match=r"suffix must be one of \.parquet"):
        TokenSequences(str(tmp_path / "a.csv"), fake_model())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "w1"}\n{"text": ', "line 2 is not JSON"),
        (b'["w1"]\n', "must be an object with a key 'text', not list"),
        (b'{"text": 7}\n', "line 1 is neither a text nor a list of token ids but int '7'"),
        (b'{"text": ["w1"]}\n', "line 1 is neither a text nor a list of token ids but a list with str 'w1'"),
        (b'{"text": [5, 99]}\n', "token ids from 5 to 99; the vocabulary of 'fake' ends at 63"),
        (b'{"text": [-1, 5]}\n', "token ids from -1 to 5"),
        (b"\xff\xfe\n", "could not be read"),
        (b"", "has no document in its split 'all'"),
        (b'{"text": null}\n{"text": ""}\n', "has no document in its split 'all'"),
    ],
)
def test_text_that_cannot_be_used_is_refused_in_one_line(fake_model, tmp_path, content, message):
    """Broken JSON, wrong types, ids of another vocabulary, wrong encoding, nothing at all."""
    (tmp_path / "a.jsonl").write_bytes(content)

    with pytest.raises(BadInput, match=message) as raised:
        list(TokenSequences(tmp_path / "a.jsonl", fake_model(), split="all"))

    assert "\n" not in str(raised.value)


def test_broken_files_of_every_kind_are_refused(fake_model, tmp_path):
    """A parquet file or a gzip archive that is none."""
    for name in ("a.parquet", "a.jsonl.gz", "a.json"):
        (tmp_path / name).write_bytes(b"no such thing")
        with pytest.raises(BadInput, match=f"{name}' could not be read"):
            list(TokenSequences(tmp_path / name, fake_model()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sequence_length": 1}, "sequence_length=1 must be at least 2"),
        ({"sequence_length": 65}, "sequence_length=65 is beyond the context of model 'fake': 64 tokens"),
        ({"split": "trian"}, "split 'trian' .* Did you mean 'train'"),
        ({"separator": "EOS"}, "separator 'EOS' is not one of eos, bos, none"),
        ({"short": "wrap"}, "short 'wrap' is not one of drop, pad"),
        ({"held_out_every": 1}, "held_out_every=1 must be at least 2"),
        ({"shuffle_sequences": 0}, "shuffle_sequences=0 must be at least 1"),
        ({"separator": "bos", "model": {"bos_id": None}}, "separator='bos': model 'fake' has no BOS"),
        ({"prepend_bos": True, "model": {"bos_id": None}}, "prepend_bos=True: model 'fake' has no BOS"),
        ({"separator": "eos", "model": {"eos_id": None}}, "separator='eos': model 'fake' has no EOS"),
        ({"source": iter(["w1"])}, "can be read only once"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(fake_model, options, message):
    """Before a document is read."""
    options: dict[str, Any] = {"source": ["w1"], "model": {}, "sequence_length": 8} | options
    options["model"] = fake_model(context_length=64, **options["model"])

    with pytest.raises(BadInput, match=message):
        TokenSequences(**options)


def test_identity_follows_text_and_policy(fake_model, tmp_path):
    """Equal for equal text and policy; different for another text, length, split or vocabulary."""
    (tmp_path / "a.txt").write_text("w1")
    (tmp_path / "copy.txt").write_text("w1")
    (tmp_path / "b.txt").write_text("w2")

    def identity(name="a.txt", vocabulary=None, **options):
        model = fake_model(vocabulary=vocabulary) if vocabulary else fake_model()
        return TokenSequences(tmp_path / name, model, **options).identity

    assert identity() == identity("copy.txt")
    others = [identity("b.txt"), identity(sequence_length=64), identity(split="all"), identity(vocabulary={"w": 0})]
    assert len({identity(), *others}) == 5


def test_what_is_iterated_twice_is_the_same(fake_model, documents):
    """Calibrating is iterating: nothing is taken away from training."""
    packed = TokenSequences(documents(50), fake_model(), sequence_length=16)
    list(itertools.islice(packed, 3))

    assert ids_of(packed) == ids_of(packed)
