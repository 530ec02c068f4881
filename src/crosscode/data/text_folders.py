"""Which files a path stands for: a file, a pattern, a folder, or a data set of `datasets` or its hub that lies here."""

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from crosscode.data.documents import chosen_split, no_config, tell_once, without_parts
from crosscode.errors import DAMAGE, BadInput, close_match, first_line

ROWS = (".parquet", ".arrow", ".jsonl")  # hold rows and nothing else
SUFFIXES = (*ROWS, ".json", ".txt")
PACKED = (".gz", ".zst")  # of the last three
# Names of .json and .txt files that lie beside a text and are none: of `datasets`, its hub, models, and people.
BESIDE = {
    *("dataset_infos", "dataset_info", "dataset_dict", "state", "metadata", "croissant", "package", "readme"),
    *("config", "generation_config", "tokenizer", "tokenizer_config", "special_tokens_map", "added_tokens", "vocab"),
    *("merges", "license", "licence", "notice", "citation", "changelog", "requirements", "robots"),
}
WEIGHTS = ("*.safetensors", "*.gguf", "pytorch_model*.bin")
INSTEAD = {
    ".csv": " `datasets.load_dataset('csv', data_files=…, split='train').to_parquet('text.parquet')` converts it.",
    ".tsv": " `datasets.load_dataset('csv', data_files=…, sep='\\t', split='train').to_parquet('text.parquet')` does.",
    ".gz": " A parquet or arrow file is compressed within: unpack it.",
    ".zst": " A parquet or arrow file is compressed within: unpack it.",
    **dict.fromkeys((".zip", ".tar", ".tgz", ".bz2", ".xz", ".7z"), " Unpack it first."),
}
# As `datasets` finds splits in names.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")

Splits = Mapping[str | None, list[Path]]
"""The files of each split; all under None where nothing names one."""


def files_of(
    path: Path, config: str | None = None, split: str | None = None, revision: str | None = None
) -> tuple[Path, ...]:
    """The text files that a path stands for, sorted.

    Folders are searched to any depth, but not what is hidden or begins with `_`, and not what is known to lie beside a
    text (`dataset_infos.json`, `README.txt`). A folder is a text of one format: beside files of rows (.parquet,
    .arrow, .jsonl) others are left out, and any other mixture is refused. Files whose names or folders name a split
    (`train-00000-of-00002.parquet`, `test/a.jsonl`) are of that split alone.

    Args:
        path: a file, a folder or a pattern such as `folder/**/*.jsonl`; also what `save_to_disk` wrote, a snapshot of
            the hub, or a data set's folder in the hub's cache.
        config: of those that the folder's README.md declares.
        split: of those that the folder has; by default `train`, or the only one.
        revision: of those in the hub's cache.

    Raises:
        BadInput: nothing is there, it cannot be told what the text is, or it cannot be read.
    """
    what = f"dataset {str(path)!r}"
    if path.is_dir():
        files = _of_folder(path, config, split, revision)
    elif is_pattern(str(path)) and not path.exists():
        without_parts(what, config, split, revision)
        found = sorted(Path(file) for file in glob.glob(str(path), recursive=True))
        files = tuple(file for file in found if not file.is_dir())
        if not files:
            raise BadInput(f"{what}: no file matches this pattern.")
    else:
        without_parts(what, config, split, revision)
        if not path.is_file():
            raise BadInput(f"dataset file {str(path)!r} does not exist.{_neighbours(path)}")
        files = (path,)
    for file in files:
        _check_file(file)
    return files


def kind_of(file: Path) -> str:
    """`.jsonl` for `a.jsonl`, `a.jsonl.gz` and `a.jsonl.zst`."""
    suffix = file.suffix.lower()
    within = Path(file.stem).suffix.lower()
    return within if suffix in PACKED and within in (".jsonl", ".json", ".txt") else suffix


def is_pattern(name: str) -> bool:
    return any(sign in name for sign in "*?[")


def looks_local(source: str) -> bool:
    """Whether a name is meant as a path: it exists, begins like one, is a pattern, or ends in a suffix we read."""
    path = Path(source).expanduser()
    return path.exists() or source.startswith((".", "/", "~")) or is_pattern(source) or kind_of(path) in SUFFIXES


def _check_file(file: Path) -> None:
    if kind_of(file) not in SUFFIXES:
        raise BadInput(
            f"dataset file {str(file)!r}: the suffix must be one of {', '.join(SUFFIXES)}, the last three also with "
            f"{' or '.join(PACKED)}.{INSTEAD.get(file.suffix.lower(), '')}"
        )
    if not file.exists():
        raise BadInput(f"dataset file {str(file)!r} is a link to what is not there: fetch it again.")
    if not os.access(file, os.R_OK):
        raise BadInput(f"dataset file {str(file)!r} may not be read: see its permissions.")


def _of_folder(path: Path, config: str | None, split: str | None, revision: str | None) -> tuple[Path, ...]:
    what = f"dataset folder {str(path)!r}"
    if (path / "snapshots").is_dir() and ((path / "refs").is_dir() or (path / "blobs").is_dir()):
        return _of_folder(_snapshot(path, revision, what), config, split, None)
    without_parts(what, None, None, revision)
    if (path / "config.json").is_file() and any(next(path.glob(weights), None) for weights in WEIGHTS):
        raise BadInput(f"{what} is a language model, not a text: name it with --models.")
    if (path / "dataset_dict.json").is_file():
        without_parts(what, config, None, None)
        known = _names(path / "dataset_dict.json", "splits")
        return _of_folder(path / chosen_split(split, known, what), None, None, None)
    if (path / "state.json").is_file() and next(path.glob("*.arrow"), None) is not None:
        return _saved(path, config, split, what)
    files = tuple(_walked(path))
    configs = _configs(path, files)
    if configs:
        return _chosen(_of_config(configs, config, what), split, what)
    if config is not None:
        inside = path / config
        hint = f" Name its folder {str(inside)!r} instead." if inside.is_dir() else ""
        raise BadInput(f"dataset_config={config!r}: {what} declares no configurations in a README.md.{hint}")
    files = _of_one_format(files, path, what)
    if not files:
        raise BadInput(f"{what} holds no {', '.join(SUFFIXES)} file.")
    return _chosen(_by_split(files, path, split, what), split, what)


def _snapshot(path: Path, revision: str | None, what: str) -> Path:
    """The folder of a revision (`main` by default, or the only one) in a data set's folder of the hub's cache."""
    known = sorted(folder.name for folder in (path / "snapshots").iterdir() if folder.is_dir())
    reference = path / "refs" / (revision or "main")
    commit = reference.read_bytes().decode(errors="replace").strip() if reference.is_file() else revision
    if commit is None and len(known) == 1:
        commit = known[0]
    if commit not in known:
        raise BadInput(
            f"dataset_revision={revision or 'main'!r} is not in {what}.{close_match(revision or 'main', known)}"
        )
    return path / "snapshots" / str(commit)


def _names(file: Path, key: str) -> list[str]:
    """A list of names in a JSON file that `datasets` wrote; none of them leads out of its folder."""
    try:
        entries = json.loads(file.read_text())[key]
        names = [str(entry["filename"] if isinstance(entry, Mapping) else entry) for entry in entries]
        lost = [name for name in names if name == ".." or Path(name).name != name or not (file.parent / name).exists()]
    except (OSError, *DAMAGE) as error:
        raise BadInput(f"{str(file)!r} is not what `save_to_disk` wrote: {first_line(error)}") from error
    if lost:
        raise BadInput(f"{str(file)!r} names {lost[0]!r}, which is not beside it: copy the whole folder again.")
    return names


def _saved(path: Path, config: str | None, split: str | None, what: str) -> tuple[Path, ...]:
    """The files of a `Dataset` that `save_to_disk` wrote."""
    files = tuple(path / name for name in _names(path / "state.json", "_data_files"))
    state: Mapping[str, Any] = json.loads((path / "state.json").read_text())
    own = state.get("_split")
    without_parts(what, config, None if own else split, None)
    if split is not None:
        chosen_split(split, [str(own)], what)
    return files


def _walked(path: Path) -> Iterator[Path]:
    """Every file below a folder that is not hidden, in the order of their paths; links lead in no circle."""

    def unreadable(error: OSError) -> None:
        raise BadInput(f"dataset folder {str(error.filename)!r} could not be read: {first_line(error)}") from error

    seen: set[str] = set()
    found = []
    for folder, folders, names in os.walk(path, onerror=unreadable, followlinks=True):
        seen.add(os.path.realpath(folder))
        folders[:] = [
            name
            for name in folders
            if not name.startswith((".", "_")) and os.path.realpath(os.path.join(folder, name)) not in seen
        ]
        found += [Path(folder, name) for name in names if not name.startswith((".", "_"))]
    yield from sorted(found)


def _is_text(file: Path) -> bool:
    kind = kind_of(file)
    return kind in ROWS or (kind in SUFFIXES and file.name.split(".")[0].lower() not in BESIDE)


def _of_one_format(files: Sequence[Path], path: Path, what: str) -> tuple[Path, ...]:
    kinds: dict[str, list[Path]] = {}
    for file in filter(_is_text, files):
        kinds.setdefault(kind_of(file), []).append(file)
    rows = [kind for kind in ROWS if kind in kinds]
    if len(rows) > 1 or (not rows and len(kinds) > 1):
        some = ", ".join(f"{len(kinds[kind])} {kind} ({kinds[kind][0].name!r})" for kind in rows or kinds)
        raise BadInput(
            f"{what} holds files of several formats: {some}. Say which are the text, as in "
            f"'{path}/**/*{(rows or list(kinds))[0]}'."
        )
    if rows and len(kinds) > 1:
        left_out = [file for kind, found in kinds.items() if kind not in rows for file in found]
        tell_once(f"{what}: beside its {rows[0]} files {len(left_out)} others are left out, as {left_out[0].name!r}.")
    return tuple(kinds[(rows or list(kinds))[0]]) if kinds else ()


def _split_named(file: Path) -> str | None:
    """The split in a relative path: of a shard in a folder `data`, of a folder's name, or of the file's."""
    shard = SHARD.match(file.name)
    if shard is not None and file.parent.name == "data":
        return SPLITS.get(shard[1], shard[1])
    for part in (*file.parent.parts, file.name):
        for word in re.split(r"[-._ 0-9]+", part.lower()):
            if word in SPLITS:
                return SPLITS[word]
    return None


def _by_split(files: Sequence[Path], path: Path, split: str | None, what: str) -> Splits:
    """Files by the split that they name; all under None where none does."""
    splits: dict[str | None, list[Path]] = {}
    for file in files:
        splits.setdefault(_split_named(file.relative_to(path)), []).append(file)
    if None in splits and len(splits) > 1:
        unnamed = splits.pop(None)
        if split is None:
            named = next(found[0] for found in splits.values())
            raise BadInput(
                f"{what}: {named.name!r} names a split and {unnamed[0].name!r} none. Give --dataset-split, or say "
                f"which files are the text, as in '{path}/*{unnamed[0].suffix}'."
            )
    return splits


def _chosen(splits: Splits, split: str | None, what: str) -> tuple[Path, ...]:
    if None in splits:
        without_parts(what, None, split, None)
        return tuple(splits[None])
    return tuple(splits[chosen_split(split, [str(name) for name in splits], what)])


def _configs(path: Path, files: Sequence[Path]) -> dict[str, tuple[bool, Splits]]:
    """What a README.md of the hub declares, as far as its files are here: whether it is the default, and its splits."""
    found: dict[str, tuple[bool, Splits]] = {}
    for declared in _declared(path / "README.md"):
        try:
            name, default = str(declared["config_name"]), bool(declared.get("default", False))
            data_files = declared["data_files"]
            if isinstance(data_files, str) or all(isinstance(entry, str) for entry in data_files):
                data_files = [{"split": "train", "path": data_files}]
            splits: dict[str | None, list[Path]] = {}
            for entry in data_files:
                patterns = [entry["path"]] if isinstance(entry["path"], str) else entry["path"]
                named = {file for pattern in patterns for file in path.glob(str(pattern))}
                chosen = [file for file in files if file in named and kind_of(file) in SUFFIXES]
                if chosen:
                    splits[str(entry["split"])] = chosen
        except DAMAGE:
            continue
        if splits:
            found[name] = (default or name == "default", splits)
    return found


def _declared(readme: Path) -> list[Any]:
    """The `configs` in the YAML at the head of a README.md; none where there are none."""
    import yaml

    try:
        head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", readme.read_text(encoding="utf-8"), flags=re.DOTALL)
        configs = yaml.safe_load(head[1])["configs"] if head else []
    except (OSError, yaml.YAMLError, *DAMAGE):
        return []
    return configs if isinstance(configs, list) else []


def _of_config(configs: Mapping[str, tuple[bool, Splits]], config: str | None, what: str) -> Splits:
    if config is None:
        usual = [name for name, (default, _) in configs.items() if default] or list(configs)
        if len(usual) > 1:
            no_config(None, configs, what)
        config = usual[0]
    if config not in configs:
        no_config(config, configs, what)
    return configs[config][1]


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f" Nor does its folder {str(path.parent)!r}."
    close = close_match(path.name, [file.name for file in path.parent.iterdir()])
    return close if close.startswith(" Did") else ""
