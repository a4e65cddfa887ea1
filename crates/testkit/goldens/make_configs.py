#!/usr/bin/env python3
"""Makes configs.json: what transformers computes of configurations that leave keys out, have them in two places, or have
keys that it does not read. VERSIONS.txt says with which versions.

    pip install torch==2.13.0 transformers safetensors && python make_configs.py
    python make_configs.py olmo2    # some of the bases alone; the cases of the others stay as they are in the file

Each case is a configuration, as changes of one of `bases`, and the logits of one row of ids in fp32. The weights are in
no file: `weights` makes them of their names and shapes, and tests make them again. `tensors` has the names and shapes of
the tensors that a case has on disk. `classes` has the keys of each configuration class with their defaults.

`kind` says why a case is here:
    default   a key is left out, and the configuration class has a default for it
    places    a key stands in two places, or under two names
    spelling  rotary positions as `rope_scaling` and `rope_theta`, or as `rope_parameters`
    null      a key is there and null, which is not the same as left out
    unused    a key that is not read
Cases that must not give the logits of another configuration say so (`unlike`), and it is checked here.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    PreTrainedConfig,
)
from transformers.modeling_layers import GenericForSequenceClassification

HERE = pathlib.Path(__file__).parent
LABELS = 3
IDS = [11, 42, 7, 29, 53, 3, 17, 60, 38, 5, 21, 47, 12, 33, 58, 9, 26, 44, 15, 62, 31, 8, 50, 19]

TOKENS = dict(vocab_size=64, pad_token_id=None, bos_token_id=1, eos_token_id=2)
SHAPE = dict(**TOKENS, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
GATED = dict(**SHAPE, intermediate_size=48, num_key_value_heads=2)
GEMMA = dict(**GATED, head_dim=16)
BASES = {
    "llama": dict(model_type="llama", **GATED),
    "mistral": dict(model_type="mistral", **GATED),
    "mixtral": dict(model_type="mixtral", **GATED, head_dim=16, num_local_experts=4),
    "qwen2": dict(model_type="qwen2", **GATED),
    "qwen3": dict(model_type="qwen3", **GATED, head_dim=16),
    "gemma": dict(model_type="gemma", **GEMMA),
    "gemma2": dict(model_type="gemma2", **GEMMA, query_pre_attn_scalar=16),
    "gemma3_text": dict(model_type="gemma3_text", **GEMMA, query_pre_attn_scalar=16, sliding_window=8,
                        sliding_window_pattern=2),
    "phi3": dict(model_type="phi3", **GATED),
    "stablelm": dict(model_type="stablelm", **GATED),
    "falcon": dict(model_type="falcon", **SHAPE),
    "gpt_neox": dict(model_type="gpt_neox", **SHAPE, intermediate_size=48),
    "bloom": dict(model_type="bloom", **TOKENS, hidden_size=64, n_layer=2, n_head=4),
    "gpt2": dict(model_type="gpt2", **TOKENS, n_embd=64, n_layer=2, n_head=4, n_positions=64),
    "opt": dict(model_type="opt", **SHAPE, ffn_dim=48),
    "olmo2": dict(model_type="olmo2", **GATED),
    "smollm3": dict(model_type="smollm3", **GATED),
    "granite": dict(model_type="granite", **GATED),
    "qwen2_moe": dict(model_type="qwen2_moe", **GATED, num_experts=5, moe_intermediate_size=24,
                      shared_expert_intermediate_size=40),
    "qwen3_moe": dict(model_type="qwen3_moe", **GATED, num_experts=9, moe_intermediate_size=24),
    "glm4": dict(model_type="glm4", **GATED, head_dim=16),
    "cohere": dict(model_type="cohere", **GATED),
    "olmo3": dict(model_type="olmo3", **GATED, sliding_window=8, layer_types=["sliding_attention", "full_attention"]),
    "gpt_oss": dict(model_type="gpt_oss", **GATED, head_dim=16, num_local_experts=5, sliding_window=8),
    "phimoe": dict(model_type="phimoe", **GATED, num_local_experts=5, router_jitter_noise=0.3),
    "glm": dict(model_type="glm", **GATED, head_dim=16),
    "cohere2": dict(model_type="cohere2", **GATED, sliding_window=8),
}
# Later families: their cases come last, so that the tensors of the others keep their numbers.
LATER = ["olmo2", "smollm3", "granite", "qwen2_moe", "qwen3_moe", "glm4", "cohere", "olmo3", "gpt_oss", "phimoe"]
LATEST = ["glm", "cohere2"]
ROTARY = [name for name in BASES if name not in ("bloom", "gpt2", "opt", *LATER, *LATEST)]

LLAMA3 = dict(rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0)
YARN = dict(rope_type="yarn", factor=4.0)
# Numbers of a head that turn: a quarter where the class says so.
PAIRS = {"gpt_neox": 2, "stablelm": 2, "glm4": 4, "glm": 4}


def longrope(base):
    pairs = PAIRS.get(base, 8)
    return dict(rope_type="longrope", short_factor=[1.0 + 0.5 * at for at in range(pairs)],
                long_factor=[2.0 + at for at in range(pairs)])


def older(scaling):
    """With `type` for `rope_type`."""
    return {"type" if key == "rope_type" else key: value for key, value in scaling.items()}


def case(base, kind, about, changes=None, without=(), unlike=()):
    return dict(base=base, kind=kind, about=about, set=changes or {}, without=list(without), unlike=list(unlike))


def rotary_cases(base):
    theta = "rotary_emb_base" if base == "gpt_neox" else "rope_theta"
    yield case(base, "default", "rope_theta", unlike=[{theta: 77.0}])
    yield case(base, "spelling", "rope_theta", {theta: 77.0}, unlike=[{}])
    if base == "gemma3_text":
        return
    yield case(base, "spelling", "rope_parameters.rope_theta",
               {"rope_parameters": dict(rope_type="default", rope_theta=77.0)}, unlike=[{}])
    yield case(base, "places", "rope_theta", {theta: 5.0, "rope_parameters": dict(rope_theta=77.0)},
               unlike=[{theta: 5.0}])
    yield case(base, "places", "rope_theta without it in rope_parameters",
               {theta: 5.0, "rope_parameters": dict(rope_type="default")}, unlike=[{}])
    if base == "gpt_neox":
        yield case(base, "unused", "rope_theta", {"rope_theta": 5.0})
        yield case(base, "places", "rotary_pct", {"rotary_pct": 0.5, "rope_parameters": dict(partial_rotary_factor=1.0)},
                   unlike=[{"rotary_pct": 0.5}])
        yield case(base, "spelling", "rotary_pct", {"rotary_pct": 0.5}, unlike=[{}])
        yield case(base, "unused", "partial_rotary_factor", {"partial_rotary_factor": 0.5})
    if base in ("stablelm", "phi3"):
        yield case(base, "default", "partial_rotary_factor", unlike=[{"partial_rotary_factor": 0.5}])
        yield case(base, "places", "partial_rotary_factor",
                   {"partial_rotary_factor": 0.75, "rope_parameters": dict(partial_rotary_factor=0.5)},
                   unlike=[{"partial_rotary_factor": 0.75}])
        yield case(base, "spelling", "partial_rotary_factor", {"partial_rotary_factor": 0.5}, unlike=[{}])
    if base == "phi3":
        yield from phi3_cases()
        return
    linear = dict(rope_type="linear", factor=3.0)
    yield case(base, "spelling", "linear, older", {"rope_scaling": older(linear), theta: 77.0}, unlike=[{theta: 77.0}])
    yield case(base, "spelling", "linear, newer", {"rope_parameters": dict(linear, rope_theta=77.0)})
    yield case(base, "places", "rope_scaling and rope_parameters",
               {"rope_scaling": linear, "rope_parameters": dict(rope_type="default", rope_theta=77.0)},
               unlike=[{"rope_parameters": dict(rope_type="default", rope_theta=77.0)}])
    yield case(base, "places", "an empty rope_scaling and rope_parameters",
               {"rope_scaling": {}, "rope_parameters": dict(linear, rope_theta=77.0)}, unlike=[{}])
    yield case(base, "places", "rope_type and type", {"rope_scaling": dict(type="linear", rope_type="default", factor=3.0)})
    yield case(base, "spelling", "dynamic", {"rope_scaling": dict(type="dynamic", factor=2.0)})
    original = "original_max_position_embeddings"
    for scaling in (LLAMA3, YARN, longrope(base)):
        name = scaling["rope_type"]
        for spelling, write in (("older", lambda more: {"rope_scaling": older(dict(scaling, **more)), theta: 77.0}),
                                ("newer", lambda more: {"rope_parameters": dict(scaling, rope_theta=77.0, **more)})):
            yield case(base, "spelling", f"{name}, {spelling}, {original} in it", write({original: 32}))
            yield case(base, "places", f"{name}, {spelling}, {original} in both", {**write({original: 24}), original: 1024},
                       unlike=[write({original: 24})])
            yield case(base, "places", f"{name}, {spelling}, {original} above", {**write({}), original: 32},
                       unlike=[write({})])
        yield case(base, "default", f"{name}, {original}", write({}))
    yield case(base, "null", "yarn, factor", {"rope_scaling": dict(YARN, factor=None, **{original: 16})},
               unlike=[{"rope_scaling": dict(YARN, factor=2.0, **{original: 16})}])
    yield case(base, "places", "yarn, attention_factor and mscale", {
        "rope_scaling": dict(YARN, attention_factor=1.5, mscale=2.0, mscale_all_dim=1.0)})
    yield case(base, "spelling", "yarn, mscale", {"rope_scaling": dict(YARN, mscale=2.0, mscale_all_dim=1.0)},
               unlike=[{"rope_scaling": YARN}])
    yield case(base, "unused", "yarn, mscale alone", {"rope_scaling": dict(YARN, mscale=2.0)},
               unlike=[{"rope_scaling": dict(YARN, mscale=2.0, mscale_all_dim=1.0)}])
    yield case(base, "default", "yarn, zeros", {
        "rope_scaling": dict(YARN, mscale=0, mscale_all_dim=0, beta_fast=0, beta_slow=0)})
    yield case(base, "places", "longrope, factor and the ratio", {
        "rope_scaling": dict(longrope(base), factor=2.0, **{original: 32}), "max_position_embeddings": 256},
        unlike=[{"rope_scaling": dict(longrope(base), **{original: 32}), "max_position_embeddings": 256}])


def phi3_cases():
    scaling, original = longrope("phi3"), "original_max_position_embeddings"
    for spelling, write in (("older", lambda more: {"rope_scaling": older(dict(scaling, **more)), "rope_theta": 77.0}),
                            ("newer", lambda more: {"rope_parameters": dict(scaling, rope_theta=77.0, **more)})):
        longer = {"max_position_embeddings": 8192}
        yield case("phi3", "default", f"longrope, {spelling}, {original}", {**write({}), **longer},
                   unlike=[{**write({}), **longer, original: 64}])
        yield case("phi3", "default", f"longrope, {spelling}, {original} in it is not taken",
                   {**write({original: 64}), **longer}, unlike=[{**write({}), **longer, original: 64}])
        yield case("phi3", "places", f"longrope, {spelling}, {original}", {**write({original: 32}), original: 64})
        yield case("phi3", "spelling", f"longrope, {spelling}", {**write({}), **longer, original: 64})
    yield case("phi3", "spelling", "yarn stands for longrope", {"rope_scaling": {**scaling, "rope_type": "yarn"},
                                                               original: 32})


def gemma3_cases():
    base, original = "gemma3_text", "original_max_position_embeddings"
    linear = dict(rope_type="linear", factor=3.0)
    full = dict(linear, rope_theta=77.0)
    yield case(base, "default", "rope_local_base_freq", unlike=[{"rope_local_base_freq": 77.0}])
    yield case(base, "spelling", "rope_local_base_freq", {"rope_local_base_freq": 77.0})
    yield case(base, "spelling", "rope_scaling", {"rope_scaling": linear}, unlike=[{}])
    yield case(base, "unused", "rope_scaling with type for rope_type", {"rope_scaling": older(linear)},
               unlike=[{"rope_scaling": linear}])
    yield case(base, "places", "rope_scaling.rope_theta", {"rope_scaling": dict(linear, rope_theta=77.0), "rope_theta": 5.0})
    yield case(base, "spelling", "rope_parameters", {"rope_parameters": dict(
        full_attention=full, sliding_attention=dict(rope_type="default", rope_theta=9.0))})
    yield case(base, "spelling", "scaled positions within the window", {"rope_parameters": dict(
        full_attention=full, sliding_attention=dict(rope_type="linear", factor=2.0, rope_theta=9.0))},
        unlike=[{"rope_parameters": dict(full_attention=full, sliding_attention=dict(rope_type="default", rope_theta=9.0))}])
    yield case(base, "spelling", "full_attention alone", {"rope_parameters": dict(full_attention=full),
                                                          "rope_local_base_freq": 9.0})
    yield case(base, "spelling", "sliding_attention alone", {"rope_parameters": dict(
        sliding_attention=dict(rope_type="linear", factor=2.0)), "rope_theta": 9.0, "rope_local_base_freq": 7.0})
    yield case(base, "places", "rope_scaling over full_attention", {
        "rope_scaling": linear, "rope_parameters": dict(full_attention=dict(rope_type="default", rope_theta=77.0))},
        unlike=[{"rope_parameters": dict(full_attention=dict(rope_type="default", rope_theta=77.0))}])
    yield case(base, "places", "theta", {"rope_theta": 5.0, "rope_local_base_freq": 6.0, "rope_parameters": dict(
        full_attention=dict(rope_type="default", rope_theta=77.0),
        sliding_attention=dict(rope_type="default", rope_theta=9.0))})
    yield case(base, "unused", "rope_parameters without kinds of layers", {"rope_parameters": full}, unlike=[
        {"rope_parameters": dict(full_attention=full)}])
    for scaling in (LLAMA3, YARN, longrope(base)):
        name = scaling["rope_type"]
        of = lambda **more: dict(rope_parameters=dict(full_attention=dict(scaling, rope_theta=77.0, **more)))
        yield case(base, "default", f"{name}, {original}", of())
        yield case(base, "unused", f"{name}, {original} above", {**of(**{original: 24}), original: 48},
                   unlike=[of(**{original: 48})])
    yield case(base, "unused", "attn_logit_softcapping", {"attn_logit_softcapping": 0.5})
    yield case(base, "default", "sliding_window_pattern", {"num_hidden_layers": 6}, ["sliding_window_pattern"],
               unlike=[{"num_hidden_layers": 6}])
    yield case(base, "places", "layer_types and sliding_window_pattern",
               {"layer_types": ["full_attention", "sliding_attention"]}, unlike=[{}])
    yield case(base, "default", "query_pre_attn_scalar", without=["query_pre_attn_scalar"], unlike=[{}])
    yield case(base, "default", "head_dim", without=["head_dim"])


def size_cases():
    """Sizes of the class that a small model can have."""
    heads, kv = "num_attention_heads", "num_key_value_heads"
    for base, changes, without in [
        ("mistral", {}, [heads, kv]), ("mixtral", {}, [heads, kv]), ("qwen2", {}, [heads, kv]), ("qwen3", {}, [heads, kv]),
        ("gemma", {}, [heads, kv]), ("gemma2", {}, [heads, kv]), ("gemma3_text", {}, [heads, kv]), ("phi3", {}, [heads, kv]),
        ("stablelm", dict(hidden_size=256), [heads, kv]), ("gpt_neox", dict(hidden_size=512), [heads]),
        ("falcon", dict(hidden_size=568), [heads]), ("opt", dict(hidden_size=96), [heads]),
        ("gpt2", dict(n_embd=96), ["n_head"]),
    ]:
        yield case(base, "default", ", ".join(without), changes, without)
    for base, key in [
        ("llama", "intermediate_size"), ("mistral", "intermediate_size"), ("gpt_neox", "intermediate_size"),
        ("phi3", "intermediate_size"), ("stablelm", "intermediate_size"), ("opt", "ffn_dim"), ("llama", "vocab_size"),
        ("opt", "vocab_size"), ("gpt2", "vocab_size"), ("gpt2", "n_layer"), ("opt", "num_hidden_layers"),
    ]:
        yield case(base, "default", key, without=[key])


def other_cases():
    both = ["full_attention", "sliding_attention"]
    yield case("llama", "default", "num_key_value_heads", without=["num_key_value_heads"])
    yield case("llama", "default", "num_attention_heads", without=["num_attention_heads", "num_key_value_heads"])
    yield case("llama", "default", "hidden_act, rms_norm_eps", unlike=[{"rms_norm_eps": 1e-5}])
    yield case("llama", "unused", "windows", {"sliding_window": 4, "layer_types": both, "use_sliding_window": True})
    yield case("llama", "spelling", "biases", {"attention_bias": True, "mlp_bias": True}, unlike=[{}])
    yield case("llama", "default", "max_position_embeddings", {"rope_scaling": dict(YARN)}, ["max_position_embeddings"],
               unlike=[{"rope_scaling": dict(YARN)}])
    yield case("mistral", "default", "num_key_value_heads", {"num_attention_heads": 8}, ["num_key_value_heads"])
    yield case("mistral", "default", "sliding_window")
    yield case("mistral", "spelling", "sliding_window", {"sliding_window": 4}, unlike=[{}])
    yield case("mistral", "null", "sliding_window", {"sliding_window": None})
    # AutoConfig takes a Mistral with this key for a Ministral, which must have `head_dim`.
    yield case("mistral", "spelling", "layer_types", {"sliding_window": 4, "layer_types": both, "head_dim": 16},
               unlike=[{"sliding_window": 4}, {}])
    yield case("mixtral", "default", "num_key_value_heads", {"num_attention_heads": 8}, ["num_key_value_heads"])
    yield case("mixtral", "default", "rms_norm_eps", unlike=[{"rms_norm_eps": 1e-3}])
    yield case("mixtral", "default", "num_local_experts, num_experts_per_tok", without=["num_local_experts"],
               unlike=[{"num_local_experts": 8, "num_experts_per_tok": 3}])
    yield case("mixtral", "places", "num_experts and num_local_experts", {"num_local_experts": 3, "num_experts": 4})
    yield case("mixtral", "unused", "layer_types", {"sliding_window": 4, "layer_types": both}, unlike=[{}])
    for base in ("qwen2", "qwen3"):
        used = {"use_sliding_window": True, "max_window_layers": 1}
        yield case(base, "default", "num_key_value_heads", {"num_attention_heads": 32}, ["num_key_value_heads"])
        yield case(base, "null", "num_key_value_heads", {"num_key_value_heads": None})
        yield case(base, "unused", "sliding_window", {"sliding_window": 4})
        yield case(base, "spelling", "sliding_window", {**used, "sliding_window": 4}, unlike=[{}])
        yield case(base, "null", "sliding_window", {**used, "sliding_window": None}, unlike=[{**used, "sliding_window": 4}])
        yield case(base, "default", "max_window_layers", {"use_sliding_window": True, "sliding_window": 4})
        yield case(base, "places", "layer_types and max_window_layers", {
            **used, "sliding_window": 4, "layer_types": both[::-1]}, unlike=[{**used, "sliding_window": 4}])
        yield case(base, "spelling", "attention for full_attention", {
            **used, "sliding_window": 4, "layer_types": ["attention", "sliding_attention"]})
    yield case("qwen3", "default", "head_dim", without=["head_dim"])
    yield case("qwen3", "spelling", "attention_bias", {"attention_bias": True}, unlike=[{}])
    yield case("gemma", "default", "num_key_value_heads", {"num_attention_heads": 16}, ["num_key_value_heads"])
    yield case("gemma", "default", "head_dim", without=["head_dim"])
    yield case("gemma", "spelling", "gelu", {"hidden_act": "gelu"})
    yield case("gemma", "unused", "hidden_activation", {"hidden_activation": "gelu"})
    yield case("gemma", "unused", "attn_logit_softcapping, sliding_window",
               {"attn_logit_softcapping": 0.5, "sliding_window": 4})
    for base in ("gemma2", "gemma3_text"):
        yield case(base, "default", "num_key_value_heads", {"num_attention_heads": 8}, ["num_key_value_heads"])
        yield case(base, "unused", "hidden_act", {"hidden_act": "relu"})
    yield case("gemma2", "default", "query_pre_attn_scalar", without=["query_pre_attn_scalar"], unlike=[{}])
    yield case("gemma2", "default", "attn_logit_softcapping", unlike=[{"attn_logit_softcapping": None}])
    yield case("gemma2", "null", "attn_logit_softcapping", {"attn_logit_softcapping": None})
    yield case("gemma2", "spelling", "attn_logit_softcapping", {"attn_logit_softcapping": 0.5}, unlike=[{}])
    yield case("gemma2", "default", "layer_types", {"sliding_window": 4}, unlike=[{}])
    yield case("gemma2", "places", "layer_types", {"sliding_window": 4, "layer_types": both},
               unlike=[{"sliding_window": 4}])
    yield case("gemma2", "unused", "sliding_window_pattern", {"sliding_window": 4, "sliding_window_pattern": 1})
    yield case("phi3", "default", "num_key_value_heads", without=["num_key_value_heads"])
    yield case("phi3", "spelling", "sliding_window", {"sliding_window": 4}, unlike=[{}])
    yield case("phi3", "unused", "layer_types", {"sliding_window": 4, "layer_types": both}, unlike=[{}])
    yield case("stablelm", "default", "num_key_value_heads", {"num_attention_heads": 32, "hidden_size": 256},
               ["num_key_value_heads"])
    yield case("stablelm", "spelling", "use_qkv_bias", {"use_qkv_bias": True}, unlike=[{}])
    yield case("stablelm", "unused", "norm_eps, rope_pct", {"norm_eps": 0.1, "rope_pct": 0.5, "rms_norm_eps": 0.1})
    yield case("falcon", "default", "multi_query")
    yield case("falcon", "null", "multi_query", {"multi_query": None})
    yield case("falcon", "null", "parallel_attn", {"parallel_attn": None}, unlike=[{}])
    yield case("falcon", "spelling", "parallel_attn", {"parallel_attn": False})
    yield case("falcon", "default", "num_kv_heads", {"new_decoder_architecture": True})
    yield case("falcon", "places", "num_kv_heads and n_head_kv", {
        "new_decoder_architecture": True, "num_kv_heads": 2, "n_head_kv": 4})
    yield case("falcon", "unused", "num_kv_heads", {"num_kv_heads": 2})
    yield case("falcon", "places", "n_embed and hidden_size", {"n_embed": 64, "hidden_size": 32})
    yield case("falcon", "places", "num_hidden_layers and n_layer", {"n_layer": 1, "n_head": 2})
    yield case("falcon", "spelling", "alibi", {"alibi": True, "multi_query": False, "bias": True}, unlike=[{}])
    yield case("falcon", "spelling", "one norm", {
        "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1, "ffn_hidden_size": 40})
    yield case("gpt_neox", "default", "rotary_pct", unlike=[{"rotary_pct": 1.0}])
    yield case("gpt_neox", "default", "use_parallel_residual", unlike=[{"use_parallel_residual": False}])
    yield case("gpt_neox", "default", "attention_bias")
    yield case("gpt_neox", "spelling", "attention_bias", {"attention_bias": False}, unlike=[{}])
    yield case("bloom", "default", "hidden_size, n_layer, n_head", without=["hidden_size", "n_layer", "n_head"],
               unlike=[{}])
    yield case("bloom", "places", "num_attention_heads and n_head", {"num_attention_heads": 2}, unlike=[{}])
    yield case("bloom", "places", "num_hidden_layers and n_layer", {"num_hidden_layers": 1}, unlike=[{}])
    yield case("bloom", "places", "n_embed and hidden_size", {"n_embed": 32})
    yield case("bloom", "unused", "n_inner, slow_but_exact alone", {"n_inner": 7, "slow_but_exact": True})
    yield case("bloom", "default", "layer_norm_epsilon", unlike=[{"layer_norm_epsilon": 1e-3}])
    yield case("gpt2", "places", "hidden_size and n_embd", {"n_embd": 32, "hidden_size": 64})
    yield case("gpt2", "places", "num_attention_heads and n_head", {"num_attention_heads": 2}, unlike=[{}])
    yield case("gpt2", "places", "num_hidden_layers and n_layer", {"num_hidden_layers": 1}, unlike=[{}])
    yield case("gpt2", "places", "max_position_embeddings and n_positions", {"max_position_embeddings": 32})
    yield case("gpt2", "spelling", "the common names", {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64},
        ["n_embd", "n_layer", "n_head", "n_positions"])
    yield case("gpt2", "default", "n_positions", without=["n_positions"])
    yield case("gpt2", "default", "n_inner, activation_function", unlike=[{"activation_function": "gelu"}])
    yield case("gpt2", "unused", "n_ctx, reorder_and_upcast_attn", {"n_ctx": 8, "reorder_and_upcast_attn": True})
    yield case("gpt2", "spelling", "scale_attn_weights", {"scale_attn_weights": False}, unlike=[{}])
    yield case("opt", "default", "max_position_embeddings", without=["max_position_embeddings"])
    yield case("opt", "default", "activation_function", unlike=[{"activation_function": "gelu"}])
    yield case("opt", "spelling", "enable_bias", {"enable_bias": False}, unlike=[{}])
    yield case("opt", "unused", "layer_norm_eps, hidden_act", {"layer_norm_eps": 0.1, "hidden_act": "gelu"})


def olmo3_cases():
    base, linear = "olmo3", dict(rope_type="linear", factor=3.0)
    full, local = dict(linear, rope_theta=77.0), dict(rope_type="default", rope_theta=9.0)
    yield case(base, "default", "rope_theta", unlike=[{"rope_theta": 77.0}])
    yield case(base, "spelling", "rope_theta", {"rope_theta": 77.0}, unlike=[{}])
    yield case(base, "spelling", "rope_scaling", {"rope_scaling": linear}, unlike=[{}])
    yield case(base, "spelling", "yarn", {"rope_theta": 77.0, "rope_scaling": dict(YARN, original_max_position_embeddings=16)})
    yield case(base, "places", "rope_scaling.rope_theta", {"rope_scaling": dict(linear, rope_theta=77.0), "rope_theta": 5.0})
    yield case(base, "spelling", "rope_parameters", {"rope_parameters": dict(full_attention=full, sliding_attention=local)},
               unlike=[{}])
    yield case(base, "spelling", "full_attention alone", {"rope_parameters": dict(full_attention=full), "rope_theta": 9.0})
    yield case(base, "spelling", "sliding_attention alone", {"rope_parameters": dict(sliding_attention=local),
                                                            "rope_theta": 7.0})
    yield case(base, "unused", "rope_parameters without kinds of layers", {"rope_parameters": full})
    yield case(base, "default", "layer_types", {"num_hidden_layers": 4}, ["layer_types"])
    yield case(base, "default", "sliding_window", without=["sliding_window"], unlike=[{}])


def phimoe_cases():
    """Positions of Phi-3.5-MoE: `longrope` with a factor of its own, or unscaled."""
    base, original = "phimoe", "original_max_position_embeddings"
    scaling = dict(longrope(base), short_mscale=1.25, long_mscale=1.5)
    yield case(base, "default", "rope_theta", unlike=[{"rope_theta": 77.0}])
    yield case(base, "spelling", "rope_theta", {"rope_theta": 77.0}, unlike=[{}])
    yield case(base, "places", "rope_theta", {"rope_theta": 5.0, "rope_parameters": dict(rope_theta=77.0)},
               unlike=[{"rope_theta": 5.0}])
    yield case(base, "spelling", "longrope, older", {"rope_scaling": dict(older(scaling), **{original: 32}), "rope_theta": 77.0},
               unlike=[{"rope_theta": 77.0}])
    yield case(base, "spelling", "longrope, newer", {"rope_parameters": dict(scaling, rope_theta=77.0, **{original: 32})})
    yield case(base, "default", f"longrope, {original}", {"rope_scaling": scaling})
    yield case(base, "unused", f"{original} above", {"rope_scaling": dict(scaling, **{original: 32}), original: 16},
               unlike=[{"rope_scaling": dict(scaling, **{original: 16})}])
    yield case(base, "unused", "longrope, factor and attention_factor", {
        "rope_scaling": dict(scaling, factor=4.0, attention_factor=3.0, **{original: 32})},
        unlike=[{"rope_scaling": dict(scaling, short_mscale=3.0, **{original: 32})}])


def gpt_oss_cases(both):
    """Scaled positions by default, and the parts of experts."""
    base, original = "gpt_oss", "original_max_position_embeddings"
    yield case(base, "default", "rope_parameters", {"max_position_embeddings": 131072},
               unlike=[{"rope_parameters": {}}])
    yield case(base, "null", "rope_parameters", {"rope_parameters": None, "rope_scaling": None})
    yield case(base, "spelling", "an empty rope_parameters", {"rope_parameters": {}}, unlike=[{}])
    yield case(base, "default", "an empty rope_scaling", {"rope_scaling": {}}, unlike=[{"rope_parameters": {}}])
    yield case(base, "places", f"{original} above", {original: 8}, unlike=[{}])
    for truncate in (True, False, None):
        yield case(base, "spelling" if truncate is not None else "null", f"yarn, truncate of {truncate}", {
            "rope_scaling": dict(YARN, truncate=truncate, **{original: 32}), "rope_theta": 77.0},
            unlike=[{"rope_scaling": dict(YARN, truncate=not truncate, **{original: 32}), "rope_theta": 77.0}])
    yield case(base, "default", "swiglu_alpha, swiglu_limit", unlike=[{"swiglu_alpha": 1.0}])
    yield case(base, "spelling", "swiglu_alpha", {"swiglu_alpha": 1.0}, unlike=[{}])
    yield case(base, "spelling", "swiglu_limit", {"swiglu_limit": 0.5}, unlike=[{}])
    yield case(base, "unused", "hidden_act, use_sliding_window", {"hidden_act": "relu", "use_sliding_window": False})
    yield case(base, "default", "num_experts_per_tok", unlike=[{"num_experts_per_tok": 2}])
    yield case(base, "default", "num_local_experts", without=["num_local_experts"])
    yield case(base, "places", "num_experts and num_local_experts", {"num_local_experts": 6, "num_experts": 7})
    yield case(base, "default", "layer_types", {"num_hidden_layers": 3},
               unlike=[{"num_hidden_layers": 3, "layer_types": ["full_attention", "sliding_attention", "full_attention"]}])
    yield case(base, "places", "layer_types", {"layer_types": both}, unlike=[{}])
    yield case(base, "default", "sliding_window", without=["sliding_window"], unlike=[{}])
    yield case(base, "default", "head_dim", without=["head_dim"])


def family_cases(base):
    """Sizes, positions, epsilon and biases."""
    yield from dict(olmo3=olmo3_cases, phimoe=phimoe_cases).get(base, lambda: rotary_cases(base))()
    heads = {"num_attention_heads": 32} if "moe" in base or base == "gpt_oss" else {}
    yield case(base, "default", "num_key_value_heads", heads, ["num_key_value_heads"])
    is_cohere = base.startswith("cohere")
    for without in (["intermediate_size"], ["vocab_size"], ["max_position_embeddings"],
                    ["num_attention_heads", "num_key_value_heads"]):
        size = {"hidden_size": 256} if is_cohere and "num_attention_heads" in without else {}
        yield case(base, "default", ", ".join(without), size, without)
    eps = "layer_norm_eps" if is_cohere else "rms_norm_eps"
    yield case(base, "default", eps, unlike=[{eps: 1e-2}])
    bias = "qkv_bias" if base == "qwen2_moe" else "attention_bias"
    yield case(base, "spelling", bias, {bias: base not in ("qwen2_moe", "glm", "glm4", "gpt_oss")}, unlike=[{}])


def glm_cases(base):
    quarter = dict(rope_type="default", partial_rotary_factor=0.25)
    yield case(base, "default", "partial_rotary_factor", unlike=[{"partial_rotary_factor": 1.0}])
    yield case(base, "spelling", "partial_rotary_factor", {"partial_rotary_factor": 0.75}, unlike=[{}])
    yield case(base, "places", "partial_rotary_factor", {"partial_rotary_factor": 0.75, "rope_parameters": quarter})
    yield case(base, "default", "head_dim", without=["head_dim"])


def later_cases():
    both = ["full_attention", "sliding_attention"]
    for base in LATER:
        yield from family_cases(base)
    yield case("olmo2", "unused", "windows", {"sliding_window": 4, "layer_types": both, "use_sliding_window": True})
    every = {"no_rope_layer_interval": 2}
    yield case("smollm3", "default", "no_rope_layer_interval", {"num_hidden_layers": 4},
               unlike=[{"num_hidden_layers": 4, "no_rope_layers": [1, 1, 1, 1]}])
    yield case("smollm3", "spelling", "no_rope_layer_interval", every, unlike=[{}])
    yield case("smollm3", "places", "no_rope_layers and no_rope_layer_interval", {**every, "no_rope_layers": [0, 1, 0]},
               unlike=[every])
    yield case("smollm3", "unused", "sliding_window", {**every, "sliding_window": 4})
    yield case("smollm3", "null", "sliding_window", {**every, "sliding_window": None, "use_sliding_window": True})
    window = {**every, "sliding_window": 4, "use_sliding_window": True}
    yield case("smollm3", "spelling", "sliding_window", window, unlike=[every])
    yield case("smollm3", "places", "layer_types and no_rope_layers", {**window, "layer_types": both[::-1]},
               unlike=[window])
    for base in ("smollm3", "granite"):
        yield case(base, "spelling", "mlp_bias", {"mlp_bias": True}, unlike=[{}])
    yield case("granite", "default", "attention_multiplier", unlike=[{"attention_multiplier": 0.25}])
    for key in ("embedding_multiplier", "residual_multiplier", "attention_multiplier"):
        yield case("granite", "spelling", key, {key: 0.25}, unlike=[{}])
    for base in ("qwen2_moe", "qwen3_moe"):
        used = {"use_sliding_window": True, "sliding_window": 4}
        yield case(base, "default", "num_experts_per_tok", unlike=[{"num_experts_per_tok": 2}])
        yield case(base, "default", "norm_topk_prob", unlike=[{"norm_topk_prob": True}])
        yield case(base, "spelling", "norm_topk_prob", {"norm_topk_prob": True})
        yield case(base, "default", "moe_intermediate_size", {"num_experts": 8}, ["moe_intermediate_size"])
        yield case(base, "unused", "sliding_window", {"sliding_window": 4})
        yield case(base, "spelling", "sliding_window", used, unlike=[{}])
        yield case(base, "places", "layer_types", {**used, "layer_types": both[::-1]}, unlike=[{}])
        yield case(base, "places", "num_experts and num_local_experts", {"num_local_experts": 10, "num_experts": 11})
    yield from glm_cases("glm4")
    yield case("cohere", "unused", "logit_scale, rms_norm_eps", {"logit_scale": 0.5, "rms_norm_eps": 0.5})
    yield case("qwen2_moe", "spelling", "max_window_layers", {
        "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0}, unlike=[{"sliding_window": 4,
        "use_sliding_window": True}])
    yield case("granite", "unused", "logits_scaling, windows", {
        "logits_scaling": 8.0, "sliding_window": 4, "layer_types": both})
    yield from gpt_oss_cases(both)
    yield case("phimoe", "default", "router_jitter_noise", without=["router_jitter_noise"], unlike=[{}])
    yield case("phimoe", "spelling", "router_jitter_noise of 0", {"router_jitter_noise": 0.0}, unlike=[{}])
    yield case("phimoe", "default", "num_local_experts", without=["num_local_experts"])
    yield case("phimoe", "unused", "num_experts, num_experts_per_tok, layer_types, lm_head_bias, input_jitter_noise", {
        "num_experts": 7, "num_experts_per_tok": 1, "layer_types": both, "lm_head_bias": True, "input_jitter_noise": 0.5})
    yield case("phimoe", "spelling", "sliding_window", {"sliding_window": 4}, unlike=[{}])


def norm_cases():
    """Norms with a weight for each head, of some models of a family."""
    for base, key in (("stablelm", "qk_layernorm"), ("cohere", "use_qk_norm")):
        yield case(base, "spelling", key, {key: True}, unlike=[{}])
        yield case(base, "default", f"num_key_value_heads, {key}", {key: True, "num_attention_heads": 32, "hidden_size": 256},
                   ["num_key_value_heads"])
    yield case("cohere", "null", "use_qk_norm", {"use_qk_norm": None})


def latest_cases():
    for base in LATEST:
        yield from family_cases(base)
    yield from glm_cases("glm")
    base, full = "cohere2", "full_attention"
    yield case(base, "unused", "logit_scale, rms_norm_eps, use_qk_norm", {
        "logit_scale": 0.5, "rms_norm_eps": 0.5, "use_qk_norm": True})
    yield case(base, "default", "sliding_window", without=["sliding_window"], unlike=[{}])
    five = {"num_hidden_layers": 5}
    yield case(base, "default", "sliding_window_pattern", five, unlike=[{**five, "sliding_window_pattern": 5}])
    yield case(base, "spelling", "sliding_window_pattern", {"sliding_window_pattern": 2}, unlike=[{}])
    yield case(base, "places", "layer_types and sliding_window_pattern", {
        "sliding_window_pattern": 2, "layer_types": [full, "sliding_attention"]}, unlike=[{"sliding_window_pattern": 2}])
    yield case(base, "places", "layer_types without windows", {"layer_types": [full] * 2}, unlike=[{}])
    yield case(base, "spelling", "head_dim", {"head_dim": 8}, unlike=[{}])


def cases():
    for base in ROTARY:
        yield from rotary_cases(base)
    yield from gemma3_cases()
    yield from size_cases()
    yield from other_cases()
    yield from later_cases()
    yield from norm_cases()
    yield from latest_cases()


def weights(name, shape, gemma):
    """A tensor made of its name: splitmix64 of the FNV-1a hash of the name and the place of each number."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        x = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(seed)
        x = x * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    number = (x >> np.uint64(40)).astype(np.float32) / np.float32(2**24) - np.float32(0.5)
    is_norm = name.endswith("weight") and ("norm" in name or ".ln_" in name)
    is_embedding = any(part in name for part in ("embed", "wte", "wpe")) and not is_norm
    if is_norm:
        values = np.float32(0.4) * number + np.float32(0.0 if gemma else 1.0)
    else:
        values = np.float32(0.2 if is_embedding else 0.6) * number
    return torch.from_numpy(values.reshape(shape))


def classifier(config):
    """That of the family; where transformers has none it is the generic one, as it is of most families."""
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)]
    base = MODEL_MAPPING[type(config)]
    name = base.__name__.removesuffix("Model") + "ForSequenceClassification"
    return type(name, (GenericForSequenceClassification, base.__bases__[0]), {})


def settings(bases, found, changes=None):
    config = dict(bases[found["base"]])
    for key in found["without"]:
        config.pop(key)
    return {**config, **(found["set"] if changes is None else changes)}


def compute(config):
    """Names and shapes of the tensors on disk, and the logits."""
    implementation = "sdpa" if config["model_type"] == "falcon" else "eager"
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        path = pathlib.Path(folder)
        (path / "config.json").write_text(json.dumps(config))
        read = AutoConfig.from_pretrained(folder, num_labels=LABELS)
        read._attn_implementation = implementation
        cls = classifier(read)
        cls(read).save_pretrained(folder)
        file = path / "model.safetensors"
        with safe_open(file, "pt") as saved:
            shapes = {name: saved.get_slice(name).get_shape() for name in sorted(saved.keys())}
        gemma = config["model_type"].startswith("gemma")
        save_file({name: weights(name, shape, gemma) for name, shape in shapes.items()}, file, metadata={"format": "pt"})
        # What was saved is what the class made of the configuration; what is read is the configuration as it was written.
        (path / "config.json").write_text(json.dumps({**config, "num_labels": LABELS}))
        model, info = cls.from_pretrained(
            folder, attn_implementation=implementation, dtype=torch.float32, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([IDS]), use_cache=False).logits[0]
    assert bool(torch.isfinite(logits).all()), logits
    return shapes, [float(number) for number in logits]


def classes():
    """The keys that each class adds to those of all, with their defaults."""
    common = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    fields = lambda name: dataclasses.fields(type(AutoConfig.for_model(name)))
    return {name: {field.name: field.default for field in fields(name) if field.name not in common} for name in BASES}


def configuration(found):
    """Key of a case: all but its numbers."""
    return json.dumps([found[key] for key in ("base", "kind", "about", "set", "without")])


def stored(path):
    """Shapes and logits of the cases of the file."""
    written = json.loads(path.read_text())
    shapes = lambda found: {name: shape for name, *shape in written["tensors"][found["tensors"]]}
    return {configuration(found): (shapes(found), found["logits"]) for found in written["cases"]}


def golden(bases, all_cases, path, keep_going=False, names=()):
    tensors, out, refused = [], [], []
    before = stored(path) if names else {}
    for found in all_cases:
        label = f"{found['base']}: {found['about']}"
        is_stored = names and found["base"] not in names
        if is_stored:
            found["unlike"] = []
        try:
            shapes, logits = before[configuration(found)] if is_stored else compute(settings(bases, found))
        except Exception as error:  # transformers has no number for it
            if not keep_going:
                raise RuntimeError(label) from error
            refused.append((label, type(error).__name__, str(error)[:100]))
            continue
        for other in found.pop("unlike"):
            _, unlike = compute({**bases[found["base"]], **other})
            off = max(abs(one - two) for one, two in zip(logits, unlike))
            if off < 2e-4:
                print(f"{label} is the same as with {other}: off by {off}")
        tensors_of = [[name, *shape] for name, shape in shapes.items()]
        if tensors_of not in tensors:
            tensors.append(tensors_of)
        out.append({**found, "tensors": tensors.index(tensors_of), "logits": [round(number, 6) for number in logits]})
    lines = lambda items: "[\n" + ",\n".join(json.dumps(item) for item in items) + "\n]"
    path.write_text(f'{{"ids": {IDS},\n"bases": {json.dumps(bases)},\n"classes": {json.dumps(classes())},\n"tensors": {lines(tensors)},\n'
                    f'"cases": {lines(out)}}}\n')
    return out, refused


def main():
    names = sys.argv[1:]
    if unknown := sorted(set(names) - set(BASES)):
        sys.exit(f"BASES has no {', '.join(unknown)}")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    versions = (HERE / "VERSIONS.txt").read_text().splitlines()
    for line in (f"torch {torch.__version__}", f"transformers {transformers.__version__}"):
        if line.split("+")[0] not in [other.split("+")[0] for other in versions]:
            sys.exit(f"this is {line}, but the other goldens were made with what VERSIONS.txt says")
    out, _ = golden(BASES, cases(), HERE / "configs.json", names=names)
    print(f"{len(out)} cases")


if __name__ == "__main__":
    main()
