"""Tests of the Python module of an installed wheel; `just test-wheel` runs them with its interpreter.

SEPAL_TEST_GOLDENS names the folder with the tiny models.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

import numpy
import pandas
import pyarrow
import pyarrow.parquet
import sepal
import torch
from sepal.petals import AutoDistributedModelForSequenceClassification

import tiny

GOLDENS = Path(os.environ["SEPAL_TEST_GOLDENS"])
PROGRAM = Path(sys.executable).parent / "sepal"
SPLIT = {"data.validation_split": 0.5}
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])


class InFolder(unittest.TestCase):
    def setUp(self):
        temporary = tempfile.TemporaryDirectory()
        self.addCleanup(temporary.cleanup)
        self.folder = Path(temporary.name)
        self.model = tiny.model(self.folder / "model", GOLDENS)
        self.pipeline = tiny.pipeline(self.model, self.folder / "runs")
        self.rows = {"train": tiny.sentences(192, 1), "validation": tiny.sentences(48, 2)}

    def train(self, **options):
        return sepal.train(self.pipeline, self.rows, progress=options.pop("progress", False), **options)


class Training(InFolder):
    def test_run_learns_and_predicts_as_its_own_predictions(self):
        run = self.train()
        self.assertGreaterEqual(run.metrics["accuracy"], 0.8)
        self.assertEqual(len(run.records()), run.summary["steps"])
        texts = self.rows["validation"]["text"]
        predictions = run.predict(texts)
        written = pyarrow.parquet.read_table(run.folder / "predictions.parquet").to_pandas()
        self.assertEqual([prediction.label for prediction in predictions], list(written["predicted"]))
        for prediction in predictions:
            self.assertAlmostEqual(sum(prediction.scores.values()), 1, places=5)
        table = predictions.to_pandas()
        self.assertEqual(list(table.columns), ["label", "probability_bad", "probability_good"])

    def test_empty_text_is_refused_by_its_index(self):
        run = self.train(overrides={"train.max_steps": 1})
        with self.assertRaisesRegex(ValueError, r"texts\[1\] is empty"):
            run.predict(["good", ""])

    def test_tables_without_rows_are_refused_by_name(self):
        empty = {"text": [], "label": []}
        for table in ([], empty, pandas.DataFrame(empty), pyarrow.table({"text": pyarrow.array([], pyarrow.string())})):
            splits = {"train": self.rows["train"], "validation": table}
            for data, name in ((table, "data"), (splits, "data['validation']")):
                with self.assertRaisesRegex(ValueError, re.escape(f"{name} has no rows")):
                    sepal.train(self.pipeline, data, overrides={"evaluate.every": "never"}, progress=False)

    def test_tables_of_every_kind_are_the_same_rows(self):
        columns = self.rows["train"]
        kinds = {
            "columns": columns,
            "pandas": pandas.DataFrame(columns),
            "arrow": pyarrow.table(columns),
            "rows": [dict(zip(columns, row)) for row in zip(*columns.values())],
            "categories": pandas.DataFrame(columns).astype({"text": "category"}),
            "numbers of NumPy": [
                {"text": text, "label": label} for text, label in zip(columns["text"], numpy.array(columns["label"]))
            ],
        }
        losses = {}
        for kind, table in kinds.items():
            data = {"train": table, "validation": table}
            run = sepal.train(self.pipeline, data, overrides={"train.max_steps": 3}, progress=False)
            losses[kind] = [record["loss"] for record in run.records()]
        self.assertEqual(len(set(map(tuple, losses.values()))), 1, losses)

    def test_file_of_a_pipeline_is_a_pipeline(self):
        for split, rows in self.rows.items():
            pandas.DataFrame(rows).to_csv(self.folder / f"{split}.csv", index=False)
        data = {split: str(self.folder / f"{split}.csv") for split in self.rows}
        self.pipeline["data"].update(data, text="text", label="label")
        path = self.folder / "pipeline.yaml"
        path.write_text(json.dumps(self.pipeline))
        run = sepal.train(path, overrides={"train.max_steps": 2}, progress=False)
        self.assertEqual(run.summary["steps"], 2)
        # The program reads the run of the module.
        command = [PROGRAM, "evaluate", run.folder, "--data", data["validation"], "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(json.loads(done.stdout)["rows"], 48)

    def test_interrupt_leaves_a_run_that_resumes(self):
        def interrupt(event):
            if event["event"] == "step" and event["record"]["step"] == 3:
                # From another thread, as a terminal sends it: the main thread is in the training.
                threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGINT)).start()

        overrides = {"train.epochs": 20}
        with self.assertRaises(KeyboardInterrupt):
            self.train(progress=interrupt, overrides=overrides)
        run = self.train(resume=True, overrides=overrides)
        self.assertFalse(run.summary["interrupted"])
        self.assertEqual([record["step"] for record in run.records()], list(range(1, 241)))
        self.assertEqual(len(list((self.folder / "runs").glob("tiny-*"))), 1)

    def test_second_interrupt_waits_until_the_run_is_saved(self):
        handled = threading.Event()

        def handle(_, frame):
            handled.set()
            while frame and frame.f_code.co_name != "train":
                frame = frame.f_back
            # A signal that comes after the training is not for this test's own code.
            if frame:
                raise KeyboardInterrupt

        def interrupt_twice():
            os.kill(os.getpid(), signal.SIGINT)
            handled.wait()
            os.kill(os.getpid(), signal.SIGINT)

        def interrupt(event):
            if event["event"] == "step" and event["record"]["step"] == 3:
                threading.Thread(target=interrupt_twice).start()

        self.addCleanup(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, handle))
        with self.assertRaises(KeyboardInterrupt):
            self.train(progress=interrupt, overrides={"train.epochs": 20})
        [folder] = (self.folder / "runs").glob("tiny-*")
        self.assertEqual(json.loads((folder / "manifest.json").read_text())["status"], {"state": "interrupted"})
        self.assertTrue((folder / "adapter.safetensors").is_file())

    def test_error_of_progress_ends_the_run(self):
        def fail(event):
            if event["event"] == "step":
                raise LookupError("from the listener")

        with self.assertRaisesRegex(LookupError, "from the listener"):
            self.train(progress=fail)

    def test_data_and_overrides_are_checked_together(self):
        frame = {split: pandas.DataFrame(rows) for split, rows in self.rows.items()}
        self.pipeline["data"]["validation_split"] = 0.1
        overrides = {"train.max_steps": 1, "data.validation_split": None}
        run = sepal.train(self.pipeline, frame, overrides=overrides, progress=False)
        self.assertEqual(run.manifest["data"]["validation_rows"], 48)
        del self.pipeline["data"]["validation_split"]
        overrides["data.validation_split"] = 0.25
        run = sepal.train(self.pipeline, frame["train"], overrides=overrides, progress=False)
        self.assertEqual(run.manifest["data"]["train_rows"] + run.manifest["data"]["validation_rows"], 192)
        with self.assertRaisesRegex(sepal.SepalError, "found neither"):
            sepal.train(self.pipeline, frame["train"], progress=False)
        with self.assertRaisesRegex(sepal.SepalError, "found both"):
            sepal.train(self.pipeline, frame, overrides=overrides, progress=False)

    def test_wrong_splits_and_columns_are_named(self):
        rows = self.rows["train"]
        frame = pandas.DataFrame(rows)
        tables = {"pandas": frame, "arrow": pyarrow.table(rows), "columns": rows, "rows": frame.to_dict("records")}
        for kind, table in tables.items():
            for names, expected in {
                ("trian",): "data has 'trian'",
                ("train", "valid"): "data has 'valid'",
                ("train", "validation", "test"): "data has 'test'",
                ("validation",): "validation without train",
            }.items():
                with self.subTest(kind=kind, names=names), self.assertRaisesRegex(ValueError, expected):
                    sepal.train(self.pipeline, dict.fromkeys(names, table), progress=False)
        with self.assertRaisesRegex(ValueError, "column 'label' of data has 1 values, and column 'text' has 2"):
            sepal.train(self.pipeline, {"text": ["a", "b"], "label": ["bad"]}, overrides=SPLIT, progress=False)
        with self.assertRaisesRegex(TypeError, "column 'label' of data is str"):
            sepal.train(self.pipeline, {"text": ["a"], "label": "bad"}, overrides=SPLIT, progress=False)
        with self.assertRaisesRegex(ValueError, "column 'label' of data cannot be written"):
            sepal.train(self.pipeline, {"text": ["a", "b"], "label": ["bad", 1]}, overrides=SPLIT, progress=False)
        data = {"train": rows, "validation": {"text": ["a", "b"], "label": ["bad"]}}
        with self.assertRaisesRegex(ValueError, "column 'label' of data\\['validation'\\] has 1 values"):
            sepal.train(self.pipeline, data, progress=False)

    def test_columns_of_dicts_make_no_splits(self):
        rows = self.rows["train"]
        columns = {**rows, "meta": [{"id": index} for index in range(192)]}
        overrides = {**SPLIT, "train.max_steps": 1}
        run = sepal.train(self.pipeline, columns, overrides=overrides, progress=False)
        self.assertEqual(run.manifest["data"]["train_rows"] + run.manifest["data"]["validation_rows"], 192)
        with self.assertRaisesRegex(ValueError, "data has 'meta'"):
            sepal.train(self.pipeline, {"train": rows, "meta": columns["meta"]}, progress=False)

    def test_arguments_are_named(self):
        with self.assertRaisesRegex(TypeError, "progress is int"):
            self.train(progress=3)
        with self.assertRaisesRegex(TypeError, "progress is str"):
            sepal.RemoteBlocks(self.model, progress="yes")
        run = self.train(overrides={"train.max_steps": 1})
        with self.assertRaisesRegex(TypeError, "texts is NoneType; give a list of texts"):
            run.predict(None)
        with self.assertRaisesRegex(TypeError, "pairs is int; give a list of texts"):
            run.predict(["a"], pairs=3)
        with self.assertRaisesRegex(TypeError, "options is int; give a list of lists of texts"):
            run.predict(["a"], options=3)

    def test_mistakes_are_named(self):
        # The pipeline is complete, so that the rows are what is wrong.
        self.pipeline["data"]["validation_split"] = 0.5
        with self.assertRaisesRegex(TypeError, "list of dicts"):
            sepal.train(self.pipeline, data=3)
        with self.assertRaisesRegex(TypeError, "data is Series"):
            sepal.train(self.pipeline, data=pandas.Series(["a", "b"]))
        with self.assertRaisesRegex(TypeError, "row 1 of data is str"):
            sepal.train(self.pipeline, data=[{"text": "a", "label": 1}, "b"])
        with self.assertRaisesRegex(sepal.SepalError, "a pipeline is a mapping of keys"):
            sepal.train("- a\n- b\n", data=self.rows)
        with self.assertRaisesRegex(sepal.SepalError, "pipeline.yaml"):
            sepal.load(self.folder)
        self.pipeline["tunning"] = self.pipeline.pop("tuning")
        with self.assertRaisesRegex(sepal.SepalError, "did you mean `tuning`"):
            self.train()
        self.assertFalse((self.folder / "runs").exists(), "a pipeline is checked before anything is written")


class Blocks(InFolder):
    def tensors(self, blocks):
        torch.manual_seed(1)
        size, layers = blocks.hidden_size, blocks.n_blocks
        hidden, prefix, deep = torch.randn(2, 4, size), torch.randn(3, size), 0.1 * torch.randn(layers, 3, size)
        return [tensor.requires_grad_() for tensor in (hidden, prefix, deep)]

    def test_gradients_are_those_of_the_output(self):
        for swarm in ("none", "embedded"):
            blocks = sepal.RemoteBlocks(self.model, swarm)
            tensors = self.tensors(blocks)
            directions = [torch.randn_like(tensor) for tensor in tensors]

            def value(step):
                moved = [tensor + step * way for tensor, way in zip(tensors, directions)]
                output = blocks(moved[0], MASK, prefix=moved[1], deep_prompts=moved[2])
                return blocks.final_norm(output[MASK == 1]).square().mean() + blocks.embed_prompts(moved[1]).mean()

            gradients = torch.autograd.grad(value(0.0), tensors)
            slope = sum((gradient * way).sum() for gradient, way in zip(gradients, directions)).item()
            with torch.no_grad():
                measured = (value(1e-2) - value(-1e-2)).item() / 2e-2
            self.assertAlmostEqual(slope, measured, delta=0.02 * max(1.0, abs(slope)), msg=swarm)
            self.assertEqual(gradients[0][0, 3].abs().sum(), 0, "padding has no gradient")

    def test_servers_equal_this_process(self):
        command = [PROGRAM, "serve", self.model, "--listen", "127.0.0.1:0", "--threads", "1"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.addCleanup(server.stdout.close)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        address = server.stdout.readline().strip().rsplit(" on ", 1)[1]
        results = []
        for swarm in ("none", [address]):
            blocks = sepal.RemoteBlocks(self.model, swarm)
            tensors = self.tensors(blocks)
            output = blocks(tensors[0], MASK, prefix=tensors[1], deep_prompts=tensors[2], select="last")
            results.append([output, *torch.autograd.grad(output.square().sum(), tensors)])
        self.assertGreater(blocks.traffic[0], 0)
        for local, remote in zip(*results):
            torch.testing.assert_close(local, remote, rtol=1e-4, atol=1e-4)

    def test_padding_on_either_side_is_left_out(self):
        blocks = sepal.RemoteBlocks(self.model)
        hidden = torch.randn(1, 3, blocks.hidden_size)
        padding = torch.randn(1, 2, blocks.hidden_size)
        expected = blocks(hidden)
        right = blocks(torch.cat([hidden, padding], 1), torch.tensor([[1, 1, 1, 0, 0]]))
        left = blocks(torch.cat([padding, hidden], 1), torch.tensor([[0, 0, 1, 1, 1]]))
        torch.testing.assert_close(right[:, :3], expected)
        torch.testing.assert_close(left[:, 2:], expected)
        self.assertEqual(right[:, 3:].abs().sum(), 0)
        torch.testing.assert_close(blocks(hidden, select="last"), expected[:, -1])
        torch.testing.assert_close(blocks(hidden, select="mean"), expected.mean(1))

    def test_graph_serves_one_backward_pass_of_unchanged_tensors(self):
        blocks = sepal.RemoteBlocks(self.model)
        hidden = torch.randn(1, 3, blocks.hidden_size, requires_grad=True)
        output = blocks(hidden)
        output.sum().backward(retain_graph=True)
        with self.assertRaisesRegex(sepal.SepalError, "second time"):
            output.sum().backward()
        output = blocks(hidden)
        with torch.no_grad():
            hidden.add_(1)
        with self.assertRaisesRegex(RuntimeError, "modified by an inplace operation"):
            output.sum().backward()
        with torch.no_grad():
            self.assertFalse(blocks(hidden).requires_grad)

    def test_mistakes_are_named(self):
        with self.assertRaisesRegex(sepal.SepalError, "did you mean `servers`"):
            sepal.RemoteBlocks(self.model, {"use": "static", "with": {"server": ["h:1"]}})
        blocks = sepal.RemoteBlocks(self.model)
        with self.assertRaisesRegex(ValueError, "expected \\[rows, seq, "):
            blocks(torch.randn(3, blocks.hidden_size))
        with self.assertRaisesRegex(ValueError, "no token"):
            blocks(torch.randn(1, 2, blocks.hidden_size), torch.zeros(1, 2))
        with self.assertRaisesRegex(ValueError, "tunables has 'prefix'"):
            blocks(torch.randn(1, 2, blocks.hidden_size), tunables={"prefix": torch.randn(1, blocks.hidden_size)})
        blocks.close()
        with self.assertRaisesRegex(sepal.SepalError, "closed"):
            blocks(torch.randn(1, 2, blocks.hidden_size))

    def test_deep_prompts_need_a_prefix_of_their_length(self):
        for swarm in ("none", "embedded"):
            blocks = sepal.RemoteBlocks(self.model, swarm)
            hidden, prefix, deep = self.tensors(blocks)
            for select in ("all", "last", "mean"):
                with self.assertRaisesRegex(ValueError, "for a prefix of 3 positions, and there is no prefix"):
                    blocks(hidden, MASK, deep_prompts=deep, select=select)
                with self.assertRaisesRegex(ValueError, "for a prefix of 3 positions, and prefix has 2"):
                    blocks(hidden, MASK, prefix=prefix[:2], deep_prompts=deep, select=select)

    def test_ids_that_are_no_whole_numbers_are_refused(self):
        blocks = sepal.RemoteBlocks(self.model)
        with self.assertRaisesRegex(TypeError, "torch.float32; give whole numbers"):
            blocks.embed(torch.tensor([[1.5]]))
        with self.assertRaisesRegex(TypeError, "torch.bool"):
            blocks.embed(torch.tensor([[True]]))
        with self.assertRaisesRegex(TypeError, "input_ids is list"):
            blocks.embed([[1, 2]])
        with self.assertRaisesRegex(TypeError, "texts is NoneType"):
            blocks.tokenize(None)
        expected = blocks.embed(torch.tensor([[1, 2]]))
        torch.testing.assert_close(blocks.embed(torch.tensor([[1, 2]], dtype=torch.int32)), expected)

    def test_non_finite_hidden_states_are_named(self):
        blocks = sepal.RemoteBlocks(self.model, "embedded")
        hidden = torch.full((1, 2, blocks.hidden_size), float("nan"))
        with self.assertRaisesRegex(sepal.SepalError, "non-finite hidden states of tokens"):
            blocks(hidden)

    def test_petals_loop_learns(self):
        torch.manual_seed(2)
        names = {"ptune": 2, "deep_ptune": 3}
        for mode, n_parameters in names.items():
            model = AutoDistributedModelForSequenceClassification.from_pretrained(
                str(self.model), num_labels=2, pre_seq_len=4, tuning_mode=mode
            )
            self.assertEqual(len(list(model.parameters())), n_parameters)
            batch = model.tokenizer(self.rows["train"]["text"][:64])
            labels = torch.tensor(self.rows["train"]["label"][:64])
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
            losses = []
            for _ in range(40):
                loss = model(**batch, labels=labels).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())
            self.assertLess(losses[-1], 0.5 * losses[0], mode)

    def test_petals_padding_is_found_without_a_mask(self):
        model = AutoDistributedModelForSequenceClassification.from_pretrained(str(self.model))
        model.config.pad_token_id = 0
        ids = torch.tensor([[5, 0, 7, 0, 0], [5, 6, 7, 8, 9]])
        expected = model(ids, torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])).logits
        torch.testing.assert_close(model(ids).logits, expected)


if __name__ == "__main__":
    unittest.main()
