"""Runs of soak.py: their model and rows, their pipeline files, and the results that must be equal."""

import contextlib
import json
import random
import shutil

from setup import ROOT

MODEL = ROOT / "crates" / "testkit" / "goldens" / "tiny-llama-gqa"
TUNINGS = [
    "{ use: deep-ptune, with: { pre_seq_len: 4 } }",
    "{ use: lora, with: { r: 4, alpha: 8 } }",
    "{ use: prefix-kv, with: { pre_seq_len: 4 } }",
    "{ use: ptune, with: { pre_seq_len: 4 } }",
]
WORDS = [["awful", "boring", "dull", "flat"], ["bright", "clever", "funny", "warm"],
         ["a", "the", "film", "plot", "cast", "was", "is", "very"]]
PIPELINE = """\
name: soak
model: {{ source: model }}
swarm: {{ use: static, with: {{ servers: {servers}, wait_ms: 120000 }} }}
task: {{ use: sequence-classification, with: {{ labels: [bad, good] }} }}
tuning: {tuning}
data: {{ train: train.csv, validation: validation.csv, text: sentence, label: label, max_length: 16 }}
loader: {{ batch_size: 16 }}
optimizer: {{ use: adamw, with: {{ lr: 3.0e-2, weight_decay: 0.01 }} }}
schedule: {{ use: linear, with: {{ warmup_steps: 5 }} }}
train: {{ epochs: 20, seed: {seed}, threads: 1, deterministic: true, accumulate: 2 }}
evaluate: {{ every: {{ steps: 10 }} }}
checkpoint: {{ every_steps: 1 }}
"""


def write_rows(path, n_rows, seed):
    """Write sentences whose last word decides the label."""
    draw = random.Random(seed)
    rows = []
    for row in range(n_rows):
        words = [draw.choice(WORDS[2]) for _ in range(draw.randrange(2, 9))]
        rows.append(f"{' '.join([*words, draw.choice(WORDS[row % 2])])},{row % 2}\n")
    path.write_text("sentence,label\n" + "".join(rows))


def prepare(folder):
    """Write the model with a tokenizer of whole words, and the rows."""
    shutil.copytree(MODEL, folder / "model")
    vocabulary = {word: index for index, word in enumerate(["[UNK]", *sum(WORDS, [])])}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
    (folder / "model" / "tokenizer.json").write_text(json.dumps(tokenizer))
    write_rows(folder / "train.csv", 128, 1)
    write_rows(folder / "validation.csv", 48, 2)


def write_pipeline(folder, index, addresses):
    path = folder / f"pipeline-{index}.yaml"
    path.write_text(PIPELINE.format(servers=json.dumps(addresses), tuning=TUNINGS[index], seed=index + 1))
    return path.name


def finished_run(folder):
    """Return the complete run below a folder, or None."""
    for manifest in folder.glob("*/manifest.json"):
        # A killed run may have none that can be read yet.
        with contextlib.suppress(ValueError, OSError):
            if json.loads(manifest.read_text())["status"]["state"] == "finished":
                return manifest.parent
    return None


def result(run):
    """Return everything of a run that must not depend on what happened to it."""
    records = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["kind"] in ("step", "evaluation"):
            records.append({key: value for key, value in record.items()
                            if key not in ("seconds", "bytes_up", "bytes_down")})
    manifest = json.loads((run / "manifest.json").read_text())
    parts = {key: manifest.get(key) for key in ("metrics", "best", "steps", "train_tokens", "adapter_digest", "status")}
    files = {name: (run / name).read_bytes() for name in ("adapter.safetensors", "predictions.parquet")}
    return parts | files | {"records": records}


def differences(found, expected):
    return [key for key in expected if found[key] != expected[key]]
