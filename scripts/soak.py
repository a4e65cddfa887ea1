#!/usr/bin/env python3
"""Let servers and runs live through trouble for a while, and check that nothing grows, breaks or changes.

    just soak                                # ten minutes; writes docs/reliability.json and the table of docs/reliability.md
    just soak --minutes 60 --seed 3
    just soak --minutes 0.5 --check          # writes nothing

Three servers have the blocks of a tiny model, each block twice or more. Four clients train on them, again and again. Servers
and clients are killed, stopped, continued, drained and interrupted; clients write to a disk that is full (a limit of the size
of files); the hostile clients of the tests (integration-tests/examples/hostile.rs) attack, and a fourth server lies. Every run
must equal its reference, made before the trouble, to the bit: adapter, predictions, records and metrics. The first server is never
killed; its lowest memory in the last quarter of the time must be that of the quarter before, its highest within the quota of
clients, and its descriptors as many as before the trouble.
``--seed`` decides each actor's choices; the moments at which they meet differ. Exit code 1 if anything is violated.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import soak_figures
from setup import ROOT
from soak_runs import TUNINGS, differences, finished_run, prepare, result, write_pipeline

SEPAL = ROOT / "scripts" / "sepal"
SPANS = ["0:3", "0:2", "1:3"]
# A small quota, so that attacks reach it.
MAX_MEMORY_MB = 256
BUDGETS = ["--max-memory", str(MAX_MEMORY_MB), "--max-message-mb", "16"]
# Names of attacks with their numbers; `hostile names` prints what these mean.
ATTACKS = [
    ("mutated-frames", 500), ("bad-http", 20), ("silent", 20), ("half-frames", 4, 4), ("dripping", 10, 0), ("one-row", 16384),
    ("abandoned-row", 1, 16384), ("uploads", 8, 8), ("deliveries", 50, 500000), ("tapes", 20, 4096), ("prefixes", 5, 4096),
    ("waiting-forwards", 500), ("queued-calls", 50, 16000), ("cancelled-calls", 10, 4096), ("describe-flood", 2000),
    ("broken-promises", 100), ("unread-answers", 10, 16000),
]
# Lies that every answer shows, so that no run may use one. Lies about numbers are found by chance only.
LIES = ["outputs-nan", "outputs-narrow", "grads-narrow", "grads-deep", "empty-answers", "refuses-all", "expired-always",
        "here-always", "exceptions", "limits-zero", "limits-max", "speed-absurd", "escapes"]
# Attacks that end with a seed.
SEEDED = ("mutated-frames", "bad-http")
START_S, RUN_S, ATTACK_S, SAMPLE_S = 120, 300, 30, 0.5
# Growth of a server's memory between the last two quarters that counts as flat: allocators return pages late.
FLAT_MB, FLAT_SHARE = 8.0, 0.05
# The quota counts the bytes of clients; an allocator rounds them up.
QUOTA_SHARE = 1.25
# Descriptors beyond those before the trouble: connections between servers that are open at the moment.
FREE_DESCRIPTORS = 8


def say(text):
    print(text, flush=True)


def fail(problem):
    sys.exit(f"soak: error: {problem}")


class Processes:
    """Programs that were started. After the end, none lives and none can be started."""

    def __init__(self):
        self.lock, self.running, self.is_over = threading.Lock(), set(), False

    def start(self, command, **options):
        with self.lock:
            if self.is_over:
                raise RuntimeError("the soak is over")
            self.running = {process for process in self.running if process.poll() is None}
            process = subprocess.Popen(command, **options)
            self.running.add(process)
            return process

    def end(self):
        with self.lock:
            self.is_over = True
            for process in self.running:
                # A stopped process ends, too.
                process.kill()
            for process in self.running:
                process.wait()


class Record:
    """What happened, and what must not have."""

    def __init__(self):
        self.lock, self.counts, self.violations, self.is_over = threading.Lock(), {}, [], False

    def count(self, name, number=1):
        with self.lock:
            self.counts[name] = self.counts.get(name, 0) + number

    def violate(self, text):
        with self.lock:
            # Actors whose processes were killed at the end have nothing to report.
            if self.is_over:
                return
            self.violations.append(text)
        say(f"violation: {text}")


class Server:
    """A process of ``sepal serve`` that is started again on the same port."""

    def __init__(self, processes, folder, environment, index, blocks):
        self.processes, self.folder, self.environment, self.blocks = processes, folder, environment, blocks
        self.name, self.log = f"server {index + 1}", folder / f"server-{index + 1}.log"
        self.address = free_address()
        self.samples, self.starts, self.status = [], 0, None

    def start(self):
        begin = self.log.stat().st_size if self.log.exists() else 0
        command = [SEPAL, "serve", "model", "--blocks", self.blocks, "--listen", self.address,
                   "--threads", "1", "--drain-s", "5", "--http", "127.0.0.1:0", *BUDGETS]
        with open(self.log, "ab") as output:
            self.process = self.processes.start(command, cwd=self.folder, env=self.environment, stdout=output,
                                                stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            text = self.log.read_bytes()[begin:].decode(errors="replace")
            found = re.search(r"^status on http://([^/]+)/", text, re.MULTILINE)
            if found and re.search(r"^serving blocks ", text, re.MULTILINE):
                self.status, self.starts = found[1], self.starts + 1
                return
            time.sleep(0.05)
        fail(f"{self.name} does not start:\n{self.log.read_text(errors='replace')}")

    def sample(self, now):
        """Note resident memory in MB and open descriptors."""
        # The process may end in the meantime.
        with contextlib.suppress(OSError, TypeError, ProcessLookupError):
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            resident = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
            descriptors = len(os.listdir(f"/proc/{self.process.pid}/fd"))
            self.samples.append((now, int(resident[1]) / 1024, descriptors))

    def end(self, signal_number):
        """Send a signal that ends the process, and return its exit code."""
        self.process.send_signal(signal_number)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None


def free_address():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return "%s:%d" % probe.getsockname()


def build_hostile():
    """Build the program of the hostile clients, and return its path."""
    command = ["cargo", "build", "--workspace", "--example", "hostile", "--message-format=json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        fail("the hostile clients cannot be built")
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return next(message["executable"] for message in reversed(messages)
                if message.get("executable") and message["target"]["name"] == "hostile")


def start_run(processes, folder, environment, pipeline, output, limit=None):
    """Start or resume a run; with a limit, no file can be larger than that many blocks of 512 bytes."""
    command = [str(SEPAL), "run", pipeline, "--resume", "--set", f"output.folder={output}"]
    if limit is not None:
        command = ["sh", "-c", f'ulimit -f {limit}; exec "$@"', "sh", *command]
    # Python ignores SIGXFSZ, and the run inherits that: a write beyond the limit is an error and not the end.
    return processes.start(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                           restore_signals=False)


class Soak:
    def __init__(self, folder, args):
        self.folder, self.args, self.record, self.hostile = folder, args, Record(), build_hostile()
        self.processes, self.threads = Processes(), []
        self.environment = {**os.environ, "SEPAL_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
        self.servers = [Server(self.processes, folder, self.environment, index, blocks)
                        for index, blocks in enumerate(SPANS)]
        self.calm, self.over, self.liar = threading.Event(), threading.Event(), free_address()
        self.begun = time.monotonic()

    def random(self, actor):
        return random.Random(f"{self.args.seed} {actor}")

    def act(self, actor, *args):
        """Perform an actor's part; its failure is a violation, too."""
        try:
            actor(*args)
        except (Exception, SystemExit) as error:
            self.record.violate(f"{actor.__name__}{args}: {error!r}")

    def monitor(self):
        while not self.over.wait(SAMPLE_S):
            for server in self.servers:
                server.sample(time.monotonic() - self.begun)

    def references(self):
        """Run each pipeline without trouble, with one server and with three. Clients also know a liar."""
        self.expected = []
        addresses = [server.address for server in self.servers]
        for index in range(len(TUNINGS)):
            output = self.folder / f"reference-{index}"
            for servers in (addresses[:1], addresses):
                pipeline, folder = write_pipeline(self.folder, index, servers), output / str(len(servers))
                run = start_run(self.processes, self.folder, self.environment, pipeline, folder)
                text, _ = run.communicate(timeout=RUN_S)
                if run.returncode != 0 or not finished_run(folder):
                    fail(f"a run without trouble failed:\n{text.decode(errors='replace')}")
            one, three = (result(finished_run(output / number)) for number in ("1", "3"))
            if differences(one, three):
                self.record.violate(f"{TUNINGS[index]}: one server and three differ in {differences(one, three)}")
            self.expected.append(three)
            write_pipeline(self.folder, index, [*addresses, self.liar])

    def client(self, index):
        choices = self.random(f"client {index}")
        n_runs = 0
        while not self.calm.is_set():
            n_runs += 1
            pipeline = choices.randrange(len(TUNINGS))
            output = self.folder / f"client-{index}-{n_runs}"
            begun = time.monotonic()
            while not finished_run(output):
                if time.monotonic() > begun + RUN_S:
                    self.record.violate(f"{output.name} did not finish in {RUN_S} s")
                    return
                self.attempt(choices, f"pipeline-{pipeline}.yaml", output)
            self.compare(pipeline, output)

    def attempt(self, choices, pipeline, output):
        """Start or resume a run, and disturb it."""
        trouble = choices.choices(["none", "kill", "stop", "interrupt", "full disk"], [3, 3, 2, 2, 3])[0]
        after, pause, limit = choices.uniform(0.2, 4), choices.uniform(0.5, 3), choices.randrange(1, 60)
        if self.calm.is_set():
            trouble = "none"
        limit = limit if trouble == "full disk" else None
        run = start_run(self.processes, self.folder, self.environment, pipeline, output, limit)
        disturbed = False
        if trouble in ("kill", "stop", "interrupt"):
            try:
                text, _ = run.communicate(timeout=after)
            except subprocess.TimeoutExpired:
                disturbed = True
                run.send_signal({"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "interrupt": signal.SIGINT}[trouble])
                if trouble == "stop":
                    time.sleep(pause)
                    run.send_signal(signal.SIGCONT)
        try:
            text, _ = run.communicate(timeout=RUN_S)
        except subprocess.TimeoutExpired:
            run.kill()
            run.communicate()
            self.record.violate(f"a run with the trouble `{trouble}` hangs")
            return
        text = text.decode(errors="replace")
        disturbed |= trouble == "full disk" and run.returncode != 0
        self.record.count(f"runs: {trouble}" if disturbed else "runs: undisturbed")
        allowed = {"kill": (-signal.SIGKILL,), "interrupt": (0, 130, -signal.SIGINT), "full disk": (1,)}
        if run.returncode != 0 and not (disturbed and run.returncode in allowed.get(trouble, ())):
            self.record.violate(f"a run with the trouble `{trouble}` ended with {run.returncode}: {text[-600:]}")
        if "panicked" in text:
            self.record.count("panics")
            self.record.violate(f"a run with the trouble `{trouble}` panicked: {text[-600:]}")

    def compare(self, pipeline, output):
        run = finished_run(output)
        unequal = differences(result(run), self.expected[pipeline])
        left = [path.name for path in run.rglob(".*") if path.is_file()]
        self.record.count("runs: finished")
        if unequal:
            self.record.violate(f"{output.name} differs from its reference in {unequal}")
        elif left:
            self.record.violate(f"{output.name} has temporary files: {left}")
        else:
            self.record.count("runs: equal to the bit")
            shutil.rmtree(output)

    def trouble(self):
        """Disturb one server at a time, so that each block always has another."""
        choices = self.random("servers")
        while not self.calm.wait(choices.uniform(1, 4)):
            server = choices.choice(self.servers)
            kind = "stop" if server is self.servers[0] else choices.choice(["kill", "kill", "stop", "drain"])
            if server.process.poll() is not None:
                self.record.violate(f"{server.name} ended by itself with {server.process.returncode}")
            elif kind == "stop":
                server.process.send_signal(signal.SIGSTOP)
                time.sleep(choices.uniform(0.5, 3))
                server.process.send_signal(signal.SIGCONT)
            elif kind == "kill":
                server.end(signal.SIGKILL)
            else:
                code = server.end(signal.SIGTERM)
                if code != 0:
                    self.record.violate(f"{server.name} ended with {code} after SIGTERM")
            self.record.count(f"servers: {kind}")
            if server.process.poll() is not None:
                time.sleep(choices.uniform(0, 2))
                server.start()

    def attack(self, index):
        choices = self.random(f"attacker {index}")
        while not self.calm.wait(choices.uniform(0, 0.5)):
            server, (name, *numbers) = choices.choice(self.servers), choices.choice(ATTACKS)
            address = server.status if name == "bad-http" else server.address
            numbers += [choices.randrange(1 << 30)] if name in SEEDED else []
            attack = self.processes.start([self.hostile, "attack", name, address, *map(str, numbers)],
                                          stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            time.sleep(choices.uniform(0.2, 4))
            try:
                # The end of its input ends the attack.
                answers, _ = attack.communicate(timeout=ATTACK_S)
            except subprocess.TimeoutExpired:
                attack.kill()
                answers, _ = attack.communicate()
            self.record.count(f"attacks: {name}" if answers else "attacks: on a server that is down")

    def lie(self):
        """Stand between clients and the first server, with one lie after another."""
        choices = self.random("liar")
        while not self.calm.is_set():
            name, truths = choices.choice(LIES), choices.randrange(20)
            liar = self.processes.start([self.hostile, "lie", name, self.liar, self.servers[0].address, str(truths)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            self.calm.wait(choices.uniform(3, 15))
            try:
                text, _ = liar.communicate(timeout=ATTACK_S)
            except subprocess.TimeoutExpired:
                liar.kill()
                text, _ = liar.communicate()
            found = re.search(rb"^(\d+) lies in ", text, re.MULTILINE)
            self.record.count(f"lies: {name}", int(found[1]) if found else 0)

    def run(self):
        for server in self.servers:
            server.start()
        self.references()
        for server in self.servers:
            server.sample(0)
        before = self.servers[0].samples[-1]
        self.begun = time.monotonic()
        actors = [threading.Thread(target=self.act, args=(self.client, index)) for index in range(4)]
        actors += [threading.Thread(target=self.act, args=(self.attack, index)) for index in range(2)]
        actors += [threading.Thread(target=self.act, args=(actor,)) for actor in (self.trouble, self.lie)]
        monitor = threading.Thread(target=self.act, args=(self.monitor,))
        self.threads = [*actors, monitor]
        for thread in self.threads:
            thread.start()
        self.calm.wait(self.args.minutes * 60)
        self.calm.set()
        for thread in actors:
            thread.join()
        seconds = time.monotonic() - self.begun
        time.sleep(3)
        self.over.set()
        monitor.join()
        return self.conclude(before, seconds)

    def conclude(self, before, seconds):
        steady = self.servers[0]
        steady.sample(seconds)
        floors = [soak_figures.lowest(steady.samples, share * seconds, (share + 0.25) * seconds) for share in (0.5, 0.75)]
        growth = floors[1] - floors[0]
        if growth > max(FLAT_MB, FLAT_SHARE * floors[0]):
            self.record.violate(f"the memory of {steady.name} grew by {growth:.1f} MB in the last quarter")
        peak = max(sample[1] for sample in steady.samples)
        if peak > before[1] + MAX_MEMORY_MB * QUOTA_SHARE:
            self.record.violate(f"{steady.name} had {peak:.0f} MB, {before[1]:.0f} MB before and a quota of {MAX_MEMORY_MB} MB")
        after = steady.samples[-1]
        if after[2] > before[2] + FREE_DESCRIPTORS:
            self.record.violate(f"{steady.name} has {after[2]} open descriptors, and {before[2]} before the trouble")
        for server in self.servers:
            if server.process.poll() is not None:
                self.record.violate(f"{server.name} ended by itself with {server.process.returncode}")
            elif server.end(signal.SIGTERM) != 0:
                self.record.violate(f"{server.name} did not end well")
            panics = server.log.read_text(errors="replace").count("panicked")
            self.record.count("panics", panics)
            if panics:
                self.record.violate(f"{server.name} panicked {panics} times; its log is {server.log}")
        if not self.record.counts.get("runs: finished"):
            self.record.violate("no run finished")
        if not any(f"attacks: {name}" in self.record.counts for name, *_ in ATTACKS):
            self.record.violate("no attack was answered")
        return {
            "command": "just soak", "minutes": self.args.minutes, "seed": self.args.seed,
            "counts": dict(sorted(self.record.counts.items())),
            "servers": [{"blocks": server.blocks, "starts": server.starts,
                         "peak_mb": max(sample[1] for sample in server.samples),
                         "peak_descriptors": max(sample[2] for sample in server.samples)} for server in self.servers],
            "steady": {"begin_mb": before[1], "end_mb": after[1], "growth_of_last_quarter_mb": growth,
                       "begin_descriptors": before[2], "end_descriptors": after[2]},
            "violations": self.record.violations,
        }

    def stop(self):
        """End everything, also after an interruption: no process and no thread outlives the soak."""
        self.record.is_over = True
        self.calm.set()
        self.over.set()
        self.processes.end()
        for thread in self.threads:
            if thread.is_alive():
                thread.join()


def parse():
    parser = argparse.ArgumentParser(prog="just soak", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="minutes of trouble (10)")
    parser.add_argument("--seed", type=int, default=1, help="seed of all choices (1)")
    parser.add_argument("--check", action="store_true", help="write no documentation")
    parser.add_argument("--keep", type=Path, help="new folder for logs and runs, which stays")
    args = parser.parse_args()
    if not 0 < args.minutes <= 24 * 60:
        parser.error("--minutes is a number up to 1440")
    return args


def main():
    args = parse()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with contextlib.ExitStack() as stack:
        if args.keep:
            args.keep.mkdir(parents=True)
            folder = args.keep.resolve()
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sepal-soak-")))
        prepare(folder)
        soak = Soak(folder, args)
        stack.callback(soak.stop)
        summary = soak.run()
    say(f"\n{soak_figures.table(summary)}")
    if not args.check:
        soak_figures.write(summary)
    sys.exit(1 if summary["violations"] else 0)


if __name__ == "__main__":
    main()
