#!/usr/bin/env python3
"""Makes the folder peft/: adapters that PEFT itself saved for tiny models of this folder, and what they predict.

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 && python make_peft.py

peft/NAME/    adapter_config.json and adapter_model.safetensors as `save_pretrained` leaves them, with random numbers
peft.json     texts in the words of the tiny tokenizer (crates/testkit/src/tiny.rs); and for each adapter its model and, of
              each text, the probabilities of the labels, or the logit where there is one label

Each text goes through PEFT alone: with PROMPT_TUNING transformers pools rows of a padded batch at their padding.
"""

import json
import pathlib
import shutil

import torch
from peft import (
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import AutoModelForSequenceClassification

HERE = pathlib.Path(__file__).resolve().parent
WORDS = (
    "[UNK] awful boring clumsy dull empty flat grim hollow bright clever funny gentle lively moving sharp warm"
    " a the film plot cast scene was is and very with it"
).split()
TEXTS = ["the film was very dull", "a clever plot", "it was moving and warm with a sharp cast and a funny scene", "flat"]

PROMPTS = (PromptTuningConfig, {})
PREFIX = (PrefixTuningConfig, {})
PROJECTED = (PrefixTuningConfig, {"prefix_projection": True, "encoder_hidden_size": 16})
ENCODED = (PromptEncoderConfig, {"encoder_hidden_size": 16})

# Name, model, method, labels, number format of what is saved.
CASES = [
    ("llama-prompts", "llama-gqa", PROMPTS, 2, torch.float32),
    ("llama-encoded", "llama-gqa", ENCODED, 2, torch.float32),
    ("llama-prefix", "llama-gqa", PREFIX, 3, torch.float32),
    ("llama-projected", "llama-gqa", PROJECTED, 2, torch.float32),
    ("gpt2-prompts", "gpt2", PROMPTS, 1, torch.float32),
    ("gpt2-prefix", "gpt2", PREFIX, 2, torch.float32),
    ("bloom-prompts", "bloom", PROMPTS, 2, torch.bfloat16),
    ("bloom-prefix", "bloom", PREFIX, 2, torch.bfloat16),
    ("gemma3-prompts", "gemma3", PROMPTS, 2, torch.float16),
    ("gemma3-prefix", "gemma3", PREFIX, 2, torch.float16),
    ("qwen3-prefix", "qwen3", PREFIX, 2, torch.float32),
]


def save(folder, base, method, n_labels, dtype):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=n_labels)
    kind, options = method
    peft = get_peft_model(model, kind(task_type="SEQ_CLS", num_virtual_tokens=4, **options))
    for name, parameter in peft.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    peft.to(dtype).save_pretrained(folder)
    (folder / "README.md").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = f"owner/{base.name}"
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")


def predict(folder, base, n_labels):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=n_labels, dtype=torch.float32)
    peft = PeftModel.from_pretrained(model, folder).eval()
    found = []
    for text in TEXTS:
        ids = torch.tensor([[WORDS.index(word) for word in text.split()]])
        with torch.no_grad():
            logits = peft(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()
        found.append((logits if n_labels == 1 else logits.softmax(-1))[0].double().tolist())
    return found


def main():
    shutil.rmtree(HERE / "peft", ignore_errors=True)
    cases = []
    for seed, (name, model, method, n_labels, dtype) in enumerate(CASES):
        torch.manual_seed(seed)
        folder, base = HERE / "peft" / name, HERE / f"tiny-{model}"
        save(folder, base, method, n_labels, dtype)
        (folder / "adapter_model.safetensors").chmod(0o644)
        cases.append({"name": name, "model": model, "predicted": predict(folder, base, n_labels)})
    lines = ",\n".join(f"  {json.dumps(case)}" for case in cases)
    (HERE / "peft.json").write_text(f'{{\n "texts": {json.dumps(TEXTS)},\n "cases": [\n{lines}\n ]\n}}\n')


main()
