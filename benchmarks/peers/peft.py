#!/usr/bin/env python3
"""Time the usual step of ``just bench`` with transformers and PEFT.

The step: 32 sentences of 3 to 40 tokens, padded to 64, 16 virtual tokens, a Llama of SmolLM2-135M's shape with
random weights, fp32, on the CPU; forward and backward. Two ways of PEFT: ``prefix_tuning`` (vectors in every
block, nearest to deep-ptune) and ``prompt_tuning`` (in front of the first block only, as ptune).

Prints the median seconds of each as JSON. Both packages live in a virtual environment of their own in the
user's cache, made when it is first needed. The package index brings torch with its CUDA packages, some
gigabytes; where it can be reached, the index of CPU wheels saves them:

    PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu just bench-peers
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = ["torch==2.13.0", "transformers==5.23.0", "peft==0.21.2"]
# As in benches/speed/step.rs.
LENGTHS = [12, 7, 3, 26, 8, 19, 13, 5, 40, 11, 7, 21, 3, 16, 12, 31,
           8, 3, 23, 10, 12, 7, 26, 5, 18, 12, 3, 25, 11, 6, 16, 7]
PADDED = 64
VIRTUAL_TOKENS = 16


def environment():
    """Return the Python of the virtual environment, which is created if it lacks these packages."""
    base = os.environ.get("SEPAL_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sepal"
    folder = Path(base).absolute() / "peers"
    python, made = folder / "bin/python", folder / "packages"
    if not made.is_file() or made.read_text().split() != PACKAGES:
        print(f"peers: installing {', '.join(PACKAGES)} into {folder}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES]
        if subprocess.run(install).returncode != 0:
            sys.exit("peers: error: pip could not install the packages; check the package index and the network")
        # Written last: a folder without it is created again.
        made.write_text("\n".join(PACKAGES) + "\n")
    return python


def model(kind):
    """A frozen Llama under PEFT."""
    from peft import PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
    from transformers import LlamaConfig, LlamaForSequenceClassification

    config = LlamaConfig(
        hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, intermediate_size=1536,
        vocab_size=49152, max_position_embeddings=8192, pad_token_id=0, num_labels=2, use_cache=kind == "prefix_tuning",
    )
    tuning = {"prefix_tuning": PrefixTuningConfig, "prompt_tuning": PromptTuningConfig}[kind]
    tuning = tuning(task_type=TaskType.SEQ_CLS, num_virtual_tokens=VIRTUAL_TOKENS)
    return get_peft_model(LlamaForSequenceClassification(config), tuning).train()


def measure(kind, rounds):
    """Return the median seconds of a step; the first is a warm-up."""
    import torch

    torch.manual_seed(1)
    tuned = model(kind)
    mask = torch.tensor([[1] * length + [0] * (PADDED - length) for length in LENGTHS])
    ids = torch.randint(1, 49152, mask.shape) * mask
    times = []
    for _ in range(rounds + 1):
        begun = time.perf_counter()
        tuned(input_ids=ids, attention_mask=mask).logits.sum().backward()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="steps that are counted (5)")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.inside:
        # -I: keeps this file from shadowing the package of its name.
        command = [environment(), "-I", __file__, "--inside", "--rounds", str(args.rounds)]
        sys.exit(subprocess.run(command).returncode)
    seconds = {kind: measure(kind, args.rounds) for kind in ["prefix_tuning", "prompt_tuning"]}
    print(json.dumps({
        "packages": PACKAGES, "cores": os.cpu_count(), "rounds": args.rounds, "rows": len(LENGTHS),
        "tokens": sum(LENGTHS), "padded_to": PADDED, "virtual_tokens": VIRTUAL_TOKENS, "seconds": seconds,
    }, indent=2))


if __name__ == "__main__":
    main()
