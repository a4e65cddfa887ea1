#!/usr/bin/env python3
"""Check everything that a release needs: versions, changelog, packages, wheel and links.

    python3 scripts/release_check.py                 # all checks; exit code 1 if one fails
    python3 scripts/release_check.py --only version  # one of them
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command):
    """Return the output of a command, or raise RuntimeError with its last lines."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(command)}` failed:\n" + "\n".join(done.stderr.splitlines()[-15:]))
    return done.stdout


def workspace_packages():
    metadata = json.loads(run("cargo", "metadata", "--no-deps", "--format-version", "1"))
    return metadata["packages"]


def is_published(package):
    return package["publish"] != []


def version():
    return re.search(r'^version = "([^"]+)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)


def check_version():
    """One version everywhere: packages, their dependencies on each other, and the Python package."""
    expected, problems = version(), []
    packages = workspace_packages()
    for package in packages:
        if package["version"] != expected:
            problems.append(f"{package['name']} has version {package['version']}, the workspace {expected}")
        for dependency in package["dependencies"]:
            if dependency.get("path") and is_published(package) and dependency["req"] not in (f"^{expected}", "*"):
                problems.append(f"{package['name']} wants {dependency['name']} {dependency['req']}, not {expected}")
    for path in ROOT.glob("**/pyproject.toml"):
        found = re.search(r'^version\s*=\s*"([^"]+)"', path.read_text(), re.M)
        if found and found.group(1) != expected:
            problems.append(f"{path.relative_to(ROOT)} has version {found.group(1)}, the workspace {expected}")
    return problems


def check_changelog():
    """A section of this version with a date, and nothing unreleased."""
    text = (ROOT / "CHANGELOG.md").read_text()
    problems = []
    if not re.search(rf"^## {re.escape(version())} - \d{{4}}-\d\d-\d\d$", text, re.M):
        problems.append(f"CHANGELOG.md has no heading `## {version()} - YYYY-MM-DD`")
    unreleased = re.search(r"^## Unreleased\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    if unreleased and unreleased.group(1).strip():
        problems.append("CHANGELOG.md has entries under `## Unreleased`")
    return problems


def check_packages():
    """Metadata of each published crate, and an archive of each as an index takes it."""
    problems = []
    for package in filter(is_published, workspace_packages()):
        missing = [key for key in ("description", "license", "rust_version") if not package[key]]
        missing += [key for key in ("keywords", "categories") if not package[key]]
        if missing:
            problems.append(f"{package['name']} lacks {', '.join(missing)}")
    unpublished = [package["name"] for package in workspace_packages() if not is_published(package)]
    exclusions = [argument for name in unpublished for argument in ("--exclude", name)]
    run("cargo", "package", "--workspace", "--no-verify", "--allow-dirty", *exclusions)
    if run("git", "status", "--porcelain").strip():
        problems.append("the working tree has changes that are not committed")
    return problems


def check_docs():
    """Links between the pages, their language, and the files for containers and services."""
    problems = []
    for command in (["python3", "scripts/check_docs.py"], ["python3", "scripts/check_language.py"],
                    ["python3", "scripts/check_contrib.py"]):
        try:
            run(*command)
        except RuntimeError as error:
            problems.append(str(error))
    return problems


def check_wheel():
    """The wheel builds, its metadata is valid, and it works in a new virtual environment."""
    for recipe in ("wheel", "test-wheel"):
        try:
            run("just", recipe)
        except RuntimeError as error:
            return [str(error)]
    return []


CHECKS = {"version": check_version, "changelog": check_changelog, "packages": check_packages, "docs": check_docs, "wheel": check_wheel}


def main():
    parser = argparse.ArgumentParser(description="Check everything that a release needs.")
    parser.add_argument("--only", choices=CHECKS, action="append", help="run this check alone; may be repeated")
    names = parser.parse_args().only or list(CHECKS)
    failed = False
    for name in names:
        try:
            problems = CHECKS[name]()
        except RuntimeError as error:
            problems = [str(error)]
        print(f"{name}: {'ok' if not problems else ''}", flush=True)
        for problem in problems:
            print(f"  {problem}")
        failed = failed or bool(problems)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
