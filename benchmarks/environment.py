"""Virtual environments of the benchmarks, in the user's cache."""

import os
import shutil
import subprocess
import sys
from pathlib import Path


def python(name, packages, resolve=True):
    """Return the Python of an environment, which is created if it lacks these packages.

    The package index brings torch with its CUDA packages, some gigabytes; where it can be reached, the index of CPU
    wheels saves them: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
    """
    base = os.environ.get("SEPAL_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sepal"
    folder = Path(base).absolute() / name / "environment"
    interpreter, made = folder / "bin/python", folder / "packages"
    if not made.is_file() or made.read_text().split() != packages:
        print(f"{name}: installing {', '.join(packages)} into {folder}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        if not resolve:
            # The packages name versions that contradict each other.
            install.insert(4, "--no-deps")
        if subprocess.run(install, check=False).returncode != 0:
            sys.exit(f"{name}: error: pip could not install the packages; check the package index and the network")
        # Written last: a folder without it is created again.
        made.write_text("\n".join(packages) + "\n")
    return str(interpreter)
