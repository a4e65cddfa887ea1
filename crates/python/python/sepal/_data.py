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

_SPLITS = ("train", "validation")

#: Methods of which a column has one.
_OF_COLUMNS = ("__iter__", "__arrow_c_array__", "__arrow_c_stream__")


def split_tables(data: Any) -> dict[str, Any]:
    """Return the tables of ``data`` by split: a table alone is that of ``train``."""
    if not isinstance(data, Mapping):
        return {"train": data}
    is_splits = "train" in data and set(data) <= set(_SPLITS)
    # A column of dicts looks like a table, so one of them among other columns makes no splits.
    has_split = any(split in data and _is_table(data[split]) for split in _SPLITS)
    has_tables = bool(data) and all(map(_is_table, data.values()))
    if not (is_splits or has_split or has_tables):
        return {"train": data}
    unknown = next((split for split in data if split not in _SPLITS), None)
    if unknown is not None:
        raise ValueError(f"data has {unknown!r}: a dict of tables has train and perhaps validation, and nothing else")
    if "train" not in data:
        raise ValueError("data has validation without train: a dict of tables has train and perhaps validation")
    return dict(data)


def _is_table(value: Any) -> bool:
    """Return True for a table or a column of dicts, and False for other columns."""
    if isinstance(value, (list, tuple)):
        return bool(value) and isinstance(value[0], Mapping)
    return isinstance(value, Mapping) or hasattr(value, "columns") or hasattr(value, "column_names")


def with_files(config: Mapping[str, Any], files: Mapping[str, str]) -> dict[str, Any]:
    """Return the pipeline with these files by split in the place of its own."""
    described = described_data(config)
    for key in _FILE_KEYS:
        described.pop(key, None)
    if "validation" in files:
        described.pop("validation_split", None)
    return {**config, "data": {**described, **files}}


def write_tables(tables: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Write tables into ``folder`` and return their paths by split.

    The files are named by their contents, so a run with the same rows can be resumed.
    """
    is_single = list(tables) == ["train"]
    names = {split: "data" if is_single else f"data[{split!r}]" for split in tables}
    return {split: _write(table, folder, names[split]) for split, table in tables.items()}


def described_data(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``data`` of a pipeline, with the usual names of columns."""
    data = config.get("data") or {}
    if not isinstance(data, Mapping):
        raise SepalError(f"failed to read the pipeline: data is {type(data).__name__}, expected a mapping")
    return {"text": "text", "label": "label", **data}


def _write(table: Any, folder: Path, name: str) -> str:
    """Write the table ``name`` and return its path, whose ending tells the format."""
    if isinstance(table, (list, tuple)):
        for index, row in enumerate(table):
            if not isinstance(row, Mapping):
                raise TypeError(f"row {index} of {name} is {type(row).__name__}; give a dict for each row")
        _check_rows(len(table), name)
        lines = [json.dumps(dict(row), default=plain, ensure_ascii=False) + "\n" for row in table]
        return _store("".join(lines).encode(), folder, "jsonl")
    return _store(_arrow_file(table, name), folder, "arrow")


def _arrow_file(table: Any, name: str) -> bytes:
    try:
        import pyarrow
    except ImportError as error:
        message = "tables need pyarrow (pip install pyarrow); without it, give a list of dicts, one for each row"
        raise ImportError(message) from error
    # A file has one dictionary for each column of categories.
    try:
        found = _arrow_table(pyarrow, table, name).unify_dictionaries()
    except pyarrow.ArrowException as error:
        raise ValueError(f"{_faulty_column(pyarrow, table, name)} cannot be written as a table: {error}") from error
    _check_rows(found.num_rows, name)
    sink = io.BytesIO()
    with pyarrow.ipc.new_file(sink, found.schema) as writer:
        writer.write_table(found)
    return sink.getvalue()


def _check_rows(rows: int, name: str) -> None:
    if rows == 0:
        raise ValueError(f"{name} has no rows")


def _faulty_column(pyarrow: Any, table: Any, name: str) -> str:
    """Return the first column of a dict of columns that is none for Arrow, or the name of the table."""
    for key, values in table.items() if isinstance(table, Mapping) else ():
        try:
            pyarrow.table({key: values})
        except pyarrow.ArrowException:
            return f"column {key!r} of {name}"
    return name


def _check_columns(columns: Mapping[str, Any], name: str) -> None:
    first: tuple[str, int] | None = None
    for key, values in columns.items():
        if not isinstance(key, str):
            raise TypeError(f"column {key!r} of {name} is named by {type(key).__name__}; give a text")
        if isinstance(values, (str, bytes)) or not any(hasattr(values, method) for method in _OF_COLUMNS):
            raise TypeError(f"column {key!r} of {name} is {type(values).__name__}; give a list with a value for each row")
        if not hasattr(values, "__len__"):
            continue
        first = first or (key, len(values))
        if len(values) != first[1]:
            lengths = f"column {key!r} of {name} has {len(values)} values, and column {first[0]!r} has {first[1]}"
            raise ValueError(f"{lengths}; give one for each row")


def _arrow_table(pyarrow: Any, table: Any, name: str) -> Any:
    if isinstance(table, pyarrow.Table):
        # The metadata of pandas is no part of the rows.
        return table.replace_schema_metadata(None)
    is_pandas = type(table).__module__.split(".")[0] == "pandas"
    if is_pandas and hasattr(table, "columns"):
        return pyarrow.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(None)
    # A series of pandas is a stream, too, but no table.
    if isinstance(table, Mapping):
        _check_columns(table, name)
        return pyarrow.table(dict(table)).replace_schema_metadata(None)
    if not is_pandas and hasattr(table, "__arrow_c_stream__"):
        return pyarrow.table(table).replace_schema_metadata(None)
    message = f"{name} is {type(table).__name__}; give a pandas or Arrow table, a dict of columns, or a list of dicts"
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
