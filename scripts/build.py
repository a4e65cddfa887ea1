#!/usr/bin/env python3
"""Build the program and say how far the build is.

    build.py                what was chosen last: the parts below, or every part
    build.py --full         every part, now and in later builds of this checkout
    build.py --quick        again without the parts that a first build leaves out
    build.py --workspace    every part, without a choice (benchmarks, tests)

A first build leaves out peer-to-peer swarms and the search of the local network: a quarter of all packages, for commands
that most runs never use. The program says so where one of them is needed. On a terminal, one line is updated; elsewhere
there is a line every 30 seconds; a build that compiles nothing prints nothing. Errors and warnings are those of cargo.
"""

import argparse
import json
import queue
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHOICE = ROOT / ".cargo/build-choice"
PROGRAMS = ["--package", "sepal-front", "--package", "sepal-cli"]
# The programs of a first build, and the features of theirs that cost few packages.
QUICK = [*PROGRAMS, "--bins", "--no-default-features", "--features", "sepal-cli/gateway,sepal-cli/mlflow"]
FULL = ["--workspace", "--bins"]
# Duration of a first build, measured on two idle cores.
USUAL_MINUTES = "7"
PAUSE_S = 30
STATUS = re.compile(r"\s+(Adding|Blocking|Compiling|Dirty|Downloaded|Downloading|Finished|Fresh|Locking|Updating)\b")
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def chosen(argument, path=CHOICE):
    """Return ``full`` or ``quick``: of the command line, which is remembered, or of the last choice."""
    if argument:
        path.parent.mkdir(exist_ok=True)
        path.write_text(argument + "\n")
        return argument
    return "full" if path.is_file() and path.read_text().strip() == "full" else "quick"


def count_packages(selection):
    """Return the number of packages that cargo compiles for these arguments of ``cargo build``."""
    # The other programs of the workspace are examples, which need no further packages.
    options = PROGRAMS if selection == FULL else [option for option in selection if option != "--bins"]
    tree = ["cargo", "tree", "--edges", "normal,build", "--prefix", "none", "--format", "{p}", *options]
    done = subprocess.run(tree, cwd=ROOT, capture_output=True, text=True)
    return len({line.removesuffix(" (*)") for line in done.stdout.splitlines() if line})


def minutes(seconds):
    return "less than a minute" if seconds < 60 else f"{round(seconds / 60)} min"


class Progress:
    """State of a build, by the messages of cargo."""

    def __init__(self, count, now):
        self.count, self.started = count, now
        self.total = None
        self.fresh, self.built = set(), set()
        self.note = ""

    def artifact(self, message):
        if message.get("reason") == "compiler-artifact":
            (self.fresh if message["fresh"] else self.built).add(message["package_id"])

    def status(self, line):
        """Return true if the line is a status of cargo, which the progress replaces."""
        found = STATUS.match(ESCAPES.sub("", line))
        if found:
            self.note = {"Blocking": "waiting for another build", "Downloading": "downloading packages",
                         "Downloaded": "downloading packages"}.get(found[1], "")
            if found[1] == "Compiling" and self.total is None:
                self.total = self.count()
        return bool(found)

    def line(self, now):
        """Return the line for a build that compiles something, and None for others."""
        if self.note:
            return self.note
        if self.total is None:
            return None
        done = len(self.fresh | self.built)
        text = f"building: {done}/{max(self.total, done)} packages"
        if not self.fresh:
            text += f", usually {USUAL_MINUTES} minutes on 2 cores, once"
        built = len(self.built)
        if built >= 10:
            left = (now - self.started) / built * max(self.total - done, 0)
            text += f"; about {minutes(left)} left"
        return text


class Screen:
    """Lines of progress, between the lines of cargo."""

    def __init__(self, out, is_terminal):
        self.out, self.is_terminal = out, is_terminal
        self.shown, self.next = "", 0.0

    def relay(self, line):
        self.clear()
        self.out.write(line)
        self.out.flush()

    def show(self, text, now):
        if text is None or (text == self.shown if self.is_terminal else now < self.next):
            return
        # A longer line would take two, of which only the second is replaced.
        width = shutil.get_terminal_size().columns - 1
        self.out.write(f"\r\x1b[K{text[:width]}" if self.is_terminal else f"{text}\n")
        self.out.flush()
        self.shown, self.next = text, now + PAUSE_S

    def clear(self):
        if self.is_terminal and self.shown:
            self.out.write("\r\x1b[K")
            self.out.flush()
            self.shown = ""


def follow(stream, kind, events):
    for line in stream:
        events.put((kind, line))
    events.put((kind, None))


def build(selection):
    screen = Screen(sys.stderr, sys.stderr.isatty())
    color = "always" if screen.is_terminal else "never"
    command = ["cargo", "build", "--message-format", "json-render-diagnostics", "--color", color, *selection]
    cargo = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             errors="replace")
    progress = Progress(lambda: count_packages(selection), time.monotonic())
    events = queue.Queue()
    for kind in ("stdout", "stderr"):
        threading.Thread(target=follow, args=(getattr(cargo, kind), kind, events), daemon=True).start()
    open_streams = 2
    try:
        while open_streams:
            try:
                kind, line = events.get(timeout=1)
            except queue.Empty:
                kind, line = None, ""
            if line is None:
                open_streams -= 1
            elif kind == "stdout" and line.startswith("{"):
                progress.artifact(json.loads(line))
            elif kind == "stderr" and not progress.status(line):
                screen.relay(line)
            now = time.monotonic()
            screen.show(progress.line(now), now)
        code = cargo.wait()
    except KeyboardInterrupt:
        # Cargo has the signal, too.
        cargo.wait()
        code = 130
    screen.clear()
    return code


def main():
    parser = argparse.ArgumentParser(prog="just build", description="Build the program.")
    choices = parser.add_mutually_exclusive_group()
    choices.add_argument("--full", dest="choice", action="store_const", const="full",
                         help="build every part, now and in later builds of this checkout")
    choices.add_argument("--quick", dest="choice", action="store_const", const="quick",
                         help="leave out peer-to-peer swarms and the search of the local network, now and later")
    choices.add_argument("--workspace", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    is_full = arguments.workspace or chosen(arguments.choice) == "full"
    sys.exit(build(FULL if is_full else QUICK))


if __name__ == "__main__":
    main()
