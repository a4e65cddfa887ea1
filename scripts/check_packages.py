#!/usr/bin/env python3
"""Check that a first build stays small: the number of its packages, and packages of which it compiles two versions.

Both limits are below, in one place. A package more needs a reason in the commit that raises them.
"""

import collections
import subprocess
import sys

import build

# External packages and those of this workspace, for `just run` on x86_64 Linux.
LIMIT = 350
# Packages of which others need several versions, and who needs the older ones.
DUPLICATES = {
    "base64": "tokenizers",
    "getrandom": "ring, tokenizers",
    "hashbrown": "safetensors",
    "rand": "tch, tokenizers",
    "rand_chacha": "tch, tokenizers",
    "rand_core": "tch, tokenizers",
    "rand_distr": "half, with the features that it has in tests",
    "safetensors": "tch",
    "syn": "many derive macros",
    "thiserror": "tch",
    "thiserror-impl": "tch",
    "zip": "tch; patches/zip passes it to the newer one",
}


def packages():
    """Return the name and version of each package that a first build compiles."""
    options = [option for option in build.QUICK if option != "--bins"]
    tree = ["cargo", "tree", "--locked", "--edges", "normal,build", "--prefix", "none", "--format", "{p}",
            "--target", "x86_64-unknown-linux-gnu", *options]
    done = subprocess.run(tree, cwd=build.ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"check_packages: cargo tree failed:\n{done.stderr}")
    return {tuple(line.split()[:2]) for line in done.stdout.splitlines() if line}


def problems(found, limit=LIMIT, duplicates=None):
    """Return one line for each limit that the packages exceed."""
    duplicates = DUPLICATES if duplicates is None else duplicates
    lines = []
    if len(found) > limit:
        lines.append(f"a first build compiles {len(found)} packages, more than {limit} (LIMIT in this script); "
                     "`cargo tree -i PACKAGE` says who needs one")
    versions = collections.defaultdict(list)
    for name, version in sorted(found):
        versions[name].append(version)
    for name, several in versions.items():
        if len(several) > 1 and name not in duplicates:
            lines.append(f"{name} is compiled in the versions {', '.join(several)}; use one, or list it in DUPLICATES")
    lines.extend(f"{name} has one version only; remove it from DUPLICATES"
                 for name in duplicates if len(versions[name]) < 2)
    return lines


def main():
    found = packages()
    lines = problems(found)
    for line in lines:
        print(f"check_packages: {line}", file=sys.stderr)
    if lines:
        sys.exit(1)
    print(f"check_packages: {len(found)} packages of at most {LIMIT}")


if __name__ == "__main__":
    main()
