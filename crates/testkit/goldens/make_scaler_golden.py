#!/usr/bin/env python3
"""Makes scaler.safetensors with PyTorch; VERSIONS.txt says which.

    pip install torch==2.13.0 safetensors && python make_scaler_golden.py

Runs of torch.amp.GradScaler with AdamW, clipping on unscaled gradients and a linear schedule that skips with the
optimizer. The loss is the sum of each parameter, cast to fp16 and back, times weights of the step: its scaled gradient
overflows where scale times weight passes 65504. Weights are a hundred times larger in steps 7 and 8, and one is NaN in
step 14.
"""

import json
import math
import pathlib

import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
SHAPES = {"prompts": (3, 4), "score.weight": (2, 4)}
STEPS, WARMUP = 24, 3
RUNS = {
    "usual": dict(init_scale=65536.0, growth_factor=2.0, backoff_factor=0.5, growth_interval=3),
    "odd": dict(init_scale=1.0e6, growth_factor=1.7, backoff_factor=0.3, growth_interval=2),
}


def inputs():
    generator = torch.Generator().manual_seed(12)
    out = {f"init.{name}": torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    for step in range(STEPS):
        for name, shape in SHAPES.items():
            weights = torch.randn(shape, generator=generator)
            if step in (7, 8):
                weights *= 100.0
            if step == 14 and name == "prompts":
                weights[1, 2] = math.nan
            out[f"step{step}.weights.{name}"] = weights
    return out


def run(name, settings, given):
    params = {key: given[f"init.{key}"].clone().requires_grad_(True) for key in SHAPES}
    optimizer = torch.optim.AdamW(params.values(), lr=1e-2, weight_decay=0.01)
    rate = lambda made: made / WARMUP if made < WARMUP else (STEPS - made) / (STEPS - WARMUP)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    scaler = torch.amp.GradScaler("cpu", **settings)
    scaler.scale(torch.zeros(()))  # it has no scale before its first use
    out, skips = {}, []
    for step in range(STEPS):
        key = f"{name}.step{step}"
        out[f"{key}.scale"] = torch.tensor(scaler.get_scale())
        out[f"{key}.lr"] = torch.tensor(optimizer.param_groups[0]["lr"])
        optimizer.zero_grad()
        loss = sum((param.half().float() * given[f"step{step}.weights.{of}"]).sum() for of, param in params.items())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        skipped = any(found.item() for found in scaler._found_inf_per_device(optimizer).values())
        norm = torch.nn.utils.clip_grad_norm_(params.values(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        if not skipped:
            schedule.step()
            out[f"{key}.norm"] = norm
        out[f"{key}.skipped"] = torch.tensor(float(skipped))
        out[f"{key}.growth_tracker"] = torch.tensor(float(scaler._get_growth_tracker()))
        out |= {f"{key}.param.{of}": param.detach().clone() for of, param in params.items()}
        skips += [step] * skipped
    print(name, "skips", skips, "and ends at a scale of", scaler.get_scale())
    return out


def main():
    torch.set_num_threads(1)
    out = inputs()
    for name, settings in RUNS.items():
        out |= run(name, settings, out)
    out = {key: tensor.to(torch.float32).contiguous() for key, tensor in out.items()}
    path = HERE / "scaler.safetensors"
    save_file(out, path, metadata=dict(settings=json.dumps(dict(runs=RUNS, steps=STEPS, warmup_steps=WARMUP))))
    path.chmod(0o644)


if __name__ == "__main__":
    main()
