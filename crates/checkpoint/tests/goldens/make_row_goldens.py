"""Makes smollm2_rows.json beside it: rows of the model as transformers loads them from the GGUF file.

    python -m venv venv
    venv/bin/pip install torch==2.13.0 transformers==5.23.0 gguf==0.19.0 accelerate==1.15.0
    venv/bin/python make_row_goldens.py SmolLM2-135M-Instruct.Q4_1.gguf
"""

import importlib.metadata
import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM

# Queries and keys, whose rows a GGUF has in another order, and one of each other kind.
ROWS = {
    "model.layers.0.self_attn.q_proj.weight": [0, 1, 2, 31, 32, 33, 63, 64, 100, 575],
    "model.layers.29.self_attn.q_proj.weight": [1, 40, 300],
    "model.layers.0.self_attn.k_proj.weight": [0, 1, 32, 63, 64, 191],
    "model.layers.17.self_attn.k_proj.weight": [33, 130],
    "model.layers.0.self_attn.v_proj.weight": [0, 1, 100],
    "model.layers.5.self_attn.o_proj.weight": [7],
    "model.layers.5.mlp.gate_proj.weight": [1535],
    "model.layers.5.mlp.down_proj.weight": [3],
    "model.embed_tokens.weight": [0, 49151],
}
WIDTH = 6


def main():
    path = pathlib.Path(sys.argv[1])
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    weights = model.state_dict()
    rows = [
        {"name": name, "row": row, "values": weights[name][row, :WIDTH].tolist()}
        for name, rows in ROWS.items()
        for row in rows
    ]
    made_by = {package: importlib.metadata.version(package) for package in ("torch", "transformers", "gguf")}
    text = json.dumps({"made_by": made_by, "file": path.name, "rows": rows}, separators=(",", ":"))
    (pathlib.Path(__file__).parent / "smollm2_rows.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
