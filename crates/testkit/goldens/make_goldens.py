#!/usr/bin/env python3
"""Makes the golden files of this folder with PyTorch and transformers; VERSIONS.txt says which.

    pip install torch==2.13.0 transformers safetensors && python make_goldens.py
    python make_goldens.py stablelm    # some of the models alone

tiny-NAME/                    a random model in the Hugging Face layout: config.json, model.safetensors (no score head)
tiny-NAME.golden.safetensors  inputs, logits, losses and gradients of soft-prompt tuning on it, in fp32: `ptune.*` and
                              `deep.*` with five prompts, `p1.ptune.*` and `p1.deep.*` with the first of them,
                              `p0.ptune.*` with none
rope.json                     rotary frequencies of every scaling variant

Those of optimizers and schedules are made by make_optim.py.

The reference is the plain way: rows padded to the right, prompts concatenated by hand in front of each row, deep
prompts added before every block by a forward pre-hook, pooling by the row's length. Positions count from 0 over the
prompts and the text.

The files are as published checkpoints are: tensor names and config keys of the causal language model, some in the
form of transformers 5, some in the older one (see `on_disk`). Each folder is read back by AutoModelForCausalLM, which
must give the same hidden states. Some are of a multimodal model (see `multimodal`); the golden is of its text model.

What transformers 5.23 does with `inputs_embeds`, where it is not plain:
- gemma, gemma2, gemma3: nothing. The factor sqrt(hidden) is a part of the embedding module, so looked-up tokens carry
  it and prompts, which are given as `inputs_embeds`, do not.
- gpt2, opt: the learned positions are added to all of them. OPT counts positions by the attention mask (0 to n - 1 over
  what is not padding, +2 in the table).
- falcon with alibi: "eager" adds the bias twice, once in the mask and once to the scores. "sdpa" adds it once, as the
  model was trained, and is the reference here. The bias is slope times position rounded to bfloat16, and is divided by
  sqrt(head_dim) together with the scores; BLOOM's is neither.
"""

import copy
import json
import pathlib
import platform
import re
import sys

import safetensors
import torch
import transformers
from safetensors.torch import save_file
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    BloomConfig,
    BloomForSequenceClassification,
    FalconConfig,
    FalconForSequenceClassification,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    Gemma3TextConfig,
    Gemma3TextForSequenceClassification,
    GemmaConfig,
    GemmaForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPTNeoXConfig,
    GPTNeoXForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    MixtralConfig,
    MixtralForSequenceClassification,
    OPTConfig,
    OPTForSequenceClassification,
    Phi3Config,
    Phi3ForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)
from transformers.modeling_layers import GenericForSequenceClassification
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


def falcon(**changes):
    shape = dict(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, num_labels=LABELS, bos_token_id=1, eos_token_id=2, pad_token_id=None,
    )
    return {**shape, **changes}


def neox(**changes):
    shape = dict(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=56,
        max_position_embeddings=256, num_labels=LABELS, bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )
    return {**shape, **changes}


def gpt2(**changes):
    shape = dict(
        vocab_size=VOCAB, n_embd=32, n_layer=3, n_head=4, n_positions=256, num_labels=LABELS, bos_token_id=1,
        eos_token_id=1, pad_token_id=None,
    )
    return {**shape, **changes}


def auto(model_type, **shape):
    """Classifier and config of a family by its `model_type`. Where transformers has no classifier it is the generic one,
    as it is of most families. Keys that the config does not have are left out, and named."""
    plain = AutoConfig.for_model(model_type)
    if unknown := [key for key in shape if not hasattr(plain, key)]:
        print(f"{model_type}: no {', '.join(unknown)}")
    config = AutoConfig.for_model(model_type, **{key: shape[key] for key in shape if key not in unknown})
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)], config
    base = MODEL_MAPPING[type(config)]
    name = base.__name__.removesuffix("Model") + "ForSequenceClassification"
    return type(name, (GenericForSequenceClassification, base.__bases__[0]), {}), config


GEMMA = dict(head_dim=12, rms_norm_eps=1e-6, tie_word_embeddings=True)
GEMMA3 = dict(**GEMMA, num_key_value_heads=1, query_pre_attn_scalar=20, sliding_window=6)
GLOBAL_ROPE = dict(rope_type="linear", factor=8.0, rope_theta=1000.0)
LOCAL_ROPE = dict(rope_type="default", rope_theta=100.0)
# A ramp that begins and ends between pairs.
SINK_ROPE = dict(
    rope_type="yarn", factor=4.0, beta_fast=4.0, beta_slow=1.0, truncate=False, original_max_position_embeddings=16,
    rope_theta=100.0)
LLAMA3 = dict(
    rope_type="llama3", factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
)
# A model's place is the seed of its numbers, unless SEEDS has another: a new one comes last.
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
    "llama-linear": (LlamaForSequenceClassification, LlamaConfig(**llama(
        num_hidden_layers=2, rope_parameters=dict(rope_type="linear", factor=2.0, rope_theta=10000.0)))),
    "llama-yarn": (LlamaForSequenceClassification, LlamaConfig(**llama(
        num_hidden_layers=2, head_dim=16, max_position_embeddings=64, rope_parameters=dict(
            rope_type="yarn", factor=4.0, original_max_position_embeddings=16, rope_theta=100.0)))),
    "llama-dynamic": (LlamaForSequenceClassification, LlamaConfig(**llama(
        num_hidden_layers=2, rope_parameters=dict(rope_type="dynamic", factor=2.0, rope_theta=10000.0)))),
    "mistral": (MistralForSequenceClassification, MistralConfig(**llama(sliding_window=6))),
    "qwen2-window": (Qwen2ForSequenceClassification, Qwen2Config(**llama(
        use_sliding_window=True, sliding_window=6, max_window_layers=1))),
    "qwen3": (Qwen3ForSequenceClassification, Qwen3Config(**llama(num_hidden_layers=2, head_dim=12))),
    "gemma": (GemmaForSequenceClassification, GemmaConfig(**llama(
        **GEMMA | dict(num_hidden_layers=2, num_key_value_heads=1)))),
    "gemma2": (Gemma2ForSequenceClassification, Gemma2Config(**llama(
        **GEMMA, query_pre_attn_scalar=20, attn_logit_softcapping=2.0, sliding_window=6))),
    "gemma3": (Gemma3TextForSequenceClassification, Gemma3TextConfig(**llama(
        **GEMMA3, layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        rope_parameters=dict(full_attention=dict(GLOBAL_ROPE), sliding_attention=dict(LOCAL_ROPE))))),
    "phi3": (Phi3ForSequenceClassification, Phi3Config(**llama(num_hidden_layers=2, sliding_window=6))),
    "phi3-longrope": (Phi3ForSequenceClassification, Phi3Config(**llama(
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, original_max_position_embeddings=64,
        partial_rotary_factor=0.5, rope_parameters=dict(
            rope_type="longrope", rope_theta=100.0, short_factor=[1.0, 1.25, 1.5, 3.0],
            long_factor=[1.5, 2.0, 4.0, 8.0])))),
    "falcon-7b": (FalconForSequenceClassification, FalconConfig(**falcon())),
    "falcon-40b": (FalconForSequenceClassification, FalconConfig(**falcon(
        new_decoder_architecture=True, num_kv_heads=2))),
    "falcon-11b": (FalconForSequenceClassification, FalconConfig(**falcon(
        new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1, ffn_hidden_size=56,
        tie_word_embeddings=False))),
    # Twelve heads: not a power of two, and slopes that bfloat16 does not hold.
    "falcon-rw": (FalconForSequenceClassification, FalconConfig(**falcon(
        hidden_size=48, num_attention_heads=12, alibi=True, multi_query=False, parallel_attn=False, bias=True))),
    "mixtral": (MixtralForSequenceClassification, MixtralConfig(**llama(
        num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2))),
    "gpt2": (GPT2ForSequenceClassification, GPT2Config(**gpt2())),
    "gpt2-scaled": (GPT2ForSequenceClassification, GPT2Config(**gpt2(scale_attn_by_inverse_layer_idx=True))),
    "gpt-neox": (GPTNeoXForSequenceClassification, GPTNeoXConfig(**neox())),
    "gpt-neox-sequential": (GPTNeoXForSequenceClassification, GPTNeoXConfig(**neox(
        use_parallel_residual=False, rope_parameters=dict(rope_theta=10000.0, partial_rotary_factor=1.0)))),
    "opt": (OPTForSequenceClassification, OPTConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=56,
        max_position_embeddings=256, num_labels=LABELS, pad_token_id=None)),
    "gemma3-pattern": (Gemma3TextForSequenceClassification, Gemma3TextConfig(**llama(
        **GEMMA3, sliding_window_pattern=2,
        rope_parameters=dict(full_attention=dict(GLOBAL_ROPE), sliding_attention=dict(LOCAL_ROPE))))),
    "stablelm": auto("stablelm", **llama(
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, layer_norm_eps=1e-3, use_qkv_bias=True)),
    "stablelm-parallel": auto("stablelm", **llama(
        num_hidden_layers=2, use_parallel_residual=True,
        rope_parameters=dict(rope_theta=1000.0, partial_rotary_factor=0.5))),
    "olmo2": auto("olmo2", **llama(num_hidden_layers=2, rms_norm_eps=1e-3)),
    "smollm3": auto("smollm3", **llama(
        num_hidden_layers=4, tie_word_embeddings=True, rope_parameters=dict(rope_type="default", rope_theta=1000.0))),
    "smollm3-window": auto("smollm3", **llama(
        no_rope_layers=[0, 1, 0], use_sliding_window=True, sliding_window=6, attention_bias=True, mlp_bias=True)),
    "granite": auto("granite", **llama(
        num_hidden_layers=2, embedding_multiplier=3.0, residual_multiplier=0.4, attention_multiplier=0.2,
        logits_scaling=4.0)),
    "qwen2-moe": auto("qwen2_moe", **llama(
        num_hidden_layers=2, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=24,
        shared_expert_intermediate_size=40, norm_topk_prob=False)),
    "qwen3-moe": auto("qwen3_moe", **llama(
        num_hidden_layers=2, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=24, norm_topk_prob=True)),
    "glm4": auto("glm4", **llama(num_hidden_layers=2, head_dim=16, rope_parameters=dict(
        rope_type="default", rope_theta=1000.0, partial_rotary_factor=0.5))),
    "cohere": auto("cohere", **llama(num_hidden_layers=2, layer_norm_eps=1e-3, logit_scale=0.25)),
    "olmo3": auto("olmo3", **llama(
        num_hidden_layers=4, sliding_window=6,
        rope_parameters=dict(full_attention=dict(GLOBAL_ROPE), sliding_attention=dict(LOCAL_ROPE)))),
    "gpt-oss": auto("gpt_oss", **llama(
        num_hidden_layers=2, head_dim=16, intermediate_size=16, num_local_experts=4, num_experts_per_tok=2,
        sliding_window=6, swiglu_alpha=1.5, swiglu_limit=1.25, max_position_embeddings=64,
        rope_parameters=dict(SINK_ROPE))),
    # Experts in MXFP4, whose groups are 32 numbers, and the positions of the class.
    "gpt-oss-mxfp4": auto("gpt_oss", **llama(
        num_hidden_layers=2, head_dim=16, intermediate_size=32, num_local_experts=3, num_experts_per_tok=2,
        sliding_window=6)),
    "phimoe": auto("phimoe", **llama(
        num_hidden_layers=2, intermediate_size=20, num_local_experts=5, router_jitter_noise=0.7, attention_bias=True,
        rope_parameters=dict(
            rope_type="longrope", rope_theta=100.0, short_factor=[1.0, 1.25, 1.5, 3.0],
            long_factor=[1.5, 2.0, 4.0, 8.0], short_mscale=1.25, long_mscale=1.5, original_max_position_embeddings=64))),
    "stablelm-norms": auto("stablelm", **llama(
        num_hidden_layers=2, use_parallel_residual=True, qk_layernorm=True, layer_norm_eps=1e-3)),
    "cohere-norms": auto("cohere", **llama(num_hidden_layers=2, layer_norm_eps=1e-3, use_qk_norm=True)),
    "glm": auto("glm", **llama(num_hidden_layers=2, head_dim=16, rope_parameters=dict(
        rope_type="default", rope_theta=1000.0, partial_rotary_factor=0.5))),
    "cohere2": auto("cohere2", **llama(num_hidden_layers=4, layer_norm_eps=1e-3, logit_scale=0.25, sliding_window=6)),
    # Heads that the class has by default, as published files leave them out.
    "gemma3-vision": (Gemma3TextForSequenceClassification, Gemma3TextConfig(**llama(
        **GEMMA3 | dict(num_attention_heads=8, num_key_value_heads=4), sliding_window_pattern=2,
        rope_parameters=dict(full_attention=dict(GLOBAL_ROPE), sliding_attention=dict(LOCAL_ROPE))))),
    "mistral-vision": auto("mistral", **llama(
        num_hidden_layers=2, head_dim=12, sliding_window=None,
        rope_parameters=dict(rope_type="default", rope_theta=1000.0))),
}
SEEDS = {"stablelm-norms": 200, "cohere-norms": 201, "gemma3-vision": 202, "mistral-vision": 203, "glm": 204, "cohere2": 205}
# Text models that are saved as a part of a multimodal model: its `model_type`, and the options of its image encoder.
ENCODER = dict(
    hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4)
MULTIMODAL = {
    "gemma3-vision": ("gemma3", dict(mm_tokens_per_image=1), dict(model_type="siglip_vision_model", **ENCODER)),
    "mistral-vision": ("mistral3", {}, dict(model_type="pixtral", head_dim=4, **ENCODER)),
}
# What a golden must be able to tell: with this changed, the logits are others.
TELLS = {
    "llama-linear": [dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0))],
    "llama-yarn": [dict(rope_parameters=dict(rope_type="default", rope_theta=100.0))],
    "mistral": [dict(sliding_window=None)],
    "qwen2-window": [dict(layer_types=["full_attention"] * 3), dict(layer_types=["sliding_attention"] * 3)],
    "gemma": [dict(hidden_act="gelu")],
    "gemma2": [dict(attn_logit_softcapping=None), dict(sliding_window=99), dict(query_pre_attn_scalar=12),
               dict(layer_types=["full_attention", "sliding_attention", "full_attention"])],
    "gemma3": [dict(query_pre_attn_scalar=12), dict(sliding_window=99),
               dict(rope_parameters=dict(full_attention=GLOBAL_ROPE, sliding_attention=GLOBAL_ROPE)),
               dict(rope_parameters=dict(full_attention=LOCAL_ROPE, sliding_attention=LOCAL_ROPE))],
    "phi3": [dict(sliding_window=None)],
    "phi3-longrope": [dict(rope_parameters=dict(
        rope_type="default", rope_theta=100.0, partial_rotary_factor=0.5))],
    "falcon-rw": [dict(alibi=False)],
    "mixtral": [dict(num_experts_per_tok=3)],
    "gpt2-scaled": [dict(scale_attn_by_inverse_layer_idx=False)],
    "gpt-neox": [dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5))],
    "gpt-neox-sequential": [dict(use_parallel_residual=True)],
    "gemma3-pattern": [dict(layer_types=["sliding_attention"] * 3)],
    "stablelm": [
        dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0, partial_rotary_factor=0.5)),
        dict(layer_norm_eps=1e-5)],
    "olmo2": [dict(rms_norm_eps=1e-5)],
    "smollm3": [dict(no_rope_layers=[1, 1, 1, 1])],
    "smollm3-window": [dict(no_rope_layers=[1, 1, 1]), dict(layer_types=["full_attention"] * 3)],
    "granite": [dict(embedding_multiplier=1.0), dict(residual_multiplier=1.0), dict(attention_multiplier=8**-0.5)],
    "qwen2-moe": [dict(num_experts_per_tok=3), dict(norm_topk_prob=True)],
    "qwen3-moe": [dict(num_experts_per_tok=2), dict(norm_topk_prob=False)],
    "glm4": [dict(rope_parameters=dict(rope_type="default", rope_theta=1000.0, partial_rotary_factor=1.0))],
    "cohere": [dict(layer_norm_eps=1e-5)],
    "glm": [dict(rope_parameters=dict(rope_type="default", rope_theta=1000.0, partial_rotary_factor=1.0))],
    "cohere2": [dict(sliding_window=99), dict(layer_types=["sliding_attention"] * 4),
                dict(layer_types=["full_attention"] * 4)],
    "stablelm-norms": [dict(layer_norm_eps=1e-5)],
    "cohere-norms": [dict(layer_norm_eps=1e-5)],
    "gemma3-vision": [dict(query_pre_attn_scalar=12), dict(layer_types=["sliding_attention"] * 3)],
    "mistral-vision": [dict(rope_parameters=dict(rope_type="default", rope_theta=10000.0))],
    "olmo3": [dict(sliding_window=99), dict(layer_types=["sliding_attention"] * 4),
              dict(rope_parameters=dict(full_attention=GLOBAL_ROPE, sliding_attention=GLOBAL_ROPE)),
              dict(rope_parameters=dict(full_attention=LOCAL_ROPE, sliding_attention=LOCAL_ROPE))],
    "gpt-oss": [
        dict(swiglu_alpha=1.702), dict(swiglu_limit=7.0), dict(num_experts_per_tok=3), dict(sliding_window=99),
        dict(layer_types=["full_attention", "sliding_attention"]),
        dict(rope_parameters=dict(SINK_ROPE, truncate=True))],
    "gpt-oss-mxfp4": [dict(layer_types=["full_attention"] * 2),
                      dict(rope_parameters=dict(rope_type="default", rope_theta=150000.0))],
    "phimoe": [dict(router_jitter_noise=0.01), dict(router_jitter_noise=10.0),
               dict(rope_parameters=dict(rope_type="default", rope_theta=100.0))],
}


def randomise(model, generator):
    """Weights that leave nothing trivial: no zero bias, no norm of ones (of zeros where the factor is 1 + weight)."""
    gemma = model.config.model_type.startswith("gemma")
    with torch.no_grad():
        for name, tensor in sorted(model.named_parameters()):
            noise = torch.randn(tensor.shape, generator=generator)
            is_norm = re.search(r"norm|\.ln_", name) and name.endswith("weight")
            is_embedding = re.search(r"embed|wte|wpe", name) and not is_norm
            std = (0.5 / model.config.hidden_size**0.5 if gemma else 0.5) if is_embedding else 0.2
            tensor.copy_(1.0 + 0.2 * noise if is_norm and not gemma else std * noise)


MXFP4_LEVELS = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def mxfp4(matrices):
    """Numbers [experts, outputs, groups, 16] and factors [experts, outputs, groups] of [experts, inputs, outputs], and the
    matrices that they stand for: in each group of 32 numbers the level nearest to each, times a power of two."""
    groups = matrices.transpose(1, 2).unflatten(-1, (-1, 32))
    exponents = torch.floor(torch.log2(groups.abs().amax(-1, keepdim=True))) - 2
    scaled = groups / torch.exp2(exponents)
    levels = (scaled.abs()[..., None] - MXFP4_LEVELS).abs().argmin(-1)
    rounded = torch.copysign(MXFP4_LEVELS[levels], scaled) * torch.exp2(exponents)
    codes = (levels + 8 * torch.signbit(scaled)).to(torch.uint8)
    return (codes[..., ::2] | codes[..., 1::2] << 4, (exponents.squeeze(-1) + 127).to(torch.uint8),
            rounded.flatten(-2).transpose(1, 2).contiguous())


def experts_of(model):
    return {name: tensor for name, tensor in model.named_parameters()
            if name.endswith(("experts.gate_up_proj", "experts.down_proj"))}


def round_experts(model):
    """Makes the experts what MXFP4 holds."""
    with torch.no_grad():
        for tensor in experts_of(model).values():
            tensor.copy_(mxfp4(tensor)[2])


def save_model(name, model, generator):
    folder = HERE / f"tiny-{name}"
    folder.mkdir(exist_ok=True)
    state = {key: tensor.contiguous() for key, tensor in model.state_dict().items() if not key.startswith("score.")}
    if not model.config.tie_word_embeddings:
        state["lm_head.weight"] = 0.2 * torch.randn(VOCAB, model.config.hidden_size, generator=generator)
    config = json.loads(model.config.to_json_string(use_diff=True))
    for key in ("id2label", "label2id", "transformers_version"):
        config.pop(key, None)
    config["architectures"] = [
        "GPT2LMHeadModel" if model.config.model_type == "gpt2"
        else re.sub(r"(Text)?ForSequenceClassification", "ForCausalLM", type(model).__name__)
    ]
    config["tie_word_embeddings"] = model.config.tie_word_embeddings
    state = on_disk(name, state, config)
    if name in MULTIMODAL:
        state, config = multimodal(name, state, config, generator)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def multimodal(name, state, config, generator):
    """The tensors and the config of a multimodal model with this text model, whose other tensors are random."""
    model_type, options, encoder = MULTIMODAL[name]
    config.pop("architectures")
    config.pop("tie_word_embeddings")
    is_older = model_type == "gemma3"  # the names of before transformers 5
    rename = lambda key: "language_model." + key if is_older else key.replace("model.", "model.language_model.", 1)
    tied = "lm_head.weight" not in state
    outer = dict(model_type=model_type, text_config=config, vision_config=encoder, tie_word_embeddings=tied, **options)
    complete = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**copy.deepcopy(outer)))
    outer["architectures"] = [type(complete).__name__]
    state = {rename(key): tensor for key, tensor in state.items()}
    for key, tensor in complete.state_dict().items():
        if not key.startswith(("model.language_model.", "lm_head.")):
            key = key.removeprefix("model.") if is_older else key
            state[key] = 0.2 * torch.randn(tensor.shape, generator=generator)
    return state, outer


def older_rope(config, type_key):
    """The keys of files from before transformers 5."""
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    for key in ("partial_rotary_factor", "original_max_position_embeddings"):
        if config["model_type"] in ("phi3", "stablelm") and key in rope:
            config[key] = rope.pop(key)
    config["rope_scaling"] = None if kind == "default" else {type_key: kind, **rope}


def on_disk(name, state, config):
    """The tensors, with the names that published checkpoints have, and changes the config to the form they have."""
    older = {
        "llama-tied": "rope_type", "llama-linear": "type", "llama-dynamic": "type", "mistral": "type",
        "qwen2-window": "type", "gemma": "type", "gemma2": "type", "phi3": "type", "phi3-longrope": "type",
        "falcon-7b": "type", "mixtral": "type", "stablelm": "type", "gpt-oss-mxfp4": "rope_type", "phimoe": "type",
        "stablelm-norms": "type", "mistral-vision": "type",
    }
    if name in older:
        older_rope(config, older[name])
    if name in ("qwen2-window", "gemma2", "gemma3-pattern", "gemma3-vision"):
        config.pop("layer_types")  # follow from max_window_layers, are every other one, follow from the pattern
    if name == "gemma":
        config["hidden_act"] = "gelu"  # stands for gelu_pytorch_tanh in this family
    if name == "falcon-40b":
        config.pop("num_ln_in_parallel_attn")  # two where the new architecture does not say
    if name in ("gemma3-pattern", "gemma3-vision"):
        rope = config.pop("rope_parameters")
        full, local = rope["full_attention"], rope["sliding_attention"]
        config |= dict(rope_theta=full.pop("rope_theta"), rope_scaling=full, rope_local_base_freq=local["rope_theta"],
                       sliding_window_pattern=config.pop("_sliding_window_pattern", 2))
    if name == "gpt-neox":
        rope = config.pop("rope_parameters")
        config |= dict(rotary_pct=rope["partial_rotary_factor"], rotary_emb_base=rope["rope_theta"])
    if name == "gpt2":  # without the prefix, and with the causal mask among the tensors
        state = {key.removeprefix("transformer."): tensor for key, tensor in state.items()}
        n = config["n_positions"]
        for layer in range(config["n_layer"]):
            state[f"h.{layer}.attn.bias"] = torch.ones(n, n).tril()[None, None]
    if config["model_type"] == "gpt_neox":
        state["embed_out.weight"] = state.pop("lm_head.weight")
    if name == "gpt-neox":
        n = config["max_position_embeddings"]
        for layer in range(config["num_hidden_layers"]):
            attention = f"gpt_neox.layers.{layer}.attention"
            state[f"{attention}.bias"] = torch.ones(n, n, dtype=torch.bool).tril()[None, None]
            state[f"{attention}.masked_bias"] = torch.tensor(-1e9)
            state[f"{attention}.rotary_emb.inv_freq"] = 1.0 / 10000.0 ** (torch.arange(0, 4, 2).float() / 4)
    if name == "mixtral":  # in memory the experts are stacked, gate and up in one
        for layer in range(config["num_hidden_layers"]):
            moe = f"model.layers.{layer}.block_sparse_moe"
            mlp = f"model.layers.{layer}.mlp"
            state[f"{moe}.gate.weight"] = state.pop(f"{mlp}.gate.weight")
            gate_up, down = state.pop(f"{mlp}.experts.gate_up_proj"), state.pop(f"{mlp}.experts.down_proj")
            for expert in range(config["num_local_experts"]):
                gate, up = gate_up[expert].chunk(2)
                for key, tensor in (("w1", gate), ("w2", down[expert]), ("w3", up)):
                    state[f"{moe}.experts.{expert}.{key}.weight"] = tensor.contiguous().clone()
    if name == "gpt-oss-mxfp4":
        config["quantization_config"] = dict(quant_method="mxfp4", modules_to_not_convert=[
            "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"])
        for key in [key for key in state if key.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
            state[f"{key}_blocks"], state[f"{key}_scales"], _ = mxfp4(state.pop(key))
    if name == "phimoe":
        for layer in range(config["num_hidden_layers"]):
            moe, mlp = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.mlp"
            state[f"{moe}.gate.weight"] = state.pop(f"{mlp}.router.weight")
            gate_up, down = state.pop(f"{mlp}.experts.gate_up_proj"), state.pop(f"{mlp}.experts.down_proj")
            for expert in range(config["num_local_experts"]):
                gate, up = gate_up[expert].chunk(2)
                for key, tensor in (("w1", gate), ("w2", down[expert]), ("w3", up)):
                    state[f"{moe}.experts.{expert}.{key}.weight"] = tensor.contiguous().clone()
    if config["model_type"] in ("qwen2_moe", "qwen3_moe"):  # stacked likewise
        for layer in range(config["num_hidden_layers"]):
            experts = f"model.layers.{layer}.mlp.experts"
            gate_up, down = state.pop(f"{experts}.gate_up_proj"), state.pop(f"{experts}.down_proj")
            for expert in range(len(down)):
                gate, up = gate_up[expert].chunk(2)
                for key, tensor in (("gate_proj", gate), ("up_proj", up), ("down_proj", down[expert])):
                    state[f"{experts}.{expert}.{key}.weight"] = tensor.contiguous().clone()
    return state


def blocks_of(base):
    for name in ("layers", "h"):
        if hasattr(base, name):
            return getattr(base, name)
    return base.decoder.layers


def logits_of(model, rows, prompts, deep_prompts, lengths):
    """[rows, labels] of the padded batch."""
    base = model.base_model
    n_prompts = prompts.shape[0]
    hooks = []
    for block, added in zip(blocks_of(base), deep_prompts if deep_prompts is not None else []):
        def hook(_module, args, kwargs, added=added):
            hidden = args[0] if args else kwargs["hidden_states"]
            hidden = torch.cat([hidden[:, :n_prompts] + added, hidden[:, n_prompts:]], dim=1)
            if args:
                return (hidden, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": hidden}

        hooks.append(block.register_forward_pre_hook(hook, with_kwargs=True))
    n_rows = rows.shape[0]
    embedded = base.get_input_embeddings()(rows)
    inputs = torch.cat([prompts.expand(n_rows, -1, -1), embedded], dim=1)
    mask = (torch.arange(inputs.shape[1])[None] < n_prompts + lengths[:, None]).long()
    hidden = base(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state
    for hook in hooks:
        hook.remove()
    return model.score(hidden[torch.arange(n_rows), n_prompts + lengths - 1])


def check_against_the_whole_class(model, rows, prompts, lengths, logits):
    """The class's own pooling on one unpadded row at a time gives the same."""
    embed = model.get_input_embeddings()
    for row, length in enumerate(lengths.tolist()):
        inputs = torch.cat([prompts, embed(rows[row, :length])])[None]
        one = model(inputs_embeds=inputs, use_cache=False).logits[0]
        torch.testing.assert_close(one, logits[row], rtol=1e-4, atol=1e-5)


def check_against_the_folder(name, model, inputs):
    """Read from its files, the model gives the same hidden states, and no tensor is missing or left over."""
    auto_class = AutoModelForImageTextToText if name in MULTIMODAL else AutoModelForCausalLM
    read, info = auto_class.from_pretrained(
        HERE / f"tiny-{name}", attn_implementation=model.config._attn_implementation, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), f"{name}: {info}"
    with torch.no_grad():
        expected = model.base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
        got = read.eval().base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    torch.testing.assert_close(got, expected, rtol=0.0, atol=1e-6)


def check_that_it_tells(name, model, logits_of_model, logits):
    for changes in TELLS.get(name, []):
        config = copy.deepcopy(model.config)
        config._attn_implementation = model.config._attn_implementation
        for key, value in changes.items():
            setattr(config, key, copy.deepcopy(value))
        other = type(model)(config).eval()
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            change = (logits_of_model(other) - logits).abs().max().item()
        assert change > 5e-4, f"{name}: {changes} changes the logits by {change} only"


def tune(model, rows, lengths, labels, prompts, deep_prompts):
    """Logits, loss and the gradients of what trains."""
    logits = logits_of(model, rows, prompts, deep_prompts, lengths)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    trained = {"prompts": prompts} if prompts.shape[0] else {}
    trained["score.weight"] = model.score.weight
    if deep_prompts is not None:
        trained["deep_prompts"] = deep_prompts
    grads = torch.autograd.grad(loss, list(trained.values()))
    return dict(logits=logits, loss=loss) | {f"grad.{key}": grad for key, grad in zip(trained, grads)}


def golden(name, seed, cls, config):
    generator = torch.Generator().manual_seed(seed)
    config._attn_implementation = "sdpa" if name == "falcon-rw" else "eager"
    model = cls(config).eval()
    randomise(model, generator)
    if name == "gpt-oss-mxfp4":
        round_experts(model)
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
    for key, n_prompts in (("", PREFIX), ("p1.", 1), ("p0.", 0)):
        some = prompts[:n_prompts].detach().requires_grad_(True)
        some_deep = deep_prompts[:, :n_prompts].detach().requires_grad_(True)
        modes = dict(ptune=None, deep=some_deep) if n_prompts else dict(ptune=None)
        for mode, deep in modes.items():
            got = tune(model, rows, lengths, labels, some, deep)
            out |= {f"{key}{mode}.{what}": tensor for what, tensor in got.items()}
        check_against_the_whole_class(model, rows, some, lengths, out[f"{key}ptune.logits"])
    with torch.no_grad():
        check_against_the_folder(name, model, torch.cat([prompts, model.get_input_embeddings()(ids[:9])])[None])
    check_that_it_tells(
        name, model, lambda other: logits_of(other, rows, prompts, deep_prompts, lengths), out["deep.logits"])
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
        "yarn-untruncated": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, truncate=False),
        "yarn-stated": dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64, beta_fast=16.0,
                            beta_slow=2.0, attention_factor=1.25),
        # Within max_position_embeddings, as the default; the frequencies change beyond it only.
        "dynamic": dict(rope_type="dynamic", factor=2.0),
        # The short factors, which hold up to original_max_position_embeddings; max_position_embeddings over that is
        # the factor from which the attention factor follows.
        "longrope": dict(rope_type="longrope", short_factor=[1.0 + 0.125 * i for i in range(16)],
                         long_factor=[2.0 + 0.5 * i for i in range(16)], original_max_position_embeddings=64),
        "longrope-factor": dict(rope_type="longrope", short_factor=[1.5] * 16, long_factor=[4.0] * 16, factor=16.0,
                                original_max_position_embeddings=64),
        "longrope-stated": dict(rope_type="longrope", short_factor=[1.5] * 16, long_factor=[4.0] * 16,
                                original_max_position_embeddings=64, attention_factor=1.25),
    }
    out = []
    for name, variant in variants.items():
        config = LlamaConfig(hidden_size=64, num_attention_heads=2, max_position_embeddings=256,
                             rope_parameters=dict(rope_theta=10000.0, **variant))
        if variant["rope_type"] == "default":
            inv_freq, factor = 1.0 / 10000.0 ** (torch.arange(0, 32, 2).float() / 32), 1.0
        else:
            inv_freq, factor = ROPE_INIT_FUNCTIONS[variant["rope_type"]](config, "cpu")
        entry = dict(name=name, theta=10000.0, head_dim=32, scaling=variant,
                     inv_freq=[float(x) for x in inv_freq], attention_factor=float(factor))
        if variant["rope_type"] in ("dynamic", "longrope"):
            entry["max_position_embeddings"] = 256
        out.append(entry)
    (HERE / "rope.json").write_text(json.dumps(out, indent=1) + "\n")


def main():
    names = sys.argv[1:]
    if unknown := sorted(set(names) - set(MODELS)):
        sys.exit(f"MODELS has no {', '.join(unknown)}")
    versions = HERE / "VERSIONS.txt"
    written = versions.read_text().splitlines()
    ours = [f"python {platform.python_version()}", f"torch {torch.__version__}",
            f"transformers {transformers.__version__}", f"safetensors {safetensors.__version__}"]
    for line in ours[1:3]:
        if names and line.split("+")[0] not in [other.split("+")[0] for other in written]:
            sys.exit(f"this is {line}, but the other goldens were made with what VERSIONS.txt says")
    torch.set_num_threads(1)
    transformers.utils.logging.disable_progress_bar()
    for seed, (name, (cls, config)) in enumerate(MODELS.items()):
        if name in names or not names:
            golden(name, SEEDS.get(name, seed), cls, config)
    if not names:
        rope()
        others = [line for line in written if line.startswith(("gguf ", "numpy ", "lion-pytorch "))]
        versions.write_text("\n".join([*ours, *others]) + "\n")
    for path in HERE.rglob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
