"""Tables of Python programs as files that a pipeline reads."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ._errors import SepalError
from ._options import plain

#: Keys of a pipeline's data that describe files.
_FILE_KEYS = ("validation", "otherwise", "format", "delimiter", "encoding")


def with_tables(config: dict[str, Any], data: Any, folder: Path) -> dict[str, Any]:
    """Return the pipeline with the rows of ``data``, which are written into ``folder``.

    The files are named by their contents, so a run with the same rows can be resumed.
    """
    tables = dict(data) if is_splits(data) else {"train": data}
    described = described_data(config)
    for key in _FILE_KEYS:
        described.pop(key, None)
    for split, table in tables.items():
        described[split] = _write(table, folder)
    if "validation" in tables:
        described.pop("validation_split", None)
    return {**config, "data": described}


def described_data(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``data`` of a pipeline, with the usual names of columns."""
    data = config.get("data") or {}
    if not isinstance(data, Mapping):
        raise SepalError(f"failed to read the pipeline: data is {type(data).__name__}, expected a mapping")
    return {"text": "text", "label": "label", **data}


def is_splits(data: Any) -> bool:
    """Return True for a mapping of ``train``, and perhaps ``validation``, to tables."""
    return isinstance(data, Mapping) and "train" in data and set(data) <= {"train", "validation"}


def _write(table: Any, folder: Path) -> str:
    """Write a table and return its path, whose ending tells the format."""
    if isinstance(table, (list, tuple)):
        for index, row in enumerate(table):
            if not isinstance(row, Mapping):
                raise TypeError(f"row {index} of data is {type(row).__name__}; give a dict for each row")
        lines = [json.dumps(dict(row), default=plain, ensure_ascii=False) + "\n" for row in table]
        return _store("".join(lines).encode(), folder, "jsonl")
    return _store(_arrow_file(table), folder, "arrow")


def _arrow_file(table: Any) -> bytes:
    try:
        import pyarrow
    except ImportError as error:
        message = "tables need pyarrow (pip install pyarrow); without it, give a list of dicts, one for each row"
        raise ImportError(message) from error
    # A file has one dictionary for each column of categories.
    found = _arrow_table(pyarrow, table).unify_dictionaries()
    sink = io.BytesIO()
    with pyarrow.ipc.new_file(sink, found.schema) as writer:
        writer.write_table(found)
    return sink.getvalue()


def _arrow_table(pyarrow: Any, table: Any) -> Any:
    if isinstance(table, pyarrow.Table):
        # The metadata of pandas is no part of the rows.
        return table.replace_schema_metadata(None)
    is_pandas = type(table).__module__.split(".")[0] == "pandas"
    if is_pandas and hasattr(table, "columns"):
        return pyarrow.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
    # A series of pandas is a stream, too, but no table.
    if not is_pandas and (isinstance(table, Mapping) or hasattr(table, "__arrow_c_stream__")):
        return pyarrow.table(dict(table) if isinstance(table, Mapping) else table).replace_schema_metadata(None)
    message = f"data is {type(table).__name__}; give a pandas or Arrow table, a dict of columns, or a list of dicts"
    raise TypeError(message)


def _store(content: bytes, folder: Path, ending: str) -> str:
    """Write ``content`` under the name of its digest, unless it is there. No incomplete file is left."""
    path = folder / f"{hashlib.sha256(content).hexdigest()[:16]}.{ending}"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as sink:
                sink.write(content)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    return str(path)
