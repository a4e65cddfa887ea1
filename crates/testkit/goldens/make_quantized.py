#!/usr/bin/env python3
"""Makes quantized weights in the layouts in which they are published, and their dequantized numbers.

    pip install torch safetensors numpy && python make_quantized.py

quantized/layers.safetensors          `NAME/PART`: tensors of one layer as in a checkpoint, `NAME/values`: fp32 weights
quantized/NAME/                       a tiny Llama of which all linear layers but the last are quantized
quantized/NAME.golden.safetensors     weights of its layers

The packing below is written from the descriptions of the formats and shares nothing with the program that reads them.
Values are computed in float64 from the stored numbers and rounded once to fp32. Two are defined with more roundings,
which are kept: factors of NF4 with double quantization (product and sum in fp32).

- GPTQ: bits of consecutive inputs, lowest first, in words of 32 bits for each output. Zeros lie along the outputs; the
  first version of the format stores them less one.
- AWQ: a word holds eight outputs in the order 0, 2, 4, 6, 1, 3, 5, 7, from the lowest bits.
- bitsandbytes: two numbers in a byte, the first in the high half, all rows without a gap; int8 rows are divided by
  127 / SCB.
- compressed-tensors, pack-quantized: as GPTQ, but each output has a row of words; signed numbers are stored plus 2^(bits - 1).

bitsandbytes 0.50 and compressed-tensors 0.20 dequantize these tensors to the same numbers in fp32 (compared by hand; int8 to
1.2e-7). torch only supplies the number types, so any version makes the same files.
"""

import json
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent / "quantized"
RANDOM = np.random.default_rng(7)
LEVELS = np.array(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0], dtype=np.float32)


def integers(low, high, *shape):
    return RANDOM.integers(low, high, size=shape)


def factors(*shape, dtype=torch.float16):
    """Random factors from 0.5 / 64 to 1 / 64."""
    return torch.from_numpy(RANDOM.uniform(0.5, 1.0, size=shape) / 64).to(dtype)


def f64(tensor):
    return tensor.to(torch.float64).numpy()


def int32(words):
    return torch.from_numpy(np.ascontiguousarray(words.astype(np.uint32)).view(np.int32))


def pack(numbers, bits):
    """Words `[n * bits / 32, columns]` of numbers `[n, columns]`: consecutive bits, lowest first."""
    n, columns = numbers.shape
    stream = np.zeros((-(-n * bits // 32) * 32, columns), dtype=np.uint64)
    for bit in range(bits):
        stream[bit:n * bits:bits] = numbers >> bit & 1
    weights = np.uint64(1) << np.arange(32, dtype=np.uint64)
    return (stream.reshape(-1, 32, columns) * weights[None, :, None]).sum(axis=1)


def expand(values, group, inputs, order=None):
    """Factors or zeros of each input, `[outputs, inputs]`, from those of groups, `[groups, outputs]`."""
    group_of = np.arange(inputs) // group if order is None else order
    return values[group_of].T


def gptq(outputs, inputs, bits, group, version=1, symmetric=False, reordered=False, exact=False):
    groups = -(-inputs // group)
    numbers = integers(0, 2 ** bits, outputs, inputs)
    # A zero of 0 in the first version borrows from the next one: a test makes such files from the second version.
    zeros = integers(1 if version == 1 else 0, 2 ** bits, groups, outputs)
    if symmetric:
        zeros[:] = 2 ** (bits - 1)
    scales = powers(groups, outputs) if exact else factors(groups, outputs)
    group_of = np.arange(inputs) // group
    if reordered:
        group_of = RANDOM.permutation(group_of)
    values = expand(f64(scales), group, inputs, group_of) * (numbers - expand(zeros, group, inputs, group_of))
    stored = zeros - 1 if version == 1 else zeros
    return {
        "qweight": int32(pack(numbers.T, bits)),
        "qzeros": int32(pack(stored.T, bits).T),
        "scales": scales,
        "g_idx": torch.from_numpy(group_of.astype(np.int32)),
    }, values


def awq(outputs, inputs, group, exact=False):
    groups = -(-inputs // group)
    numbers, zeros = integers(0, 16, outputs, inputs), integers(0, 16, groups, outputs)
    scales = powers(groups, outputs) if exact else factors(groups, outputs)
    values = expand(f64(scales), group, inputs) * (numbers - expand(zeros, group, inputs))

    def words(matrix):  # [n, outputs] to [n, outputs / 8]
        eights = matrix.reshape(matrix.shape[0], -1, 8).astype(np.uint64)
        return sum(eights[:, :, output] << np.uint64(4 * place) for place, output in enumerate([0, 2, 4, 6, 1, 3, 5, 7]))

    return {"qweight": int32(words(numbers.T)), "qzeros": int32(words(zeros)), "scales": scales}, values


def fp8(outputs, inputs, block, name, shape, dtype=torch.float32, exact=False):
    # All numbers but NaN (0x7f and 0xff).
    numbers = integers(0, 255, outputs, inputs).astype(np.uint8)
    numbers[numbers == 0x7f] = 0x7e
    weight = torch.from_numpy(numbers).view(torch.float8_e4m3fn)
    rows, columns = -(-outputs // block[0]), -(-inputs // block[1])
    scales = powers(rows, columns).to(dtype) if exact else factors(rows, columns, dtype=dtype)
    per_row = np.repeat(f64(scales), block[0], axis=0)[:outputs]
    values = np.repeat(per_row, block[1], axis=1)[:, :inputs] * f64(weight)
    return {"weight": weight, name: scales.reshape(shape)}, values


def int8(outputs, inputs, name, divisor, shape):
    weight = integers(-127, 128, outputs, inputs).astype(np.int8)
    scales = factors(outputs, dtype=torch.float32)
    values = weight * f64(scales)[:, None] / divisor
    return {"weight": torch.from_numpy(weight), name: scales.reshape(shape)}, values


def nf4(outputs, inputs, blocksize, nested):
    n = outputs * inputs
    numbers = integers(0, 16, n)
    state = {"quant_type": "nf4", "blocksize": blocksize, "dtype": "bfloat16", "shape": [outputs, inputs]}
    n_blocks = -(-n // blocksize)
    tensors = {}
    if nested:
        bytes_, levels = integers(0, 256, n_blocks).astype(np.uint8), np.sort(RANDOM.uniform(-1, 1, 256)).astype(np.float32)
        blocks = factors(-(-n_blocks // 256), dtype=torch.float32)
        offset = np.float32(0.03125 + 2.0 ** -20)
        absmax = levels[bytes_] * np.repeat(blocks.numpy(), 256)[:n_blocks] + offset
        assert absmax.dtype == np.float32
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": float(offset)}
        tensors |= {"weight.absmax": torch.from_numpy(bytes_), "weight.nested_absmax": blocks,
                    "weight.nested_quant_map": torch.from_numpy(levels)}
    else:
        tensors["weight.absmax"] = factors(n_blocks, dtype=torch.float32)
        absmax = tensors["weight.absmax"].numpy()
    padded = np.pad(numbers, (0, n % 2)).reshape(-1, 2)
    text = torch.from_numpy(np.frombuffer(json.dumps(state).encode(), dtype=np.uint8).copy())
    tensors |= {
        "weight": torch.from_numpy((padded[:, 0] << 4 | padded[:, 1]).astype(np.uint8)).reshape(-1, 1),
        "weight.quant_map": torch.from_numpy(LEVELS.copy()),
        "weight.quant_state.bitsandbytes__nf4": text,
    }
    values = LEVELS[numbers].astype(np.float64) * np.repeat(absmax.astype(np.float64), blocksize)[:n]
    return tensors, values.reshape(outputs, inputs)


def packed(outputs, inputs, bits, group, symmetric=True, reordered=False):
    groups = -(-inputs // group)
    offset = 2 ** (bits - 1)
    numbers = integers(-offset, offset, outputs, inputs)
    zeros = integers(-offset, offset, outputs, groups) * (0 if symmetric else 1)
    scales = factors(outputs, groups, dtype=torch.bfloat16)
    group_of = np.arange(inputs) // group
    if reordered:
        group_of = RANDOM.permutation(group_of)
    values = f64(scales)[:, group_of] * (numbers - zeros[:, group_of])
    tensors = {
        "weight_packed": int32(pack((numbers + offset).T, bits).T),
        "weight_scale": scales,
        "weight_shape": torch.tensor([outputs, inputs]),
    }
    if not symmetric:
        tensors["weight_zero_point"] = int32(pack(zeros + offset, bits))
    if reordered:
        tensors["weight_g_idx"] = torch.from_numpy(group_of.astype(np.int32))
    return tensors, values


def powers(*shape):
    """Factors of few bits, so that weights are exact in fp16."""
    return torch.from_numpy(integers(17, 33, *shape) / 2048).to(torch.float16)


LAYERS = {
    "fp8-blocks": lambda: fp8(40, 72, (16, 32), "weight_scale_inv", (3, 3)),
    "fp8-blocks-bf16": lambda: fp8(32, 64, (16, 32), "weight_scale_inv", (2, 2), torch.bfloat16),
    "fp8-channels": lambda: fp8(40, 72, (1, 72), "weight_scale", (40, 1)),
    "fp8-tensor": lambda: fp8(40, 72, (40, 72), "weight_scale", ()),
    "gptq-4": lambda: gptq(32, 64, 4, 32),
    "gptq-4-rows": lambda: gptq(32, 64, 4, 64),
    "gptq-4-v2": lambda: gptq(32, 64, 4, 16, version=2),
    "gptq-4-reordered": lambda: gptq(32, 64, 4, 16, reordered=True),
    "gptq-2": lambda: gptq(32, 64, 2, 32, version=2),
    "gptq-3": lambda: gptq(32, 64, 3, 32),
    "gptq-8": lambda: gptq(32, 64, 8, 32),
    "awq-4": lambda: awq(40, 64, 32),
    "int8": lambda: int8(40, 72, "SCB", 127, (40,)),
    "int8-channels": lambda: int8(40, 72, "weight_scale", 1, (40, 1)),
    "nf4": lambda: nf4(40, 64, 64, False),
    "nf4-nested": lambda: nf4(20, 128, 128, True),
    "nf4-across-rows": lambda: nf4(41, 36, 64, True),
    "packed-4": lambda: packed(32, 64, 4, 32),
    "packed-4-asymmetric": lambda: packed(40, 64, 4, 32, symmetric=False),
    "packed-4-reordered": lambda: packed(32, 64, 4, 32, reordered=True),
    "packed-8": lambda: packed(32, 64, 8, 64),
}

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64, "vocab_size": 16, "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0, "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": False,
    "torch_dtype": "float16",
}
SHAPES = {
    "self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64), "self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (64, 64), "mlp.up_proj": (64, 64), "mlp.down_proj": (64, 64),
}
MODELS = {
    "fp8": (
        {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [16, 32]},
        lambda out, inner: fp8(out, inner, (16, 32), "weight_scale_inv", (out // 16, inner // 32), exact=True)),
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": True, "true_sequential": True,
         "damp_percent": 0.01, "checkpoint_format": "gptq"},
        lambda out, inner: gptq(out, inner, 4, 32, symmetric=True, exact=True)),
    "gptq-reordered": (
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": True, "sym": False, "checkpoint_format": "gptq"},
        lambda out, inner: gptq(out, inner, 4, 32, reordered=True, exact=True)),
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm",
         "modules_to_not_convert": None},
        lambda out, inner: awq(out, inner, 32, exact=True)),
    "nf4": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False, "_load_in_4bit": True,
         "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_quant_storage": "uint8",
         "bnb_4bit_compute_dtype": "bfloat16"},
        lambda out, inner: nf4(out, inner, 64, True)),
}


def rounded(values):
    return torch.from_numpy(values.astype(np.float32))


def write_layers():
    tensors = {}
    for name, make in LAYERS.items():
        parts, values = make()
        tensors |= {f"{name}/{part}": tensor.contiguous() for part, tensor in parts.items()}
        tensors[f"{name}/values"] = rounded(values)
    save_file(tensors, HERE / "layers.safetensors")


def write_model(name, quantization, make):
    def half(*shape, mean=0.0):
        return torch.from_numpy(RANDOM.normal(mean, 0.05, size=shape)).to(torch.float16)

    tensors = {"model.embed_tokens.weight": half(16, 64), "lm_head.weight": half(16, 64), "model.norm.weight": half(64, mean=1.0)}
    golden = {}
    prefix = "model.layers.0."
    for norm in ["input_layernorm", "post_attention_layernorm"]:
        tensors[f"{prefix}{norm}.weight"] = half(64, mean=1.0)
    for layer, (outputs, inputs) in SHAPES.items():
        parts, values = make(outputs, inputs)
        tensors |= {f"{prefix}{layer}.{part}": tensor.contiguous() for part, tensor in parts.items()}
        weight = rounded(values)
        is_exact = torch.equal(weight.half().float(), weight)
        golden[f"{prefix}{layer}.weight"] = weight.half() if is_exact else weight
        if name == "gptq":  # AutoGPTQ writes biases of zeros.
            tensors[f"{prefix}{layer}.bias"] = torch.zeros(outputs, dtype=torch.float16)
    folder = HERE / name
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(LLAMA | {"quantization_config": quantization}, indent=2)
    (folder / "config.json").write_text(config + "\n")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    save_file(golden, HERE / f"{name}.golden.safetensors")


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    write_layers()
    for name, (quantization, make) in MODELS.items():
        write_model(name, quantization, make)
