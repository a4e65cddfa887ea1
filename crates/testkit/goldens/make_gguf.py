#!/usr/bin/env python3
"""Makes the GGUF files of this folder from the tiny models beside it; VERSIONS.txt says with which gguf package.

    pip install torch==2.13.0 transformers safetensors gguf==0.19.0 && python make_goldens.py && python make_gguf.py
    python make_gguf.py stablelm    # some of the files alone

tiny-NAME.gguf           the model as llama.cpp's converter writes it: tensor names, orders of rows, metadata
gguf.golden.safetensors  `ids`, and for each file `NAME.hidden`: hidden states after the last norm, of transformers
quants.safetensors       for each number type `TYPE.bytes` and the numbers `TYPE.values` that gguf reads from them

What the converter changes, beside the names:
- llama, also for Mistral and Mixtral, granite, smollm3: the rows of q and k are interleaved, (0, d/2, 1, d/2 + 1, ..), as
  its kernel rotates pairs of neighbours. The other families keep their halves.
- gemma, gemma2, gemma3: 1 is added to each norm.
- BLOOM, GPT-NeoX, Falcon: the fused rows, grouped by head in the checkpoint, become all q, all k, all v.
- GPT-2: matrices are stored [in, out] in the checkpoint, [out, in] here.
- Falcon with two norms: attn_norm is the one of the MLP, attn_norm_2 the one of the attention.
- Phi-3: qkv stays fused, so do gate and up, which are called ffn_up.
- Mixtral, qwen2moe, qwen3moe: the experts are stacked, [experts, out, in].
- StableLM with norms of heads: their weights are stacked, [heads, head_dim].
- Frequencies that a formula does not give are tensors of divisors: rope_freqs (Llama 3), rope_factors_short and
  rope_factors_long (Phi-3).

What a file does not say, so that the reader has to know it from the architecture (and the reference here does too):
- gemma2, gemma3: the scale of the scores. It is 1 / sqrt(key length), but for the models of 27B.
- Mistral: the sliding window, so there is none.
- gemma2: which layers have the window. Each even one. For gemma3 the default is five of six, unless stated.
- Falcon, GPT-NeoX, StableLM: the base of the rotary frequencies, 10000. BLOOM: that there is ALiBi.
- qwen2moe: that the weights of experts are parts of the softmax of all scores. qwen3moe: that they sum up to 1.
- smollm3: that every fourth layer has no positions.
- All: the activation.

llama.cpp of October 2026 was compared by hand and gives the same: to 1e-5 with F32 matrices and SiLU, to 3e-3 with
GELU, which it reads from a table in half precision. It ignores the window of Phi-3, and takes its long factors as soon
as the context that was asked for is longer than the original one.
"""

import math
import pathlib
import re
import sys
import tempfile
from importlib.metadata import version

import gguf
import numpy as np
import torch
import transformers
from gguf import MODEL_ARCH, GGMLQuantizationType, LlamaFileType
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = pathlib.Path(__file__).parent
VOCAB = 64
F32, F16, BF16, Q8_0 = (GGMLQuantizationType[kind] for kind in ("F32", "F16", "BF16", "Q8_0"))
FILE_TYPES = {F32: LlamaFileType.ALL_F32, F16: LlamaFileType.MOSTLY_F16, BF16: LlamaFileType.MOSTLY_BF16,
              Q8_0: LlamaFileType.MOSTLY_Q8_0}
# name: architecture, type of the matrices
FILES = {
    "llama-gqa": (MODEL_ARCH.LLAMA, F32),
    "llama-tied": (MODEL_ARCH.LLAMA, F32),
    "llama-yarn": (MODEL_ARCH.LLAMA, F32),
    "mistral": (MODEL_ARCH.LLAMA, Q8_0),
    "mixtral": (MODEL_ARCH.LLAMA, F32),
    "qwen2": (MODEL_ARCH.QWEN2, F16),
    "qwen3": (MODEL_ARCH.QWEN3, BF16),
    "gemma": (MODEL_ARCH.GEMMA, F32),
    "gemma2": (MODEL_ARCH.GEMMA2, F32),
    "gemma3": (MODEL_ARCH.GEMMA3, F32),
    "phi3": (MODEL_ARCH.PHI3, F32),
    "phi3-longrope": (MODEL_ARCH.PHI3, F32),
    "falcon-7b": (MODEL_ARCH.FALCON, F32),
    "falcon-40b": (MODEL_ARCH.FALCON, F32),
    "bloom": (MODEL_ARCH.BLOOM, F32),
    "gpt2": (MODEL_ARCH.GPT2, F32),
    "gpt-neox": (MODEL_ARCH.GPTNEOX, F32),
    "stablelm": (MODEL_ARCH.STABLELM, F32),
    "stablelm-parallel": (MODEL_ARCH.STABLELM, F32),
    "stablelm-norms": (MODEL_ARCH.STABLELM, F32),
    "qwen3-moe": (MODEL_ARCH.QWEN3MOE, F32),
    "qwen2-moe": (MODEL_ARCH.QWEN2MOE, F32),
    "granite": (MODEL_ARCH.GRANITE, F32),
    "olmo2": (MODEL_ARCH.OLMO2, F32),
    "smollm3": (MODEL_ARCH.SMOLLM3, F32),
}
INTERLEAVED = (MODEL_ARCH.LLAMA, MODEL_ARCH.GRANITE, MODEL_ARCH.SMOLLM3)
# What the loader of transformers is able to check: the tensors and the config that it reads from the metadata, or the
# tensors with the config given ("tensors"), as it does not read all keys. The others it does not read, or not rightly
# (the groups of falcon-40b).
LOADER = {
    "llama-gqa": "all", "mistral": "all", "qwen2": "all", "falcon-7b": "all", "bloom": "all",
    "llama-tied": "tensors", "llama-yarn": "tensors", "qwen3": "tensors", "gemma2": "tensors",
    "gemma3": "tensors", "phi3": "tensors", "phi3-longrope": "tensors", "gpt2": "tensors",
    "stablelm": "all", "stablelm-parallel": "tensors",
}


# Tensors


def interleaved(rows, n_heads):
    """[n_heads * head_dim, ..]: the two halves of each head become pairs of neighbours."""
    return rows.unflatten(0, (n_heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def all_q_all_k_all_v(rows, n_groups, n_queries):
    """Groups of n_queries heads of queries, one of keys, one of values: first the queries of all, then the keys, .."""
    groups = rows.unflatten(0, (n_groups, n_queries + 2, -1))
    parts = groups[:, :n_queries], groups[:, n_queries:-1], groups[:, -1:]
    return torch.cat([part.flatten(0, 2) for part in parts])


def for_gguf(arch, key, tensor, config):
    """The tensor of a checkpoint with its rows in the order of the file."""
    if arch in INTERLEAVED and "q_proj" in key:
        return interleaved(tensor, config.num_attention_heads)
    if arch in INTERLEAVED and "k_proj" in key:
        return interleaved(tensor, config.num_key_value_heads)
    if arch in (MODEL_ARCH.GEMMA, MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3) and key.endswith("norm.weight"):
        return tensor + 1.0
    if arch in (MODEL_ARCH.BLOOM, MODEL_ARCH.GPTNEOX) and "query_key_value" in key:
        return all_q_all_k_all_v(tensor, config.num_attention_heads, 1)
    if arch == MODEL_ARCH.FALCON and "query_key_value" in key:
        n_groups = kv_heads(config)
        return all_q_all_k_all_v(tensor, n_groups, config.num_attention_heads // n_groups)
    if arch == MODEL_ARCH.GPT2 and key.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        return tensor.T
    return tensor


def kv_heads(config):
    if config.model_type == "falcon" and not config.new_decoder_architecture:
        return 1 if config.multi_query else config.num_attention_heads
    return config.num_kv_heads if config.model_type == "falcon" else config.num_key_value_heads


def stacked_experts(state, config):
    """In a Mixtral checkpoint each expert is three tensors; here they are three per block, [experts, out, in]."""
    out = {key: tensor for key, tensor in state.items() if ".experts." not in key}
    for layer in range(config.num_hidden_layers):
        moe = f"model.layers.{layer}.block_sparse_moe.experts"
        for key in ("w1", "w2", "w3"):
            experts = [state[f"{moe}.{expert}.{key}.weight"] for expert in range(config.num_local_experts)]
            out[f"layers.{layer}.feed_forward.experts.{key}.weight"] = torch.stack(experts)
    return out


def stacked(state, config):
    """With one tensor for the numbered ones of a block: the layers of Qwen's experts, and StableLM's norms of heads."""
    parts, out = {}, {}
    for key, tensor in state.items():
        if found := re.fullmatch(r"(.*\.)(experts|q_layernorm\.norms|k_layernorm\.norms)\.(\d+)\.(.*)", key):
            before, kind, number, after = found.groups()
            kind = f"{kind}." if kind == "experts" else kind.removesuffix("norms")
            parts.setdefault(before + kind + after, {})[int(number)] = tensor
        else:
            out[key] = tensor
    return out | {key: torch.stack([of[number] for number in sorted(of)]) for key, of in parts.items()}


def is_skipped(arch, key):
    buffers = (".attn.bias", ".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
    tied = arch in (MODEL_ARCH.GEMMA, MODEL_ARCH.GEMMA2) and key == "lm_head.weight"
    return tied or key.endswith(buffers)


def extra_tensors(config):
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "llama3":
        freqs = 1.0 / rope["rope_theta"] ** (torch.arange(0, config.head_dim, 2).float() / config.head_dim)
        turns = rope["original_max_position_embeddings"] * freqs / (2.0 * math.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)  # 1 for fast ones, 0 for slow ones
        yield "rope_freqs.weight", 1.0 / (kept + (1.0 - kept) / rope["factor"])
    if rope.get("rope_type") == "longrope":
        for length in ("long", "short"):
            yield f"rope_factors_{length}.weight", torch.tensor(rope[f"{length}_factor"])


def kind_of(name, tensor, kind):
    """The type that the converter gives a tensor of a file of this type."""
    always_f32 = tensor.ndim <= 1 or name.endswith("_norm.weight") or "ffn_gate_inp" in name or "position_embd" in name
    if always_f32:
        return F32
    return F16 if kind == Q8_0 and tensor.shape[-1] % 32 else kind


# Metadata


def add_shape(out, arch, config):
    out.add_block_count(config.num_hidden_layers)
    out.add_embedding_length(config.hidden_size)
    out.add_head_count(config.num_attention_heads)
    rope = getattr(config, "rope_parameters", None) or {}

    if arch in (MODEL_ARCH.BLOOM, MODEL_ARCH.FALCON, MODEL_ARCH.GPT2, MODEL_ARCH.GPTNEOX):
        eps = config.layer_norm_eps if arch == MODEL_ARCH.GPTNEOX else config.layer_norm_epsilon
        out.add_layer_norm_eps(eps)
        # The converter writes four times the width without a look at the config, but for GPT-NeoX.
        out.add_feed_forward_length(
            config.intermediate_size if arch == MODEL_ARCH.GPTNEOX else 4 * config.hidden_size)
    if arch == MODEL_ARCH.BLOOM:
        out.add_context_length(getattr(config, "seq_length", config.hidden_size))
        out.add_head_count_kv(config.num_attention_heads)
        return
    if arch == MODEL_ARCH.FALCON:
        out.add_context_length(2048)
        out.add_tensor_data_layout("jploski")
        out.add_head_count_kv(kv_heads(config))
        return
    out.add_context_length(config.max_position_embeddings)
    if arch == MODEL_ARCH.GPTNEOX:
        head_dim = config.hidden_size // config.num_attention_heads
        out.add_rope_dimension_count(int(rope["partial_rotary_factor"] * head_dim))
        out.add_parallel_residual(config.use_parallel_residual)
        return
    if arch == MODEL_ARCH.GPT2:
        return
    if arch == MODEL_ARCH.STABLELM:
        head_dim = config.hidden_size // config.num_attention_heads
        out.add_feed_forward_length(config.intermediate_size)
        out.add_head_count_kv(config.num_key_value_heads)
        out.add_layer_norm_eps(config.layer_norm_eps)
        out.add_rope_dimension_count(int(rope["partial_rotary_factor"] * head_dim))
        out.add_parallel_residual(config.use_parallel_residual)
        return

    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None)
    if head_dim is not None and arch != MODEL_ARCH.PHI3:
        out.add_key_length(head_dim)
        out.add_value_length(head_dim)
    if arch in (MODEL_ARCH.GEMMA, MODEL_ARCH.GEMMA2):
        if arch == MODEL_ARCH.GEMMA2:
            out.add_attn_logit_softcapping(config.attn_logit_softcapping)
            out.add_final_logit_softcapping(config.final_logit_softcapping)
            out.add_sliding_window(config.sliding_window)
        return  # the base of the rotary frequencies is not written
    head_dim = head_dim or config.hidden_size // config.num_attention_heads
    if arch == MODEL_ARCH.PHI3:
        out.add_rope_dimension_count(int(rope["partial_rotary_factor"] * head_dim))
        out.add_rope_freq_base(rope["rope_theta"])
        original = rope.get("original_max_position_embeddings", config.original_max_position_embeddings)
        out.add_rope_scaling_orig_ctx_len(original)
        out.add_sliding_window(config.sliding_window or 0)
        if rope["rope_type"] == "longrope":
            scale = config.max_position_embeddings / original
            out.add_rope_scaling_attn_factors(math.sqrt(1.0 + math.log(scale) / math.log(original)))
        return
    if arch == MODEL_ARCH.GEMMA3:
        out.add_sliding_window(config.sliding_window)
        # Optional: the converter leaves it out, and then one of six layers has no window.
        out.add_sliding_window_pattern(1 + config.layer_types.index("full_attention"))
        out.add_rope_freq_base_swa(rope["sliding_attention"]["rope_theta"])
        rope = rope["full_attention"]
    if arch in INTERLEAVED:
        out.add_vocab_size(config.vocab_size)
        out.add_rope_dimension_count(head_dim)
    if experts := getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None):
        out.add_expert_count(experts)
        out.add_expert_used_count(config.num_experts_per_tok)
    if arch in (MODEL_ARCH.QWEN2MOE, MODEL_ARCH.QWEN3MOE):
        out.add_expert_feed_forward_length(config.moe_intermediate_size)
    if arch == MODEL_ARCH.QWEN2MOE:
        out.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if arch == MODEL_ARCH.GRANITE:
        out.add_attention_scale(config.attention_multiplier)
        out.add_embedding_scale(config.embedding_multiplier)
        out.add_residual_scale(config.residual_multiplier)
        out.add_logit_scale(config.logits_scaling)
    out.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        out.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        out.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        out.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])


def add_vocabulary(out, arch, config):
    """Some vocabulary of the right size."""
    sentencepiece = arch in (MODEL_ARCH.LLAMA, MODEL_ARCH.GEMMA, MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3, MODEL_ARCH.PHI3)
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    if sentencepiece:
        special, space, first = ["<unk>", "<s>", "</s>", "<0x0A>"], "\u2581", gguf.TokenType.UNKNOWN
    else:
        special, space, first = ["<|endoftext|>", "<s>", "</s>", "\u010a"], "\u0120", gguf.TokenType.CONTROL
    types = [first, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL,
             gguf.TokenType.BYTE if sentencepiece else gguf.TokenType.NORMAL]
    if arch == MODEL_ARCH.PHI3:  # llama.cpp looks for it
        special, types = [*special, "<|endoftext|>"], [*types, gguf.TokenType.CONTROL]
    tokens = [*special, space, space + "a", *letters][:VOCAB]
    out.add_tokenizer_model("llama" if sentencepiece else "gpt2")
    out.add_tokenizer_pre("default")
    out.add_token_list(tokens)
    if sentencepiece:
        out.add_token_scores([-float(i) for i in range(VOCAB)])
    else:
        out.add_token_merges([f"{space} a"])
    out.add_token_types(types + [gguf.TokenType.NORMAL] * (VOCAB - len(types)))
    out.add_bos_token_id(config.bos_token_id)
    out.add_eos_token_id(config.eos_token_id)


def write(name, arch, kind):
    folder = HERE / f"tiny-{name}"
    config, state = AutoConfig.from_pretrained(folder), load_file(folder / "model.safetensors")
    state = stacked_experts(state, config) if config.model_type == "mixtral" else stacked(state, config)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)

    out = gguf.GGUFWriter(HERE / f"tiny-{name}.gguf", gguf.MODEL_ARCH_NAMES[arch])
    out.add_type(gguf.GGUFType.MODEL)
    out.add_name(f"tiny-{name}")
    add_shape(out, arch, config)
    if arch != MODEL_ARCH.GPTNEOX:
        out.add_file_type(FILE_TYPES[kind])
    out.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_vocabulary(out, arch, config)

    tensors = list(extra_tensors(config))
    for key in sorted(state):
        if is_skipped(arch, key):
            continue
        base, suffix = key.rsplit(".", 1)
        if arch == MODEL_ARCH.BLOOM:
            base = base.removeprefix("transformer.")
        new = names.get_name(base)
        assert new is not None, f"{name}: no name for {key}"
        tensors.append((f"{new}.{suffix}", for_gguf(arch, key, state[key], config)))
    for new, tensor in tensors:
        own = kind_of(new, tensor, kind)
        data = np.ascontiguousarray(tensor.float().numpy())
        out.add_tensor(new, gguf.quants.quantize(data, own), raw_dtype=own)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


# Reference


def reference(name, arch, kind):
    """transformers on the checkpoint, with its matrices rounded to the type, and with what a file is able to say."""
    folder = HERE / f"tiny-{name}"
    config = AutoConfig.from_pretrained(folder)
    if name == "mistral":
        config.sliding_window = None
    if arch in (MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3):
        config.query_pre_attn_scalar = config.head_dim
    if arch == MODEL_ARCH.STABLELM:
        config.rope_parameters["rope_theta"] = 10000.0
    state = load_file(folder / "model.safetensors")
    for key, tensor in state.items():
        own = kind_of("", tensor, kind)
        if own != F32 and not is_skipped(arch, key):
            rounded = gguf.quants.dequantize(gguf.quants.quantize(tensor.numpy(), own), own)
            state[key] = torch.from_numpy(np.ascontiguousarray(rounded, dtype=np.float32).reshape(tensor.shape))
    with tempfile.TemporaryDirectory() as rounded_folder:
        config.save_pretrained(rounded_folder)
        save_file(state, pathlib.Path(rounded_folder) / "model.safetensors", metadata={"format": "pt"})
        model = AutoModelForCausalLM.from_pretrained(rounded_folder, attn_implementation="eager", dtype=torch.float32)
    return model.eval(), config


def hidden_of(model, ids):
    with torch.no_grad():
        return model.base_model(input_ids=ids[None], use_cache=False).last_hidden_state[0]


def check_with_the_loader(name, ids, hidden, config):
    """transformers reads the file and gives the same."""
    if name not in LOADER:
        return "not checked, the loader cannot read it"
    given = {} if LOADER[name] == "all" else dict(config=config)
    model = AutoModelForCausalLM.from_pretrained(
        HERE, gguf_file=f"tiny-{name}.gguf", attn_implementation="eager", dtype=torch.float32, **given)
    torch.testing.assert_close(hidden_of(model.eval(), ids), hidden, rtol=1e-5, atol=1e-5)
    return {"all": "checked, tensors and config", "tensors": "checked, tensors with the config given"}[LOADER[name]]


# Quantised blocks


def quants():
    rng = np.random.default_rng(5)
    out = {}
    for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "BF16", "F16"):
        kind = GGMLQuantizationType[name]
        numbers = rng.normal(size=(4, 32)).astype(np.float32)
        numbers[1] *= 1e-3
        numbers[2] += 4.0
        numbers[3, ::2] = 0.0
        data = gguf.quants.quantize(numbers, kind)
        out[f"{name}.bytes"] = torch.from_numpy(np.ascontiguousarray(data).view(np.uint8).reshape(4, -1))
        out[f"{name}.values"] = torch.from_numpy(gguf.quants.dequantize(data, kind).astype(np.float32))
    # gguf does not quantise to these, so any bytes, with sane numbers where the scales are.
    scales_at = {"Q2_K": (80, 82), "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
    for name, offsets in scales_at.items():
        kind = GGMLQuantizationType[name]
        _block, size = gguf.GGML_QUANT_SIZES[kind]
        data = rng.integers(0, 256, size=(3, size), dtype=np.uint8)
        for offset in offsets:
            scales = rng.uniform(0.001, 0.1, size=3).astype(np.float16)
            scales[2] *= -1
            data[:, offset:offset + 2] = scales.view(np.uint8).reshape(3, 2)
        out[f"{name}.bytes"] = torch.from_numpy(data)
        out[f"{name}.values"] = torch.from_numpy(gguf.quants.dequantize(data, kind).astype(np.float32))
    save_file({key: tensor.contiguous() for key, tensor in out.items()}, HERE / "quants.safetensors")


def main():
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    names = sys.argv[1:]
    if unknown := sorted(set(names) - set(FILES)):
        sys.exit(f"FILES has no {', '.join(unknown)}")
    ids = torch.randint(0, VOCAB, (9,), generator=torch.Generator().manual_seed(77))
    golden = HERE / "gguf.golden.safetensors"
    out = {"ids": ids} | (load_file(golden) if names else {})
    for name, (arch, kind) in FILES.items():
        if names and name not in names:
            continue
        write(name, arch, kind)
        model, config = reference(name, arch, kind)
        hidden = hidden_of(model, ids)
        out[f"{name}.hidden"] = hidden.contiguous().clone()
        checked = check_with_the_loader(name, ids, hidden, config)
        print(f"{name:14} {gguf.MODEL_ARCH_NAMES[arch]:8} {kind.name:5} {checked}",
              flush=True)
    save_file(out, golden)
    if not names:
        quants()
    for path in HERE.glob("*.safetensors"):
        path.chmod(0o644)
    if names:
        return
    versions = HERE / "VERSIONS.txt"
    others = [line for line in versions.read_text().splitlines() if not line.startswith(("gguf ", "numpy "))]
    versions.write_text("\n".join([*others, f"gguf {version('gguf')}", f"numpy {np.__version__}"]) + "\n")


if __name__ == "__main__":
    main()
