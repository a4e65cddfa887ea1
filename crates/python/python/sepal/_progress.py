"""Events of runs: lines for people, or calls of a function."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any, Union

#: ``True`` prints lines to standard error, a function receives each event as a dict, ``False`` and ``None`` are silent.
Progress = Union[bool, None, Callable[[dict[str, Any]], object]]

_LINES = 50


class Lines:
    """Prints events of a run in about fifty lines."""

    def __init__(self) -> None:
        self.total = 0

    def __call__(self, event: dict[str, Any]) -> None:
        line = getattr(self, event["event"], lambda event: None)(event)
        if line:
            print(line, file=sys.stderr, flush=True)

    def notice(self, event: dict[str, Any]) -> str:
        return str(event["text"])

    def fetch(self, event: dict[str, Any]) -> str:
        return f"fetching {event['file']} ({event['bytes'] / 1e6:.0f} MB)"

    def started(self, event: dict[str, Any]) -> str:
        self.total = event["total_steps"]
        return f"training {event['trainable']:,} numbers for {self.total} steps"

    def step(self, event: dict[str, Any]) -> str | None:
        record = event["record"]
        step = record["step"]
        if step not in (1, self.total) and step % max(1, self.total // _LINES) != 0:
            return None
        loss, accuracy = record.get("loss"), record.get("accuracy")
        text = "skipped" if record.get("skipped") else f"loss {_number(loss)}"
        return f"step {step}/{self.total} {text}" + ("" if accuracy is None else f" acc {100 * accuracy:.1f}%")

    def evaluated(self, event: dict[str, Any]) -> str:
        record = event["record"]
        metrics = {"loss": record["loss"], **record["metrics"]}
        names = dict.fromkeys([event["headline"], "loss"])
        shown = " ".join(f"{name} {_number(metrics[name])}" for name in names if name in metrics)
        return f"evaluated {record['rows']} rows after step {record['step']}: {shown}"


def listener(progress: Progress) -> Callable[[str], object] | None:
    """Return the function that the native module calls with each event, as JSON."""
    if progress is None or progress is False:
        return None
    if progress is not True and not callable(progress):
        raise TypeError(f"progress is {type(progress).__name__}; give True, False, None or a function of an event")
    handle = Lines() if progress is True else progress
    return lambda text: handle(json.loads(text))


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.4f}"
