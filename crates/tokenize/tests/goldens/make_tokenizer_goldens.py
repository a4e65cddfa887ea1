"""Makes smollm2.json and pre_tokenizers.json beside it: token ids by llama.cpp, an independent tokenizer.

    python -m venv venv
    venv/bin/pip install xllamacpp==2026.10.11549 gguf==0.19.0 tokenizers==0.23.3 numpy
    venv/bin/python make_tokenizer_goldens.py SmolLM2-135M-Instruct.Q4_1.gguf [tokenizer.json]

The wheel of xllamacpp holds llama.cpp's library; this script calls its C API. With the model's tokenizer.json (from
huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct) it also checks that the two agree on every text.

smollm2.json: ids of texts by the vocabulary in the model's own GGUF.
pre_tokenizers.json: a vocabulary trained without any splitting, so that its merges reach over spaces, digits and
punctuation, and ids by it for every way to split that `tokenizer.ggml.pre` names: a text that is split at another place
comes out with other ids. And a small SentencePiece vocabulary (`llama`).
"""

import ctypes
import glob
import importlib.metadata
import json
import pathlib
import sys
import tempfile

import gguf
import numpy
import xllamacpp
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent
PRE = ["smollm", "gpt-2", "llama-bpe", "qwen2", "bloom", "default"]

TEXTS = [
    "Hello", "Hello, world!", " leading", "trailing ", "  two  spaces  ", "tab\tand\nnewline", "\n", "\n\n\n", " \n \t ",
    "a\r\nb\rc", "line\n\n\n  indented\n", "x" + " " * 30 + "y", "0", "42", "1234567890", "in 1999, 3.14159 and 1,000,000",
    "v1.2.3-rc4", "$250,000 (50%)", "1st 22nd ½ ² Ⅻ ٣", "0x1F 1e-9", "don't can't I'm you're we've he'll she'd it's",
    "DON'T IT'S y'all o'clock rock'n'roll 'tis ''s", "C++ a.b a_b a-b a/b a|b (a) [b] {c} <d> ~!@#$%^&*",
    "... -- -> => :: `` \"quoted\" 'single' «g» — – …", "café naïve Zürich señor ÅÄÖ", "e\u0301 \u0301 a\u0300\u0301b",
    "Привет, мир! Ελληνικά עברית العربية हिन्दी ไทย", "日本語 中文 한국어 こんにちは、世界。", "🎉 a🎉b 👨‍👩‍👧 🇬🇧 🏳️‍🌈 𝓗𝓮𝓵𝓵𝓸 𠀋",
    "non\u00a0breaking\u2003em\u200bzero\ufeff", "bell\u0007 null\u0000 del\u007f", "a b  c   d    e",
    "The movie wasn't bad: 7/10, I'd watch it again!\n\nBut the ending...", "def f(n):\n    return n * f(n - 1) if n else 1\n",
    "https://example.com/path?query=1&x=%20#top", "aaaaaaaaaaaaaaaaaaaaaaaa", "pneumonoultramicroscopicsilicovolcanoconiosis",
]
SPECIAL_TEXTS = [
    "<|im_start|>user\nIs it good?<|im_end|>\n<|im_start|>assistant\n", "before<|endoftext|>after", "<|im_start|><|im_end|>",
    " <|im_end|> ", "<|im_start", "im_end|>", "<|a|>", "<repo_name>x<file_sep>y<jupyter_code>1", "a<empty_output> b",
    "a\u0004b\u0006c", "12<|im_end|>34",
]


class ModelParams(ctypes.Structure):
    """llama_model_params is only passed through, so its size is all that matters: large enough."""

    _fields_ = [("bytes", ctypes.c_uint8 * 512)]


class Llama:
    """The tokenizer of a GGUF file, by llama.cpp."""

    library = ctypes.CDLL(glob.glob(str(pathlib.Path(xllamacpp.__file__).parent / "xllamacpp*.so"))[0])
    library.llama_model_default_params.restype = ModelParams
    library.llama_model_load_from_file.restype = ctypes.c_void_p
    library.llama_model_load_from_file.argtypes = [ctypes.c_char_p, ModelParams]
    library.llama_model_get_vocab.restype = ctypes.c_void_p
    library.llama_model_get_vocab.argtypes = [ctypes.c_void_p]
    library.llama_tokenize.argtypes = [
        ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_int32), ctypes.c_int32,
        ctypes.c_bool, ctypes.c_bool,
    ]

    def __init__(self, path):
        model = self.library.llama_model_load_from_file(str(path).encode(), self.library.llama_model_default_params())
        assert model, f"llama.cpp does not load {path}"
        self.vocab = self.library.llama_model_get_vocab(model)

    def ids(self, text):
        data = text.encode()
        out = (ctypes.c_int32 * (2 * len(data) + 16))()
        count = self.library.llama_tokenize(self.vocab, data, len(data), out, len(out), True, True)
        assert count >= 0, text
        return out[:count]


def tiny_model(path, write_vocab):
    """A llama of one block with weights of zero: the least that llama.cpp loads."""
    writer = gguf.GGUFWriter(path, "llama")
    size = write_vocab(writer)
    writer.add_block_count(1), writer.add_context_length(64), writer.add_embedding_length(32)
    writer.add_feed_forward_length(32), writer.add_head_count(1), writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(32)
    matrices = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    shapes = {"token_embd": (size, 32), "output_norm": (32,), "blk.0.attn_norm": (32,), "blk.0.ffn_norm": (32,)}
    shapes |= {f"blk.0.{name}": (32, 32) for name in matrices}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", numpy.zeros(shape, dtype=numpy.float32))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()
    return Llama(path)


def byte_level_vocab():
    """Byte-level BPE trained on whole texts: no splitting at all."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3 + [a + b for a in TEXTS[:20] for b in TEXTS[10:30]], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return {
        "tokens": tokens, "merges": [" ".join(pair) for pair in model["merges"]],
        "token_types": [3, 3] + [1] * (len(tokens) - 2), "bos_id": 0, "eos_id": 1,
    }


def sentencepiece_vocab():
    """Pieces of the texts, joined by a BPE that knows no bytes, with falling scores as SentencePiece writes them."""
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=420, show_progress=False)
    latin = [text for text in TEXTS if text.isascii() and text.replace("\n", "").isprintable()]
    tokenizer.train_from_iterator([word for text in latin for word in ("▁" + text.replace(" ", "▁")).split("\n")], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    merged = [piece for piece in pieces if len(piece) > 1]
    letters = [piece for piece in pieces if len(piece) == 1]
    control = ["<unk>", "<s>", "</s>"]
    by = [f"<0x{byte:02X}>" for byte in range(256)]
    return {
        "tokens": control + by + merged + letters,
        "scores": [0.0] * 259 + [-float(rank) for rank in range(len(merged) + len(letters))],
        "token_types": [2, 3, 3] + [6] * 256 + [1] * (len(merged) + len(letters)),
        "bos_id": 1, "eos_id": 2, "unk_id": 0,
    }


def write_byte_level(vocab, pre):
    def write(writer):
        writer.add_tokenizer_model("gpt2"), writer.add_tokenizer_pre(pre), writer.add_token_list(vocab["tokens"])
        writer.add_token_types(vocab["token_types"]), writer.add_token_merges(vocab["merges"])
        writer.add_bos_token_id(vocab["bos_id"]), writer.add_eos_token_id(vocab["eos_id"]), writer.add_add_bos_token(False)
        return len(vocab["tokens"])

    return write


def write_sentencepiece(vocab):
    def write(writer):
        writer.add_tokenizer_model("llama"), writer.add_token_list(vocab["tokens"])
        writer.add_token_scores(vocab["scores"]), writer.add_token_types(vocab["token_types"])
        writer.add_bos_token_id(vocab["bos_id"]), writer.add_eos_token_id(vocab["eos_id"])
        writer.add_unk_token_id(vocab["unk_id"])
        return len(vocab["tokens"])

    return write


def save(name, content):
    made_by = {package: importlib.metadata.version(package) for package in ("xllamacpp", "gguf", "tokenizers")}
    text = json.dumps({"made_by": made_by} | content, ensure_ascii=True, separators=(",", ":"))
    (HERE / name).write_text(text + "\n")


def main():
    model = Llama(sys.argv[1])
    texts = TEXTS + SPECIAL_TEXTS
    smollm2 = [{"text": text, "ids": model.ids(text)} for text in texts]
    for path in sys.argv[2:]:
        reference = Tokenizer.from_file(path)
        for case in smollm2:
            assert reference.encode(case["text"]).ids == case["ids"], case
        print(f"{path} agrees on {len(smollm2)} texts")
    save("smollm2.json", {"file": "SmolLM2-135M-Instruct.Q4_1.gguf", "cases": smollm2})

    byte_level, pieces = byte_level_vocab(), sentencepiece_vocab()
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for pre in PRE:
            llama = tiny_model(f"{folder}/{pre}.gguf", write_byte_level(byte_level, pre))
            cases.append({"pre": pre, "ids": [llama.ids(text) for text in TEXTS]})
        llama = tiny_model(f"{folder}/llama.gguf", write_sentencepiece(pieces))
        piece_ids = [llama.ids(text) for text in TEXTS + ["a</s> b<s>c"]]
    save("pre_tokenizers.json", {
        "texts": TEXTS, "byte_level": byte_level, "cases": cases,
        "sentencepiece": pieces | {"texts": TEXTS + ["a</s> b<s>c"], "ids": piece_ids},
    })


if __name__ == "__main__":
    main()
