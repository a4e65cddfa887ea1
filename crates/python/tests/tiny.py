"""A tiny model, labelled sentences that it can learn, and a pipeline, for tests of the wheel."""

import json
import random
import shutil

BAD = "awful boring clumsy dull empty flat grim hollow".split()
GOOD = "bright clever funny gentle lively moving sharp warm".split()
BOTH = "a the film plot cast scene was is and very with it".split()


def model(folder, goldens):
    """Copy a tiny Llama into ``folder``, with a tokenizer of 29 words beside it."""
    shutil.copytree(goldens / "tiny-llama-gqa", folder)
    vocab = {word: index for index, word in enumerate(["[UNK]", *BAD, *GOOD, *BOTH])}
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]"},
    }))
    return folder


def sentences(rows, seed):
    """Return columns of sentences and labels; the last word determines the label."""
    chance = random.Random(seed)
    labels = [chance.randrange(2) for _ in range(rows)]
    texts = [" ".join([*chance.choices(BOTH, k=chance.randint(2, 8)), chance.choice((BAD, GOOD)[label])]) for label in labels]
    return {"text": texts, "label": labels}


def pipeline(model, output):
    """Return a pipeline without rows."""
    return {
        "name": "tiny",
        "model": {"source": str(model)},
        "task": {"use": "sequence-classification", "with": {"labels": ["bad", "good"]}},
        "tuning": {"use": "deep-ptune", "with": {"pre_seq_len": 4}},
        "data": {"max_length": 16},
        "loader": {"batch_size": 16},
        "optimizer": {"use": "adamw", "with": {"lr": 0.03, "weight_decay": 0.0}},
        "schedule": {"use": "linear", "with": {"warmup_steps": 5}},
        "train": {"epochs": 5, "seed": 7, "threads": 1},
        "output": {"folder": str(output)},
    }
