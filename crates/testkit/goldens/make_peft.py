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
    IA3Config,
    LoraConfig,
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



def lora(*targets, **options):
    return (LoraConfig, {"r": 3, "lora_alpha": 5, "target_modules": list(targets), **options})


def ia3(outputs, inputs):
    return (IA3Config, {"target_modules": outputs + inputs, "feedforward_modules": inputs})


GATED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
# The rank and alpha of one layer, by the end of its name and by its whole name, differ from those of the others.
PATTERNS = {
    "rank_pattern": {"layers.1.self_attn.q_proj": 2},
    "alpha_pattern": {"layers.1.self_attn.q_proj": 7, "^model.layers.2.self_attn.v_proj": 1},
}

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
    ("llama-lora", "llama-gqa", lora(*GATED), 3, torch.float32),
    ("llama-lora-patterns", "llama-gqa", lora("q_proj", "v_proj", **PATTERNS), 2, torch.float32),
    ("llama-lora-last", "llama-gqa", lora("o_proj", layers_to_transform=[1, 2], use_rslora=True), 2, torch.float32),
    ("bloom-lora", "bloom", lora(*FUSED), 2, torch.bfloat16),
    ("falcon-40b-lora", "falcon-40b", lora(*FUSED), 2, torch.float32),
    ("falcon-rw-lora", "falcon-rw", lora(*FUSED), 2, torch.float32),
    ("gemma3-lora", "gemma3", lora("q_proj", "up_proj"), 2, torch.float16),
    ("gpt-neox-lora", "gpt-neox", lora(*FUSED), 2, torch.float32),
    ("gpt2-lora", "gpt2", lora("c_attn", "c_proj", "c_fc", fan_in_fan_out=True), 1, torch.float32),
    ("mixtral-lora", "mixtral", lora("q_proj", "k_proj", "v_proj", "o_proj"), 2, torch.float32),
    ("opt-lora", "opt", lora("q_proj", "v_proj", "out_proj", "fc1", "fc2"), 2, torch.float32),
    ("phi3-lora", "phi3", lora("qkv_proj", "o_proj", "gate_up_proj", "down_proj"), 2, torch.float32),
    ("llama-ia3", "llama-gqa", ia3(["k_proj", "v_proj"], ["down_proj"]), 2, torch.float32),
    ("bloom-ia3", "bloom", ia3(["query_key_value"], ["dense_4h_to_h"]), 2, torch.float32),
    ("gpt2-ia3", "gpt2", ia3(["c_attn", "c_fc"], ["mlp.c_proj"]), 2, torch.float32),
    ("opt-ia3", "opt", ia3(["k_proj", "v_proj"], ["fc2"]), 2, torch.float32),
]


def save(folder, base, method, n_labels, dtype):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=n_labels)
    kind, options = method
    if kind not in (LoraConfig, IA3Config):
        options = {"num_virtual_tokens": 4, **options}
    peft = get_peft_model(model, kind(task_type="SEQ_CLS", **options))
    for name, parameter in peft.named_parameters():
        if parameter.requires_grad:
            # Products of two factors, and factors of layers, with an effect that does not drown the model's own.
            mean, std = (1.0, 0.5) if "ia3_l" in name else (0.0, 0.2 if "lora_" in name else 0.5)
            torch.nn.init.normal_(parameter, mean, std)
    peft.to(dtype).save_pretrained(folder)
    (folder / "README.md").unlink()
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = f"owner/{base.name}"
    # PEFT saves sets in any order.
    config.update({key: sorted(value) for key, value in config.items() if key.endswith("_modules") and value})
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
