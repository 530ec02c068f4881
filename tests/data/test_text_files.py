"""Other people's text: whatever a row, a file or a folder holds is read, or told in one line that names it."""

import gzip
import io
import itertools
import json
import os
import tracemalloc
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_text import FORMATS, OF_JSON, SINGLE, lines, zstd

from crosscode.data import Dataloader, Harvester, TokenSequences, documents, text_files
from crosscode.data.text_folders import kind_of
from crosscode.errors import BadInput
from crosscode.training import describe
from crosscode.training.description import differences

EOS = 1
PLAIN: dict[str, Any] = {"separator": "none", "prepend_bos": False, "short": "pad", "split": "all", "seed": None}


@pytest.fixture
def words(fake_model: Callable[..., Any]) -> Callable[..., list[int]]:
    """The numbers of the words that are read of a source, w0 to w60."""

    def read(source: Any, **options: Any) -> list[int]:
        packed = TokenSequences(source, fake_model(), sequence_length=8, **{**PLAIN, **options})
        return [
            token - 3
            for sequence in packed.in_order()
            for token, owner in zip(sequence.tokens_S.tolist(), sequence.documents_S.tolist())
            if owner >= 0
        ]

    return read


@pytest.fixture
def refused(words: Callable[..., list[int]]) -> Callable[..., str]:
    """The one line that reading a source ends with."""

    def read(source: Any, **options: Any) -> str:
        with pytest.raises(BadInput) as raised:
            words(source, **options)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    return read


BAD = {
    "not JSON": '{"text": "w1',
    "not JSON ": "{'text': 'w1'}",
    "must be an object with a key 'text', not list": "[5, 6]",
    "must be an object with a key 'text', not str": '"w1"',
    "must be an object with a key 'text', not int": "7",
    "must be an object with a key 'text', not NoneType": "null",
    "int '7' (column 'text'; of its columns, 'body' could be read)": '{"text": 7, "body": "w1", "n": 1.5}',
    "int '7' (column 'text')": '{"text": 7, "n": 1.5}',
    "true or false 'True'": '{"text": true}',
    "float 'nan'": '{"text": NaN}',
    "object \"{'a': 1}\"": '{"text": {"a": 1}}',
    "a list with list '[5]'": '{"text": [[5]]}',
    "a list with float '5.0'": '{"text": [5.0]}',
    "a list with true or false 'True'": '{"text": [5, true]}',
    "a list with null": '{"text": [5, null]}',
    "a list with str 'w1'": '{"text": ["w1"]}',
    "token ids from -1 to 5; the vocabulary of 'fake' ends at 63": '{"text": [5, -1]}',
    "token ids from 5 to 64; the vocabulary of 'fake' ends at 63": '{"text": [5, 64]}',
    "text_column 'text' is not in": '{"body": "w1"}',
    "cannot be JSON: maximum recursion": '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "cannot be JSON: Exceeds the limit": '{"text": ' + "9" * 5000 + "}",
    "is longer than": '{"text": "' + "w1 " * 400_000 + '"}',
}


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "lines.json"])
@pytest.mark.parametrize(("why", "row"), BAD.items(), ids=lambda value: value[:20])
def test_a_row_that_is_no_text_is_named_or_left_out(why, row, name, tmp_path, words, refused, monkeypatch):
    """Its file, its line and what is wrong with it, also behind the place of a resumed run; the others are read."""
    monkeypatch.setattr(text_files, "LONGEST_TEXT", 1 << 20)
    content = f'{{"text": "w1"}}\r\n\n{{"text": "w2"}}\n{row}\n{{"text": "w3"}}'.encode()
    pack = {".gz": gzip.compress, ".zst": zstd}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(content))

    line = refused(tmp_path / name)

    assert why.strip() in line
    assert f"{name}', line 4" in line
    assert "--skip-bad-rows" in line or "Columns: 'body'" in line
    assert words(tmp_path / name, skip_bad_rows=True) == [1, 2, 3]


@pytest.mark.parametrize(("why", "row"), [pair for pair in BAD.items() if "'text': 'w1'" not in pair[1]][1:])
def test_an_element_of_a_list_that_is_no_text_is_named_or_left_out(why, row, tmp_path, words, refused, monkeypatch):
    """As a line is; rows count from 0."""
    monkeypatch.setattr(text_files, "LONGEST_TEXT", 1 << 20)
    (tmp_path / "a.json").write_text(f' [{{"text": "w1"}},\n{{"text": "w2"}} , {row},{{"text": "w3"}}]\n')

    line = refused(tmp_path / "a.json")

    assert why in line
    assert "a.json', row 2" in line
    assert words(tmp_path / "a.json", skip_bad_rows=True) == [1, 2, 3]


def test_bytes_that_are_not_utf_8_are_named_and_cost_one_document(tmp_path, words, refused):
    """The line, the byte's place in the file and its value."""
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "w1"}\n{"text": "caf\xe9"}\n{"text": "w3"}\n')
    (tmp_path / "a.txt").write_bytes(b"w1\n\nw2\nw2 caf\xe9\nw2\n\nw3\n")
    (tmp_path / "a.json").write_bytes(b'[{"text": "w1"},{"text": "caf\xe9"}, {"text": "w3"}]')

    assert "a.jsonl', line 2 is not in UTF-8: byte 28 of the file is 0xe9" in refused(tmp_path / "a.jsonl")
    assert "a.txt', paragraph from line 3 on is not in UTF-8: byte 13 of the file is 0xe9" in refused(
        tmp_path / "a.txt"
    )
    assert "(line 4)" in refused(tmp_path / "a.txt")
    assert "a.json', row 1 is not in UTF-8: byte 29 of the file is 0xe9" in refused(tmp_path / "a.json")
    for name in ("a.jsonl", "a.txt", "a.json"):
        assert words(tmp_path / name, skip_bad_rows=True) == [1, 3]


def test_parquet_and_arrow_rows_that_are_damaged_are_named_and_cost_one_document(tmp_path, words, refused):
    """Text that is not in UTF-8 between rows that are."""
    import pyarrow
    import pyarrow.parquet

    text = pyarrow.array([b"w1", b"caf\xe9", b"w3", None]).view(pyarrow.string())
    table = pyarrow.table({"text": text})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        assert f"{name}', row 1 cannot be decoded" in refused(tmp_path / name)
        assert words(tmp_path / name, skip_bad_rows=True) == [1, 3]


@pytest.mark.parametrize("name", SINGLE)
def test_half_an_emoji_is_the_replacement_character_and_a_whole_one_stays(name, fake_model, tmp_path):
    """In every format and from Python: what reaches the tokenizer can be encoded; NUL is a character."""
    texts = ["w1 \ud83d w2", "\ude00", "\ud83d\ude00", "w3\0"]
    whole = ["w1 \ufffd w2", "\ufffd", "\U0001f600", "w3\0"]
    if name in OF_JSON:
        rows = [{"text": text} for text in texts]
        content = json.dumps(rows) if name.startswith("a.json.") or name == "a.json" else "".join(map(_line, rows))
        pack = {".gz": gzip.compress, ".zst": zstd}.get(Path(name).suffix, bytes)
        (tmp_path / name).write_bytes(pack(content.encode()))
    else:
        FORMATS[name](tmp_path / name, [{"text": text} for text in whole])
    for source in (tmp_path / name, texts, [{"text": text} for text in texts]):
        opened = TokenSequences(source, fake_model()).open({})
        assert list(opened) == whole
        assert all(type(text) is str for text in whole)


def _line(row: Any) -> str:
    return json.dumps(row) + "\n"


@pytest.mark.parametrize("name", [name for name in SINGLE if name.rpartition(".")[2] not in ("parquet", "arrow")])
def test_a_byte_order_mark_is_no_text(name, tmp_path, words):
    """Also where reading goes on behind it."""
    rows = [{"text": f"w{i}"} for i in range(20)]
    FORMATS[name](tmp_path / name, rows)
    unpack = text_files._open_bytes(tmp_path / name, 0).read()
    pack = {".gz": gzip.compress, ".zst": zstd}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(pack(b"\xef\xbb\xbf" + unpack))
    assert words(tmp_path / name) == list(range(20))
    opened = text_files.open_files([tmp_path / name], "text", {}, 0)
    for n in range(20):
        place = json.loads(json.dumps(opened.place()))
        assert list(text_files.open_files([tmp_path / name], "text", place, n)) == [f"w{i}" for i in range(n, 20)]
        next(opened)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.txt.gz"])
def test_a_file_in_another_encoding_is_refused_with_its_cure(name, encoding, tmp_path, refused):
    """Before anything is made of it."""
    content = '{"text": "w1"}\n'.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    line = refused(tmp_path / name)
    assert name in line
    assert "UTF-16" in line or "begins with b'\\x" in line


@pytest.mark.parametrize("name", [name for name in SINGLE if name.endswith((".gz", ".zst", ".parquet", ".arrow"))])
def test_a_file_that_is_cut_short_is_refused_with_the_place(name, tmp_path, refused):
    """What was there is named, where the format lets it be read."""
    rows = [{"text": "".join(sha256(f"{i} {j}".encode()).hexdigest() for j in range(10))} for i in range(300)]
    FORMATS[name](tmp_path / name, rows)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 3 // 4])
    line = refused(tmp_path / name)
    assert f"{name}' could not be read" in line or f"{name}' ends within its list" in line
    if name.endswith((".gz", ".zst")):
        assert "after" in line


def test_a_list_that_is_cut_short_or_goes_on_is_refused(tmp_path, refused, words):
    """As other damage is: it is the file's, no row's."""
    for content, why in {
        '[{"text": "w1"}, {"text": "w2"}': "ends within its list, after row 0",
        '[{"text": "w1"}, {"text": "w': "ends within its list",
        '[{"text": "w1"}] [{"text": "w2"}]': "goes on behind its list, at byte",
        '"w1"': "could not be read: it begins with b'\"'",
        "<html>": "could not be read: it begins with b'<'",
    }.items():
        (tmp_path / "a.json").write_text(content)
        assert why in refused(tmp_path / "a.json", skip_bad_rows=True)
    for content in ("[]", "", " \n"):
        (tmp_path / "a.json").write_text(content)
        assert "no document" in refused(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('[{"text": "w1"},\n]')
    assert words(tmp_path / "a.json") == [1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.dictionaries(st.text(max_size=3), st.recursive(st.text(), st.lists, max_leaves=4), max_size=3), max_size=8
    ),
    st.sampled_from([None, 1, 3]),
    st.integers(1, 40),
)
def test_a_list_is_cut_where_json_cuts_it(tmp_path_factory, rows, indent, chunk):
    """Any strings, any nesting, any layout, wherever the chunks end; from each place the rest."""
    file = tmp_path_factory.getbasetemp() / "any.json"
    file.write_text(json.dumps(rows, indent=indent, ensure_ascii=indent != 1), encoding="utf-8", errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "CHUNK", chunk)
        begin = file.read_bytes().index(b"[") + 1
        elements = text_files._Elements(file, {"offset": begin})
        places = [elements.place()]
        found = [
            (json.loads(element.decode(errors="surrogatepass")), places.append(elements.place()))
            for element in elements
        ]
        assert [row for row, _ in found] == rows
        for n, place in enumerate(places):
            rest = list(text_files._Elements(file, place))
            assert [json.loads(element.decode(errors="surrogatepass")) for element in rest] == rows[n:]


@pytest.mark.parametrize("name", [name for name in SINGLE if ".txt" not in name])
def test_a_file_is_streamed(name, tmp_path):
    """Reading 6 MB takes less than a third of that."""
    rows = [{"text": f"w{i} " + "x" * 6000} for i in range(1000)]
    FORMATS[name](tmp_path / name, rows)
    opened = text_files.open_files([tmp_path / name], "text", {}, 0)
    next(opened)
    tracemalloc.start()
    n = sum(1 for _ in opened)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n == 999
    assert most < 2_000_000


def test_a_text_without_blank_lines_is_refused_before_it_fills_memory(tmp_path, refused, words, monkeypatch):
    """A document a line is .jsonl's: as one paragraph it would be tokenised whole."""
    monkeypatch.setattr(text_files, "LONGEST_TEXT", 1000)
    (tmp_path / "a.txt").write_text("w1\n" * 400 + "\nw2\n")
    assert "paragraph from line 1 on is longer than 64 MiB" in refused(tmp_path / "a.txt")
    assert words(tmp_path / "a.txt", skip_bad_rows=True) == [2]


@pytest.mark.parametrize("name", SINGLE)
def test_a_file_that_was_cut_since_is_no_end_of_the_text(name, tmp_path):
    """A place behind the end of a file is told; at its very end there is nothing more."""
    rows = [{"text": f"w{i}"} for i in range(60)]
    FORMATS[name](tmp_path / name, rows)
    opened = text_files.open_files([tmp_path / name], "text", {}, 0)
    list(itertools.islice(opened, 50))
    place, _ = opened.place(), list(itertools.islice(opened, 10))
    assert list(text_files.open_files([tmp_path / name], "text", opened.place(), 60)) == []
    FORMATS[name](tmp_path / name, rows[:40])
    with pytest.raises(BadInput, match=rf"{name}' (ends (before|after)|has no line).*: it was c"):
        list(text_files.open_files([tmp_path / name], "text", place, 50))


def test_a_line_that_moved_is_told(tmp_path):
    """A place is the beginning of a line."""
    (tmp_path / "a.jsonl").write_bytes(lines([{"text": f"w{i}"} for i in range(10)]))
    opened = text_files.open_files([tmp_path / "a.jsonl"], "text", {}, 0)
    list(itertools.islice(opened, 5))
    (tmp_path / "a.jsonl").write_bytes(lines([{"text": f"w1{i}"} for i in range(10)]))
    with pytest.raises(BadInput, match="has no line that begins at byte 75: it was changed"):
        list(text_files.open_files([tmp_path / "a.jsonl"], "text", opened.place(), 5))


@pytest.mark.parametrize("value", [-1, 2**63, 1.0, "3", None, [], True])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt", "a.parquet", "a.arrow"])
def test_a_place_that_is_none_is_refused(value, name, tmp_path):
    """Of a checkpoint that was changed by hand."""
    FORMATS[name](tmp_path / name, [{"text": "w1"}] * 10)
    opened = text_files.open_files([tmp_path / name], "text", {}, 0)
    next(opened)
    for key in opened.place():
        with pytest.raises(BadInput, match="is not a place in a text"):
            list(text_files.open_files([tmp_path / name], "text", {**opened.place(), key: value}, 0))


# --- columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_column_that_is_no_text_says_why_that_one_is_not(suffix, tmp_path, refused, words):
    """Its type, as its writer calls it, and which columns could be read."""
    import datasets

    columns = {
        "text": ["w1"], "ids": [[5, 6]], "n": [1], "x": [0.5], "flag": [True], "raw": [b"w1"], "meta": [{"a": 1}],
        "words": [["w1"]], "image": [{"bytes": b"", "path": None}], "label": [0],
    }  # fmt: skip
    features = datasets.Dataset.from_dict({k: v for k, v in columns.items() if k not in ("image", "label")}).features
    features |= {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a"])}
    rows = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    if suffix == "parquet":
        rows.to_parquet(tmp_path / "a.parquet")
    else:
        rows.save_to_disk(tmp_path / "a.arrow")
    source = tmp_path / f"a.{suffix}"
    for column, kind in {
        "n": "int64", "x": "double", "flag": "bool", "raw": "binary", "meta": "struct<a: int64>",
        "words": "list<", "image": "Image (struct<bytes", "label": "ClassLabel (int64)",
    }.items():  # fmt: skip
        for told in (source, rows):
            line = refused(told, text_column=column)
            assert f"text_column {column!r} of dataset" in line
            assert f"of type {kind}" in line
            assert line.endswith("Columns that could be read: 'text', 'ids'.")
    assert words(source) == [1]
    assert words(source, text_column="ids") == [2, 3]
    assert words(rows, text_column="ids") == [2, 3]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "arrow", "json", "jsonl.gz"])
def test_a_column_that_a_later_file_lacks_is_told_at_once(suffix, tmp_path, refused):
    """Not after hours, when its turn comes."""
    for name, column in {"a": "text", "b": "text", "c": "content"}.items():
        FORMATS[f"a.{suffix}"](tmp_path / f"{name}.{suffix}", [{column: "w1"}] * 5)
    line = refused(tmp_path)
    assert "text_column 'text' is not in" in line
    assert f"c.{suffix}'" in line
    assert "Columns: " in line


# --- folders and parts -----------------------------------------------------------------------------------------------


def save(folder: Path, **texts: str) -> Path:
    """Files of one document each, in the format of their names; what has none is written as it is."""
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        kind = next((kind for kind in FORMATS if name.endswith(kind.removeprefix("a").removeprefix("lines"))), None)
        if kind is None:
            (folder / name).write_text(text)
        else:
            FORMATS[kind](folder / name, [{"text": text}])
    return folder


@pytest.mark.parametrize(
    ("files", "read"),
    [
        ({"a.jsonl": "w1", "b/c.jsonl.gz": "w2", "d.jsonl.zst": "w3"}, [1, 2, 3]),
        ({"a.jsonl": "w1", "dataset_info.json": "w2", "stats.json": "w3", "notes.txt": "w4", "x.md": "w5"}, [1]),
        ({"a.parquet": "w1", ".cache/hub/b.parquet": "w2", "_delta_log/0.json": "w3", ".git/c.json": "w4"}, [1]),
        ({"a.json.gz": "w1", "b.json": "w2", "dataset_infos.json": "w3", "README.txt": "w4"}, [1, 2]),
        ({"1.txt": "w1", "2.txt": "w2", "metadata.json": "w3", "requirements.txt": "w4"}, [1, 2]),
        ({"en/c4-train.00000-of-00002.json.gz": "w1", "en/c4-validation.00000-of-00001.json.gz": "w2"}, [1]),
        ({"data/train-00000-of-00001.parquet": "w1", "data/test-00000-of-00001.parquet": "w2"}, [1]),
        ({"data/sft-00000-of-00001.parquet": "w1"}, [1]),
        ({"train/a.jsonl": "w1", "test/a.jsonl": "w2", "dev/a.jsonl": "w3"}, [1]),
        ({"train.jsonl": "w1", "test.jsonl": "w2", "valid.jsonl": "w3"}, [1]),
        ({"my_test_set.jsonl": "w1"}, [1]),
        ({"latest.jsonl": "w1", "contest.jsonl": "w2"}, [2, 1]),
    ],
)  # fmt: skip
def test_a_folder_is_one_text(files, read, tmp_path, words):
    """Its files of one format, of one split; no metadata, nothing hidden."""
    assert words(save(tmp_path, **files)) == read


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(("a.txt", ".txt"), ("A.TXT", ".txt"), ("a.jsonl", ".jsonl"), ("a.b.Json", ".json")),
        *(("a.jsonl.gz", ".jsonl"), ("A.JSONL.GZ", ".jsonl"), ("a.Txt.Zst", ".txt"), ("a.JSON.gz", ".json")),
        *(("a.csv.gz", ".gz"), ("a.gz", ".gz"), ("a.txt.parquet", ".parquet"), ("a", "")),
    ],
)
def test_the_kind_of_a_file_is_its_suffix_in_either_case(name, kind):
    assert kind_of(Path(name)) == kind


def test_a_split_is_named_and_a_split_that_is_not_there_lists_those_that_are(tmp_path, words, refused):
    """In folders, in what `save_to_disk` wrote and in what was loaded, by one option."""
    import datasets

    splits = {"train": "w1", "test": "w2", "extra": "w3"}
    loaded = datasets.DatasetDict({name: datasets.Dataset.from_list([{"text": t}]) for name, t in splits.items()})
    loaded.save_to_disk(tmp_path / "saved")
    save(tmp_path / "folder", **{f"data/{name}-00000-of-00001.parquet": text for name, text in splits.items()})
    for source in (loaded, tmp_path / "saved", tmp_path / "folder"):
        assert words(source) == [1]
        assert words(source, dataset_split="extra") == [3]
        line = refused(source, dataset_split="tests")
        assert "dataset_split='tests' is not a split of" in line
        assert "Did you mean 'test'?" in line
    del loaded["train"]
    assert "has no split 'train': name one with --dataset-split. Known: 'extra', 'test'" in refused(loaded)
    assert words(datasets.DatasetDict(only=loaded["test"])) == [2]


def test_a_folder_that_says_not_what_its_text_is_is_refused_with_a_pattern_that_does(tmp_path, words, refused):
    """Two formats of rows; .json beside .txt; some files of a split and some of none."""
    both = save(tmp_path / "both", **{"a.jsonl": "w1", "b.parquet": "w2"})
    assert "holds files of several formats: 1 .parquet ('b.parquet'), 1 .jsonl" in refused(both)
    assert words(f"{both}/**/*.jsonl") == [1]
    mixed = save(tmp_path / "mixed", **{"a.json": "w1", "b.txt": "w2"})
    assert "several formats" in refused(mixed)
    assert words(str(mixed / "*.txt")) == [2]
    partly = save(tmp_path / "partly", **{"corpus.jsonl": "w1", "corpus_test.jsonl": "w2"})
    assert "'corpus_test.jsonl' names a split and 'corpus.jsonl' none" in refused(partly)
    assert words(partly, dataset_split="test") == [2]
    assert "no file matches this pattern" in refused(f"{both}/*.txt")


def test_configurations_that_a_snapshot_declares_are_chosen(tmp_path, words, refused):
    """By its README.md, as the hub does; those whose files are not here are not known."""
    save(tmp_path, **{"en/train.jsonl": "w1", "en/test.jsonl": "w2", "de/x-1.jsonl": "w3", "de/x-2.jsonl": "w4"})
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/train.jsonl\n"
        "  - split: test\n    path: en/test*\n- config_name: de\n  data_files: de/*\n"
        "- config_name: fr\n  data_files: fr/*\n---\n# A data set\n"
    )
    assert "several configurations: name one with --dataset-config. Known: 'de', 'en'" in refused(tmp_path)
    assert words(tmp_path, dataset_config="en") == [1]
    assert words(tmp_path, dataset_config="en", dataset_split="test") == [2]
    assert words(tmp_path, dataset_config="de") == [3, 4]
    assert "dataset_config='fr' is not a configuration" in refused(tmp_path, dataset_config="fr")
    (tmp_path / "README.md").write_text("---\n: [\n---")
    assert "declares no configurations in a README.md. Name its folder" in refused(tmp_path, dataset_config="en")


def test_revisions_of_the_hub_s_cache_are_never_one_text(tmp_path, words, refused):
    """`main` unless another is named."""
    FORMATS["datasets--a--b"](tmp_path / "datasets--a--b", [{"text": "w1"}, {"text": "w2"}])
    FORMATS["a.parquet"](tmp_path / "datasets--a--b" / "snapshots" / "older" / "data" / "b.parquet", [{"text": "w9"}])
    assert words(tmp_path / "datasets--a--b") == [1, 2]
    assert words(tmp_path / "datasets--a--b", dataset_revision="older") == [9]
    assert words(tmp_path / "datasets--a--b" / "snapshots" / "older") == [9]
    assert "dataset_revision='oldest' is not in" in refused(tmp_path / "datasets--a--b", dataset_revision="oldest")
    next((tmp_path / "datasets--a--b" / "blobs").iterdir()).unlink()
    (tmp_path / "datasets--a--b" / "blobs" / "0").unlink(missing_ok=True)
    assert "is a link to what is not there" in refused(tmp_path / "datasets--a--b")


@pytest.mark.parametrize("name", ["config", "split", "revision"])
def test_a_part_of_what_has_none_is_refused(name, tmp_path, refused, words):
    """A file, a list, the embedded text, a folder without any."""
    FORMATS["a.jsonl"](tmp_path / "a.jsonl", [{"text": "w1"}])
    FORMATS["saved"](tmp_path / "saved", [{"text": "w1"}])
    for source in (tmp_path / "a.jsonl", tmp_path, ["w1"], "embedded", tmp_path / "saved"):
        if source == tmp_path and name != "revision":
            (tmp_path / "saved").rename(tmp_path / "_saved")
        line = refused(source, **{f"dataset_{name}": "x"})
        assert f"dataset_{name}='x'" in line
        if source == tmp_path and name != "revision":
            (tmp_path / "_saved").rename(tmp_path / "saved")


def test_what_cannot_be_a_text_is_told_with_what_to_do_instead(tmp_path, refused, monkeypatch):
    """Models, packed parquet, tables of commas, what may not be read, folders of links in a circle."""
    FORMATS["a.parquet"](tmp_path / "a.parquet", [{"text": "w1"}])
    (tmp_path / "a.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    (tmp_path / "a.csv").write_text("text\nw1")
    (tmp_path / "a.zip").write_text("")
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "merges.txt"):
        (tmp_path / "model" / name).write_text("{}")
    assert "compressed within: unpack it" in refused(tmp_path / "a.parquet.gz")
    assert "to_parquet" in refused(tmp_path / "a.csv")
    assert "Unpack it first" in refused(tmp_path / "a.zip")
    assert "is a language model, not a text: name it with --models" in refused(tmp_path / "model")
    save(tmp_path / "some", **{"a.jsonl": "w1", "b.jsonl": "w2"})
    (tmp_path / "some" / "circle").symlink_to(tmp_path / "some")
    monkeypatch.setattr(os, "access", lambda file, mode: not str(file).endswith("b.jsonl"))
    assert "b.jsonl' may not be read: see its permissions" in refused(tmp_path / "some")


def test_what_save_to_disk_wrote_is_whole_or_refused(tmp_path, refused):
    """A shard that is missing, a list of shards that leads elsewhere or is none."""
    FORMATS["saved"](tmp_path / "saved", [{"text": f"w{i}"} for i in range(9)])
    state = json.loads((tmp_path / "saved" / "state.json").read_text())
    for files in ([{"filename": "gone.arrow"}], [{"filename": "../a.arrow"}], [{}], None, "ab", [[]]):
        (tmp_path / "saved" / "state.json").write_text(json.dumps({**state, "_data_files": files}))
        assert "state.json' " in refused(tmp_path / "saved")
    (tmp_path / "saved" / "state.json").write_text("{")
    assert "is not what `save_to_disk` wrote" in refused(tmp_path / "saved")


# --- from Python -----------------------------------------------------------------------------------------------------


def test_strings_and_ids_of_every_kind_are_read(words):
    """numpy's and torch's are what Python's are."""
    for source in (
        [np.str_("w1"), np.str_("w2")],
        np.array(["w1", "w2"]),
        [np.array("w1"), "w2"],
        [[4, 5]],
        [(4,), [], (), [5], None, ""],
        [np.array([4, 5], dtype=np.uint16)],
        [[np.int64(4), np.int32(5)]],
        [torch.tensor([4, 5], dtype=torch.int16)],
        [[torch.tensor(4), torch.tensor(5)]],
        torch.tensor([[4], [5]]),
        [{"text": np.array([4])}, {"text": torch.tensor([5])}],
        ("w1", "w2"),
        dict.fromkeys(["w1", "w2"]),
    ):
        assert words(source) == [1, 2]


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (b"w1", "bytes \"b'w1'\""),
        (7, "int '7'"),
        (True, "true or false"),
        (float("nan"), "float 'nan'"),
        (Path("a.txt"), "PosixPath 'a.txt'"),
        (["w1"], "a list with str 'w1'"),
        ([True], "a list with true or false"),
        ([4.0], "a list with float"),
        ([np.bool_(True)], "a list with true or false"),
        ([[4]], "a list with list '[4]'"),
        (np.array([[4]]), "a list with list"),
        (np.array([4.0]), "a list with float"),
        (torch.tensor([True]), "a list with true or false"),
        (torch.tensor(4), "int '4'"),
        ([4, 64], "token ids from 4 to 64"),
        (np.array([-1]), "token ids from -1 to -1"),
        (object(), "object"),
    ],
)
def test_what_is_handed_over_and_no_text_is_named_by_its_number(document, why, words, refused):
    """Or left out."""
    line = refused(["w1", document, "w2"])
    assert "dataset <list>, document 1" in line
    assert why in line
    assert words(["w1", document, "w2"], skip_bad_rows=True) == [1, 2]


def test_what_iterates_over_something_else_than_texts_is_refused(refused):
    """Column names, keys, bytes, a function."""
    import pandas
    import pyarrow

    table = pyarrow.table({"text": ["w1"]})
    for source, why in (
        ({"text": ["w1"]}, "is a mapping, whose keys would be read"),
        (table, "is a table, whose columns would be read"),
        (pandas.DataFrame({"text": ["w1"]}), "is a table, whose columns would be read"),
        (b"w1", "is no iterable of texts"),
        (lambda: iter(["w1"]), "is no iterable of texts"),
        (7, "is no iterable of texts"),
        (io.StringIO("w1"), "is an iterator"),
    ):
        assert why in refused(source)
    assert pandas.Series(["w1"]).tolist() == ["w1"]


def test_columns_that_are_not_read_are_not_decoded(words):
    """An image that is none stands beside each text."""
    import datasets

    rows = datasets.Dataset.from_dict(
        {"text": ["w1", "w2"], "image": [{"bytes": b"no image", "path": None}] * 2},
        features=datasets.Features({"text": datasets.Value("string"), "image": datasets.Image()}),
    )
    assert words(rows) == [1, 2]
    assert words(rows.to_iterable_dataset()) == [1, 2]


# --- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_the_hub(tmp_path, monkeypatch):
    """A data set of two configurations in a local folder, which the real library streams under the name `some/data`."""
    import datasets

    save(tmp_path / "hub", **{"en/train.jsonl": "w1", "en/test.jsonl": "w2", "de/train.jsonl": "w3"})
    (tmp_path / "hub" / "README.md").write_text(
        "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/train.jsonl\n"
        "  - split: test\n    path: en/test.jsonl\n- config_name: de\n  data_files: de/*\n---\n"
    )
    load, asked = datasets.load_dataset, []

    def load_dataset(name: str, config: str | None, **options: Any) -> Any:
        asked.append(options.pop("revision"))
        return load(str(tmp_path / "hub"), config, **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return asked


def test_configuration_split_and_revision_of_a_hub_data_set_are_named(on_the_hub, words, refused):
    """Each by its option; what is missing or mistyped lists what there is."""
    assert words("some/data", dataset_config="en", dataset_revision="v1") == [1]
    assert on_the_hub == ["v1"]
    assert words("some/data", dataset_config="en", dataset_split="test") == [2]
    line = refused("some/data")
    assert line == "dataset 'some/data' has several configurations: name one with --dataset-config. Known: 'de', 'en'."
    assert "dataset_config='eng' is not a configuration of dataset 'some/data'. Did you mean 'en'?" in refused(
        "some/data", dataset_config="eng"
    )
    assert "dataset_split='tset' is not a split of dataset 'some/data'. Did you mean 'test'?" in refused(
        "some/data", dataset_config="en", dataset_split="tset"
    )


class Shaky:
    """Rows of a hub that breaks once in the middle, and then cannot be opened at first."""

    def __init__(self, n: int) -> None:
        self.n, self.at = n, 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


@pytest.mark.parametrize("n_failed_openings", [0, 1, 3])
@pytest.mark.parametrize("at", [0, 1, 63, 64, 65, 99, 100])
def test_a_stream_that_cannot_be_opened_again_at_once_loses_nothing(at, n_failed_openings, words, monkeypatch):
    """It breaks in the middle, opening it again fails, and then it works: no row is lost or read twice."""
    import datasets

    openings: list[str] = []
    state = {"broken": False, "failures": n_failed_openings}

    class Rows(Shaky):
        def __iter__(self) -> Any:
            while self.at < self.n:
                if self.at == at and not state["broken"]:
                    state["broken"] = True
                    raise ConnectionError("reset by peer")
                self.at += 1
                yield {"text": f"w{(self.at - 1) % 60}"}

    def load_dataset(*args: Any, **options: Any) -> Rows:
        openings.append("")
        if state["broken"] and state["failures"]:
            state["failures"] -= 1
            raise ConnectionError("no route to host")
        return Rows(100)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(documents.time, "sleep", lambda seconds: None)
    assert words("some/data") == [i % 60 for i in range(100)]
    assert len(openings) == 1 + (1 + n_failed_openings if at < 100 else 0)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_stream_is_resumed_again_and_again(kind, fake_model, tmp_path, monkeypatch):
    """The installed `datasets`, over several files: each time from where the last time ended, to the text's end."""
    import datasets

    for i in range(3):
        rows = [{"text": f"w{(40 * i + j) % 60}", "n": j} for j in range(40)]
        FORMATS[f"a.{kind}"](tmp_path / f"{i}.{kind}", rows)
    load = datasets.load_dataset
    source = {"data_files": str(tmp_path / f"*.{kind}"), "split": "train", "streaming": True}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: load(kind.replace("jsonl", "json"), **source))
    found: list[Any] = []
    place: dict[str, Any] = {}
    while True:
        packed = TokenSequences("some/data", fake_model())
        some = packed.open(place, len(found))
        new = list(itertools.islice(some, 17))
        found += new
        place = json.loads(json.dumps(some.place()))
        if len(new) < 17:
            break
        assert some.where() == f"dataset 'some/data', row {len(found) - 1}"
    assert found == [f"w{i % 60}" for i in range(120)]


# --- what is left out is counted ------------------------------------------------------------------------------------


def bad_rows_file(folder: Path) -> Path:
    """Of 400 rows every seventh is bad."""
    rows = ["{" if i % 7 == 3 else json.dumps({"text": f"w{i % 60} w{i % 59} w{i % 7}"}) for i in range(400)]
    (folder / "a.jsonl").write_text("\n".join(rows))
    return folder / "a.jsonl"


@pytest.mark.parametrize("ahead", [0, 3])
def test_bad_rows_are_counted_and_right_under_resume(ahead, fake_model, tmp_path):
    """From any cursor on, the same batches and counts; later epochs count none anew, nor are held-out rows counted."""
    model = fake_model()
    text = TokenSequences(
        bad_rows_file(tmp_path), model, sequence_length=8, shuffle_sequences=8, skip_bad_rows=True, held_out_every=10
    )
    harvester = Harvester(model, "a", sequences_at_once=2)
    loader = Dataloader(text, harvester, 16, shuffle_buffer=64, squeeze=True, epochs=2, ahead=ahead)
    batches, whole = iter(loader), []
    for batch in batches:
        whole.append((batch.inputs_BXiDi, batches.cursor()))
    counts = [cursor["bad_rows"] for _, cursor in whole]
    bad = [i for i in range(400) if i % 7 == 3]
    assert counts == sorted(counts)
    assert counts[-1] == sum(i % 10 != 9 for i in bad)
    assert 0 < counts[len(counts) // 4] < counts[-1]
    for n in range(0, len(whole), 11):
        cursor = json.loads(json.dumps(whole[n][1]))
        resumed = loader.iter_from(cursor)
        for acts, expected in whole[n + 1 : n + 4]:
            assert torch.equal(next(resumed).inputs_BXiDi, acts)
            assert resumed.cursor() == expected
        resumed.close()


def test_leaving_bad_rows_out_changes_no_other_documents_split(fake_model, tmp_path):
    """A row counts whether or not it is one: what is held out stays held out when a row goes bad."""
    file = bad_rows_file(tmp_path)
    seen = {}
    for split in ("train", "held_out"):
        packed = TokenSequences(file, fake_model(), split=split, skip_bad_rows=True, sequence_length=4, short="pad")
        seen[split] = {i for s in packed for i in s.documents_S.tolist()} - {-1, -2}
    good = {i for i in range(400) if i % 7 != 3}
    assert seen["held_out"] == {i for i in good if i % 20 == 19}
    assert seen["train"] == good - seen["held_out"]


def test_a_bad_row_of_the_other_split_is_told_while_training(fake_model, tmp_path):
    """Not at the end, when the held-out text is read."""
    rows = ["{" if i == 19 else json.dumps({"text": "w1"}) for i in range(40)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    with pytest.raises(BadInput, match="line 20 is not JSON"):
        list(TokenSequences(tmp_path / "a.jsonl", fake_model(), split="train", sequence_length=4))


def test_a_run_may_go_on_leaving_bad_rows_out(fake_model, tmp_path):
    """Up to there none was met: its description is that of the run that ended with one."""
    file = bad_rows_file(tmp_path)
    one, other = (describe(TokenSequences(file, fake_model(), skip_bad_rows=skip)) for skip in (False, True))
    assert differences(one, other) == []


def test_a_text_of_bad_rows_alone_is_none(tmp_path, refused):
    """It says how many there were."""
    (tmp_path / "a.jsonl").write_text('{"body": "w1"}\n' * 30)
    line = refused(tmp_path / "a.jsonl", skip_bad_rows=True)
    assert line.endswith("has no document in its split 'all': all its 30 rows are bad.")
