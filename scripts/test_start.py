#!/usr/bin/env python3
"""Tests of scripts/sepal and scripts/install.sh: python3 scripts/test_start.py"""

import os
import subprocess
import tempfile
import unittest
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent


class Start(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name) / "a checkout"
        (self.root / "scripts").mkdir(parents=True)
        for name in ("sepal", "install.sh"):
            script = self.root / "scripts" / name
            script.write_text((SCRIPTS / name).read_text())
            script.chmod(0o755)

    def tearDown(self):
        self.folder.cleanup()

    def program(self, target):
        path = self.root / target / "debug/sepal"
        path.parent.mkdir(parents=True)
        path.write_text(f'#!/bin/sh\necho "{target}: $*"\n')
        path.chmod(0o755)

    def start(self, *arguments, path=None, **variables):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CARGO")}
        script = path or self.root / "scripts/sepal"
        return subprocess.run([script, *arguments], env=environment | variables, cwd="/", capture_output=True, text=True)

    def test_target_folder_is_chosen_as_by_cargo(self):
        self.program("target")
        self.assertEqual(self.start("run", "a b").stdout, "target: run a b\n")
        self.program("configured folder")
        config = self.root / ".cargo/config.toml"
        config.parent.mkdir()
        config.write_text(f'[env]\nLIBTORCH = {{ value = "/x" }}\n\n[build]\ntarget-dir = "{self.root}/configured folder"\n')
        self.assertEqual(self.start("plan").stdout, "configured folder: plan\n")
        self.program("variable")
        self.assertEqual(self.start(CARGO_TARGET_DIR="variable").stdout, "variable: \n")
        self.assertEqual(self.start(CARGO_TARGET_DIR=str(self.root / "target")).stdout, "target: \n")

    def test_missing_program_is_an_error_that_names_it(self):
        missing = self.start("--version")
        self.assertEqual(missing.returncode, 1)
        self.assertIn("target/debug/sepal is not there", missing.stderr)

    def test_installed_link_starts_the_program(self):
        self.program("target")
        folder = self.root / "bin"
        installed = subprocess.run([self.root / "scripts/install.sh", folder], capture_output=True, text=True, check=True)
        self.assertIn(f"{folder}/sepal runs", installed.stdout)
        self.assertEqual(self.start("doctor", path=folder / "sepal").stdout, "target: doctor\n")


if __name__ == "__main__":
    unittest.main()
