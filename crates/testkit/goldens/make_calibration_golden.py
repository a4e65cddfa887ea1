#!/usr/bin/env python3
"""Makes calibration.json with scikit-learn; the file says which versions.

    pip install scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6 && python make_calibration_golden.py

Drawn logits and labels, the temperature of the estimator that `CalibratedClassifierCV(method="temperature")` fits, the
probabilities that it predicts, and the first of the thresholds of `precision_recall_curve` with the largest `f1_score`.
Independent labels have the logits -x / 2 and x / 2 of two classes, whose softmax is the sigmoid of x.
"""

import json
import pathlib
import platform

import numpy as np
import scipy
import sklearn
from sklearn import metrics as sk
from sklearn.calibration import _TemperatureScaling

HERE = pathlib.Path(__file__).resolve().parent


def temperature(logits, actual):
    """The temperature, and the probabilities with it."""
    fitted = _TemperatureScaling().fit(logits, actual)
    return float(1.0 / fitted.beta_), fitted.predict(logits)


def threshold(scores, positive):
    """The first threshold with the largest F1, and this F1."""
    _, _, thresholds = sk.precision_recall_curve(positive, scores)
    f1 = [sk.f1_score(positive, scores >= threshold, zero_division=0) for threshold in thresholds]
    best = int(np.argmax(f1))
    return [float(thresholds[best]), float(f1[best])]


def classes(rng):
    for name, rows, n_labels, strength, scale in [
        ("two classes, too sure", 40, 2, 1.5, 3.0),
        ("two classes, unsure", 40, 2, 1.5, 0.3),
        ("three classes", 50, 3, 1.2, 2.0),
        ("ten classes", 60, 10, 1.5, 1.0),
        ("almost chance", 50, 2, 0.1, 1.0),
    ]:
        actual = rng.integers(n_labels, size=rows)
        logits = rng.normal(size=(rows, n_labels))
        logits[np.arange(rows), actual] += strength
        logits = (logits * scale).round(4)
        found, probabilities = temperature(logits, actual)
        of_second = [threshold(probabilities[:, 1].astype(np.float32), actual == 1)] if n_labels == 2 else []
        yield dict(
            name=name,
            logits=logits.tolist(),
            actual=actual.tolist(),
            temperature=found,
            probabilities=probabilities.tolist(),
            thresholds=of_second,
        )


def labels(rng):
    for name, rows, shares, scale in [
        ("three labels, too sure", 30, [0.5, 0.2, 0.3], 3.0),
        ("four labels, unsure", 40, [0.5, 0.1, 0.4, 0.6], 0.4),
    ]:
        actual = rng.random((rows, len(shares))) < shares
        logits = ((rng.normal(size=actual.shape) + np.where(actual, 1.0, -1.0)) * scale).round(4)
        flat = logits.reshape(-1, 1)
        found, probabilities = temperature(np.hstack([-flat / 2, flat / 2]), actual.reshape(-1).astype(int))
        probabilities = probabilities[:, 1].reshape(actual.shape)
        yield dict(
            name=name,
            logits=logits.tolist(),
            actual=actual.tolist(),
            temperature=found,
            probabilities=probabilities.tolist(),
            thresholds=[threshold(p.astype(np.float32), y) for p, y in zip(probabilities.T, actual.T)],
        )


def main():
    rng = np.random.default_rng(68)
    versions = dict(
        python=platform.python_version(), numpy=np.__version__, scipy=scipy.__version__, sklearn=sklearn.__version__
    )
    lines = [f'"versions": {json.dumps(versions)}']
    for name, group in dict(classes=classes, labels=labels).items():
        cases = list(group(rng))
        print(name, [(case["name"], case["temperature"], case["thresholds"]) for case in cases])
        lines.append(f'"{name}": [\n' + ",\n".join(json.dumps(case, allow_nan=False) for case in cases) + "\n]")
    (HERE / "calibration.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
