"""The step of Petals or BloomBee, run by run.py in an environment of its own: one server on loopback, and a client.

    swarm_step.py server PACKAGE FOLDER      # writes FOLDER/model, then serves all its blocks until it is ended
    swarm_step.py client PACKAGE FOLDER ADDRESS ROUNDS PADDED

The client trains 16 deep prompts (``tuning_mode="deep_ptune"``). Bytes are those of the loopback interface, processor
time is that of all processes of this environment. Both need a machine that does nothing else on loopback.
"""

import importlib
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from shape import CONFIG, LENGTHS, VIRTUAL_TOKENS  # noqa: E402

PORT, PREFIX = 31337, "peers-llama"


def restore_moved_names():
    """Put names back where hivemind 1.1.9 imports them from; torch 2.3 and later have them elsewhere."""
    import torch.amp.grad_scaler as scaler
    import torch.cuda.amp.grad_scaler as old_scaler
    import torch.optim.lr_scheduler as schedules

    for name in ["OptState", "_refresh_per_optimizer_state"]:
        setattr(old_scaler, name, getattr(scaler, name))
    schedules._LRScheduler = schedules.LRScheduler


def serve(package, folder):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if not (folder / "model/config.json").is_file():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**CONFIG)).save_pretrained(folder / "model", safe_serialization=False)
    sys.argv = [
        "run_server", str(folder / "model"), "--new_swarm", "--dht_prefix", PREFIX, "--device", "cpu", "--torch_dtype",
        "float32", "--num_blocks", str(CONFIG["num_hidden_layers"]), "--throughput", "1", "--quant_type", "none",
        "--host_maddrs", f"/ip4/127.0.0.1/tcp/{PORT}", "--no_auto_relay", "--skip_reachability_check",
        "--attn_cache_tokens", "4096",
    ]
    importlib.import_module(f"{package}.cli.run_server").main()


def processor_seconds():
    """Processor time of the processes of this environment: client, server, their children and daemons."""
    import psutil

    total = 0
    for process in psutil.process_iter(["cmdline"]):
        if any(sys.prefix in part for part in process.info["cmdline"] or []):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def loopback_bytes():
    for line in Path("/proc/net/dev").read_text().splitlines():
        if line.strip().startswith("lo:"):
            return int(line.split(":")[1].split()[0])
    return 0


def step(package, folder, address, rounds, padded):
    import torch

    importlib.import_module(package)
    Model = importlib.import_module(f"{package}.models.llama").DistributedLlamaForSequenceClassification
    torch.manual_seed(1)
    model = Model.from_pretrained(str(folder / "model"), initial_peers=[address], dht_prefix=PREFIX, num_labels=2,
                                  tuning_mode="deep_ptune", pre_seq_len=VIRTUAL_TOKENS, torch_dtype=torch.float32)
    mask = torch.tensor([[1] * length + [0] * (padded - length) for length in LENGTHS])
    ids = torch.randint(1, CONFIG["vocab_size"], mask.shape) * mask
    steps = []
    for _ in range(rounds + 1):
        begun, cpu, sent = time.perf_counter(), processor_seconds(), loopback_bytes()
        # The blocks take no mask: padding is on the right, and the head reads the last token of each row.
        model(input_ids=ids).logits.sum().backward()
        steps.append({"seconds": time.perf_counter() - begun, "cpu_seconds": processor_seconds() - cpu,
                      "bytes": loopback_bytes() - sent})
    return steps[1:]


if __name__ == "__main__":
    restore_moved_names()
    package, place = sys.argv[2], Path(sys.argv[3])
    if sys.argv[1] == "server":
        serve(package, place)
    else:
        print(json.dumps({package: step(package, place, sys.argv[4], int(sys.argv[5]), int(sys.argv[6]))}))
