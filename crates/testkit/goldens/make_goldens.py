#!/usr/bin/env python3
"""Makes the golden files of this folder with PyTorch and transformers; VERSIONS.txt says which.

    pip install torch==2.13.0 transformers safetensors && python make_goldens.py

tiny-NAME/                    a random model in the Hugging Face layout: config.json, model.safetensors (no score head)
tiny-NAME.golden.safetensors  inputs, logits, losses and gradients of soft-prompt tuning on it, in fp32
rope.json                     rotary frequencies of every scaling variant
adamw.safetensors             ten steps of AdamW with weight decay, clipping and a linear schedule
schedules.json                learning-rate factors of the schedules with warm-up

The reference is the plain way: rows padded to the right, prompts concatenated by hand in front of each row, deep
prompts added before every block by a forward pre-hook, pooling by the row's length.
"""

import json
import pathlib
import platform

import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    BloomConfig,
    BloomForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

HERE = pathlib.Path(__file__).parent
VOCAB, PREFIX, LABELS = 64, 5, 3
LENGTHS = [4, 1, 9, 3, 9, 1, 6]


def llama(**changes):
    shape = dict(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=56, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, rms_norm_eps=1e-5, num_labels=LABELS,
        tie_word_embeddings=False, pad_token_id=None, bos_token_id=1, eos_token_id=2,
    )
    return {**shape, **changes}


LLAMA3 = dict(
    rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
)
MODELS = {
    "llama-gqa": (LlamaForSequenceClassification, LlamaConfig(**llama())),
    "llama-tied": (
        LlamaForSequenceClassification,
        LlamaConfig(**llama(
            num_hidden_layers=2, tie_word_embeddings=True, head_dim=12,
            rope_parameters=dict(rope_theta=1000.0, **LLAMA3),
        )),
    ),
    "qwen2": (Qwen2ForSequenceClassification, Qwen2Config(**llama(num_hidden_layers=2, rms_norm_eps=1e-6))),
    "bloom": (BloomForSequenceClassification, BloomConfig(
        vocab_size=VOCAB, hidden_size=32, n_layer=3, n_head=4, num_labels=LABELS, pad_token_id=None)),
    "bloom-six-heads": (BloomForSequenceClassification, BloomConfig(
        vocab_size=VOCAB, hidden_size=48, n_layer=2, n_head=6, num_labels=LABELS, pad_token_id=None)),
}


def randomise(model, generator):
    """Weights that leave nothing trivial: no zero bias, no norm of ones."""
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            noise = torch.randn(tensor.shape, generator=generator)
            is_norm = ("norm" in name or "ln_f" in name) and name.endswith("weight")
            std = 0.5 if "embed" in name and not is_norm else 0.2
            tensor.copy_(1.0 + 0.2 * noise if is_norm else std * noise)


def save_model(name, model, generator):
    folder = HERE / f"tiny-{name}"
    folder.mkdir(exist_ok=True)
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items() if not key.startswith("score.")}
    if not model.config.tie_word_embeddings:
        state["lm_head.weight"] = 0.2 * torch.randn(VOCAB, model.config.hidden_size, generator=generator)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads(model.config.to_json_string(use_diff=True))
    for key in ("id2label", "label2id", "transformers_version"):
        config.pop(key, None)
    config["architectures"] = [type(model).__name__.replace("ForSequenceClassification", "ForCausalLM")]
    config["tie_word_embeddings"] = model.config.tie_word_embeddings
    if name == "llama-tied":  # the form of files from before transformers 5
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        config["rope_scaling"] = rope
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def logits_of(model, rows, prompts, deep_prompts, lengths):
    """[rows, labels] of the padded batch."""
    base = model.get_decoder() if hasattr(model, "model") else model.transformer
    blocks = base.layers if hasattr(base, "layers") else base.h
    hooks = []
    for block, added in zip(blocks, deep_prompts if deep_prompts is not None else []):
        def hook(_module, args, kwargs, added=added):
            hidden = args[0] if args else kwargs["hidden_states"]
            hidden = torch.cat([hidden[:, :PREFIX] + added, hidden[:, PREFIX:]], dim=1)
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        hooks.append(block.register_forward_pre_hook(hook, with_kwargs=True))
    n_rows = rows.shape[0]
    embedded = base.get_input_embeddings()(rows)
    inputs = torch.cat([prompts.expand(n_rows, -1, -1), embedded], dim=1)
    mask = (torch.arange(inputs.shape[1])[None] < PREFIX + lengths[:, None]).long()
    hidden = base(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state
    for hook in hooks:
        hook.remove()
    return model.score(hidden[torch.arange(n_rows), PREFIX + lengths - 1])


def check_against_the_whole_class(model, rows, prompts, lengths, logits):
    """The class's own pooling on one unpadded row at a time gives the same."""
    embed = model.get_input_embeddings()
    for row, length in enumerate(lengths.tolist()):
        inputs = torch.cat([prompts, embed(rows[row, :length])])[None]
        one = model(inputs_embeds=inputs, use_cache=False).logits[0]
        torch.testing.assert_close(one, logits[row], rtol=1e-4, atol=1e-5)


def golden(name, seed, cls, config):
    generator = torch.Generator().manual_seed(seed)
    config._attn_implementation = "eager"
    model = cls(config).eval()
    randomise(model, generator)
    save_model(name, model, generator)
    model.requires_grad_(False)
    model.score.weight.requires_grad_(True)

    lengths = torch.tensor(LENGTHS)
    ids = torch.randint(0, VOCAB, (int(lengths.sum()),), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    rows = torch.zeros(len(LENGTHS), max(LENGTHS), dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        rows[row, :length] = ids[offsets[row]:offsets[row + 1]]
    labels = torch.randint(0, LABELS, (len(LENGTHS),), generator=generator)
    n_blocks, hidden = config.num_hidden_layers, config.hidden_size
    prompts = (0.5 * torch.randn(PREFIX, hidden, generator=generator)).requires_grad_(True)
    deep_prompts = (0.2 * torch.randn(n_blocks, PREFIX, hidden, generator=generator)).requires_grad_(True)

    out = {
        "ids": ids, "offsets": offsets, "labels": labels, "prompts": prompts, "deep_prompts": deep_prompts,
        "score.weight": model.score.weight,
    }
    for mode, deep in (("ptune", None), ("deep", deep_prompts)):
        logits = logits_of(model, rows, prompts, deep, lengths)
        if deep is None:
            check_against_the_whole_class(model, rows, prompts, lengths, logits)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        trained = {"prompts": prompts, "score.weight": model.score.weight}
        if deep is not None:
            trained["deep_prompts"] = deep
        grads = torch.autograd.grad(loss, list(trained.values()))
        out |= {f"{mode}.logits": logits, f"{mode}.loss": loss}
        out |= {f"{mode}.grad.{key}": grad for key, grad in zip(trained, grads)}
    save_file({key: tensor.detach().contiguous().clone() for key, tensor in out.items()},
              HERE / f"tiny-{name}.golden.safetensors")
    spread = out["deep.logits"].std(0).min().item()
    assert spread > 0.05, f"{name}: the logits hardly differ ({spread})"


def rope():
    variants = {
        "default": dict(rope_type="default"),
        "linear": dict(rope_type="linear", factor=3.0),
        "llama3": dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                       original_max_position_embeddings=64),
        "yarn": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
        "yarn-stated": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=16.0,
                            beta_slow=2.0, attention_factor=1.25),
    }
    out = []
    for name, variant in variants.items():
        config = LlamaConfig(hidden_size=64, num_attention_heads=2, max_position_embeddings=256,
                             rope_parameters=dict(rope_theta=10000.0, **variant))
        if variant["rope_type"] == "default":
            inv_freq, factor = 1.0 / 10000.0 ** (torch.arange(0, 32, 2).float() / 32), 1.0
        else:
            inv_freq, factor = ROPE_INIT_FUNCTIONS[variant["rope_type"]](config, "cpu")
        out.append(dict(name=name, theta=10000.0, head_dim=32, scaling=variant,
                        inv_freq=[float(x) for x in inv_freq], attention_factor=float(factor)))
    (HERE / "rope.json").write_text(json.dumps(out, indent=1) + "\n")


def adamw():
    generator = torch.Generator().manual_seed(11)
    shapes = {"prompts": (3, 4), "deep_prompts": (2, 3, 4), "score.weight": (2, 4)}
    params = {name: torch.randn(shape, generator=generator).requires_grad_(True) for name, shape in shapes.items()}
    optimizer = torch.optim.AdamW(params.values(), lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=3, num_training_steps=10)
    out = {f"init.{name}": param.detach().clone() for name, param in params.items()}
    for step in range(10):
        scale = [0.05, 1.0][step % 2]  # small gradients are not clipped, large ones are
        for name, param in params.items():
            param.grad = scale * torch.randn(param.shape, generator=generator)
            out[f"step{step}.grad.{name}"] = param.grad.clone()
        out[f"step{step}.lr"] = torch.tensor(optimizer.param_groups[0]["lr"], dtype=torch.float32)
        out[f"step{step}.norm"] = torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        optimizer.step()
        schedule.step()
        for name, param in params.items():
            out[f"step{step}.param.{name}"] = param.detach().clone()
    settings = dict(lr=0.01, betas=[0.9, 0.999], eps=1e-8, weight_decay=0.01, max_norm=1.0, warmup_steps=3, steps=10)
    # One key only: the writer does not keep an order of keys.
    save_file(out, HERE / "adamw.safetensors", metadata=dict(settings=json.dumps(settings)))


def schedules():
    make = {
        "linear": lambda opt, warmup, total: get_linear_schedule_with_warmup(opt, warmup, total),
        "cosine": lambda opt, warmup, total: get_cosine_schedule_with_warmup(opt, warmup, total),
        "constant": lambda opt, warmup, total: get_constant_schedule_with_warmup(opt, warmup),
    }
    out = []
    for name, build in make.items():
        for warmup, total in ((0, 10), (3, 10), (10, 10), (5, 23), (1, 1)):
            optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
            schedule = build(optimizer, warmup, total)
            factors = []
            for _ in range(total + 3):
                factors.append(float(schedule.get_last_lr()[0]))
                optimizer.step()
                schedule.step()
            out.append(dict(schedule=name, warmup_steps=warmup, steps=total, factors=factors))
    (HERE / "schedules.json").write_text(json.dumps(out, indent=1) + "\n")


def main():
    torch.set_num_threads(1)
    for seed, (name, (cls, config)) in enumerate(MODELS.items()):
        golden(name, seed, cls, config)
    rope()
    adamw()
    schedules()
    for path in HERE.rglob("*.safetensors"):
        path.chmod(0o644)
    (HERE / "VERSIONS.txt").write_text(
        f"python {platform.python_version()}\ntorch {torch.__version__}\ntransformers {transformers.__version__}\n")


if __name__ == "__main__":
    main()
