#!/usr/bin/env python3
"""Tests of build.py and check_packages.py, without cargo."""

import io
import os
import tempfile
import unittest
import unittest.mock
from pathlib import Path

import build
import check_packages


def artifact(package, fresh):
    return {"reason": "compiler-artifact", "package_id": package, "fresh": fresh}


class Choice(unittest.TestCase):
    def test_choice_is_remembered_until_another_one(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / ".cargo/build-choice"
            self.assertEqual(build.chosen(None, path), "quick")
            self.assertEqual(build.chosen("full", path), "full")
            self.assertEqual(build.chosen(None, path), "full")
            self.assertEqual(build.chosen("quick", path), "quick")
            self.assertEqual(build.chosen(None, path), "quick")


class Progress(unittest.TestCase):
    def test_build_without_work_has_no_line_and_counts_nothing(self):
        progress = build.Progress(lambda: self.fail("packages are counted"), 0.0)
        for package in ("a", "b"):
            progress.artifact(artifact(package, True))
        self.assertTrue(progress.status("    Finished `dev` profile in 0.1s\n"))
        self.assertIsNone(progress.line(1.0))

    def test_first_build_says_how_far_it_is_and_how_long_it_takes(self):
        progress = build.Progress(lambda: 40, 0.0)
        self.assertTrue(progress.status("   Compiling a v1.0.0\n"))
        for i in range(20):
            progress.artifact(artifact(f"p{i}", False))
            progress.artifact(artifact(f"p{i}", False))
        line = progress.line(240.0)
        self.assertIn("building: 20/40 packages", line)
        self.assertIn(f"usually {build.USUAL_MINUTES} minutes", line)
        self.assertIn("about 4 min left", line)

    def test_later_build_does_not_say_how_long_the_first_one_takes(self):
        progress = build.Progress(lambda: 3, 0.0)
        progress.artifact(artifact("a", True))
        self.assertTrue(progress.status("\x1b[1m\x1b[32m   Compiling\x1b[0m b v1.0.0\n"))
        self.assertEqual(progress.line(5.0), "building: 1/3 packages")

    def test_errors_of_the_compiler_are_no_status(self):
        progress = build.Progress(lambda: 1, 0.0)
        for line in ("error[E0308]: mismatched types\n", "  --> src/lib.rs:1:1\n", "   |\n", "warning: unused\n"):
            self.assertFalse(progress.status(line), line)

    def test_downloads_and_other_builds_are_named(self):
        progress = build.Progress(lambda: 1, 0.0)
        progress.status(" Downloading crates ...\n")
        self.assertEqual(progress.line(0.0), "downloading packages")
        progress.status("    Blocking waiting for file lock on build directory\n")
        self.assertEqual(progress.line(0.0), "waiting for another build")


class Screen(unittest.TestCase):
    def test_terminal_has_one_line_that_errors_do_not_join(self):
        out = io.StringIO()
        screen = build.Screen(out, True)
        screen.show("a", 0.0)
        screen.show("a", 1.0)
        screen.relay("error\n")
        screen.show("a", 2.0)
        screen.clear()
        self.assertEqual(out.getvalue(), "\r\x1b[Ka\r\x1b[Kerror\n\r\x1b[Ka\r\x1b[K")

    def test_text_takes_one_line_of_the_terminal(self):
        out = io.StringIO()
        with unittest.mock.patch("shutil.get_terminal_size", return_value=os.terminal_size((5, 24))):
            build.Screen(out, True).show("123456", 0.0)
        self.assertEqual(out.getvalue(), "\r\x1b[K1234")

    def test_other_outputs_have_a_line_every_half_minute(self):
        out = io.StringIO()
        screen = build.Screen(out, False)
        for second in range(65):
            screen.show(f"line {second}", float(second))
        self.assertEqual(out.getvalue(), "line 0\nline 30\nline 60\n")


class Packages(unittest.TestCase):
    def test_limits_are_checked(self):
        found = {("a", "v1"), ("b", "v1"), ("b", "v2"), ("c", "v1")}
        check = lambda limit, duplicates: check_packages.problems(found, limit, duplicates)
        self.assertEqual(check(4, {"b": "a"}), [])
        self.assertIn("4 packages, more than 3", check(3, {"b": "a"})[0])
        self.assertIn("b is compiled in the versions v1, v2", check(4, {})[0])
        self.assertEqual(check(4, {"b": "a", "c": "a"}), ["c has one version only; remove it from DUPLICATES"])


if __name__ == "__main__":
    unittest.main()
