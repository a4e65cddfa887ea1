"""Predictions of trained runs."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

from . import _sepal
from ._options import Swarm, listed_texts, listed_values, settings
from ._progress import Progress, listener


@dataclass(frozen=True)
class Prediction:
    """Prediction for one text.

    ``label`` is the name of the class, the list of likely labels, the number, the index of the chosen option, or the
    list of the words' tags, by the kind of the task. ``scores`` are probabilities by label; of options and words they
    are a list, and a number has none.
    """

    label: Any
    scores: Union[dict[str, float], list[float]]


class Predictions(list[Prediction]):
    """Predictions in the order of their texts."""

    def to_pandas(self) -> Any:
        """Return a ``pandas.DataFrame`` with a column ``label`` and one column of probabilities for each label."""
        import pandas

        rows = []
        for prediction in self:
            row = {"label": prediction.label}
            if isinstance(prediction.scores, dict):
                row.update({f"probability_{name}": score for name, score in prediction.scores.items()})
            else:
                row["scores"] = prediction.scores
            rows.append(row)
        return pandas.DataFrame(rows, columns=None if rows else ["label"])


class Classifier:
    """Trained classifier of a run, ready to predict. It frees its model when it is closed or collected."""

    def __init__(self, run: str | os.PathLike[str], sets: Sequence[str], progress: Progress) -> None:
        self._native = _sepal.Classifier(os.fspath(run), list(sets), listener(progress))
        self._facts: dict[str, Any] = json.loads(self._native.facts)
        self._finalizer = weakref.finalize(self, self._native.close)

    @property
    def name(self) -> str:
        """Name of the pipeline."""
        return str(self._facts["name"])

    @property
    def labels(self) -> list[str]:
        """Names of the labels."""
        return list(self._facts["labels"])

    @property
    def kind(self) -> str:
        """Kind of the answers: ``class``, ``labels``, ``value``, ``choice`` or ``tags``."""
        return str(self._facts["kind"])

    def predict(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        options: Sequence[Sequence[str]] | None = None,
    ) -> Predictions:
        """Predict each text, in batches of the run's size.

        ``pairs`` holds the second text of each row, ``options`` its options, for tasks that need them.
        """
        texts = listed_texts(texts, "texts")
        for index, text in enumerate(texts):
            if not text:
                raise ValueError(f"texts[{index}] is empty, and an empty text has no label; leave it out")
        second = None if pairs is None else listed_texts(pairs, "pairs")
        rows = None if options is None else listed_values(options, "options", "lists of texts")
        for values, name in ((second, "pairs"), (rows, "options")):
            if values is not None and len(values) != len(texts):
                raise ValueError(f"{name} has {len(values)} entries for {len(texts)} texts")
        choices = None if rows is None else [listed_texts(row, f"options[{index}]") for index, row in enumerate(rows)]
        answers = json.loads(self._native.predict(texts, second, choices))
        return Predictions(Prediction(answer["label"], answer["scores"]) for answer in answers)

    def close(self) -> None:
        """Free the model and leave its servers. Later predictions fail."""
        self._finalizer()

    def __enter__(self) -> Classifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<sepal.Classifier {self.name}: {', '.join(self.labels) or self.kind}>"


def load(
    run: str | os.PathLike[str],
    *,
    swarm: Swarm = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress = False,
) -> Classifier:
    """Load the classifier of a run folder, or of the :class:`Run` that :func:`train` returned.

    The blocks run where the run's pipeline says, or in ``swarm``: addresses of servers, or a mapping as in a pipeline
    file. ``overrides`` sets other keys, for example ``{"model.device": "cuda:0"}``.
    """
    return Classifier(run, settings(overrides, swarm), progress)
