"""PEFT's step, run by run.py in an environment of its own: frozen blocks in this process, fp32, forward and backward.

Two ways: ``prefix_tuning`` (vectors in every block, nearest to deep-ptune) and ``prompt_tuning`` (in front of the first
block only, as ptune). Prints the figures of each step as JSON.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from shape import CONFIG, LENGTHS, VIRTUAL_TOKENS  # noqa: E402


def model(kind):
    """A frozen Llama under PEFT."""
    from peft import PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(**CONFIG, num_labels=2, use_cache=kind == "prefix_tuning")
    tuning = {"prefix_tuning": PrefixTuningConfig, "prompt_tuning": PromptTuningConfig}[kind]
    tuning = tuning(task_type=TaskType.SEQ_CLS, num_virtual_tokens=VIRTUAL_TOKENS)
    return get_peft_model(LlamaForSequenceClassification(config), tuning).train()


def measure(kind, rounds, padded):
    """Return seconds and CPU seconds of each step after a warm-up."""
    import torch

    torch.manual_seed(1)
    tuned = model(kind)
    mask = torch.tensor([[1] * length + [0] * (padded - length) for length in LENGTHS])
    ids = torch.randint(1, CONFIG["vocab_size"], mask.shape) * mask
    steps = []
    for _ in range(rounds + 1):
        begun, cpu = time.perf_counter(), time.process_time()
        tuned(input_ids=ids, attention_mask=mask).logits.sum().backward()
        steps.append({"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu, "bytes": 0})
    return steps[1:]


if __name__ == "__main__":
    rounds, padded = int(sys.argv[1]), int(sys.argv[2])
    os.environ["OMP_WAIT_POLICY"] = "passive"
    print(json.dumps({kind: measure(kind, rounds, padded) for kind in ["prefix_tuning", "prompt_tuning"]}))
