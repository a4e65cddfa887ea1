#!/usr/bin/env python3
"""Measures servers under attack, and how soon liars are found; rewrites docs/attacks.json and two tables of docs/reliability.md.

Each attack meets a new server with default limits. An honest run of a few steps goes on beside it, and its duration is compared
with that of the same run before the attack. Liars stand beside two honest replicas.
"""

import argparse
import contextlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import soak_runs  # noqa: E402

# Name of the row, attack of the example `hostile` with its numbers, and the port that it attacks.
ATTACKS = [
    ("one row of 16,384 tokens, model of 128 positions", ["one-row", 16384], "blocks", "4.2 GB and 71 s (Llama), more than 7 GB (BLOOM, Gemma 2)"),
    ("the same, and the client ends", ["abandoned-row", 4, 16384], "blocks", "computed to the end; an honest client waits a minute"),
    ("40 uploads of tunables of 64 MB", ["uploads", 40, 64], "blocks", "2.7 GB, never refused"),
    ("300 deliveries of tensors of rank 500,000", ["deliveries", 300, 500000], "blocks", "1.15 GB, counted as 0 bytes"),
    ("20,000 forward calls that wait for a relay key", ["waiting-forwards", 20000], "blocks", "0.4 GB, no deadline"),
    ("900 queued calls of 16,000 positions", ["queued-calls", 900, 16000], "blocks", "2.0 GB"),
    ("1,100 silent connections", ["silent", 1100], "blocks", "nobody is served"),
    ("600 slow headers on the status port", ["dripping", 600, 1], "status", "nobody is served"),
    ("600 dripping connections on `serve-task`", ["dripping", 600, 1], "task", "all 512 places taken; an honest request takes 26 s"),
]
LIES = [
    ("outputs negated", "outputs-negated"), ("outputs with noise", "outputs-noise"),
    ("outputs times 1.05", "outputs-scaled"), ("outputs of other blocks", "outputs-of-fewer-blocks"),
    ("outputs of the last step", "outputs-stale"), ("gradients negated", "grads-negated"),
    ("gradients of zeros", "grads-zero"), ("gradients times a million", "grads-large"),
    ("gradients of other blocks", "grads-of-other-blocks"), ("gradients of the last step", "grads-stale"),
]
# True answers of a liar before its first lie: more than those of the first steps, which are always checked.
TRUTHS = 150
STEPS = 3
# Many calls in a step: 64 rows in micro-batches of a few rows.
BUSY = ["--set", "swarm.with.micro_batch_tokens=40", "loader.batch_size=64", "train.accumulate=1", "train.max_steps=40"]


class Process:
    """Child that ends with the block."""

    def __init__(self, command, folder):
        self.child = subprocess.Popen(command, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=subprocess.DEVNULL, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()

    def line(self, beginning):
        """Return what follows in the first line that has the beginning."""
        for line in self.child.stdout:
            if beginning in line:
                return line.split(beginning, 1)[1].strip()
        raise RuntimeError(f"no line with `{beginning}`")

    def memory(self, name):
        text = Path(f"/proc/{self.child.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+) kB", text).group(1)) / 1024


def serve(args, folder, more=()):
    return Process([args.program, "serve", "model", "--listen", "127.0.0.1:0", "--threads", "1", *more], folder)


def honest_run(args, folder, addresses, more=()):
    """Run the pipeline. Returns its seconds and its messages."""
    name = soak_runs.write_pipeline(folder, 0, addresses)
    begun = time.monotonic()
    done = subprocess.run([args.program, "run", name, "--set", f"train.max_steps={STEPS}", "evaluate.every=never", *more],
                          cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-1000:])
    return time.monotonic() - begun, done.stderr


def refusals(status):
    with urllib.request.urlopen(f"http://{status}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    counts = [line.rsplit(" ", 1)[1] for line in lines if line.startswith(("sepal_refusals_total", "sepal_connections_refused_total", "sepal_connections_ended_total"))]
    return sum(int(float(count)) for count in counts)


def attack_blocks(args, folder, attack, port):
    with serve(args, folder, ["--http", "127.0.0.1:0"]) as server:
        address = server.line(" on ")
        status = server.line("status on http://").rstrip("/")
        idle_seconds, _ = honest_run(args, folder, [address])
        base = server.memory("VmHWM")
        target = address if port == "blocks" else status
        with Process([args.hostile, "attack", attack[0], target, *map(str, attack[1:])], folder):
            time.sleep(1)
            seconds, _ = honest_run(args, folder, [address])
            time.sleep(5)
            peak = server.memory("VmHWM")
            refused = refusals(status)
    return {"base_mb": base, "peak_mb": peak, "idle_seconds": idle_seconds, "seconds": seconds, "refusals": refused}


def ask(address):
    body = json.dumps({"texts": ["a clever film"]}).encode()
    request = urllib.request.Request(f"http://{address}/classify", body, {"Content-Type": "application/json"})
    begun = time.monotonic()
    with urllib.request.urlopen(request, timeout=120) as answer:
        answer.read()
    return time.monotonic() - begun


def attack_task(args, folder, attack):
    with serve(args, folder) as server:
        honest_run(args, folder, [server.line(" on ")])
        run = max((folder / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
        task = [args.program, "serve-task", str(run), "--set", "swarm.use=none", "--listen", "127.0.0.1:0"]
        with Process(task, folder) as process:
            address = process.line("listening on http://").rstrip("/")
            process.line("serving ")
            idle = max(ask(address) for _ in range(5))
            base = process.memory("VmHWM")
            with Process([args.hostile, "attack", attack[0], address, *map(str, attack[1:])], folder):
                time.sleep(1)
                seconds = max(ask(address) for _ in range(20))
                peak = process.memory("VmHWM")
    return {"base_mb": base, "peak_mb": peak, "idle_seconds": idle, "seconds": seconds}


def find_liar(args, folder, lie):
    """Return the steps and the lies until the liar is found."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(serve(args, folder, ["--pace-us", "20"])) for _ in range(2)]
        addresses = [server.line(" on ") for server in servers]
        behind = stack.enter_context(serve(args, folder)).line(" on ")
        liar = stack.enter_context(Process([args.hostile, "lie", lie, "127.0.0.1:0", behind, str(TRUTHS)], folder))
        address = liar.line("lying on ")
        _, messages = honest_run(args, folder, [address, *addresses], BUSY)
        liar.child.stdin.close()
        lies, calls = map(int, re.search(r"(\d+) lies in (\d+) calls", liar.child.stdout.read()).groups())
    found = any("results of a server are wrong" in line and address in line for line in messages.splitlines())
    run = max((folder / "runs").iterdir(), key=lambda path: path.stat().st_mtime)
    # The name of the evidence ends with the number of the session, which is that of the step.
    step = max((int(path.stem.rsplit("-", 1)[1]) for path in run.glob("evidence/*.json")), default=0)
    return {"found": found, "lies": lies, "calls": calls, "steps": math.ceil(lies * (step + 1) / max(calls, 1))}


def attack_cell(figures):
    text = f"{figures['peak_mb'] - figures['base_mb']:.0f} MB"
    if figures.get("refusals"):
        text += f", {figures['refusals']:,} refusals"
    return f"{text}; {figures['seconds']:.1f} s instead of {figures['idle_seconds']:.1f} s"


def write(results):
    (ROOT / "docs/attacks.json").write_text(json.dumps(results, indent=2) + "\n")
    attacks = "| attack, one client, default limits | before | now: memory beyond that of honest work; an honest run or request beside it |\n| --- | --- | --- |\n"
    attacks += "".join(f"| {name} | {before} | {attack_cell(results['attacks'][name])} |\n"
                       for name, _, _, before in ATTACKS if name in results["attacks"])
    lies = "| lie, which begins after 150 true answers | found after wrong answers | steps with wrong answers |\n| --- | --- | --- |\n"
    lies += "".join(f"| {name} | {results['lies'][name]['lies']} | {results['lies'][name]['steps']} |\n"
                    for name, _ in LIES if name in results["lies"])
    page = (ROOT / "docs/reliability.md")
    text = page.read_text()
    for mark, table in [("attacks", attacks), ("lies", lies)]:
        begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->\n"
        head, tail = text.split(begin)
        text = f"{head}{begin}{table}{end}{tail.split(end)[1]}"
    page.write_text(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the built programs")
    args = parser.parse_args()
    args.program, args.hostile = str(args.folder / "sepal"), str(args.folder / "examples/hostile")
    results = {"attacks": {}, "lies": {}}
    os.environ["OMP_WAIT_POLICY"] = "passive"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        soak_runs.prepare(folder)
        for row, attack, port, _ in ATTACKS:
            figures = attack_task(args, folder, attack) if port == "task" else attack_blocks(args, folder, attack, port)
            results["attacks"][row] = figures
            print(f"{row}: {attack_cell(figures)}", flush=True)
        for row, lie in LIES:
            results["lies"][row] = figures = find_liar(args, folder, lie)
            print(f"{row}: {figures}", flush=True)
            if not figures["found"]:
                raise SystemExit(f"attacks: the liar was not found: {row}")
    write(results)


if __name__ == "__main__":
    main()
