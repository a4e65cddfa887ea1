#!/usr/bin/env python3
"""Makes side_files.json: tokenizers in folders as transformers finds them, and the ids that it gives.

    pip install transformers==5.23.0 && python make_side_files_golden.py

Every case is a tokenizer.json, the files beside it, and for each text the ids of the whole text, of at most five tokens
of it, and of at most seven of a pair. The tokenizers are word-level, with and without a post-processor. Their class
is PreTrainedTokenizerFast, which takes tokenizer.json as it is.
"""

import json
import pathlib
import tempfile

import transformers
from transformers import AutoTokenizer

WORDS = ["[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "film", "the", "<", "tag", ">", "[PAD]", "pad"]
TEXTS = ["a b c d", "the <tag> film", "the<tag>film a b c", "[UNK] a [PAD] b", "a <x> b <y> c", " <x>  a", "[CLS] a [SEP]"]
LIMIT = 5


def words(**changes):
    base = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "unk_token": "[UNK]", "vocab": {word: id for id, word in enumerate(WORDS)}},
    }
    return base | changes


def with_cls(**changes):
    special = {name: {"id": name, "ids": [id], "tokens": [name]} for id, name in [(1, "[CLS]"), (2, "[SEP]")]}
    cls, sep = ({"SpecialToken": {"id": name, "type_id": 0}} for name in special)
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return words(post_processor={
        "type": "TemplateProcessing", "single": [cls, first, sep], "pair": [cls, first, sep, second, sep],
        "special_tokens": special,
    }, **changes)


def added(id, content, special=True, **flags):
    default = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": not special}
    return {"id": id, "content": content, "special": special} | default | flags


def decoder(*tokens):
    return {str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in tokens}


def truncation(direction):
    return {"direction": direction, "max_length": 3, "strategy": "LongestFirst", "stride": 0}


CASES = {
    "nothing beside": (words(), {}),
    "config without tokens": (with_cls(), {"tokenizer_config.json": {"model_max_length": 3, "padding_side": "left"}}),
    "added_tokens_decoder": (words(), {"tokenizer_config.json": {"added_tokens_decoder": decoder(added(14, "<tag>"))}}),
    "added_tokens_decoder with ids that are taken otherwise": (words(), {"tokenizer_config.json": {
        "added_tokens_decoder": decoder(added(40, "<y>"), added(20, "<x>", False), added(7, "film"))}}),
    "added_tokens_decoder with flags": (words(), {"tokenizer_config.json": {"added_tokens_decoder": decoder(
        added(14, "<x>", lstrip=True, rstrip=True), added(15, "<tag>", single_word=True))}}),
    "added_tokens_decoder wins over the other files": (words(), {
        "tokenizer_config.json": {"added_tokens_decoder": decoder(added(14, "<tag>"))},
        "special_tokens_map.json": {"pad_token": "<x>"}, "added_tokens.json": {"<y>": 15}}),
    "empty added_tokens_decoder": (words(), {
        "tokenizer_config.json": {"added_tokens_decoder": {}}, "added_tokens.json": {"<y>": 14}}),
    "added_tokens.json": (words(), {"added_tokens.json": {"<y>": 15, "<x>": 14}}),
    "added_tokens.json beside own tokens": (words(added_tokens=[added(14, "<x>")]), {
        "added_tokens.json": {"<y>": 14, "<tag>": 15}}),
    "special tokens of the vocabulary": (words(), {"tokenizer_config.json": {"unk_token": "[UNK]", "pad_token": "[PAD]"}}),
    "special tokens that are new": (with_cls(), {"tokenizer_config.json": {
        "eos_token": "<y>", "bos_token": "<x>", "mask_token": "<tag>"}}),
    "special_tokens_map.json": (words(), {"special_tokens_map.json": {
        "pad_token": {"content": "<x>", "lstrip": True, "normalized": False, "rstrip": False, "single_word": False},
        "additional_special_tokens": ["<tag>", "<y>"]}}),
    "special_tokens_map.json wins over the config": (words(), {
        "tokenizer_config.json": {"pad_token": "<x>"}, "special_tokens_map.json": {"pad_token": "<y>"}}),
    "additional_special_tokens": (words(), {"tokenizer_config.json": {"additional_special_tokens": ["<tag>", "<x>"]}}),
    "extra_special_tokens": (words(), {"tokenizer_config.json": {"extra_special_tokens": ["<tag>", "[PAD]"]}}),
    "extra_special_tokens with names": (words(), {"tokenizer_config.json": {
        "extra_special_tokens": {"image_token": "<tag>", "video_token": "<x>"}}}),
    "a token with a name of its own": (words(), {"tokenizer_config.json": {"image_token": "<tag>", "add_bos_token": True}}),
    "added_tokens_decoder and special tokens": (words(), {"tokenizer_config.json": {
        "added_tokens_decoder": decoder(added(14, "<x>", False), added(15, "<y>")),
        "pad_token": "<x>", "eos_token": "<tag>"}}),
    "split_special_tokens": (words(added_tokens=[added(14, "<tag>")]), {
        "tokenizer_config.json": {"split_special_tokens": True}}),
    "add_bos_token is the post-processor's": (with_cls(), {"tokenizer_config.json": {
        "add_bos_token": True, "add_eos_token": False, "bos_token": "[CLS]", "eos_token": "[SEP]"}}),
    "truncation_side left": (with_cls(), {"tokenizer_config.json": {"truncation_side": "left"}}),
    "truncation_side right": (with_cls(), {"tokenizer_config.json": {"truncation_side": "right"}}),
    "direction in tokenizer.json": (words(truncation=truncation("Left")), {}),
    "truncation_side over the direction": (words(truncation=truncation("Left")), {
        "tokenizer_config.json": {"truncation_side": "right"}}),
}


def main():
    cases = []
    for name, (definition, beside) in CASES.items():
        config = {"tokenizer_class": "PreTrainedTokenizerFast"} | beside.get("tokenizer_config.json", {})
        files = beside | {"tokenizer_config.json": config}
        with tempfile.TemporaryDirectory() as folder:
            for file, content in (files | {"tokenizer.json": definition}).items():
                (pathlib.Path(folder) / file).write_text(json.dumps(content))
            tokenizer = AutoTokenizer.from_pretrained(folder)
        whole = [tokenizer(text, truncation=False)["input_ids"] for text in TEXTS]
        cut = [tokenizer(text, truncation=True, max_length=LIMIT)["input_ids"] for text in TEXTS]
        pairs = [tokenizer(text, "b c d a b", truncation=True, max_length=LIMIT + 2)["input_ids"] for text in TEXTS]
        cases.append({"name": name, "definition": definition, "files": files, "ids": whole, "cut": cut, "pairs": pairs})
    golden = {"transformers": transformers.__version__, "texts": TEXTS, "limit": LIMIT, "cases": cases}
    path = pathlib.Path(__file__).with_name("side_files.json")
    path.write_text(json.dumps(golden, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
