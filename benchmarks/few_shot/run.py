#!/usr/bin/env python3
"""Accuracy with few rows of each class, by task head: mean and standard deviation over seeds.

Runs pipelines/sst2-few-shot.yaml with each head and seed. The seed draws the rows, the initial values and their order.

    python3 benchmarks/few_shot/run.py --data train=train.tsv validation=dev.tsv --seeds 5
"""

import argparse
import json
import statistics
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LABELS = '"labels":["negative","positive"]'
WORDS = '"words":{"negative":["negative","bad"],"positive":["positive","good"]}'
HEADS = {
    "random head": ['task={"use":"sequence-classification","with":{%s,"init":"random"}}' % LABELS],
    "label-words": ['task={"use":"sequence-classification","with":{%s,"init":"label-words"}}' % LABELS],
    "label-words, no training": [
        'task={"use":"sequence-classification","with":{%s,"init":"label-words"}}' % LABELS,
        "train.max_steps=0",
    ],
    "verbalizer": ['task={"use":"verbalizer","with":{%s,%s}}' % (LABELS, WORDS)],
    "verbalizer, no training, calibrated": [
        'task={"use":"verbalizer","with":{%s,%s,"calibrate":["N/A"]}}' % (LABELS, WORDS),
        "train.max_steps=0",
    ],
}


def accuracy(program, sets, folder):
    """Runs the pipeline and returns the accuracy of its manifest."""
    command = [program, "run", str(ROOT / "pipelines" / "sst2-few-shot.yaml")]
    command += [part for one in sets for part in ("--set", one)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    lines = [line for line in done.stdout.splitlines() if line.startswith("folder ")]
    manifest = json.loads((folder / lines[-1].split(maxsplit=1)[1] / "manifest.json").read_text())
    return manifest["metrics"]["accuracy"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="*", default=[], metavar="KEY=FILE", help="keys of `data`, for example train=F")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--heads", nargs="*", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--program", default=str(ROOT / "scripts" / "sepal"))
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the runs")
    args = parser.parse_args()
    data = ["data." + one for one in args.data]
    for head in args.heads:
        found = []
        for seed in range(args.seeds):
            found.append(100 * accuracy(args.program, [*HEADS[head], *data, f"train.seed={seed}"], args.out))
            print(f"  {head}, seed {seed}: {found[-1]:.2f} %", flush=True)
        deviation = statistics.stdev(found) if len(found) > 1 else 0.0
        print(f"{head}: {statistics.mean(found):.2f} % ± {deviation:.2f}", flush=True)


if __name__ == "__main__":
    main()
