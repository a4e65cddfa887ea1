"""Methods of the table that Sepal runs: one pipeline for each, with fixed options that no validation row has chosen."""

import json
import os
import subprocess
import time
from pathlib import Path

import models

# Steps, rows of a step and steps of warm-up for each size of the training file; `full` is one pass.
STEPS = {"16-shot": (30, 16, 5), "1k": (32, 32, 5), "full": (None, 32, 20)}
LORA = {"use": "lora", "with": {"r": 8, "alpha": 16, "targets": "all-linear"}}


def deep(task):
    return {"use": "deep-ptune", "with": {"pre_seq_len": 16, "init": {"text": task.prompt}}}


def shallow(task):
    return {"use": "ptune", "with": {"pre_seq_len": 16, "init": {"text": task.prompt}}}


def prefix(_):
    return {"use": "prefix-kv", "with": {"pre_seq_len": 16}}


def lora(_):
    return LORA


def label_words(task):
    return {"use": "sequence-classification",
            "with": {"labels": task.labels, "init": "label-words", "label_words": task.words}}


def random_head(task):
    return {"use": "sequence-classification", "with": {"labels": task.labels}}


def verbalizer(task):
    words = {label: [word] for label, word in zip(task.labels, task.words)} | task.more_words
    return {"use": "verbalizer", "with": {"labels": task.labels, "words": words}}


def calibrated(task):
    head = verbalizer(task)
    return {**head, "with": {**head["with"], "calibrate": ["N/A"]}}


# Name in the table: head, tuning mode, learning rate, true if the run has steps.
METHODS = {
    "zero-shot": (calibrated, lora, 1e-3, False),
    "lora": (label_words, lora, 1e-3, True),
    "deep-ptune": (label_words, deep, 1e-3, True),
    "ptune": (label_words, shallow, 3e-3, True),
    "prefix-kv": (label_words, prefix, 1e-2, True),
    "verbalizer": (verbalizer, deep, 1e-3, True),
    "lora, random head": (random_head, lora, 1e-3, True),
}


def pipeline(task, method, size, seed, model, train, validation, folder):
    """Return the pipeline of one run; JSON is YAML."""
    head, tuning, rate, trained = METHODS[method]
    steps, batch, warmup = STEPS[size]
    length = {"epochs": 1} if steps is None else {"max_steps": steps}
    if not trained:
        length = {"max_steps": 0}
    return {
        "name": f"{method.replace(', ', '-').replace(' ', '-')}-{size}-{seed}",
        "model": {"source": models.MODELS[model].sources},
        "swarm": {"use": "embedded"},
        "task": head(task),
        "tuning": tuning(task),
        "data": {"train": str(train), "validation": str(validation), "text": "text", "label": "label",
                 "template": task.template, "max_length": task.max_length},
        "loader": {"batch_size": batch, "drop_last": size != "16-shot", "shuffle": True},
        "optimizer": {"use": "adamw", "with": {"lr": rate, "weight_decay": 0.0}},
        "schedule": {"use": "linear", "with": {"warmup_steps": warmup}},
        "train": {**length, "clip_norm": 1.0, "seed": seed},
        "evaluate": {"every": "end"},
        "output": {"adapter": "last", "folder": str(folder)},
    }


def run(program, task, method, size, seed, model, train, validation, place):
    """Run one pipeline and return the figures of its manifest."""
    place.mkdir(parents=True, exist_ok=True)
    document = pipeline(task, method, size, seed, model, train, validation, place / "runs")
    file = place / f"{document['name']}.yaml"
    file.write_text(json.dumps(document, indent=2))
    begun = time.monotonic()
    before = os.times()
    done = subprocess.run([program, "run", str(file)], cwd=place, capture_output=True, text=True, check=False)
    after = os.times()
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip()[-500:])
    folder = next(line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("folder "))
    manifest = json.loads((place / folder / "manifest.json").read_text())
    return {
        "accuracy": manifest["metrics"]["accuracy"],
        "f1_macro": manifest["metrics"]["f1_macro"],
        "steps": manifest["steps"],
        "trained_numbers": manifest["parameters"]["trainable"] if METHODS[method][3] else 0,
        "bytes": manifest["bytes"]["sent"] + manifest["bytes"]["received"],
        "cpu_seconds": round(after.children_user + after.children_system - before.children_user - before.children_system, 1),
        "seconds": round(time.monotonic() - begun, 1),
        "model": manifest["model"]["source"],
    }
