#!/usr/bin/env python3
"""Tests of benchmarks/table: rows of docs/results.json and of this machine, the queue, the pages. No method is run."""

import argparse
import json
import shutil
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks/table"))
import models  # noqa: E402
import pages  # noqa: E402
import rows  # noqa: E402
import run  # noqa: E402

MODEL = "smollm2-135m"


def row(method, size, seed, accuracy, model=MODEL):
    return {"key": rows.key("films", size, method, seed, model), "accuracy": accuracy, "f1_macro": accuracy,
            "trained_numbers": 9, "bytes": 0, "cpu_seconds": 1.5}


def args(**changed):
    return argparse.Namespace(**{"tasks": ["films"], "sizes": ["1k", "16-shot"], "seeds": 2, "methods": run.METHODS,
                                 "model": MODEL} | changed)


class Merge(unittest.TestCase):
    def test_committed_row_replaces_cached_ones_of_its_key(self):
        committed = [row("lora", "1k", 0, 0.5), row("lora", "1k", 1, 0.6)]
        cached = [row("lora", "1k", 1, 0.7), row("lora", "16-shot", 1, 0.8), row("lora", "16-shot", 1, 0.9)]
        found = {tuple(one["key"]): one["accuracy"] for one in rows.merged(committed, cached)}
        self.assertEqual(found, {("films", "1k", "lora", 0, MODEL): 0.5, ("films", "1k", "lora", 1, MODEL): 0.6,
                                 ("films", "16-shot", "lora", 1, MODEL): 0.9})

    def test_missing_files_have_no_rows(self):
        self.assertEqual(rows.read_committed(Path("none.json")) + rows.read_cached(Path("none.jsonl")), [])

    def test_appended_row_is_read_back(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            rows.append(path, row("lora", "1k", 0, 0.5))
            rows.append(path, row("lora", "1k", 1, 0.6))
            self.assertEqual(rows.read_cached(path), [row("lora", "1k", 0, 0.5), row("lora", "1k", 1, 0.6)])


class Queue(unittest.TestCase):
    def test_combination_with_a_row_is_not_run_again(self):
        queue = run.missing(args(), [])
        known = [{"key": key} for key, _ in queue]
        self.assertEqual(run.missing(args(), known), [])
        self.assertEqual(run.missing(args(), known[1:]), queue[:1])

    def test_zero_shot_is_run_once_for_all_sizes_and_seeds(self):
        known = [row("zero-shot", "16-shot", 0, 0.5)]
        self.assertEqual([key for key, _ in run.missing(args(methods=["zero-shot"]), [])], [known[0]["key"]])
        self.assertEqual(run.missing(args(methods=["zero-shot"]), known), [])

    def test_setfit_is_run_with_few_rows_only(self):
        sizes = {size for _, (_, size, _, _) in run.missing(args(methods=["SetFit"]), [])}
        self.assertEqual(sizes, {"16-shot"})


    def test_methods_without_a_language_model_are_not_run_for_each_of_them(self):
        methods = {method for _, (_, _, method, _) in run.missing(args(model="gemma3-270m"), [])}
        self.assertEqual(methods, set(run.METHODS) - {"tf-idf", "sentence encoder", "SetFit"})


class Pages(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = Path(self.folder.name)
        (self.root / "docs").mkdir()
        shutil.copy(ROOT / "README.md", self.root)

    def tearDown(self):
        self.folder.cleanup()

    def document(self):
        return json.loads((self.root / "docs/results.json").read_text(encoding="utf-8"))

    def test_values_of_each_seed_are_read_back(self):
        measured = [row("lora", "16-shot", 1, 0.75), row("lora", "16-shot", 0, 0.5), row("zero-shot", "1k", 0, 0.6)]
        pages.write(measured, self.root)
        found = rows.read_committed(self.root / "docs/results.json")
        self.assertCountEqual(found, measured)
        lora = next(one for one in self.document()["results"] if one["method"] == "lora")
        self.assertEqual((lora["mean"], lora["deviation"], lora["seeds"]), (62.5, 17.68, 2))
        self.assertEqual([value["seed"] for value in lora["values"]], [0, 1])

    def test_committed_models_are_sources_that_others_have(self):
        committed = rows.read_committed(ROOT / "docs/results.json")
        named = {one["model"] for one in committed if one.get("model")}
        self.assertTrue(named)
        self.assertLessEqual(named, {source for model in models.MODELS.values() for source in model.sources})

    def test_row_without_training_is_in_every_size_of_the_page(self):
        pages.write([row("zero-shot", "1k", 0, 0.6)], self.root)
        self.assertEqual(len(self.document()["results"]), 1)
        self.assertIn("no training | 60.0 | 60.0 | 9 |", (self.root / "docs/results.md").read_text(encoding="utf-8"))

    def test_other_language_models_have_lines_of_their_own(self):
        pages.write([row("lora", "1k", 0, 0.5), row("lora", "1k", 0, 0.6, "gemma3-270m")], self.root)
        page = (self.root / "docs/results.md").read_text(encoding="utf-8")
        self.assertIn("| Sepal: `lora` of all layers, rank 8 | not run | 50.0 ", page)
        self.assertIn("| Gemma 3 270M: `lora` of all layers, rank 8 | not run | 60.0 ", page)
        self.assertNotIn("Gemma 3 270M: `ptune`", page)
        self.assertEqual([one["language_model"] for one in self.document()["results"]], [MODEL, "gemma3-270m"])

    def test_rows_of_unknown_methods_stay_in_the_file(self):
        pages.write([row("lora", "1k", 0, 0.5), row("of a later version", "1k", 0, 0.6)], self.root)
        self.assertEqual([one["method"] for one in self.document()["results"]], ["lora", "of a later version"])

    def test_committed_pages_are_those_of_the_committed_rows(self):
        pages.write(rows.read_committed(ROOT / "docs/results.json"), self.root)
        for name in ["docs/results.json", "docs/results.md", "docs/results.svg", "README.md"]:
            written, committed = ((root / name).read_text(encoding="utf-8") for root in (self.root, ROOT))
            self.assertEqual(written, committed, f"{name} differs: run `just table --write`")


if __name__ == "__main__":
    unittest.main()
