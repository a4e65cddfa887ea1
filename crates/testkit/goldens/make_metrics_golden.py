#!/usr/bin/env python3
"""Makes metrics.json with scikit-learn and SciPy; the file says which versions.

    pip install scikit-learn==1.9.1 scipy==1.17.1 numpy==2.4.6 && python make_metrics_golden.py

Predictions and labels of every kind, and what scikit-learn and SciPy measure of them; null is what they refuse or call
NaN. Where they have no such metric the formula is here: the bins of the calibration are those of `calibration_curve`
(each holds its upper edge) over the largest probability, and the error is their mean gap by rows. Where
scikit-learn's own rule is not followed, it is checked against where both agree: `top_k_accuracy_score` on rows
without equal probabilities.
"""

import json
import pathlib
import platform
import warnings

import numpy as np
import scipy
import sklearn
from scipy import stats
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from sklearn.exceptions import UndefinedMetricWarning

HERE = pathlib.Path(__file__).resolve().parent
AVERAGES = ("macro", "micro", "weighted")


def number(value):
    """A float for JSON; null for NaN."""
    return None if np.isnan(value) else float(value)


def tried(metric, *args, **kwargs):
    """The metric, or null where scikit-learn refuses it."""
    try:
        return number(metric(*args, **kwargs))
    except ValueError as error:
        assert "Only one class" in str(error) or "Number of" in str(error), error
        return None


def scores(actual, predicted, **kwargs):
    found = sk.precision_recall_fscore_support(actual, predicted, zero_division=0, **kwargs)
    return [np.asarray(part, dtype=float).tolist() for part in found[:3]]


# One class per row


def distributions(rng, actual, n_labels, strength, parts=None):
    """Probabilities [rows, n_labels] that lean to the labels; multiples of 1 / parts if that is given, with many ties."""
    logits = rng.normal(size=(len(actual), n_labels))
    logits[np.arange(len(actual)), actual] += strength
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if parts:
        return np.array([rng.multinomial(parts, row) for row in p]) / parts
    p = p.round(6)
    p[:, -1] = (1 - p[:, :-1].sum(axis=1)).round(6)
    return p


def calibration(p, actual, n_bins):
    top, right = p.max(axis=1), p.argmax(axis=1) == actual
    accuracy, confidence = calibration_curve(right, top, n_bins=n_bins, pos_label=True)
    bin_of = np.searchsorted(np.linspace(0, 1, n_bins + 1)[1:-1], top)
    counts = np.bincount(bin_of, minlength=n_bins)
    bins = np.zeros((n_bins, 3))
    bins[:, 0] = counts
    bins[counts > 0, 1], bins[counts > 0, 2] = confidence, accuracy
    gaps = np.abs(accuracy - confidence)
    return dict(n_bins=n_bins, error=float((counts[counts > 0] * gaps).sum() / len(actual)), bins=bins.tolist())


def top_k(p, actual, k):
    first = np.argsort(-p, axis=1, kind="stable")[:, :k]
    found = float((first == actual[:, None]).any(axis=1).mean())
    n_labels = p.shape[1]
    if n_labels > 2 and k < n_labels and all(len(set(row)) == n_labels for row in p):
        assert np.isclose(found, sk.top_k_accuracy_score(actual, p, k=k, labels=range(n_labels)))
    return found


def of_probabilities(p, actual):
    n_labels = p.shape[1]
    labels = list(range(n_labels))
    if n_labels == 2:
        area = tried(sk.roc_auc_score, actual, p[:, 1])
        precision = number(sk.average_precision_score(actual == 1, p[:, 1])) if (actual == 1).any() else None
        brier = sk.brier_score_loss(actual, p[:, 1], labels=labels, pos_label=1)
    else:
        area, precision = tried(sk.roc_auc_score, actual, p, multi_class="ovr", average="macro"), None
        brier = sk.brier_score_loss(actual, p, labels=labels)
    return dict(
        auroc=area,
        average_precision=precision,
        brier=float(brier),
        log_loss=sk.log_loss(actual, p, labels=labels),
        top_k=[top_k(p, actual, k) for k in (1, 2, 3)],
    )


def of_classes(name, predicted, actual, p):
    predicted, actual = np.asarray(predicted), np.asarray(actual)
    n_labels = p.shape[1]
    labels = list(range(n_labels))
    expected = dict(
        accuracy=sk.accuracy_score(actual, predicted),
        balanced_accuracy=sk.balanced_accuracy_score(actual, predicted),
        mcc=sk.matthews_corrcoef(actual, predicted),
        kappa=number(sk.cohen_kappa_score(actual, predicted)),
        confusion=sk.confusion_matrix(actual, predicted, labels=labels).tolist(),
        per_class=scores(actual, predicted, labels=labels),
        support=np.bincount(actual, minlength=n_labels).tolist(),
        **{average: scores(actual, predicted, average=average) for average in AVERAGES},
        **of_probabilities(p, actual),
    )
    return dict(
        name=name,
        predicted=predicted.tolist(),
        actual=actual.tolist(),
        probabilities=p.tolist(),
        expected=expected,
        calibration=[calibration(p, actual, n_bins) for n_bins in (1, 4, 10, 15)],
    )


def classes(rng):
    def case(name, actual, n_labels, strength=1.5, parts=None, predicted=None):
        actual = np.asarray(actual)
        p = distributions(rng, actual, n_labels, strength, parts)
        return of_classes(name, p.argmax(axis=1) if predicted is None else predicted, actual, p)

    drawn = lambda rows, shares: rng.choice(len(shares), size=rows, p=shares)
    wrong = drawn(30, [0.4, 0.3, 0.3])
    yield case("two classes", drawn(40, [0.5, 0.5]), 2)
    yield case("two classes, one of them rare", np.array([0] * 57 + [1] * 3), 2, strength=1.0)
    yield case("two classes, ties", drawn(40, [0.4, 0.6]), 2, parts=4)
    yield case("two classes, all the same row", [0, 1, 1, 0, 1], 2, predicted=[1] * 5)
    yield case("two classes, always the first", drawn(30, [0.7, 0.3]), 2, predicted=[0] * 30)
    yield case("two classes, the labels all of the second", [1] * 12, 2)
    yield case("two classes, the labels all of the first", [0] * 12, 2)
    yield case("two classes, one and the same on both sides", [1] * 6, 2, predicted=[1] * 6)
    yield case("two classes, always wrong", drawn(30, [0.5, 0.5]), 2, strength=-9.0)
    yield case("one row", [1], 3, strength=0.0)
    yield case("three classes", drawn(50, [0.3, 0.3, 0.4]), 3)
    yield case("three classes, ties and probabilities on edges", drawn(60, [0.2, 0.3, 0.5]), 3, parts=10)
    yield case("three classes, never right", wrong, 3, predicted=(wrong + 1) % 3)
    yield case("three classes, certain", drawn(30, [0.3, 0.3, 0.4]), 3, parts=1)
    yield case("three classes, one only predicted", drawn(30, [0.5, 0.5]), 3, strength=0.2)
    yield case("three classes, one on neither side", [0, 2, 2, 0, 2, 0, 2], 3, predicted=[0, 2, 0, 0, 2, 2, 2])
    yield case("seven classes", drawn(84, [0.4, 0.2, 0.15, 0.1, 0.07, 0.05, 0.03]), 7)
    yield case("seven classes, many missing", rng.choice([1, 4, 5], size=40), 7, strength=1.0)


# Scores of positive rows


def rankings(rng):
    def case(name, score, positive):
        score, positive = np.asarray(score, dtype=float), np.asarray(positive, dtype=bool)
        expected = dict(
            auroc=tried(sk.roc_auc_score, positive, score),
            average_precision=float(sk.average_precision_score(positive, score)) if positive.any() else None,
        )
        return dict(name=name, scores=score.tolist(), positive=positive.tolist(), expected=expected)

    positive = rng.random(60) < 0.4
    score = (rng.normal(size=60) + positive).round(4)
    yield case("apart", score, positive)
    yield case("ties", score.round(0), positive)
    yield case("of any size", score * 1e6, positive)
    yield case("backwards", -score, positive)
    yield case("all the same", np.full(60, 0.25), positive)
    yield case("perfect", positive, positive)
    yield case("one positive", score, np.arange(60) == 17)
    yield case("all positive", score, np.ones(60))
    yield case("none positive", score, np.zeros(60))


# Values


def values(rng):
    def case(name, predicted, actual):
        predicted, actual = np.asarray(predicted, dtype=float), np.asarray(actual, dtype=float)
        expected = dict(
            mse=sk.mean_squared_error(actual, predicted),
            rmse=sk.root_mean_squared_error(actual, predicted),
            mae=sk.mean_absolute_error(actual, predicted),
            r2=number(sk.r2_score(actual, predicted)),
            pearson=number(stats.pearsonr(predicted, actual).statistic),
            spearman=number(stats.spearmanr(predicted, actual).statistic),
        )
        return dict(name=name, predicted=predicted.tolist(), actual=actual.tolist(), expected=expected)

    actual = (rng.random(50) * 5).round(3)
    predicted = (actual + rng.normal(size=50)).round(4)
    yield case("near", predicted, actual)
    yield case("ties on both sides", predicted.round(0), (actual * 2).round(0) / 2)
    yield case("far from zero", predicted + 1e4, actual + 1e4)
    yield case("worse than the mean", 5 - predicted, actual)
    yield case("two rows", [1.0, 2.0], [0.5, 3.0])
    yield case("constant predictions", np.full(50, 0.1), actual)
    # A half has an exact mean. Of labels that are all 0.1, R2 divides by what the mean rounds to and says -1e34.
    yield case("constant labels", predicted, np.full(50, 0.5))
    yield case("constant labels, all right", np.full(9, 0.5), np.full(9, 0.5))
    yield case("exact", actual, actual)


# Several labels a row


def several(rng):
    def case(name, score, actual, threshold=0.5):
        actual = np.asarray(actual, dtype=bool)
        predicted = score >= threshold
        expected = dict(
            exact_match=sk.accuracy_score(actual, predicted),
            hamming_loss=sk.hamming_loss(actual, predicted),
            per_label=scores(actual, predicted, average=None),
            support=actual.sum(axis=0).tolist(),
            auroc=tried(sk.roc_auc_score, actual, score, average="macro"),
            **{average: scores(actual, predicted, average=average) for average in AVERAGES},
        )
        return dict(
            name=name,
            scores=score.tolist(),
            predicted=predicted.tolist(),
            actual=actual.tolist(),
            expected=expected,
        )

    def drawn(rows, shares, strength=0.3):
        actual = rng.random((rows, len(shares))) < shares
        return (rng.random((rows, len(shares))) * (1 - strength) + actual * strength).round(4), actual

    yield case("four labels", *drawn(50, [0.5, 0.3, 0.2, 0.6]))
    score, actual = drawn(40, [0.5, 0.1, 0.4])
    yield case("ties", score.round(1), actual)
    yield case("nothing predicted", score, actual, threshold=2.0)
    yield case("everything predicted", score, actual, threshold=-1.0)
    yield case("a label of no row", *drawn(30, [0.5, 0.0, 0.4]))
    yield case("a label of each row", *drawn(30, [0.5, 1.0, 0.4]))
    yield case("no labels at all", *drawn(20, [0.0, 0.0]))
    yield case("exact", *drawn(25, [0.4, 0.3, 0.7], strength=1.0))


def main():
    warnings.simplefilter("ignore", UndefinedMetricWarning)
    warnings.simplefilter("ignore", stats.ConstantInputWarning)
    warnings.filterwarnings("ignore", message="(A single label|y_pred contains classes)")
    rng = np.random.default_rng(12)
    groups = dict(classes=classes, rankings=rankings, values=values, several=several)
    versions = dict(
        python=platform.python_version(), numpy=np.__version__, scipy=scipy.__version__, sklearn=sklearn.__version__
    )
    lines = [f'"versions": {json.dumps(versions)}']
    for name, group in groups.items():
        cases = list(group(rng))
        print(name, len(cases))
        lines.append(f'"{name}": [\n' + ",\n".join(json.dumps(case, allow_nan=False) for case in cases) + "\n]")
    (HERE / "metrics.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
