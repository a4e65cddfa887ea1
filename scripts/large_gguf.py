"""A GGUF file of Llama-3-8B's shape in Q4_K_M, with random numbers: a model for measurements.

Matrices have the types that llama.cpp's Q4_K_M gives them. Their bytes are random but for the factors, which make the
numbers as large as those of trained models, so that hidden states stay finite. The vocabulary has the bytes and words of four
letters, one token each: ``row`` writes rows of an exact number of tokens.
"""

import itertools
import os
import random
import shutil
import string
import struct
import sys
from pathlib import Path
from typing import NamedTuple

NAME = "llama-3-8b-shape.Q4_K_M.gguf"
HIDDEN, N_BLOCKS, N_HEADS, N_KV_HEADS, FFN, VOCAB = 4096, 32, 32, 8, 14_336, 128_256
N_WORDS = VOCAB - 2 * 256
SEED = 8
# Standard deviation of the weights, as in Llama's initialization.
DEVIATION = 0.02
ALIGNMENT = 32
CHUNK_BLOCKS = 1 << 16
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
NORMAL, CONTROL = 1, 3


class Kind(NamedTuple):
    """A number type of GGUF: its id, and the numbers and bytes of a block."""

    id: int
    numbers: int
    bytes: int


F32, Q4_K, Q6_K = Kind(0, 1, 4), Kind(12, 256, 144), Kind(14, 256, 210)


class Tensor(NamedTuple):
    """A tensor of the file; its shape begins with the outputs."""

    name: str
    shape: tuple
    kind: Kind

    def bytes(self):
        numbers = 1
        for dim in self.shape:
            numbers *= dim
        return numbers // self.kind.numbers * self.kind.bytes


def layers(block):
    """The linear layers of a block. Half of the blocks have more bits for values and the last layer of the MLP."""
    eighth = N_BLOCKS // 8
    has_more_bits = block < eighth or block >= 7 * eighth or (block - eighth) % 3 == 2
    sensitive = Q6_K if has_more_bits else Q4_K
    kv = HIDDEN // N_HEADS * N_KV_HEADS
    shapes = [("attn_q", HIDDEN, HIDDEN, Q4_K), ("attn_k", kv, HIDDEN, Q4_K), ("attn_v", kv, HIDDEN, sensitive),
              ("attn_output", HIDDEN, HIDDEN, Q4_K), ("ffn_gate", FFN, HIDDEN, Q4_K), ("ffn_up", FFN, HIDDEN, Q4_K),
              ("ffn_down", HIDDEN, FFN, sensitive)]
    return [Tensor(f"blk.{block}.{name}.weight", (out, inner), kind) for name, out, inner, kind in shapes]


def tensors():
    """All tensors in the order of the file."""
    norms = [Tensor(f"blk.{block}.{name}.weight", (HIDDEN,), F32)
             for block in range(N_BLOCKS) for name in ("attn_norm", "ffn_norm")]
    ends = [Tensor("token_embd.weight", (VOCAB, HIDDEN), Q4_K), Tensor("output_norm.weight", (HIDDEN,), F32),
            Tensor("output.weight", (VOCAB, HIDDEN), Q6_K)]
    return ends + norms + [layer for block in range(N_BLOCKS) for layer in layers(block)]


def block_bytes():
    """Bytes of the linear layers of all blocks."""
    return sum(layer.bytes() for block in range(N_BLOCKS) for layer in layers(block))


def variance(values):
    mean = sum(values) / len(values)
    return sum((value - mean) ** 2 for value in values) / len(values)


def factors(kind):
    """The two f16 factors of a block of Q4_K, or the one of Q6_K, with their offset in the block.

    Q4_K: ``d * scale * number - dmin * minimum`` of 6, 4 and 6 random bits. ``dmin = 7.5 * d`` makes the mean zero.
    Q6_K: ``d * scale * (number - 32)`` of 8 and 6 random bits.
    """
    if kind is Q4_K:
        products = [scale * number for scale in range(64) for number in range(16)]
        d = DEVIATION / (variance(products) + 7.5 ** 2 * variance(range(64))) ** 0.5
        return 0, struct.pack("<ee", d, 7.5 * d)
    products = [scale * number for scale in range(-128, 128) for number in range(-32, 32)]
    return 208, struct.pack("<e", DEVIATION / variance(products) ** 0.5)


def numbers(tensor, rng):
    """The bytes of a tensor, in pieces."""
    if tensor.kind is F32:
        yield struct.pack(f"<{tensor.shape[0]}f", *(rng.uniform(0.9, 1.1) for _ in range(tensor.shape[0])))
        return
    offset, halves = factors(tensor.kind)
    size = tensor.kind.bytes
    left = tensor.bytes() // size
    while left:
        n_blocks = min(left, CHUNK_BLOCKS)
        piece = bytearray(rng.randbytes(n_blocks * size))
        for i, byte in enumerate(halves, start=offset):
            piece[i::size] = bytes([byte]) * n_blocks
        yield piece
        left -= n_blocks


def byte_tokens():
    """The characters that stand for bytes in byte-level BPE, as GPT-2 defined them."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = itertools.count(256)
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def words():
    """Words of four letters, without a space before them."""
    letters = itertools.product(string.ascii_lowercase, repeat=4)
    return ["".join(word) for word in itertools.islice(letters, N_WORDS)]


def row(n_tokens, rng):
    """A text of this number of tokens with the first token: one letter, then words."""
    return " ".join(["a", *rng.choices(words(), k=n_tokens - 2)])


def text(value):
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def value(kind, content):
    """A value of the metadata with its type."""
    formats = {UINT32: "<I", INT32: "<i", FLOAT32: "<f", BOOL: "<?"}
    item = (lambda one: text(one)) if kind == STRING else (lambda one: struct.pack(formats[kind], one))
    if isinstance(content, list):
        return struct.pack("<IIQ", ARRAY, kind, len(content)) + b"".join(map(item, content))
    return struct.pack("<I", kind) + item(content)


def metadata():
    """Pairs of key and value."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", *(f"<|reserved_special_token_{i}|>" for i in range(254))]
    tokens = [*byte_tokens(), *("Ġ" + word for word in words()), *special]
    kinds = [NORMAL] * (VOCAB - len(special)) + [CONTROL] * len(special)
    bos = VOCAB - len(special)
    return {
        "general.architecture": value(STRING, "llama"),
        "general.name": value(STRING, "random numbers in the shape of Llama-3-8B"),
        "llama.block_count": value(UINT32, N_BLOCKS),
        "llama.context_length": value(UINT32, 8192),
        "llama.embedding_length": value(UINT32, HIDDEN),
        "llama.feed_forward_length": value(UINT32, FFN),
        "llama.attention.head_count": value(UINT32, N_HEADS),
        "llama.attention.head_count_kv": value(UINT32, N_KV_HEADS),
        "llama.attention.layer_norm_rms_epsilon": value(FLOAT32, 1e-5),
        "llama.rope.freq_base": value(FLOAT32, 500_000.0),
        "llama.rope.dimension_count": value(UINT32, HIDDEN // N_HEADS),
        "llama.vocab_size": value(UINT32, VOCAB),
        "tokenizer.ggml.model": value(STRING, "gpt2"),
        "tokenizer.ggml.pre": value(STRING, "llama-bpe"),
        "tokenizer.ggml.tokens": value(STRING, tokens),
        "tokenizer.ggml.token_type": value(INT32, kinds),
        "tokenizer.ggml.bos_token_id": value(UINT32, bos),
        "tokenizer.ggml.eos_token_id": value(UINT32, bos + 1),
        "tokenizer.ggml.add_bos_token": value(BOOL, True),
    }


def padding(size):
    return bytes(-size % ALIGNMENT)


def header():
    """Everything before the numbers."""
    pairs, stored = metadata(), tensors()
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(stored), len(pairs))]
    parts += [text(key) + content for key, content in pairs.items()]
    offset = 0
    for tensor in stored:
        dims = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        parts.append(text(tensor.name) + dims + struct.pack("<IQ", tensor.kind.id, offset))
        offset += tensor.bytes() + len(padding(tensor.bytes()))
    joined = b"".join(parts)
    return joined + padding(len(joined))


def write(folder):
    """Write the file unless it is there, and return its path. An interrupted writer leaves no file of this name."""
    path = Path(folder) / NAME
    size = sum(tensor.bytes() + len(padding(tensor.bytes())) for tensor in tensors())
    if path.is_file() and path.stat().st_size > size:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(path.parent).free < size + (1 << 30):
        sys.exit(f"large_gguf: error: {path.parent} has no room for {size / 1e9:.1f} GB; set SEPAL_CACHE to another folder")
    print(f"writing {path} ({size / 1e9:.1f} GB)", file=sys.stderr, flush=True)
    rng, temporary = random.Random(SEED), path.with_suffix(f".{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(header())
            for tensor in tensors():
                for piece in numbers(tensor, rng):
                    file.write(piece)
                file.write(padding(tensor.bytes()))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
