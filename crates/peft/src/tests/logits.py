"""Logits of rows of token ids by PEFT folders, and by merged folders.

Reads a JSON list of {"folder", "rows", "batch", "merged"} and writes a JSON list: for each either all logits, row after
row, or the text of the error. With "batch" the rows are one batch, padded on the right with the token 0. With "merged"
transformers loads the folder, and no tensor may be missing or superfluous.
"""

import json
import sys

import torch
from peft import AutoPeftModelForSequenceClassification
from transformers import AutoModelForSequenceClassification


def load(folder, merged):
    if not merged:
        return AutoPeftModelForSequenceClassification.from_pretrained(
            folder, num_labels=2, pad_token_id=0, dtype=torch.float32
        )
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, pad_token_id=0, dtype=torch.float32, output_loading_info=True
    )
    wrong = {kind: sorted(names) for kind, names in info.items() if names}
    if wrong:
        raise ValueError(f"the merged folder does not fit its class: {wrong}")
    return model


def logits(folder, rows, batch, merged):
    model = load(folder, merged).eval()
    groups = [rows] if batch else [[row] for row in rows]
    found = []
    for group in groups:
        longest = max(map(len, group))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in group])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in group])
        found += model(input_ids=ids, attention_mask=mask).logits.double().flatten().tolist()
    return found


def main():
    answers = []
    for case in json.load(sys.stdin):
        try:
            with torch.no_grad():
                answers.append(logits(case["folder"], case["rows"], case["batch"], case["merged"]))
        except Exception as error:
            answers.append(f"{type(error).__name__}: {error}")
    json.dump(answers, sys.stdout)


main()
