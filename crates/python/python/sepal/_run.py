"""Runs of pipelines."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union

from . import _sepal
from ._classifier import Classifier, Predictions, load
from ._data import split_tables, with_files, write_tables
from ._errors import SepalError
from ._options import settings, to_json
from ._progress import Progress, listener

#: A pipeline: a mapping with the keys of a pipeline file, the path of one, or its text.
Pipeline = Union[Mapping[str, Any], str, os.PathLike[str]]


class Run:
    """Run folder with everything that a training left: adapter, records, report and checkpoints."""

    def __init__(self, folder: str | os.PathLike[str], summary: Mapping[str, Any] | None = None) -> None:
        #: Path of the folder.
        self.folder = Path(folder)
        #: Summary of the training: steps, rates, bytes and seconds; empty if this is a folder of an earlier one.
        self.summary: dict[str, Any] = dict(summary or {})
        self._classifier: Classifier | None = None

    @property
    def manifest(self) -> dict[str, Any]:
        """Contents of ``manifest.json``: model, data, versions and metrics."""
        manifest: dict[str, Any] = json.loads((self.folder / "manifest.json").read_text(encoding="utf-8"))
        return manifest

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the evaluation that was selected."""
        return dict(self.summary.get("metrics") or self.manifest.get("metrics") or {})

    def records(self, kind: str = "step") -> list[dict[str, Any]]:
        """Return the lines of ``metrics.jsonl`` of a kind: ``step`` or ``evaluation``."""
        with open(self.folder / "metrics.jsonl", encoding="utf-8") as lines:
            return [record for record in map(json.loads, lines) if record.get("kind") == kind]

    def predict(self, texts: Sequence[str], **options: Any) -> Predictions:
        """Predict texts; the classifier is loaded at the first call. See :meth:`Classifier.predict`."""
        if self._classifier is None:
            self._classifier = load(self)
        return self._classifier.predict(texts, **options)

    def __fspath__(self) -> str:
        return os.fspath(self.folder)

    def __repr__(self) -> str:
        return f"<sepal.Run {self.folder}>"


def train(
    config: Pipeline | None = None,
    data: Any = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    resume: Union[bool, str, os.PathLike[str], None] = False,
    progress: Progress = True,
) -> Run:
    """Train a pipeline and return its run.

    ``config`` is a mapping with the keys of a pipeline file, the path of a file, or its text. ``data`` replaces the rows
    that it names: a pandas or Arrow table (or another one with ``__arrow_c_stream__``), a dict of columns, a list of
    dicts, or a dict of these for ``train`` and ``validation``. The columns are ``text`` and ``label`` unless the
    pipeline says otherwise. The rows are copied to the folder ``data`` beside the run.

    ``overrides`` sets keys, for example ``{"train.max_steps": 100}``. ``resume=True`` continues the newest unfinished run
    of the same pipeline, and a run folder continues that run. ``progress`` is True for lines on standard error, or a
    function that receives each event as a dict.

    Ctrl-C ends the training after the current step and raises ``KeyboardInterrupt`` once the run is saved and can be
    resumed. Further ones change nothing: nothing writes to the run's folder any more when the exception is raised.
    """
    sets, events = settings(overrides), listener(progress)
    resumed = None if resume is False or resume is None else "" if resume is True else os.fspath(resume)
    if config is None:
        if not resumed:
            raise TypeError("train needs a pipeline, or the folder of a run to resume")
        config = Path(resumed) / "pipeline.yaml"
    name, text = _read(config)
    if data is not None:
        written = dict(config) if isinstance(config, Mapping) else json.loads(_sepal.read_yaml(text))
        if not isinstance(written, dict):
            raise SepalError(f"failed to read {name}: a pipeline is a mapping of keys")
        tables = split_tables(data)
        files = write_tables(tables, _data_folder(name, written, list(tables), sets))
        text = to_json(with_files(written, files))
    summary = json.loads(_sepal.train(name, text, sets, resumed, events))
    return Run(summary["folder"], summary)


def _read(config: Pipeline) -> tuple[str, str]:
    """Return a name for messages and the text of a pipeline."""
    if isinstance(config, Mapping):
        return "pipeline", to_json(config)
    if isinstance(config, str) and "\n" in config:
        return "pipeline", config
    return os.fspath(config), Path(config).read_text(encoding="utf-8")


def _data_folder(name: str, written: dict[str, Any], splits: Sequence[str], sets: list[str]) -> Path:
    """Return the folder for the rows of these splits. The pipeline is checked first, with names of files to come."""
    checked = with_files(written, {split: "rows.arrow" for split in splits})
    folder = json.loads(_sepal.resolve(name, to_json(checked), sets))["output"]["folder"]
    return Path(folder) / "data"
