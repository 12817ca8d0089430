"""The episodes of an evaluation as a Parquet table, for bootstrap intervals, histograms and later analyses.

    index  seed  target_return  episode_return  normalized_score  length  success

One row an episode. `target_return` is null for methods that take none, `success` for tasks that do not define it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dmray.errors import StorageError
from dmray.files import write_atomic
from dmray.records.disk import open_file, writing


def write_episode_table(path: Path, rows: Sequence[Mapping[str, Any]], about: Mapping[str, str]) -> None:
    """Write `rows` (each with every column) atomically; `about` becomes the file's metadata.

    Raises:
        StorageError: the disk is full.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema(
        [
            ("index", pa.int32()),
            ("seed", pa.int64()),
            ("target_return", pa.float64()),
            ("episode_return", pa.float64()),
            ("normalized_score", pa.float64()),
            ("length", pa.int32()),
            ("success", pa.bool_()),
        ],
        metadata=dict(about),
    )
    stream = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), stream)
    with writing(path):
        write_atomic(path, stream.getvalue())


def read_episode_table(path: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The rows of a file, and its metadata.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it is no table, or a damaged one.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with open_file(path) as stream:
        try:
            table = parquet.read_table(stream)
            metadata = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            rows: list[dict[str, Any]] = table.to_pylist()
        except (pa.ArrowException, OSError, UnicodeDecodeError) as cause:
            raise StorageError(
                f"{path}: not a table of episodes ({type(cause).__name__}); restore it from a copy, or remove it"
            ) from cause
    return rows, metadata
