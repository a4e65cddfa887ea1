#!/usr/bin/env python3
"""Measure training on a quantized model of 8 billion numbers: time of a step, memory of a server, two servers.

    just bench-8b                   # 1 step to warm up and 2 that count; about twenty minutes on two cores
    just bench-8b --steps 4
    just bench-8b --remove          # remove the model from the cache

The model has Llama-3-8B's shape, the number types of Q4_K_M and random numbers (4.9 GB, written on first use). A run with 16
deep prompts and 32 rows of 25 tokens, on the mean, trains on one server of all blocks. Its steps alternate with the bare matrix
products of the step in fp32. Then the same run trains on two servers of half of the blocks. Writes docs/bench-8b.json; the
exit status is 1 if a limit is missed.

A step is computed in several calls (``train.accumulate``), each as large as the tapes of the server allow: a call whose tape
exceeds the budget is computed forward twice.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import large_gguf
from setup import ROOT, cache_dir

SEPAL = ROOT / "scripts" / "sepal"
# Tokens of 32 rows with the first token, as long sentences have them: 6 to 52, 25 on the mean. Six in sequence have 143 to 148.
LENGTHS = [13, 18, 24, 30, 26, 36, 23, 12, 17, 11, 52, 28, 39, 27, 41, 6,
           15, 20, 32, 19, 16, 9, 45, 23, 25, 21, 8, 29, 31, 33, 37, 34]
PROMPTS = 16
TAPE_BUDGET_MB = 1024
SERVER_START_S = 1800
MOST_PRODUCTS, MOST_PEAK_GB, MOST_DIFFERENCE = 1.25, 6.5, 1e-6


def fail(problem):
    sys.exit(f"bench-8b: error: {problem}")


def say(text):
    print(text, flush=True)


class Server:
    """A process of ``sepal serve`` with these blocks."""

    def __init__(self, model, blocks, folder):
        self.log = folder / f"serve-{blocks.replace(':', '-')}.log"
        command = [SEPAL, "serve", model, "--blocks", blocks, "--listen", "127.0.0.1:0",
                   "--tape-budget-mb", str(TAPE_BUDGET_MB)]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

    def address(self):
        """Wait until the blocks are served."""
        deadline = time.monotonic() + SERVER_START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            serving = re.search(r"^serving blocks .* on (\S+)$", self.log.read_text(), re.MULTILINE)
            if serving:
                return serving[1]
            time.sleep(0.2)
        fail(f"the server did not start:\n{self.log.read_text()}")

    def peak_bytes(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Run:
    """A run of the pipeline on servers."""

    def __init__(self, folder, name, pipeline):
        self.cwd, self.file, self.folder = folder, f"{name}.yaml", None
        pipeline = {"name": name, "output": {"folder": name}, **pipeline}
        # JSON is YAML.
        (folder / self.file).write_text(json.dumps(pipeline, indent=2))

    def go_on(self, is_one_step):
        """Make one step, or all that are left, and return the records of all steps so far."""
        arguments = ["--resume", self.folder] if self.folder else [self.file]
        command = [SEPAL, "run", *arguments]
        process = subprocess.Popen(command, cwd=self.cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                   start_new_session=True)
        lines = []
        try:
            for line in process.stdout:
                lines.append(line)
                if is_one_step and re.match(r"training \S+ numbers for ", line):
                    # The signal ends the run after the step that has begun.
                    time.sleep(1)
                    process.send_signal(signal.SIGINT)
            process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        folders = [line.split(maxsplit=1)[1].strip() for line in lines if line.startswith("folder ")]
        # A run that is ended after a step has another status.
        if not folders or (not is_one_step and process.returncode != 0):
            fail(f"the run failed:\n{''.join(lines)}")
        self.folder = folders[-1]
        return self.records()

    def records(self):
        text = (self.cwd / self.folder / "metrics.jsonl").read_text()
        records = [json.loads(line) for line in text.splitlines()]
        return [record for record in records if record["kind"] == "step"]


def calls(rows_per_call):
    """Pairs of tokens and rows, one for each call of a step."""
    groups = [LENGTHS[i:i + rows_per_call] for i in range(0, len(LENGTHS), rows_per_call)]
    return [(sum(group), len(group)) for group in groups]


def tape_bytes(n_tokens):
    """Bytes of a tape of all blocks, by the formula of ``BlockStack::tape_bytes`` for a Llama, the last block as the others."""
    shape = large_gguf
    kv = shape.HIDDEN // shape.N_HEADS * shape.N_KV_HEADS
    numbers = 4 * shape.HIDDEN + 2 * kv + 2 * shape.FFN + shape.N_HEADS + 2
    return 4 * shape.N_BLOCKS * numbers * (PROMPTS + n_tokens)


def products_seconds(step_calls):
    """Seconds of the bare products of a step, measured now."""
    distinct = sorted(set(step_calls))
    command = ["cargo", "bench", "--quiet", "--profile", "dev", "--workspace", "--bench", "speed", "--",
               "--block-products", str(PROMPTS), *(f"{tokens}x{rows}" for tokens, rows in distinct)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        fail(f"`{' '.join(command)}` failed")
    seconds = dict(zip(distinct, json.loads(done.stdout.splitlines()[-1])["seconds"]))
    return sum(seconds[call] for call in step_calls)


def write_rows(path):
    rng = random.Random(large_gguf.SEED)
    rows = [f"{large_gguf.row(length, rng)}\t{label}" for length, label in zip(LENGTHS, ["negative", "positive"] * 16)]
    path.write_text("\n".join(["sentence\tlabel", *rows]) + "\n")


def pipeline(model, addresses, args):
    return {
        "model": {"source": str(model)},
        "swarm": {"use": "static", "with": {"servers": addresses, "timeout_ms": 1_800_000}},
        "task": {"use": "sequence-classification", "with": {"labels": ["negative", "positive"]}},
        "tuning": {"use": "deep-ptune", "with": {"pre_seq_len": PROMPTS}},
        "data": {"train": "rows.tsv", "text": "sentence", "label": "label", "max_length": 64},
        "loader": {"batch_size": args.rows_per_call, "shuffle": False},
        "optimizer": {"use": "adamw", "with": {"lr": 0.003, "weight_decay": 0.0}},
        "schedule": {"use": "constant", "with": {"warmup_steps": 0}},
        # Without a search for cuts, so that both runs sum in the same order.
        "train": {"max_steps": 1 + args.steps, "accumulate": len(calls(args.rows_per_call)), "deterministic": True},
        "evaluate": {"every": "never"},
    }


def one_server(stack, model, folder, args):
    """Steps on a server of all blocks in turns with bare products. Returns records, seconds of products and peaks."""
    server = Server(model, f"0:{large_gguf.N_BLOCKS}", folder)
    stack.callback(server.stop)
    run = Run(folder, "one-server", pipeline(model, [server.address()], args))
    peaks = {"after loading": server.peak_bytes()}
    say(f"one server of all blocks; peak after loading {peaks['after loading'] / 1e9:.2f} GB")
    records, products = run.go_on(is_one_step=True), []
    for step in range(2, 2 + args.steps):
        products.append(products_seconds(calls(args.rows_per_call)))
        records = run.go_on(is_one_step=True)
        say(f"products {products[-1]:.1f} s, step {step} {records[-1]['seconds']:.1f} s, loss {records[-1]['loss']:.6f}")
        if [record["step"] for record in records] != list(range(1, step + 1)):
            fail(f"step {step} was not made alone: {records}")
    peaks["after the steps"] = server.peak_bytes()
    server.stop()
    return records, products, peaks


def two_servers(stack, model, folder, args):
    """The same steps on two servers of half of the blocks. Returns the records."""
    middle = large_gguf.N_BLOCKS // 2
    servers = []
    for blocks in (f"0:{middle}", f"{middle}:{large_gguf.N_BLOCKS}"):
        servers.append(Server(model, blocks, folder))
        stack.callback(servers[-1].stop)
    run = Run(folder, "two-servers", pipeline(model, [server.address() for server in servers], args))
    say("two servers of half of the blocks")
    records = run.go_on(is_one_step=False)
    if len(records) != 1 + args.steps:
        fail(f"two servers made {len(records)} steps instead of {1 + args.steps}")
    for server in servers:
        server.stop()
    return records


def check_tokens(records):
    found = {(record["rows"], record["tokens"]) for record in records}
    if found != {(len(LENGTHS), sum(LENGTHS))}:
        fail(f"the steps have rows and tokens {found}, expected {len(LENGTHS)} and {sum(LENGTHS)}")


def figures(one, two, products, peaks):
    """Name, value and limit of each figure."""
    step = statistics.median(record["seconds"] for record in one[1:])
    differences = [abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(one, two)]
    return [
        ("step / bare fp32 products", step / statistics.median(products), MOST_PRODUCTS),
        ("peak memory of the server of all blocks, GB", max(peaks.values()) / 1e9, MOST_PEAK_GB),
        ("losses of two servers off by, at most", max(differences), MOST_DIFFERENCE),
    ]


def report(one, two, products, peaks, args):
    """Print the results and write them. Returns True if every limit is met."""
    rows = figures(one, two, products, peaks)
    say("")
    for name, value, limit in rows:
        say(f"{name:<46}{value:>12.4g}  {'ok' if value <= limit else 'MISSED'} (at most {limit})")
    step_calls = calls(args.rows_per_call)
    result = {
        "command": "just bench-8b",
        "cores": os.cpu_count(),
        "prompts": PROMPTS,
        "rows": len(LENGTHS),
        "calls": [{"tokens": tokens, "rows": rows} for tokens, rows in step_calls],
        "tape_budget_bytes": TAPE_BUDGET_MB << 20,
        "largest_tape_bytes": max(tape_bytes(tokens) for tokens, _ in step_calls),
        "layer_bytes": large_gguf.block_bytes(),
        "peak_bytes": peaks,
        "products_seconds": products,
        "step_seconds": {"one server": [record["seconds"] for record in one],
                         "two servers": [record["seconds"] for record in two]},
        "losses": {"one server": [record["loss"] for record in one], "two servers": [record["loss"] for record in two]},
        "figures": [{"name": name, "value": value, "at_most": limit, "met": value <= limit} for name, value, limit in rows],
    }
    (ROOT / "docs" / "bench-8b.json").write_text(json.dumps(result, indent=2) + "\n")
    return all(value <= limit for _, value, limit in rows)


def parse():
    def positive(text):
        number = int(text)
        if number < 1:
            raise ValueError
        return number

    parser = argparse.ArgumentParser(prog="just bench-8b", description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=positive, default=2, help="steps that are counted (2)")
    parser.add_argument("--rows-per-call", type=positive, default=6, metavar="N",
                        help="rows that are computed together; a step has 32 (6)")
    parser.add_argument("--remove", action="store_true", help="remove the model from the cache and measure nothing")
    return parser.parse_args()


def main():
    args = parse()
    models = cache_dir() / "bench"
    if args.remove:
        (models / large_gguf.NAME).unlink(missing_ok=True)
        return
    # Ends the servers, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    model = large_gguf.write(models)
    largest = max(tape_bytes(tokens) for tokens, _ in calls(args.rows_per_call))
    if largest > TAPE_BUDGET_MB << 20:
        say(f"tapes of up to {largest >> 20} MB exceed the budget of {TAPE_BUDGET_MB} MB: calls are computed forward twice")
    # Builds the benchmark before a server is measured.
    subprocess.run(["cargo", "bench", "--profile", "dev", "--workspace", "--bench", "speed", "--no-run"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory(prefix="sepal-bench-8b-") as folder, contextlib.ExitStack() as stack:
        folder = Path(folder)
        write_rows(folder / "rows.tsv")
        one, products, peaks = one_server(stack, model, folder, args)
        two = two_servers(stack, model, folder, args)
    check_tokens(one + two)
    sys.exit(0 if report(one, two, products, peaks, args) else 1)


if __name__ == "__main__":
    main()
