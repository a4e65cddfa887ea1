#!/usr/bin/env python3
"""Makes compute.golden.safetensors: tiny models in 16 bits with transformers. The file's metadata has the versions.

    pip install torch==2.13.0 transformers==5.23.0 safetensors && python make_compute.py

Three rows (`ids`, `offsets`) behind three prompts (`prompts`) go through each model tiny-NAME, each row alone and without
padding, with eager attention. The loss of a row is the last token's hidden state times a row of `direction`. Models of
another size than 48 take the first columns of `prompts` and `direction`. Models of SEEDS have rows, prompts and directions of
their own: `NAME.ids`, `NAME.prompts` and `NAME.direction`. Of a multimodal model only the text model is computed. Experts in
MXFP4 are dequantized, which is exact in every format here.

NAME.hidden   hidden states of the last tokens after the last norm, [rows, hidden], computed in fp64
NAME.grad     gradients of the prompts, [rows, prompts, hidden], computed in fp64
NAME.errors   errors of transformers against both, [2, 2]: in bf16 and in f16, of the hidden states and of the gradients;
              each is the norm of all differences over the norm of the reference

In 16 bits, all weights, embeddings and prompts are rounded. Where transformers computes in fp32 whatever the model's
dtype is (norms, softmax, rotary embeddings), the reference does so, too: its own error is about 1e-6, below a hundredth of
those in 16 bits. The norm of all differences is compared, because the largest one is a matter of luck: two ways of
computing with the same precision differ by a factor of up to 1.7 in it.
"""

import pathlib

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

HERE = pathlib.Path(__file__).resolve().parent
VOCAB, PROMPTS, WIDTH = 64, 3, 48
LENGTHS = [6, 1, 9]
# Of the seeds below 200 the one whose routers of experts have the widest gap between a chosen and a next expert, so that
# roundings choose no other expert, and those for models that came later. The gap of a SparseMixer (phimoe) is also that of
# the first and the second expert, and of each score and the distance from which it is left out of a softmax.
SEED = 143
SEEDS = {"gpt-oss": 182, "gpt-oss-mxfp4": 169, "phimoe": 24}


def read(name, dtype):
    attention = "sdpa" if name == "falcon-rw" else "eager"  # see make_goldens.py
    # Experts one by one: the grouped kernel has no fp64.
    options = dict(attn_implementation=attention, experts_implementation="eager", dtype=dtype)
    auto_class = AutoModelForImageTextToText if name.endswith("-vision") else AutoModelForCausalLM
    base = auto_class.from_pretrained(HERE / f"tiny-{name}", **options).eval().requires_grad_(False).base_model
    return getattr(base, "language_model", base)


def inputs_of(seed):
    """Ids, prompts and directions. The numbers are rounded to fp32, as they are stored."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCAB, (sum(LENGTHS),), generator=generator)
    prompts = 0.5 * torch.randn(PROMPTS, WIDTH, generator=generator)
    return dict(ids=ids, prompts=prompts, direction=torch.randn(len(LENGTHS), WIDTH, generator=generator))


def run(name, dtype, ids, prompts, direction):
    """Hidden states of the last tokens, and gradients of the prompts, both in fp64."""
    base = read(name, dtype)
    hidden_size = base.config.hidden_size
    hidden, grads = [], []
    for row, along in zip(ids.split(LENGTHS), direction[:, :hidden_size].double()):
        leaf = prompts[:, :hidden_size].to(dtype).requires_grad_(True)
        inputs = torch.cat([leaf, base.get_input_embeddings()(row)])[None]
        last = base(inputs_embeds=inputs, use_cache=False).last_hidden_state[0, -1]
        (last.double() * along).sum().backward()
        hidden.append(last.detach().double())
        grads.append(leaf.grad.double())
    return torch.stack(hidden), torch.stack(grads)


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    out = inputs_of(SEED) | dict(offsets=torch.tensor([0, *LENGTHS]).cumsum(0))
    names = sorted(path.parent.name.removeprefix("tiny-") for path in HERE.glob("tiny-*/config.json"))
    for name in names:
        inputs = inputs_of(SEEDS.get(name, SEED))
        expected = run(name, torch.float64, **inputs)
        errors = [
            [error(found, reference) for found, reference in zip(run(name, dtype, **inputs), expected)]
            for dtype in (torch.bfloat16, torch.float16)
        ]
        assert all(0.0 < number < 0.1 for both in errors for number in both), f"{name}: {errors}"
        print(f"{name:20}", *(f"{number:.1e}" for both in errors for number in both))
        hidden, grad = (tensor.float() for tensor in expected)
        if name in SEEDS:
            out |= {f"{name}.{key}": tensor for key, tensor in inputs.items()}
        out |= {f"{name}.hidden": hidden, f"{name}.grad": grad, f"{name}.errors": torch.tensor(errors)}
    versions = dict(torch=torch.__version__, transformers=transformers.__version__)
    path = HERE / "compute.golden.safetensors"
    save_file({key: tensor.contiguous() for key, tensor in out.items()}, path, metadata=versions)
    path.chmod(0o644)


if __name__ == "__main__":
    main()
