"""The files of rows that a source holds, each with its split: one file, a folder with train and test files, a folder
of the Hugging Face hub or of `save_to_disk`, one of LLaMA-Factory with its dataset_info.json, or an export of Qilin.

In: the source and the subsets that the user names. Out: a SourceTables: what was recognized, and its tables.
"""

import fnmatch
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from qilin.core.errors import UserError, suggest
from qilin.core.files import read_json, read_text
from qilin.dataset.schema import MANIFEST, SPLITS
from qilin.pipeline.importers.rows import SPLIT_NAMES
from qilin.pipeline.importers.table_files import ARROW_SUFFIXES, TABLE_SUFFIXES
from qilin.pipeline.importers.tar_rows import TAR_SUFFIXES

SUFFIXES = tuple(suffix for suffix in TABLE_SUFFIXES if suffix != ".txt")  # in folders, .txt files are other things
# files of descriptions, not of rows
DESCRIPTIONS = frozenset(
    ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json", "source.json",
     "attribution.jsonl", "requirements.txt", "readme.txt", "license.txt", "licence.txt", "package.json")
)  # fmt: skip
LLAMA_FACTORY_KEYS = frozenset(("file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"))
SWIFT_KEYS = frozenset(("dataset_path", "ms_dataset_id", "hf_dataset_id"))
SPLIT_WORDS = {**SPLIT_NAMES, "training": "train", "testing": "test", "eval": "test", "evaluation": "test"}
SHARD = re.compile(r"[-_.]\d+-of-\d+$|[-_]\d{5,}$")
EXPORT_SUFFIXES = {"llava": ".json", "sharegpt": ".json", "trl": ".parquet", "webdataset": ".tar"}


@dataclass(frozen=True)
class Table:
    """A file of rows. `name` starts the ids of its samples; `description` is its entry in a dataset_info.json."""

    path: Path
    name: str
    split: str | None = None
    description: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class SourceTables:
    """What a source was recognized as, its tables, and what else it names but was not read."""

    kind: str
    tables: tuple[Table, ...]
    notes: tuple[str, ...] = ()
    is_export: bool = False


def find_tables_of(source: Path, subset: Sequence[str] = ()) -> SourceTables:
    """The tables of a source. Raises UserError where there are none, or several without a rule which to take."""
    if not source.is_dir():
        if source.name == "dataset_info.json" and (entries := described_datasets(source)):
            return llama_factory_tables(source.parent, entries, subset)
        check_no_subset(source, subset)
        return SourceTables("a file", (Table(source, source.stem),))
    if (source / MANIFEST).is_file():
        raise UserError(
            f"{source}: is already a dataset folder of Qilin; train on it, or merge it with `qilin data merge`"
        )
    if export := exported_tables(source):
        check_no_subset(source, subset)
        return export
    if entries := described_datasets(source / "dataset_info.json"):
        return llama_factory_tables(source, entries, subset)
    if (source / "dataset_dict.json").is_file() or (source / "state.json").is_file():
        check_no_subset(source, subset)
        return saved_tables(source)
    return folder_tables(source, subset)


def check_no_subset(source: Path, subset: Sequence[str]) -> None:
    if subset:
        raise UserError(f"{source}: has no subsets, so --subset {' '.join(subset)} names nothing; leave it out")


def choose(names: Iterable[str], subset: Sequence[str], where: str) -> list[str]:
    """The names in `subset`, or all if it is empty. Raises UserError for an unknown one."""
    names = list(names)
    for name in subset:
        if name not in names:
            hint = suggest(name, names, otherwise=f"it has {', '.join(names[:20])}")
            raise UserError(f"{where}: no subset {name!r} (--subset); {hint}")
    return [name for name in names if name in subset] if subset else names


# --- exports of Qilin -------------------------------------------------------------------------------------------------


def exported_tables(source: Path) -> SourceTables | None:
    """The files of a folder that `qilin data export` wrote."""
    try:
        origin = read_json(source / "source.json")
        suffix = EXPORT_SUFFIXES[origin["layout"]]
    except (UserError, KeyError, TypeError):
        return None
    paths = [(split, path) for split in SPLITS for path in sorted(source.glob(f"{split}*{suffix}"))]
    tables = tuple(Table(path, split, split) for split, path in paths)
    return SourceTables(f"an export of Qilin ({origin['layout']})", tables, is_export=True) if tables else None


# --- LLaMA-Factory's and ms-swift's dataset_info.json -----------------------------------------------------------------


def described_datasets(path: Path) -> dict[str, dict[str, Any]]:
    """{name: entry} of a dataset_info.json of LLaMA-Factory or ms-swift; {} for any other file of this name."""
    try:
        value = read_json(path)
    except UserError:
        return {}
    if isinstance(value, list):
        entries = {str(item.get("dataset_name") or item.get("dataset_path")): item for item in value if is_swift(item)}
        return {name: {"file_name": e.get("dataset_path"), **e} for name, e in entries.items()}
    if not isinstance(value, dict):
        return {}
    return {name: e for name, e in value.items() if isinstance(e, dict) and LLAMA_FACTORY_KEYS & set(e)}


def is_swift(item: Any) -> bool:
    return isinstance(item, dict) and bool(SWIFT_KEYS & set(item))


def llama_factory_tables(
    folder: Path, entries: Mapping[str, Mapping[str, Any]], subset: Sequence[str]
) -> SourceTables:  # fmt: skip
    """The local files of the datasets, each with its entry; others are named in a note."""
    info = folder / "dataset_info.json"
    tables: list[Table] = []
    skipped: list[str] = []
    for name in choose(entries, subset, str(info)):
        entry = entries[name]
        problem = entry_problem(folder, entry)
        if problem:
            if subset:
                raise UserError(f"{info}: {name}: {problem}")
            skipped.append(f"{name} ({problem})")
            continue
        path = folder / entry["file_name"]
        paths = [path] if path.is_file() else data_files(path)
        split = split_of(name) or split_of(path.stem) or "train"
        tables += [Table(path, name, split, entry) for path in paths]
    if not tables:
        raise UserError(f"{info}: none of its datasets is a local file: {'; '.join(skipped[:5])}")
    notes = [f"datasets that were not read: {'; '.join(skipped[:5])}{'; …' if len(skipped) > 5 else ''}"]
    return SourceTables(
        "LLaMA-Factory's dataset_info.json", without_single_split(tables), tuple(notes if skipped else ())
    )


def entry_problem(folder: Path, entry: Mapping[str, Any]) -> str | None:
    """Why a dataset of a dataset_info.json cannot be read; None if it can."""
    columns = entry.get("columns") if isinstance(entry.get("columns"), dict) else {}
    if entry.get("ranking") or {"chosen", "rejected", "kto_tag"} & set(columns or ()):
        return "preferences, which supervised training does not use"
    name = entry.get("file_name")
    if not isinstance(name, str) or not name:
        return "on a hub; download it first"
    path = folder / name
    if not path.exists():
        return f"no file {name}"
    if path.is_dir() and not data_files(path):
        return f"no data file in {name}"
    if path.is_file() and path.suffix.lower() not in SUFFIXES:
        return f"unknown file type of {name}"
    return None


# --- folders of the Hugging Face hub ----------------------------------------------------------------------------------


def saved_tables(source: Path) -> SourceTables:
    """The Arrow files of a folder of `Dataset.save_to_disk` or `DatasetDict.save_to_disk`."""
    splits: list[str] = [""]
    if (source / "dataset_dict.json").is_file():
        value = read_json(source / "dataset_dict.json")
        splits = [str(name) for name in value.get("splits") or ()] if isinstance(value, dict) else []
    tables = []
    for name in splits:
        folder = source / name
        state = read_json(folder / "state.json")
        files = state.get("_data_files") if isinstance(state, dict) else None
        if not isinstance(files, list) or not all(isinstance(item, dict) and "filename" in item for item in files):
            raise UserError(f"{folder / 'state.json'}: names no _data_files; save the dataset again with save_to_disk")
        split = split_of(name) if name else None
        tables += [Table(folder / str(item["filename"]), name or source.name, split) for item in files]
    for table in tables:
        if not table.path.is_file():
            raise UserError(f"{table.path}: named by state.json, but missing; copy the folder again")
    return SourceTables("a folder of save_to_disk", without_single_split(tables))


def folder_tables(source: Path, subset: Sequence[str]) -> SourceTables:
    """The data files of a folder of the hub: those that its README.md names, else those whose names tell the split."""
    configs = hub_configs(source / "README.md")
    names = choose(configs, subset, str(source / "README.md")) if configs or subset else []
    if len(names) > 1 and not subset:
        raise UserError(f"{source}: has the subsets {', '.join(names)}; name one with --subset")
    paths = [(split, path) for name in names for split, path in config_files(source, configs[name])]
    if not paths:
        files = data_files(source)
        by_split = [(split_of(path.relative_to(source).with_suffix("").as_posix()), path) for path in files]
        paths = by_split if all(split for split, _ in by_split) else [(None, path) for path in files]
        if len(files) > 1 and not any(split for split, _ in paths) and not all(SHARD.search(p.stem) for p in files):
            shown = ", ".join(path.relative_to(source).as_posix() for path in files[:8])
            raise UserError(
                f"{source}: contains {len(files)} tables ({shown}{', …' if len(files) > 8 else ''}) whose names do not "
                "tell the split (train.csv, test.csv); name the one to import"
            )
    if not paths:
        raise UserError(f"{source}: contains no table ({', '.join(SUFFIXES)}); {images_hint(source)}")
    tables = [Table(path, table_name(source, path), split) for split, path in paths]
    return SourceTables("a folder with " + (", ".join(kinds_of(tables))), without_single_split(tables))


def kinds_of(tables: Iterable[Table]) -> list[str]:
    """The names of the files, without the numbers of shards."""
    return list(dict.fromkeys(SHARD.sub("", table.path.stem) + table.path.suffix for table in tables))[:6]


def table_name(source: Path, path: Path) -> str:
    """What the ids of a table's samples start with: the file's name without the number of a shard."""
    return SHARD.sub("", path.stem) or source.name


def images_hint(source: Path) -> str:
    """What a folder of images needs."""
    folders = sorted(item.name for item in os.scandir(source) if item.is_dir())[:5]
    folders_text = f"it has the folders {', '.join(folders)}; " if folders else ""
    return f"{folders_text}write a table with a column of image paths and one of texts, such as image,question,answer"


def hub_configs(readme: Path) -> dict[str, Any]:
    """{name: data_files} of the configurations in the head of a dataset card."""
    if not readme.is_file():
        return {}
    try:
        text = read_text(readme)
        head = yaml.safe_load(text.split("---", 2)[1]) if text.startswith("---") else {}
    except (UserError, yaml.YAMLError, IndexError):
        return {}
    configs = head.get("configs") if isinstance(head, dict) else None
    if not isinstance(configs, list):
        return {}
    return {str(c.get("config_name", "default")): c["data_files"] for c in configs if is_config(c)}


def is_config(value: Any) -> bool:
    return isinstance(value, dict) and bool(value.get("data_files"))


def config_files(source: Path, patterns: Any) -> list[tuple[str | None, Path]]:
    """(split, file) of a configuration's data_files: a pattern, a list of them, or a list of {split, path}."""
    rows = patterns if isinstance(patterns, list) else [patterns]
    files = [path for path in sorted(source.rglob("*")) if path.is_file()]
    result: list[tuple[str | None, Path]] = []
    for row in rows:
        split = split_of(str(row.get("split"))) if isinstance(row, dict) else None
        paths = row.get("path") if isinstance(row, dict) else row
        for pattern in paths if isinstance(paths, list) else [paths]:
            result += [
                (split, path) for path in files if fnmatch.fnmatch(path.relative_to(source).as_posix(), str(pattern))
            ]
    return list(dict.fromkeys(result))


def data_files(folder: Path) -> list[Path]:
    """The tables in a folder and below it, of the first kind of file that it has: Arrow or Parquet, tar, others."""
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES
        and path.name.lower() not in DESCRIPTIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )
    groups = [ARROW_SUFFIXES, TAR_SUFFIXES, tuple(s for s in SUFFIXES if s not in (*ARROW_SUFFIXES, *TAR_SUFFIXES))]
    return next((matches for group in groups if (matches := [p for p in paths if p.suffix.lower() in group])), [])


def split_of(name: str) -> str | None:
    """The split that a name of a file, folder or dataset tells: the last of its words that is one."""
    words = re.split(r"[^a-z\u4e00-\u9fff]+", name.lower())
    return next((SPLIT_WORDS[word] for word in reversed(words) if word in SPLIT_WORDS), None)


def without_single_split(tables: Sequence[Table]) -> tuple[Table, ...]:
    """The tables; where all are for training, the source has no splits of its own, and shares are drawn."""
    is_single = {table.split for table in tables} <= {"train", None}
    return tuple(replace(table, split=None) for table in tables) if is_single else tuple(tables)
