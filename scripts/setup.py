#!/usr/bin/env python3
"""Download libtorch and point cargo at it.

libtorch is looked for in this order:

1. ``LIBTORCH``, a folder with ``include/`` and ``lib/``;
2. the ``torch`` package of the ``python3`` that runs this script, if it has the right version;
3. the official ``torch`` wheel, from the user's own package index (``pip download``), of which only
   what a CPU build needs is unpacked. For CUDA the whole wheel and its CUDA packages are kept.

``--cuda`` and ``--cpu`` choose the kind of libtorch, or else ``SEPAL_CUDA=1`` and ``SEPAL_CUDA=0``. The choice
is remembered for this checkout. Without one, an installed ``torch`` of any kind is used, or a CPU build.

The result is written to ``.cargo/config.toml`` (not committed): the choice, the path of libtorch, an rpath so
that binaries find it without ``LD_LIBRARY_PATH``, and a target folder in the user's cache that every clone
shares. When all is there already, this takes a fraction of a second and reaches no network.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VERSION = "2.13.0"
CUDA_SMALL = ["nvidia-cuda-runtime==13.0.*", "nvidia-cuda-cupti==13.0.*"]
WANTED_LIBS = ["libtorch_cpu.so", "libc10.so"]
ROOT = Path(__file__).resolve().parent.parent
CHOICE = "# Kind of libtorch: "


def say(text):
    print(f"setup: {text}", flush=True)


def fail(text):
    sys.exit(f"setup: error: {text}")


def cache_dir():
    """Return the folder that outlives a checkout: ``SEPAL_CACHE``, or ``sepal`` in the user's cache."""
    if os.environ.get("SEPAL_CACHE"):
        return Path(os.environ["SEPAL_CACHE"]).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "sepal"


def is_cuda_build(libtorch):
    return (libtorch / "lib/libtorch_cuda.so").exists()


def chosen_kind(argument, environment, config):
    """Return ``cuda``, ``cpu`` or None: of the command line, of ``SEPAL_CUDA``, or of the last setup."""
    if argument:
        return argument
    value = environment.get("SEPAL_CUDA", "")
    if value:
        if value not in ("0", "1"):
            fail(f"SEPAL_CUDA={value} is neither 0 (a CPU build) nor 1 (a CUDA build)")
        return "cuda" if value == "1" else "cpu"
    lines = config.read_text().splitlines() if config.is_file() else []
    kinds = [line[len(CHOICE):] for line in lines if line.startswith(CHOICE)]
    return kinds[0] if kinds and kinds[0] in ("cuda", "cpu") else None


def check_tools():
    for tool, hint in [("cargo", "install Rust from https://rustup.rs"), ("g++", "install gcc and g++")]:
        if shutil.which(tool) is None:
            fail(f"{tool} was not found; {hint}")
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        if not os.environ.get("LIBTORCH"):
            fail("libtorch is fetched for Linux on x86_64 only; set LIBTORCH to a libtorch "
                 f"{VERSION} folder of your platform")


def version_of(libtorch):
    """Return the version of a libtorch folder without the build suffix, or None."""
    for name in ("build-version", "version.py"):
        path = libtorch / name
        if path.is_file():
            text = path.read_text()
            if name == "version.py":
                found = [l.split("'")[1] for l in text.splitlines() if l.startswith("__version__")]
                text = found[0] if found else ""
            return text.strip().split("+")[0]
    return None


def from_environment(kind):
    value = os.environ.get("LIBTORCH")
    if not value:
        return None
    path = Path(value).absolute()
    if not (path / "lib").is_dir() or not (path / "include").is_dir():
        fail(f"LIBTORCH={value} has no include/ and lib/; unset it or name a libtorch {VERSION} folder")
    found = version_of(path)
    if found is not None and found != VERSION:
        fail(f"LIBTORCH={value} is version {found}, but {VERSION} is needed; unset it to fetch the right one")
    if kind == "cuda" and not is_cuda_build(path):
        fail(f"LIBTORCH={value} is a CPU build, and a CUDA build is chosen; unset it, or choose --cpu")
    return path


def from_python(kind):
    probe = "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
    found = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True).stdout.strip()
    if not found:
        return None
    path = Path(found)
    if version_of(path) != VERSION or not (path / "lib/libtorch_cpu.so").exists():
        return None
    return path if kind is None or is_cuda_build(path) == (kind == "cuda") else None


def pip_download(target, *packages):
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
               "--no-deps", "--only-binary=:all:", "-d", str(target), *packages]
    done = subprocess.run(command, text=True, stderr=subprocess.PIPE)
    if done.returncode != 0:
        fail(f"pip could not download {' '.join(packages)}:\n{done.stderr.strip()}\n"
             "check the package index and the network, or set LIBTORCH")


def unpack(wheel, out, wanted):
    """Copy the members of a wheel for which ``wanted(name)`` gives a path below ``out``."""
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            name = None if info.is_dir() else wanted(info.filename)
            if name is None:
                continue
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, open(path, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)


def small_member(name):
    """Extract the parts for a CPU build from the torch and nvidia wheels: headers and five libraries."""
    base = name.rsplit("/", 1)[-1]
    if name.startswith("torch/include/"):
        return name[len("torch/"):]
    if name.startswith("torch/lib/") and base in WANTED_LIBS:
        return f"lib/{base}"
    for start, final in [("libgomp", "libgomp.so.1"), ("libcudart.so", "libcudart.so.13"),
                         ("libcupti.so", "libcupti.so.13")]:
        if base.startswith(start):
            return f"lib/{final}"
    return None


def cuda_member(name):
    """Extract torch/, and every nvidia library beside torch's own, where its rpath looks last."""
    base = name.rsplit("/", 1)[-1]
    if name.startswith("torch/"):
        return name[len("torch/"):]
    if ".so" in base and not name.startswith("triton/"):
        return f"lib/{base}"
    return None


def download(kind):
    cuda = kind == "cuda"
    final = cache_dir() / f"libtorch-{VERSION}-{'cuda' if cuda else 'cpu'}"
    if (final / "build-version").is_file():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".libtorch-", dir=final.parent))
    try:
        amount = "its CUDA packages, several GB" if cuda else "about 530 MB"
        say(f"fetching libtorch {VERSION} ({amount}) from the package index")
        wheels = work / "wheels"
        if cuda:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:",
                       "-d", str(wheels), f"torch=={VERSION}"]
            if subprocess.run(command).returncode != 0:
                fail(f"pip could not download torch=={VERSION} and its CUDA packages")
        else:
            pip_download(wheels, f"torch=={VERSION}")
            pip_download(wheels, *CUDA_SMALL)
        tree = work / "tree"
        for wheel in sorted(wheels.glob("*.whl")):
            if not cuda or wheel.name.startswith(("torch-", "nvidia_")):
                unpack(wheel, tree, cuda_member if cuda else small_member)
        if not cuda:
            (tree / "lib/libtorch.so").write_text("INPUT(-ltorch_cpu)\n")
        wanted = WANTED_LIBS + (["libtorch_cuda.so"] if cuda else [])
        missing = [n for n in wanted if not (tree / "lib" / n).is_file()]
        if missing:
            fail(f"the torch wheel has no {', '.join(missing)}")
        # Written last: a folder without it is incomplete.
        (tree / "build-version").write_text(f"{VERSION}\n")
        os.sync()
        if final.exists():
            shutil.rmtree(final)
        os.rename(tree, final)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    say(f"libtorch {VERSION} is in {final}")
    return final


def write_config(libtorch, kind, path):
    lib = libtorch / "lib"
    flags = f'["-Clink-arg=-Wl,-rpath,{lib}"]'
    text = (
        "# Written by `just setup`; not committed.\n"
        f"{CHOICE + kind + chr(10) if kind else ''}"
        "[env]\n"
        f'LIBTORCH = {{ value = "{libtorch}", force = true }}\n\n'
        "[build]\n"
        f'target-dir = "{cache_dir() / "target"}"\n'
        f"rustflags = {flags}\n"
        f"rustdocflags = {flags}\n"
    )
    if path.is_file() and path.read_text() == text:
        return
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(text)
    os.replace(temporary, path)
    build = "CUDA build" if is_cuda_build(libtorch) else "CPU build"
    say(f"wrote {path} (libtorch: {libtorch}, {build})")


def claim_target():
    """Make the sources of this checkout newer than the shared target folder.

    Checkouts share a target folder, so that each dependency is built once. Cargo would reuse workspace crates of another
    checkout, with the paths compiled into them, if the sources of this one are older."""
    target = Path(os.environ.get("CARGO_TARGET_DIR") or cache_dir() / "target")
    owner = target / ".checkout"
    if owner.is_file() and owner.read_text() == str(ROOT):
        return
    for folder in ("crates", "plugins", "patches", "examples", "integration-tests", "benches"):
        for source in (ROOT / folder).rglob("*.rs"):
            source.touch()
    target.mkdir(parents=True, exist_ok=True)
    owner.write_text(str(ROOT))


def main():
    parser = argparse.ArgumentParser(prog="just setup", description="Download libtorch and configure cargo for it.")
    kinds = parser.add_mutually_exclusive_group()
    for kind, text in [("cuda", "a libtorch for CUDA"), ("cpu", "a libtorch for the CPU only")]:
        kinds.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind,
                           help=f"use {text}, now and in later setups of this checkout")
    config = ROOT / ".cargo/config.toml"
    kind = chosen_kind(parser.parse_args().kind, os.environ, config)
    check_tools()
    write_config(from_environment(kind) or from_python(kind) or download(kind), kind, config)
    claim_target()


if __name__ == "__main__":
    main()
