#!/usr/bin/env python3
"""Tests of setup.py: the choice of libtorch's kind, without a network."""

import contextlib
import io
import os
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import setup


class Choice(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)
        self.config = self.folder / ".cargo/config.toml"

    def libtorch(self, name, *libraries):
        """Make a folder like that of a libtorch."""
        path = self.folder / name
        for part in ("include", "lib"):
            (path / part).mkdir(parents=True)
        (path / "build-version").write_text(f"{setup.VERSION}\n")
        for library in libraries:
            (path / "lib" / library).touch()
        return path

    def write(self, libtorch, kind):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            setup.write_config(libtorch, kind, self.config)
        return out.getvalue()

    def test_choice_is_remembered_until_another_one(self):
        kind = lambda argument=None, environment=None: setup.chosen_kind(argument, environment or {}, self.config)
        self.assertIsNone(kind())
        cuda = self.libtorch("cuda", "libtorch_cpu.so", "libtorch_cuda.so")
        self.assertIn("CUDA build", self.write(cuda, kind("cuda")))
        self.assertEqual(kind(), "cuda")
        self.assertEqual(self.write(cuda, kind()), "", "nothing has changed")
        self.assertEqual(kind(environment={"SEPAL_CUDA": "0"}), "cpu")
        self.assertEqual(kind("cuda", {"SEPAL_CUDA": "0"}), "cuda", "the command line comes first")
        self.write(self.libtorch("cpu", "libtorch_cpu.so"), kind(environment={"SEPAL_CUDA": "0"}))
        self.assertEqual(kind(), "cpu")
        self.assertIn("LIBTORCH = {", self.config.read_text())

    def test_configuration_without_a_choice_has_no_line_of_it(self):
        self.write(self.libtorch("cpu", "libtorch_cpu.so"), None)
        self.assertNotIn(setup.CHOICE, self.config.read_text())
        self.assertIsNone(setup.chosen_kind(None, {}, self.config))

    def test_variable_with_another_value_is_refused(self):
        with self.assertRaises(SystemExit) as error:
            setup.chosen_kind(None, {"SEPAL_CUDA": "yes"}, self.config)
        self.assertIn("SEPAL_CUDA=yes", str(error.exception))

    def test_cpu_build_is_refused_where_cuda_is_chosen(self):
        cpu = self.libtorch("cpu", "libtorch_cpu.so")
        with mock.patch.dict(os.environ, {"LIBTORCH": str(cpu)}):
            self.assertEqual(setup.from_environment("cpu"), cpu)
            self.assertEqual(setup.from_environment(None), cpu)
            with self.assertRaises(SystemExit) as error:
                setup.from_environment("cuda")
        self.assertIn("is a CPU build", str(error.exception))

    def test_installed_package_is_used_if_its_kind_suits(self):
        cuda = self.libtorch("torch", "libtorch_cpu.so", "libtorch_cuda.so")
        with mock.patch.object(setup.subprocess, "run") as run:
            run.return_value.stdout = f"{cuda}\n"
            self.assertEqual([setup.from_python(kind) for kind in (None, "cuda", "cpu")], [cuda, cuda, None])


if __name__ == "__main__":
    unittest.main()
