"""The episodes of an evaluation as a Parquet table, for bootstrap intervals, histograms and later analyses.

    index  seed  target_return  episode_return  normalized_score  length  success

One row an episode. `target_return` is null for methods that take none, `success` for tasks that do not define it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmray.errors import StorageError
from dmray.files import write_atomic
from dmray.records.disk import open_file, writing

if TYPE_CHECKING:
    import pyarrow as pa


def write_episode_table(path: Path, rows: Sequence[Mapping[str, Any]], about: Mapping[str, str]) -> None:
    """Write `rows` (each with every column) atomically; `about` becomes the file's metadata.

    Raises:
        StorageError: the disk is full.
    """
    import pyarrow as pa
    from pyarrow import parquet

    schema = _schema().with_metadata(dict(about))
    stream = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=schema), stream)
    with writing(path):
        write_atomic(path, stream.getvalue())


def read_episode_table(path: Path) -> pa.Table:
    """The columns of a file, with its metadata.

    Raises:
        FileNotFoundError: there is no such file.
        StorageError: it is no table of episodes, or a damaged one.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with open_file(path) as stream:
        try:
            found = parquet.read_table(stream)
            return found.select(_schema().names).cast(_schema().with_metadata(found.schema.metadata))
        except (pa.ArrowException, OSError, KeyError, ValueError) as cause:
            raise StorageError(
                f"{path}: not a table of episodes ({type(cause).__name__}); restore it from a copy, or remove it"
            ) from cause


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("index", pa.int32()),
            ("seed", pa.int64()),
            ("target_return", pa.float64()),
            ("episode_return", pa.float64()),
            ("normalized_score", pa.float64()),
            ("length", pa.int32()),
            ("success", pa.bool_()),
        ]
    )
