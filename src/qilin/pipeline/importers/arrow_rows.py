"""Rows of Parquet files and of the Arrow files that `datasets` saves, in small batches.

In: a path. Out: dictionaries. What the Hugging Face features in the file's own metadata say is applied: a class label
is its name, not its number. An image stays as it is stored: {"bytes", "path"}, bytes, or a list of them.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qilin.core.errors import UserError
from qilin.core.files import check_regular_file

ROWS_PER_BATCH = 64  # a cell may be an image
# a column of a Parquet row group; a file of 100 kB can hold gigabytes of one repeated character
MAX_COLUMN_BYTES, MAX_COMPRESSION = 64 << 20, 1000


def read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file. Raises UserError for a file that cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    check_regular_file(path, "a parquet file")
    try:
        with pq.ParquetFile(path) as file:
            check_compression(path, file.metadata)
            name_labels = label_names(file.schema_arrow.metadata)
            for batch in file.iter_batches(batch_size=ROWS_PER_BATCH):
                yield from map(name_labels, batch.to_pylist())
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a parquet file: {' '.join(str(error).split())}") from None


def read_arrow(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of an Arrow file, as `Dataset.save_to_disk` writes it (a stream) or with a footer (Feather)."""
    import pyarrow as pa

    check_regular_file(path, "an Arrow file")
    try:
        with pa.memory_map(str(path)) as file:
            for batch in arrow_batches(file):
                batch.validate(full=True)  # offsets of a damaged file would be read beyond its end
                name_labels = label_names(batch.schema.metadata)
                for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                    yield from map(name_labels, batch.slice(start, ROWS_PER_BATCH).to_pylist())
    except (OSError, ValueError, pa.ArrowException) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not an Arrow file: {' '.join(str(error).split())}") from None


def arrow_batches(file: Any) -> Iterator[Any]:
    """The record batches of an open Arrow file, whichever of the two forms it has."""
    import pyarrow as pa

    is_footed = file.read(6) == b"ARROW1"
    file.seek(0)
    if is_footed:
        reader = pa.ipc.open_file(file)
        yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
    else:
        yield from pa.ipc.open_stream(file)


def arrow_columns(path: Path) -> list[str]:
    """The names of the columns of a Parquet or Arrow file; read from the schema alone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() == ".parquet":
            return list(pq.read_schema(path).names)
        with pa.memory_map(str(path)) as file:
            return list(next(arrow_batches(file)).schema.names)
    except StopIteration:
        return []
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: not a {path.suffix.lower()[1:]} file: {' '.join(str(error).split())}") from None


def label_names(metadata: Mapping[bytes, bytes] | None) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that replaces the numbers of class labels in a row by their names."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        labels = {
            name: feature["names"]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        labels = {}

    def name_labels(row: dict[str, Any]) -> dict[str, Any]:
        for column, names in labels.items():
            number = row.get(column)
            if isinstance(number, int) and 0 <= number < len(names):
                row[column] = names[number]
        return row

    return name_labels


def check_compression(path: Path, metadata: Any) -> None:
    """Raise UserError for a column that would decompress to far more than a table holds."""
    for group in range(metadata.num_row_groups):
        for number in range(metadata.num_columns):
            column = metadata.row_group(group).column(number)
            size, compressed = column.total_uncompressed_size, max(column.total_compressed_size, 1)
            if size > MAX_COLUMN_BYTES and size > MAX_COMPRESSION * compressed:
                raise UserError(
                    f"{path}: column {column.path_in_schema} has {size:,} bytes in {compressed:,} bytes of the file; "
                    f"expected at most {MAX_COMPRESSION:,} times as many"
                )
