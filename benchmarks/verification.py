#!/usr/bin/env python3
"""Measures the time of a step without verification, with checks of 2 % of the calls and of all, in turn; rewrites docs/verification.json and a line of docs/reliability.md.

Two servers have all blocks of the model of pipelines/sst2-deep.yaml, each with one thread, so that the checks of a step compete with
its calls for the two cores of a machine. The first steps, in which a new server is always checked, are left out.
"""

import argparse
import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).resolve().parent))
from attacks import Process  # noqa: E402

PIPELINE = ROOT / "pipelines/sst2-deep.yaml"
MODEL = re.search(r"- (pypi:llm-\S+)", PIPELINE.read_text()).group(1)
SHARE = 0.02
# Steps that are left out: those of a server's first calls and of the caches.
FIRST = 5
# Deterministic, so that both runs make the same calls: otherwise the client tries other divisions into micro-batches.
SETTINGS = [
    "loader.batch_size=16", "swarm.with.micro_batch_tokens=128", "evaluate.every=never", "schedule.use=constant",
    "train.deterministic=true",
]


def cpu_seconds(pid):
    """Return the seconds that a process has computed so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def step_records(folder):
    """Return the records of steps of the newest run."""
    runs = sorted((folder / "runs").glob("*/metrics.jsonl"), key=lambda path: path.stat().st_ctime)
    lines = runs[-1].read_text().splitlines() if runs else []
    return [record for record in map(json.loads, lines) if record["kind"] == "step"]


def steps(args, folder, servers, share):
    """Return the seconds and the processor's seconds of a step after the first ones, and the number of checked and of all calls."""
    place = Path(tempfile.mkdtemp(dir=folder))
    swarm = {"use": "static", "with": {"servers": [address for _, address in servers], "verify": share}}
    command = [args.program, "run", str(PIPELINE), "--set", f"swarm={json.dumps(swarm)}", f"train.max_steps={args.steps}", *SETTINGS]
    with open(place / "messages", "w", encoding="utf-8") as messages:
        run = subprocess.Popen(command, cwd=place, stdout=messages, stderr=messages)
    pids = [*(server.child.pid for server, _ in servers), run.pid]
    computed = lambda: sum(map(cpu_seconds, pids))  # noqa: E731
    marks = []
    # The processor's seconds are read between two steps, as soon as the record of a step is there.
    while run.poll() is None and len(marks) < 2:
        time.sleep(0.02)
        if len(step_records(place)) >= (args.steps if marks else FIRST):
            marks.append(computed())
    if run.wait() != 0 or len(marks) < 2:
        raise SystemExit(f"verification: {(place / 'messages').read_text()[-2000:]}")
    seconds = statistics.mean(record["seconds"] for record in step_records(place)[FIRST:])
    manifest = json.loads(next((place / "runs").glob("*/manifest.json")).read_text())
    calls = [sum(server[key] for server in manifest["servers"]) for key in ("checks", "calls")]
    return {"seconds": seconds, "cpu_seconds": (marks[1] - marks[0]) / (args.steps - FIRST), "checks": calls[0], "calls": calls[1]}


def measure(args, folder):
    with contextlib.ExitStack() as stack:
        serve = [args.program, "serve", MODEL, "--threads", "1", "--listen", "127.0.0.1:0"]
        servers = [stack.enter_context(Process(serve, folder)) for _ in range(2)]
        servers = [(server, server.line(" on ")) for server in servers]
        rounds = []
        for number in range(args.rounds):
            made = {}
            for share in [0.0, SHARE, 1.0] if number % 2 == 0 else [1.0, SHARE, 0.0]:
                made[share] = steps(args, folder, servers, share)
                print(share, made[share], flush=True)
            rounds.append({"without": made[0.0], "with": made[SHARE], "all": made[1.0]})
    return rounds


def write(args, rounds):
    mean = {name: statistics.mean(made[name]["seconds"] for made in rounds) for name in ("without", "with", "all")}
    ratios = {name: mean[name] / mean["without"] for name in ("with", "all")}
    result = {"share": SHARE, "steps": args.steps, "first": FIRST, "rounds": rounds, "ratios": ratios}
    (ROOT / "docs/verification.json").write_text(json.dumps(result, indent=2) + "\n")
    page = ROOT / "docs/reliability.md"
    line = (f"| time of verification at {SHARE}, as a share of a step (`just bench-checks`) | {100 * SHARE * (ratios['all'] - 1):.1f} %: "
            f"{SHARE} of what checks of all calls add, {100 * (ratios['all'] - 1):.0f} %; {100 * (ratios['with'] - 1):.1f} % as measured at "
            f"{SHARE} in {len(rounds)} pairs of runs ([070](decisions/070-verification.md#figures)) |")
    text, count = re.subn(r"\| time of verification.*", line, page.read_text())
    if count != 1:
        raise SystemExit(f"verification: {page} has no line for the figure")
    page.write_text(text)
    print(f"a step with checks, over one without: {ratios}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the built programs")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of three runs")
    parser.add_argument("--steps", type=int, default=60, help="steps of a run")
    args = parser.parse_args()
    args.program = str(args.folder / "sepal")
    with tempfile.TemporaryDirectory() as name:
        write(args, measure(args, Path(name)))


if __name__ == "__main__":
    main()
