#!/usr/bin/env python3
"""Check Containerfile, compose file and systemd unit as far as that needs no daemon.

    python3 scripts/check_contrib.py
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setup import VERSION

ROOT = Path(__file__).resolve().parent.parent
INSTRUCTIONS = set("FROM RUN COPY ENV WORKDIR USER VOLUME EXPOSE HEALTHCHECK STOPSIGNAL ENTRYPOINT CMD ARG LABEL".split())


def instructions(text):
    """Return (name, arguments) of each instruction, with continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", "\n".join(l for l in text.splitlines() if not l.lstrip().startswith("#")))
    return [tuple((line.split(None, 1) + [""])[:2]) for line in joined.splitlines() if line.strip()]


def check_containerfile(text):
    found = instructions(text)
    problems = [f"unknown instruction {name}" for name, _ in found if name not in INSTRUCTIONS]
    last_stage = found[max(i for i, (name, _) in enumerate(found) if name == "FROM"):]
    users = [arguments for name, arguments in last_stage if name == "USER"]
    if not users or users[-1] in ("root", "0"):
        problems.append("the last stage runs as root")
    for name in ("HEALTHCHECK", "ENTRYPOINT", "VOLUME"):
        if name not in [name for name, _ in last_stage]:
            problems.append(f"the last stage has no {name}")
    for name, arguments in found:
        if name == "COPY" and not arguments.startswith("--from="):
            for source in arguments.split()[:-1]:
                if not (ROOT / source).exists():
                    problems.append(f"COPY of {source}, which does not exist")
        if name == "FROM" and ":" not in arguments.split()[0]:
            problems.append(f"FROM {arguments} has no tag")
    if f"libtorch-{VERSION}-cpu" not in text:
        problems.append(f"libtorch is not of version {VERSION}")
    rust = re.search(r'^rust-version = "([^"]+)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
    if f"rust:{rust}-" not in text:
        problems.append(f"the image of Rust is not of version {rust}")
    return problems


def check_unit(path):
    """Run `systemd-analyze verify` on a copy whose program exists."""
    if shutil.which("systemd-analyze") is None:
        print("check_contrib: systemd-analyze is not installed, so the unit was not verified")
        return []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        copy.write_text(path.read_text().replace("/usr/local/bin/sepal", "/bin/true"))
        done = subprocess.run(["systemd-analyze", "verify", str(copy)], capture_output=True, text=True)
        return [line for line in done.stderr.splitlines() if path.name in line]


def main():
    problems = [f"Containerfile: {problem}" for problem in check_containerfile((ROOT / "Containerfile").read_text())]
    problems += check_unit(ROOT / "contrib/sepal-serve.service")
    if problems:
        sys.exit("\n".join(problems))


if __name__ == "__main__":
    main()
