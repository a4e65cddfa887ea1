#!/usr/bin/env python3
"""Makes the golden files of optimizers and schedules with PyTorch and transformers; VERSIONS.txt says which.

    pip install torch==2.13.0 transformers==5.23.0 safetensors lion-pytorch==0.2.5 && python make_optim.py

adamw.safetensors   ten steps of AdamW with weight decay, clipping and a linear schedule
optim.safetensors   twelve steps of each other optimizer from the same start, with the same gradients and learning rates:
                    `init.PARAMETER`, `grad.PARAMETER [steps, ..]`, `factors [steps]` (of the learning rate) and, after each
                    step, `RUN.PARAMETER [steps, ..]`
schedules.json      learning-rate factors of transformers' schedules, by options
plateau.json        learning-rate factors of ReduceLROnPlateau after each evaluation, by options
"""

import json
import math
import pathlib

import torch
import transformers
from lion_pytorch import Lion
from safetensors.torch import save_file
from transformers import (
    Adafactor,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_hard_restarts_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
    get_wsd_schedule,
)

HERE = pathlib.Path(__file__).resolve().parent
STEPS = 12
SHAPES = {"prompts": (3, 4), "deep_prompts": (2, 3, 4), "score.weight": (2, 4), "score.bias": (2,)}
OPTIMIZERS = {
    "adam": lambda params: torch.optim.Adam(params, lr=3e-2, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1),
    "sgd": lambda params: torch.optim.SGD(params, lr=0.3, weight_decay=0.1),
    "sgd-momentum": lambda params: torch.optim.SGD(params, lr=0.3, weight_decay=0.1, momentum=0.9),
    "sgd-dampened": lambda params: torch.optim.SGD(params, lr=0.3, weight_decay=0.1, momentum=0.9, dampening=0.4),
    "sgd-nesterov": lambda params: torch.optim.SGD(params, lr=0.3, weight_decay=0.1, momentum=0.9, nesterov=True),
    "lion": lambda params: Lion(params, lr=1e-2, betas=(0.9, 0.99), weight_decay=0.3),
    "adafactor": lambda params: Adafactor(
        params, lr=0.3, weight_decay=1e-2, scale_parameter=False, relative_step=False),
    "adafactor-full": lambda params: Adafactor(
        params, lr=0.1, eps=(1e-10, 1e-2), clip_threshold=0.7, decay_rate=-0.6, beta1=0.8, weight_decay=0.1,
        scale_parameter=True, relative_step=False),
}


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


def optimizers():
    generator = torch.Generator().manual_seed(13)
    out = {"factors": torch.tensor([0.0, 0.5] + [1.0 - step / 16 for step in range(STEPS - 2)])}
    for name, shape in SHAPES.items():
        out[f"init.{name}"] = torch.randn(shape, generator=generator)
        sizes = torch.logspace(-3, 1, STEPS)[torch.randperm(STEPS, generator=generator)]
        grads = torch.randn((STEPS, *shape), generator=generator)
        out[f"grad.{name}"] = grads * sizes.reshape(-1, *[1] * len(shape))
    for run, make in OPTIMIZERS.items():
        params = {name: out[f"init.{name}"].clone().requires_grad_(True) for name in SHAPES}
        optimizer = make(list(params.values()))
        lr = optimizer.param_groups[0]["lr"]
        seen = {name: [] for name in SHAPES}
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = lr * out["factors"][step].item()
            for name, param in params.items():
                param.grad = out[f"grad.{name}"][step].clone()
            optimizer.step()
            for name, param in params.items():
                seen[name].append(param.detach().clone())
        out |= {f"{run}.{name}": torch.stack(values) for name, values in seen.items()}
    save_file(out, HERE / "optim.safetensors")


def warmup_of(options, total):
    """As transformers' TrainingArguments.get_warmup_steps."""
    return options.get("warmup_steps", 0) or math.ceil(total * options.get("warmup_ratio", 0.0))


def wsd(optimizer, warmup, total, options):
    decay = options.get("decay_steps", 0) or math.ceil(total * options.get("decay_ratio", 0.0))
    return get_wsd_schedule(optimizer, warmup, decay, num_training_steps=total,
                            decay_type=options.get("decay", "cosine"), min_lr_ratio=options.get("end_factor", 0.0))


SCHEDULES = {
    "constant": lambda opt, warmup, total, options: get_constant_schedule_with_warmup(opt, warmup),
    "linear": lambda opt, warmup, total, options: get_linear_schedule_with_warmup(opt, warmup, total),
    "cosine": lambda opt, warmup, total, options: get_cosine_schedule_with_warmup(opt, warmup, total),
    "cosine-with-restarts": lambda opt, warmup, total, options: get_cosine_with_hard_restarts_schedule_with_warmup(
        opt, warmup, total, num_cycles=options["cycles"]),
    "polynomial": lambda opt, warmup, total, options: get_polynomial_decay_schedule_with_warmup(
        opt, warmup, total, lr_end=options["end_factor"], power=options["power"]),
    "inverse-sqrt": lambda opt, warmup, total, options: get_inverse_sqrt_schedule(
        opt, warmup, timescale=options.get("timescale")),
    "warmup-stable-decay": wsd,
}
OPTIONS = {
    "cosine-with-restarts": [dict(cycles=1), dict(cycles=3)],
    "polynomial": [dict(power=1.0, end_factor=0.0), dict(power=2.0, end_factor=0.1), dict(power=0.5, end_factor=0.25)],
    "inverse-sqrt": [dict(), dict(timescale=7)],
    "warmup-stable-decay": [dict(decay_steps=4), dict(decay_ratio=0.3, end_factor=0.2),
                            dict(decay_steps=3, decay="linear"), dict(decay_ratio=0.6, decay="1-sqrt")],
}
WARMUPS = [(dict(), 10), (dict(warmup_steps=3), 10), (dict(warmup_steps=10), 10), (dict(warmup_steps=5), 23),
           (dict(warmup_steps=1), 1), (dict(warmup_ratio=0.1), 23), (dict(warmup_ratio=0.07), 100)]


def schedules():
    out = []
    for name, build in SCHEDULES.items():
        for own in OPTIONS.get(name, [dict()]):
            for warmup, total in WARMUPS:
                options = warmup | own
                optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
                n_warmup = warmup_of(options, total)
                if name == "polynomial" and n_warmup == total:
                    continue  # transformers divides by zero
                schedule = build(optimizer, n_warmup, total, options)
                factors = []
                for _ in range(total + 3):
                    factors.append(float(schedule.get_last_lr()[0]))
                    optimizer.step()
                    schedule.step()
                out.append(dict(schedule=name, options=options, steps=total, factors=factors))
    write(out, "schedules.json")


PLATEAUS = [
    dict(patience=2),
    dict(patience=0, factor=0.5, min_factor=0.2),
    dict(patience=1, cooldown=3, threshold=0.05, factor=0.7),
    dict(patience=1, threshold=0.05, threshold_mode="abs", factor=0.3),
    dict(mode="max", patience=1, threshold=0.1, factor=0.6),
    dict(mode="max", patience=2, threshold=0.02, threshold_mode="abs", cooldown=1, factor=0.8),
]


def plateaus():
    generator = torch.Generator().manual_seed(14)
    noise = torch.randn(40, generator=generator, dtype=torch.float64)
    falling = [1.5 / (1 + step / 4) + 0.05 * float(noise[step]) for step in range(40)]
    falling[17] = math.nan
    out = []
    for options in PLATEAUS:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        given = {key.replace("min_factor", "min_lr"): value for key, value in options.items()}
        # Without `eps`, which would stop reductions of less than 1e-8.
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, eps=0.0, **given)
        values = [2 - value for value in falling] if options.get("mode") == "max" else falling
        factors = []
        for value in values:
            schedule.step(value)
            factors.append(optimizer.param_groups[0]["lr"])
        print(options, "ends at", factors[-1])
        # JSON has no NaN.
        out.append(dict(options=options, factors=factors, values=[None if math.isnan(v) else v for v in values]))
    write(out, "plateau.json")


def write(entries, name):
    """One entry a line."""
    (HERE / name).write_text("[\n" + ",\n".join(json.dumps(entry) for entry in entries) + "\n]\n")


def main():
    written = (HERE / "VERSIONS.txt").read_text()
    for line in (f"torch {torch.__version__}", f"transformers {transformers.__version__}"):
        if line.split("+")[0] not in written:
            raise SystemExit(f"this is {line}, but the other goldens were made with what VERSIONS.txt says")
    torch.set_num_threads(1)
    adamw()
    optimizers()
    schedules()
    plateaus()
    for path in HERE.glob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
