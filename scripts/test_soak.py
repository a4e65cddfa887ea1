#!/usr/bin/env python3
"""Tests of soak.py: figures, the page, and the names of attacks. No server is started."""

import json
import re
import signal
import tempfile
import unittest
from pathlib import Path

import soak
import soak_figures

SUMMARY = {
    "command": "just soak", "minutes": 10.0, "seed": 1, "counts": {"panics": 0, "runs: finished": 1234},
    "servers": [{"blocks": "0:3", "starts": 1, "peak_mb": 151.2, "peak_descriptors": 40}],
    "steady": {"begin_mb": 150.0, "end_mb": 152.0, "growth_of_last_quarter_mb": 0.5, "begin_descriptors": 18,
               "end_descriptors": 19},
    "violations": [],
}


class Tests(unittest.TestCase):
    def test_lowest_memory_shows_a_leak_and_no_call(self):
        calls = [(float(second), 150.0 + 50 * (second % 7 == 0), 18) for second in range(100)]
        leak = [(second, memory + second, descriptors) for second, memory, descriptors in calls]
        growth = [soak_figures.lowest(samples, 75, 100) - soak_figures.lowest(samples, 50, 75) for samples in (calls, leak)]
        self.assertEqual(growth[0], 0)
        self.assertGreater(growth[1], soak.FLAT_MB)

    def test_page_is_rewritten_between_its_marks(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            page = folder / "reliability.md"
            page.write_text((soak.ROOT / "docs" / "reliability.md").read_text())
            soak_figures.write(SUMMARY, folder)
            text = page.read_text()
            self.assertIn("| runs: finished | 1,234 |", text)
            self.assertIn("## What is not defended", text)
            soak_figures.write(SUMMARY, folder)
            self.assertEqual(page.read_text(), text)
            self.assertEqual(json.loads((folder / "reliability.json").read_text()), SUMMARY)

    def test_attacks_are_those_of_the_program(self):
        program = (soak.ROOT / "integration-tests" / "examples" / "hostile.rs").read_text()
        known = {name: numbers.count('("') for name, numbers in re.findall(r'\("([a-z-]+)", &\[(.*?)\], ', program)}
        for name, *numbers in soak.ATTACKS:
            self.assertEqual(len(numbers) + (name in soak.SEEDED), known.get(name), name)

    def test_lies_are_those_of_the_program(self):
        lies = (soak.ROOT / "integration-tests" / "src" / "liar" / "lies.rs").read_text()
        for name in soak.LIES:
            self.assertTrue(f'= "{name}",' in lies, name)

    def test_no_process_outlives_the_soak(self):
        processes = soak.Processes()
        process = processes.start(["sleep", "600"])
        process.send_signal(signal.SIGSTOP)
        processes.end()
        self.assertEqual(process.returncode, -signal.SIGKILL)
        self.assertRaises(RuntimeError, processes.start, ["true"])

    def test_differences_are_named(self):
        self.assertEqual(soak.differences({"steps": 1, "best": 2}, {"steps": 1, "best": 3}), ["best"])


if __name__ == "__main__":
    unittest.main()
