#!/usr/bin/env python3
"""Write the seeds and past findings of the fuzz targets that are not texts written by hand: seeds/ and crashes/.

    python3 crates/fuzz-targets/make_seeds.py

The files are small and deterministic. Each past finding is the smallest input of its kind, made here.
"""

import base64
import json
import struct
from pathlib import Path

ROOT = Path(__file__).resolve().parent
STRING, ARRAY, U32, F32, I32 = 8, 9, 4, 6, 5


def write(path, content):
    path = ROOT / path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else (json.dumps(content) + "\n").encode())


def text(value):
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value(kind, item):
    if kind == STRING:
        return text(item)
    return struct.pack({U32: "<I", I32: "<i", F32: "<f"}[kind], item)


def key(name, kind, item):
    if isinstance(item, list):
        body = struct.pack("<IQ", kind, len(item)) + b"".join(value(kind, one) for one in item)
        return text(name) + struct.pack("<I", ARRAY) + body
    return text(name) + struct.pack("<I", kind) + value(kind, item)


def gguf(keys, tensors):
    """Return a file of version 3; `tensors` are names, shapes (the dimension of a row first) and bytes of fp32."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys)) + b"".join(key(*one) for one in keys)
    offset, data = 0, b""
    for name, shape, content in tensors:
        head += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", size) for size in shape)
        head += struct.pack("<IQ", 0, offset)
        content += bytes(-len(content) % 32)
        data += content
        offset += len(content)
    return head + bytes(-len(head) % 32) + data


def zeros(*shape):
    count = 4
    for size in shape:
        count *= size
    return bytes(count)


def llama_keys(**changes):
    tokens = ["<unk>", "<s>", "</s>", "\u2581a", "a", "b"]
    keys = {
        "general.architecture": (STRING, "llama"),
        "llama.block_count": (U32, 1),
        "llama.embedding_length": (U32, 8),
        "llama.feed_forward_length": (U32, 8),
        "llama.attention.head_count": (U32, 2),
        "llama.attention.head_count_kv": (U32, 1),
        "llama.attention.layer_norm_rms_epsilon": (F32, 1e-5),
        "llama.context_length": (U32, 16),
        "llama.rope.dimension_count": (U32, 4),
        "tokenizer.ggml.model": (STRING, "llama"),
        "tokenizer.ggml.tokens": (STRING, tokens),
        "tokenizer.ggml.scores": (F32, [0.0, 0.0, 0.0, -1.0, -2.0, -3.0]),
        "tokenizer.ggml.token_type": (I32, [2, 3, 3, 1, 1, 1]),
        "tokenizer.ggml.bos_token_id": (U32, 1),
    }
    keys.update({name.replace("__", "."): item for name, item in changes.items()})
    return [(name, *item) for name, item in keys.items()]


EMBEDDINGS = ("token_embd.weight", [8, 6], zeros(8, 6))
ATTENTION = ("blk.0.attn_q.weight", [8, 8], zeros(8, 8))
EXPERTS = {"llama__expert_count": (U32, 2), "llama__expert_used_count": (U32, 1)}


def experts(shape, content=b""):
    return gguf(llama_keys(**EXPERTS), [EMBEDDINGS, ("blk.0.ffn_gate_exps.weight", shape, content)])


def models():
    write("seeds/gguf/llama.gguf", gguf(llama_keys(), [EMBEDDINGS, ATTENTION]))
    write("seeds/gguf/experts.gguf", experts([8, 8, 2], zeros(8, 8, 2)))
    write("crashes/gguf/experts-without-rows.gguf", experts([8, 0, 1 << 40]))
    write("crashes/gguf/experts-that-overflow.gguf", experts([1 << 32, 1 << 32, 2]))
    write("crashes/gguf/blocks.gguf", gguf(llama_keys(llama__block_count=(U32, 1 << 24)), [EMBEDDINGS]))
    write("crashes/gguf/embeddings-without-width.gguf",
          gguf(llama_keys(), [("token_embd.weight", [0, 1 << 40], b"")]))
    tokens = ["<unk>", "<s>", "</s>", "\u2581a", "a", "a" * 1_000]
    write("crashes/gguf/token-length.gguf", gguf(llama_keys(tokenizer__ggml__tokens=(STRING, tokens)), [EMBEDDINGS]))
    tensor = {"dtype": "F32", "shape": [3, 4], "data_offsets": [0, 48]}
    write("seeds/safetensors/header.json", {"model.embed_tokens.weight": tensor})
    packed = {"dtype": "I32", "shape": [0, 4], "data_offsets": [0, 0]}
    write("crashes/safetensors/no-rows.json", {"model.embed_tokens.weight": {**tensor, "shape": [1 << 62, 0],
                                               "data_offsets": [0, 0]}})
    write("crashes/safetensors/overflow.json", {"model.norm.weight": {**tensor, "shape": [1 << 32, 1 << 32]}})
    write("crashes/safetensors/header-length.safetensors", struct.pack("<Q", (1 << 64) - 1) + b"{}")
    write("crashes/safetensors/packed.json", {"model.layers.0.self_attn.q_proj.qweight": packed})
    write("seeds/shards/index.json", {"metadata": {"total_size": 128}, "weight_map": {
        "model.embed_tokens.weight": "a.safetensors", "model.norm.weight": "a.safetensors"}})
    write("crashes/shards/outside.json", {"weight_map": {"model.norm.weight": "../../../../etc/passwd"}})
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 3,
        "rms_norm_eps": 1e-5, "max_position_embeddings": 16, "tie_word_embeddings": True,
    }
    write("seeds/model-config/llama.json", config)
    write("seeds/model-config/gptq.json", {**config, "quantization_config": {
        "quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}})
    for name, changes in {
        "blocks": {"num_hidden_layers": 1_000_000_000}, "no-heads": {"num_attention_heads": 0},
        "no-width": {"hidden_size": 0}, "no-groups": {"quantization_config": {"quant_method": "awq", "group_size": 0}},
        "no-key-heads": {"num_key_value_heads": 0},
    }.items():
        write(f"crashes/model-config/{name}.json", {**config, **changes})


def tokenizer(**changes):
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
            "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None, **changes}


def tokenizers():
    special = {"id": 0, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False,
               "normalized": False, "special": True}
    words = {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {"[UNK]": 0, "a": 1, "film": 2, "<s>": 3}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 1}}
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [start, first], "pair": [start, first, second],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [3], "tokens": ["<s>"]}}}
    byte_pairs = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
                  "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
    pieces = {"type": "Unigram", "unk_id": 0, "byte_fallback": False,
              "vocab": [["<unk>", 0.0], ["a", -1.0], ["b", -2.0], ["ab", -2.5], ["\u2581", -3.0]]}
    parts = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
             "max_input_chars_per_word": 100, "vocab": {"[UNK]": 0, "a": 1, "##b": 2}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    charsmap = base64.b64encode(struct.pack("<II", 4, 0) + b"ab\0").decode()
    for name, definition in {
        "word-level": tokenizer(model=words, added_tokens=[{**special, "id": 3}]),
        "template": tokenizer(model=words, post_processor=template),
        "byte-pairs": tokenizer(model=byte_pairs, pre_tokenizer=byte_level, decoder=byte_level),
        "unigram": tokenizer(model=pieces, normalizer={"type": "Precompiled", "precompiled_charsmap": charsmap}),
        "word-piece": tokenizer(model=parts, normalizer={"type": "BertNormalizer", "clean_text": True,
                                "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
                                pre_tokenizer={"type": "BertPreTokenizer"}),
    }.items():
        write(f"seeds/tokenizer/{name}.json", definition)
    huge = base64.b64encode(struct.pack("<II", 0xFFFF_FFFF, 0)).decode()
    far = base64.b64encode(struct.pack("<II", 4, 0xFFFF_FFFF) + b"a\0").decode()
    doubled = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    endless = {"type": "Split", "pattern": {"Regex": "(?=a)" * 7_000}, "behavior": "Isolated", "invert": False}
    prepended = {"type": "Prepend", "prepend": "x" * 60}
    for name, definition in {
        "id": tokenizer(model={**words, "vocab": {"[UNK]": 0, "a": 1 << 31, "film": (1 << 32) - 1}}),
        "added-id": tokenizer(model=words, added_tokens=[{**special, "id": (1 << 32) - 1}]),
        "template-without-token": tokenizer(model=words, post_processor={**template, "special_tokens": {}}),
        "template-of-a-pair": tokenizer(model=words, post_processor={**template, "single": [second]}),
        "template-id": tokenizer(model=words, post_processor={**template, "special_tokens": {
            "<s>": {"id": "<s>", "ids": [1 << 31], "tokens": ["<s>"]}}}),
        "charsmap-size": tokenizer(model=pieces, normalizer={"type": "Precompiled", "precompiled_charsmap": huge}),
        "charsmap-index": tokenizer(model=pieces, normalizer={"type": "Precompiled", "precompiled_charsmap": far}),
        "charsmap-empty": tokenizer(model=pieces, normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        "chunks": tokenizer(model=words, pre_tokenizer={"type": "FixedLength", "length": 0}),
        "growth": tokenizer(model=words, normalizer={"type": "Sequence", "normalizers": [doubled] * 60}),
        "merge": tokenizer(model={**byte_pairs, "merges": [["a", "x"]]}),
        "prefix": tokenizer(model={**byte_pairs, "continuing_subword_prefix": "##", "vocab": {"a": 0, "é": 1, "aé": 2},
                            "merges": [["a", "é"]]}),
        "byte-fallback": tokenizer(model={**pieces, "byte_fallback": True}),
        "strip": tokenizer(model=parts, decoder={"type": "Sequence", "decoders": [
            {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 9, "stop": 9}]}),
        "regex-growth": tokenizer(model=words, normalizer={"type": "Sequence", "normalizers": [
            {"type": "Replace", "pattern": {"Regex": "x?"}, "content": "a"}] * 24}),
        "regex-length": tokenizer(model=words, pre_tokenizer=endless),
        "piece-length": tokenizer(model={**pieces, "vocab": [["<unk>", 0.0], ["a" * 1_000, -1.0]]}),
        "prepend": tokenizer(model=words, normalizer={"type": "Sequence", "normalizers": [prepended] * 300}),
        "byte-levels": tokenizer(model=words, pre_tokenizer={"type": "Sequence", "pretokenizers": [byte_level] * 34}),
        "affix": tokenizer(model={**parts, "continuing_subword_prefix": "#" * 1_000,
                                  "max_input_chars_per_word": 1 << 63}),
    }.items():
        write(f"crashes/tokenizer/{name}.json", definition)
    write("seeds/tokenizer-config/llama.json", {
        "tokenizer_class": "LlamaTokenizer", "add_prefix_space": True, "bos_token": "<s>", "truncation_side": "left",
        "extra_special_tokens": ["<x>"], "added_tokens_decoder": {"3": {"content": "<s>", "special": True}}})
    write("crashes/tokenizer-config/id.json", {"added_tokens_decoder": {"4294967295": {"content": "<y>"}}})


def others():
    record = {"digest": "sha256:ab", "family": "llama", "n_blocks": 30, "span": "0:10", "dtype": "f32", "rate": 1e-5,
              "queue": 1, "free_tape_bytes": 7, "draining": False, "software": "sepal", "name": "lab-3"}
    write("seeds/announcements/record.json", record)
    write("crashes/announcements/blocks.json", {**record, "n_blocks": 4_000_000_000, "span": "0:4000000000"})
    write("crashes/announcements/span.json", {**record, "span": "0:18446744073709551615"})
    write("crashes/csv/columns.csv", b"text" + b"," * 17_000 + b"\nx" + b"," * 17_000 + b"\n")
    write("crashes/messages/blocks", bytes([0]) + server_info(4_000_000_000, 576))
    write("crashes/messages/hidden", bytes([0]) + server_info(30, 0))


def server_info(n_blocks, hidden):
    """Return a message with a description of a server, of which only two numbers are set."""
    # The fields of 32 bits of the struct, in their order: protocol, number of blocks, hidden size.
    data = struct.pack("<IIII", 7, n_blocks, hidden, 0)
    return struct.pack("<IIQ", 0, 1 + len(data) // 8, len(data) // 8 << 32) + data


if __name__ == "__main__":
    models()
    tokenizers()
    others()
