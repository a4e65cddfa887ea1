"""Rows of the table: the figures of one run each, by task, size, method, seed and language model.

docs/results.json has the committed rows as the values of its results, `rows.jsonl` those that this machine has measured. In
memory and in `rows.jsonl`, a row is `{"key": [task, size, method, seed, language_model], **figures}`.
"""

import json


def key(task, size, method, seed, language_model):
    """Return the key of a row; calibration without training reads no training rows, so it is run once for all sizes."""
    return [task, "any" if method == "zero-shot" else size, method, seed, language_model]


def read_cached(path):
    """Return the rows of a file of lines, none if it does not exist."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def read_committed(path):
    """Return the rows of docs/results.json, none if it does not exist."""
    if not path.is_file():
        return []
    results = json.loads(path.read_text(encoding="utf-8"))["results"]
    return [from_value(result, value) for result in results for value in result["values"]]


def append(path, row):
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def merged(committed, cached):
    """Return one row for each key: the committed one, or else the last cached one.

    A key that is committed is not run again, so a cached row beside it is an older one.
    """
    return list({tuple(row["key"]): row for row in [*cached, *committed]}.values())


def to_value(row):
    """Return a row as a value of its result in docs/results.json."""
    *_, seed, language_model = row["key"]
    return {"seed": seed, "language_model": language_model, **{name: row[name] for name in row if name != "key"}}


def from_value(result, value):
    """Return the row of a value of docs/results.json."""
    figures = {name: value[name] for name in value if name not in ("seed", "language_model")}
    return {"key": [result["task"], result["size"], result["method"], value["seed"], value["language_model"]], **figures}
