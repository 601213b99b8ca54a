"""Any source of conversations, instructions or tables: what its content is decides how it is read.

In: a file or a folder, in the layout of LLaMA-Factory, ms-swift, TRL, the Hugging Face hub, WebDataset, or a table.
Out: import rows; and for `qilin data import SOURCE OUT`, which layout the source has.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.dataset.import_rows import ImageFile, ImportRow, RejectedRow
from qilin.pipeline.importers import generic_table
from qilin.pipeline.importers.config import ImportConfig
from qilin.pipeline.importers.dialogs import DialogSource, parse_dialog
from qilin.pipeline.importers.excel_rows import EXCEL_SUFFIXES, other_sheets
from qilin.pipeline.importers.row_layouts import ROLES, LayoutName, RowLayout, detect_layout
from qilin.pipeline.importers.rows import convert_rows, table_image_folders
from qilin.pipeline.importers.source_tables import SourceTables, Table, find_tables_of
from qilin.pipeline.importers.table_files import TABLE_SUFFIXES, check_file, column_names

# the layouts of rows that a name of a layout may have; None is a table of columns
ROW_LAYOUTS: dict[str, tuple[LayoutName | None, ...]] = {
    "messages": ("messages", "sharegpt", "pairs"),
    "sharegpt": ("sharegpt", "messages", "pairs"),
    "alpaca": ("alpaca",),
    "ms-swift": ("messages", "query-response", "pairs", "alpaca", "sharegpt"),
    "trl": ("messages", "prompt-completion"),
    "llama-factory": ("messages", "sharegpt", "pairs", "alpaca", None),
    "huggingface": ("messages", "sharegpt", "pairs", "prompt-completion", "alpaca", "query-response", None),
}
ROW_LAYOUTS["webdataset"] = ROW_LAYOUTS["export"] = ROW_LAYOUTS["huggingface"]
# the name of the layout that a file of such rows has
NAME_OF_LAYOUT = {"messages": "messages", "sharegpt": "sharegpt", "pairs": "ms-swift", "prompt-completion": "trl",
                  "alpaca": "alpaca", "query-response": "ms-swift", None: "folder"}  # fmt: skip


def inputs(config: ImportConfig) -> list[Path]:
    """The files of rows. Raises UserError if there is none."""
    return [table.path for table in source_tables(config).tables]


def source_tables(config: ImportConfig) -> SourceTables:
    if not config.source.is_dir():
        check_file(config.source, "a file or folder of conversations or a table", TABLE_SUFFIXES)
    sources = find_tables_of(config.source, config.subset)
    if config.name == "llama-factory" and not any(table.description for table in sources.tables):
        raise UserError(f"{config.source}: has no dataset_info.json of LLaMA-Factory; name the folder that has it")
    return sources


def read(config: ImportConfig) -> Iterator[ImportRow | RejectedRow]:
    """Every row of every table. A repeated id gets a number as suffix."""
    sources = source_tables(config)
    origins = exported_origins(config.source) if sources.is_export else {}
    offsets: Counter[str] = Counter()  # rows so far of the tables with the same name: the shards of a split
    id_counts: Counter[str] = Counter()
    for table in sources.tables:
        layout = table_layout(table, config)
        if layout is None:
            rows = generic_table.read_table(table, config, offsets)
        else:
            rows = read_dialogs(table, layout, config, offsets, sources.is_export)
        for row in rows:
            if isinstance(row, ImportRow):
                id_counts[row.sample_id] += 1
                count = id_counts[row.sample_id]
                if count > 1:
                    row = dataclasses.replace(row, sample_id=f"{row.sample_id}.{count}")
                if origins:
                    images = tuple(with_origin(image, origins) for image in row.images)
                    row = dataclasses.replace(row, images=images)
            yield row


def read_dialogs(
    table: Table, layout: RowLayout, config: ImportConfig, offsets: Counter[str], is_export: bool
) -> Iterator[ImportRow | RejectedRow]:
    """The rows of a table of conversations."""
    folders = table_image_folders(config, table.path)
    source = DialogSource(layout, table.name, folders, table.split, is_export)
    offset = offsets[table.name]

    def convert(row: Mapping[str, Any], number: int) -> Iterator[ImportRow | RejectedRow]:
        offsets[table.name] = offset + number
        yield from parse_dialog(row, number + offset, source, config)

    yield from convert_rows(table.path, config, convert)


def table_layout(table: Table, config: ImportConfig) -> RowLayout | None:
    """The layout of a table's rows, by its description or its first rows. Raises UserError for one that the name of the
    layout excludes."""
    layout = None
    if table.path.suffix.lower() not in (".txt", *EXCEL_SUFFIXES):
        layout = detect_layout(generic_table.first_rows(table.path, config.encoding), str(table.path))
    if table.description:
        layout = described_layout(table, layout)
    allowed = ROW_LAYOUTS[config.name]
    name = layout.name if layout else None
    if name not in allowed:
        columns = ", ".join(column_names(table.path, config.encoding)[:12]) or "none"
        finding = f"rows of the layout {layout.describe()}" if layout else f"a table with the columns {columns}"
        raise UserError(
            f"{table.path}: holds {finding}, which {config.name} is not; leave out the layout "
            f"(qilin data import SOURCE OUT), or name {NAME_OF_LAYOUT[name]}"
        )
    return layout


def described_layout(table: Table, detected: RowLayout | None) -> RowLayout | None:
    """The layout that an entry of a dataset_info.json describes; what it leaves open is as detected."""
    entry = table.description or {}
    columns = {k: v for k, v in dict(entry.get("columns") or {}).items() if isinstance(v, str)}
    tags = {k: v for k, v in dict(entry.get("tags") or {}).items() if isinstance(v, str)}
    formatting = entry.get("formatting") or ("sharegpt" if "messages" in columns else "alpaca")
    if formatting == "alpaca":
        if not columns and (detected is None or detected.name != "alpaca"):
            return detected
        names = ("prompt", "query", "response", "history", "system", "images")
        described_columns = {name: columns[name] for name in names if name in columns}
        start = detected if detected and detected.name == "alpaca" else RowLayout(
            "alpaca", prompt="instruction", query="input", response="output",
            images=detected.images if detected else "",
        )  # fmt: skip
        return dataclasses.replace(start, **described_columns)  # type: ignore[arg-type]
    roles = dict(ROLES)
    for name, role in (("user_tag", "user"), ("assistant_tag", "assistant"), ("system_tag", "system")):
        if name in tags:
            roles[tags[name]] = role
    start = detected if detected and detected.messages else RowLayout(
        "sharegpt", messages="conversations", role_key="from", content_key="value",
        images=detected.images if detected else "",
    )  # fmt: skip
    return dataclasses.replace(
        start,
        messages=columns.get("messages", start.messages),
        role_key=tags.get("role_tag", start.role_key),
        content_key=tags.get("content_tag", start.content_key),
        roles=roles,
        system=columns.get("system", start.system),
        images=columns.get("images", start.images),
    )


# --- images of an export ----------------------------------------------------------------------------------------------


def exported_origins(folder: Path) -> dict[str, dict[str, Any]]:
    """{file name or image id: its line of attribution.jsonl} of an export."""
    origins: dict[str, dict[str, Any]] = {}
    try:
        with (folder / "attribution.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                origins[row["image_id"]] = origins[row.get("file") or row["image_id"]] = row
    except (OSError, ValueError, KeyError, TypeError):
        return origins
    return origins


def with_origin(image: ImageFile, origins: Mapping[str, Mapping[str, Any]]) -> ImageFile:
    """An image with the license, source and modality that the export recorded."""
    row = origins.get(image.name) or origins.get(image.path.name)
    records = row.get("provenance") if row else None
    if not row or not records:
        return image
    first = records[0]
    return dataclasses.replace(
        image,
        name=first.get("source_id") or image.name,
        license="; ".join(dict.fromkeys(r["license"] for r in records if r.get("license"))) or None,
        url=first.get("url"),
        attribution=first.get("attribution"),
        modality=row.get("modality"),
        body_part=row.get("body_part"),
    )


# --- recognizing a source ---------------------------------------------------------------------------------------------


def recognize(config: ImportConfig) -> ImportConfig:
    """The config with the name of the layout that its source has, for an import without one."""
    return dataclasses.replace(config, name=recognized_name(config))


def recognized_name(config: ImportConfig) -> str:
    if (config.source / "imgs").is_dir() and is_slake(config.source):
        return "slake"
    sources = source_tables(dataclasses.replace(config, name="huggingface"))
    if sources.is_export:
        return "export"
    if any(table.description for table in sources.tables):
        return "llama-factory"
    if all(table.path.suffix.lower() == ".tar" for table in sources.tables):
        return "webdataset"
    layouts = [table_layout(table, dataclasses.replace(config, name="huggingface")) for table in sources.tables]
    if config.source.is_dir():
        is_hub = sources.kind.startswith("a folder of save_to_disk") or any(layouts) or len(layouts) > 1
        return "huggingface" if is_hub else "folder"
    return NAME_OF_LAYOUT[layouts[0].name if layouts[0] else None]


def is_slake(folder: Path) -> bool:
    """Whether a folder has SLAKE's own questions: rows with q_lang and img_name."""
    for name in ("train.json", "validate.json", "validation.json", "test.json"):
        if (folder / name).is_file():
            rows = generic_table.first_rows(folder / name, None)
            return bool(rows) and {"q_lang", "img_name"} <= set(rows[0])
    return False


def recognition_notes(config: ImportConfig) -> list[str]:
    """Lines of the summary: what the source was taken for, with the columns or fields that are read."""
    sources = source_tables(config)
    tables = list({table.name: table for table in sources.tables}.values())
    lines = [f"read as {config.name}: {describe_table(table, config)}" for table in tables[:10]]
    lines += [f"and {len(tables) - 10} more tables"] if len(tables) > 10 else []
    sheets = [name for t in sources.tables if t.path.suffix.lower() in EXCEL_SUFFIXES for name in other_sheets(t.path)]
    lines += [f"sheets that were not read: {len(sheets)} ({', '.join(sheets[:5])})"] if sheets else []
    return [*lines, *sources.notes]


def describe_table(table: Table, config: ImportConfig) -> str:
    """A file with its split and the fields that are read."""
    layout = None if config.name == "folder" else table_layout(table, config)
    if layout:
        fields = layout.describe()
    else:
        columns = generic_table.table_columns(table, config)
        fields = ", ".join(f"{field.removesuffix('_column')} = {name}" for field, name in columns.items())
    split = f" [{table.split}]" if table.split else ""
    return f"{table.path.name}{split}: {fields}"
