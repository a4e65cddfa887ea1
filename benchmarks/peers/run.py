#!/usr/bin/env python3
"""Measures the usual step of ``just bench`` with PEFT, Petals, BloomBee and Sepal; writes docs/peers.json and docs/peers.md.

The step: 32 sentences of 3 to 40 tokens, 16 virtual tokens, a Llama of SmolLM2-135M's shape, fp32, on the CPU; forward and
backward. The others get the rows padded to 64 tokens (``--padded``). Each peer has a virtual environment of its own in
the user's cache, made when it is first needed (some gigabytes). A peer that cannot be installed or run is reported with
the last line of its error.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import sepal_step
from shape import LENGTHS, VIRTUAL_TOKENS

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import environment  # noqa: E402

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
PEFT = ["torch==2.13.0", "transformers==5.23.0", "peft==0.21.2"]
# hivemind 1.1.10.post2, which Petals names, has no wheel and its source does not build; 1.1.9 is the nearest that installs.
# So all packages are named, and pip resolves nothing.
PETALS = """petals==2.2.0.post1 hivemind==1.1.9 torch==2.13.0 transformers==4.34.1 tokenizers==0.14.1 accelerate==0.22.0
peft==0.5.0 bitsandbytes==0.41.1 tensor-parallel==1.0.23 pydantic==1.10.27 huggingface-hub==0.17.3 multiaddr==0.0.9
pymultihash==0.8.2 numpy==1.26.4 safetensors==0.4.5 scipy==1.17.1 grpcio==1.85.3 grpcio-tools==1.85.1 protobuf==7.36.2
humanfriendly==10.0 async-timeout==5.0.1 base58==2.1.1 cffi==2.1.1 ConfigArgParse==1.9.0 cpufeature==0.2.1
cryptography==50.0.2 Dijkstar==2.6.0 filelock fsspec idna Jinja2 MarkupSafe morphys==1.0 mpmath msgpack==1.2.4
netaddr==1.3.0 networkx packaging prefetch_generator==1.0.3 psutil==7.2.2 PyYAML regex requests certifi urllib3
charset-normalizer sentencepiece==0.2.3 setuptools six sortedcontainers==2.4.0 speedtest-cli==2.1.3 sympy tqdm
typing_extensions uvloop==0.23.0 varint==1.0.2 pycparser""".split()
# BloomBee imports with this hivemind only: names that it reads from 1.1.12 are not there.
BLOOMBEE = """accelerate==1.15.0 annotated-types==0.8.0 async-timeout==5.0.1 base58==2.1.1 bitsandbytes==0.41.1 blake3==1.0.11
bloombee==0.1.3 certifi==2026.10.19.post1 cffi==2.1.1 charset-normalizer==3.5.3 ConfigArgParse==1.9.0
cpufeature==0.2.1 cryptography==50.0.2 Dijkstar==2.6.0 filelock==4.3.1 fsspec==2026.9.0 grpcio==1.85.3
grpcio-tools==1.85.1 hf-xet==1.8.0 hivemind==1.1.9 huggingface_hub==0.36.2 humanfriendly==10.0 idna==3.20
Jinja2==3.1.6 MarkupSafe==3.0.4 mmh3==5.3.1 morphys==1.0 msgpack==1.2.4 multiaddr==0.0.9 netaddr==1.3.0 numpy==1.26.4
packaging==26.4 peft==0.8.2 prefetch_generator==1.0.3 protobuf==7.36.2 psutil==7.2.2 pycparser==3.12 pydantic==1.10.27
pydantic_core==2.50.5 pymultihash==0.8.2 PyYAML==6.0.4 regex==2026.11.19 requests==2.34.2 safetensors==0.8.0
scipy==1.17.1 sentencepiece==0.2.3 six==1.17.0 sortedcontainers==2.4.0 speedtest-cli==2.1.3 tensor-parallel==1.0.23
tokenizers==0.19.1 tqdm==4.70.1 transformers==4.43.1 typing-inspection==0.4.5 urllib3==2.8.0 uvloop==0.23.0
varint==1.0.2 torch==2.13.0 mpmath networkx sympy typing_extensions setuptools""".split()
# Packages with the CUDA libraries that torch loads even on a CPU.
CUDA = """nvidia-cublas nvidia-cuda-cupti nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile
nvidia-curand nvidia-cusolver nvidia-cusparse nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13
nvidia-nvtx""".split()
PEERS = ["sepal", "petals", "bloombee", "peft"]
ABSENT = [
    ("vLLM, LLaMA-Factory", "not tried"),
]


def inside(command):
    """Run a script in a peer's environment and return the JSON of its last line."""
    surroundings = {**os.environ, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)
    if done.returncode != 0:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def peft(args):
    python = args.peft_python or environment.python("peers", PEFT)
    return inside([python, "-I", str(HERE / "peft_step.py"), str(args.rounds), str(args.padded)])


def swarm(package, python, args, folder):
    """Measure Petals or a program with its interfaces."""
    packages = {"petals": PETALS, "bloombee": BLOOMBEE}[package]
    python = python or environment.python(package, [*packages, *CUDA], resolve=False)
    folder.mkdir(parents=True, exist_ok=True)
    script = str(HERE / "swarm_step.py")
    with open(folder / "server.log", "w", encoding="utf-8") as log:
        server = subprocess.Popen([python, "-I", script, "server", package, str(folder)], stdout=log, stderr=log, start_new_session=True,
                                  env={**os.environ, "OMP_WAIT_POLICY": "passive", "HF_HUB_OFFLINE": "1"})
        try:
            address = server_address(server, folder / "server.log")
            return inside([python, "-I", script, "client", package, str(folder), address, str(args.rounds), str(args.padded)])
        finally:
            # The server's own processes are in its group.
            os.killpg(server.pid, 15)
            server.wait()


def server_address(server, log):
    """Return the address of the server, once it has started."""
    for _ in range(600):
        text = log.read_text(encoding="utf-8")
        address = re.search(r"/ip4/127\.0\.0\.1/tcp/\d+/p2p/\w+", text)
        if "Started" in text and address:
            return address.group()
        if server.poll() is not None:
            raise RuntimeError((text.strip().splitlines() or ["no message"])[-1])
        time.sleep(0.5)
    raise RuntimeError("the server did not start in five minutes")


def summary(steps):
    return {name: statistics.median(step[name] for step in steps) for name in ["seconds", "cpu_seconds", "bytes"]}


TITLES = {
    "sepal": "Sepal, deep prompts, a server process", "petals": "Petals 2.2.0.post1, deep prompts, a server process",
    "bloombee": "BloomBee 0.1.3, deep prompts, a server process",
    "prefix_tuning": "PEFT, prefix tuning, this process", "prompt_tuning": "PEFT, prompt tuning, this process",
}


def markdown(document):
    lines = [
        "# Peers", "",
        "`just bench-peers` measures one step with each program and writes this page ([peers.json](peers.json)). The step is "
        f"the usual one of `just bench`: 32 sentences with {sum(LENGTHS)} tokens, {VIRTUAL_TOKENS} virtual tokens, a Llama of "
        "SmolLM2-135M's shape (30 blocks of 576), fp32, forward and backward, on a CPU. The others compute rows padded to "
        f"{document['padded_to']} tokens; Sepal packs them. Figures are medians of {document['rounds']} steps after a first one. "
        "CPU seconds are those of client and server together, bytes those in both directions. The machine did other work at "
        "the same time, so compare CPU seconds rather than seconds.", "",
        "| | seconds | CPU seconds | bytes |", "| --- | ---: | ---: | ---: |",
    ]
    for name, found in document["steps"].items():
        size = f"{found['bytes'] / 1e6:.1f} MB" if found["bytes"] else "none"
        lines.append(f"| {TITLES[name]} | {found['seconds']:.1f} | {found['cpu_seconds']:.1f} | {size} |")
    lines += [
        "", "BloomBee, a successor, has the same interfaces. Petals computes the forward pass of every block again for the backward pass, sends deep prompts for each row, and "
        "hidden states of padding. Its own versions of packages do not install any more: hivemind 1.1.10.post2 has no wheel "
        "and its source does not build with today's setuptools. These figures are with hivemind 1.1.9, torch 2.13 and two "
        "names of torch put back (`benchmarks/peers/swarm_step.py`). Bytes are those of the loopback interface.", "",
        "## Not run", "",
    ]
    lines += [f"- {name}: {reason}." for name, reason in document["not_run"]]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="steps that are counted (5)")
    parser.add_argument("--padded", type=int, default=64, help="tokens to which the others pad the rows (64)")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--program", default=str(ROOT / "scripts" / "sepal"))
    parser.add_argument("--peft-python", help="Python with PEFT; a new environment if not given")
    parser.add_argument("--petals-python", help="Python with Petals; a new environment if not given")
    parser.add_argument("--bloombee-python", help="Python with BloomBee; a new environment if not given")
    args = parser.parse_args()
    base = os.environ.get("SEPAL_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sepal"
    folder = Path(base).absolute() / "peers"
    page = ROOT / "docs/peers.json"
    # With --only, the figures of the others stay.
    steps = json.loads(page.read_text())["steps"] if page.is_file() and len(args.only) < len(PEERS) else {}
    missing = list(ABSENT)
    measures = {"sepal": lambda: {"sepal": sepal_step.measure(args.program, folder / "sepal", args.rounds)},
                "petals": lambda: swarm("petals", args.petals_python, args, folder / "petals"),
                "bloombee": lambda: swarm("bloombee", args.bloombee_python, args, folder / "petals"),
                "peft": lambda: peft(args)}
    for name in args.only:
        print(f"peers: {name}", file=sys.stderr, flush=True)
        try:
            steps.update({kind: summary(found) for kind, found in measures[name]().items()})
        except RuntimeError as problem:
            print(f"peers: {name}: {problem}", file=sys.stderr, flush=True)
            missing.insert(0, (name, str(problem)))
    steps = {name: steps[name] for name in TITLES if name in steps}
    document = {"rounds": args.rounds, "rows": len(LENGTHS), "tokens": sum(LENGTHS), "padded_to": args.padded,
                "virtual_tokens": VIRTUAL_TOKENS, "cores": os.cpu_count(), "packages": {"peft": PEFT, "petals": PETALS, "bloombee": BLOOMBEE},
                "steps": steps, "not_run": missing}
    page.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    (ROOT / "docs/peers.md").write_text(markdown(document), encoding="utf-8")
    print(json.dumps(steps, indent=2))


if __name__ == "__main__":
    main()
