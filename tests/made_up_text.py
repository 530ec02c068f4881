"""The same rows in every format that is read: a reader that joins `FORMATS` is put through every law of the others."""

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def zstd(content: bytes) -> bytes:
    """In two frames, as parallel compressors and `cat` make them."""
    import pyarrow

    codec, half = pyarrow.Codec("zstd"), len(content) // 2
    return b"".join(codec.compress(part, asbytes=True) for part in (content[:half], content[half:]))


def lines(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def pretty_list(rows: Rows) -> bytes:
    """With brackets, commas and quotes where only a parser knows what they mean."""
    return json.dumps([{"[": '"}],{\\', **row} for row in rows], indent=1).encode()


def paragraphs(rows: Rows) -> bytes:
    return "\r\n \r\n\n".join(row["text"] for row in rows).encode()


def save_parquet(file: Path, rows: Rows) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file, row_group_size=37)


def save_arrow(file: Path, rows: Rows) -> None:
    """A stream, as `Dataset.save_to_disk` writes it."""
    import pyarrow

    table = pyarrow.Table.from_pylist(list(rows))
    with pyarrow.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=23)


def save_feather(file: Path, rows: Rows) -> None:
    """A file with the places of its batches at the end."""
    import pyarrow

    table = pyarrow.Table.from_pylist(list(rows))
    with pyarrow.ipc.new_file(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=23)


def save_to_disk(folder: Path, rows: Rows) -> None:
    import datasets

    datasets.Dataset.from_list(list(rows)).save_to_disk(folder, num_shards=min(3, len(rows)))


def save_dict_to_disk(folder: Path, rows: Rows) -> None:
    import datasets

    splits = {"train": list(rows), "test": [{**rows[0], "text": "w60 w60 w60"}]}
    datasets.DatasetDict({name: datasets.Dataset.from_list(some) for name, some in splits.items()}).save_to_disk(folder)


def save_shards(folder: Path, rows: Rows) -> None:
    folder.mkdir()
    for i in range(0, len(rows), 60):
        (folder / f"{i:03}.jsonl").write_bytes(lines(rows[i : i + 60]))


def save_snapshot(folder: Path, rows: Rows) -> None:
    """A data set of the hub in its cache: links into `blobs`, two splits, and what lies beside them."""
    snapshot = folder / "snapshots" / "a1b2"
    (snapshot / "data").mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("a1b2")
    (folder / "snapshots" / "older" / "data").mkdir(parents=True)
    half = len(rows) // 2
    shards = {
        "train-00000-of-00002": rows[:half],
        "train-00001-of-00002": rows[half:],
        "test-00000-of-00001": [{**rows[0], "text": "w60 w60"}],
    }
    for i, (name, some) in enumerate(shards.items()):
        save_parquet(folder / "blobs" / f"{i}", some)
        (snapshot / "data" / f"{name}.parquet").symlink_to(folder / "blobs" / f"{i}")
    for name in ("dataset_infos.json", ".hidden.json", "statistics.json"):
        (snapshot / name).write_text('{"text": "w60 w60"}')
    (snapshot / "README.md").write_text("---\nlicense: mit\n---\nw60 w60")
    (snapshot / "LICENSE.txt").write_text("w60 w60")


def written(make: Callable[[Rows], bytes], pack: Callable[[bytes], bytes] = bytes) -> Callable[[Path, Rows], Any]:
    return lambda file, rows: file.write_bytes(pack(make(rows)))


FORMATS: Mapping[str, Callable[[Path, Rows], Any]] = {
    "a.jsonl": written(lines),
    "a.jsonl.gz": written(lines, gzip.compress),
    "a.jsonl.zst": written(lines, zstd),
    "a.json": written(pretty_list),
    "a.json.gz": written(pretty_list, gzip.compress),
    "lines.json": written(lines),
    "lines.json.gz": written(lines, gzip.compress),
    "a.txt": written(paragraphs),
    "a.txt.zst": written(paragraphs, zstd),
    "a.parquet": save_parquet,
    "a.arrow": save_arrow,
    "file.arrow": save_feather,
    "saved": save_to_disk,
    "saved_dict": save_dict_to_disk,
    "several": save_shards,
    "datasets--a--b": save_snapshot,
}
"""What each is called, and what writes rows of texts there."""
SINGLE = tuple(name for name in FORMATS if "." in name)
OF_JSON = tuple(name for name in SINGLE if ".json" in name)
