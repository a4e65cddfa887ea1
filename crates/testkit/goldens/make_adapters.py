#!/usr/bin/env python3
"""Makes the folder adapters/: numbers of adapters in frozen blocks with transformers and PEFT; VERSIONS.txt says which.

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2 && python make_adapters.py
    python make_adapters.py stablelm    # some of the models alone

adapters/NAME.safetensors      five rows (`ids`, `offsets`, `labels`, `score.weight`) through the model tiny-NAME with
                               adapters, see CASES: `CASE.TUNABLE` (values), `CASE.logits`, `CASE.loss` (summed over the
                               rows), `CASE.grad.TUNABLE`, `CASE.grad.score.weight`; `CASE.scaling` is PEFT's factor of
                               lora_B, which the values and the gradients do not include
adapters/replay.safetensors    twenty steps of AdamW on a LoRA of tiny-llama-gqa as PEFT initialises it: the rows as above,
                               `init.NAME`, `losses [steps]` (means over the rows), `final.NAME`
adapters/p_tuning.safetensors  encoders of P_TUNING by ENCODERS: `KIND.PARAMETER`, `KIND.prompts`, the gradient of the prompts
                               `KIND.upstream`, and the gradients that follow from it, `KIND.grad.PARAMETER`

A tunable is stacked by block: `lora_A:SITE [blocks, r, in]`, `lora_B:SITE [blocks, out, r]`, `scale_output:SITE
[blocks, out]`, `scale_input:SITE [blocks, in]` (IA3 of a feed-forward layer), `prefix_keys_values [blocks, n, 2 * kv_size]`.
SITE is the name of a linear layer within its block.

Each row goes through PEFT alone and unpadded. The numbers are those of fp32, and are compared with fp64.
"""

import copy
import pathlib
import re
import sys

import peft
import torch
import transformers
from make_goldens import LABELS, MODELS, SEEDS, VOCAB, blocks_of
from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptEncoder, PromptEncoderConfig, get_peft_model
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

HERE = pathlib.Path(__file__).resolve().parent
OUT = HERE / "adapters"
LENGTHS = [4, 1, 9, 3, 7]
PREFIX = 5
# One model of each way in which a family stores its layers; the others of tiny-* differ in positions only.
NAMES = [
    "llama-gqa", "llama-tied", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3",
    "phi3-longrope", "bloom", "falcon-7b", "falcon-40b", "falcon-11b", "falcon-rw", "gpt2", "gpt-neox",
    "gpt-neox-sequential", "opt", "stablelm", "stablelm-parallel", "olmo2", "smollm3",
    "granite", "qwen2-moe", "qwen3-moe", "glm4", "cohere", "olmo3", "gpt-oss", "phimoe", "stablelm-norms",
    "cohere-norms", "glm", "cohere2",
]
LORA = dict(r=4, lora_alpha=6)
# Options by the sites of the model, and the models.
CASES = {
    "lora": (lambda sites, last: LoraConfig(target_modules=pattern(sites), **LORA), NAMES),
    "ia3": (lambda sites, last: IA3Config(
        target_modules=pattern(sites), feedforward_modules=pattern([last]) if last else []), NAMES),
    "ia3-outputs": (lambda sites, last: IA3Config(
        target_modules=pattern([last]), feedforward_modules=[]), ["llama-gqa"]),
    "rslora": (lambda sites, last: LoraConfig(
        target_modules=pattern(["self_attn.q_proj", "self_attn.v_proj"]), use_rslora=True, **LORA), ["llama-gqa"]),
    "last-two": (lambda sites, last: LoraConfig(
        target_modules=["q_proj", "v_proj", "down_proj"], layers_to_transform=[1, 2], **LORA), ["llama-gqa"]),
    "prefix": (lambda sites, last: PrefixTuningConfig(num_virtual_tokens=PREFIX),
               ["llama-gqa", "qwen3", "gemma3", "bloom", "gpt2"]),
}
MLP_OUTPUTS = ("mlp.down_proj", "mlp.dense_4h_to_h", "mlp.c_proj", "fc2")
ENCODERS = dict(mlp="MLP", lstm="LSTM")


def pattern(sites):
    """Regular expression of these layers of all blocks."""
    return r".*\.(?:layers|h)\.\d+\.(?:" + "|".join(map(re.escape, sites)) + ")"


def read(name):
    """The model of a folder as a classifier, and the linear layers of its blocks but those of experts and their routers."""
    cls, _ = MODELS[name]
    attention = "sdpa" if name == "falcon-rw" else "eager"
    # Experts one by one: the grouped kernel has no fp64.
    options = dict(num_labels=LABELS, attn_implementation=attention, experts_implementation="eager")
    model = cls.from_pretrained(HERE / f"tiny-{name}", **options).eval()
    block = blocks_of(model.base_model)[0]
    sites = [site for site, layer in block.named_modules()
             if isinstance(layer, (torch.nn.Linear, Conv1D)) and not re.search("expert|router", site)]
    return model, sites


def batch(generator):
    """Rows, labels, and both as tensors to save."""
    lengths = torch.tensor(LENGTHS)
    ids = torch.randint(0, VOCAB, (int(lengths.sum()),), generator=generator)
    labels = torch.randint(0, LABELS, (len(LENGTHS),), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    return ids.split(LENGTHS), labels, dict(ids=ids, offsets=offsets, labels=labels)


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def randomise(model, generator):
    """Values with which no adapter is trivial: factors around 1, everything else around 0."""
    with torch.no_grad():
        for name, parameter in sorted(trained(model).items()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1.0 + 0.4 * noise if "ia3_l" in name else (0.5 if "embedding" in name else 0.2) * noise)


def named(tensors, n_blocks):
    """Tensors of PEFT's parameters by the names of tunables, stacked by block."""
    blocks, out = {}, {}
    for name, tensor in tensors.items():
        if name.endswith("score.modules_to_save.default.weight"):
            out["score.weight"] = tensor
        elif name == "prompt_encoder.default.embedding.weight":  # [n, (block, key or value, kv_size)]
            out["prefix_keys_values"] = tensor.reshape(tensor.shape[0], n_blocks, -1).transpose(0, 1)
        else:
            block, site, kind = re.search(r"\.(?:layers|h)\.(\d+)\.(.+)\.(\w+)\.default(?:\.weight)?$", name).groups()
            if kind == "ia3_l":
                kind = "scale_output" if tensor.shape[1] == 1 else "scale_input"
                tensor = tensor.flatten()
            blocks.setdefault(f"{kind}:{site}", {})[int(block)] = tensor
    return out | {name: torch.stack([of[block] for block in sorted(of)]) for name, of in blocks.items()}


def logits_of(model, rows):
    """[rows, labels], row by row. The mask excludes a prefix, as PEFT expects it."""
    return torch.cat([model(input_ids=row[None], attention_mask=torch.ones_like(row[None])).logits for row in rows])


def tune(model, rows, labels):
    """Logits, summed loss and the gradients of the parameters that train."""
    logits = logits_of(model, rows)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    parameters = trained(model)
    return logits, loss, dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()))))


def scaling(model):
    factors = {module.scaling["default"] for module in model.modules() if hasattr(module, "lora_A")}
    assert len(factors) <= 1, factors
    return {"scaling": torch.tensor(float(factors.pop()))} if factors else {}


def off(found, expected):
    """Largest difference relative to the largest entry."""
    return ((found.double() - expected.double()).abs().max() / expected.abs().max()).item()


def run_case(name, case, options, generator, rows, labels, score):
    """The tensors of a case, and the largest difference from fp64."""
    base, sites = read(name)
    with torch.no_grad():
        base.score.weight.copy_(score)
    plain = logits_of(base, rows)
    config = options(sites, next((site for site in sites if site in MLP_OUTPUTS), None))
    config.task_type, config.fan_in_fan_out = "SEQ_CLS", base.config.model_type == "gpt2"
    model = get_peft_model(base, config).eval()
    randomise(model, generator)
    values = trained(model)
    with torch.no_grad():
        next(value for key, value in values.items() if "score" in key).copy_(score)
    logits, loss, grads = tune(model, rows, labels)
    exact_logits, exact_loss, exact_grads = tune(copy.deepcopy(model).double(), rows, labels)
    pairs = [(logits, exact_logits), (loss, exact_loss), *((grads[key], exact_grads[key]) for key in grads)]
    far = max(off(found, exact) for found, exact in pairs)
    n_blocks = base.config.num_hidden_layers
    out = named(values, n_blocks)
    del out["score.weight"]
    out |= dict(logits=logits, loss=loss) | scaling(model)
    out |= {f"grad.{key}": grad for key, grad in named(grads, n_blocks).items()}
    assert (logits - plain).abs().max() > 0.1, f"{name}, {case}: the adapter changes nothing"
    for key, tensor in out.items():
        assert tensor.isfinite().all() and tensor.abs().max() > 1e-3, f"{name}, {case}: {key} is trivial"
    return out, far


def adapters(name):
    # The seed of its weights, and 100.
    generator = torch.Generator().manual_seed(100 + SEEDS.get(name, list(MODELS).index(name)))
    rows, labels, out = batch(generator)
    score = 0.2 * torch.randn(LABELS, MODELS[name][1].hidden_size, generator=generator)
    out["score.weight"] = score
    worst = {}
    for case, (options, names) in CASES.items():
        if name in names:
            tensors, worst[case] = run_case(name, case, options, generator, rows, labels, score)
            out |= {f"{case}.{key}": tensor for key, tensor in tensors.items()}
    assert max(worst.values()) < 2e-5, f"{name}: fp32 differs from fp64 by {worst}"
    save(out, f"{name}.safetensors")
    print(name, ", ".join(f"{case}: {far:.0e} from fp64" for case, far in worst.items()))


def replay():
    torch.manual_seed(17)
    generator = torch.Generator().manual_seed(17)
    rows, labels, out = batch(generator)
    base, _ = read("llama-gqa")
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], **LORA)).eval()
    parameters = trained(model)
    n_blocks = base.config.num_hidden_layers
    out |= {f"init.{name}": tensor.detach().clone() for name, tensor in named(parameters, n_blocks).items()}
    exact = copy.deepcopy(model).double()
    losses, exact_losses = steps(model, rows, labels), steps(exact, rows, labels)
    final = named(parameters, n_blocks)
    far = {name: off(tensor, named(trained(exact), n_blocks)[name]) for name, tensor in final.items()}
    assert losses[-1] < 0.5 * losses[0], f"it does not learn: {losses}"
    assert off(losses, exact_losses) < 1e-5 and max(far.values()) < 2e-5, f"fp32 differs from fp64: {far}"
    save(out | {"losses": losses} | scaling(model) | {f"final.{name}": tensor for name, tensor in final.items()},
         "replay.safetensors")
    print("replay", f"losses {losses[0]:.4f} to {losses[-1]:.4f},", f"{max(far.values()):.0e} from fp64")


def steps(model, rows, labels):
    """The losses of twenty steps, each before its update."""
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2, weight_decay=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(logits_of(model, rows), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def p_tuning():
    generator = torch.Generator().manual_seed(19)
    out = {}
    for kind, encoder in ENCODERS.items():
        module = PromptEncoder(PromptEncoderConfig(
            num_virtual_tokens=4, token_dim=32, num_transformer_submodules=1, encoder_reparameterization_type=encoder,
            encoder_hidden_size=8))
        randomise(module, generator)
        parameters = dict(module.named_parameters())
        prompts = module(torch.arange(4)[None])[0]
        upstream = torch.randn(prompts.shape, generator=generator)
        grads = torch.autograd.grad(prompts, list(parameters.values()), upstream)
        out |= {f"{kind}.{name}": parameter for name, parameter in parameters.items()}
        out |= {f"{kind}.prompts": prompts, f"{kind}.upstream": upstream}
        out |= {f"{kind}.grad.{name}": grad for name, grad in zip(parameters, grads)}
    save(out, "p_tuning.safetensors")


def save(tensors, file):
    save_file({key: tensor.detach().contiguous().clone() for key, tensor in tensors.items()}, OUT / file)
    (OUT / file).chmod(0o644)


def main():
    names = sys.argv[1:]
    if unknown := sorted(set(names) - set(NAMES)):
        sys.exit(f"NAMES has no {', '.join(unknown)}")
    written = (HERE / "VERSIONS.txt").read_text()
    for module in (torch, transformers, peft):
        line = f"{module.__name__} {module.__version__}"
        if line.split("+")[0] not in written:
            sys.exit(f"this is {line}, but the other goldens were made with what VERSIONS.txt says")
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    OUT.mkdir(exist_ok=True)
    for name in names or NAMES:
        adapters(name)
    if not names:
        replay()
        p_tuning()


if __name__ == "__main__":
    main()
