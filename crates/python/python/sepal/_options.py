"""Options of Python calls as those of a pipeline file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Union

#: Placement of a model's blocks: the ``swarm`` of a pipeline, addresses of servers, or the name of a kind.
Swarm = Union[None, str, Sequence[str], Mapping[str, Any]]

_KINDS = ("none", "embedded", "lan")


def swarm_options(swarm: Swarm) -> dict[str, Any]:
    """Return the ``swarm`` of a pipeline: this process by default, servers for addresses."""
    if swarm is None:
        return {"use": "embedded"}
    if isinstance(swarm, Mapping):
        return dict(swarm)
    if isinstance(swarm, str):
        return {"use": swarm} if swarm in _KINDS else {"use": "static", "with": {"servers": [swarm]}}
    return {"use": "static", "with": {"servers": [str(server) for server in swarm]}}


def to_json(value: Any) -> str:
    """Return JSON in lines, which a pipeline file may hold; paths become text."""
    return json.dumps(value, indent=2, default=plain, ensure_ascii=False)


def plain(value: Any) -> Any:
    """Return the text of a path, or the numbers of a NumPy value or array, which JSON does not know."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{value!r} is {type(value).__name__}; expected a text, a number, a list or a dict")


def listed_texts(texts: Any, name: str) -> list[str]:
    """Return the argument ``name`` of a call as a list, if it holds texts."""
    if isinstance(texts, str):
        raise TypeError(f"{name} is one text; give a list of texts")
    listed = listed_values(texts, name, "texts")
    for index, text in enumerate(listed):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{index}] is {type(text).__name__}, not a text")
    return listed


def listed_values(values: Any, name: str, kind: str) -> list[Any]:
    """Return the argument ``name`` of a call, several values of this kind, as a list."""
    if not hasattr(values, "__iter__") and not hasattr(values, "__getitem__"):
        raise TypeError(f"{name} is {type(values).__name__}; give a list of {kind}")
    return list(values)


def settings(overrides: Mapping[str, Any] | None, swarm: Swarm = None) -> list[str]:
    """Return the overrides as texts ``key=value``, as after ``--set``."""
    values = dict(overrides or {})
    if swarm is not None:
        options = swarm_options(swarm)
        values["swarm.use"] = options.get("use", "static")
        values.update({f"swarm.with.{key}": value for key, value in options.get("with", {}).items()})
    return [f"{key}={json.dumps(value, default=plain, ensure_ascii=False)}" for key, value in values.items()]
